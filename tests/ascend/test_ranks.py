"""Following ranks: small scripts in their place, whose ends are known."""

import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from skipvit.ascend import ranks as subject
from skipvit.ascend.ranks import End, Job, Member, last_words


@pytest.fixture
def member(tmp_path):
    """A function that starts a script as a rank, or as the scheduler (None)."""
    started = []

    def make(rank, script):
        log = tmp_path / f"worker_{rank}.log"
        words = [sys.executable, "-c", f"import os, signal, sys, time\n{script}"]
        with open(log, "w") as file:
            started.append(subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True))
        return Member(started[-1], rank, log)

    yield make
    for child in started:
        child.kill()
        child.wait()


@pytest.fixture
def job(member, monkeypatch):
    """A function that makes a job of one script a rank."""
    monkeypatch.setattr(subject, "OTHERS_END_WITHIN_S", 1)
    return lambda *scripts: Job([member(rank, script) for rank, script in enumerate(scripts)])


SAVES = """
def stop(*_):
    print("stopped after step 5 of epoch 1, saved")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"


def ask(job, count=1, number=signal.SIGTERM):
    """Ask a job to stop as soon as its ranks are ready."""

    def wait():
        while not all("ready" in member.log.read_text() for member in job.ranks):
            time.sleep(0.02)
        for _ in range(count):
            job.ask_to_stop(number)
            time.sleep(0.3)

    threading.Thread(target=wait, daemon=True).start()


def test_all_well_is_0_and_the_first_ranks_lines_are_shown_without_mindspores_own(job, capsys):
    assert job("print('epoch 1\\n[INFO] DISTRIBUTED noise\\nepoch 2')", "print('quiet')").follow() == End(0)
    assert capsys.readouterr().out == "epoch 1\nepoch 2\n"


def test_a_rank_that_fails_is_named_with_its_error_line_and_the_rest_is_ended(job):
    running = job("time.sleep(60)", "time.sleep(0.5); print('warning: x\\nerror: no room'); sys.exit(2)")
    begun = time.monotonic()
    assert running.follow() == End(2, "error: rank 1: no room") and time.monotonic() - begun < 10
    assert running.ranks[0].exit_code == -signal.SIGKILL


def test_a_rank_without_a_last_word_is_named_with_the_end_of_its_log(job):
    running = job("time.sleep(60)", "print('\\n'.join(map(str, range(40))), flush=True); os.kill(os.getpid(), 9)")
    end = running.follow()
    lines = end.line.splitlines()
    assert end.code == 137 and lines[1:] == [f"  {i}" for i in range(25, 40)]
    assert lines[0] == f"error: rank 1 was ended by SIGKILL; the end of {running.ranks[1].log}:"


def test_the_rank_that_a_signal_ended_is_named_before_those_that_failed_for_lack_of_it(job):
    running = job("print('error: lost a rank'); sys.exit(1)", "os.kill(os.getpid(), 11)")
    for member in running.ranks:
        while psutil.Process(member.process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    end = running.follow()
    assert end.code == 128 + signal.SIGSEGV and "rank 1 was ended by SIGSEGV" in end.line


def test_a_signal_reaches_all_ranks_and_the_run_ends_as_saved(job):
    running = job(SAVES, SAVES)
    ask(running)
    assert running.follow() == End(3, "stopped after step 5 of epoch 1, saved")


def test_ctrl_c_is_handed_on_as_what_it_is(job):
    told = SAVES.replace("SIGTERM", "SIGINT").replace("after step 5", "after Ctrl-C in step 5")
    running = job(told)
    ask(running, number=signal.SIGINT)
    assert running.follow() == End(3, "stopped after Ctrl-C in step 5 of epoch 1, saved")


def test_a_second_signal_kills(job):
    running = job(STUBBORN, STUBBORN)
    ask(running, count=2)
    begun = time.monotonic()
    assert running.follow() == End(130, "stopped at once; what had been saved before is there")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("ends", ["os._exit(1)", "time.sleep(60)"])
def test_what_a_rank_started_ends_with_it_and_nothing_else_does(job, tmp_path, ends):
    child = f"import subprocess; c = subprocess.Popen(['sleep', '60']); open('{tmp_path}/child', 'w').write(str(c.pid))"
    waits = f"while not os.path.exists('{tmp_path}/child'): time.sleep(0.02)\ntime.sleep(0.2)\nsys.exit(1)"
    with subprocess.Popen(["sleep", "60"]) as other:
        assert job(f"{child}\n{ends}", waits).follow().code == 1
        assert gone(int((tmp_path / "child").read_text()))
        assert other.poll() is None
        other.kill()


def gone(number, within_s=5.0):
    """Whether a process has ended or does so soon: a killed one may still be seen for a moment on a busy machine."""
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


def test_output_that_nobody_reads_any_more_stops_nothing(job):
    running = job("print('epoch 1', flush=True); time.sleep(0.5); print('epoch 2')")

    def gone(_):
        raise BrokenPipeError

    running.tail.show = gone
    assert running.follow() == End(0)


def test_a_failure_is_told_although_a_stop_was_asked_for(job):
    fails = SAVES.replace("stopped after step 5 of epoch 1, saved", "error: disk gone").replace("exit(3)", "exit(1)")
    running = job(SAVES, fails)
    ask(running)
    assert running.follow() == End(1, "error: rank 1: disk gone")


def test_a_scheduler_that_lingers_is_ended_and_one_that_fails_ends_the_run(member, monkeypatch):
    monkeypatch.setattr(subject, "SCHEDULER_ENDS_WITHIN_S", 0.5)
    monkeypatch.setattr(subject, "OTHERS_END_WITHIN_S", 0.5)
    running = Job([member(0, "time.sleep(0.3)")], member(None, "time.sleep(60)"))
    assert running.follow() == End(0) and running.scheduler.exit_code == -signal.SIGKILL
    end = Job([member(0, "time.sleep(60)")], member(None, "sys.exit(4)")).follow()
    assert end.code == 4 and "the scheduler ended with exit code 4" in end.line


@pytest.mark.parametrize("code", [0, 3])
def test_a_scheduler_that_misses_ranks_that_are_done_is_no_failure(member, code):
    ranks = [member(rank, f"time.sleep(1.2); sys.exit({code})") for rank in range(2)]
    assert Job(ranks, member(None, "time.sleep(0.5); sys.exit(4)")).follow().code == code


def test_an_exit_code_without_a_word_is_told(job):
    running = job("sys.exit(7)")
    assert running.follow().code == 7
    assert last_words(running.ranks[0]).startswith("rank 0 ended with exit code 7; the end of ")
    assert last_words(running.ranks[0]).endswith("(empty)")
