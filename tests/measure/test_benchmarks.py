"""The scripts that measure speed (benchmarks/): what they make of hand-made times and profiles; PyTorch's step."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from skipvit.cli import exit_code
from skipvit.measure.bench import variants as side_by_side
from skipvit.measure.bench.result import BenchResult
from skipvit.measure.bench.turns import Worker
from skipvit.measure.cost import cost

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {
    "name": "tiny",
    "model": {"name": "vit_tiny_patch16_224", "width": 16, "depth": 3, "heads": 2, "patch": 8, "image_size": 32}
    | {"num_classes": 10},
    "routes": [{"start": 1, "end": 2, "keep_ratio": 0.5}],
    "data": {"batch_size": 4, "train_size": 40},
    "augment": {"mixup": 0.8},
    "optim": {"epochs": 2, "warmup_epochs": 0, "lr": 0.01, "epsilon": 0.01, "clip_norm": 0.5},
}
# A process that PyTorch would work in, and one of ours: they only say how long they took.
SUBJECT = """
import sys
from skipvit.measure.bench.timed import serve

class Subject:
    def build(self, config, forward, training, data):
        assert config["device"] == "cpu" and config["data"]["batch_size"] == 4
        self.seconds = {"plain": 0.3, "strong": 0.2}.get(sys.argv[1]) or {"dense": 0.25, "routed": 0.2}[forward]
        return "cpu"
    def prepare(self, job):
        return 1.0, self.seconds, 2**20
    def turn(self, job, steps):
        return steps * self.seconds
    def skipped(self):
        return 0
    def operators(self, steps):
        return [("aten::mm", 98, 75.0), ("aten::gelu", 12, 25.0)]

serve(Subject(), sys.argv[2:])
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def test_pytorch_beside_ours(file, tmp_path, monkeypatch, capsys):
    module, subject = script("against_pytorch", monkeypatch), tmp_path / "subject.py"
    subject.write_text(SUBJECT)
    for where in (side_by_side, module):
        monkeypatch.setattr(
            where, "Worker", lambda name, words, python: Worker(name, [str(subject), words[-1]], python)
        )
    monkeypatch.setattr(module, "torch_version", lambda python: "0.0")
    words = [str(file), "--rounds", "6", "--pytorch", "both"]
    module.main(words)
    out = capsys.readouterr().out
    assert out.count("1.20 x (1.20 to 1.20)") == 1 and out.count("1.50 x (1.50 to 1.50)") == 2 and "torch 0.0" in out
    module.main([*words, "--operators"])
    assert "75.00  75.0 %  98  aten::mm" in capsys.readouterr().out
    module.main([*words, "--json"])
    result = json.loads(capsys.readouterr().out)
    against, ours = result["batches"]
    names = [row["name"] for row in against["variants"]]
    assert names == ["tiny PyTorch", "tiny PyTorch, fused kernels", "tiny dense", "tiny routed"]
    speedups = [row["step"]["speedup"] for row in against["variants"][1:]]
    assert speedups == pytest.approx([1.5, 1.2, 1.5]) and result["versions"]["torch"] == "0.0"
    assert all(row["step"]["efficiency"] is None for row in against["variants"][1:])  # of other code
    routed = ours["variants"][1]
    assert (ours["baseline"], routed["step"]["speedup"]) == ("tiny dense", pytest.approx(1.25))
    assert routed["step"]["efficiency"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--torch_python", "there/is/none"], "--torch_python: there/is/none cannot be run"),
        (["--torch_python", "false"], "--torch_python: false has no PyTorch; pip install"),
        (["--optim.accumulate", "2"], "optim.accumulate: the comparison"),
        (["--amp.dtype", "float16"], "amp.dtype: the comparison"),
        (["--rounds", "2"], "rounds: 2 rounds"),
    ],
)
def test_what_cannot_be_compared_is_one_line(file, words, said, monkeypatch, capsys):
    module = script("against_pytorch", monkeypatch)
    assert exit_code(lambda: module.main([str(file), *words])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("strong", [False, True])
def test_pytorchs_step_is_ours(file, strong, monkeypatch):
    """Same weights, same batch, mixed: the same loss in the first step and, after the update, in the second."""
    torch = pytest.importorskip("torch", reason="needs the extra `compare`")
    from mindspore import Tensor

    from skipvit.config.reading import load_config
    from skipvit.engine.build import build_network
    from skipvit.engine.synthetic import random_batch, training_step

    config = load_config(file)
    model = config.model.model_copy(update={"gelu": "tanh" if strong else "erf"})
    config = config.model_copy(update={"model": model})
    values = script("against_pytorch", monkeypatch).comparable(config).model_dump(mode="json")
    theirs = script("pytorch_vit", monkeypatch).PyTorchStep(values, strong)
    network = build_network(config, "cpu")
    weights = {name: parameter.asnumpy() for name, parameter in network.parameters_dict().items()}
    rng = np.random.default_rng(0)
    weights["head.weight"] = rng.standard_normal(weights["head.weight"].shape).astype(
        np.float32
    )  # ours begins at 0: no gradient
    network.head.weight.set_data(Tensor(weights["head.weight"]))
    theirs.network.load_state_dict({name: torch.tensor(value) for name, value in as_theirs(weights, config).items()})
    images, labels, noise, mix = random_batch(config, "dense")
    mixing = Tensor(np.array([0.7, 0, 0, 0, 0, 0.7], np.float32))
    ours = training_step(config, "cpu", network, "dense")
    for _ in range(3):
        loss = ours(images, labels, noise, mixing).asnumpy()[0]
        their_loss = theirs(torch.tensor(images.asnumpy()), torch.tensor(labels.asnumpy()).long(), 0.7)
        assert loss == pytest.approx(their_loss.item(), abs=2e-4)


def as_theirs(weights, config):
    """Our parameters under the PyTorch network's names, q, k and v as one, the patch projection as a kernel."""
    patch, result = config.model.patch, {}
    for name, value in weights.items():
        if ".attn.q." in name:
            result[name.replace(".q.", ".qkv.")] = np.concatenate(
                [weights[name.replace(".q.", f".{part}.")] for part in "qkv"]
            )
        elif name == "patch_embed.proj.weight":
            result["patch_embed.weight"] = value.reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2)
        elif ".attn.k." not in name and ".attn.v." not in name:
            result[name.replace("patch_embed.proj", "patch_embed").replace(".mlp.", ".")] = value
    return result


