"""Method files: every shipped one is read, scaled to other depths as the rule says, and a wrong one is refused in one line."""

from pathlib import Path

import pytest
import yaml

from skipvit.config import config as configuration
from skipvit.lab.methods import for_depth, read_method
from skipvit.routing.routing import Route, resolve
from skipvit.util.errors import UsageError

METHODS = sorted((Path(__file__).parents[2] / "configs" / "methods").glob("*.yaml"))
BASE = {"model": {"size": "tiny", "patch": 4, "image_size": 32, "num_classes": 10}, "optim": {"epochs": 10}}


def spans_of(name, depth):
    """(start, end) of the routes of a shipped method."""
    (path,) = (path for path in METHODS if path.stem == name)
    return [(route["start"], route["end"]) for route in read_method(path, depth)["routes"]]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_at_12_blocks_a_method_is_what_its_file_says(path):
    written = yaml.safe_load(path.read_text())
    assert set(written) <= {"routes", "phases"}
    read = read_method(path, 12)
    assert [Route(**route) for route in read["routes"]] == [Route(**route) for route in written["routes"]]
    assert read.get("phases", {}) == written.get("phases", {})


@pytest.mark.parametrize("depth", [4, 5, 6, 8, 12, 24])
@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_trains_a_network_of_any_depth(path, depth):
    values = BASE | {"model": BASE["model"] | {"depth": depth}} | read_method(path, depth)
    config = configuration.checked(values, path.stem)
    assert len(config.spans()) >= min(1, len(yaml.safe_load(path.read_text())["routes"]))


# Worked out by hand: 0, 1, 11 and 12 stay next to their end, other borders are b x depth / 12, halves up.
SCALED = {
    "skipvit": {6: [(2, 5)], 8: [(3, 7)], 12: [(4, 11)], 24: [(8, 23)]},
    "topk_pruning": {6: [(2, 6)], 8: [(3, 8)]},
    "patchdropout": {6: [(0, 6)], 24: [(0, 24)]},
    "tread": {6: [(1, 4)], 8: [(1, 5)], 24: [(4, 16)]},
    "token_dropping": {6: [(3, 5)], 8: [(4, 7)]},
    "random_ltd": {4: [(1, 2), (2, 3)], 6: [(1, 2), (2, 3), (3, 4), (4, 5)]},
    "idlevit": {6: [(2, 3), (3, 4), (4, 5), (5, 6)], 8: [(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]},
}


@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name, by_depth in SCALED.items() for depth in by_depth])
def test_borders_are_scaled_and_chains_stay_chains(name, depth):
    assert spans_of(name, depth) == SCALED[name][depth]


def test_a_chain_goes_on_only_where_nothing_but_the_block_changes():
    routes = [Route(4, 5, 0.5), Route(5, 6, 0.5), Route(6, 7, 0.4), Route(8, 9, 0.4)]
    scaled = for_depth(routes, 24)
    assert scaled == [*(Route(b, b + 1, 0.5) for b in range(8, 12)), Route(12, 14, 0.4), Route(16, 18, 0.4)]
    assert len(resolve(scaled, 24, 16)) == 6


REFUSED = {
    "another key": ({"routes": [], "optim": {"lr": 1}}, "optim is not a key"),
    "no routes": ({"phases": {}}, "routes is missing"),
    "a key of a route": (
        {"routes": [{"start": 1, "end": 2, "keepratio": 1}]},
        "routes.0.keepratio is not a key; did you mean keep_ratio?",
    ),
    "a phase": (
        {"routes": [], "phases": {"dense_warmup_epochs": "many"}},
        "phases.dense_warmup_epochs: input should be a whole number",
    ),
    "few blocks": (
        {"routes": [{"start": 6, "end": 7}]},
        "its blocks 6 to 6 of 12 vanish in a network of 2; use more blocks",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_method_is_refused_in_one_line(tmp_path, values, message):
    path = tmp_path / "method.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError) as refusal:
        read_method(path, 2)
    assert str(refusal.value).startswith(f"{path}: {message}") and "\n" not in str(refusal.value)
