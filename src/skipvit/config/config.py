"""A run as typed data: the only place that knows YAML and the command line.

One YAML file describes a run, any key can be overridden on the command line (`--optim.lr 1e-3`), and whatever is wrong is
refused here, in one line that names the key, before anything is built.
"""

from __future__ import annotations

import argparse
import difflib
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, NoDecode, SettingsConfigDict, SettingsError

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
    PhasesConfig,
)
from skipvit.routing.routing import Route, Span, resolve
from skipvit.util.errors import UsageError


def _routes_from_text(value: Any) -> Any:
    """On the command line the routes are a piece of YAML."""
    return yaml.safe_load(value) if isinstance(value, str) else value


# What a run may be resumed with: none of it changes the weights it ends with.
# (Batch size and accumulation: `Config.divided` keeps the images of an update.)
MAY_CHANGE = {
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

    name: str = Field("run", pattern=r"^[A-Za-z0-9_.-]+$")
    """name of the run, and of its folder below runs/"""
    seed: int = Field(0, ge=0, lt=2**31)
    """of weights, data and noise"""
    deterministic: bool = False
    """choose kernels whose results repeat bit by bit"""
    device: Literal["auto", "cpu", "ascend"] = "auto"
    """auto: ascend if this MindSpore finds a device, else cpu"""
    model: ModelConfig = ModelConfig()
    """the network"""
    init: InitConfig = InitConfig()
    """weights to start from"""
    routes: Annotated[list[Route], NoDecode, BeforeValidator(_routes_from_text)] = []
    """list of routes as YAML, e.g. '[{start: 4, end: 11, keep_ratio: 0.45, scorer: cls_attention, restore: true, fuse: false}]'"""
    routing: Literal["auto", "gather", "matmul"] = "auto"
    """formulation of the routes; auto: matmul on ascend, gather on cpu"""
    phases: PhasesConfig = PhasesConfig()
    """when dense, when routed"""
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

    @model_validator(mode="after")
    def _count_epochs(self) -> Config:
        self.phases = self.phases.of_epochs(self.optim.epochs)
        return self

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):
        """Only the file and the command line describe a run; environment variables do not."""
        return (init_settings,)

    def spans(self) -> tuple[Span, ...]:
        return resolve(self.routes, self.model.shape().depth, self.model.tokens)

    def phase_lengths(self) -> tuple[int, int, int]:
        """Epochs of dense warm-up, routed and dense cool-down; without routes everything is dense warm-up."""
        if not self.routes:
            return self.optim.epochs, 0, 0
        warmup, cooldown = self.phases.dense_warmup_epochs, self.phases.dense_cooldown_epochs
        return warmup, self.optim.epochs - warmup - cooldown, cooldown

    def trained(self) -> Literal["dense", "routed"]:
        """The forward that the last phase trains."""
        return "routed" if self.routes and not self.phases.dense_cooldown_epochs else "dense"

    def main(self) -> Literal["dense", "routed"]:
        """The forward whose accuracy is the run's main figure."""
        return self.trained() if self.phases.evaluate == "auto" else self.phases.evaluate

    def best(self) -> str:
        """The forward whose top-1 decides about the best checkpoint."""
        if self.checkpoint.best != "auto":
            return self.checkpoint.best
        return self.main() + ("_ema" if self.ema.decay else "")

    def changed_since(self, before: Config, may_change: Collection[str] = MAY_CHANGE) -> list[str]:
        """Keys that differ from another configuration of the same run, but for some; as it is, those that would change its result."""
        a, b = before.model_dump(), self.model_dump()
        pairs = {key: (a[key], b[key]) for key in a if not isinstance(a[key], dict)}
        for group in (key for key in a if isinstance(a[key], dict)):
            pairs |= {f"{group}.{key}": (a[group][key], b[group][key]) for key in a[group]}
        return [key for key, (old, new) in pairs.items() if old != new and key not in may_change]

    def divided(self, images: int, devices: int) -> Config:
        """This configuration with updates of so many images on so many devices: its batch_size, or the largest smaller one that
        divides a device's share, and as much accumulation as that takes.

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
                f"{self.name}: its updates take {images} images, {share} a device, and data.batch_size {self.data.batch_size} would "
                f"make {share // batch} batches of {batch} of them; use a data.batch_size that divides {share}"
            )
        data, optim = {"batch_size": batch}, {"accumulate": share // batch}
        return self.model_copy(
            update={"data": self.data.model_copy(update=data), "optim": self.optim.model_copy(update=optim)}
        )

    def update_images(self, devices: int) -> int:
        """Images that an update takes on so many devices."""
        return self.data.batch_size * devices * self.optim.accumulate

    def peak_lr(self, devices: int) -> float:
        """Learning rate after warm-up, scaled to the images of an update."""
        return self.optim.lr * (
            self.update_images(devices) / self.optim.reference_batch if self.optim.reference_batch else 1
        )

    def fingerprint(self) -> int:
        """A checksum of everything that several machines must have in common."""
        own = {
            "data": self.data.model_copy(update={"path": None, "workers": 0}),
            "init": self.init.model_copy(update={"weights": None}),  # what is in the file is compared too
        }
        return zlib.crc32(to_yaml(self.model_copy(update=own)).encode())


def to_yaml(config: Config) -> str:
    """The resolved configuration, every key written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def recipe(name: str) -> str:
    """Path of a shipped configuration: below the current folder if it is there, else below the project's."""
    here = Path("configs") / name
    return str(here if here.is_file() else Path(__file__).parents[3] / here)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line and name the nearest option."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        unknown = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        if message.startswith("unrecognized arguments") and unknown:
            message = f"{unknown[0]} is not an option" + nearest(unknown[0], self._option_string_actions)
        raise UsageError(f"{message} (see --help)")


