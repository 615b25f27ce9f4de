"""`skipvit convert`, against the file format read by hand and a NumPy forward straight from timm's layout."""

import json
import math
import os
import struct
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import skipvit
from skipvit.cli.convert import main
from skipvit.models.vit_spec import ViTSpec
from skipvit.models.vit_timm import from_timm, to_timm
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program
from skipvit.util.errors import RunError, UsageError
from skipvit.weights.convert import convert
from support import reference

WIDTH, DEPTH, HEADS, PATCH, GRID, CLASSES = 32, 2, 4, 4, 3, 10


def timm_shapes() -> dict[str, tuple[int, ...]]:
    return reference.timm_shapes(WIDTH, DEPTH, PATCH, GRID, CLASSES)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights in timm's layout, large enough for every part to show in the logits."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in timm_shapes().items()}


def any_bits(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of arbitrary bits: NaNs with payloads, infinities, subnormal numbers and negative zeros among them."""
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32) for name, shape in shapes.items()}
    arrays["cls_token"].flat[:3] = -0.0, np.inf, 1e-40
    return arrays


SPEC = ViTSpec(WIDTH, DEPTH, HEADS, PATCH, GRID * PATCH, CLASSES, gelu="erf")


def save_ckpt(path, params: dict[str, np.ndarray], **others) -> None:
    entries = [{"name": name, "data": ms.Tensor(value)} for name, value in params.items()]
    ms.save_checkpoint(entries, str(path), append_dict=others, crc_check=True)


def load_ckpt(path) -> dict[str, np.ndarray]:
    """By MindSpore's reader, which looks at the checksum if there is one."""
    assert path.read_bytes()[-17:-10] == b"crc_num"
    return {name: value.asnumpy() for name, value in ms.load_checkpoint(str(path), crc_check=True).items()}


def write_by_hand(path, entries: dict[str, tuple[str, np.ndarray]]) -> None:
    """A safetensors file from {name: (type, array)}, by its specification: header size, JSON header, bytes."""
    header, data = {}, b""
    for name, (kind, array) in entries.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].dtype == np.float32, name
        np.testing.assert_array_equal(actual[name].view(np.uint32), value.view(np.uint32), err_msg=name)


def refused(error: type[Exception], source, target) -> str:
    """The message of a refusal, one line, after which the target's folder is as it was."""
    before = sorted(target.parent.iterdir()) if target.parent.is_dir() and target.parent.name != "proc" else None
    with pytest.raises(error) as caught:
        convert(source, target)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    assert before is None or sorted(target.parent.iterdir()) == before
    return message


def test_timm_round_trip_keeps_every_bit(tmp_path):
    original = any_bits(timm_shapes())
    save_file(original, tmp_path / "a.safetensors")
    summary = convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    convert(tmp_path / "b.ckpt", tmp_path / "c.safetensors")
    assert_same_bits(load_file(tmp_path / "c.safetensors"), original)
    convert(tmp_path / "a.safetensors", tmp_path / "d.ckpt")
    assert (tmp_path / "b.ckpt").read_bytes() == (tmp_path / "d.ckpt").read_bytes()
    count = sum(math.prod(shape) for shape in timm_shapes().values())
    assert summary.endswith(f"{count:,} parameters, depth 2, width 32, patch 4, image 12, 10 classes")
    with safe_open(tmp_path / "c.safetensors", framework="np") as file:
        assert file.metadata()["format"] == "pt"  # without this mark timm does not take it
    mine = ms.load_checkpoint(
        str(tmp_path / "c.safetensors"), format="safetensors", crc_check=True
    )  # MindSpore's checksum
    assert set(mine) == set(original)


