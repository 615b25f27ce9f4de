"""Training and evaluation steps of the network: loss, mixing, clipping, accumulation, overflow, and the graphs they
compile to.

What a step does to its state is in test_state.py, on a network small enough to follow in NumPy.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.train import mind_ir_pb2

from skipvit.engine.metrics import Accuracy, evaluate
from skipvit.engine.objectives import CrossEntropy, Mixer
from skipvit.engine.optim import AdamW, learning_rates
from skipvit.engine.state import REPORT, TrainingState
from skipvit.engine.step import TrainStep
from skipvit.models.arithmetic import forward_macs
from skipvit.models.layers import PatchEmbed
from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program
from skipvit.routing.spec import Route
from support.reference import MEAN, STD, forward

CLASSES, SMOOTHING, CLIP, DROP_PATH = 10, 0.1, 0.5, 0.2
SPEC = ViTSpec(24, 2, 2, patch=4, image_size=16, num_classes=CLASSES, drop_path=DROP_PATH)
ROUTES = [
    Route(start=0, end=1, keep_ratio=0.5, scorer="random"),
    Route(start=1, end=2, keep_ratio=0.5, restore=False, fuse=True),
]
PROGRAMS = [compile_program(SPEC, routes, name) for routes, name in (((), "dense"), (ROUTES, "routed"))]
DENSE, ROUTED = False, True
RATES = learning_rates(10, 2, 1e-2, 1e-3)
UNMIXED = np.array([1, 0, 0, 0, 0, 1], np.float32)
MIXUP = np.array([0.3, 0, 0, 0, 0, 0.3], np.float32)
CUTMIX = np.array([1, 3, 11, 0, 9, 1 - 72 / 256], np.float32)  # a box at the left edge
# Nothing draws this: pixels and targets have weights of their own.
BOTH = np.array([0.6, 0, 16, 5, 6, 0.25], np.float32)
MIXES = {"unmixed": UNMIXED, "mixup": MIXUP, "CutMix": CUTMIX, "both": BOTH}


def make_network():
    """Large random weights: attention is far from flat, so that rounding does not choose the tokens."""
    network = SPEC.network()
    rng = np.random.default_rng(1)
    for name, parameter in network.parameters_dict().items():
        scale = parameter.shape[-1] ** -0.5 if name.endswith("weight") and parameter.ndim == 2 else 0.3
        values = rng.normal(size=parameter.shape) * scale + (parameter.ndim == 1 and name.endswith("weight"))
        parameter.set_data(Tensor(values.astype(np.float32)))
    return network


def make_batch(count: int, seed: int = 2, raw: bool = True):
    """Images as the mixer takes them (raw, 0 to 255) or normalised ones, labels, noise, how to mix."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 16, 16, 3))
    images = images.astype(np.float32) if raw else ((images - MEAN) / STD).astype(np.float32)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    return images, labels, rng.random((count, PROGRAMS[ROUTED].noise_width)).astype(np.float32), UNMIXED


def spoilt(batch):
    """The same batch with one infinite pixel."""
    images = batch[0].copy()
    images[-1, 3, 5, 1] = np.inf
    return images, *batch[1:]


