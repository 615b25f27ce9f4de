"""Multiply-accumulates against published figures."""

import math

import pytest

from skipvit.models.arithmetic import blocks_of, forward_macs, training_macs
from skipvit.models.registry import model_spec
from skipvit.routing.layout import Layout
from skipvit.routing.program import Attend, Feed, compile_program
from skipvit.routing.spec import Route

SMALL = model_spec("vit_small_patch16_224")
# GMACs at 224, patch 16, 1000 classes: DeiT (arXiv 2012.12877) and timm's published tables, to their digits.
PUBLISHED = {"tiny": (1.26, 0.01), "small": (4.6, 0.05), "base": (17.58, 0.02), "large": (61.6, 0.1)}
# EViT-S (arXiv 2202.07800, table 1): GMACs by keep rate.
EVIT = [(0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)]


def macs(spec, *routes):
    return forward_macs(spec, compile_program(spec, [Route(**route) for route in routes]))


@pytest.mark.parametrize("size", PUBLISHED)
def test_dense_forward_has_the_published_macs(size):
    published, digits = PUBLISHED[size]
    assert abs(macs(model_spec(f"vit_{size}_patch16_224")) / 1e9 - published) <= digits


# Bypassed blocks -> GMACs of ViT-S/16 with 88 of 196 patches kept; by hand 378.38 M a full block, 163.58 M a short one.
@pytest.mark.parametrize(("start", "end", "gmacs"), [(4, 5, 4.384), (4, 7, 3.954), (4, 11, 3.095), (1, 11, 2.451)])
def test_skipvit_macs(start, end, gmacs):
    assert abs(macs(SMALL, {"start": start, "end": end, "keep_ratio": 0.45}) / 1e9 - gmacs) < 0.001


@pytest.mark.parametrize(("keep", "published"), EVIT)
def test_evits_published_macs(keep, published):
    """Counted block by block as it drops: in blocks 4, 7 and 10, between attention and MLP."""
    patches, total = 196, 196 * 768 * 384 + 384 * 1000
    for block in range(1, 13):
        attended = Layout(1, patches)
        if block in (4, 7, 10):
            patches = math.ceil(keep * patches) + 1  # the fused one stays
        left = Layout(1, patches)
        total += sum(SMALL.products(Attend(attended, attended)).values()) + sum(
            SMALL.products(Feed(left, left)).values()
        )
    assert abs(total / 1e9 - published) < 0.05


@pytest.mark.parametrize(("keep", "published"), EVIT)
def test_evit_as_routes_has_its_published_macs(keep, published):
    fused = {"keep_ratio": keep, "restore": False, "fuse": True, "at": "mlp"}
    assert abs(macs(SMALL, *({"start": b, "end": b + 3} | fused for b in (3, 6, 9))) / 1e9 - published) < 0.05


def test_training_is_three_forwards_but_for_the_images_gradient():
    dense = compile_program(SMALL)
    assert training_macs(SMALL, dense) == 3 * forward_macs(SMALL, dense) - 196 * 768 * 384


@pytest.mark.parametrize(
    ("routes", "tokens"),
    [
        ([], [(17, 17)] * 6),
        # [CLS], 8 kept, a fused one; 4 kept.
        (
            [{"start": 1, "end": 3, "keep_ratio": 0.5, "fuse": True}, {"start": 4, "end": 5, "keep_ratio": 0.25}],
            [(17, 17), (10, 10), (10, 10), (17, 17), (5, 5), (17, 17)],
        ),
        # The fused one stays.
        (
            [
                {"start": 1, "end": 2, "keep_ratio": 0.5, "restore": False, "fuse": True},
                {"start": 3, "end": 6, "keep_ratio": 0.5, "restore": False},
            ],
            [(17, 17), (10, 10), (10, 10), (6, 6), (6, 6), (6, 6)],
        ),
        (
            [
                {"start": 1, "end": 3, "keep_ratio": 0.5, "at": "mlp"},
                {"start": 4, "end": 6, "keep_ratio": 0.25, "restore": False, "at": "mlp"},
            ],
            [(17, 17), (17, 9), (9, 9), (17, 17), (17, 5), (5, 5)],
        ),
    ],
)
def test_blocks_see_the_tokens_that_the_routes_leave(routes, tokens):
    spec = model_spec("vit_tiny_patch16_224", depth=6, patch=8, image_size=32)
    program = compile_program(spec, [Route(**route) for route in routes])
    assert [(block.attention, block.mlp) for block in blocks_of(spec, program)] == tokens
