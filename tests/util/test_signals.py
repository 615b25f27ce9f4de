"""Which signals stop a command that follows other processes."""

import ctypes
import os
import signal
import threading
import time

from skipvit.util.signals import StopRequest, stop_signals


def test_nohup_keeps_its_promise():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_learns_of_a_stop_while_the_main_one_is_where_no_handler_runs():
    """In a function of C that goes on after a signal, as MindSpore's waiting for a batch does."""
    before, libc = signal.getsignal(signal.SIGTERM), ctypes.CDLL(None)
    heard = []

    def wait_for_it(stop):
        while not stop.asked():
            time.sleep(0.01)
        heard.append((stop.asked(), stop.name, stop.said))

    with StopRequest() as stop:
        assert not stop.asked()
        thread = threading.Thread(target=wait_for_it, args=[stop])
        thread.start()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        libc.system(b"sleep 1")
        thread.join(5)
        assert stop.name == "SIGTERM" and stop.said
    assert heard == [(True, "SIGTERM", False)]
    assert signal.getsignal(signal.SIGTERM) == before and signal.set_wakeup_fd(-1) == -1
    assert stop.asked()
