"""Method files: every shipped one trains a network of any depth, and its borders are where the papers have them."""

from pathlib import Path

import pytest

from skipvit.config.overrides import over
from skipvit.config.reading import checked, read_yaml
from skipvit.routing.program import routed_stage
from skipvit.routing.spec import resolve

METHODS = sorted((Path(__file__).parents[2] / "configs" / "methods").glob("*.yaml"))
MODEL = {"name": "vit_tiny_patch16_224", "num_classes": 1000}
DATA = {"kind": "image_folder", "path": "nowhere"}


def config_of(path, depth):
    """A run of 20 epochs with the method."""
    values = {"model": MODEL | {"depth": depth}, "optim": {"epochs": 20}, "data": DATA}
    return checked(over(values, read_yaml(path), path.stem), path.stem)


@pytest.mark.parametrize("depth", [4, 5, 6, 8, 12, 24])
@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_trains_a_network_of_any_depth(path, depth):
    config = config_of(path, depth)
    phases = config.resolved_phases()
    assert phases[0].first == 0 and phases[-1].end == 20 and config.main() in config.forwards()
    for forward in config.forwards():
        steps = config.program(forward).steps
        assert [step.block for step in steps if step.kind == "feed"] == list(range(depth))


# Worked out by hand: 1/3 of the depth and the like, rounded half up, within the blocks; -1 is the last block.
BORDERS = {
    "skipvit": {6: [(2, 5)], 8: [(3, 7)], 12: [(4, 11)], 24: [(8, 23)]},
    "topk_pruning": {6: [(2, 6)], 8: [(3, 8)]},
    "patchdropout": {6: [(0, 6)], 24: [(0, 24)]},
    "tread": {6: [(1, 5)], 8: [(1, 6)], 12: [(2, 9)], 24: [(4, 18)]},
    "token_dropping": {6: [(3, 5)], 8: [(4, 7)]},
    "random_ltd": {4: [(1, 2), (2, 3)], 6: [(1, 2), (2, 3), (3, 4), (4, 5)]},
    "idlevit": {6: [(2, 3), (3, 4), (4, 5), (5, 6)], 8: [(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]},
}


@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name, by_depth in BORDERS.items() for depth in by_depth])
def test_borders_are_shares_of_the_depth(name, depth):
    (path,) = (path for path in METHODS if path.stem == name)
    config = config_of(path, depth)
    spans = resolve(config.routes, routed_stage(config.model.spec()))
    assert [(span.start, span.end) for span in spans] == BORDERS[name][depth]
