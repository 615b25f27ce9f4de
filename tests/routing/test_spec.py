"""Routes of a configuration: which blocks and how many tokens they mean, and what is refused, in one line that names
the key.
"""

import math
import time

import pytest
from pydantic import ValidationError

from skipvit.config.config import Config
from skipvit.config.reading import first_problem
from skipvit.routing.layout import Cells, Layout, Stage
from skipvit.routing.spec import Route, resolve
from support.reference import planned

DEPTH, TOKENS = 6, Layout(1, 16)
STAGE = Stage(DEPTH, 192, TOKENS)


def config(routes):
    model = {"name": "vit_tiny_patch16_224", "depth": DEPTH, "image_size": 64}
    return Config(model=model, data={"kind": "image_folder", "path": "x"}, routes=routes)


def route(start, end=None, /, **keys):
    return {"start": start, "end": end, **keys}


def sampled(temperature):
    return route(1, 3, scorer="sampled_cls_attention", temperature=temperature)


READING = (
    "cls_attention",
    "cls_attention_value",
    "attention_received",
    "change",
    "inverse_cls_attention",
    "sampled_cls_attention",
    "mixed_cls_attention",
)
ABOUT_BORDERS = "input should be a block's number, or a share of the depth such as 1/3"
REFUSED = {
    "start at the depth": ([route(6, 7)], "routes.0.start: block 6 does not exist; the model has blocks 0 to 5"),
    "start beyond the depth": ([route(9, 10)], "routes.0.start: "),
    "start before the front": ([route(-7, 3, scorer="random")], "routes.0.start: block -7 (of 6: -1) does not exist"),
    "end at the start": ([route(3, 3)], "routes.0.end: 3 is outside 4 to 6 (start + 1 to the depth)"),
    "end before the start": ([route(3, 2)], "routes.0.end: "),
    "negative end before the start": ([route(3, -3)], "routes.0.end: -3 (of 6: 3) is outside 4 to 6"),
    "share before the start": ([route("1/2", "1/3")], "routes.0.end: 1/3 (of 6: 2) is outside 4 to 6"),
    "end beyond the depth": ([route(3, 7, restore=False)], "routes.0.end: "),
    "restored after the last block": ([route(3, 6)], "routes.0.end: a token restored after the last block"),
    "no start": ([{"end": 4}], "routes.0.start is missing"),
    "overlap": ([route(1, 4), route(3, 5)], "routes.1.start: block 3 overlaps the route before it; start at 4"),
    "overlap of the third": ([route(1, 2), route(2, 4), route(3, 5)], "routes.2.start: "),
    "overlap of each": ([route(1, 4, each=True), route(3, 5)], "routes.1.start: "),
    "the same route twice": ([route(1, 3), route(1, 3)], "routes.1.start: "),
    "one inside another": ([route(1, 5), route(2, 3)], "routes.1.start: "),
    "wrong order": ([route(3, 4), route(1, 2)], "routes.1.start: "),
    "overlap where nothing returns": ([route(1), route(4)], "routes.1.start: "),
    **{f"{name} at block 0": ([route(0, 3, scorer=name)], "routes.0.scorer: ") for name in READING},
    "unknown scorer": ([route(1, 3, scorer="randon")], "routes.0.scorer: 'randon' is not one of cls_attention, "),
    "unknown scorer of the second": ([route(1, 3), route(3, 4, scorer="magic")], "routes.1.scorer: "),
    "no such place in a block": ([route(1, 3, at="attention")], "routes.0.at: input should be 'block' or 'mlp'"),
    "no attention to the rest alone": ([route(1, 2, at="mlp", restore=False), route(2, 3)], "routes.1.at: "),
    "temperature below zero": (
        [sampled(-0.1)], "routes.0.temperature: -0.1 is outside 0 to 1000",
    ),
    "temperature without end": ([sampled(math.inf)], "routes.0.temperature: "),
    "temperature that is no number": ([sampled(True)], "routes.0.temperature: "),
    "temperature of another scorer": (
        [route(1, 3, temperature=1.0)],
        "routes.0.temperature: cls_attention has none; it belongs to sampled_cls_attention",
    ),
    "random share above one": (
        [route(1, 3, scorer="mixed_cls_attention", random_share=1.1)], "routes.0.random_share: ",
    ),
    "random share of another scorer": ([route(1, 3, scorer="random", random_share=0.5)], "routes.0.random_share: "),
    "unknown key": ([route(1, 3, keepratio=0.5)], "routes.0.keepratio is not a key; did you mean keep_ratio?"),
    "almost its scorer's own key": (
        [route(1, 3, scorer="sampled_cls_attention", temparature=1)],
        "routes.0.temparature is not a key; did you mean temperature?",
    ),
    "keep nothing": ([route(1, 3, keep_ratio=0.0)], "routes.0.keep_ratio: 0.0 is outside (0, 1]"),
    "keep less than nothing": ([route(1, 3, keep_ratio=-0.5)], "routes.0.keep_ratio: "),
    "keep more than all": ([route(1, 3, keep_ratio=1.01)], "routes.0.keep_ratio: "),
    "keep percent": ([route(1, 3, keep_ratio=45)], "routes.0.keep_ratio: 45.0 is outside (0, 1]; 0.45 keeps 45 %"),
    "keep nan": ([route(1, 3, keep_ratio=math.nan)], "routes.0.keep_ratio: "),
    "keep infinity": ([route(1, 3, keep_ratio=math.inf)], "routes.0.keep_ratio: "),
    "nothing to fuse": ([route(1, 3, keep_ratio=1.0, fuse=True)], "routes.0.fuse: "),
    "nothing to fuse after rounding": ([route(1, 3, keep_ratio=0.99, fuse=True)], "routes.0.fuse: "),
    "nothing left to fuse": (
        [route(1, 2, keep_ratio=0.01, restore=False), route(2, keep_ratio=0.4, fuse=True)], "routes.1.fuse: ",
    ),
    **{
        f"{border!r} as a border": ([route(border, 5)], f"routes.0.start: {ABOUT_BORDERS}, got ")
        for border in ("4/3", "-1/3", "1/0", "third", 1.5, 0.5, True, [1], "1e-99999999", "1/" + 5000 * "3", 5000 * "1")
    },
}  # fmt: skip


