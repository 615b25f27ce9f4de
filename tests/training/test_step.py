"""Training and evaluation steps: loss, norm, clipping, shared state, and the graphs they compile to."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.train import mind_ir_pb2

from skipvit.analysis.macs import forward_macs
from skipvit.models.routing import Route
from skipvit.models.sizes import Size
from skipvit.models.vit import ViT
from skipvit.training.optim import AdamW, learning_rates
from skipvit.training.step import EvalStep, SmoothedLoss, TrainStep

SIZE, BATCH, CLASSES, SMOOTHING, CLIP = Size(24, 4, 2), 4, 10, 0.1, 0.05
ROUTES = [Route(1, 3, 0.5), Route(3, 4, 0.5, "random", restore=False, fuse=True)]


def make_network(formulation="gather") -> ViT:
    np.random.seed(0)
    network = ViT(SIZE, 16, 4, CLASSES, ROUTES, formulation, drop_path=0.2)
    rng = np.random.default_rng(1)
    network.head.weight.set_data(Tensor(rng.normal(size=(CLASSES, 24)).astype(np.float32)))
    return network


def make_batch(network: ViT):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8)
    labels = np.array([3, 1, 4, 1], np.int32)
    noise = rng.random((BATCH, network.noise_width)).astype(np.float32)
    return images, labels, noise


def make_step(network: ViT, optimizer: AdamW, routed: bool) -> TrainStep:
    return TrainStep(SmoothedLoss(network, routed, SMOOTHING), optimizer, CLIP).set_train()


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def trained():
    """Dense steps, then routed ones, on one network and one optimizer; what was seen on the way."""
    network = make_network()
    optimizer = AdamW(network.trainable_params(), learning_rates(10, 2, 1e-3, 1e-5), 0.9, 0.999, 1e-8, 0.05)
    batch = make_batch(network)
    tensors = [Tensor(part) for part in batch]
    seen = {"batch": batch, "network": network, "optimizer": optimizer}
    network.set_train()
    seen["logits"] = network(tensors[0], tensors[2], False).asnumpy()
    dense, routed = make_step(network, optimizer, False), make_step(network, optimizer, True)
    seen["dense"] = [tuple(float(x.asnumpy()) for x in dense(*tensors))]
    seen["state after one step"] = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
    seen["dense"] += [tuple(float(x.asnumpy()) for x in dense(*tensors))]
    seen["state before the switch"] = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
    seen["routed"] = [tuple(float(x.asnumpy()) for x in routed(*tensors)) for _ in range(2)]
    seen["state"] = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
    return seen


def test_loss_is_smoothed_cross_entropy(trained):
    images, labels, _ = trained["batch"]
    log_p = log_softmax(trained["logits"])
    target = np.full((BATCH, CLASSES), SMOOTHING / CLASSES)
    target[np.arange(BATCH), labels] += 1 - SMOOTHING
    assert np.isclose(trained["dense"][0][0], -(target * log_p).sum(1).mean(), rtol=1e-5)


def test_first_update_has_the_clipped_norm(trained):
    """After one step the first moment is 0.1 = 1 - beta1 times the clipped gradient."""
    assert trained["dense"][0][1] > CLIP  # else the test shows nothing
    moments = [v for k, v in trained["state after one step"].items() if k.startswith("optimizer.moment1")]
    length = np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in moments))
    assert np.isclose(length, 0.1 * CLIP, rtol=1e-4)


def test_steps_report_the_scheduled_rate_across_the_phase_switch(trained):
    rates = [row[2] for row in trained["dense"] + trained["routed"]]
    assert np.allclose(rates, learning_rates(10, 2, 1e-3, 1e-5)[:4])


def test_phase_switch_keeps_optimizer_state(trained):
    before, after = trained["state before the switch"], trained["state"]
    assert int(before["optimizer.step"]) == 2 and int(after["optimizer.step"]) == 4
    for name, value in before.items():
        if name.startswith("optimizer.moment2"):
            # v4 = b2^2 v2 + something non-negative: the routed steps went on from the dense steps' moments.
            assert (after[name] >= value * 0.999**2 * (1 - 1e-5)).all(), name


def test_training_lowers_the_loss(trained):
    assert trained["routed"][1][0] < trained["routed"][0][0]


@pytest.mark.parametrize("routed", [False, True])
def test_eval_step_counts_as_numpy_does_and_ignores_padding(trained, routed):
    network = trained["network"]
    images, _, noise = trained["batch"]
    network.set_train(False)
    logits = network(Tensor(images), Tensor(noise), routed).asnumpy()
    order = np.argsort(-logits, axis=1)
    # True classes at known ranks: first, third, seventh; the last picture is padding.
    labels = np.array([order[0, 0], order[1, 2], order[2, 6], -1], np.int32)
    sums = EvalStep(network, routed).set_train(False)(Tensor(images), Tensor(labels), Tensor(noise)).asnumpy()
    loss = -log_softmax(logits)[np.arange(3), labels[:3]].sum()
    assert np.allclose(sums, [loss, 1, 2, 3], rtol=1e-4)


def test_eval_step_gives_nothing_for_equal_logits():
    network = make_network()
    network.head.weight.set_data(Tensor(np.zeros((CLASSES, 24), np.float32)))
    images, labels, noise = make_batch(network)
    sums = EvalStep(network, False).set_train(False)(Tensor(images), Tensor(labels), Tensor(noise)).asnumpy()
    assert np.allclose(sums, [BATCH * np.log(CLASSES), 0, 0, BATCH], rtol=1e-4)


def test_eval_step_gives_nothing_for_a_broken_network():
    network = make_network()
    network.head.bias.set_data(Tensor(np.full(CLASSES, np.nan, np.float32)))
    images, labels, noise = make_batch(network)
    sums = EvalStep(network, False).set_train(False)(Tensor(images), Tensor(labels), Tensor(noise)).asnumpy()
    assert np.isnan(sums[0]) and list(sums[1:]) == [0, 0, BATCH]


def exported(cell, network, folder):
    """Nodes of a cell's compiled graph, and the shapes of every value (a tuple has several)."""
    tensors = [Tensor(part) for part in make_batch(network)]
    ms.export(cell, *tensors, file_name=str(folder / "graph"), file_format="MINDIR")
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString((folder / "graph.mindir").read_bytes())
    shapes = {value.name: [list(value.dims)] for value in model.graph.parameter}
    shapes.update({value.name: [list(t.dims) for t in value.tensor] for value in model.graph.input})
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "shape":
                shapes[node.output[0]] = [list(t.dims) for t in attribute.tensors]
    return model.graph.node, shapes


