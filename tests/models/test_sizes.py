"""The number of parameters by formula, against networks and published counts."""

import pytest
from mindspore.nn.utils import no_init_parameters

from skipvit.models.sizes import SIZES, Size
from skipvit.models.vit import ViT


@pytest.mark.parametrize("size, image, patch, classes", [(Size(16, 3, 2), 32, 8, 10), (Size(24, 2, 3), 20, 4, 7)])
def test_formula_counts_a_networks_parameters(size, image, patch, classes):
    with no_init_parameters():
        network = ViT(size, image, patch, classes, [])
    assert sum(p.size for p in network.get_parameters()) == size.parameters(patch, (image // patch) ** 2, classes)


@pytest.mark.parametrize("name, millions", [("tiny", 5.7), ("small", 22.1), ("base", 86.6), ("large", 304.3)])
def test_published_counts(name, millions):
    """DeiT (arXiv 2012.12877, table 1; rounded to 5 M, 22 M and 86 M there) and timm's vit_*_patch16_224."""
    assert round(SIZES[name].parameters(16, 196, 1000) / 1e6, 1) == millions
