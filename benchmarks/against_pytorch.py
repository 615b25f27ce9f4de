"""Our dense and routed training steps beside a plain PyTorch ViT of the same sizes, in one interleaved run on CPU.

    pip install -e '.[compare]'
    python benchmarks/against_pytorch.py configs/skipvit_small_imagenet.yaml --data.batch_size 16

or, with PyTorch in an environment of its own (nothing else needs to be in it), --torch_python /its/bin/python.
What the two do alike and what not: pytorch_vit.py. How the turns are taken and ratios are made: docs/bench.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("GLOG_v", "4")

from skipvit.cli import exit_code
from skipvit.cli.options import OneLineParser, from_words
from skipvit.config.config import Config
from skipvit.measure.bench.result import BenchResult, compared
from skipvit.measure.bench.turns import Worker
from skipvit.measure.bench.variants import Variant, begun, measure, prepare, variants_of
from skipvit.util.errors import UsageError
from skipvit.util.text import table

WORKER = str(Path(__file__).with_name("pytorch_worker.py"))
STEPS, HEAVIEST = 3, 20  # steps that are profiled, operators that are printed
KINDS = {"plain": "PyTorch", "strong": "PyTorch, fused kernels"}


def parser() -> OneLineParser:
    result = OneLineParser(
        prog="against_pytorch.py",
        description=__doc__,
        epilog="exit code 1: a ratio is too uncertain to be reported, or a process died",
    )
    result.add_argument("config", metavar="CONFIG", help="YAML file of a run; its other keys as options")
    result.add_argument("--pytorch", choices=(*KINDS, "both"), default="plain", help="which PyTorch (default: plain)")
    result.add_argument(
        "--torch_python", default=sys.executable, metavar="FILE", help="Python with PyTorch (default: this)"
    )
    result.add_argument("--rounds", type=int, default=20, metavar="N", help="turns of each (default: 20)")
    result.add_argument("--widest", type=float, default=0.05, metavar="X", help="as of skipvit bench")
    result.add_argument("--operators", action="store_true", help="instead: the heaviest operators of PyTorch's step")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, options = from_words(parser(), words)
    values = begun("training", options.rounds, options.widest)
    config = comparable(config)
    kinds = list(KINDS) if options.pytorch == "both" else [options.pytorch]
    theirs = [pytorch(config, kind, options.torch_python) for kind in kinds]
    versions = {"torch": torch_version(options.torch_python), "mindspore": version("mindspore")}
    if options.operators:
        print("\n\n".join(map(operators, theirs)))
        return
    ours = variants_of([config])
    variants = measure(theirs + ours, options.rounds)
    # Against PyTorch, and ours among themselves: there the ideal means something.
    result = BenchResult(
        values | {"versions": versions, "batches": [compared(each, [], options.widest) for each in (variants, ours)]}
    )
    if options.json:
        print(json.dumps(result.as_dict(), allow_nan=False))
    else:
        print(result.table())
        print(", ".join(f"{name} {number}" for name, number in versions.items()))
    result.refuse_uncertain()


def comparable(config: Config) -> Config:
    """The configuration on CPU, all numbers of its model written out: PyTorch's process does not know our models.

    Raises:
        UsageError: it asks for what the PyTorch step does not do.
    """
    if config.amp.dtype == "float16":
        raise UsageError("amp.dtype: the comparison is in float32, on CPU; use --amp.dtype float32")
    if config.optim.accumulate > 1:
        raise UsageError(
            "optim.accumulate: the comparison is of steps that each update the weights; use --optim.accumulate 1"
        )
    spec = config.model.spec()
    numbers = {name: getattr(spec, name) for name in ("width", "depth", "heads", "patch", "image_size", "gelu")}
    return config.model_copy(update={"device": "cpu", "model": config.model.model_copy(update=numbers)})


def torch_version(python: str) -> str:
    """Version of the PyTorch that an interpreter has. Raises UsageError if it has none or cannot be run."""
    question = "from importlib.metadata import version; print(version('torch'))"
    try:
        answer = subprocess.run([python, "-c", question], capture_output=True, text=True)
    except OSError as error:
        raise UsageError(f"--torch_python: {python} cannot be run ({error.strerror})") from None
    if answer.returncode:
        raise UsageError(
            f"--torch_python: {python} has no PyTorch; pip install -e '.[compare]', "
            "or name the Python of an environment that has it"
        )
    return answer.stdout.strip()


def pytorch(config: Config, kind: str, python: str) -> Variant:
    return Variant(f"{config.name} {KINDS[kind]}", config, "dense", words=(WORKER, kind), python=python)


def operators(variant: Variant) -> str:
    """The heaviest operators of a PyTorch step, as benchmarks/heaviest_operators.py lists ours."""
    worker = Worker(variant.name, variant.words, variant.python)
    try:
        worker.ready()
        prepare(variant, worker)
        found = worker.ask("operators", STEPS)
    finally:
        worker.end()
    all_ms = sum(ms for *_, ms in found)
    head = f"{variant.name}, batch {variant.config.data.batch_size}: operators of a step, {all_ms:.1f} ms in all"
    rows = [(f"{ms:.2f}", f"{100 * ms / all_ms:.1f} %", count, name) for name, count, ms in found[:HEAVIEST]]
    return f"{head}\n{table(rows, align='>>><')}"


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