@pytest.mark.parametrize("formulation", ["gather", "matmul"])
def test_training_graph_is_static_and_reads_only_what_it_needs(formulation, tmp_path):
    """Forward, backward and optimizer as exported: every shape is known, nothing has a data-dependent one."""
    network = make_network(formulation)
    optimizer = AdamW(network.trainable_params(), learning_rates(10, 2, 1e-3, 1e-5), 0.9, 0.999, 1e-8, 0.05)
    nodes, shapes = exported(make_step(network, optimizer, True), network, tmp_path)
    kinds = {node.op_type.split("::")[-1].split(":")[0] for node in nodes}
    assert {"Adam", "Softmax", "BatchMatMul"} <= kinds  # forward, backward and update are all in it
    dims = [dim for value in shapes.values() for shape in value for dim in shape]
    assert dims and all(dim > 0 for dim in dims)
    assert not kinds & {"NonZero", "MaskedSelect", "Unique", "BooleanMask", "GatherD", "GatherDGradV2"}
    moving = {"TopK", "Gather", "TensorScatterUpdate", "UnsortedSegmentSum", "GatherNd"}
    assert (moving & kinds) if formulation == "gather" else not (moving - {"Gather"} & kinds)


@pytest.mark.parametrize("routed", [False, True])
def test_macs_formula_equals_the_products_in_the_graph(routed, tmp_path):
    """Count the matrix products of the exported forward, node by node."""
    network = make_network("gather")
    network.set_train(False)
    nodes, shapes = exported(EvalStep(network, routed), network, tmp_path)
    total = 0
    for node in nodes:
        kind = node.op_type.split("::")[-1].split(":")[0]
        if kind in ("MatMul", "BatchMatMul"):
            (out,) = shapes[node.output[0]]
            left = shapes[node.input[0]][0]
            # One side of each product is an output side; what is left of the first factor is the inner length.
            inner = int(np.prod(left)) // int(np.prod(out[:-1]))
            total += int(np.prod(out)) * inner
    spans = network.spans if routed else ()
    fused = sum(1 + span.tokens for span in spans if span.fuse) * SIZE.width  # fused tokens are products too
    assert total == BATCH * (forward_macs(SIZE, 4, 16, CLASSES, spans) + fused)
