"""`skipvit sweep`: train all runs of a plan, a process each."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.engine import distributed
from skipvit.lab.plan import Plan, Run, read
from skipvit.lab.sweep_jobs import Jobs, finished
from skipvit.lab.sweep_reuse import take_over
from skipvit.measure.cost import cost as cost_of
from skipvit.runs.run_folder import RunFolder
from skipvit.util.cores import ascend_devices, cores
from skipvit.util.errors import UsageError
from skipvit.util.files import locked, make_folder

EPILOG = """A run that is finished is never done again; one that was begun goes on. So after Ctrl-C, a kill or a failure the same command
completes the sweep. Each run has its folder RUNS/<plan>/<method>-s<seed>, its output is in RUNS/<plan>/logs. Keys such as
--optim.epochs 2 are for all runs. What a plan holds: docs/lab.md.

examples:
  skipvit sweep configs/studies/mechanisms.yaml
  skipvit sweep configs/studies/mechanisms.yaml --dry-run
  skipvit sweep configs/studies/places.yaml --reuse runs/mechanisms
  skipvit sweep configs/studies/cifar10.yaml --data.path /path/to/cifar10
  skipvit sweep configs/studies/places.yaml --base configs/studies/base_imagenet.yaml --runs runs/imagenet

exit codes: 0 all runs are finished, 1 some failed, 2 refused before it began, 3 stopped by SIGTERM, SIGHUP or Ctrl-C
(a second one kills)
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(prog="skipvit sweep", description="Train all runs of a plan.", epilog=EPILOG)
    result.add_argument("plan", metavar="PLAN", help="YAML file: base, methods, grid, seeds")
    result.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="where the plan's folder is made (default: runs)"
    )
    result.add_argument(
        "--base", metavar="FILE", help="YAML file of a run to begin with, instead of the plan's base and `common`"
    )
    result.add_argument(
        "--reuse",
        metavar="FOLDER",
        action="append",
        default=[],
        help="copy the runs that another sweep has finished and this one needs, e.g. dense ones; may be repeated",
    )
    result.add_argument(
        "--jobs", type=int, metavar="N", help="runs at the same time (default: one a core, or a device)"
    )
    result.add_argument("--dry-run", action="store_true", help="only list the runs, with their ideal gains")
    return result


def main(words: list[str]) -> None:
    options, check = configuration.overriding(parser(), words)
    plan = read(Path(options.plan), check, options.base and Path(options.base))
    folder = Path(options.runs) / plan.name
    refuse_changed(plan, folder)
    if options.dry_run:
        print(as_text(plan, folder))
        return
    places = places_of(plan.runs[0].config, options.jobs)
    with claimed(folder):
        for source in options.reuse:
            print(
                f"from {source}: {', '.join(take_over(plan, folder, Path(source))) or 'nothing that this plan needs'}"
            )
        configs = write(plan, folder, " ".join(["skipvit sweep", *map(shlex.quote, words)]))
        Jobs(folder, plan.runs, configs, places).follow()


def refuse_changed(plan: Plan, folder: Path) -> None:
    """Raises UsageError if a run that was begun, or is finished, had another configuration."""
    for run in plan.runs:
        path = folder / run.name / "config.yaml"
        if path.exists():
            changed = run.differs_from(configuration.read(path))
            if changed:
                what = f"this run has another {changed[0]} than the plan"
                raise UsageError(f"{path}: {what}; remove its folder, or give the plan's file another name")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The sweep's folder, kept from another sweep. Raises UsageError if it cannot be made, or another works in it."""
    make_folder(folder, "sweep's folder", "--runs")
    with locked(folder / ".lock", f"{folder}: another sweep works in it; wait for its end or stop it"):
        yield


def write(plan: Plan, folder: Path, command: str) -> dict[str, Path]:
    """Write down what the plan comes to, for the report, and each run's configuration; returns their files by run."""
    about = {"plan": plan.name, "baseline": plan.baseline, "target": plan.target, "command": command}
    about["runs"] = [run.as_dict() for run in plan.runs]
    (folder / "sweep.json").write_text(json.dumps(about, indent=2) + "\n")
    result = {}
    (folder / "configs").mkdir(exist_ok=True)
    for run in plan.runs:
        result[run.name] = folder / "configs" / f"{run.name}.yaml"
        result[run.name].write_text(configuration.to_yaml(lean(run, plan)))
    return result


def lean(run: Run, plan: Plan) -> Config:
    """The run's configuration with a single checkpoint kept, but for the first seed, whose epochs the report draws."""
    if run.seed == plan.runs[0].seed:
        return run.config
    return run.config.model_copy(update={"checkpoint": run.config.checkpoint.model_copy(update={"keep": 1})})


def places_of(config: Config, jobs: int | None) -> list[dict]:
    """Where the jobs run: each has cores of its own, or on Ascend a device of its own.

    Returns:
        for each job `cores`, the set it may use, or None; and `device`, its number, or None.

    Raises:
        UsageError: no jobs, or more than there are devices.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs: {jobs} runs at the same time make no sweep; use 1 or more")
    if distributed.choose(config.device) == "ascend":
        devices = ascend_devices()
        if jobs is not None and jobs > len(devices):
            raise UsageError(f"--jobs: {jobs} asked for, this machine has {len(devices)} devices that may be used")
        # Processes count the devices that they may use from 0, whatever the machine calls them.
        return [{"device": device, "cores": None} for device in range(len(devices[:jobs]))]
    mine = sorted(os.sched_getaffinity(0))
    count = jobs or cores()
    # MindSpore makes as many threads as a process has cores, and they spin: on shared cores they hold each other up.
    return [{"device": None, "cores": set(mine[i::count]) if 1 < count <= len(mine) else None} for i in range(count)]


def as_text(plan: Plan, folder: Path) -> str:
    """The runs, seeds together, with what multiply-accumulates allow."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in plan.runs:
        groups.setdefault((run.variant, run.cell), []).append(run)
    width = max(len(name_of(*key)) for key in groups) + 2
    lines = [
        f"{'':{width}}{'seeds':>6}{'done':>6}{'epochs':>8}{'dense':>7}{'GMACs':>9}{'ideal gain':>12}{'whole run':>11}"
    ]
    for (variant, cell), runs in groups.items():
        config = runs[0].config
        cost = cost_of(config)
        forward = cost.forwards.get("routed", cost.forwards["dense"])
        done = sum(finished(RunFolder(folder / run.name), run.config) for run in runs)
        warmup, _, cooldown = config.phase_lengths()
        lines.append(
            f"{name_of(variant, cell):{width}}{len(runs):6}{done:6}{config.optim.epochs:8}{warmup + cooldown:7}"
            f"{forward.macs / 1e9:9.4f}{cost.gain:10.3f} x{cost.run_gain:9.3f} x"
        )
    done = sum(finished(RunFolder(folder / run.name), run.config) for run in plan.runs)
    return "\n".join(
        [*lines, f"{len(plan.runs)} runs in {folder}, {done} of them finished; gains are of training, against dense"]
    )


def name_of(variant: str, cell: str) -> str:
    return f"{variant} {cell}".strip()
