"""Short forms of the long checks in benchmarks/: kills at random moments, mutated configurations, hostile words and
files."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def check(*words) -> str:
    result = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_mutated_configurations_run_or_are_refused_in_one_line():
    assert ", 0 did neither" in check(BENCHMARKS / "mutated_configs.py", "--count", 60, "--seed", 1)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["hostile_command_lines.py", "hostile_run_folders.py", "hostile_files.py"])
def test_hostile_words_and_files_do_their_work_or_are_refused_in_one_line(script):
    assert ", 0 did neither" in check(BENCHMARKS / script, "--count", 40, "--seed", 1)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_runs_that_are_killed_from_their_start_up_on_leave_nothing_and_end_bit_identical(ranks):
    said = check(BENCHMARKS / "kill_and_resume.py", "--kills", 0, "--chains", 1, "--ranks", ranks)
    assert "1 of 1 chains end bit-identical and leave nothing" in said


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_in_one_line_or_an_older_one_is_used():
    assert "; 0 wrongly" in check(BENCHMARKS / "damaged_checkpoints.py", "--count", 60, "--seed", 1)