@pytest.mark.parametrize("routes, message", REFUSED.values(), ids=REFUSED.keys())
def test_a_route_that_cannot_run_is_refused_in_one_line(routes, message):
    begun = time.perf_counter()
    with pytest.raises(ValidationError) as refusal:
        config(routes)
    line = first_problem(refusal.value)
    assert line.startswith(message)
    assert "\n" not in line and len(line) < 300
    assert time.perf_counter() - begun < 1


def test_a_network_without_cls_has_scorers_that_do_not_read_it():
    without = Stage(DEPTH, 192, Layout(0, 16))
    with pytest.raises(
        ValueError,
        match=r"^routes\.0\.scorer: cls_attention reads the attention of \[CLS\].*; use attention_received, magni",
    ):
        resolve([Route(start=1, end=3)], without)
    resolve([Route(start=1, end=3, scorer="random"), Route(start=3, end=4, scorer="grid")], without)


# Of 6 blocks; shares are rounded half up, to a block inside.
BORDERS = {
    "numbers": (1, 5, [(1, 5)]),
    "from the first block": (0, 5, [(0, 5)]),
    "from the end": (-3, -1, [(3, 5)]),
    "for good": (2, None, [(2, 6)]),
    "thirds": ("1/3", "2/3", [(2, 4)]),
    "quarters, half up": ("1/4", "3/4", [(2, 5)]),
    "a decimal share": ("0.25", "0.75", [(2, 5)]),
    "as written with spaces": (" 1/3 ", "2/3", [(2, 4)]),
    "hardly anything, hardly less than all": ("1/100", "99/100", [(1, 5)]),
    "a share that is a number": ("4/2", -1, [(2, 5)]),
}


@pytest.mark.parametrize("start, end, expected", BORDERS.values(), ids=BORDERS.keys())
def test_borders(start, end, expected):
    found = resolve([Route(start=start, end=end, scorer="random")], STAGE)
    assert [(span.start, span.end) for span in found] == expected


@pytest.mark.parametrize("depth", range(2, 25))
def test_shares_of_any_depth_are_those_of_the_reference(depth):
    routes = [Route(start=f"{i}/{n}", scorer="random") for n in range(2, 13) for i in range(1, n)]
    for each in routes:
        (span,), (plan,) = resolve([each], Stage(depth, 192, TOKENS)), planned([each], depth)
        assert (span.start, span.end) == (plan.start, plan.end), each.start


def test_each_block_of_a_span_is_a_route_of_its_own():
    back = resolve([Route(start=2, end=-1, keep_ratio=0.5, scorer="grid", fuse=True, each=True)], STAGE)
    assert [(s.start, s.end, s.kept, s.restore, s.fuse) for s in back] == [(b, b + 1, 8, True, True) for b in (2, 3, 4)]
    gone = resolve([Route(start=3, keep_ratio=0.5, scorer="random", each=True)], STAGE)
    assert [(s.start, s.end, s.kept, s.restore) for s in gone] == [(3, 4, 8, False), (4, 5, 4, False), (5, 6, 2, False)]


