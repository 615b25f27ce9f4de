"""The processes of a sweep: start them, follow them, hand signals on, remember what failed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from skipvit.config.config import Config
from skipvit.lab.plan import Run
from skipvit.runs.run_folder import RunFolder
from skipvit.util.errors import RunError, Stopped
from skipvit.util.processes import SAVED, command, followed_environment
from skipvit.util.signals import stop_signals
from skipvit.util.text import duration

LOOK_EVERY_S = 0.5
MOST_OF_A_LINE = 200  # characters; the log has all


def finished(folder: RunFolder, config: Config) -> bool:
    """Whether a run has trained all its epochs and written its summary."""
    try:
        return json.loads((folder.path / "summary.json").read_text())["epochs"] == config.optim.epochs
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass
class Job:
    """A run that is being trained."""

    run: Run
    place: dict
    process: subprocess.Popen
    log: Path
    log_begins: int  # where in the log its output begins
    begun: float


class Jobs:
    """Trains runs, as many at a time as there are places.

    Args:
        configs: the file of each run's configuration, by its name.
        places: see `sweep.places_of`.
    """

    def __init__(self, folder: Path, runs: tuple[Run, ...], configs: dict[str, Path], places: list[dict]):
        self.folder, self.runs, self.configs, self.free = folder, runs, configs, list(places)
        self.logs = folder / "logs"
        self.waiting, self.running, self.failed = deque(runs), [], {}
        self.done = {run.name for run in runs if finished(self.run_folder(run), run.config)}
        self.epochs = {run.name: self.count_epochs(run) for run in runs}
        self.total = sum(run.config.optim.epochs for run in runs)
        self.stops, self.stopping, self.said = 0, 0, set()

    def run_folder(self, run: Run) -> RunFolder:
        return RunFolder(self.folder / run.name)

    def count_epochs(self, run: Run) -> int:
        """Epochs that a run has trained."""
        epochs = run.config.optim.epochs
        return epochs if run.name in self.done else min(len(self.run_folder(run).records()), epochs)

    def follow(self) -> None:
        """Train until all runs have ended.

        Raises:
            Stopped: by SIGTERM, SIGHUP or Ctrl-C, after the runs have saved.
            RunError: runs failed, naming them.
        """
        self.logs.mkdir(exist_ok=True)
        self.note_failures()
        before = {number: signal.signal(number, self.ask_to_stop) for number in stop_signals()}
        self.begun, self.epochs_before = time.monotonic(), sum(self.epochs.values())
        looks = {"unit": "epoch", "desc": self.folder.name, "disable": None, "smoothing": 0}
        self.bar = tqdm(total=self.total, initial=self.epochs_before, **looks)
        try:
            while self.running or (self.waiting and not self.stops):
                self.start_some()
                time.sleep(LOOK_EVERY_S)
                self.hand_stops_on()
                self.look()
        finally:
            for job in self.running:  # an error of the sweep's own: none is left behind
                job.process.terminate()
            self.bar.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        self.conclude()

    def ask_to_stop(self, *_) -> None:
        """Signal handler."""
        self.stops += 1

    def hand_stops_on(self) -> None:
        """First the runs save, then they are killed."""
        if self.stops == self.stopping:
            return
        if not self.stopping and self.running:
            self.say("stopping: each run finishes its step and saves; once more kills")
        for job in self.running:
            job.process.send_signal(signal.SIGKILL if self.stops > 1 else signal.SIGTERM)
        self.stopping = self.stops

    def start_some(self) -> None:
        """Fill the free places with runs that nobody trains."""
        for _ in range(len(self.waiting)):
            if not self.free or self.stops:
                return
            run = self.waiting.popleft()
            if finished(self.run_folder(run), run.config):
                self.done.add(run.name)
            elif self.run_folder(run).in_use():  # by what a sweep that was killed left behind: it saves and ends
                if run.name not in self.said:
                    self.say(f"{run.name}: another process trains in it, waiting for its end")
                self.said.add(run.name)
                self.waiting.append(run)
            else:
                self.start(run, self.free.pop(0))

    def start(self, run: Run, place: dict) -> None:
        environment = followed_environment(place["cores"])
        if place["device"] is not None:
            environment["DEVICE_ID"] = str(place["device"])
        words = ["train", "--config", str(self.configs[run.name]), "--runs", str(self.folder), "--resume", "auto"]
        path = self.logs / f"{run.name}.log"
        with open(path, "ab") as log:
            begins = log.tell()
            process = subprocess.Popen(
                command(*words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the sweep, which hands it on
            )
        self.running.append(Job(run, place, process, path, begins, time.monotonic()))

    def look(self) -> None:
        """Notice progress and who has ended."""
        for job in list(self.running):
            ended = job.process.poll() is not None
            self.epochs[job.run.name] = self.count_epochs(job.run)
            if ended:
                self.running.remove(job)
                self.free.append(job.place)
                self.ended(job)
        self.bar.update(sum(self.epochs.values()) - self.bar.n)
        failed = f", {len(self.failed)} failed" * bool(self.failed)
        self.bar.set_postfix_str(f"{len(self.done)} of {len(self.runs)} runs{failed}")

    def ended(self, job: Job) -> None:
        """Say and remember how a run ended."""
        run, code = job.run, job.process.returncode
        if code == 0 and finished(self.run_folder(run), run.config):
            self.done.add(run.name)
            self.failed.pop(run.name, None)
            self.say(f"{run.name}: {self.scores(run)}, {duration(time.monotonic() - job.begun)}; {self.progress()}")
        elif self.stops:
            self.waiting.append(run)
        else:
            self.failed[run.name] = _why(job)
            self.say(f"{run.name}: failed: {self.failed[run.name]}; {self.progress()}")
        self.note_failures()

    def scores(self, run: Run) -> str:
        forwards = json.loads((self.run_folder(run).path / "summary.json").read_text())["forwards"]
        return "top-1 " + ", ".join(f"{name} {scores['top1']:.2f} %" for name, scores in forwards.items())

    def progress(self) -> str:
        """Runs done, and the time left if epochs go on as they did."""
        trained = sum(self.epochs.values()) - self.epochs_before
        left = sum(run.config.optim.epochs - self.epochs[run.name] for run in self.runs if run.name not in self.failed)
        text = f"{len(self.done)} of {len(self.runs)} done"
        return text + (
            f", about {duration((time.monotonic() - self.begun) * left / trained)} left" if trained and left else ""
        )

    def note_failures(self) -> None:
        """`failed.json`: the last error line of each run that failed."""
        (self.folder / "failed.json").write_text(json.dumps(self.failed, indent=2) + "\n")

    def say(self, text: str) -> None:
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def conclude(self) -> None:
        done = f"{len(self.done)} of {len(self.runs)} runs are done"
        if self.stops and len(self.done) + len(self.failed) < len(self.runs):
            raise Stopped(f"stopped; {done}; the same command goes on")
        if self.failed:
            names = "; ".join(f"{name} ({why})" for name, why in self.failed.items())
            raise RunError(
                f"{len(self.failed)} of {len(self.runs)} runs failed: {names}; the same command tries them again"
            )
        print(
            f"{done}, in {self.folder}, after {duration(time.monotonic() - self.begun)}; skipvit report {self.folder}"
        )


def _why(job: Job) -> str:
    """One line: the run's own last error, or how it ended and what it printed last."""
    with open(job.log, "rb") as file:
        file.seek(job.log_begins)
        lines = [line for line in re.split(r"[\r\n]+", file.read().decode(errors="replace")) if line.strip()]
    own = [line for line in lines if line.startswith("error: ")]
    code = job.process.returncode
    if own and code > 0:
        return own[-1].removeprefix("error: ")[:MOST_OF_A_LINE]
    if code == SAVED:
        return "somebody stopped it, it has saved"
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how}, after printing: {(lines or ['nothing'])[-1][:MOST_OF_A_LINE]}"