def batch_sizes(text: str) -> list[int]:
    """The type of an option such as `--batch_sizes 1,4,16`."""
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of batch sizes such as 1,4,16")
    return [int(size) for size in sizes]


def nearest(word: str, known) -> str:
    """`; did you mean X?` if something known is close to word, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def from_words(
    parser: argparse.ArgumentParser,
    words: list[str],
    config_of: Callable[[argparse.Namespace], str] = lambda options: options.config,
) -> tuple[Config, argparse.Namespace]:
    """Parse a command line: the parser's own options, and every key of a run over the file that `config_of` them names.

    Raises:
        UsageError: as `read`, and an unknown option or a value of the wrong type.
    """
    options, check = overriding(parser, words)
    path = Path(config_of(options))
    return check(read_yaml(path), str(path)), options


def overriding(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, Callable[[dict[str, Any], str], Config]]:
    """Parse a command line: the parser's own options, and `checked` with every key of the command line over the values."""
    source = CliSettingsSource(Config, root_parser=parser)
    options = parser.parse_args(words)
    return options, lambda values, where: checked(values, where, source, options)


def read(path: Path) -> Config:
    """Read a YAML file and check the whole.

    Raises:
        UsageError: a missing or malformed file, an unknown key, a value that is not allowed, keys that contradict each other.
    """
    return checked(read_yaml(path), str(path))


def checked(
    values: dict[str, Any],
    where: str,
    source: CliSettingsSource | None = None,
    options: argparse.Namespace | None = None,
) -> Config:
    """A run of these values, with the command line over them if there is one.

    Raises:
        UsageError: as `read`, but for the file; the line begins with `where`.
    """
    try:
        if source is None:
            config = Config(**values)
        else:
            config = CliApp.run(Config, cli_args=options, cli_settings_source=source, **values)
    except ValidationError as error:
        raise UsageError(f"{where}: {first_problem(error)}") from None
    except SettingsError:
        raise UsageError(
            "a group such as --model takes no value of its own; set single keys, e.g. --model.depth 6"
        ) from None
    except yaml.YAMLError:
        raise UsageError("--routes is not YAML; e.g. --routes '[{start: 4, end: 11, keep_ratio: 0.45}]'") from None
    try:
        _check_together(config)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return config


