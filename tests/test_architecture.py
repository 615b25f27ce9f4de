"""The house's rules: which room imports which, who prints, what needs no MindSpore."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "skipvit"
OUTSIDE_CLI = [path for path in sorted(SOURCE.rglob("*.py")) if "cli" not in path.relative_to(SOURCE).parts]


@pytest.mark.skipif(shutil.which("lint-imports") is None, reason="import-linter is of the extra `dev`")
def test_rooms_import_only_from_rooms_below_them():
    """The contracts of pyproject.toml."""
    found = subprocess.run(["lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_only_commands_print_and_parse():
    """`print` and `argparse`, in any form, only in cli."""
    guilty = []
    for path in OUTSIDE_CLI:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = {name.name for name in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom):
                words.add(node.module or "")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                words.add(node.func.id)
            if words & {"argparse", "print"}:
                guilty.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not guilty


@pytest.mark.parametrize("what", ["config.reading", "routing.program", "models.arithmetic", "lab.plan"])
def test_needs_no_mindspore(what):
    code = f"import sys, skipvit.{what}; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SOURCE.parent).returncode == 0