class Run:
    """A network in training: steps, dense and routed, that share everything; what there is can be looked at and put
    back."""

    def __init__(self, ema_decay=0.0, loss_scale=None, window=2000, accumulate=1, formulation="gather"):
        self.network = make_network()
        # A large epsilon: the bias of the keys has no gradient (it shifts all logits of a row alike), and Adam would
        # blow the rounding noise that it gets instead up to steps of full length.
        self.optimizer = AdamW(self.network.trainable_params(), RATES, 0.9, 0.999, 1e-3, 0.05)
        self.state = TrainingState(self.optimizer.parameters, ema_decay, loss_scale, window, accumulate)
        forwards = [Forward(self.network, program, formulation) for program in PROGRAMS]
        losses = [CrossEntropy(forward, SMOOTHING, Mixer(16)) for forward in forwards]
        self.steps = [TrainStep(loss, self.optimizer, self.state, CLIP).set_train() for loss in losses]
        cells = (self.network, self.optimizer, self.state)
        self.parameters = {p.name: p for cell in cells for p in cell.get_parameters()}
        self.start = self.values()

    def step(self, batch, routed=DENSE) -> dict[str, float]:
        report = self.steps[routed](*(Tensor(part) for part in batch)).asnumpy()
        assert report.shape == (6,) and report.dtype == np.float32
        return dict(zip(REPORT, report.tolist()))

    def values(self, prefixes=("",)) -> dict[str, np.ndarray]:
        return {name: p.asnumpy().copy() for name, p in self.parameters.items() if name.startswith(prefixes)}

    def weights(self) -> dict[str, np.ndarray]:
        return {p.name: p.asnumpy().copy() for p in self.optimizer.parameters}

    def learnt(self) -> dict[str, np.ndarray]:
        """What a skipped update leaves alone: weights, their average, moments and step."""
        return self.weights() | self.values(("ema.", "optimizer."))

    def restore(self, values=None) -> None:
        """Put values back, by default the first ones. Assigned: compiled graphs with branches miss `set_data`."""
        for name, value in (values or self.start).items():
            ops.assign(self.parameters[name], Tensor(value))


def identical(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def furthest(a, b) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def mixed_images(images, mix):
    """The images one by one, as `data.mixing.mix_numbers` says, and normalised."""
    weight, top, bottom, left, right, _ = mix.astype(np.float64)
    result = []
    for mine, other in zip(images.astype(np.float64), images[::-1].astype(np.float64)):
        image = weight * mine + (1 - weight) * other
        image[int(top) : int(bottom), int(left) : int(right)] = other[int(top) : int(bottom), int(left) : int(right)]
        result.append((image - MEAN) / STD)
    return np.stack(result)


def mixed_targets(labels, mix):
    target = np.eye(CLASSES)[labels]
    return mix[5] * target + (1 - mix[5]) * target[::-1]


def expected_loss(network_values, batch, routed):
    """Loss of a training batch by the NumPy network; no selection that it makes is a near tie."""
    images, labels, noise, mix = batch
    trace = forward(
        network_values, mixed_images(images, mix), noise, depth=2, heads=2, patch=4, routes=ROUTES if routed else [],
        drop_path=DROP_PATH, training=True,
    )  # fmt: skip
    assert all(margin.min() > 1e-6 for margin in trace.margins)
    target = mixed_targets(labels, mix) * (1 - SMOOTHING) + SMOOTHING / CLASSES
    return -(target * log_softmax(trace.logits)).sum(1).mean()


# Two runs serve nearly all tests: one with everything at once (mixing, weight average, dynamic loss scale) and batches
# of 16, and one that gathers the gradients of four batches of 4.


@pytest.fixture(scope="module")
def whole():
    return Run(ema_decay=0.9, loss_scale=1024, window=2)


@pytest.fixture(scope="module")
def in_parts():
    return Run(accumulate=4)


@pytest.fixture(scope="module")
def batches():
    """Twelve batches of 4: three updates."""
    return [make_batch(4, seed) for seed in range(12)]


def joined(batches):
    return *(np.concatenate([batch[part] for batch in batches]) for part in range(3)), UNMIXED


@pytest.fixture(scope="module")
def trained(whole, batches):
    """Two dense steps, then two routed ones, on one network and one optimizer; what was seen on the way."""
    whole.restore()
    batch = joined(batches[:4])
    reports, values = [], [whole.values()]
    for routed in (DENSE, DENSE, ROUTED, ROUTED):
        reports.append(whole.step(batch, routed))
        values.append(whole.values())
    return batch, reports, values


@pytest.mark.parametrize("routed", [DENSE, ROUTED])
def test_loss_is_smoothed_cross_entropy(trained, routed):
    batch, reports, values = trained
    step = 2 if routed else 0
    assert np.isclose(reports[step]["loss"], expected_loss(values[step], batch, routed), rtol=1e-5)


def test_first_update_has_the_clipped_norm(trained):
    """After one step the first moment is 0.1 = 1 - beta1 times the clipped gradient."""
    _, reports, values = trained
    assert reports[0]["gradient_norm"] > CLIP  # else the test shows nothing
    moments = [v for k, v in values[1].items() if k.startswith("optimizer.moment1")]
    length = np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in moments))
    assert np.isclose(length, 0.1 * CLIP, rtol=1e-4)


