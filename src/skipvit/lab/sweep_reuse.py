"""Runs that a sweep takes over from another one: the same training need not be done twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.lab.plan import Plan
from skipvit.lab.sweep_jobs import finished
from skipvit.runs.run_folder import RunFolder
from skipvit.util.errors import UsageError

SOURCE = "taken_from.txt"  # in a run's folder: where it was trained


def take_over(plan: Plan, folder: Path, source: Path) -> list[str]:
    """Copy finished runs of another sweep that differ from runs of the plan in nothing but their names.

    Args:
        folder: of the plan's sweep; runs that were begun there are left alone.
        source: the folder of the other sweep.

    Returns:
        the names, in the plan, of what was copied.

    Raises:
        UsageError: the source is no folder with runs, or a copy cannot be written.
    """
    there = list(_finished_runs(source))
    if not there:
        raise UsageError(f"--reuse: {source} has no finished runs")
    taken = []
    for run in plan.runs:
        path = next((path for path, config in there if config.seed == run.seed and not run.differs_from(config)), None)
        if path is not None and not (folder / run.name).exists():
            try:
                _copy(path, folder / run.name, run.name)
            except OSError as error:
                raise UsageError(
                    f"--reuse: {folder / run.name}: {path} cannot be copied there ({error.strerror or error})"
                ) from None
            taken.append(run.name)
    return taken


def _finished_runs(source: Path) -> Iterator[tuple[Path, Config]]:
    for path in sorted(source.glob("[!.]*/config.yaml")):
        config = configuration.read(path)
        if finished(RunFolder(path.parent), config):
            yield path.parent, config


def _copy(path: Path, target: Path, name: str) -> None:
    """The whole run under another name; complete or not there at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(path, part)
    config = configuration.read(part / "config.yaml").model_copy(update={"name": name})
    (part / "config.yaml").write_text(configuration.to_yaml(config))
    if not (part / SOURCE).exists():
        (part / SOURCE).write_text(f"{path}\n")
    os.replace(part, target)
