"""Multiply-accumulates against published figures."""

import math

import pytest

from skipvit.measure.macs import Sequence, block_parts, forward_macs, sequences
from skipvit.models.sizes import SIZES
from skipvit.routing.routing import Route, resolve

# GMACs at 224, patch 16, 1000 classes: DeiT (arXiv 2012.12877) and timm's published tables, to their digits.
PUBLISHED = {"tiny": (1.26, 0.01), "small": (4.6, 0.05), "base": (17.58, 0.02), "large": (61.6, 0.1)}


@pytest.mark.parametrize("size", SIZES)
def test_dense_forward_has_the_published_macs(size):
    published, digits = PUBLISHED[size]
    assert abs(forward_macs(SIZES[size], 16, 196, 1000) / 1e9 - published) <= digits


# Bypassed blocks -> GMACs of ViT-S/16 with 88 of 196 patches kept: hand arithmetic, 378.38 M a full block, 163.58 M a
# short one.
@pytest.mark.parametrize(("start", "end", "gmacs"), [(4, 5, 4.384), (4, 7, 3.954), (4, 11, 3.095), (1, 11, 2.451)])
def test_skipvit_macs(start, end, gmacs):
    spans = resolve([Route(start, end, 0.45)], 12, 196)
    assert abs(forward_macs(SIZES["small"], 16, 196, 1000, spans) / 1e9 - gmacs) < 0.001


@pytest.mark.parametrize(("keep", "published"), [(0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)])
def test_evits_published_macs(keep, published):
    """EViT-S (arXiv 2202.07800, table 1), counted as it drops: in blocks 4, 7 and 10, between attention and MLP."""
    width, patches, total = 384, 196, 196 * 768 * 384 + 384 * 1000
    for block in range(1, 13):
        attended = 1 + patches
        if block in (4, 7, 10):
            patches = math.ceil(keep * patches) + 1  # the fused one stays
        total += sum(block_parts(Sequence(attended, 1 + patches), width).values())
    assert abs(total / 1e9 - published) < 0.05


@pytest.mark.parametrize(("keep", "published"), [(0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)])
def test_evit_as_routes_has_its_published_macs(keep, published):
    routes = [Route(b, b + 3, keep, restore=False, fuse=True, at="mlp") for b in (3, 6, 9)]
    assert abs(forward_macs(SIZES["small"], 16, 196, 1000, resolve(routes, 12, 196)) / 1e9 - published) < 0.05


def test_sequences_follow_the_routes():
    dense = sequences(6, 16)
    restored = sequences(6, 16, resolve([Route(1, 3, 0.5, fuse=True), Route(4, 5, 0.25)], 6, 16))
    pruned = sequences(
        6, 16, resolve([Route(1, 2, 0.5, restore=False, fuse=True), Route(3, 6, 0.5, restore=False)], 6, 16)
    )
    parted = sequences(6, 16, resolve([Route(1, 3, 0.5, at="mlp"), Route(4, 6, 0.25, restore=False, at="mlp")], 6, 16))
    assert dense == (Sequence(17, 17),) * 6
    assert restored == tuple(Sequence(n, n) for n in (17, 10, 10, 17, 5, 17))  # [CLS], 8 kept, a fused one; 4 kept
    assert pruned == tuple(Sequence(n, n) for n in (17, 10, 10, 6, 6, 6))  # the fused one stays
    assert parted == tuple(Sequence(*n) for n in ((17, 17), (17, 9), (9, 9), (17, 17), (17, 5), (5, 5)))
