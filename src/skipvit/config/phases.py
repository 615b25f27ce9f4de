"""The phases of a run: stretches of epochs, each with what differs in it, and the forwards that they train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skipvit.config.groups import PhaseConfig
from skipvit.routing.spec import Route

if TYPE_CHECKING:
    from skipvit.config.config import Config


@dataclass(frozen=True)
class ForwardSpec:
    """A forward of a run: what of the network is computed, on images of which size.

    Attributes:
        routes: none for the dense one.
        image_size: side of the images, pixels.
    """

    name: str
    routes: tuple[Route, ...]
    image_size: int


@dataclass(frozen=True)
class Phase:
    """Epochs [first, end) train one forward.

    Attributes:
        forward: its name.
        config: the run's configuration with the phase's image size and augmentation, for its data.
    """

    name: str
    first: int
    end: int
    forward: str
    config: Config

    @property
    def epochs(self) -> int:
        return self.end - self.first


def counted(phases: list[PhaseConfig], epochs: int) -> list[PhaseConfig]:
    """The same phases with their epochs as whole numbers; those of no epoch are left out.

    Shares are rounded where a phase ends, counted from the run's beginning (behind an open phase: from its end), to at
    least one epoch where they are not 0. One phase may leave its epochs open: it has the rest.

    Raises:
        ValueError: they are not the run's epochs together; one line.
    """
    open_ones = [i for i, phase in enumerate(phases) if phase.epochs is None]
    if len(open_ones) > 1:
        raise ValueError(
            f"phases.{open_ones[1]}.epochs: only one phase may leave its epochs open, phases.{open_ones[0]} does"
        )
    first_open = open_ones[0] if open_ones else len(phases)
    before = _lengths([phase.epochs for phase in phases[:first_open]], epochs)
    after = _lengths([phase.epochs for phase in reversed(phases[first_open + 1 :])], epochs)[::-1]
    known = sum(before) + sum(after)
    if open_ones and known >= epochs:
        raise ValueError(
            f"phases: {known} epochs of the others leave none of optim.epochs {epochs} for phases.{first_open}; use "
            f"fewer"
        )
    if phases and not open_ones and known != epochs:
        raise ValueError(
            f"phases: {known} epochs together, optim.epochs is {epochs}; leave the epochs of one phase out"
        )
    lengths = [*before, *([epochs - known] if open_ones else []), *after]
    return [phase.model_copy(update={"epochs": length}) for phase, length in zip(phases, lengths) if length]


def _lengths(given: list[int | str | None], epochs: int) -> list[int]:
    """Epochs of phases in a row, numbers or shares such as `5%`."""
    exact, border, result = 0.0, 0, []
    for value in given:
        share = float(value.rstrip("%")) / 100 * epochs if isinstance(value, str) else float(value or 0)
        exact += share
        end = border + int(share) if isinstance(value, int) else max(border + 1, round(exact)) if share else border
        result.append(end - border)
        border = end
    return result
