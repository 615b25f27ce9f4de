"""What the docs say of the code: examples as they stand there, names that exist."""

import re
from pathlib import Path

import numpy as np
import pytest

import skipvit

ROOT = Path(__file__).parents[1]


def example(page: str, holds: str) -> str:
    """The only piece of YAML or Python in a page of the docs that holds a text."""
    pieces = re.findall(r"```(?:yaml|python)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    (found,) = (piece for piece in pieces if holds in piece)
    return found


def spans(path: Path, depth: int) -> list[tuple[int, int]]:
    """Blocks that the routes of a file span in a network of so many."""
    config = skipvit.load_config(path, {"model.depth": depth, "data.path": "images", "data.kind": "image_folder"})
    from skipvit.routing.program import routed_stage
    from skipvit.routing.spec import resolve

    return [(span.start, span.end) for span in resolve(config.routes, routed_stage(config.model.spec()))]


def test_the_python_page_lists_what_the_package_offers():
    listed = re.findall(r"^::: skipvit\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(listed) == sorted(skipvit.__all__)


@pytest.mark.parametrize("name", skipvit.__all__)
def test_what_the_package_offers_is_there_and_told(name):
    value = getattr(skipvit, name)
    assert value.__module__.startswith(f"skipvit.{skipvit._PUBLIC[name]}"), "something that is only imported there"
    assert value.__doc__


def test_links_between_pages_and_files_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    dead = []
    for page in [*pages, *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            target = link.split("#")[0]
            if target and "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.name}: {link}")
    assert not dead


def test_readmes_are_short_and_have_the_same_commands():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
    assert all(len(text.splitlines()) <= 120 for text in texts)
    commands = [re.findall(r"`((?:python|skipvit|pip) [^`]+)`|^((?:python|pip|\./run)\S* .+)$", t, re.M) for t in texts]
    assert set(commands[0]) <= set(commands[1])


@pytest.mark.slow
def test_the_six_lines_of_the_readme(capsys):
    exec(example("README.md", "create_model"), {})
    assert capsys.readouterr().out == "(1, 1000)\n"


def test_the_method_of_the_methods_page(tmp_path):
    (tmp_path / "two_spans.yaml").write_text(example("docs/methods.md", "Two short spans"))
    assert spans(tmp_path / "two_spans.yaml", 12) == [(3, 6), (7, 11)]
    assert spans(tmp_path / "two_spans.yaml", 24) == [(6, 12), (14, 23)]


def test_the_phases_of_the_phases_page(tmp_path):
    (tmp_path / "sizes.yaml").write_text(example("docs/phases.md", "image_size: 160"))
    config = skipvit.load_config(tmp_path / "sizes.yaml", {"data.path": "images", "data.kind": "image_folder"})
    assert [phase.forward for phase in config.resolved_phases()] == ["dense@160", "routed@160", "routed"]


def test_the_steps_of_the_architecture_page():
    text = example("docs/architecture.md", ">>> import skipvit")
    lines = [line[4:] for line in text.splitlines() if line.startswith((">>> ", "... "))]
    printed = [line for line in text.splitlines() if not line.startswith((">>> ", "... "))]
    found: list[str] = []
    exec("\n".join(lines), {"print": lambda *words: found.append(" ".join(map(str, words)))})
    assert found == printed


def test_the_scorer_of_the_routes_page_keeps_what_it_says(tmp_path, monkeypatch):
    """The function by itself against NumPy, then as a route of a network, from a file of its own."""
    from mindspore import Tensor

    from skipvit.routing import scorers

    monkeypatch.setitem(scorers.SCORERS, "unusual_keys", None)  # the file registers its own; taken out at the end
    (tmp_path / "my_scorers.py").write_text(example("docs/routes.md", "def unusual_keys"))
    route = {"start": 1, "end": 2, "keep_ratio": 0.5, "scorer": "unusual_keys", "power": 0.5}
    model = {"name": "vit_tiny_patch16_224", "width": 16, "depth": 3, "heads": 2, "patch": 4, "image_size": 16}
    config = skipvit.Config(
        imports=[str(tmp_path / "my_scorers.py")], model=model | {"num_classes": 5}, routes=[route],
        data={"kind": "image_folder", "path": "images"},
    )  # fmt: skip
    (step,) = config.program("routed").of_kind("score")

    k = np.random.default_rng(0).normal(size=(3, 2, 8, 4)).astype(np.float32)
    ranking, weights = step.scorer.score(step, {"k": Tensor(k)}, None, False)
    expected = np.sqrt((np.linalg.norm(k - k.mean(2, keepdims=True), axis=-1) ** 2).mean(1))
    np.testing.assert_allclose(ranking.asnumpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(weights.asnumpy(), ranking.asnumpy())

    from skipvit.engine.build import build_forward, build_network

    forward = build_forward(config, "cpu", build_network(config, "cpu"), "routed", ("routes.0.slots",))
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    slots = forward.by_name(images)["routes.0.slots"]
    assert ((slots >= 0).sum(1) == 8).all()
