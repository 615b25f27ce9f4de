"""`skipvit <command>`: one line a command, and the one place where errors become exit codes."""

from __future__ import annotations

import atexit
import importlib
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from skipvit.util import log, processes
from skipvit.util.errors import RunError, Stopped, UsageError
from skipvit.util.files import expanded
from skipvit.util.text import MOST_OF_AN_ERROR, one_line, shortened

COMMANDS = {  # each a module of this package with a function `main`
    "train": "train a network as a config says",
    "eval": "top-1 and top-5 of a trained network, forward by forward",
    "launch": "train or evaluate on several devices, as run_distributed.sh",
    "predict": "the most probable classes of images, and a sheet of what the network looked at",
    "export": "a trained network as MindIR, ONNX or timm weights, checked, with a model card",
    "mindrecord": "image folders to MindRecord files",
    "sweep": "train all runs of a plan: methods x grids x seeds, resumable",
    "report": "what a sweep showed: one HTML page, Markdown, figures",
    "pipeline": "time the data pipeline alone: images a second and cores a device needs",
    "bench": "time training or inference of several configs side by side",
    "cost": "parameters, multiply-accumulates, memory and ideal gain of a config, by arithmetic",
    "audit": "operators that an Ascend 910A would run slowly or not at all; needs no device",
    "importance": "measure what a trained network keeps: objects, deletion, stability",
    "convert": "timm weights (.safetensors) to a checkpoint, and back",
    "doctor": "check this machine: versions, devices, data, a training step",
}
HOME = re.compile(r"^(--[\w.]+=|)(~[^/]*(?=/|$))")  # which a shell leaves in --data.path=~/images, or between quotes


def run(command: str, words: list[str]) -> int:
    """Run a command; 0: it did what was asked, 1: it failed, 2: asked for the impossible, 3: stopped and saved."""
    processes.settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files and classes, where the terminal is ASCII
    # MindSpore's own log repeats, over many lines, what the one line below says. GLOG_v=2 brings it back.
    os.environ.setdefault("GLOG_v", "4")
    # MindSpore's cache of compiled graphs takes one graph for another, see docs/details.md.
    if os.environ.pop("MS_COMPILER_CACHE_ENABLE", "0") not in ("", "0"):
        why = "the cache would train with another run's learning rate"
        print(f"warning: MS_COMPILER_CACHE_ENABLE is left out: {why}", file=sys.stderr)
    log.show()
    words = [HOME.sub(lambda found: f"{found[1]}{expanded(found[2])}", word) for word in words]
    return exit_code(lambda: importlib.import_module(f"skipvit.cli.{command}").main(words))


def exit_code(main: Callable[[], int | None]) -> int:
    """Run it and turn what it raises for a reason that a person can act on into a line on stderr and an exit code."""
    try:
        return main() or 0  # launch returns that of its processes
    except UsageError as error:
        return failed(str(error), 2)
    except RunError as error:
        return failed(str(error))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return processes.SAVED
    except MemoryError:
        return failed("not enough memory; use a smaller model, batch or data set")
    except OSError as error:
        return failed(one_line(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def failed(why: str, code: int = 1) -> int:
    """Say it in one short line, whatever names and values are in it; returns the exit code."""
    print(f"error: {shortened(why, MOST_OF_AN_ERROR)}", file=sys.stderr)
    return code


def door(command: str, words: list[str]) -> NoReturn:
    """Run a command as this process, and end it.

    The interpreter is not taken down, and ranks on CPU do not take MindSpore's connections down either: its threads can
    end the process by SIGSEGV meanwhile, after all is done, and a launcher takes that for a failure.
    """
    code = run(command, words)
    devices = sys.modules.get("skipvit.engine.devices")  # not imported: nothing was computed
    if devices is None or not devices.connected_on_cpu():
        atexit._run_exitfuncs()  # MindSpore's free the device
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a pipe that nobody reads any more
            stream.flush()
    os._exit(code)


def main() -> None:
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        door(words[0], words[1:])
    if words and words[0] not in ("-h", "--help"):
        sys.exit(failed(f"{shortened(words[0])} is not a command; there are {', '.join(COMMANDS)}", 2))
    print("usage: skipvit COMMAND ... (each has --help)\n")
    print("\n".join(f"  {name:12}{about}" for name, about in COMMANDS.items()))