def test_steps_report_the_scheduled_rate_across_the_phase_switch(trained):
    assert np.allclose([report["lr"] for report in trained[1]], RATES[:4])


def test_phase_switch_keeps_optimizer_state(trained):
    before, after = trained[2][2], trained[2][4]
    assert int(before["optimizer.step"]) == 2 and int(after["optimizer.step"]) == 4
    for name, value in before.items():
        if name.startswith("optimizer.moment2"):
            # v4 = b2^2 v2 + something non-negative: the routed steps went on from the dense steps' moments.
            assert (after[name] >= value * 0.999**2 * (1 - 1e-5)).all(), name


def test_training_lowers_the_loss(trained):
    reports = trained[1]
    assert reports[1]["loss"] < reports[0]["loss"] and reports[3]["loss"] < reports[2]["loss"]


@pytest.mark.parametrize("routed", [DENSE, ROUTED])
def test_four_batches_of_4_update_as_one_of_16(whole, in_parts, batches, routed):
    whole.restore()
    in_parts.restore()
    for update in range(3):
        large = whole.step(joined(batches[4 * update : 4 * update + 4]), routed)
        small = [in_parts.step(batch, routed) for batch in batches[4 * update : 4 * update + 4]]
        assert np.isclose(np.mean([report["loss"] for report in small]), large["loss"], rtol=1e-4)
        assert np.isclose(small[-1]["gradient_norm"], large["gradient_norm"], rtol=1e-4)
        assert small[-1]["lr"] == large["lr"]
    assert furthest(whole.weights(), in_parts.weights()) < 1e-5
    start = {name: whole.start[name] for name in whole.weights()}
    assert furthest(whole.weights(), start) > 1e-2  # they went somewhere
    assert int(in_parts.values()["optimizer.step"]) == 3
    assert np.isclose(in_parts.state.mean_loss(), whole.state.mean_loss(), rtol=1e-4)


