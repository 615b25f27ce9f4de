"""The phases of a run, resolved: stretches of epochs, each with what differs in it, and the forwards that they
train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from skipvit.routing.spec import Route

if TYPE_CHECKING:
    from skipvit.config.config import Config
    from skipvit.config.groups import PhaseConfig


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

    def same(self, other: ForwardSpec) -> bool:
        return (self.routes, self.image_size) == (other.routes, other.image_size)


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


def resolved(config: Config) -> tuple[Phase, ...]:
    """The phases of a run, in order."""
    names, result, first = forward_names(config), [], 0
    for phase, name in zip(_listed(config), names):
        epochs = phase.epochs if isinstance(phase.epochs, int) else config.optim.epochs
        result.append(Phase(phase.name or name, first, first + epochs, name, _with(config, phase)))
        first += epochs
    return tuple(result)


def forwards(config: Config) -> dict[str, ForwardSpec]:
    """Every forward that a run trains or evaluates, by name: the dense and (if the run has routes) the routed one
    first."""
    size = config.model.side
    result = {"dense": ForwardSpec("dense", (), size)}
    if config.routes:
        result["routed"] = ForwardSpec("routed", tuple(config.routes), size)
    for phase, name in zip(_listed(config), forward_names(config)):
        result.setdefault(name, _forward(config, phase, name))
    return result


def forward_names(config: Config) -> list[str]:
    """Of each phase, the name of the forward that it trains.

    `dense` has no routes, `routed` the run's, `phaseN` those that phase N (from 1) is the first to have; `@S` behind
    it: on images of S pixels, if they are not the run's.
    """
    known: list[ForwardSpec] = []
    for i, phase in enumerate(_listed(config)):
        found = _forward(config, phase, "")
        base = "dense" if not found.routes else "routed" if found.routes == tuple(config.routes) else f"phase{i + 1}"
        name = base if found.image_size == config.model.side else f"{base}@{found.image_size}"
        name = next((other.name for other in known if other.same(found)), name)
        known.append(ForwardSpec(name, found.routes, found.image_size))
    return [forward.name for forward in known]


def _listed(config: Config) -> list[PhaseConfig]:
    from skipvit.config.groups import PhaseConfig

    return config.phases or [PhaseConfig()]


def _forward(config: Config, phase: PhaseConfig, name: str) -> ForwardSpec:
    routes = config.routes if phase.routes is None else phase.routes
    return ForwardSpec(name, tuple(routes), phase.image_size or config.model.side)


def _with(config: Config, phase: PhaseConfig) -> Config:
    """Raises pydantic's ValidationError for an augmentation that does not exist."""
    augment = type(config.augment)(**(config.augment.model_dump() | phase.augment))
    model = config.model.model_copy(update={"image_size": phase.image_size or config.model.side})
    return config.model_copy(update={"augment": augment, "model": model})
