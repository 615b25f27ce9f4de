"""A run as typed data. A `Config` made in Python is checked like one that is read from a file (`config.reading`)."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from skipvit.config.groups import (
    MOST_ACCUMULATION,
    AmpConfig,
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    EvalConfig,
    InitConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    PhaseConfig,
)
from skipvit.config.imports import import_files
from skipvit.config.older import translated
from skipvit.config.phases import ForwardSpec, Phase, counted
from skipvit.routing.program import Probe, Program, compile_program
from skipvit.routing.spec import Route
from skipvit.util.errors import UsageError
from skipvit.util.text import nearest
from skipvit.util.yaml_text import parse

MOST_LISTED = 1000  # routes or phases


def _from_text(value: Any) -> Any:
    """On the command line routes and phases are a piece of YAML."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError as error:
        about = {"why": str(error), "example": "{start: 4, end: 11}"}
        raise PydanticCustomError("yaml", "{why}; e.g. [{example}]", about) from None


# What a run may be resumed with: none of it changes the weights it ends with.
# (Batch size and accumulation: `Config.divided` keeps the images of an update.)
MAY_CHANGE = {
    "name",  # a folder may be renamed
    "imports",
    "data.batch_size",
    "optim.accumulate",
    "data.path",
    "data.workers",
    "data.sink",
    "data.broken_share",
    "amp.max_overflows",
    "eval.every",
    "checkpoint.every",
    "checkpoint.minutes",
    "checkpoint.keep",
    "log.steps",
    "log.tensorboard",
}


