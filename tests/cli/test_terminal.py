"""Names of files and classes on a terminal that cannot show them; how a command ends."""

import os
import subprocess
import sys

import pytest

from skipvit.cli import run

SHOWS = """
import sys, types
from skipvit import cli
module = types.ModuleType("shows")
module.main = lambda words: print(*words)
sys.modules["skipvit.cli.show"] = module
sys.exit(cli.run("show", ["\\u732b", "caf\\u00e9", "\\udcff"]))
"""


def test_an_error_is_one_short_line_whatever_is_in_it(capsys):
    words = ["--config", "a\n\x1b[31m" + "b" * 5000]
    assert run("train", words) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("error: a\\n\\x1b[31mbbb") and err.count("\n") == 1 and len(err) < 620
    assert err.endswith("no such config file\n") or "File name too long" in err


def test_what_is_logged_cannot_upset_a_terminal():
    """In a process of its own: pytest's record of the log could not be sent from one of its processes to another."""
    script = """
from skipvit.util.log import log, show
show()
log.warning("/a\\x1b[31m: %s", "\\udcff")
log.info("first line\\nsecond \\u202e line")
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "warning: /a\\x1b[31m: \\udcff\n")
    assert shown.stdout == "first line\nsecond \\u202e line\n"


def test_what_an_ascii_terminal_cannot_show_is_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-c", SHOWS], env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "\\u732b caf\\xe9 \\udcff\n"


@pytest.mark.parametrize("connected", [None, False, True])
def test_a_command_ends_without_taking_the_interpreter_down(connected):
    """Threads of MindSpore's that are still there then can crash it, now and then, after all is done; of ranks on CPU
    so can the end of MindSpore's connections."""
    script = f"""
import atexit, sys, types
from skipvit.cli import door
class Last:
    def __del__(self): print("down")
last = Last()
atexit.register(print, "hooks")
if {connected} is not None:
    sys.modules["skipvit.engine.devices"] = types.SimpleNamespace(connected_on_cpu=lambda: {connected})
door("cost", ["--config", "nowhere.yaml"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "" if connected else "hooks\n")
    assert "nowhere.yaml: no such config file" in done.stderr
