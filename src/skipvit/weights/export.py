"""`skipvit export`: a trained network as MindIR, ONNX or timm weights, compared with the network before anything is kept."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from skipvit.cli.eval import default_config
from skipvit.config import config as configuration
from skipvit.engine import distributed
from skipvit.util.errors import RunError, UsageError
from skipvit.weights import card, convert, onnx_graph
from skipvit.weights.agreement import CHECK_BATCH, Runner, compare, in_batches, normalised, real_images
from skipvit.weights.trained import Trained, add_options, load

FORMATS = ("mindir", "onnx", "safetensors")
LARGEST_ONNX = 2**31 - 1  # bytes of a protobuf message

EPILOG = """Whatever is written is read again and run, MindIR by MindSpore and ONNX by ONNX Runtime, and compared with the network on real
images: the largest difference of a probability is printed. What does not agree is not kept. A model card (.json, .md) goes
with it.

examples:
  skipvit export runs/skipvit_mini_shapes --to onnx                        uint8 NHWC in, probabilities out, batch 1
  skipvit export RUN --to mindir --batch_sizes 1,16 --dense                a file for each batch size
  skipvit export RUN --to onnx --input float32 --images images           normalised images in; compared on other images
  skipvit export RUN --to safetensors                                      weights with timm's names

exit code 1: the export failed, or does not agree with the network
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(prog="skipvit export", description="Export a trained network.", epilog=EPILOG)
    result.add_argument("run", nargs="?", metavar="RUN", help="folder of a run")
    result.add_argument("--to", choices=FORMATS, required=True, help="format")
    add_options(result)
    result.add_argument(
        "--batch_sizes",
        type=configuration.batch_sizes,
        default=[1],
        metavar="N,N,...",
        help="images that a file takes at a time, a file each (default: 1)",
    )
    result.add_argument(
        "--input",
        choices=["uint8", "float32"],
        default="uint8",
        help="uint8: pixels, the normalisation is inside; float32: normalised pixels (default: uint8)",
    )
    result.add_argument("--out", metavar="FOLDER", help="where to write (default: export/ in the run's folder)")
    result.add_argument(
        "--images", nargs="+", metavar="PATH", help="images to compare on (default: the run's validation images)"
    )
    result.add_argument(
        "--check", type=int, default=64, metavar="N", help="number of images to compare on (default: 64)"
    )
    result.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="X", help="largest difference allowed (default: 1e-4)"
    )
    result.add_argument("--licence", default=card.LICENCE, metavar="TEXT", help="of the weights, for the model card")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words, default_config)
    check(options)
    # ONNX is float32 throughout, which a card's products are not.
    device, _ = distributed.start("cpu" if options.to == "onnx" else config.device, config.deterministic)
    trained = load(config, options, device)
    out = Path(options.out) if options.out else Path(options.run or ".") / ("export" if options.run else "")
    weights_alone = options.to == "safetensors"
    stem = (
        config.name if weights_alone else f"{config.name}_{trained.forward}" + "_float32" * (options.input == "float32")
    )
    refuse_existing(out, stem, options)
    print(trained.describe(), flush=True)
    with kept_if_whole(out) as folder:
        if weights_alone:
            rows = write_weights(trained, folder / f"{stem}.safetensors")
        else:
            rows = write_graphs(trained, options, folder, stem)
        about = card.card(trained, options.to, options.input, rows, options.licence)
        name = f"{stem}.{options.to}"
        (folder / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(card.as_markdown(about), encoding="utf-8")
    for row in rows:
        print(f"{out / row['file']}: {row['bytes'] / 1e6:.1f} MB, {row['verified']}")
    print(f"model card: {out / name}.json, .md")


def check(options: argparse.Namespace) -> None:
    """Raises UsageError for options that cannot be followed."""
    if options.check < 1:
        raise UsageError(f"--check: {options.check} images show nothing; use 1 or more")
    if not 0 < options.tolerance < 1:
        raise UsageError(f"--tolerance: {options.tolerance} is outside (0, 1); probabilities are compared")
    if options.to == "onnx":
        onnx_graph.require()
    if options.to == "safetensors" and (options.images or options.input != "uint8" or options.batch_sizes != [1]):
        raise UsageError("--to safetensors: weights alone; they have no --images, --input or --batch_sizes")


def refuse_existing(out: Path, stem: str, options: argparse.Namespace) -> None:
    """Raises UsageError if a file is there already, or the folder cannot be one."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: not a folder; give another --out")
    names = [f"{stem}.{options.to}{end}" for end in ("", ".json", ".md")]
    names += [
        f"{stem}_b{size}{end}"
        for size in options.batch_sizes
        for end in (f".{options.to}", "_graph.mindir", "_variables")
    ]
    for name in names:
        if os.path.lexists(out / name):
            raise UsageError(f"{out / name} exists and is not overwritten; remove it or give another --out")


@contextmanager
def kept_if_whole(out: Path) -> Iterator[Path]:
    """A temporary folder in `out` whose files move there at the end; after an error they are gone."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as name:
            yield Path(name)
            for path in Path(name).rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # MindSpore lets only the owner read
            for path in sorted(Path(name).iterdir()):
                path.rename(out / path.name)
    except BaseException:
        if made:
            with suppress(OSError):
                out.rmdir()
        raise


# Weights


def write_weights(trained: Trained, path: Path) -> list[dict]:
    """timm's names and shapes; read again and compared bit by bit. Raises RunError."""
    ours = {p.name: p.asnumpy().astype(np.float32, copy=False) for p in trained.network.get_parameters()}
    try:
        convert.write_safetensors(convert.to_timm(ours), path)
        theirs, _ = convert.read_safetensors(path)
    except convert.WRITE_ERRORS as error:
        raise RunError(f"{path.name}: cannot be written ({_line(error)}); check the folder and free space") from None
    convert.check(theirs, True, path)
    back = convert.from_timm(theirs)
    for name, value in ours.items():
        if not np.array_equal(back[name].view(np.uint32), value.view(np.uint32)):
            raise RunError(f"{path.name}: {name} is not as it was written; nothing is kept")
    return [row_of(path) | {"verified": f"read again: all {len(theirs)} arrays as in the checkpoint, bit by bit"}]


# Graphs


def write_graphs(trained: Trained, options: argparse.Namespace, folder: Path, stem: str) -> list[dict]:
    """A verified file for each batch size; a row of the model card each.

    Raises:
        RunError: a file cannot be written or run, or does not agree with the network.
    """
    images = real_images(trained, options)
    given = images if options.input == "uint8" else normalised(images)
    expected = in_batches(_cell(trained.predictor()), given, CHECK_BATCH)
    rows = []
    for size in tqdm(dict.fromkeys(options.batch_sizes), desc="exporting", unit=" files", leave=False, disable=None):
        path = folder / f"{stem}_b{size}.{options.to}"
        write, read = (write_mindir, read_mindir) if options.to == "mindir" else (write_onnx, read_onnx)
        try:
            path = write(trained, path, given[:1].repeat(size, 0))
            found = in_batches(read(path), given, size)
        except RunError:
            raise
        except Exception as error:  # MindSpore, ONNX Runtime and protobuf raise many kinds
            raise RunError(f"{path.name}: cannot be written and run ({_line(error)[:300]}); nothing is kept") from error
        rows.append(
            row_of(path)
            | {"batch_size": size}
            | compare(trained, path.name, found, expected, images, options.tolerance)
        )
    return rows


def write_mindir(trained: Trained, path: Path, batch: np.ndarray) -> Path:
    """The file to load: that of MindSpore's graph where it keeps the weights beside it, above 1 GiB."""
    ms.export(trained.predictor(), Tensor(batch), file_name=str(path), file_format="MINDIR")
    return path if path.exists() else path.with_name(f"{path.stem}_graph.mindir")


def read_mindir(path: Path) -> Runner:
    return _cell(nn.GraphCell(ms.load(str(path))))


def write_onnx(trained: Trained, path: Path, batch: np.ndarray) -> Path:
    model, network = trained.config.model, trained.network
    weights = {p.name: p.asnumpy().astype(np.float32, copy=False) for p in network.get_parameters()}
    if sum(value.nbytes for value in weights.values()) > LARGEST_ONNX:
        raise RunError(f"{path.name}: over 2 GB of weights do not fit into one ONNX file; use --to mindir")
    graph = onnx_graph.VitGraph(
        weights,
        model.shape(),
        model.patch,
        model.image_size,
        model.gelu == "erf",
        network.spans if trained.routed else (),
        trained.predictor().noise.asnumpy()[0],
        len(batch),
    )
    path.write_bytes(graph.model(batch.dtype == np.uint8).SerializeToString())
    return path


def read_onnx(path: Path) -> Runner:
    session = onnx_graph.session(path)
    return lambda batch: session.run([onnx_graph.OUTPUT], {onnx_graph.INPUT: batch})[0]


def _cell(cell: nn.Cell) -> Runner:
    return lambda batch: cell(Tensor(batch)).asnumpy()


def row_of(path: Path) -> dict:
    """Name, size and checksum of a file, for the model card; the size is with the weights that lie beside it."""
    beside = path.with_name(path.name.replace("_graph.mindir", "_variables"))
    files = [path, *(sorted(beside.iterdir()) if beside.is_dir() else [])]
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            checksum.update(part)
    return {"file": path.name, "bytes": sum(file.stat().st_size for file in files), "sha256": checksum.hexdigest()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
