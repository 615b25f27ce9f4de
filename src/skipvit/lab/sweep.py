"""A sweep: the runs of a plan, trained once each, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from skipvit.config.config import Config, to_yaml
from skipvit.config.overrides import Values
from skipvit.config.reading import load_config
from skipvit.engine import devices
from skipvit.lab.jobs import Jobs, Place, is_finished
from skipvit.lab.plan import Trial, essentials, identity, read
from skipvit.lab.study import outcome
from skipvit.measure.cost import cost
from skipvit.runs.run import read_records
from skipvit.util.cores import ascend_devices, cores, memory_free
from skipvit.util.errors import UsageError
from skipvit.util.files import lock, make_folder, write_whole
from skipvit.util.text import one_line, table

SOURCE = "taken_from.txt"  # in a run's folder, if it was copied from another sweep: where it was trained
PROCESS_MEMORY = 2**30  # bytes of a trainer besides its network: MindSpore, compiled graphs, images


class Sweep:
    """The runs of a plan, and the folder that they are in: RUNS/<name of the plan's file>.

    ```python
    sweep = skipvit.Sweep("configs/studies/mechanisms.yaml", overrides={"optim.epochs": 2})
    sweep.run()
    best = max(sweep.results(), key=lambda row: row["top1"][row["forward"]])
    ```

    Args:
        plan: YAML file with base, methods, grid and seeds, see docs/lab.md.
        runs: where the sweep's folder is made.
        overrides: keys of a run, dotted or in groups, that all runs have over what the plan says.
        base: YAML file of a run to begin with, instead of the plan's base and `common`.

    Raises:
        UsageError: one line: the plan, or a run of it, cannot be; or a run that is there has another configuration.
    """

    def __init__(
        self,
        plan: str | Path,
        runs: str | Path = "runs",
        overrides: Values | None = None,
        base: str | Path | None = None,
    ):
        self.plan = read(Path(plan), overrides, Path(base) if base else None)
        self.folder = Path(runs) / self.plan.name
        for trial in self.plan.trials:
            refuse_changed(trial, self.folder / trial.name / "config.yaml")

    def run(
        self,
        jobs: int | None = None,
        reuse: Iterable[str | Path] = (),
        command: str = "",
        say: Callable[[str], None] = tqdm.write,
    ) -> None:
        """Train what is not finished, a process each; what was begun goes on. Returns when all runs have ended.

        Args:
            jobs: runs at the same time; None: one a core and as memory allows, or one a device.
            reuse: folders of other sweeps, from which finished runs of the same configuration are copied.
            command: to note in the sweep's folder.
            say: takes each line for a person.

        Raises:
            UsageError: it cannot begin: too many jobs, another sweep in the folder, nothing to reuse.
            RunError: runs failed; the others are finished.
            Stopped: by SIGTERM, SIGHUP or Ctrl-C, after the runs have saved.
        """
        places = places_of(self.plan.trials[0].config, jobs)
        with claimed(self.folder):
            for source in reuse:
                taken = take_over(self.plan.trials, self.folder, Path(source))
                say(f"from {source}: {', '.join(taken) or 'nothing that this plan needs'}")
            self._write(command)
            Jobs(self.folder, self.plan.trials, places, say).follow()

    def results(self) -> list[dict[str, Any]]:
        """A row for each run, finished or not, in the order of the plan.

        Returns:
            dicts of `name`, `method`, `variant` (the method at a point of its own grid), `cell` (the point of the
            plan's grid), `point` (the grids' values), `seed`, `finished`, `epochs` (trained), `path` (of the run),
            `forward` (the one that counts) and `top1` (percent after the last epoch, by forward; empty unless
            finished).
        """
        rows = []
        for trial in self.plan.trials:
            path = self.folder / trial.name
            found, epochs = outcome(path, trial.seed), len(read_records(path))
            about = {"forward": found.forward, "top1": found.top1} if found else {"forward": None, "top1": {}}
            rows.append(trial.model_dump() | about | {"finished": bool(found), "epochs": epochs, "path": path})
        return rows

    def table(self) -> str:
        """The runs, seeds together, with what multiply-accumulates allow."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.plan.trials:
            groups.setdefault(f"{trial.variant} {trial.cell}".strip(), []).append(trial)
        done = {trial.name for trial in self.plan.trials if is_finished(self.folder / trial.name)}
        rows = []
        for label, trials in groups.items():
            config, found = trials[0].config, cost(trials[0].config)
            row = [label, len(trials), sum(trial.name in done for trial in trials), config.optim.epochs]
            row.append(sum(phase.epochs for phase in found.phases if phase.forward == "dense"))
            macs = found.forwards[found.focus].macs / 1e9
            rows.append([*row, f"{macs:.4f}", f"{found.gain:.3f} x", f"{found.run_gain:.3f} x"])
        head = ["", "seeds", "done", "epochs", "dense", "GMACs", "ideal gain", "whole run"]
        count = f"{len(self.plan.trials)} runs in {self.folder}, {len(done)} of them finished"
        return f"{table(rows, head)}\n{count}; gains are of training, against dense"

    def _write(self, command: str) -> None:
        """Write down what the plan comes to, for the report, and each run's configuration."""
        about = {"plan": self.plan.name, "baseline": self.plan.baseline, "target": self.plan.target, "command": command}
        about["runs"] = [trial.model_dump() for trial in self.plan.trials]
        write_whole(self.folder / "sweep.json", json.dumps(about, indent=2, default=str) + "\n")
        (self.folder / "configs").mkdir(exist_ok=True)
        for trial in self.plan.trials:
            config = trial.config
            if trial.seed != self.plan.trials[0].seed:  # of the first one the report draws epochs
                config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1})})
            write_whole(self.folder / "configs" / f"{trial.name}.yaml", to_yaml(config))


