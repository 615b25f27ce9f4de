"""Classes by their names: of two splits, of a run and of the images that it is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skipvit.data.sources import Source
from skipvit.data.sources.arrays import Arrays, Relabelled
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import as_utf8, printable

MOST_NAMED = 5  # classes in an error


def refuse_other_classes(train: Source, val: Source) -> None:
    """Raises RunError if the training and the validation split do not have the same classes."""
    mine, theirs = set(map(as_utf8, train.classes)), set(map(as_utf8, val.classes))
    apart = sorted(mine ^ theirs)
    if apart:
        where, other = ("train", "val") if apart[0] in mine else ("val", "train")
        raise RunError(f"class {printable(apart[0])!r} is in {where}/ but not in {other}/; both need the same classes")


def match_classes(source: Source, classes: Sequence[str]) -> np.ndarray:
    """Where each class of a source is among others, by name; a subset of them is fine.

    CIFAR without its file of names calls its classes 0, 1, ...: they are matched by their places.

    Returns:
        int32 (classes of the source,).

    Raises:
        UsageError: some are not among them, naming these.
    """
    nameless = isinstance(source, Arrays) and (numbered(source.classes) or numbered(classes))
    if source.classes == tuple(classes) or nameless and len(source.classes) == len(classes):
        return np.arange(len(classes), dtype=np.int32)
    places = {as_utf8(name): i for i, name in enumerate(classes)}
    unknown = [name for name in source.classes if as_utf8(name) not in places]
    if unknown:
        names = ", ".join(printable(name) for name in unknown[:MOST_NAMED])
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise UsageError(
            f"data.path: its classes {names}{more} are not among the {len(classes)} that the network was trained on; "
            f"rename their folders, or leave them out"
        )
    return np.array([places[as_utf8(name)] for name in source.classes], np.int32)


def relabelled(source: Source, classes: Sequence[str]) -> Source:
    """The source with the numbers that these classes have. Raises UsageError as `match_classes`."""
    places = match_classes(source, classes)
    same = len(places) == len(classes) and (places == np.arange(len(classes))).all()
    return source if same else Relabelled(source, tuple(classes), places[source.labels])


def numbered(classes: Sequence[str] | None) -> bool:
    """Whether classes have no names but their numbers."""
    return not classes or list(classes) == [str(i) for i in range(len(classes))]
