"""Multiply-accumulates against published figures."""

import pytest

from skipvit.analysis.macs import forward_macs
from skipvit.models.routing import Route, resolve
from skipvit.models.sizes import SIZES

# GMACs at 224, patch 16, 1000 classes: DeiT (arXiv 2012.12877) and timm's published tables, to their digits.
PUBLISHED = {"tiny": (1.26, 0.01), "small": (4.6, 0.05), "base": (17.58, 0.02), "large": (61.6, 0.1)}


@pytest.mark.parametrize("size", SIZES)
def test_dense_forward_has_the_published_macs(size):
    published, digits = PUBLISHED[size]
    assert abs(forward_macs(SIZES[size], 16, 196, 1000) / 1e9 - published) <= digits


# Bypassed blocks -> GMACs of ViT-S/16 with 88 of 196 patches kept: hand arithmetic, 378.38 M a full block, 163.58 M a short one.
@pytest.mark.parametrize(("start", "end", "gmacs"), [(4, 5, 4.384), (4, 7, 3.954), (4, 11, 3.095), (1, 11, 2.451)])
def test_skipvit_macs(start, end, gmacs):
    spans = resolve([Route(start, end, 0.45)], 12, 196)
    assert abs(forward_macs(SIZES["small"], 16, 196, 1000, spans) / 1e9 - gmacs) < 0.001
