"""The network against a second formulation: a textbook ViT of MindSpore's packaged layers, given the same weights."""

import numpy as np
from mindspore import Tensor

from skipvit.measure.plain_vit import PlainViT
from skipvit.models.sizes import Size
from skipvit.models.vit import ViT
from skipvit.weights.convert import to_timm


def test_logits_equal_the_textbook_vits():
    size, rng = Size(24, 2, 3), np.random.default_rng(0)
    network, plain = ViT(size, 16, 4, 7, exact_gelu=True), PlainViT(size, 16, 4, 7)
    for p in network.get_parameters():
        p.set_data(Tensor(rng.normal(0.1, 0.3, p.shape).astype(np.float32)))
    weights = to_timm({p.name: p.asnumpy() for p in network.get_parameters()})
    for p in plain.get_parameters():
        name = p.name.replace("norm.gamma", "norm.weight").replace("norm.beta", "norm.bias")
        for i in (1, 2):
            name = name.replace(f"norm{i}.gamma", f"norm{i}.weight").replace(f"norm{i}.beta", f"norm{i}.bias")
        p.set_data(Tensor(weights.pop(name)))
    assert not weights
    images = Tensor(rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8))
    noise = Tensor(np.zeros((3, network.noise_width), np.float32))
    ours, theirs = network(images, noise, False).asnumpy(), plain(images, noise).asnumpy()
    assert np.abs(theirs).max() > 0.5
    assert np.allclose(ours, theirs, atol=1e-4)
