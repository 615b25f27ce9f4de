"""A trained network as MindIR, ONNX or timm's weights, compared with the network before anything is kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from skipvit.runs.run import Run, trained_of
from skipvit.runs.trained import Trained, in_batches
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import expanded
from skipvit.util.log import log
from skipvit.util.text import as_json, one_line
from skipvit.weights import onnx
from skipvit.weights.agreement import compare, normalised, real_images
from skipvit.weights.card import LICENCE, as_markdown, card
from skipvit.weights.files import read_weights, save_weights

Format = Literal["mindir", "onnx", "safetensors"]
FORMATS = get_args(Format)
LARGEST_ONNX = 2**31 - 1  # bytes of a protobuf message


def export(
    run: Run | Trained | str | Path,
    to: Format = "onnx",
    out: str | Path | None = None,
    *,
    batch_sizes: Sequence[int] = (1,),
    input: Literal["uint8", "float32"] = "uint8",
    images: Iterable[str] = (),
    check: int = 64,
    tolerance: float = 1e-4,
    licence: str = LICENCE,
    **chosen: Any,
) -> list[dict[str, Any]]:
    """Write a trained network for other programs, with a model card (.json, .md) beside it.

    What is written is read again and run, MindIR by MindSpore and ONNX by ONNX Runtime, and compared with the network
    on real images. What does not agree is not kept.

    Args:
        run: a run or its folder.
        to: mindir or onnx (images to probabilities, shapes are static), or safetensors (weights with timm's names).
        out: folder; None: export/ in the run's.
        batch_sizes: images that a file takes at a time, a file each.
        input: uint8: pixels, the normalisation is inside; float32: normalised pixels.
        images: files and folders of images to compare on; none: the run's validation images.
        check: how many images to compare on.
        tolerance: largest difference of a probability.
        licence: of the weights, for the card.
        chosen: which weights and forward: `which`, `forward`, `averaged`, as of `Run.trained`.

    Returns:
        For each file its name, bytes, SHA-256, batch_size and what was found, as in the card.

    Raises:
        UsageError: something is asked for that cannot be; a file is there already.
        RunError: the export failed, or does not agree with the network.
    """
    _refuse(to, batch_sizes, input, images, check, tolerance)
    # ONNX is float32 throughout, which an Ascend's products are not.
    trained = trained_of(run, **({"device": "cpu"} if to == "onnx" else {}) | chosen)
    if out is None:
        if trained.run is None:
            raise UsageError("out: name the folder to write, as these weights belong to no run")
        out = trained.run.path / "export"
    folder = expanded(out)
    stem = trained.config.name
    if to != "safetensors":
        stem += f"_{trained.forward}" + ("_float32" if input == "float32" else "")
    _refuse_existing(folder, stem, to, batch_sizes)
    log.info(trained.describe())
    with _kept_if_whole(folder) as partial:
        if to == "safetensors":
            rows = [_written_weights(trained, partial / f"{stem}.safetensors")]
        else:
            pixels = real_images(trained, images, check)
            rows = _written_graphs(trained, partial, stem, to, batch_sizes, input, pixels, tolerance)
        about, name = card(trained, to, input, rows, licence), f"{stem}.{to}"
        (partial / f"{name}.json").write_text(as_json(about, 2) + "\n", encoding="utf-8")
        (partial / f"{name}.md").write_text(as_markdown(about), encoding="utf-8")
    for row in rows:
        log.info(f"{folder / row['file']}: {row['bytes'] / 1e6:.1f} MB, {row['verified']}")
    log.info(f"model card: {folder / name}.json, .md")
    return rows


def _refuse(
    to: str, batch_sizes: Sequence[int], input: str, images: Iterable[str], check: int, tolerance: float
) -> None:
    if to not in FORMATS:
        raise UsageError(f"to: {to!r} is not one of {', '.join(FORMATS)}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"batch_sizes: {list(batch_sizes)} are not numbers of images")
    if check < 1:
        raise UsageError(f"check: {check} images show nothing; use 1 or more")
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance: {tolerance} is outside (0, 1); probabilities are compared")
    if to == "onnx":
        onnx.require()
    if to == "safetensors" and (images or input != "uint8" or list(batch_sizes) != [1]):
        raise UsageError("safetensors: weights alone; they have no images, input or batch_sizes")


def _refuse_existing(folder: Path, stem: str, to: str, batch_sizes: Sequence[int]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: not a folder; give another --out")
    names = [f"{stem}.{to}{end}" for end in ("", ".json", ".md")]
    for size in batch_sizes:
        names += [f"{stem}_b{size}{end}" for end in (f".{to}", "_graph.mindir", "_variables")]
    for name in names:
        if os.path.lexists(folder / name):
            raise UsageError(f"{folder / name} exists and is not overwritten; remove it or give another --out")


@contextmanager
def _kept_if_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into a folder at the end; after an error they are gone."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
            yield Path(name)
            for path in Path(name).rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # MindSpore lets only the owner read
            for path in sorted(Path(name).iterdir()):
                path.rename(folder / path.name)
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _written_weights(trained: Trained, path: Path) -> dict[str, Any]:
    """timm's names and shapes; read again and compared bit by bit. Raises RunError."""
    save_weights(trained.network, path)
    spec = trained.network.spec
    back = read_weights(path, spec).arrays
    for parameter in trained.network.get_parameters():
        if back[parameter.name].tobytes() != parameter.asnumpy().astype(np.float32, copy=False).tobytes():
            raise RunError(f"{path.name}: {parameter.name} is not as it was written; nothing is kept")
    return row_of(path) | {
        "verified": f"read again: all {len(spec.timm_shapes())} arrays as in the checkpoint, bit by bit"
    }


def _written_graphs(
    trained: Trained,
    folder: Path,
    stem: str,
    to: str,
    batch_sizes: Sequence[int],
    input: str,
    pixels: np.ndarray,
    tolerance: float,
) -> list[dict[str, Any]]:
    """A verified file for each batch size. Raises RunError: one cannot be written or run, or does not agree."""
    given = pixels if input == "uint8" else normalised(pixels)
    expected = trained.predict(given)
    write = _write_mindir if to == "mindir" else _write_onnx
    rows = []
    for size in tqdm(dict.fromkeys(batch_sizes), desc="exporting", unit=" files", leave=False, disable=None):
        path = folder / f"{stem}_b{size}.{to}"
        try:
            path, run = write(trained, path, given[:1].repeat(size, 0))
            found = in_batches(run, given, size)
        except (RunError, UsageError):
            raise
        except Exception as error:  # MindSpore, ONNX Runtime and protobuf raise many kinds
            raise RunError(f"{path.name}: cannot be written and run ({one_line(error)}); nothing is kept") from error
        found = compare(trained, path.name, found, expected, pixels, tolerance)
        rows.append(row_of(path) | {"batch_size": size} | found)
    return rows


def _write_mindir(trained: Trained, path: Path, batch: np.ndarray) -> tuple[Path, Any]:
    """Returns the file to load (that of MindSpore's graph where it keeps the weights beside it, above 1 GiB), and what
    runs it."""
    ms.export(trained.probabilities, Tensor(batch), file_name=str(path), file_format="MINDIR")
    path = path if path.exists() else path.with_name(f"{path.stem}_graph.mindir")
    cell: Any = nn.GraphCell(ms.load(str(path)))
    return path, lambda batch: cell(Tensor(batch)).asnumpy()


def _write_onnx(trained: Trained, path: Path, batch: np.ndarray) -> tuple[Path, Any]:
    network, forward = trained.network, trained.probabilities.forward
    weights = {p.name: p.asnumpy().astype(np.float32, copy=False) for p in network.get_parameters()}
    if sum(value.nbytes for value in weights.values()) > LARGEST_ONNX:
        raise RunError(f"{path.name}: over 2 GB of weights do not fit into one ONNX file; use --to mindir")
    noise = forward.fixed_noise.asnumpy()[0]
    model = onnx.model_of(network.spec, forward.program, weights, noise, len(batch), batch.dtype == np.uint8)
    path.write_bytes(model.SerializeToString())
    session = onnx.session(path)
    return path, lambda batch: session.run([onnx.OUTPUT], {onnx.INPUT: batch})[0]


def row_of(path: Path) -> dict[str, Any]:
    """Name, size and checksum of a file, for the model card; the size is with the weights that lie beside it."""
    beside = path.with_name(path.name.replace("_graph.mindir", "_variables"))
    files = [path, *(sorted(beside.iterdir()) if beside.is_dir() else [])]
    checksum = hashlib.sha256()
    with open(path, "rb") as file:  # of up to two gigabytes
        while part := file.read(1 << 20):
            checksum.update(part)
    return {"file": path.name, "bytes": sum(file.stat().st_size for file in files), "sha256": checksum.hexdigest()}