class _NoKeyTwice(yaml.SafeLoader):
    """Of a key that is written twice YAML libraries silently take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(
    path: Path, about: str = "a config is a mapping of keys such as model, routes, data and optim"
) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        about: what to say where it is none.

    Raises:
        UsageError: a missing or malformed file, a key that is there twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _NoKeyTwice)
    except FileNotFoundError:
        others = [str(p) for p in path.parent.glob("*.yaml")]
        raise UsageError(f"{path}: no such config file" + nearest(str(path), others)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a text file ({getattr(error, 'strerror', 'not UTF-8')})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UsageError(f"{path}: {where}not valid YAML ({getattr(error, 'problem', None) or 'malformed'})") from None
    if not isinstance(values or {}, dict) or not all(isinstance(key, str) for key in values or {}):
        raise UsageError(f"{path}: {about}")
    return values or {}


def first_problem(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """The first thing that a config, or another model, gets wrong: its key, what is allowed, what was given; one line."""
    problem = error.errors(include_url=False)[0]
    # Positions in unions and the like are strings of the library's own; keys and list positions are the config's.
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is not a key" + nearest(str(problem["loc"][-1]), _known_keys(problem["loc"][:-1], model))
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    given = repr(problem["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {given}".replace("\n", " ")


def _known_keys(location: tuple, model: type[BaseModel]) -> list[str]:
    """Keys that exist at a location such as (), ("optim",) or ("routes", 0)."""
    if not location:
        return list(model.model_fields)
    if location[0] == "routes":
        return list(Route.__dataclass_fields__)
    field = model.model_fields.get(str(location[0]))
    return list(field.annotation.model_fields) if field and hasattr(field.annotation, "model_fields") else []


def _check_together(config: Config) -> None:
    """Keys that are fine alone and contradict each other. Raises ValueError, one line."""
    model, data, optim = config.model, config.data, config.optim
    size = model.shape()
    if model.image_size % model.patch:
        raise ValueError(f"model.patch: {model.patch} does not divide model.image_size {model.image_size}")
    if size.width % size.heads:
        raise ValueError(f"model.heads: {size.heads} does not divide the width {size.width}")
    config.spans()
    if config.routes and sum(config.phase_lengths()[::2]) >= optim.epochs:
        raise ValueError(
            f"phases: {config.phases.dense_warmup_epochs} + {config.phases.dense_cooldown_epochs} dense epochs leave none of "
            f"optim.epochs {optim.epochs} for the routes; use fewer, or routes: []"
        )
    if optim.warmup_epochs > optim.epochs:
        raise ValueError(f"optim.warmup_epochs: {optim.warmup_epochs} is more than optim.epochs {optim.epochs}")
    if optim.train == "head" and not config.init.weights:
        raise ValueError(
            "optim.train: head leaves nothing but a head on random blocks to train; name the blocks' weights in init.weights"
        )
    if optim.min_lr > optim.lr:
        raise ValueError(f"optim.min_lr: {optim.min_lr} is larger than optim.lr {optim.lr}")
    if data.kind != "shapes" and not data.path:
        raise ValueError(f"data.path: {data.kind} needs the folder that holds it")
    if data.kind.startswith("cifar") and model.num_classes != int(data.kind[5:]):
        raise ValueError(f"model.num_classes: {data.kind} has {data.kind[5:]} classes, not {model.num_classes}")
    if config.phases.evaluate == "routed" and not config.routes:
        raise ValueError("phases.evaluate: there is no routed forward without routes; use auto or dense")
    if config.checkpoint.best.startswith("routed") and not config.routes:
        raise ValueError("checkpoint.best: there is no routed forward without routes; use auto or dense")
    if config.checkpoint.best.endswith("_ema") and not config.ema.decay:
        raise ValueError(
            "checkpoint.best: there are no averaged weights with ema.decay 0; use auto, or e.g. --ema.decay 0.999"
        )
    if data.kind == "shapes" and (model.image_size, model.num_classes) != (32, 10):
        raise ValueError(
            "data.kind: shapes are 32 x 32 images of 10 classes; set model.image_size 32, model.num_classes 10"
        )
