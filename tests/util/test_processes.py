"""A process that is followed ends when its launcher does, at whatever moment; what it hands to a child."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from skipvit.util import processes

# A launcher that starts a followed process, with more variables, says its number and waits.
LAUNCHER = """
import subprocess, sys, time
from skipvit.util import processes
variables = processes.followed_environment() | dict(word.split("=") for word in sys.argv[2:])
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=variables, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
SETTLES = "import signal, time; from skipvit.util import processes; processes.settle(); print('settled', flush=True)\n"


def launcher(script, *variables, lines=1):
    """A launcher of a script, after so many lines of both; its number and the script's."""
    words = [sys.executable, "-c", LAUNCHER, script, *variables]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=processes.clean_environment())
    said = [process.stdout.readline().strip() for _ in range(lines)]
    return process, psutil.Process(int(next(line for line in said if line.isdecimal())))


def ends(process, within_s=10.0):
    try:
        process.wait(within_s)
    except psutil.TimeoutExpired:
        process.kill()
        return False
    return True


def test_a_followed_process_ends_with_its_launcher():
    parent, child = launcher(SETTLES + "time.sleep(60)", lines=2)
    parent.kill()
    parent.wait()
    assert ends(child)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1])
def test_a_launcher_that_is_killed_while_the_process_starts(delay):
    parent, child = launcher(f"import time; time.sleep({delay})\n" + SETTLES + "time.sleep(60)")
    parent.kill()
    parent.wait()
    assert ends(child)


def test_one_that_cannot_be_asked_any_more_is_killed():
    """A rank that waits in an exchange with one that has gone: SIGTERM is noted and never looked at."""
    hangs = SETTLES.replace("processes.settle", "processes.SAVES_WITHIN_S = 1; processes.settle")
    hangs += "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    parent, child = launcher(hangs, lines=3)
    parent.kill()
    parent.wait()
    assert ends(child)


@pytest.mark.parametrize("early", [False, True])
def test_one_that_hears_nothing_ends_when_nobody_has_the_other_end_of_its_pipe(early):
    """MindSpore's scheduler: while it waits no signal handler and no thread of Python runs."""
    reader, writer = os.pipe()
    deaf = SETTLES + "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); print('deaf', flush=True); time.sleep(60)"
    variables = processes.followed_environment() | {processes.LIFELINE: str(reader)}
    words = [sys.executable, "-c", f"import sys; {'sys.stdin.readline()' if early else ''}\n{deaf}"]
    child = subprocess.Popen(
        words, env=variables, pass_fds=[reader], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with subprocess.Popen(["sleep", "60"], pass_fds=[writer]) as other:  # a rank
        os.close(writer)
        os.close(reader)
        if not early:
            assert [child.stdout.readline() for _ in range(2)] == ["settled\n", "deaf\n"]
        time.sleep(0.2)
        assert child.poll() is None
        other.kill()
    if early:  # the rank has ended before this one looks
        child.stdin.write("\n")
        child.stdin.flush()
    assert child.wait(10) == (1 if early else -signal.SIGKILL)
    child.stdin.close()
    child.stdout.close()


def test_a_child_keeps_to_its_cores_and_hands_nothing_on():
    core = max(os.sched_getaffinity(0))
    show = "import os; from skipvit.util import processes as p; p.settle(); "
    show += "print(os.sched_getaffinity(0), p.is_followed(), set(p.OURS) & set(os.environ))"
    environment = processes.followed_environment({core})
    said = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"{{{core}}} True set()"


def test_a_process_that_nobody_follows_is_left_alone():
    show = "from skipvit.util import processes as p; p.settle(); print(p.is_followed())"
    environment = processes.clean_environment()
    said = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_traces_of_another_job_are_not_handed_on(monkeypatch):
    for name in (*processes.OF_A_JOB, *processes.OURS):
        monkeypatch.setenv(name, "8")
    assert not {*processes.OF_A_JOB, *processes.OURS} & set(processes.clean_environment())
    assert processes.followed_environment()[processes.LAUNCHER] == str(os.getpid())


def test_a_package_that_is_not_installed_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    paths = processes.clean_environment()["PYTHONPATH"].split(os.pathsep)
    assert os.path.isdir(f"{paths[0]}/skipvit") and paths[1:] == [str(tmp_path)]


def test_names_of_signals():
    assert [processes.signal_name(n) for n in (signal.SIGKILL, 99)] == ["SIGKILL", "signal 99"]
