"""Programs: steps, layouts, names and noise columns of small ones, written out by hand. No network and no MindSpore."""

import subprocess
import sys

import numpy as np
import pytest

from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.layout import Layout
from skipvit.routing.program import Probe, compile_program, kept_positions
from skipvit.routing.spec import Route

SPEC = ViTSpec(width=16, depth=4, heads=2, patch=4, image_size=16, num_classes=5)  # 16 patches
ALL = Layout(1, 16)


def program(*routes, **more):
    return compile_program(SPEC, routes, **more)


def written(found):
    """Each step as kind, number of its block or route, layout behind it."""
    return [
        f"{step.kind}{''.join(str(n) for n in (step.block, step.route) if n >= 0)} "
        f"{step.after.prefix}+{step.after.patches}+{step.after.suffix}"
        for step in found.steps
    ]


def test_dense():
    blocks = [f"{half}{block} 1+16+0" for block in range(4) for half in ("attend", "feed")]
    assert written(program()) == ["embed 1+16+0", *blocks, "norm 1+16+0", "head 1+0+0"]
    assert program().steps[0].before == Layout(0, 16) and program().noise_width == 8
    assert (program().name, program().image_size) == ("dense", 16)


def test_a_bypass_and_its_names():
    found = program(Route(start=1, end=3, keep_ratio=0.5), name="routed")
    assert written(found) == [
        "embed 1+16+0", "attend0 1+16+0", "feed0 1+16+0", "score0 1+16+0", "select0 1+8+0",
        "attend1 1+8+0", "feed1 1+8+0", "attend2 1+8+0", "feed2 1+8+0", "restore0 1+16+0",
        "attend3 1+16+0", "feed3 1+16+0", "norm 1+16+0", "head 1+0+0",
    ]  # fmt: skip
    assert found.makes == (
        "embed", "blocks.0.cls_attention", "blocks.0", "routes.0.ranking", "routes.0.slots",
        "blocks.1.cls_attention", "blocks.1", "blocks.2.cls_attention", "blocks.2",
        "blocks.3.cls_attention", "blocks.3", "norm", "logits",
    )  # fmt: skip
    assert [step.kind for step in found.selections] == ["select"] and found.name == "routed"


def test_evit_at_the_mlp_with_its_fused_tokens():
    gone = {"keep_ratio": 0.5, "fuse": True, "restore": False, "at": "mlp"}
    found = program(Route(start=1, end=2, **gone), Route(start=2, **gone))
    assert written(found) == [
        "embed 1+16+0", "attend0 1+16+0", "feed0 1+16+0",
        "attend1 1+16+0", "score0 1+16+0", "select0 1+8+1", "feed1 1+8+1",
        "attend2 1+8+1", "score1 1+8+1", "select1 1+4+2", "feed2 1+4+2", "attend3 1+4+2", "feed3 1+4+2",
        "norm 1+4+2", "head 1+0+0",
    ]  # fmt: skip


def test_a_fused_token_of_a_bypass_ends_where_the_others_return():
    found = program(Route(start=2, end=3, keep_ratio=0.25, fuse=True))
    assert [line for line in written(found) if line.startswith(("select", "attend2", "restore"))] == [
        "select0 1+4+1", "attend2 1+4+1", "restore0 1+16+0",
    ]  # fmt: skip


def test_another_image_size_and_no_cls():
    assert program(image_size=32).steps[0].after == Layout(1, 64) and program(image_size=32).image_size == 32
    without = ViTSpec(width=16, depth=4, heads=2, patch=4, image_size=16, prefix=0)
    found = compile_program(without, [Route(start=1, end=3, scorer="grid", keep_ratio=0.5)])
    assert found.steps[0].after == Layout(0, 16) and not any("cls_attention" in name for name in found.makes)


def kinds(*routes):
    return [step.kind for step in program(*routes).steps]


