"""Following processes: small scripts in place of ranks, whose ends are known."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from skipvit.util import processes
from skipvit.util.errors import RunError
from skipvit.util.processes import Job, Member, last_words, members, refuse_missing


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A function that makes a job of one script a rank."""
    monkeypatch.setattr(processes, "OTHERS_END_WITHIN_S", 1)
    started = []

    def make(*scripts):
        ranks = []
        for rank, script in enumerate(scripts):
            log = tmp_path / f"worker_{rank}.log"
            words = [sys.executable, "-c", f"import os, signal, sys, time\n{script}"]
            with open(log, "w") as file:
                environment = os.environ | {"RANK_ID": str(rank), "MS_ROLE": "MS_WORKER"}
                child = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
            started.append(child)
            ranks.append(Member(psutil.Process(child.pid), rank, log))
        return Job(ranks, None)

    yield make
    for child in started:
        child.kill()
        child.wait()


SAVES = """
def stop(*_):
    print("stopped after step 5 of epoch 1, saved")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def ask(job, count=1):
    """Ask a job to stop as soon as its first rank is ready."""

    def wait():
        while "ready" not in job.ranks[-1].log.read_text() or "ready" not in job.ranks[0].log.read_text():
            time.sleep(0.02)
        for _ in range(count):
            job.ask_to_stop()
            time.sleep(0.3)

    threading.Thread(target=wait, daemon=True).start()


def test_all_well_is_0_and_the_first_ranks_lines_are_shown_without_mindspores_own(job, capsys):
    assert job("print('epoch 1\\n[INFO] DISTRIBUTED noise\\nepoch 2')", "print('quiet')").follow() == 0
    out, err = capsys.readouterr()
    assert out == "epoch 1\nepoch 2\n" and not err


def test_a_rank_that_fails_is_named_with_its_error_line_and_the_rest_is_ended(job, capsys):
    running = job("time.sleep(60)", "time.sleep(0.5); print('warning: x\\nerror: no room'); sys.exit(2)")
    begun = time.monotonic()
    assert running.follow() == 2 and time.monotonic() - begun < 10
    assert capsys.readouterr().err == "error: rank 1: no room\n"
    assert running.ranks[0].exit_code == -signal.SIGKILL


def test_a_rank_without_a_last_word_is_named_with_the_end_of_its_log(job, capsys):
    running = job("time.sleep(60)", "print('\\n'.join(map(str, range(40))), flush=True); os.kill(os.getpid(), 9)")
    assert running.follow() == 137
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: rank 1 was ended by SIGKILL; the end of {running.ranks[1].log}:"
    assert lines[1:] == [f"  {i}" for i in range(25, 40)]


def test_the_rank_that_a_signal_ended_is_named_before_those_that_failed_for_lack_of_it(job, capsys):
    running = job("print('error: lost a rank'); sys.exit(1)", "os.kill(os.getpid(), 11)")
    for member in running.ranks:
        while psutil.Process(member.process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert running.follow() == 128 + signal.SIGSEGV
    assert "rank 1 was ended by SIGSEGV" in capsys.readouterr().err


def test_a_signal_reaches_all_ranks_and_the_run_ends_as_saved(job, capsys):
    running = job(SAVES, SAVES)
    ask(running)
    assert running.follow() == 3
    assert capsys.readouterr().err == "stopped after step 5 of epoch 1, saved\n"


def test_a_second_signal_kills(job, capsys):
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    running = job(stubborn, stubborn)
    ask(running, count=2)
    begun = time.monotonic()
    assert running.follow() == 130 and time.monotonic() - begun < 20
    assert capsys.readouterr().err == "stopped at once; what had been saved before is there\n"


@pytest.mark.parametrize("ends", ["os._exit(1)", "time.sleep(60)"])
def test_what_a_rank_started_ends_with_it(job, tmp_path, ends):
    child = (
        f"import subprocess; c = subprocess.Popen(['sleep', '60']); open('{tmp_path}/child', 'w').write(str(c.pid))\n"
    )
    running = job(
        child + ends, f"\nwhile not os.path.exists('{tmp_path}/child'): time.sleep(0.02)\ntime.sleep(0.2)\nsys.exit(1)"
    )
    assert running.follow() == 1
    assert gone(int((tmp_path / "child").read_text()))


def gone(number, within_s=5.0):
    """Whether a process has ended or does so soon: one that is killed may still be seen for a moment on a busy machine."""
    latest = time.monotonic() + within_s
    while time.monotonic() < latest:
        try:
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_nothing_is_left_when_the_launcher_itself_goes_wrong(job, monkeypatch):
    running = job("time.sleep(60)", "time.sleep(60)")
    monkeypatch.setattr(running, "look", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        running.follow()
    assert [member.exit_code for member in running.ranks] == [-signal.SIGKILL] * 2


def test_output_that_nobody_reads_any_more_stops_nothing(job, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    assert job("print('epoch 1', flush=True); time.sleep(0.5); print('epoch 2')").follow() == 0


def test_a_rank_that_ended_as_it_began_is_named_and_the_others_are_ended(job, tmp_path):
    running = job("time.sleep(60)", "print('no such library'); sys.exit(127)")
    while running.ranks[1].process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    with pytest.raises(RunError, match=r"rank 1 ended as it began; the end of .*worker_1.log:\n  no such library"):
        refuse_missing(members(tmp_path), [0, 1], tmp_path)
    assert (
        not psutil.pid_exists(running.ranks[0].process.pid) or running.ranks[0].process.status() == psutil.STATUS_ZOMBIE
    )


def test_a_failure_is_told_although_a_stop_was_asked_for(job, capsys):
    fails = "\ndef stop(*_):\n    print('error: disk gone')\n    sys.exit(1)\nsignal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)"
    running = job(SAVES, fails)
    ask(running)
    assert running.follow() == 1
    assert capsys.readouterr().err == "error: rank 1: disk gone\n"


def test_a_scheduler_that_lingers_is_ended_and_one_that_fails_ends_the_run(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "SCHEDULER_ENDS_WITHIN_S", 0.5)
    running = job("time.sleep(0.3)", "time.sleep(60)")
    running.ranks, running.scheduler = (
        running.ranks[:1],
        Member(running.ranks[1].process, None, tmp_path / "scheduler.log"),
    )
    assert running.follow() == 0 and running.scheduler.exit_code == -signal.SIGKILL
    running = job("time.sleep(60)", "sys.exit(4)")
    running.ranks, running.scheduler = (
        running.ranks[:1],
        Member(running.ranks[1].process, None, tmp_path / "scheduler.log"),
    )
    assert running.follow() == 4
    assert "the scheduler ended with exit code 4" in capsys.readouterr().err


def test_children_are_told_apart_by_their_environment(tmp_path):
    roles = [{"RANK_ID": "0", "MS_ROLE": "MS_SCHED"}, {"RANK_ID": "3", "MS_ROLE": "MS_WORKER"}, {"RANK_ID": "1"}]
    children = [subprocess.Popen(["sleep", "60"], env=os.environ | role) for role in roles]
    try:
        while any(psutil.Process(child.pid).name() != "sleep" for child in children):
            time.sleep(0.01)
        found = [member for member in members(tmp_path) if member.process.pid in {child.pid for child in children}]
        assert [member.rank for member in found] == [None, 1, 3]
        assert [member.log.name for member in found] == ["scheduler.log", "worker_1.log", "worker_3.log"]
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_an_exit_code_without_a_word_is_told(job):
    running = job("sys.exit(7)")
    assert running.follow() == 7
    assert last_words(running.ranks[0]).startswith("rank 0 ended with exit code 7; the end of ")
    assert last_words(running.ranks[0]).endswith("(empty)")
