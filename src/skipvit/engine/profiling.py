"""MindSpore's profiler for a few steps of a run."""

from __future__ import annotations

from pathlib import Path

from mindspore.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler
from mindspore.train import Callback

STEPS = 10


class ProfileSteps(Callback):
    """Writes the trace of ten steps, from the second on (the first compiles), into a folder."""

    def __init__(self, folder: Path, device: str):
        super().__init__()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.NPU] if device == "ascend" else [])]
        self.profile = profile(
            activities=activities,
            schedule=schedule(wait=1, warmup=0, active=STEPS, repeat=1),
            on_trace_ready=tensorboard_trace_handler(str(folder)),
        )
        self.steps, self.running = 0, False

    def on_train_begin(self, run_context):
        if self.steps == 0:
            self.profile.start()
            self.running = True

    def on_train_step_end(self, run_context):
        self.steps += 1
        if self.running:
            self.profile.step()
        if self.steps > STEPS:
            self.stop()

    def on_train_end(self, run_context):
        """A phase that ends sooner than that leaves what there is."""
        self.stop()

    def stop(self) -> None:
        if self.running:
            self.profile.stop()
            self.running = False
