"""Every method file as a network against a description of that method in NumPy: what it keeps, what comes out, in which order.

All in one graph: a small network of 5 blocks and 16 patches, in training, with random parameters that make attention far from flat.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from test_vit import random_parameters

from skipvit.lab.methods import read_method
from skipvit.models.sizes import Size
from skipvit.models.vit import Activations, ViT
from skipvit.routing.routing import Route
from support import published

METHODS = Path(__file__).parents[2] / "configs" / "methods"
SIZE, BATCH, IMAGE, PATCH, CLASSES = Size(width=16, depth=5, heads=2), 3, 16, 4, 7
NAMES = sorted(path.stem for path in METHODS.glob("*.yaml"))
DRAWN = 2 * SIZE.depth  # the first column of noise that belongs to routes


def described(name, net, x, noise):
    """The method by hand: of 12 blocks and their like in 5, of 196 patches and their like in 16."""
    draws = [noise[first : first + 16] for first in range(DRAWN, len(noise), 16)]
    span = {"drop": 2, "back": 4, "count": 7}  # blocks 4 to 10 of 12; 45 % of 16
    methods = {
        "dense": lambda: published.dense(net, x),
        "skipvit": lambda: published.skipvit(net, x, **span),
        "skipvit_fast": lambda: published.sampled(
            net, x, drop=2, back=4, count=2, draws=draws[0], temperature=1.0
        ),  # 15 % of 16
        "inverse": lambda: published.inverse(net, x, **span),
        "random": lambda: published.at_random(net, x, **span, draws=draws[0]),
        "grid": lambda: published.evenly(net, x, **span),
        "sampled": lambda: published.sampled(net, x, **span, draws=draws[0], temperature=1.0),
        "mixed": lambda: published.mixed(net, x, **span, draws=draws[0], coin=noise[DRAWN + 16], share=0.5),
        "topk_pruning": lambda: published.topk_pruning(net, x, drop=2, count=7),
        "evit": lambda: published.evit(net, x, sites=[1, 3, 4], counts=[11, 8, 6]),  # 3, 6 and 9 of 12; 70 % each time
        "patchdropout": lambda: published.patchdropout(net, x, count=8, draws=draws[0]),
        "tread": lambda: published.at_random(net, x, drop=1, back=3, count=8, draws=draws[0]),  # 2 to 8 of 12
        "random_ltd": lambda: published.random_ltd(net, x, first=1, end=4, count=8, draws=draws),
        "idlevit": lambda: published.idlevit(net, x, first=2, count=8),
        "token_dropping": lambda: published.token_dropping(net, x, middle=3, count=8),
    }
    return methods[name]()


class Together(nn.Cell):
    """For each network [logits, tokens after the last block, kept positions of each route]."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.CellList(networks)
        names = [
            ["logits", f"blocks.{SIZE.depth - 1}", *(f"routes.{r}.kept" for r in range(len(n.spans)))] for n in networks
        ]
        self.activations = nn.CellList([Activations(n, seen) for n, seen in zip(networks, names)])

    def construct(self, images, noise):
        results = ()
        for activations in self.activations:
            results = results + (activations(images, noise),)
        return results


class Slopes(nn.Cell):
    """Gradients of a weighted sum of a network's logits and last tokens by its parameters."""

    def __init__(self, network, activations, weights):
        super().__init__(auto_prefix=False)
        self.activations, self.logits, self.tokens = activations, Tensor(weights[0]), Tensor(weights[1])
        self.parameters = ms.ParameterTuple(network.trainable_params())

    def objective(self, images, noise):
        seen = self.activations(images, noise)
        return (seen[0] * self.logits).sum() + (seen[1] * self.tokens).sum()

    def construct(self, images, noise):
        return ms.grad(self.objective, None, self.parameters)(images, noise)


@pytest.fixture(scope="module")
def compiled():
    """compiled(formulation): the networks in one cell, their inputs, and what came out of each by name."""
    made = {}

    def get(formulation):
        if formulation not in made:
            routes = [
                [Route(**route) for route in read_method(METHODS / f"{name}.yaml", SIZE.depth)["routes"]]
                for name in NAMES
            ]
            networks = [ViT(SIZE, IMAGE, PATCH, CLASSES, each, formulation) for each in routes]
            for network in networks:
                values = random_parameters(network)
                for parameter in network.trainable_params():
                    parameter.set_data(Tensor(values[parameter.name]))
            rng = np.random.default_rng(0)
            images = rng.normal(size=(BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
            noise = rng.random(
                (BATCH, max(n.noise_width for n in networks)), np.float32
            )  # each reads its first columns
            inputs, cell = (images, noise), Together(networks).set_train()
            seen = cell(*(Tensor(array) for array in inputs))
            made[formulation] = (
                cell,
                inputs,
                {name: [a.asnumpy() for a in each] for name, each in zip(NAMES, seen)},
                values,
            )
        return made[formulation]

    return get


def test_every_method_file_is_described():
    assert NAMES == sorted(
        {
            "dense",
            "skipvit",
            "skipvit_fast",
            "inverse",
            "random",
            "grid",
            "sampled",
            "mixed",
            "topk_pruning",
            "evit",
            "patchdropout",
            "tread",
            "random_ltd",
            "idlevit",
            "token_dropping",
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_keeps_and_gives_what_its_description_says(compiled, name):
    _, (images, noise), seen, values = compiled("gather")
    net = published.Net(values, SIZE.depth, SIZE.heads, PATCH)
    logits, tokens, *kept = seen[name]
    for b in range(BATCH):
        expected, chosen = described(name, net, net.tokens(images[b]), noise[b].astype(float))
        assert [list(k[b]) for k in kept] == [list(k) for k in chosen]
        np.testing.assert_allclose(tokens[b], expected, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(logits[b], net.logits(expected), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_the_mixed_batch_is_mixed(compiled):
    """So that the comparison above sees both of its rules."""
    coins = compiled("gather")[1][1][:, DRAWN + 16]
    assert (coins < 0.5).any() and (coins >= 0.5).any()


@pytest.mark.slow
def test_both_formulations_of_every_method_are_bit_identical(compiled):
    for name in NAMES:
        for a, b in zip(compiled("gather")[2][name], compiled("matmul")[2][name]):
            assert np.array_equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skipvit", "evit", "idlevit"])
def test_gradients_of_both_formulations_are_bit_identical(compiled, name):
    """Of the kinds of route; `random` ones, gone or back, are among those of test_vit.py."""
    gradients = []
    for formulation in ("gather", "matmul"):
        cell, inputs, seen, _ = compiled(formulation)
        rng, i = np.random.default_rng(2), NAMES.index(name)
        weights = [rng.normal(size=a.shape).astype(np.float32) for a in seen[name][:2]]
        slopes = Slopes(cell.networks[i], cell.activations[i], weights).set_train()
        gradients.append([g.asnumpy() for g in slopes(*(Tensor(array) for array in inputs))])
    assert any(g.any() for g in gradients[0])
    for a, b in zip(*gradients):
        assert np.array_equal(a, b)
