"""The most probable classes of images, and a sheet of what the network looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from skipvit.data.broken import Bad
from skipvit.data.open import prepared
from skipvit.data.sources.files import Files, find_images
from skipvit.insight.figures import kept_figure
from skipvit.routing.program import Program, Step, kept_positions, routed_stage, row_major
from skipvit.runs.run import Run, trained_of
from skipvit.runs.trained import Trained
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import printable

MOST_SHOWN = 48  # images of a sheet


class Prediction(NamedTuple):
    """An image's path, its most probable classes (numbers and probabilities, most probable first), and its pixels.

    Attributes:
        image: uint8 (S, S, 3), as the network took it.
    """

    path: str
    top: list[tuple[int, float]]
    image: Any


def predict(
    run: Run | Trained | str | Path,
    paths: Iterable[str],
    top: int = 5,
    batch_size: int = 16,
    bad: dict[str, str] | None = None,
    **chosen: Any,
) -> Iterator[Prediction]:
    """The predictions of those images that can be read, in order.

    Args:
        run: a run or its folder.
        paths: files, and folders with all images in them and below.
        top: classes an image.
        batch_size: images at a time; changes no answer.
        bad: gets the paths that cannot be read, each with the reason.
        chosen: which weights and forward: `which`, `forward`, `averaged`, as of `Run.trained`.

    Raises:
        UsageError: a number below 1; as `Run.trained`.
        RunError: the network's outputs are not finite.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"{name}: {value} is not possible; use 1 or more")
    trained, bad = trained_of(run, **chosen), {} if bad is None else bad
    files, unread = find_images(list(paths))
    bad |= unread
    batch_size = min(batch_size, max(1, len(files)))
    with tqdm(total=len(files), desc="predicting", unit=" images", leave=False, disable=None) as bar:
        source: Any = Files(files)
        for step, (good, images) in enumerate(prepared(trained.image_config, source, batch_size, Bad(bad))):
            probabilities = trained.predict(images, batch_size)
            if not np.isfinite(probabilities[good]).all():
                why = "its weights give no finite probabilities; use an older checkpoint"
                raise RunError(f"{trained.checkpoint}: {why}")
            for place in good:
                best = np.argsort(-probabilities[place], kind="stable")[:top]
                classes = [(int(c), float(probabilities[place, c])) for c in best]
                yield Prediction(files[step * batch_size + place], classes, images[place])
            bar.update(min(batch_size, len(files) - step * batch_size))


def as_dict(trained: Trained, found: list[Prediction], bad: dict[str, str]) -> dict[str, Any]:
    """All answers for JSON; probabilities are 0 to 1."""
    classes = trained.classes
    return {
        "checkpoint": str(trained.checkpoint),
        "weights": "averaged" if trained.averaged else "last",
        "forward": trained.forward,
        "predictions": [
            {"path": path, "top": [{"class": classes[c], "index": c, "probability": p} for c, p in top]}
            for path, top, _ in found
        ],
        "bad": [{"path": path, "reason": reason} for path, reason in bad.items()],
    }


def sheet(trained: Trained, found: list[Prediction]) -> Figure:
    """Figure of the first images with kept patches, [CLS] attention and predictions."""
    found, program = found[:MOST_SHOWN], trained.config.program(trained.forward)
    images = np.stack([prediction.image for prediction in found])
    slots = [f"routes.{step.route}.slots" for step in program.selections]
    looked_at = attention_of_cls(program)
    names = [*slots, *([looked_at.name] if looked_at else [])]
    seen = trained.walk(names).by_name(images) if names else {}
    stage = routed_stage(trained.config.model.spec(), program.image_size)
    kept = [kept_positions(row_major(seen[name], stage), step.after) for name, step in zip(slots, program.selections)]
    views, attention = ["image"], None
    if kept:
        views.append("kept patches (bypassed ones dimmed)")
    if looked_at:
        attention = looked_at.placed(seen)
        views.append(f"attention of [CLS] in {looked_at.where} (bright: most)")
    captions = [_short(Path(prediction.path).name, 34) for prediction in found]
    names = [_short(name, 24) for name in trained.classes]
    answers = ["\n".join(f"{names[c]} {100 * p:.1f} %" for c, p in prediction.top[:2]) for prediction in found]
    grid = math.isqrt(stage.layout.patches)
    return kept_figure(images, kept, captions, grid, attention, answers, ", ".join(views))


@dataclass(frozen=True)
class LookedAt:
    """What [CLS] attends to in a block.

    Attributes:
        step: the block's attention.
        slots: name of what says where the image's patches are in its sequence; None: all are in their places.
        where: the block in words.
    """

    step: Step
    slots: str | None
    where: str

    @property
    def name(self) -> str:
        return self.step.makes[0]

    def placed(self, seen: dict[str, np.ndarray]) -> np.ndarray:
        """By the image's patches, float (n, patches): 0 for those that are not in the sequence any more."""
        row = seen[self.name]
        if self.slots is None:
            return row
        places = seen[self.slots].astype(int) - self.step.before.prefix
        there = (places >= 0) & (places < row.shape[1])
        return np.where(there, np.take_along_axis(row, np.where(there, places, 0), 1), 0.0)


def attention_of_cls(program: Program) -> LookedAt | None:
    """That of the block which the first route's scorer reads, if it reads [CLS]; else the last block's."""
    last: LookedAt | None = None
    there: list[str | None] = [None]
    steps: tuple[Any, ...] = program.steps
    for step in steps:
        if step.kind == "attend" and step.before.prefix:
            last = LookedAt(step, there[-1], f"block {step.block}")
        elif step.kind == "score" and step.route == 0 and "cls_row" in step.scorer.reads and last:
            return replace(last, where=f"{last.where}, by which patches are kept")
        elif step.kind == "select":
            there.append(f"routes.{step.route}.slots")
        elif step.kind == "restore":
            there.pop()
    return last and replace(last, where=f"{last.where}, the last")


def _short(name: str, length: int) -> str:
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"
