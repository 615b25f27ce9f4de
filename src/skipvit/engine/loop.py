"""The training loop: phases of `mindspore.train.Model`, with evaluation, logs and checkpoints."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from mindspore import nn
from mindspore.train import Callback, Model
from tqdm import tqdm

from skipvit.data.batches import Batches
from skipvit.data.order import Shard
from skipvit.engine import checkpoint
from skipvit.engine.checkpoint import Position
from skipvit.engine.distributed import gradient_average, sum_over_devices
from skipvit.engine.evaluate import Scores, evaluate
from skipvit.engine.phases import Phase
from skipvit.engine.state import REPORT, TrainingState
from skipvit.engine.step import EvalStep, Mixer, TrainingLoss, TrainStep
from skipvit.models.vit import ViT
from skipvit.runs.run_folder import RunFolder
from skipvit.util.errors import RunError, Stopped
from skipvit.util.signals import StopRequest

UPDATES_BETWEEN_CHECKS = (
    10  # for overflows in a row and, between several devices, for a request to stop: it costs an exchange
)


@dataclass(frozen=True)
class Plan:
    """What a training run is made of, as plain values.

    Attributes:
        train_batches: makes the training data from an epoch and a step in it on.
        val_batches: the validation data.
        best: the forward whose top-1 decides about the best checkpoint.
        fingerprint: of the training images, see `data.open.fingerprint`.
        sink: MindSpore's data sink.
        mixer, clip_norm, label_smoothing and the others: see the configuration.
    """

    phases: tuple[Phase, ...]
    train_batches: Callable[[int, int], Batches]
    val_batches: Batches
    mixer: Mixer | None
    clip_norm: float
    label_smoothing: float
    best: str
    fingerprint: int = 0
    accumulate: int = 1
    sink: bool = False
    max_overflows: int = 50
    eval_every: int = 1
    checkpoint_every: int = 1
    checkpoint_minutes: float = 10.0
    checkpoint_keep: int = 3
    log_steps: int = 50
    callbacks: tuple[Callback, ...] = ()


class StepWatch(Callback):
    """Follows the steps of a phase: progress bar, throughput without the first (compiling) step, logs, stopping."""

    def __init__(self, trainer: Trainer, phase: Phase, batches: Batches):
        super().__init__()
        self.trainer, self.phase, self.batches = trainer, phase, batches
        self.epoch, self.step = batches.epoch, batches.first_step  # in batches, not updates
        self.images = batches.batch_size * trainer.shard.world_size
        self.seen = 0
        self.compile_s = None
        self.bar = None

    def on_train_epoch_begin(self, run_context):
        label = f"epoch {self.epoch + 1}/{self.trainer.plan.phases[-1].end} {self.phase.name}"
        show = self.trainer.folder.writes
        self.bar = tqdm(
            total=self.batches.steps,
            initial=self.step,
            desc=label,
            unit="step",
            leave=False,
            disable=None if show else True,
            file=sys.stderr,
        )
        self.trainer.state.forget_overflow()  # of an evaluation before this
        if self.step == 0:
            self.trainer.state.begin_epoch()
        self.timed = 0
        self.begun = time.perf_counter()

    def on_train_step_end(self, run_context):
        now = run_context.original_args()
        done, self.seen = now.cur_step_num - self.seen, now.cur_step_num  # with data sink this is the end of many steps
        self.step += done
        self.bar.update(done)
        self.report = now.net_outputs
        if self.compile_s is None and done == 1:
            self.report.asnumpy()  # wait: the first step compiles
            self.compile_s = time.perf_counter() - self.begun
            self.begun = time.perf_counter()
        else:
            self.timed += done
        if self.step % self.trainer.plan.accumulate == 0:
            self.after_update(self.position(), max(1, done // self.trainer.plan.accumulate))

    def after_update(self, position: Position, done: int) -> None:
        """Only here the run can be saved or stopped: gradients that are gathered are of one device."""
        if self.trainer.checks_at(position):
            self.refuse_overflows(position)
        if position.step // self.trainer.plan.log_steps > (position.step - done) // self.trainer.plan.log_steps:
            self.trainer.folder.log({"step": position.epoch * position.steps + position.step, **self.values()})
        self.trainer.after_update(position)

    def on_train_epoch_end(self, run_context):
        values = self.values()  # waits for the last step
        elapsed = time.perf_counter() - self.begun
        self.bar.close()
        record = {"train_loss": self.trainer.state.mean_loss()}
        record |= {name: values[name] for name in REPORT if name != "loss"}
        record["images_per_s"] = self.timed * self.images / elapsed if self.timed else None
        record["broken_images"] = len(self.batches.broken.names)
        record["first_step_s"], self.compile_s = self.compile_s, 0.0
        self.trainer.after_epoch(self.phase, self.position(), record)
        self.epoch, self.step = self.epoch + 1, 0

    def position(self) -> Position:
        plan, each = self.trainer.plan, self.trainer.plan.accumulate
        return Position(
            self.epoch,
            self.step // each,
            self.batches.steps // each,
            self.trainer.best,
            plan.fingerprint,
            self.images * each,
        )

    def values(self) -> dict[str, float]:
        return dict(zip(REPORT, self.report.asnumpy().astype(float).tolist()))

    def refuse_overflows(self, position: Position) -> None:
        values = self.values()
        if not self.bar.disable and self.timed:
            speed = self.timed * self.images / (time.perf_counter() - self.begun)
            self.bar.set_postfix_str(f"loss {values['loss']:.3f}, {speed:.0f} images/s")
        if values["overflows_in_a_row"] >= self.trainer.plan.max_overflows:
            saved = self.trainer.save_together(position)
            raise RunError(
                f"epoch {position.epoch + 1}, step {position.step}: {values['overflows_in_a_row']:.0f} updates in a row were not finite "
                f"(amp.max_overflows) and the loss scale is down to {values['loss_scale']:g}; the weights before them are "
                f"{'saved' if saved else 'not saved'}. Begin another run (--name) with a lower optim.lr or --amp.dtype float32"
            )


class Trainer:
    """Trains a network through its phases on this process's shard."""

    def __init__(
        self,
        network: ViT,
        optimizer: nn.Cell,
        state: TrainingState,
        plan: Plan,
        folder: RunFolder,
        shard: Shard = Shard(),
    ):
        self.network, self.optimizer, self.state = network, optimizer, state
        self.plan, self.folder, self.shard = plan, folder, shard
        self.best, self.unsaved = -1.0, False
        self.saved_at, self.saved_position = time.monotonic(), None
        average = gradient_average(optimizer.parameters, shard)
        self.steps = {}
        for routed in {phase.routed for phase in plan.phases}:
            loss = TrainingLoss(network, routed, plan.label_smoothing, plan.mixer)
            self.steps[routed] = TrainStep(loss, optimizer, state, plan.clip_norm, average, shard.world_size)
        # Trained dense throughout, there is only one forward to evaluate.
        self.evals = {routed: EvalStep(network, routed) for routed in ((False, True) if network.spans else (False,))}

    def parameters(self) -> list:
        """Everything that a checkpoint holds."""
        return [*self.network.get_parameters(), *self.optimizer.get_parameters(), *self.state.saved()]

    def run(self, begin: Position = Position()) -> None:
        """Train what is left after a position.

        Raises:
            Stopped: on SIGTERM or Ctrl-C, after saving.
            RunError: too many broken images, too many overflows, a loss that is not a number, no checkpoint at the end.
        """
        self.best = begin.best
        with StopRequest() as self.stop:
            for phase in self.plan.phases:
                self.run_phase(phase, begin)
        if self.unsaved:
            raise RunError(
                f"{self.folder.checkpoints}: the last checkpoint could not be written; free some space and --resume auto"
            )

    def run_phase(self, phase: Phase, begin: Position) -> None:
        first, step = (begin.epoch, begin.step) if begin.epoch >= phase.first else (phase.first, 0)
        model = Model(self.steps[phase.routed])
        if first < phase.end and step:
            # The rest of an epoch is a data set of its own: all passes of one have the same length.
            if step < begin.steps:
                self.stretch(model, phase, first, step * self.plan.accumulate, 1)
            else:
                self.after_epoch(phase, begin, {"train_loss": self.state.mean_loss()})
            first += 1
        if first < phase.end:
            self.stretch(model, phase, first, 0, phase.end - first)

    def stretch(self, model: Model, phase: Phase, epoch: int, step: int, epochs: int) -> None:
        batches = self.plan.train_batches(epoch, step)
        watch = StepWatch(self, phase, batches)
        try:
            model.train(
                epochs, batches.dataset(), callbacks=[watch, *self.plan.callbacks], dataset_sink_mode=self.plan.sink
            )
        except RuntimeError as error:
            raise batches.explain(error) from error
        finally:
            if watch.bar is not None:
                watch.bar.close()

    def checks_at(self, position: Position) -> bool:
        """The same on all devices."""
        return position.step % UPDATES_BETWEEN_CHECKS == 0 or position.step == position.steps

    def after_update(self, position: Position) -> None:
        """Save if it is time, stop if it was asked for."""
        if self.asked_to_stop(position):
            self.stop_at(position)
        if time.monotonic() - self.saved_at > 60 * self.plan.checkpoint_minutes and position.step < position.steps:
            self.save(position)

    def asked_to_stop(self, position: Position) -> bool:
        """The same on all devices: one that stopped a step before the others would leave them waiting."""
        if self.shard.world_size == 1:
            return self.stop.name is not None
        if not self.checks_at(position):
            return False
        return sum_over_devices(np.array([float(self.stop.name is not None)]), self.shard)[0] > 0

    def stop_at(self, position: Position) -> None:
        if not self.save_together(position):
            raise RunError(
                f"{self.folder.checkpoints}: stopped, but the checkpoint could not be written; an older one may be there"
            )
        raise Stopped(
            f"stopped after step {position.step} of epoch {position.epoch + 1}, saved; --resume auto goes on from there"
        )

    def save_together(self, position: Position) -> bool:
        """Save, and have all devices wait for it: a launcher ends them all with the first that ends. Whether it worked."""
        self.save(position)
        return sum_over_devices(np.array([float(self.unsaved)]), self.shard)[0] == 0

    def save(self, position: Position) -> None:
        """Write a checkpoint; a failure is reported, and training goes on."""
        self.saved_at, self.saved_position = time.monotonic(), (position.epoch, position.step)
        if self.folder.writes:
            try:
                self.written = checkpoint.save(
                    self.folder.checkpoints, position, self.parameters(), self.plan.checkpoint_keep
                )
                self.unsaved = False
            except RunError as error:
                self.unsaved = True
                self.folder.warn(str(error))

    def after_epoch(self, phase: Phase, position: Position, record: dict) -> None:
        """Save, evaluate, log. A run that is resumed here does it again, from the same weights, with the same result."""
        epoch, last = position.epoch + 1, self.plan.phases[-1].end
        if epoch % self.plan.checkpoint_every == 0 or epoch == last:
            self.save(position)
        record = {
            "epoch": epoch,
            "phase": phase.name,
            "trained": "routed" if phase.routed else "dense",
            "steps": position.steps * self.plan.accumulate,
            **record,
        }
        if epoch % self.plan.eval_every == 0 or epoch == last:
            record["val"] = {name: scores.as_dict() for name, scores in self.evaluate(position).items()}
            self.refuse_nonsense(epoch, record)
            # Equal counts too: it may be the same evaluation again, after a run that was killed before it kept its best.
            if record["val"][self.plan.best]["top1"] >= self.best:
                self.best = record["val"][self.plan.best]["top1"]
                self.keep_best(replace(position, best=self.best))
            record["best_top1"] = self.best
        self.folder.log(record)
        self.folder.draw_curves(self.plan.phases)
        self.print_line(f"epoch {epoch}/{last} {phase.name}", record)

    def keep_best(self, position: Position) -> None:
        if self.unsaved or self.saved_position != (position.epoch, position.step):
            self.save(position)
        if self.folder.writes and not self.unsaved:
            try:
                checkpoint.keep_best(self.written)
            except RunError as error:
                self.folder.warn(str(error))

    def evaluate(self, position: Position) -> dict[str, Scores]:
        """Scores of the dense forward and, if there are routes, the routed one; with the averaged weights too, if there are."""
        try:
            result = self.evaluate_forwards("")
            if self.state.ema is not None:
                with self.state.averaged():
                    result |= self.evaluate_forwards("_ema")
        except Stopped:
            self.stop_at(position)  # here, where the weights are the trained ones again
        return result

    def evaluate_forwards(self, suffix: str) -> dict[str, Scores]:
        # Several devices agree about stopping with the next steps.
        interrupted = (lambda: self.stop.name is not None) if self.shard.world_size == 1 else (lambda: False)
        result = {}
        for routed, step in self.evals.items():
            name = ("routed" if routed else "dense") + suffix
            result[name] = evaluate(step, self.plan.val_batches, self.shard, f"evaluating {name}", interrupted)
        return result

    def refuse_nonsense(self, epoch: int, record: dict) -> None:
        for name, scores in record["val"].items():
            if not math.isfinite(scores["loss"]):
                text = f"epoch {epoch}: the {name} validation loss is not a number"
                if name == record["trained"]:
                    raise RunError(
                        f"{text}; begin another run (--name) with a lower optim.lr, best.ckpt is from before"
                    )
                self.folder.warn(text)

    def print_line(self, label: str, record: dict) -> None:
        """One line an epoch."""
        if self.folder.writes:
            parts = [f"loss {record['train_loss']:.3f}" if record.get("train_loss") is not None else "no finite loss"]
            if "val" in record:
                parts.append(
                    "top-1 " + ", ".join(f"{name} {scores['top1']:.2f} %" for name, scores in record["val"].items())
                )
            if record.get("images_per_s"):
                parts.append(f"{record['images_per_s']:.0f} images/s")
            if record.get("overflows"):
                parts.append(f"{record['overflows']:.0f} updates skipped, loss scale {record['loss_scale']:g}")
            text = f"{label}: {', '.join(parts)}"
            print(
                text
                + (f" (first step {record['first_step_s']:.0f} s)" if (record.get("first_step_s") or 0) > 5 else ""),
                flush=True,
            )
