"""Command lines: a parser whose refusals are one line, and every key of a run as an option."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from skipvit.config.config import Config
from skipvit.config.reading import checked, read_yaml, recipe
from skipvit.util.errors import UsageError
from skipvit.util.text import nearest


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line and name the nearest option."""

    def __init__(self, prog: str, description: str = "", epilog: str = ""):
        about: Any = {"prog": prog, "description": description, "epilog": epilog}
        super().__init__(**about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

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


def from_words(
    parser: argparse.ArgumentParser,
    words: list[str],
    config_of: Callable[[argparse.Namespace], str | Path] = lambda options: options.config,
) -> tuple[Config, argparse.Namespace]:
    """Parse a command line: the parser's own options, and every key of a run over the file that `config_of` them names.

    Raises:
        UsageError: as `config.reading.load_config`, and an unknown option or a value of the wrong type.
    """
    source = CliSettingsSource(Config, root_parser=parser)
    options = parser.parse_args(words)
    path = recipe(config_of(options))

    def with_words(**values: Any) -> Config:
        return CliApp.run(Config, cli_args=options, cli_settings_source=source, **values)

    try:
        return checked(read_yaml(path), str(path), with_words), options
    except SettingsError:
        why = "a group such as --model takes no value of its own; set single keys, e.g. --model.depth 6"
        raise UsageError(why) from None
