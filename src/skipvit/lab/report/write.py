"""The way in: read a sweep's folder, measure what is asked for, write the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib

from skipvit.engine import devices
from skipvit.lab.report import accuracy, images, lengths, speed
from skipvit.lab.report import weights as of_weights
from skipvit.lab.report.page import Block, to_html, to_markdown
from skipvit.lab.study import Study, read_study
from skipvit.lab.sweep import claimed
from skipvit.measure.bench.variants import begun
from skipvit.util.errors import UsageError
from skipvit.util.files import make_folder, write_whole
from skipvit.util.text import nearest


class Report(NamedTuple):
    """What was written; `left_out` has a line for each measurement in the folder that is not quoted, and why."""

    html: Path
    markdown: Path
    study: Study
    left_out: list[str]


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    baseline: str | None = None,
    target: float | None = None,
    bench: bool = False,
    weights: bool = False,
    image_by_image: bool = False,
    rounds: int = 30,
    widest: float = 0.05,
) -> Report:
    """Write what the runs in a sweep's folder, all finished or not, showed.

    Args:
        out: folder of report.html, report.md and its figures; None: FOLDER/report.
        baseline: the method that all are compared to; None: the plan's.
        target: top-1, percent, whose time is given; None: the plan's.
        bench: measure training speed and memory of every method first, in minutes.
        weights: evaluate dense weights along the routes, and look at what is kept, first.
        image_by_image: evaluate every run image by image first.
        rounds, widest: of the measurement of speed, see `report.speed.measure`.

    Raises:
        UsageError: not the folder of a sweep, no such baseline, another sweep at work where speed is to be measured.
        RunError: no run is finished yet, or a measurement failed.
    """
    begun("training", rounds, widest)  # refused before anything is read
    if target is not None and not 0 < target < 100:
        raise UsageError(f"--target: {target:g} is not an accuracy between 0 and 100 %")
    study = read_study(Path(folder))
    study.about.target = study.about.target if target is None else target
    if baseline is not None:
        refuse_unknown(study, baseline)
        study.about.baseline = baseline
    where, title = Path(out or study.folder / "report"), f"Sweep {study.about.plan}"
    make_folder(where, "report's folder", "--out")
    if bench:
        with claimed(study.folder):  # beside a running sweep nothing can be timed
            speed.measure(study, rounds, widest)
    if weights:
        of_weights.measure(study)
    if image_by_image:
        images.measure(study)
    with matplotlib.rc_context({"text.parse_math": False}):  # names are no formulas
        content, left_out = blocks(study)
        write_whole(where / "report.html", to_html(title, content))
        write_whole(where / "report.md", to_markdown(title, content, where))
    return Report(where / "report.html", where / "report.md", study, left_out)


def blocks(study: Study) -> tuple[list[Block], list[str]]:
    """The report's content, and what of the folder's measurements is left out."""
    device = devices.choose(study.arms[0].config.device)
    notes, speeds, left_out = speed.read(study, device)
    matrix, kept, more = of_weights.read(study, device)
    hits, also = images.read(study, device)
    content = [
        accuracy.about(study),
        *lengths.lengths_blocks(study, speeds),
        *accuracy.accuracy_blocks(study),
        *images.images_blocks(study, hits),
        *speed.speed_blocks(study, speeds, notes),
        *accuracy.grid_blocks(study),
        *of_weights.weights_blocks(study, matrix, kept),
        *accuracy.about_runs(study, left_out + more + also),
    ]
    return content, left_out + more + also


def refuse_unknown(study: Study, baseline: str) -> None:
    """Raises UsageError unless a single finished arm is called so in every cell."""
    named = [arm for arm in study.arms if arm.method == baseline]
    if not named:
        known = nearest(baseline, [arm.method for arm in study.arms])
        raise UsageError(f"--baseline: {baseline} is not a finished method of this sweep{known}")
    if len(named) > len({arm.cell for arm in named}):
        labels = ", ".join(arm.label for arm in named)
        raise UsageError(f"--baseline: {baseline} is several methods ({labels}), by a grid of its own; choose another")