class Config(BaseSettings):
    """A run."""

    model_config = SettingsConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str="null",
    )

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=200)
    """name of the run, and of its folder below runs/"""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """of weights, data and noise"""
    deterministic: bool = False
    """choose kernels whose results repeat bit by bit"""
    device: Literal["auto", "cpu", "ascend"] = "auto"
    """auto: ascend if this MindSpore finds a device, else cpu"""
    imports: list[str] = []
    """Python files of your own that register models and scorers, imported before anything else is read"""
    model: ModelConfig = ModelConfig()
    """the network"""
    init: InitConfig = InitConfig()
    """weights to start from"""
    routes: Annotated[list[Route], NoDecode, BeforeValidator(_from_text)] = Field([], max_length=MOST_LISTED)
    """list of routes as YAML, e.g. '[{start: 4, end: 11, keep_ratio: 0.45, scorer: cls_attention, restore: true, fuse:
    false}]'"""
    routing: Literal["auto", "gather", "matmul"] = "auto"
    """formulation of the routes; auto: matmul on ascend, gather on cpu"""
    phases: Annotated[list[PhaseConfig], NoDecode, BeforeValidator(_from_text)] = Field([], max_length=MOST_LISTED)
    """stretches of epochs and what differs in them, as YAML, e.g. '[{epochs: 15, routes: []}, {epochs: 285}]'; none:
    one that differs in nothing"""
    data: DataConfig = DataConfig()
    """what it learns from"""
    augment: AugmentConfig = AugmentConfig()
    """what training does to the images"""
    optim: OptimConfig = OptimConfig()
    """how it learns"""
    amp: AmpConfig = AmpConfig()
    """number formats"""
    ema: EmaConfig = EmaConfig()
    """average of the weights"""
    eval: EvalConfig = EvalConfig()
    """evaluation during training"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """what is kept"""
    log: LogConfig = LogConfig()
    """what is written down"""

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        imports = {"imports": import_files(values["imports"])} if values.get("imports") else {}
        return translated(values | imports)

    @model_validator(mode="after")
    def _check(self) -> Config:
        """Complete what follows from other keys, and refuse keys that are fine alone and contradict each other."""
        self.model = self.model.model_copy(update={"image_size": self.model.spec().image_size})
        self.phases = counted(self.phases, self.optim.epochs)
        check_together(self)
        return self

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):
        """Only the file and the command line describe a run; environment variables do not."""
        return (init_settings,)

    def resolved_phases(self) -> tuple[Phase, ...]:
        """Its phases in order: epochs, forward, data. Raises ValidationError for an unknown augmentation."""
        result, first = [], 0
        for phase, forward in zip(self._listed(), self._forwards()):
            end = first + (phase.epochs if isinstance(phase.epochs, int) else self.optim.epochs)
            augment = AugmentConfig(**(self.augment.model_dump() | phase.augment))
            own = self.at_size(forward.image_size).model_copy(update={"augment": augment})
            result.append(Phase(phase.name or forward.name, first, end, forward.name, own))
            first = end
        return tuple(result)

    def forwards(self) -> dict[str, ForwardSpec]:
        """Every forward that is trained or evaluated, by name: the dense and (if the run has routes) the routed one
        first."""
        result = {"dense": ForwardSpec("dense", (), self.model.side)}
        if self.routes:
            result["routed"] = ForwardSpec("routed", tuple(self.routes), self.model.side)
        return result | {forward.name: forward for forward in self._forwards()}

    def _listed(self) -> list[PhaseConfig]:
        return self.phases or [PhaseConfig()]

    def _forwards(self) -> list[ForwardSpec]:
        """Of each phase, the forward that it trains.

        `dense` has no routes, `routed` the run's, `phaseN` those that phase N (from 1) is the first to have; `@S`
        behind it: on images of S pixels, if they are not the run's.
        """
        result: list[ForwardSpec] = []
        for i, phase in enumerate(self._listed()):
            routes = tuple(self.routes if phase.routes is None else phase.routes)
            size = phase.image_size or self.model.side
            name = "dense" if not routes else "routed" if routes == tuple(self.routes) else f"phase{i + 1}"
            new = ForwardSpec(name if size == self.model.side else f"{name}@{size}", routes, size)
            result.append(next((known for known in result if (known.routes, known.image_size) == (routes, size)), new))
        return result

    def trained(self) -> str:
        """The forward that the last phase trains."""
        return self._forwards()[-1].name

    def main(self) -> str:
        """The forward whose accuracy is the run's main figure."""
        return self.trained() if self.eval.main == "auto" else self.eval.main

    def evaluated(self) -> tuple[str, ...]:
        """The forwards whose accuracies are reported."""
        names = ["dense", *(["routed"] if self.routes else [])] if self.eval.forwards == "auto" else self.eval.forwards
        return tuple(dict.fromkeys([*names, self.main()]))

    def best(self) -> str:
        """The forward whose top-1 decides about the best checkpoint."""
        if self.checkpoint.best != "auto":
            return self.checkpoint.best
        return self.main() + ("_ema" if self.ema.decay else "")

    def program(self, forward: str, probes: Iterable[Probe] = ()) -> Program:
        """The steps of one of its forwards. Raises ValueError for a route that cannot run."""
        found = self.forwards()[forward]
        return compile_program(self.model.spec(), found.routes, forward, found.image_size, probes)

    def at_size(self, image_size: int) -> Config:
        """This configuration for images of another size, to prepare them by."""
        return self.model_copy(update={"model": self.model.model_copy(update={"image_size": image_size})})

    def noise_width(self) -> int:
        """Columns of random numbers an image that suffice for all of its forwards."""
        return max(self.program(name).noise_width for name in self.forwards())

    def changed_since(self, before: Config, may_change: Collection[str] = MAY_CHANGE) -> list[str]:
        """Keys that differ from another configuration of the same run, but for some; as it is, those that would change
        its result."""
        a, b = before.model_dump(), self.model_dump()
        pairs = {key: (a[key], b[key]) for key in a if not isinstance(a[key], dict)}
        for group in (key for key in a if isinstance(a[key], dict)):
            pairs |= {f"{group}.{key}": (a[group][key], b[group][key]) for key in a[group]}
        return [key for key, (old, new) in pairs.items() if old != new and key not in may_change]

    def divided(self, images: int, devices: int) -> Config:
        """This configuration with updates of so many images on so many devices: its batch_size, or the largest smaller
        one that divides a device's share, and as much accumulation as that takes.

        Raises:
            UsageError: the devices cannot share them equally.
        """
        if images % devices:
            fitting = ", ".join(str(count) for count in range(1, 4 * devices) if images % count == 0)
            raise UsageError(
                f"{self.name}: its updates take {images} images, which {devices} devices cannot share equally; "
                f"numbers of devices that can: {fitting}"
            )
        share = images // devices
        batch = next(size for size in range(min(self.data.batch_size, share), 0, -1) if share % size == 0)
        if share // batch > MOST_ACCUMULATION:
            raise UsageError(
                f"{self.name}: its updates take {images} images, {share} a device, and data.batch_size "
                f"{self.data.batch_size} would make {share // batch} batches of {batch} of them; use a data.batch_size "
                f"that divides {share}"
            )
        data = self.data.model_copy(update={"batch_size": batch})
        optim = self.optim.model_copy(update={"accumulate": share // batch})
        return self.model_copy(update={"data": data, "optim": optim})

    def update_images(self, devices: int) -> int:
        """Images that an update takes on so many devices."""
        return self.data.batch_size * devices * self.optim.accumulate

    def peak_lr(self, devices: int) -> float:
        """Learning rate after warm-up, scaled to the images of an update."""
        reference = self.optim.reference_batch
        return self.optim.lr * (self.update_images(devices) / reference if reference else 1)

    def fingerprint(self) -> int:
        """A checksum of everything that several machines must have in common."""
        own = {
            "data": self.data.model_copy(update={"path": None, "workers": 0}),
            "init": self.init.model_copy(update={"weights": None}),  # what is in the file is compared too
        }
        return zlib.crc32(to_yaml(self.model_copy(update=own)).encode())


def check_together(config: Config) -> None:
    """Keys that are fine alone and contradict each other. Raises ValueError, one line that begins with a key."""
    _check_forwards(config)
    model, data, optim = config.model, config.data, config.optim
    if optim.warmup_epochs > optim.epochs:
        raise ValueError(f"optim.warmup_epochs: {optim.warmup_epochs} is more than optim.epochs {optim.epochs}")
    if optim.train == "head" and not config.init.weights:
        raise ValueError(
            "optim.train: head leaves nothing but a head on random blocks to train; name the blocks' weights in "
            "init.weights"
        )
    if optim.min_lr > optim.lr:
        raise ValueError(f"optim.min_lr: {optim.min_lr} is larger than optim.lr {optim.lr}")
    if data.kind != "shapes" and not data.path:
        raise ValueError(f"data.path: {data.kind} needs the folder that holds it")
    if data.kind.startswith("cifar") and model.num_classes != int(data.kind[5:]):
        raise ValueError(f"model.num_classes: {data.kind} has {data.kind[5:]} classes, not {model.num_classes}")
    if data.kind == "shapes" and (model.image_size, model.num_classes) != (32, 10):
        raise ValueError(
            "data.kind: shapes are 32 x 32 images of 10 classes; set model.image_size 32, model.num_classes 10"
        )


def _check_forwards(config: Config) -> None:
    """Phases, routes, and the names of forwards."""
    for i, phase in enumerate(config.phases):
        try:
            alone = phase.model_copy(update={"epochs": config.optim.epochs})
            config.model_copy(update={"phases": [alone]}).resolved_phases()
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(map(str, problem["loc"]))
            unknown = f" is not a key{nearest(key, AugmentConfig.model_fields)}"
            said = unknown if problem["type"] == "extra_forbidden" else f": {problem['msg'].lower()}"
            raise ValueError(f"phases.{i}.augment.{key}{said}") from None
        try:
            compile_program(config.model.spec(), phase.routes or (), image_size=phase.image_size)
        except ValueError as error:
            raise ValueError(f"phases.{i}.{error}") from None
    compile_program(config.model.spec(), config.routes)
    known = config.forwards()
    suffixes = ("", "_ema") if config.ema.decay else ("",)
    best = [name + suffix for name in known for suffix in suffixes]
    given = {"eval.main": ([config.eval.main], known), "checkpoint.best": ([config.checkpoint.best], best)}
    given["eval.forwards"] = ([] if config.eval.forwards == "auto" else config.eval.forwards, known)
    for key, (names, allowed) in given.items():
        for name in names:
            if name == "routed" and name not in known:
                raise ValueError(f"{key}: there is no routed forward without routes; use auto or dense")
            if name.endswith("_ema") and not config.ema.decay and key == "checkpoint.best":
                raise ValueError(
                    f"{key}: there are no averaged weights with ema.decay 0; use auto, or e.g. --ema.decay 0.999"
                )
            if name != "auto" and name not in allowed:
                raise ValueError(f"{key}: {name} is not a forward of this run; there are {', '.join(allowed)}")
    if config.checkpoint.best not in ("auto", *(name + s for name in config.evaluated() for s in suffixes)):
        raise ValueError(f"checkpoint.best: {config.checkpoint.best} is not evaluated; name it in eval.forwards")


def to_yaml(config: Config) -> str:
    """The resolved configuration, every key written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)
