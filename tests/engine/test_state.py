"""What training steps do to their shared state, step by step, against NumPy in float64.

The network is one matrix and one bias, so that a whole run can be followed: accumulation, overflow, loss scale,
clipping, Adam, average of the weights, counters.
"""

from functools import cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from skipvit.engine.optim import AdamW, learning_rates
from skipvit.engine.state import REPORT, TrainingState
from skipvit.engine.step import TrainStep

RATES = learning_rates(40, 4, 2e-2, 1e-3)
BETA1, BETA2, EPSILON, DECAY = 0.9, 0.95, 1e-6, 0.1
STEPS, BAD = 36, {4, 13, 14, 15, 16, 17, 25}  # batches with an infinite number

OPTIONS = {
    "float32": {"accumulate": 1, "loss_scale": None, "window": 2000, "ema_decay": 0.0, "clip_norm": 0.5},
    "no clipping": {"accumulate": 2, "loss_scale": None, "window": 2000, "ema_decay": 0.5, "clip_norm": 0.0},
    "dynamic scale, average": {"accumulate": 1, "loss_scale": 1024.0, "window": 3, "ema_decay": 0.6, "clip_norm": 0.5},
    "scale at its floor": {"accumulate": 1, "loss_scale": 4.0, "window": 8, "ema_decay": 0.999, "clip_norm": 0.5},
    "everything": {"accumulate": 3, "loss_scale": 1024.0, "window": 2, "ema_decay": 0.5, "clip_norm": 0.5},
}