def measured(config, speedup=1.4):
    dense = {"step": {"images_per_s": 10.0}, "peak_memory_bytes": 2**30}
    share = 0.8 if speedup else None
    step = {"images_per_s": 14.0, "speedup": speedup, "speedup_interval": [1.3, 1.5], "efficiency": share}
    routed = {"step": step, "peak_memory_bytes": 2**29, "memory_ratio": 0.5, "ideal_speedup": 1.486}
    return BenchResult({"batches": [{"variants": [dense, routed]}]})


def test_curves_are_measured_once_and_drawn(tmp_path, monkeypatch, capsys):
    module, asked = script("speed_curves", monkeypatch), []

    def ask(configs, rounds, widest):
        asked.append(configs[0])
        return measured(configs[0], None if len(asked) == 1 else 1.4)

    monkeypatch.setattr(module, "bench", ask)
    words = ["--curve", "blocks", "--results", str(tmp_path / "r.json"), "--out", str(tmp_path / "c.png")]
    module.main(words)
    out = capsys.readouterr().out
    noisy = "| bypassed blocks 3 | 16 | 10.0 | 14.0 | too noisy to say (1.30 to 1.50) | 1.486 x |  |"
    known = "| bypassed blocks 9 | 16 | 10.0 | 14.0 | 1.40 x (1.30 to 1.50) | 1.486 x | 80 % | 1024 | 512 | 0.50 |"
    assert len(asked) == 4 and noisy in out and known in out
    assert all(config.data.batch_size == 16 and config.device == "cpu" for config in asked)
    module.main(words)  # the noisy one again
    assert len(asked) == 5 and asked[4] == asked[0]
    module.main([*words[2:], "--curve", "model"])  # its `small` has been measured
    assert len(asked) == 7 and {config.model.name.split("_")[1] for config in asked[5:]} == {"tiny", "base"}
    module.main([*words[2:], "--draw"])
    assert len(asked) == 7 and (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "network base" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--results", "text"], ["--results", "there/is/none.json"], ["--out", "a.text"], ["--rounds", "3"]]
)
def test_curves_are_refused_before_anything_is_measured(words, tmp_path, monkeypatch, capsys):
    module = script("speed_curves", monkeypatch)
    (tmp_path / "text").write_text("no json")
    monkeypatch.chdir(tmp_path)
    assert exit_code(lambda: module.main(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{words[0].strip('-')}: {words[1]}" in line


def test_ideals_of_the_curves(monkeypatch):
    module = script("speed_curves", monkeypatch)
    ratios = [module.ideal_memory(module.Point(blocks=blocks)) for blocks in (3, 5, 7, 9)]
    assert ratios == sorted(ratios, reverse=True) and all(0.4 < ratio < 1 for ratio in ratios)
    configs = [point.config() for _, points in module.CURVES.values() for point in points.values()]
    tokens = [cost(config).forwards["routed"].tokens for config in configs]
    bypassed = [sum(count < max(each) for count in each) for each in tokens]
    assert set(bypassed) == {3, 5, 7, 9}


def test_operators_of_a_profile(tmp_path, monkeypatch):
    """Two steps of four operators, as MindSpore's profiler writes them: the second step took twice as long."""
    module, folder = script("heaviest_operators", monkeypatch), tmp_path / "p" / "FRAMEWORK"
    folder.mkdir(parents=True)
    loss = "Default/loss-CrossEntropy/forward-Forward/network-ViT"
    gradient = f"Gradients/{loss}/head-Dense/Grad_MatMul/MatMul"
    names = [
        f"{loss}/fc1-Dense/MatMul-op0",
        f"{gradient}-op1",
        f"{loss}/norm-LayerNorm/Mul-op0",
        f"{gradient}-op2",
        "Default/optimizer-AdamW/Adam-op0",
    ]
    times = [f"{name};HostCpuOps;{1000000 * i},0.5,0 {10000000 + 2000000 * i},1.0,0" for i, name in enumerate(names)]
    (folder / "cpu_op_execute_timestamp_0.txt").write_text("\n".join(times))
    short = [name.split("/")[-1] for name in names]
    lines = [f"{name.split('-')[0]};{name};7;input_1:[4, 2];input_2:[2, {i}];" for i, name in enumerate(short)]
    (folder / "cpu_framework_0.txt").write_text("\n".join(2 * lines))
    found = module.read(tmp_path, steps=2)
    assert [(part, cell, kind) for part, cell, kind, *_ in found] == [
        ("forward", "Dense", "MatMul"),
        ("backward", "", "MatMul"),
        ("backward", "LayerNorm", "Mul"),
        ("backward", "", "MatMul"),
        ("update", "", "Adam"),
    ]
    assert found[1][3] == "[4,2] [2,1]" and found[1][4].tolist() == [0.5, 1.0] and found[1][5].tolist() == [0.5, 1.0]
    text = module.summed_up(found, top=2)
    assert text.startswith("5 operators, 3.8 ms in all, and 3.0 ms between them")
    assert "2.25  60.0 %    2.25      3  backward" in text and "forward" not in text
