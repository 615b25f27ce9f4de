"""The training loop: phases of `mindspore.train.Model`, with evaluation, logs and checkpoints."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mindspore import nn
from mindspore.train import Callback, Model
from tqdm import tqdm

from skipvit.config.config import Config
from skipvit.config.phases import Phase
from skipvit.data.batches import Batches
from skipvit.data.broken import lost_classes
from skipvit.data.open import batches_of
from skipvit.data.order import Shard
from skipvit.data.sources import Source
from skipvit.engine import checkpoint
from skipvit.engine.build import build_forward, build_loss
from skipvit.engine.checkpoint import Position
from skipvit.engine.devices import gradient_average, sum_over_devices
from skipvit.engine.metrics import Accuracy, Scores, evaluate
from skipvit.engine.state import REPORT, TrainingState
from skipvit.engine.step import TrainStep
from skipvit.util.errors import RunError, Stopped
from skipvit.util.log import log
from skipvit.util.signals import StopRequest
from skipvit.util.text import printable

# For overflows in a row and, between several devices, for a request to stop: it costs an exchange.
UPDATES_BETWEEN_CHECKS = 10


@dataclass(frozen=True)
class Splits:
    """The images of a run, and their checksum; what older checkpoints have instead."""

    train: Source
    val: Source
    fingerprint: int = 0
    old_fingerprint: int = 0


class StepWatch(Callback):
    """Follows the steps of a phase: progress bar, throughput without the first (compiling) step, logs, stopping."""

    def __init__(self, trainer: Trainer, phase: Phase, batches: Batches):
        super().__init__()
        self.trainer, self.phase, self.batches = trainer, phase, batches
        self.accumulate = trainer.config.optim.accumulate
        self.epoch, self.step = batches.epoch, batches.first_step  # in batches, not updates
        self.images = batches.batch_size * trainer.shard.world_size
        self.seen = self.timed = 0
        self.begun = time.perf_counter()
        self.compile_s = None
        self.report: Any = None
        self.bar: Any = None

    def on_train_epoch_begin(self, run_context):
        label = f"epoch {self.epoch + 1}/{self.trainer.config.optim.epochs} {self.phase.name}"
        self.bar = tqdm(
            total=self.batches.steps, initial=self.step, desc=label, unit="step", leave=False, file=sys.stderr,
            disable=None if self.trainer.folder.writes else True,
        )  # fmt: skip
        self.trainer.state.forget_overflow()  # of an evaluation before this
        if self.step == 0:
            self.trainer.state.clear()
        self.timed, self.begun = 0, time.perf_counter()

    def on_train_step_end(self, run_context):
        now = run_context.original_args()
        done, self.seen = now.cur_step_num - self.seen, now.cur_step_num  # with data sink the end of many steps
        self.step += done
        self.bar.update(done)
        self.report = now.net_outputs
        if self.compile_s is None and done == 1:
            self.report.asnumpy()  # wait: the first step compiles
            self.compile_s = time.perf_counter() - self.begun
            self.begun = time.perf_counter()
        else:
            self.timed += done
        if self.step % self.accumulate == 0:
            self.after_update(self.position(), max(1, done // self.accumulate))

    def after_update(self, position: Position, done: int) -> None:
        """Only here the run can be saved or stopped: gradients that are gathered are of one device."""
        if self.trainer.checks_at(position):
            self.refuse_overflows(position)
        every = self.trainer.config.log.steps
        if position.step // every > (position.step - done) // every:
            self.trainer.folder.log({"step": position.epoch * position.steps + position.step, **self.values()})
        self.trainer.after_update(position)

    def on_train_epoch_end(self, run_context):
        self.report.asnumpy()  # waits for the last step
        elapsed = time.perf_counter() - self.begun
        self.bar.close()
        broken = self.batches.broken
        record = self.trainer.state.record() | {
            "images_per_s": self.timed * self.images / elapsed if self.timed else None,
            "broken_images": len(broken.names),
            "first_step_s": self.compile_s,
        }
        self.compile_s = 0.0
        for name in lost_classes(self.batches.source, broken):
            self.trainer.folder.warn(f"class {printable(name)}: none of its training images can be decoded")
        self.trainer.after_epoch(self.phase, self.position(), record)
        self.epoch, self.step = self.epoch + 1, 0

    def position(self) -> Position:
        return Position(
            self.epoch, self.step // self.accumulate, self.batches.steps // self.accumulate, self.trainer.best,
            self.trainer.splits.fingerprint, self.images * self.accumulate,
        )  # fmt: skip

    def values(self) -> dict[str, float]:
        return dict(zip(REPORT, self.report.asnumpy().astype(float).tolist()))

    def refuse_overflows(self, position: Position) -> None:
        values = self.values()
        if not self.bar.disable and self.timed:
            speed = self.timed * self.images / (time.perf_counter() - self.begun)
            self.bar.set_postfix_str(f"loss {values['loss']:.3f}, {speed:.0f} images/s")
        if values["overflows_in_a_row"] >= self.trainer.config.amp.max_overflows:
            saved = self.trainer.save_together(position)
            raise RunError(
                f"epoch {position.epoch + 1}, step {position.step}: {values['overflows_in_a_row']:.0f} updates in a "
                f"row were not finite (amp.max_overflows) and the loss scale is down to {values['loss_scale']:g}; the "
                f"weights before them are {'saved' if saved else 'not saved'}. Begin another run (--name) with a lower "
                f"optim.lr or --amp.dtype float32"
            )


class Trainer:
    """Trains a network through the phases of a configuration on this process's shard.

    Args:
        folder: takes what is logged and saved, see `runs.folder.RunFolder`.
        callbacks: of MindSpore, besides this one's own.
        sink: MindSpore's data sink; None: as the configuration says.
    """

    def __init__(
        self,
        config: Config,
        device: str,
        network: nn.Cell,
        optimizer: nn.Cell,
        state: TrainingState,
        splits: Splits,
        folder: Any,
        shard: Shard = Shard(),
        callbacks: Sequence[Callback] = (),
        sink: bool | None = None,
    ):
        self.config, self.device, self.network, self.optimizer, self.state = config, device, network, optimizer, state
        self.splits, self.folder, self.shard, self.callbacks = splits, folder, shard, tuple(callbacks)
        auto = config.data.sink == "on" or config.data.sink == "auto" and device == "ascend"
        self.sink = auto if sink is None else sink
        self.phases, self.noise_width = config.resolved_phases(), config.noise_width()
        self.best, self.unsaved, self.stop = -1.0, False, StopRequest()
        self.saved_at, self.saved_position, self.written = time.monotonic(), None, None
        self.average = gradient_average(optimizer.parameters, shard)
        self.record: dict[str, Any] = {}  # of the last epoch
        self.steps: dict[tuple, TrainStep] = {}
        self.val: dict[int, Batches] = {}
        self.evals = {name: Accuracy(build_forward(config, device, network, name)) for name in config.evaluated()}

    def step_of(self, phase: Phase) -> TrainStep:
        """The training step of a phase: one for each distinct forward and kind of batches, over the same weights and
        moments."""
        mixes, image_size = phase.config.augment.mixes, phase.config.model.side
        key = phase.forward, mixes
        if key not in self.steps:
            forward = build_forward(self.config, self.device, self.network, phase.forward)
            loss = build_loss(self.config, forward, mixes, image_size)
            clip, world_size = self.config.optim.clip_norm, self.shard.world_size
            self.steps[key] = TrainStep(loss, self.optimizer, self.state, clip, self.average, world_size)
        return self.steps[key]

    def val_batches(self, image_size: int) -> Batches:
        if image_size not in self.val:
            config, val, listing = self.config.at_size(image_size), self.splits.val, self.folder.broken_val
            batches = batches_of(config, val, self.noise_width, False, self.shard, listing=listing)
            if self.shard.world_size == 1:  # several devices agree about stopping with the next steps
                batches.interrupted = self.stop.asked
            self.val[image_size] = batches
        return self.val[image_size]

    def parameters(self) -> list:
        """Everything that a checkpoint holds."""
        return [*self.network.get_parameters(), *self.optimizer.get_parameters(), *self.state.saved()]

    def run(self, begin: Position = Position()) -> None:
        """Train what is left after a position. Raises Stopped: on SIGTERM or Ctrl-C, after saving; RunError: too many
        broken images, too many overflows, a loss that is not a number, no checkpoint at the end."""
        self.best = begin.best
        with self.stop:
            for phase in self.phases:
                self.run_phase(phase, begin)
        if self.unsaved:
            raise RunError(
                f"{self.folder.checkpoints}: the last checkpoint could not be written; free some space and --resume "
                f"auto"
            )

    def run_phase(self, phase: Phase, begin: Position) -> None:
        first, step = (begin.epoch, begin.step) if begin.epoch >= phase.first else (phase.first, 0)
        if first >= phase.end:
            return
        model = Model(self.step_of(phase))
        if step:
            # The rest of an epoch is a data set of its own: all passes of one have the same length.
            if step < begin.steps:
                self.stretch(model, phase, first, step * self.config.optim.accumulate, 1)
            else:
                self.after_epoch(phase, begin, self.state.record())
            first += 1
        if first < phase.end:
            self.stretch(model, phase, first, 0, phase.end - first)

    def stretch(self, model: Model, phase: Phase, epoch: int, step: int, epochs: int) -> None:
        train, listing = self.splits.train, self.folder.broken
        batches = batches_of(
            phase.config, train, self.noise_width, True, self.shard, listing=listing, epoch=epoch, first_step=step
        )
        batches.interrupted = self.stop.asked
        watch = StepWatch(self, phase, batches)
        try:
            model.train(epochs, batches.dataset(), callbacks=[watch, *self.callbacks], dataset_sink_mode=self.sink)
        except RuntimeError as error:
            reason = batches.explain(error)
            if isinstance(reason, Stopped):
                if self.shard.world_size == 1:
                    self.stop_at(watch.position())
                reason = RunError(f"{reason} that do not come; --resume auto goes on from the last checkpoint")
            raise reason from error
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
        due = time.monotonic() - self.saved_at > 60 * self.config.checkpoint.minutes
        if due and position.step < position.steps:
            self.save(position)

    def asked_to_stop(self, position: Position) -> bool:
        """The same on all devices: one that stopped a step before the others would leave them waiting."""
        if self.shard.world_size > 1 and not self.checks_at(position):
            return False
        return sum_over_devices(np.array([float(self.stop.name is not None)]), self.shard)[0] > 0

    def stop_at(self, position: Position) -> None:
        if not self.save_together(position):
            raise RunError(
                f"{self.folder.checkpoints}: stopped, but the checkpoint could not be written; an older one may be "
                f"there"
            )
        raise Stopped(
            f"stopped after step {position.step} of epoch {position.epoch + 1}, saved; --resume auto goes on from there"
        )

    def save_together(self, position: Position) -> bool:
        """Save, and have all devices wait for it: a launcher ends them all with the first that ends. Whether it
        worked."""
        self.save(position)
        return sum_over_devices(np.array([float(self.unsaved)]), self.shard)[0] == 0

    def save(self, position: Position) -> None:
        """Write a checkpoint; a failure is reported, and training goes on."""
        self.saved_at, self.saved_position = time.monotonic(), (position.epoch, position.step)
        if self.folder.writes:
            try:
                keep, folder = self.config.checkpoint.keep, self.folder.checkpoints
                self.written, self.unsaved = checkpoint.save(folder, position, self.parameters(), keep), False
            except RunError as error:
                self.unsaved = True
                self.folder.warn(str(error))

    def after_epoch(self, phase: Phase, position: Position, record: dict) -> None:
        """Save, evaluate, log. A run that is resumed here does it again, from the same weights, with the same
        result."""
        epoch, last = position.epoch + 1, self.config.optim.epochs
        if epoch % self.config.checkpoint.every == 0 or epoch == last:
            self.save(position)
        steps = position.steps * self.config.optim.accumulate
        record = {"epoch": epoch, "phase": phase.name, "trained": phase.forward, "steps": steps, **record}
        if epoch % self.config.eval.every == 0 or epoch == last:
            record["val"] = {name: scores.as_dict() for name, scores in self.evaluate(position).items()}
            self.refuse_nonsense(epoch, record)
            # Equal counts too: it may be the same evaluation again, after a run that was killed before it kept its
            # best.
            top1 = record["val"][self.config.best()]["top1"]
            if top1 >= self.best:
                self.best = top1
                self.keep_best(replace(position, best=self.best))
            record["best_top1"] = self.best
        self.record = record
        self.folder.log(record)
        self.folder.draw_curves(self.phases)
        self.print_line(f"epoch {epoch}/{last} {phase.name}", record)

    def keep_best(self, position: Position) -> None:
        if self.unsaved or self.saved_position != (position.epoch, position.step):
            self.save(position)
        if self.written is not None and not self.unsaved:
            try:
                checkpoint.keep_best(self.written)
            except RunError as error:
                self.folder.warn(str(error))

    def evaluate(self, position: Position) -> dict[str, Scores]:
        """Scores of each forward that is reported; with the averaged weights too, if there are."""
        result: dict[str, Scores] = {}
        try:
            result |= self.evaluate_forwards("")
            if self.state.ema is not None:
                with self.state.averaged():
                    result |= self.evaluate_forwards("_ema")
        except Stopped:
            self.stop_at(position)  # here, where the weights are the trained ones again
        return result

    def evaluate_forwards(self, suffix: str) -> dict[str, Scores]:
        result, forwards = {}, self.config.forwards()
        for name, step in self.evals.items():
            batches, label = self.val_batches(forwards[name].image_size), f"evaluating {name}{suffix}"
            result[name + suffix] = evaluate(step, batches, self.shard, label)
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
        if not self.folder.writes:
            return
        known = record.get("train_loss") is not None
        parts = [f"loss {record['train_loss']:.3f}" if known else "no finite loss"]
        if "val" in record:
            scores = (f"{name} {scores['top1']:.2f} %" for name, scores in record["val"].items())
            parts.append(f"top-1 {', '.join(scores)}")
        if record.get("images_per_s"):
            parts.append(f"{record['images_per_s']:.0f} images/s")
        if record.get("overflows"):
            parts.append(f"{record['overflows']:.0f} updates skipped, loss scale {record['loss_scale']:g}")
        first = record.get("first_step_s") or 0
        log.info(f"{label}: {', '.join(parts)}" + (f" (first step {first:.0f} s)" if first > 5 else ""))