@pytest.mark.parametrize("routed", [DENSE, ROUTED])
def test_midway_the_weights_wait_and_the_buffers_hold_the_sum(whole, in_parts, batches, routed):
    """A batch of 16 that holds two batches of 4 twice has half the sum of their gradients."""
    whole.restore()
    in_parts.restore()
    a, b = batches[:2]
    for batch in (a, b):
        in_parts.step(batch, routed)
    report = whole.step(joined([a, b, a, b]), routed)
    values, moments = in_parts.values(), whole.values(("optimizer.moment1.",))
    assert identical(in_parts.learnt(), {name: in_parts.start[name] for name in in_parts.learnt()})
    assert int(values["trainer.gathered"]) == 2
    clip = min(1, CLIP / report["gradient_norm"])
    for name in in_parts.weights():
        total = moments[f"optimizer.moment1.{name}"] / 0.1 / clip * 2
        assert np.allclose(values[f"gradients.{name}"], total, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("routed", [DENSE, ROUTED])
def test_one_bad_batch_of_four_skips_the_update_and_nothing_else(in_parts, batches, routed):
    in_parts.restore()
    for batch in batches[:8]:
        in_parts.step(batch, routed)
    expected, losses = in_parts.learnt(), in_parts.values(("trainer.loss",))
    in_parts.restore()
    for batch in batches[:4]:
        in_parts.step(batch, routed)
    before = in_parts.learnt()
    reports = [in_parts.step(batch, routed) for batch in (batches[8], spoilt(batches[9]), *batches[10:])]
    assert identical(in_parts.learnt(), before)
    assert [report["overflows"] for report in reports] == [0, 0, 0, 1]
    assert [np.isfinite(report["loss"]) for report in reports] == [True, False, True, True]
    assert reports[-1]["loss_scale"] == 1  # that of float32
    assert not any(value.any() for value in in_parts.values(("gradients.", "trainer.gathered")).values())
    reports = [in_parts.step(batch, routed) for batch in batches[4:8]]
    assert identical(in_parts.learnt(), expected)
    assert [report["overflows_in_a_row"] for report in reports] == [1, 1, 1, 0] and reports[-1]["overflows"] == 1
    values = in_parts.values()
    assert values["trainer.losses"] == losses["trainer.losses"] + 3 / 4  # finite ones of the skipped update count


def test_overflows_of_two_forwards_are_counted_together(whole, batches):
    """Dense and routed steps share weights, scale and counters."""
    whole.restore()
    good, bad = joined(batches[:4]), spoilt(joined(batches[4:8]))
    whole.step(good, DENSE)
    before = whole.learnt()
    reports = [whole.step(bad, DENSE), whole.step(bad, ROUTED)]
    assert identical(whole.learnt(), before)
    assert [(r["overflows"], r["overflows_in_a_row"], r["loss_scale"]) for r in reports] == [(1, 1, 512), (2, 2, 256)]
    report = whole.step(good, DENSE)
    assert (report["overflows"], report["overflows_in_a_row"], report["loss_scale"]) == (2, 0, 256)
    assert np.isclose(report["lr"], RATES[1]) and not identical(whole.learnt(), before)


def mixed_batches():
    """One of each kind."""
    return [(*make_batch(16, seed)[:3], mix) for seed, mix in enumerate(MIXES.values())]


def test_loss_of_mixed_images_and_targets(whole):
    whole.restore()
    for batch in mixed_batches():
        values = whole.values()
        assert np.isclose(whole.step(batch, ROUTED)["loss"], expected_loss(values, batch, ROUTED), rtol=1e-5)


def test_overflow_is_skipped_and_the_scale_follows(whole):
    """The scale doubles after two good updates in a row, and an overflow halves it."""
    batches = mixed_batches()
    whole.restore()
    for batch in batches:
        whole.step(batch, ROUTED)
    expected = whole.learnt()
    whole.restore()
    reports = [whole.step(batch, ROUTED) for batch in batches[:3]]
    before = whole.learnt()
    reports += [whole.step(spoilt(batch), ROUTED) for batch in batches[:2]]
    assert identical(whole.learnt(), before)
    reports.append(whole.step(batches[3], ROUTED))
    # The scales are powers of two: they change no digit.
    assert furthest(whole.learnt(), expected) < 1e-7
    reports.append(whole.step(batches[0], ROUTED))
    assert [r["loss_scale"] for r in reports] == [1024, 2048, 2048, 1024, 512, 512, 1024]
    assert [r["overflows"] for r in reports] == [0, 0, 0, 1, 2, 2, 2]
    assert [r["overflows_in_a_row"] for r in reports] == [0, 0, 0, 1, 2, 0, 0]
    assert np.allclose([r["lr"] for r in reports], RATES[[0, 1, 2, 2, 2, 3, 4]])


def test_gradients_are_clipped_after_unscaling(whole):
    batches = mixed_batches()
    learnt, norms = [], []
    for scale in (1, 1024):
        whole.restore(whole.start | {"trainer.loss_scale": np.float32(scale)})
        norms.append([whole.step(batch, ROUTED)["gradient_norm"] for batch in batches])
        learnt.append(whole.learnt())
    assert min(norms[0]) > CLIP  # else the test shows nothing
    assert np.allclose(*norms, rtol=1e-6)
    assert furthest(*learnt) < 1e-7


def test_evaluation_sees_the_averaged_weights_and_training_goes_on(whole, accuracies):
    """With evaluations in between, the same weights come out to the last bit."""
    batches = mixed_batches()
    whole.restore()
    for batch in batches:
        whole.step(batch, ROUTED)
    expected = whole.learnt()
    whole.restore()
    for batch in batches[:3]:
        whole.step(batch, ROUTED)
    images, labels, noise = eval_batch()
    sums = []
    for prefix in ("", "ema."):
        weights = {name: whole.values()[prefix + name] for name in whole.weights()}
        logits = forward(weights, images, noise, depth=2, heads=2, patch=4, routes=ROUTES).logits
        sums.append(-log_softmax(logits)[np.arange(4), labels].sum())

    def seen():
        step = accuracies[ROUTED].set_train(False)
        return step(Tensor(images), Tensor(labels), Tensor(noise)).asnumpy()[0]

    before = seen()
    with whole.state.averaged():
        inside = seen()
    assert np.allclose([before, inside, seen()], [*sums, sums[0]], rtol=1e-4) and not np.isclose(*sums, rtol=1e-3)
    whole.steps[ROUTED].set_train()
    whole.step(batches[3], ROUTED)
    assert identical(whole.learnt(), expected)


# Mixing


class Mixed(nn.Cell):
    """What a mixer makes of a batch."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.mixer = Mixer(16)

    def construct(self, images, targets, mix):
        return self.mixer.mixed_images(images, mix), self.mixer.targets(targets, mix)


@pytest.fixture(scope="module")
def mixer():
    return Mixed()


@pytest.mark.parametrize("count", [5, 6])
def test_mixer_matches_numpy(mixer, count):
    """An odd batch has an image in the middle that is its own partner."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, count)
    for name, mix in MIXES.items():
        mixed, targets = mixer(Tensor(images), Tensor(np.eye(CLASSES, dtype=np.float32)[labels]), Tensor(mix))
        assert mixed.dtype == targets.dtype == ms.float32
        assert np.allclose(mixed.asnumpy(), mixed_images(images, mix), rtol=1e-5, atol=1e-5), name
        assert np.allclose(targets.asnumpy(), mixed_targets(labels, mix), atol=1e-6), name


def test_unmixed_images_are_those_that_the_network_normalises(mixer):
    """A patch projection that is the identity shows the pixels that a network sees."""
    embed = PatchEmbed(4, 48, True, ms.float32)
    embed.proj.weight.set_data(Tensor(np.eye(48, dtype=np.float32)))
    images = Tensor(np.random.default_rng(4).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8))
    mixed, _ = mixer(images, Tensor(np.zeros((6, CLASSES), np.float32)), Tensor(UNMIXED))
    patches = mixed.asnumpy().reshape(6, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(6, 16, 48)
    assert np.abs(embed(images).asnumpy() - patches).max() < 1e-6


# Evaluation


@pytest.fixture(scope="module")
def accuracies(whole):
    """Evaluation steps of the network, dense and routed."""
    return [Accuracy(Forward(whole.network, program)).set_train(False) for program in PROGRAMS]


def eval_batch():
    return make_batch(4, seed=0, raw=False)[:3]


@pytest.mark.parametrize("routed", [DENSE, ROUTED])
def test_accuracy_counts_as_numpy_does_and_ignores_padding(whole, accuracies, routed):
    whole.restore()
    accuracies[routed].set_train(False)
    images, _, noise = eval_batch()
    logits = forward(whole.weights(), images, noise, depth=2, heads=2, patch=4, routes=ROUTES if routed else []).logits
    order = np.argsort(-logits, axis=1)
    # True classes at known ranks: first, third, seventh; the last image is padding.
    labels = np.array([order[0, 0], order[1, 2], order[2, 6], -1], np.int32)
    sums = accuracies[routed](Tensor(images), Tensor(labels), Tensor(noise)).asnumpy()
    loss = -log_softmax(logits)[np.arange(3), labels[:3]].sum()
    assert np.allclose(sums, [loss, 1, 2, 3], rtol=1e-4)


def test_an_evaluation_leaves_the_network_training(whole):
    """The evaluated forward itself has never trained; the steps that share its network go on with drop path."""

    class Batches(list):
        steps, interrupted = 1, staticmethod(lambda: False)

    step = Accuracy(Forward(whole.network, PROGRAMS[DENSE]))
    whole.network.set_train()
    scores = evaluate(step, Batches([(*eval_batch(), UNMIXED)]))
    assert scores.images == 4
    assert all(cell.training for _, cell in whole.network.cells_and_names())


@pytest.mark.parametrize("weight, bias, loss", [(0, 0, 4 * np.log(CLASSES)), (None, np.nan, np.nan)])
def test_accuracy_gives_nothing_for_equal_logits_and_a_broken_network(whole, accuracies, weight, bias, loss):
    head = {"head.bias": np.full(CLASSES, bias, np.float32)}
    if weight is not None:
        head["head.weight"] = np.full((CLASSES, SPEC.width), weight, np.float32)
    whole.restore(whole.start | head)
    accuracies[DENSE].set_train(False)
    sums = accuracies[DENSE](*(Tensor(part) for part in eval_batch())).asnumpy()
    whole.restore()
    assert np.allclose(sums, [loss, 0, 0, 4], rtol=1e-4, equal_nan=True)


# Graphs


def exported(cell, batch, folder):
    """The compiled graph and its sub-graphs: all nodes, and the shapes of every value (a tuple has several)."""
    ms.export(cell, *(Tensor(part) for part in batch), file_name=str(folder / "graph"), file_format="MINDIR")
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString((folder / "graph.mindir").read_bytes())
    graphs = [model.graph, *model.functions]
    shapes = {value.name: [list(value.dims)] for graph in graphs for value in graph.parameter}
    shapes.update({value.name: [list(t.dims) for t in value.tensor] for graph in graphs for value in graph.input})
    for node in (node for graph in graphs for node in graph.node):
        for attribute in node.attribute:
            if attribute.name == "shape":
                assert node.output[0] not in shapes  # names are of the whole model
                shapes[node.output[0]] = [list(t.dims) for t in attribute.tensors]
    return [list(graph.node) for graph in graphs], shapes


def kind(node):
    return node.op_type.split("::")[-1].split(":")[0]


@pytest.mark.parametrize("formulation", ["gather", "matmul"])
def test_training_graph_is_static_and_reads_only_what_it_needs(formulation, tmp_path):
    """Mixing, forward, backward, accumulation, update, average: every shape is known, none depends on the data."""
    run = Run(ema_decay=0.9, loss_scale=1024, accumulate=4, formulation=formulation)
    graphs, shapes = exported(run.steps[ROUTED], make_batch(4), tmp_path)
    kinds = [{kind(node) for node in graph} for graph in graphs]
    assert {"Softmax", "BatchMatMul"} <= kinds[0]  # forward and backward
    assert "Adam" not in kinds[0] and any("Adam" in below for below in kinds[1:])  # only a finite update is made
    kinds = set.union(*kinds)
    dims = [dim for value in shapes.values() for shape in value for dim in shape]
    # -1 is a length that only the data decides, -2 an unknown rank; a branch that returns no tensor says 0.
    assert dims and all(dim >= 0 for dim in dims)
    assert not kinds & {"NonZero", "MaskedSelect", "Unique", "BooleanMask", "GatherD", "GatherDGradV2"}
    moving = {"TopK", "Gather", "TensorScatterUpdate", "UnsortedSegmentSum", "GatherNd"}
    assert (moving & kinds) if formulation == "gather" else not (moving - {"Gather"} & kinds)


@pytest.mark.parametrize("routed", [DENSE, ROUTED])
def test_macs_formula_equals_the_products_in_the_graph(accuracies, routed, tmp_path):
    """Count the matrix products of the exported forward, node by node."""
    graphs, shapes = exported(accuracies[routed].set_train(False), eval_batch(), tmp_path)
    total = 0
    for node in (node for graph in graphs for node in graph):
        if kind(node) in ("MatMul", "BatchMatMul"):
            (out,) = shapes[node.output[0]]
            left = shapes[node.input[0]][0]
            # One side of each product is an output side; what is left of the first factor is the inner length.
            inner = int(np.prod(left)) // int(np.prod(out[:-1]))
            if inner > 1:  # else it writes out a broadcast, as layer norm does
                total += int(np.prod(out)) * inner
    assert total == 4 * forward_macs(SPEC, PROGRAMS[routed])