ACCEPTED = {
    "none": [],
    "keeps all": [route(1, 5, keep_ratio=1.0)],
    "to the last block for good": [route(1, 6, restore=False)],
    "random from block 0": [route(0, 5, scorer="random")],
    "grid from block 0": [route(0, 5, scorer="grid")],
    "cls_attention within block 0": [route(0, 3, at="mlp")],
    "at the MLP, back, then before the next block": [route(1, 2, at="mlp"), route(2, 3)],
    "at the MLP for good, then at the next": [route(1, 2, at="mlp", restore=False), route(2, 3, at="mlp")],
    "at the MLP for good, then at random": [route(1, 2, at="mlp", restore=False), route(2, 3, scorer="random")],
    "two blocks from the MLP on for good": [route(1, 3, at="mlp", restore=False), route(3, 4)],
    "one after the other": [route(1, 2), route(2, 3), route(3, 4)],
    "with a gap": [route(1, 2), route(4, 5)],
    "a parameter at its limits": [sampled(0)],
    "a parameter that is not set": [route(1, 3, temperature=None)],
}


@pytest.mark.parametrize("routes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_route_that_can_run_is_not_refused(routes):
    spans = resolve(config(routes).routes, STAGE)
    assert [(span.start, span.end) for span in spans] == [(r["start"], r["end"]) for r in routes]


@pytest.mark.parametrize(
    "keep_ratio, patches, kept",
    [
        (0.45, 196, 88), (0.7, 196, 137), (0.5, 196, 98), (0.3, 196, 59), (1.0, 196, 196), (0.001, 196, 1),
        (0.45, 16, 7), (0.45, 64, 29), (0.5, 1, 1), (1e-9, 4, 1), (0.999, 1024, 1023),
    ],
)  # fmt: skip
def test_kept_tokens_are_the_rounded_share_and_at_least_one(keep_ratio, patches, kept):
    assert resolve([Route(start=1, end=2, keep_ratio=keep_ratio)], Stage(4, 192, Layout(1, patches)))[0].kept == kept


def test_a_returning_route_leaves_all_tokens_to_the_next_and_one_for_good_what_it_kept():
    spans = [Route(start=1, end=2, keep_ratio=0.5, fuse=True), Route(start=2, end=3, keep_ratio=0.25)]
    assert [span.kept for span in resolve(spans, STAGE)] == [8, 4]
    gone = {"restore": False, "fuse": True, "keep_ratio": 0.7}
    spans = [Route(start=3, end=6, **gone), Route(start=6, end=9, **gone), Route(start=9, end=12, **gone)]
    assert [span.kept for span in resolve(spans, Stage(12, 192, Layout(1, 196)))] == [137, 96, 67]


# Windows of 7, shifted by 3, cut 14 x 14 tokens into 16 cells of 9, 12, 12 and 16.
SWIN = Stage(18, 384, Layout(0, 196), Cells((9, 12, 12, 16) * 4, window=4), keeps_grid=True, name="stage 3")


@pytest.mark.parametrize(
    "keep_ratio, counts",
    [(0.45, (4, 5, 6, 7)), (0.5, (4, 6, 6, 8)), (1.0, (9, 12, 12, 16)), (0.001, (0, 0, 0, 1)), (0.3, (3, 3, 4, 5))],
)
def test_every_window_keeps_the_same_number_of_tokens_shared_by_its_cells(keep_ratio, counts):
    (span,) = resolve([Route(start=2, end=16, keep_ratio=keep_ratio, scorer="random")], SWIN)
    assert span.counts == counts * 4 and span.kept == 4 * max(1, round(keep_ratio * 49))


def test_cells_of_several_patches_stay_or_go_as_one():
    stage = Stage(18, 320, Layout(0, 196), Cells((196,), unit=4), keeps_grid=True)
    (span,) = resolve([Route(start=1, end=17, scorer="random")], stage)
    assert span.counts == (88,)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"end": None}, "routes.0: with end: null tokens do not return, and this network needs the whole grid after"),
        ({"restore": False}, "routes.0: with restore: false tokens do not return"),
        ({"fuse": True}, "routes.0.fuse: the tokens of stage 3 have places, and there is none for a fused one"),
        ({"end": 19}, "routes.0.end: 19 is outside 3 to 18"),
        ({"start": 18}, "routes.0.start: block 18 does not exist; stage 3 has blocks 0 to 17"),
        (
            {"scorer": "cls_attention"},
            "routes.0.scorer: cls_attention reads the attention of [CLS], which this network",
        ),
    ],
)
def test_what_a_stage_of_a_grid_cannot_do_is_refused_in_one_line(keys, message):
    route = Route(**({"start": 2, "end": 16, "scorer": "random"} | keys))
    with pytest.raises(ValueError) as refusal:
        resolve([route], SWIN)
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_in_a_stage_of_a_grid_tokens_may_return_at_its_end():
    (span,) = resolve([Route(start=2, end=18, scorer="random")], SWIN)
    assert (span.start, span.end, span.restore) == (2, 18, True)
