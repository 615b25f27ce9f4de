"""Every method file as a network against a description of that method in NumPy: what it keeps and what comes out.

And program against network: layouts against the shapes that come out, multiply-accumulates against the exported graph's
products. A network of 12 blocks and 16 patches, in training, with random parameters that make attention far from flat.
A graph for each method; but for one method that takes minutes together.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor, nn

from skipvit.config.reading import checked, read_yaml
from skipvit.models.arithmetic import forward_macs
from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program, kept_positions
from skipvit.routing.spec import Route
from support import published
from support.graphs import exported, product_macs
from support.weights import drawn, load

METHODS = Path(__file__).parents[2] / "configs" / "methods"
NAMES = sorted(path.stem for path in METHODS.glob("*.yaml"))
FAST = "evit"
PARAMETERS = [pytest.param(name, marks=() if name == FAST else pytest.mark.slow) for name in NAMES]
FORMULATIONS = ("gather", "matmul")
SPEC = ViTSpec(width=16, depth=12, heads=2, patch=4, image_size=16, num_classes=7)
BATCH, PATCHES, DRAWN = 3, 16, 2 * SPEC.depth  # from column DRAWN on the noise belongs to routes
SPAN = {"drop": 4, "back": 11, "count": 7}  # 45 % of 16


def described(name, net, x, noise):
    """The method by hand."""
    draws = [noise[first : first + PATCHES] for first in range(DRAWN, len(noise), PATCHES)]
    coin = noise[DRAWN + PATCHES]
    methods = {
        "dense": lambda: published.dense(net, x),
        "efficienttrain": lambda: published.dense(net, x),
        "skipvit": lambda: published.skipvit(net, x, **SPAN),
        "skipvit_fast": lambda: published.sampled(
            net, x, 4, 11, count=2, draws=draws[0], temperature=1.0
        ),  # 15 % of 16
        "inverse": lambda: published.inverse(net, x, **SPAN),
        "random": lambda: published.at_random(net, x, **SPAN, draws=draws[0]),
        "grid": lambda: published.evenly(net, x, **SPAN),
        "sampled": lambda: published.sampled(net, x, **SPAN, draws=draws[0], temperature=1.0),
        "mixed": lambda: published.mixed(net, x, **SPAN, draws=draws[0], coin=coin, share=0.5),
        "topk_pruning": lambda: published.topk_pruning(net, x, drop=4, count=7),
        "evit": lambda: published.evit(net, x, sites=[3, 6, 9], counts=[11, 8, 6]),  # 70 % each time
        "patchdropout": lambda: published.patchdropout(net, x, count=8, draws=draws[0]),
        "pss": lambda: published.patchdropout(net, x, count=8, draws=draws[0]),
        "tread": lambda: published.at_random(net, x, drop=2, back=9, count=8, draws=draws[0]),  # 2 to 8, both included
        "random_ltd": lambda: published.random_ltd(net, x, first=1, end=11, count=8, draws=draws),
        "idlevit": lambda: published.idlevit(net, x, first=4, count=8),
        "token_dropping": lambda: published.token_dropping(net, x, middle=6, count=8),
    }
    return methods[name]()


def values():
    """Random weights, those that write to the residual stream smaller, so that it stays of one size over 12 blocks."""
    return {
        name: value / 4 if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else value
        for name, value in drawn(SPEC.shapes(), 3).items()
    }


class Both(nn.Cell):
    """What a method's forwards make, in both formulations."""

    def __init__(self, network, program):
        super().__init__(auto_prefix=False)
        forwards = [Forward(network, program, formulation, program.makes) for formulation in FORMULATIONS]
        self.forwards = nn.CellList(forwards)

    def construct(self, images, noise):
        return self.forwards[0](images, noise), self.forwards[1](images, noise)


class Method:
    """A method compiled, and run."""

    def __init__(self, name):
        routes = [Route(**route) for route in yaml.safe_load((METHODS / f"{name}.yaml").read_text())["routes"]]
        self.program = compile_program(SPEC, routes, name)
        self.network = SPEC.network(fused_kernels=True)  # as on Ascend: the others compute norms by products
        load(self.network, values())
        rng = np.random.default_rng(1)
        self.images = rng.normal(size=(BATCH, 16, 16, 3)).astype(np.float32)
        self.noise = rng.random((BATCH, DRAWN + 10 * PATCHES), np.float32)  # each reads its first columns
        self.cell = Both(self.network, self.program).set_train()
        self.seen = {
            formulation: {name: array.asnumpy() for name, array in zip(self.program.makes, made)}
            for formulation, made in zip(FORMULATIONS, self.cell(Tensor(self.images), Tensor(self.noise)))
        }


@pytest.fixture(scope="module")
def method():
    """method(name): compiled on first use."""
    made = {}

    def get(name):
        if name not in made:
            made.clear()  # the tests of one method follow each other
            made[name] = Method(name)
        return made[name]

    return get


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_method_file_is_the_method(method, name):
    """Values against the description, both formulations against each other, shapes and products against the program."""
    compiled = method(name)
    check_values(name, compiled)
    gather, matmul = compiled.seen.values()
    for value in gather:
        assert np.array_equal(gather[value], matmul[value]), value
    for seen in compiled.seen.values():
        assert {name: array.shape for name, array in seen.items()} == shapes(compiled.program)
    for formulation in FORMULATIONS:
        forward = Forward(compiled.network, compiled.program, formulation).set_train()
        counted = product_macs(exported(forward, compiled.images[:1], compiled.noise[:1]))
        assert counted == pytest.approx(forward_macs(SPEC, compiled.program, formulation), rel=0.005), formulation