RESCORED = {
    "after two blocks": ([Route(start=0, end=2, scorer="grid"), Route(start=2, end=3)], 1),
    "after one block": ([Route(start=0, end=1, scorer="grid"), Route(start=1, end=3)], 1),
    "each of two": ([Route(start=1, end=-1, each=True)], 1),
    "by one that draws lots": ([Route(start=1, end=2), Route(start=2, end=3, scorer="random")], 0),
    "within the block": ([Route(start=1, end=2), Route(start=2, end=3, at="mlp")], 0),
    "a block later": ([Route(start=0, end=1, scorer="grid"), Route(start=2, end=3)], 0),
    "after an MLP alone": ([Route(start=1, end=2, at="mlp"), Route(start=2, end=3)], 0),
    "after an MLP and a block": ([Route(start=0, end=2, at="mlp"), Route(start=2, end=3)], 1),
    "where nothing returned": ([Route(start=0, end=2, scorer="grid", restore=False), Route(start=2)], 0),
}


@pytest.mark.parametrize("routes, times", RESCORED.values(), ids=RESCORED.keys())
def test_keys_of_all_tokens_are_made_again_only_for_a_scorer_that_would_not_have_them(routes, times):
    found = kinds(*routes)
    assert found.count("rescore") == times
    if times:
        assert found[found.index("rescore") + 1 : found.index("rescore") + 3] == ["restore", "score"]


def test_noise_columns_of_blocks_and_scorers_do_not_meet():
    found = program(
        Route(start=0, end=1, keep_ratio=0.5, scorer="random"),
        Route(start=1, end=2, keep_ratio=0.5, restore=False),
        Route(start=2, end=3, keep_ratio=0.5, scorer="mixed_cls_attention"),
        Route(start=3, keep_ratio=0.5, scorer="sampled_cls_attention", temperature=0.5),
    )
    scores = found.of_kind("score")
    assert [(s.first_noise, s.noise_columns) for s in scores] == [(8, 16), (24, 0), (24, 9), (33, 8)]
    assert found.noise_width == 41
    assert [s.knobs for s in scores] == [{}, {}, {"random_share": 0.5}, {"temperature": 0.5}]
    assert [s.kept for s in scores] == [8, 8, 4, 4]


def test_probes_rank_on_the_way_and_take_nothing():
    probes = [
        Probe("cls_attention", 1, 4),
        Probe("sampled_cls_attention", 1, 4, {"temperature": 2.0}),
        Probe("random", 3, 2),
    ]
    found = program(Route(start=2, end=3, keep_ratio=0.5, scorer="random"), probes=probes)
    plain = program(Route(start=2, end=3, keep_ratio=0.5, scorer="random"))
    assert [line for line in written(found) if not line.startswith("score 1")] == written(plain)
    asked = [step for step in found.of_kind("score") if step.route < 0]
    assert [step.name for step in asked] == ["probes.cls_attention", "probes.sampled_cls_attention", "probes.random"]
    assert [found.steps[found.steps.index(step) - 1].kind for step in asked] == ["attend", "score", "attend"]
    assert asked[1].knobs == {"temperature": 2.0} and (asked[1].kept, asked[2].kept) == (4, 2)
    assert found.noise_width == 8 + 3 * 16 and set(found.makes) > set(plain.makes)


def test_kept_positions_are_those_that_stand_for_themselves():
    slots = np.array([[-1, 1, 2, -1, 3, 4], [1, 5, 2, 5, 5, 3]])  # 5: fused
    assert kept_positions(slots[:1, :5], Layout(1, 3)).tolist() == [[1, 2, 4]]
    assert kept_positions(slots[1:], Layout(1, 3, 1)).tolist() == [[0, 2, 5]]


def test_programs_need_no_mindspore():
    code = (
        "import sys; from skipvit.models.vit_spec import ViTSpec; from skipvit.routing.program import compile_program; "
        "from skipvit.routing.spec import Route; from skipvit.models.arithmetic import forward_macs; "
        "spec = ViTSpec(384, 12, 6); print(forward_macs(spec, compile_program(spec, [Route(start=4, end=11)]))); "
        "sys.exit('mindspore' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and int(result.stdout) > 3e9, result.stderr
