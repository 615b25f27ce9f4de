"""Names of files and classes on a terminal that cannot show them."""

import os
import subprocess
import sys

SHOWS = """
import sys, types
from skipvit import cli
module = types.ModuleType("shows")
module.main = lambda words: print(*words)
sys.modules["shows"] = module
cli.COMMANDS["show"] = ("shows", "prints its words")
sys.exit(cli.run("show", ["\\u732b", "caf\\u00e9", "\\udcff"]))
"""


def test_what_an_ascii_terminal_cannot_show_is_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-c", SHOWS], env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "\\u732b caf\\xe9 \\udcff\n"