class SquaredError(nn.Cell):
    """In the place of a CrossEntropy: mean squared error of a linear map, times the scale."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        rng = np.random.default_rng(0)
        self.matrix = Parameter(Tensor(rng.normal(size=(3, 4)), ms.float32), name="matrix")
        self.bias = Parameter(Tensor(rng.normal(size=3), ms.float32), name="bias")

    def construct(self, x, labels, target, mix, scale):
        y = ops.MatMul(transpose_b=True)(x, self.matrix) + self.bias
        return ops.ReduceMean()(ops.Square()(y - target)) * scale


def make_batches(bad=BAD):
    rng = np.random.default_rng(1)
    batches = [
        (rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)) for _ in range(STEPS)
    ]
    for i in bad:
        batches[i][0][2, 1] = np.inf
    return batches


class Run:
    """A training step and all that it changes."""

    def __init__(self, accumulate, loss_scale, window, ema_decay, clip_norm):
        self.loss = SquaredError()
        self.optimizer = AdamW(self.loss.trainable_params(), RATES, BETA1, BETA2, EPSILON, DECAY)
        self.state = TrainingState(self.optimizer.parameters, ema_decay, loss_scale, window, accumulate)
        self.cell = TrainStep(self.loss, self.optimizer, self.state, clip_norm).set_train()
        cells = (self.loss, self.optimizer, self.state)
        self.parameters = {p.name: p for cell in cells for p in cell.get_parameters()}
        self.start = self.values()

    def step(self, batch):
        x, target = batch
        return self.cell(*map(Tensor, (x, np.zeros(6, np.int32), target, np.zeros(6, np.float32)))).asnumpy()

    def values(self):
        return {name: p.asnumpy().copy() for name, p in self.parameters.items()}

    def restore(self, values=None):
        """Put values back, by default the first ones. Assigned: compiled graphs with branches miss `set_data`."""
        for name, value in (values or self.start).items():
            ops.assign(self.parameters[name], Tensor(value))
        return self


@cache
def compiled(name):
    """The run of an option, which compiles once; whoever takes it restores it."""
    return Run(**OPTIONS[name])


class Expected:
    """The same run in NumPy."""

    def __init__(self, start, accumulate, loss_scale, window, ema_decay, clip_norm):
        self.weights = {name: start[name].astype(np.float64) for name in ("matrix", "bias")}
        self.accumulate, self.dynamic, self.window = accumulate, loss_scale is not None, window
        self.decay, self.clip_norm = ema_decay, clip_norm
        self.scale, self.good = loss_scale or 1.0, 0
        self.average = {name: value.copy() for name, value in self.weights.items()}
        self.m = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.v = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.updates = self.overflows = self.in_a_row = 0
        self.waiting, self.losses = [], []
        self.norm = self.rate = 0.0

    def step(self, batch):
        x, target = (part.astype(np.float64) for part in batch)
        with np.errstate(all="ignore"):
            error = x @ self.weights["matrix"].T + self.weights["bias"] - target
            loss = (error**2).mean()
            self.waiting.append({"matrix": 2 / error.size * error.T @ x, "bias": 2 / error.size * error.sum(0)})
            if np.isfinite(loss):
                self.losses.append(loss)
            if len(self.waiting) == self.accumulate:
                gradients = {name: np.mean([g[name] for g in self.waiting], axis=0) for name in self.weights}
                self.update(gradients)
                self.waiting = []
        return np.array([loss, self.norm, self.rate, self.scale, self.overflows, self.in_a_row])

    def update(self, gradients):
        self.norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        if not np.isfinite(self.norm):
            self.overflows, self.in_a_row, self.good = self.overflows + 1, self.in_a_row + 1, 0
            self.scale = max(1.0, self.scale / 2) if self.dynamic else 1.0
            return
        self.in_a_row = 0
        clip = min(1.0, self.clip_norm / (self.norm + 1e-6)) if self.clip_norm else 1.0
        self.rate, self.updates = RATES[self.updates], self.updates + 1
        t = self.updates
        for name, weight in self.weights.items():
            g = gradients[name] * clip
            self.m[name] = BETA1 * self.m[name] + (1 - BETA1) * g
            self.v[name] = BETA2 * self.v[name] + (1 - BETA2) * g**2
            if name == "matrix":
                weight *= 1 - self.rate * DECAY
            weight -= self.rate * (self.m[name] / (1 - BETA1**t)) / (np.sqrt(self.v[name] / (1 - BETA2**t)) + EPSILON)
            decay = min(self.decay, (1 + t) / (10 + t))
            self.average[name] = decay * self.average[name] + (1 - decay) * weight
        self.good += 1
        if self.dynamic and self.good == self.window:
            self.scale, self.good = 2 * self.scale, 0


@pytest.fixture(scope="module", params=OPTIONS)
def followed(request):
    """A run of 36 batches: itself, its NumPy twin, and what both said and had after each batch."""
    run = compiled(request.param).restore()
    twin = Expected(run.values(), **OPTIONS[request.param])
    seen = []
    for batch in make_batches():
        report, expected = run.step(batch), twin.step(batch)
        wanted = {name: value.copy() for name, value in twin.weights.items()}
        wanted |= {f"optimizer.moment1.{name}": value.copy() for name, value in twin.m.items()}
        wanted |= {f"optimizer.moment2.{name}": value.copy() for name, value in twin.v.items()}
        if twin.decay:
            wanted |= {f"ema.{name}": value.copy() for name, value in twin.average.items()}
        counted = {"trainer.gathered": len(twin.waiting), "optimizer.step": twin.updates}
        seen.append((report, expected, run.values(), wanted, counted))
    return run, twin, seen


def test_reports_are_those_of_numpy(followed):
    _, twin, seen = followed
    reports, expected = (np.array([each[i] for each in seen]) for i in (0, 1))
    assert reports.shape == (STEPS, len(REPORT)) and reports.dtype == np.float32
    finite = np.isfinite(expected)
    assert (np.isfinite(reports) == finite).all() and not finite[list(BAD), 0].any()
    assert np.allclose(reports[finite], expected[finite], rtol=1e-4)
    assert twin.overflows == len({i // twin.accumulate for i in BAD})
    assert not twin.dynamic or len(set(reports[:, 3])) > 2  # the scale went somewhere


def test_weights_moments_and_average_are_those_of_numpy_after_every_batch(followed):
    for i, (_, _, values, wanted, counted) in enumerate(followed[2]):
        for name, value in wanted.items():
            assert np.allclose(values[name], value, rtol=1e-4, atol=1e-5), (i, name)
        for name, count in counted.items():
            assert int(values[name]) == count, (i, name)


def test_batches_that_make_no_update_change_nothing(followed):
    """To the last bit: skipped ones, and those that only gather gradients."""
    updates = [each[4]["optimizer.step"] for each in followed[2]]
    learnt = [
        {name: value for name, value in each[2].items() if not name.startswith(("trainer.", "gradients."))}
        for each in followed[2]
    ]
    for i in range(1, STEPS):
        same = all(np.array_equal(value, learnt[i - 1][name]) for name, value in learnt[i].items())
        assert same == (updates[i] == updates[i - 1]), i


def test_mean_loss_is_of_the_finite_ones_of_the_epoch(followed):
    run, twin, seen = followed
    run.restore(seen[-1][2])
    assert len(twin.losses) == STEPS - len(BAD)
    assert np.isclose(run.state.mean_loss(), np.mean(twin.losses), rtol=1e-5)
    before = run.values()
    run.state.clear()
    assert run.state.mean_loss() is None
    changed = {name for name, value in run.values().items() if not np.array_equal(value, before[name])}
    assert changed == {"trainer.loss_sum", "trainer.losses"}
    good, bad = make_batches()[0], make_batches()[4]
    run.step(bad)
    assert run.state.mean_loss() is None
    losses = [float(run.step(good)[0]) for _ in range(2)]
    assert np.isclose(run.state.mean_loss(), np.mean(losses), rtol=1e-5)


def after(batches, name="everything"):
    """Values of a run after these batches."""
    run = compiled(name).restore()
    for batch in batches:
        run.step(batch)
    return run.values()


def test_bad_batches_leave_no_trace():
    """The weights of a run are those of a run that never saw its skipped updates."""
    batches = make_batches()
    bad_updates = {i // 3 for i in BAD}
    a, b = (after(batch for i, batch in enumerate(batches) if i // 3 not in skipped) for skipped in ((), bad_updates))
    assert a["optimizer.step"] == b["optimizer.step"] and a["trainer.overflows"] > b["trainer.overflows"] == 0
    # Loss scales differ, by powers of two, which change no digit.
    for name in a:
        if not name.startswith("trainer."):
            assert np.array_equal(a[name], b[name]), name


AVERAGING = "dynamic scale, average"


@pytest.fixture
def averaging():
    """A run with an average, after five batches."""
    run = compiled(AVERAGING).restore()
    for batch in make_batches(bad=())[:5]:
        run.step(batch)
    return run


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_averaged_swaps_and_restores_to_the_last_bit(averaging, error):
    before = averaging.values()
    try:
        with averaging.state.averaged():
            inside = averaging.values()
            if error:
                raise error
    except BaseException as caught:
        assert type(caught) is error
    after = averaging.values()
    for name in ("matrix", "bias"):
        assert np.array_equal(inside[name], before[f"ema.{name}"]) and not np.array_equal(inside[name], before[name])
    for name, value in before.items():
        if not name.startswith("spare."):
            assert np.array_equal(after[name], value), name


def test_training_goes_on_after_averaged_as_if_nothing_had_been(averaging):
    batches = make_batches(bad=())
    for batch in batches[5:8]:
        with averaging.state.averaged():
            pass
        averaging.step(batch)
    evaluated = averaging.values()
    for name, value in after(batches[:8], AVERAGING).items():
        if not name.startswith("spare."):
            assert np.array_equal(evaluated[name], value), name


def test_checkpoint_has_all_of_the_state_but_the_spare_weights():
    counters = ("loss_scale", "good_steps", "gathered", "loss_sum", "losses", "overflows", "overflows_in_a_row")
    counters = {f"trainer.{name}" for name in (*counters, "gradient_norm", "rate")}
    saved = [p.name for p in compiled("everything").state.saved()]
    copies = {f"ema.{name}" for name in ("matrix", "bias")}
    assert len(saved) == len(set(saved)) and set(saved) == counters | copies
    assert {p.name for p in compiled("float32").state.saved()} == counters