def refuse_changed(trial: Trial, path: Path) -> None:
    """Raises UsageError if the run in a folder, begun or finished, is another one than the plan's."""
    if path.exists():
        there, here = essentials(load_config(path)), essentials(trial.config)
        changed = [key for key in here | there if here.get(key) != there.get(key)]
        if changed:
            what = f"this run has another {changed[0]} than the plan"
            raise UsageError(f"{path}: {what}; remove its folder, or give the plan's file another name")


def claimed(folder: Path) -> BinaryIO:
    """The sweep's folder, kept from another sweep. Raises UsageError if it cannot be made, or another works in it."""
    make_folder(folder, "sweep's folder", "--runs")
    return lock(folder / ".lock", f"{folder}: another sweep works in it; wait for its end or stop it")


def take_over(trials: Iterable[Trial], folder: Path, source: Path) -> list[str]:
    """Copy finished runs of another sweep's folder that are the same as runs of this one but for their names; what was
    begun here is left alone. Returns the names here. Raises UsageError if there are none, or they cannot be copied."""
    begun = sorted(source.glob("[!.]*/config.yaml"))
    there = {identity(load_config(path)): path.parent for path in begun if is_finished(path.parent)}
    if not there:
        raise UsageError(f"--reuse: {source} has no finished runs")
    taken = []
    for trial in trials:
        path, target = there.get(identity(trial.config)), folder / trial.name
        if path is None or target.exists():
            continue
        try:
            _copy(path, target)
        except (OSError, shutil.Error) as error:
            raise UsageError(f"--reuse: {target}: {path} cannot be copied there ({one_line(error)})") from None
        taken.append(trial.name)
    return taken


def _copy(path: Path, target: Path) -> None:
    """The whole run under another name; complete or not there at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(path, part)
    config = load_config(part / "config.yaml").model_copy(update={"name": target.name})
    (part / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    if not (part / SOURCE).exists():
        (part / SOURCE).write_text(f"{path}\n", encoding="utf-8")
    os.replace(part, target)


def places_of(config: Config, jobs: int | None) -> list[Place]:
    """Where the jobs run: each has cores of its own, or on Ascend a device of its own. Raises UsageError for no jobs,
    or more than there are devices."""
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs: {jobs} runs at the same time make no sweep; use 1 or more")
    if devices.choose(config.device) == "ascend":
        there = ascend_devices()
        if jobs is not None and jobs > len(there):
            raise UsageError(f"--jobs: {jobs} asked for, this machine has {len(there)} devices that may be used")
        # Processes count the devices that they may use from 0, whatever the machine calls them.
        return [Place(device=device) for device in range(len(there[:jobs]))]
    bound, found = sorted(os.sched_getaffinity(0)), cost(config)
    mine = bound[: cores()]  # fewer where a container has a quota
    # What training takes on a CPU, by arithmetic, generously.
    kept = config.data.batch_size * max(forward.activations for forward in found.forwards.values())
    memory = PROCESS_MEMORY + sum(found.state.values()) + kept
    count = jobs or min(len(mine), max(1, memory_free() // memory))
    # MindSpore makes as many threads as a process has cores, and they spin: on shared cores they hold each other up.
    if count > len(mine) or count == 1 and mine == bound:
        return [Place()] * count
    return [Place(cores=frozenset(mine[i::count])) for i in range(count)]