def check_values(name, compiled):
    net, seen = published.Net(values(), SPEC.depth, SPEC.heads, SPEC.patch), compiled.seen["gather"]
    kept = [kept_positions(seen[f"routes.{step.route}.slots"], step.after) for step in compiled.program.selections]
    for b in range(BATCH):
        tokens, chosen = described(name, net, net.tokens(compiled.images[b]), compiled.noise[b].astype(float))
        assert [list(k[b]) for k in kept] == [list(k) for k in chosen]
        np.testing.assert_allclose(seen["blocks.11"][b], tokens, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(seen["logits"][b], net.logits(tokens), rtol=2e-5, atol=2e-5)


def shapes(program, spec=SPEC, batch=BATCH):
    """Of every value that a program says it makes, by its layouts."""
    result, of_image = {}, program.steps[0].after.patches
    for step in program.steps:
        for name in step.makes:
            if step.kind in ("embed", "feed", "norm"):
                result[name] = (batch, step.after.prefix + step.after.patches + step.after.suffix, spec.width)
            elif step.kind in ("attend", "score"):
                result[name] = (batch, step.before.patches)
            else:
                result[name] = (batch, of_image if step.kind == "select" else spec.num_classes)
    return result


MODEL = {"name": "vit_tiny_patch16_224", "width": 16, "depth": 6, "heads": 2, "patch": 32, "num_classes": 7}


def configuration(name):
    """A method on a network that takes images of 96, 160, 192 and 224 pixels."""
    values = {"model": MODEL | {"image_size": 224}, "data": {"kind": "image_folder", "path": "."}}
    return checked(values | {"optim": {"epochs": 100}} | read_yaml(METHODS / f"{name}.yaml"), name)


KNOWN = ("dense", "routed")  # the forwards that are compared above
FORWARDS = [(name, forward) for name in NAMES for forward in configuration(name).forwards() if forward not in KNOWN]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "forward"), FORWARDS)
def test_the_forwards_of_other_phases_are_their_programs(name, forward):
    """Shapes of all values, and products, in both formulations; whatever the phase's routes and image size."""
    config = configuration(name)
    spec, program, size = config.model.spec(), config.program(forward), config.forwards()[forward].image_size
    network, rng = spec.network(fused_kernels=True), np.random.default_rng(0)
    resized = 49 * spec.layout(size).patches * spec.width if size < 224 else 0  # the position embedding, once a batch
    images = rng.normal(size=(1, size, size, 3)).astype(np.float32)
    noise = rng.random((1, config.noise_width()), np.float32)
    for formulation in FORMULATIONS:
        cell = Forward(network, program, formulation, program.makes).set_train()
        made = {name: array.shape for name, array in zip(program.makes, cell(Tensor(images), Tensor(noise)))}
        assert made == shapes(program, spec, 1)
        counted = product_macs(exported(Forward(network, program, formulation).set_train(), images, noise))
        assert counted - resized == pytest.approx(forward_macs(spec, program, formulation), rel=0.005), formulation


def test_the_mixed_batch_is_mixed():
    """So that the comparison above sees both of its rules."""
    coins = np.random.default_rng(1)
    coins.normal(size=(BATCH, 16, 16, 3))
    coins = coins.random((BATCH, DRAWN + 10 * PATCHES), np.float32)[:, DRAWN + PATCHES]
    assert (coins < 0.5).any() and (coins >= 0.5).any()


# ---------------------------------------------------------------------------------------------------------------------
# Gradients of the kinds of route; `random` ones, gone or back, are among those of test_forward.py
# ---------------------------------------------------------------------------------------------------------------------


class Slopes(nn.Cell):
    """Gradients of a weighted sum of logits and last tokens by the network's parameters, for each formulation."""

    def __init__(self, network, program, weights):
        super().__init__(auto_prefix=False)
        outputs = ("logits", f"blocks.{SPEC.depth - 1}")
        self.forwards = [Forward(network, program, formulation, outputs).set_train() for formulation in FORMULATIONS]
        self.logits, self.tokens = Tensor(weights[0]), Tensor(weights[1])
        self.parameters = ms.ParameterTuple(network.trainable_params())

    def gather(self, images, noise):
        seen = self.forwards[0](images, noise)
        return (seen[0] * self.logits).sum() + (seen[1] * self.tokens).sum()

    def matmul(self, images, noise):
        seen = self.forwards[1](images, noise)
        return (seen[0] * self.logits).sum() + (seen[1] * self.tokens).sum()

    def construct(self, images, noise):
        return (
            ms.grad(self.gather, None, self.parameters)(images, noise),
            ms.grad(self.matmul, None, self.parameters)(images, noise),
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skipvit", "evit", "idlevit"])
def test_gradients_of_both_formulations_are_bit_identical(method, name):
    compiled, rng = method(name), np.random.default_rng(2)
    weights = [
        rng.normal(size=compiled.seen["gather"][value].shape).astype(np.float32) for value in ("logits", "blocks.11")
    ]
    slopes = Slopes(compiled.network, compiled.program, weights)(Tensor(compiled.images), Tensor(compiled.noise))
    gather, matmul = ([gradient.asnumpy() for gradient in each] for each in slopes)
    assert any(gradient.any() for gradient in gather)
    for a, b in zip(gather, matmul):
        assert np.array_equal(a, b)


def test_every_method_file_is_described():
    for name in NAMES:
        net = published.Net(values(), SPEC.depth, SPEC.heads, SPEC.patch)
        draws = np.random.default_rng(0).random(DRAWN + 10 * PATCHES)
        assert described(name, net, net.tokens(np.zeros((16, 16, 3))), draws) is not None
