"""The training loop: phases of `mindspore.train.Model`, with evaluation, logs and checkpoints after each epoch."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.train import Callback, Model
from tqdm import tqdm

from skipvit.data.pipeline import Batches, Shard
from skipvit.errors import RunError
from skipvit.models.vit import ViT
from skipvit.training import checkpoint
from skipvit.training.distributed import gradient_average, sum_over_cards
from skipvit.training.evaluate import Scores, evaluate
from skipvit.training.phases import Phase
from skipvit.training.run_folder import RunFolder
from skipvit.training.step import EvalStep, SmoothedLoss, TrainStep


@dataclass(frozen=True)
class Plan:
    """What a training run is made of, as plain values.

    Attributes:
        train_batches: makes the training data of an epoch, given the epoch.
        val_batches: the validation data.
        clip_norm, label_smoothing, checkpoint_every, checkpoint_keep: see the configuration.
    """

    phases: tuple[Phase, ...]
    train_batches: Callable[[int], Batches]
    val_batches: Batches
    clip_norm: float
    label_smoothing: float
    checkpoint_every: int
    checkpoint_keep: int


class StepWatch(Callback):
    """Follows the steps of one epoch: progress bar, mean loss, throughput without the first (compiling) step."""

    def __init__(self, label: str, pictures_per_step: int, steps: int, show: bool):
        super().__init__()
        self.pictures, self.steps = pictures_per_step, steps
        self.losses: list[ms.Tensor] = []
        self.norm = self.rate = None
        self.compile_s = self.elapsed = 0.0
        self.begun = time.perf_counter()
        self.bar = tqdm(total=steps, desc=label, unit="step", leave=False, disable=None if show else True, file=sys.stderr)

    def on_train_step_end(self, run_context):
        loss, self.norm, self.rate = run_context.original_args().net_outputs
        self.losses.append(loss)
        if len(self.losses) == 1:
            loss.asnumpy()  # wait: the first step compiles
            self.compile_s = time.perf_counter() - self.begun
            self.begun = time.perf_counter()
        self.bar.update()
        if not self.bar.disable and len(self.losses) % 5 == 0:
            speed = (len(self.losses) - 1) * self.pictures / (time.perf_counter() - self.begun)
            self.bar.set_postfix_str(f"loss {float(loss.asnumpy()):.3f}, {speed:.0f} images/s")

    def on_train_epoch_end(self, run_context):
        self.losses = [float(loss.asnumpy()) for loss in self.losses]  # waits for the last step
        self.elapsed = time.perf_counter() - self.begun
        self.bar.close()

    def summary(self) -> dict:
        timed = len(self.losses) - 1
        return {
            "train_loss": float(np.mean(self.losses)),
            "gradient_norm": float(self.norm.asnumpy()),
            "lr": float(self.rate.asnumpy()),
            "images_per_s": timed * self.pictures / self.elapsed if timed else None,
            "first_step_s": self.compile_s,
        }


class Trainer:
    """Trains a network through its phases on this process's shard."""

    def __init__(self, network: ViT, optimizer: nn.Cell, plan: Plan, folder: RunFolder, shard: Shard = Shard()):
        self.network, self.optimizer, self.plan, self.folder, self.shard = network, optimizer, plan, folder, shard
        average = gradient_average(optimizer.parameters, shard)
        forwards = {phase.routed for phase in plan.phases}
        self.steps = {
            routed: TrainStep(SmoothedLoss(network, routed, plan.label_smoothing), optimizer, plan.clip_norm, average)
            for routed in forwards
        }
        # Trained dense throughout, there is only one forward to evaluate.
        self.evals = {routed: EvalStep(network, routed) for routed in ((False, True) if network.spans else (False,))}

    def run(self, epochs_done: int = 0) -> None:
        """Train what is left after `epochs_done` epochs.

        Raises:
            RunError: a picture that cannot be decoded, a loss that is not a number, a full disk.
        """
        for phase in self.plan.phases:
            model = Model(self.steps[phase.routed])
            for epoch in range(max(phase.first, epochs_done), phase.end):
                self.epoch(model, phase, epoch)

    def epoch(self, model: Model, phase: Phase, epoch: int) -> None:
        batches = self.plan.train_batches(epoch)
        last = self.plan.phases[-1].end
        label = f"epoch {epoch + 1}/{last} {phase.name}"
        watch = StepWatch(label, batches.batch_size * self.shard.count, batches.steps, self.folder.writes)
        try:
            model.train(1, batches.dataset, callbacks=[watch])
        except RuntimeError as error:
            raise batches.samples.explain(error) from error
        finally:
            watch.bar.close()
        record = {"epoch": epoch + 1, "phase": phase.name, "trained": "routed" if phase.routed else "dense", **watch.summary()}
        record["train_loss"] = float(sum_over_cards(np.array([record["train_loss"]]), self.shard)[0]) / self.shard.count
        record["val"] = {name: scores.as_dict() for name, scores in self.evaluate().items()}
        losses = [record["train_loss"], record["gradient_norm"], *(scores["loss"] for scores in record["val"].values())]
        if not np.isfinite(losses).all():
            raise RunError(f"epoch {epoch + 1}: the loss is not a number, the epoch is not saved; lower optim.lr")
        if self.folder.writes and ((epoch + 1) % self.plan.checkpoint_every == 0 or epoch + 1 == last):
            checkpoint.save(self.folder.checkpoints, epoch + 1, self.network, self.optimizer, self.plan.checkpoint_keep)
        self.folder.log(record)
        self.folder.draw_curves(self.plan.phases)
        self.report(label, record)

    def evaluate(self) -> dict[str, Scores]:
        """Scores of the dense forward, and of the routed one if there are routes."""
        return {
            "routed" if routed else "dense": evaluate(step, self.plan.val_batches, self.shard)
            for routed, step in self.evals.items()
        }

    def report(self, label: str, record: dict) -> None:
        """One line an epoch."""
        if self.folder.writes:
            speed = record["images_per_s"]
            accuracy = ", ".join(f"{name} {scores['top1']:.2f} %" for name, scores in record["val"].items())
            print(
                f"{label}: loss {record['train_loss']:.3f}, top-1 {accuracy}, "
                + (f"{speed:.0f} images/s" if speed else "one step")
                + (f" (first step {record['first_step_s']:.0f} s)" if record["first_step_s"] > 5 else ""),
                flush=True,
            )