def test_checkpoint_round_trip_keeps_every_bit(tmp_path):
    original = any_bits(SPEC.shapes())
    trainer = {"optimizer.step": ms.Tensor(7), "optimizer.moments.head.bias": ms.Tensor(np.ones(10, np.float32))}
    save_ckpt(tmp_path / "a.ckpt", original, **trainer)
    summary = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.ckpt")
    assert_same_bits(load_ckpt(tmp_path / "c.ckpt"), original)
    assert summary.splitlines()[1:] == ["left out: 2 entries of the trainer"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.safetensors", "c.ckpt"]


@pytest.mark.parametrize("wrong", ["dimensions", "name"])
def test_an_array_that_no_network_has(tmp_path, wrong):
    original = weights()
    bias = original.pop("norm.bias")
    if wrong == "dimensions":  # more than NumPy makes
        write_by_hand(tmp_path / "a.safetensors", {"norm.bias": ("F32", bias)})
        text = (tmp_path / "a.safetensors").read_bytes()[8:].replace(b"[32]", b"[32" + b", 1" * 2000 + b"]")
        end = text.index(b"}}") + 2
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", end) + text)
    else:
        save_file(original | {"x" * 10_000: bias}, tmp_path / "a.safetensors")
    message = refused(RunError, tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    assert "too many dimensions, or too long a name" in message and len(message) < len(str(tmp_path)) + 150


def test_one_class_and_one_pixel_patches(tmp_path):
    original = weights()
    original["head.weight"], original["head.bias"] = original["head.weight"][:1], original["head.bias"][:1]
    original["patch_embed.proj.weight"] = original["patch_embed.proj.weight"][:, :, :1, :1].copy()
    save_file(original, tmp_path / "a.safetensors")
    assert "patch 1, image 3, 1 classes" in convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    convert(tmp_path / "b.ckpt", tmp_path / "c.safetensors")
    assert_same_bits(load_file(tmp_path / "c.safetensors"), original)


def test_layouts_element_by_element():
    params = weights()
    ours = from_timm(params)
    fused = params["blocks.1.attn.qkv.weight"]
    for i, part in enumerate("qkv"):
        for row in range(WIDTH):
            np.testing.assert_array_equal(ours[f"blocks.1.attn.{part}.weight"][row], fused[i * WIDTH + row])
    for row, column, channel in np.ndindex(PATCH, PATCH, 3):
        matrix = ours["patch_embed.proj.weight"][:, (row * PATCH + column) * 3 + channel]
        np.testing.assert_array_equal(matrix, params["patch_embed.proj.weight"][:, channel, row, column])
    assert_same_bits(to_timm(ours), params)
    assert list(to_timm(ours)) == list(params)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_widened(tmp_path, kind):
    rng = np.random.default_rng(2)
    # Eighths up to 8 are exact in both types.
    exact = {name: rng.integers(-64, 65, shape).astype(np.float32) / 8 for name, shape in timm_shapes().items()}
    narrow = {
        name: value.astype(np.float16) if kind == "F16" else (value.view(np.uint32) >> 16).astype(np.uint16)
        for name, value in exact.items()
    }
    write_by_hand(tmp_path / "a.safetensors", {name: (kind, value) for name, value in narrow.items()})
    summary = convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    assert summary.splitlines()[1:] == [f"widened to float32: {len(exact)} arrays of 16 bits"]
    assert_same_bits(load_ckpt(tmp_path / "b.ckpt"), from_timm(exact))


def reference_logits(params: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """timm's VisionTransformer in plain NumPy, float64, from its own layout: uint8 (B, H, W, 3) -> (B, classes)."""
    p = {name: value.astype(np.float64) for name, value in params.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attention(x, name):
        batch, tokens, width = x.shape
        qkv = linear(x, f"{name}.qkv").reshape(batch, tokens, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        logits = np.einsum("bhnd,bhmd->bhnm", qkv[0], qkv[1]) / math.sqrt(width // HEADS)
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        mixed = np.einsum("bhnm,bhmd->bnhd", weight, qkv[2]).reshape(batch, tokens, width)
        return linear(mixed, f"{name}.proj")

    samples = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    batch = len(samples)
    patches = samples.transpose(0, 3, 1, 2).reshape(batch, 3, GRID, PATCH, GRID, PATCH)
    embedded = np.einsum("bcirjs,dcrs->bijd", patches, p["patch_embed.proj.weight"]) + p["patch_embed.proj.bias"]
    tokens = embedded.reshape(batch, GRID * GRID, WIDTH)
    x = np.concatenate([np.repeat(p["cls_token"], batch, 0), tokens], 1) + p["pos_embed"]
    for i in range(DEPTH):
        x = x + attention(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + linear(gelu, f"blocks.{i}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


def test_converted_weights_compute_what_timm_computes(tmp_path):
    """By `skipvit.load_weights`, from both files; and what `skipvit.save_weights` writes of the network is the same."""
    params = weights()
    save_file(params, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    forward = Forward(SPEC.network(), compile_program(SPEC))
    images = np.random.default_rng(3).integers(0, 256, (3, GRID * PATCH, GRID * PATCH, 3), dtype=np.uint8)
    expected = reference_logits(params, images)
    assert expected.std() > 0.1
    for name in ("a.safetensors", "b.ckpt"):
        skipvit.load_weights(forward, tmp_path / name)
        np.testing.assert_allclose(forward.by_name(images)["logits"], expected, atol=1e-4, rtol=0)
        skipvit.load_weights(SPEC.network(), tmp_path / name)  # a backbone's cell alone
    skipvit.save_weights(forward, tmp_path / "c.safetensors")
    skipvit.save_weights(forward, tmp_path / "c.ckpt")
    assert_same_bits(load_file(tmp_path / "c.safetensors"), params)
    assert_same_bits(load_ckpt(tmp_path / "c.ckpt"), from_timm(params))
    with pytest.raises(UsageError, match="c.bin: weights end in .ckpt or .safetensors"):
        skipvit.save_weights(forward, tmp_path / "c.bin")


def test_weights_of_another_network_are_not_loaded(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    wider = ViTSpec(2 * WIDTH, DEPTH, HEADS, PATCH, GRID * PATCH, CLASSES).network()
    with pytest.raises(RunError, match=r"cls_token is \(1, 1, 32\) there and \(1, 1, 64\) in this network"):
        skipvit.load_weights(wider, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="none.ckpt: no such"):
        skipvit.load_weights(wider, tmp_path / "none.ckpt")


def distilled() -> dict[str, np.ndarray]:
    shapes = {"dist_token": (1, 1, WIDTH), "head_dist.weight": (CLASSES, WIDTH), "head_dist.bias": (CLASSES,)}
    shapes["pos_embed"] = (1, 2 + GRID * GRID, WIDTH)
    return weights() | {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def without(*prefixes: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in weights().items() if not name.startswith(prefixes)}


BAD_WEIGHTS = {
    "distilled": (
        distilled,
        "unexpected dist_token, head_dist.bias, head_dist.weight; "
        "wrong shape pos_embed (1, 11, 32) instead of (1, 1 + a square, 32); give",
    ),
    "backbone": (lambda: without("head"), "missing head.weight, head.bias; give"),
    "no class token": (lambda: without("cls_token"), "missing cls_token; give"),
    "no block": (lambda: without("blocks."), "missing blocks.0.norm1.weight, blocks.0.norm1.bias, "),
    "hole": (lambda: without("blocks.0."), "missing blocks.0.norm1.weight"),
    "many": (lambda: without("blocks.0."), "blocks.0.norm2.bias and 4 more; give"),
    "no kernel": (lambda: without("patch_embed.proj.weight"), "missing patch_embed.proj.weight; give"),
    "other network": (lambda: {"conv1.weight": np.ones((2, 3), np.float32)}, "unexpected conv1.weight; give"),
    "empty": (dict, "missing cls_token, pos_embed"),
    "narrow MLP": (
        lambda: weights() | {"blocks.1.mlp.fc1.bias": np.ones(64, np.float32)},
        "wrong shape blocks.1.mlp.fc1.bias (64,) instead of (128,); give",
    ),
    "scalar": (
        lambda: weights() | {"pos_embed": np.array(1, np.float32)},
        "wrong shape pos_embed () instead of (1, 1 + a",
    ),
    "not square": (
        lambda: weights() | {"pos_embed": np.ones((1, 1 + 8 * 6, WIDTH), np.float32)},
        "wrong shape pos_embed (1, 49, 32) instead of (1, 1 + a square, 32)",
    ),
    "class token alone": (
        lambda: weights() | {"pos_embed": np.ones((1, 1, WIDTH), np.float32)},
        "wrong shape pos_embed (1, 1, 32) instead of (1, 1 + a square, 32)",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_other_networks_are_refused(tmp_path, case):
    make, words = BAD_WEIGHTS[case]
    save_file(make(), tmp_path / "a.safetensors")
    message = refused(RunError, tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    assert message.startswith(str(tmp_path / "a.safetensors")) and words in message


def test_other_types_are_refused(tmp_path):
    entries = {name: ("F32", value) for name, value in weights().items()}
    write_by_hand(tmp_path / "a.safetensors", entries | {"steps": ("I64", np.ones(1, np.int64))})
    assert "steps is of type I64; weights are" in refused(RunError, tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    save_ckpt(tmp_path / "c.ckpt", from_timm(weights()), epoch=3)
    assert "epoch is of type Int64; weights are" in refused(RunError, tmp_path / "c.ckpt", tmp_path / "d.safetensors")
    save_ckpt(tmp_path / "e.ckpt", from_timm(weights()), note="text")
    assert "note is of type str" in refused(RunError, tmp_path / "e.ckpt", tmp_path / "d.safetensors")


@pytest.mark.parametrize("damage", ["truncated", "header only", "text", "empty", "flipped"])
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_damaged_files_are_refused(tmp_path, ending, damage):
    good = tmp_path / f"good{ending}"
    network = SPEC.network()
    skipvit.save_weights(network, good)
    data, bad = good.read_bytes(), tmp_path / f"bad{ending}"
    flipped = bytearray(data)
    flipped[2 * len(data) // 3] ^= 1
    damages = {"truncated": data[:-5], "header only": data[:60], "text": b"not weights\n" * 9, "empty": b""}
    bad.write_bytes(damages.get(damage, bytes(flipped)))
    message = refused(RunError, bad, tmp_path / ("b.ckpt" if ending == ".safetensors" else "b.safetensors"))
    assert message.startswith(f"{bad}: ") and ("checksum" in message or "not a readable" in message)
    with pytest.raises(RunError):
        skipvit.load_weights(network, bad)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_what_is_no_regular_file_is_refused(tmp_path, ending):
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"loop{ending}").symlink_to(f"loop{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    for path in list(tmp_path.iterdir()):
        message = refused(RunError, path, tmp_path / ("b.ckpt" if ending == ".safetensors" else "b.safetensors"))
        assert message.startswith(f"{path}: ") and "cannot be read" in message


def test_checkpoint_without_its_last_entries_is_refused(tmp_path):
    save_ckpt(tmp_path / "a.ckpt", dict(list(from_timm(weights()).items())[:-2]), **{"optimizer.step": 1})
    message = refused(RunError, tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert "missing blocks.1.mlp.fc2.weight, blocks.1.mlp.fc2.bias; give a checkpoint of this project" in message


@pytest.mark.parametrize(
    "names", [("a.pth", "b.ckpt"), ("a.ckpt", "b.ckpt"), ("a.safetensors", "b.safetensors"), ("a.safetensors", "b")]
)
def test_other_endings_are_refused(tmp_path, names):
    message = refused(UsageError, tmp_path / names[0], tmp_path / names[1])
    assert "one must end in .safetensors, the other in .ckpt" in message


def test_impossible_paths_are_refused(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.ckpt"
    assert refused(UsageError, source, target).startswith(f"{source}: no such file")
    save_file(weights(), source)
    assert "no such folder" in refused(UsageError, source, tmp_path / "none" / "b.ckpt")
    assert "no such folder" in refused(UsageError, source, source / "b.ckpt")
    target.write_text("precious")
    assert refused(UsageError, source, target).startswith(f"{target}: exists")
    assert target.read_text() == "precious"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root can write in")
def test_unwritable_folder_is_refused(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    target = Path("/proc/b.ckpt")
    assert refused(RunError, tmp_path / "a.safetensors", target).startswith(f"{target}: not written")


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def half_write(entries, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms, "save_checkpoint", half_write)
    save_file(weights(), tmp_path / "a.safetensors")
    assert "No space left on device" in refused(RunError, tmp_path / "a.safetensors", tmp_path / "b.ckpt")


def test_command_line(tmp_path, capsys):
    save_file(weights(), tmp_path / "a.safetensors")
    main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.ckpt")])
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'b.ckpt'}: 27,722 parameters, depth 2, width 32, patch 4, image 12, 10 classes"
    ]
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "skipvit convert deit_small.safetensors deit_small.ckpt" in capsys.readouterr().out
