"""The processes of a sweep: start them, follow them, hand signals on, remember what failed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from skipvit.lab.plan import Trial
from skipvit.runs.run import Run, read_records
from skipvit.util.errors import RunError, Stopped, UsageError
from skipvit.util.files import is_locked, open_regular, write_whole
from skipvit.util.processes import SAVED, SAVES_WITHIN_S, command, followed_environment, signal_name
from skipvit.util.signals import stop_signals
from skipvit.util.text import MOST_OF_A_LINE, duration, one_line, printable

LOOK_EVERY_S = 0.5
FAILED = "failed.json"  # in the sweep's folder: the last error line of each run that failed


def is_finished(path: Path) -> bool:
    """Whether there is a run in a folder, which can be read, that has trained all its epochs."""
    try:
        return Run(path).finished
    except UsageError:
        return False


@dataclass(frozen=True)
class Place:
    """Where a run is trained: a device by its number, or cores of its own; None: as the sweep itself."""

    device: int | None = None
    cores: frozenset[int] | None = None


@dataclass
class Child:
    """The process that trains a run; its output is in the log from `log_begins` on."""

    trial: Trial
    place: Place
    process: subprocess.Popen
    log: Path
    log_begins: int
    begun: float


class Jobs:
    """Trains the runs of a sweep as the files in its folder's `configs` say, as many at a time as there are places;
    `say` takes each line for a person."""

    def __init__(self, folder: Path, trials: tuple[Trial, ...], places: list[Place], say: Callable[[str], None]):
        self.folder, self.trials, self.free, self.say = folder, trials, list(places), say
        self.waiting, self.running, self.failed = deque(trials), list[Child](), dict[str, str]()
        self.done = {trial.name for trial in trials if is_finished(folder / trial.name)}
        self.epochs = {trial.name: self.count_epochs(trial) for trial in trials}
        self.begun, self.epochs_before = time.monotonic(), sum(self.epochs.values())
        self.stops, self.stops_handed_on, self.waited_for = 0, 0, set[str]()
        self.asked = signal.SIGTERM  # with what the runs are asked: they say it

    def count_epochs(self, trial: Trial) -> int:
        """Epochs that a run has trained."""
        epochs = trial.config.optim.epochs
        return epochs if trial.name in self.done else min(len(read_records(self.folder / trial.name)), epochs)

    def follow(self) -> None:
        """Train until all runs have ended.

        Raises:
            Stopped: by SIGTERM, SIGHUP or Ctrl-C, after the runs have saved.
            RunError: runs failed, naming them.
        """
        self.note_failures()
        before = {number: signal.signal(number, self.ask_to_stop) for number in stop_signals()}
        total = sum(trial.config.optim.epochs for trial in self.trials)
        looks = {"unit": "epoch", "desc": self.folder.name, "disable": None, "smoothing": 0}
        try:
            with tqdm(total=total, initial=self.epochs_before, **looks) as bar:
                while self.running or (self.waiting and not self.stops):
                    self.start_some()
                    time.sleep(LOOK_EVERY_S)
                    self.hand_stops_on()
                    self.look()
                    bar.update(sum(self.epochs.values()) - bar.n)
                    bar.set_postfix_str(f"{len(self.done)} of {len(self.trials)} runs, {len(self.failed)} failed")
        finally:
            self.end_all()
            for number, handler in before.items():
                signal.signal(number, handler)
        self.conclude()

    def ask_to_stop(self, number: int = signal.SIGTERM, *_) -> None:
        """Signal handler."""
        self.stops += 1
        self.asked = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM

    def hand_stops_on(self) -> None:
        """First the runs save, then they are killed."""
        if self.stops > self.stops_handed_on:
            if not self.stops_handed_on and self.running:
                self.say("stopping: each run finishes its step and saves; once more kills")
            for child in self.running:
                child.process.send_signal(signal.SIGKILL if self.stops > 1 else self.asked)
            self.stops_handed_on = self.stops

    def end_all(self) -> None:
        """After an error of the sweep's own: each run saves and ends, none is left behind."""
        for child in self.running:
            child.process.terminate()
        deadline = time.monotonic() + SAVES_WITHIN_S
        for child in self.running:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def start_some(self) -> None:
        """Fill the free places with runs that nobody trains."""
        for _ in range(len(self.waiting)):
            if not self.free or self.stops:
                return
            trial = self.waiting.popleft()
            if is_finished(self.folder / trial.name):
                self.done.add(trial.name)
            elif is_locked(self.folder / trial.name / ".lock"):  # by what a killed sweep left behind: it saves and ends
                if trial.name not in self.waited_for:
                    self.say(f"{trial.name}: another process trains in it, waiting for its end")
                self.waited_for.add(trial.name)
                self.waiting.append(trial)
            else:
                self.start(trial, self.free.pop(0))

    def start(self, trial: Trial, place: Place) -> None:
        device = {} if place.device is None else {"DEVICE_ID": str(place.device)}
        config = self.folder / "configs" / f"{trial.name}.yaml"
        words = ["--config", str(config), "--runs", str(self.folder), "--resume", "auto"]
        path, env = self.folder / "logs" / f"{trial.name}.log", followed_environment(place.cores) | device
        try:
            path.parent.mkdir(exist_ok=True)
            with open_regular(path, "ab") as log:
                begins = log.seek(0, os.SEEK_END)
                files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
                # In a session of its own: Ctrl-C is for the sweep, which hands it on.
                process = subprocess.Popen(command("train", *words), **files, env=env, start_new_session=True)
        except OSError as error:
            self.free.append(place)
            self.note(trial, f"could not be started ({one_line(error)})")
        else:
            self.running.append(Child(trial, place, process, path, begins, time.monotonic()))

    def look(self) -> None:
        """Notice progress and who has ended, and how."""
        for child in list(self.running):
            trial, code = child.trial, child.process.poll()
            self.epochs[trial.name] = self.count_epochs(trial)
            if code is None:
                continue
            self.running.remove(child)
            self.free.append(child.place)
            if code == 0 and is_finished(self.folder / trial.name):
                self.done.add(trial.name)
                forwards = (Run(self.folder / trial.name).summary() or {})["forwards"]
                scores = ", ".join(f"{name} {values['top1']:.2f} %" for name, values in forwards.items())
                took = duration(time.monotonic() - child.begun)
                self.say(f"{trial.name}: top-1 {scores}, {took}; {self.progress()}")
            elif self.stops:
                self.waiting.append(trial)
            else:
                self.note(trial, _why(child))

    def note(self, trial: Trial, why: str) -> None:
        """A run failed."""
        self.failed[trial.name] = why
        self.say(f"{trial.name}: failed: {why}; {self.progress()}")
        self.note_failures()

    def note_failures(self) -> None:
        """Write `failed.json`. A full disk is no reason to end the sweep."""
        try:
            write_whole(self.folder / FAILED, json.dumps(self.failed, indent=2) + "\n")
        except OSError as error:
            self.say(f"warning: {self.folder / FAILED}: not written ({error.strerror})")

    def progress(self) -> str:
        """Runs done, and the time left if epochs go on as they did."""
        trained = sum(self.epochs.values()) - self.epochs_before
        going = [trial for trial in self.trials if trial.name not in self.failed]
        left = sum(trial.config.optim.epochs - self.epochs[trial.name] for trial in going)
        text = f"{len(self.done)} of {len(self.trials)} done"
        if trained and left:
            text += f", about {duration((time.monotonic() - self.begun) * left / trained)} left"
        return text

    def conclude(self) -> None:
        done = f"{len(self.done)} of {len(self.trials)} runs are done"
        if self.stops and len(self.done) + len(self.failed) < len(self.trials):
            raise Stopped(f"stopped; {done}; the same command goes on")
        if self.failed:
            names = "; ".join(f"{name} ({why})" for name, why in self.failed.items())
            failed = f"{len(self.failed)} of {len(self.trials)} runs failed"
            raise RunError(f"{failed}: {names}; the same command tries them again")
        took = duration(time.monotonic() - self.begun)
        self.say(f"{done}, in {self.folder}, after {took}; skipvit report {self.folder}")


def _why(child: Child) -> str:
    """One line: the run's own last error, or how it ended and what it printed last."""
    with open(child.log, "rb") as file:
        file.seek(child.log_begins)
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    lines = [printable(line)[:MOST_OF_A_LINE] for line in lines if line.strip()] or ["nothing"]
    own, code = [line for line in lines if line.startswith("error: ")], child.process.returncode
    if own and code > 0:
        return own[-1].removeprefix("error: ")
    if code == SAVED:
        return "somebody stopped it, it has saved"
    how = f"ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return f"{how}, after printing: {lines[-1]}"
