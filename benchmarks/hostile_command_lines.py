"""Every command with words that a person, a script or a stranger may give it.

    python benchmarks/hostile_command_lines.py

Good words of each command are taken, and one is left out, doubled, misspelt, or replaced by an absurd one; to these
come wrong lines by hand. Each must do its work or be refused in one line (`one_line.py`), and change no file of the
person's. Commands that would take minutes only get words that are refused before. Exit code 1 if one did neither.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from one_line import WRONG, End, attempt, chosen, run_all, untouched

from skipvit.cli import COMMANDS
from support.hostile import encoded, scene
from support.runs import write_run

# What a command does in a moment; a word that begins with -- has its value behind it unless that begins with -- too.
GOOD = {
    "train": "--config tiny.yaml --runs out --name other --resume auto --optim.lr 0.001 --data.workers 2 --check",
    "cost": "--config tiny.yaml --model.image_size 32 --out tokens.png --json",
    "eval": "runs/tiny --weights last --data.val_size 10 --json",
    "predict": "runs/tiny images/a.png --top 1 --batch_size 1 --dense --json",
    "export": "runs/tiny --to safetensors --out out --licence free --weights best",
    "convert": "runs/tiny/checkpoints/epoch_0002_step_000010.ckpt out.safetensors",
    "mindrecord": "images_of_two out --split val --shard_size 100",
    "sweep": "plan.yaml --runs out --base tiny.yaml --jobs 1 --dry-run",
    "report": "runs --rounds 10 --widest 0.1 --target 50 --baseline dense --out out",
    "pipeline": "--config tiny.yaml --threads 1 --seconds 0.05 --need 10 --json",
}
# Commands that take minutes, with something that is refused first.
REFUSED = {
    "bench": "tiny.yaml nowhere.yaml --rounds 7 --mode training --batch_sizes 1,2 --widest 0.1 --out speed.png",
    "audit": "--config nowhere.yaml --devices 8 --routing gather --json",
    "importance": "runs/nowhere --scorers random --images 4 --masks images --out out",
    "doctor": "--config nowhere.yaml --runs out --json",
    "launch": "--nnodes 1 --node_rank 0 --master_port 8118 --log_dir out 1 --config nowhere.yaml",
}
ABSURD = ["", " ", "-1", "0", "1e400", "nan", "inf", "many", "9" * 5000, "x" * 5000, "null", "[", "{a", "*x", "&a [*a]"]
ABSURD += ["-", "--", "../..", "/", "/dev/zero", "/dev/null", "pipe", "loop", "dangling", "runs", "images/a.png"]
ABSURD += ["$\\x$", "\x1b[31m", "a\nb", "\udcff", "猫", "~nobody/x", "1:1:1:1", "0x_", "2024-13-45", "!!int abc"]
ABSURD += ["[" * 20_000, "{a: " * 2000, "read_only/x", "tiny.yaml", "a/" * 2000, "1,2,", "0.5,", "٣", "²", "True"]
ABSURD += ["1_0", "%s", "{}"]
PLAN = "base: tiny_base.yaml\nmethods: {dense: {routes: [], phases: []}, routed: {}}\nseeds: 2\n"
BY_HAND = [
    "",
    "--help",
    "-h",
    "--version",
    "trian",
    "train --lr 1",
    "train --optim.learning_rate 1",
    "train --config nowhere.yaml",
    "train --config skipvit_smal_imagenet.yaml",
    "train --config images",
    "train --config pipe",
    "train --config loop",
    "train --config /dev/zero",
    "train --config images/a.png",
    "train --config tiny.yaml --model small",
    "train --config tiny.yaml --model.name vit_smal_patch16_224",
    "train --config tiny.yaml --imports [a",
    "train --config tiny.yaml --imports a.py",
    "train --config tiny.yaml --eval.forwards [dense",
    "train --config tiny.yaml --eval.forwards dens",
    "train --config tiny.yaml --phases {",
    "train --config tiny.yaml --phases [{epochs:1,routes:[]},{}]",
    "train --config tiny.yaml --routes dense",
    "train --config tiny.yaml --routes.0.start 1",
    "train --config tiny.yaml --optim {lr:1}",
    "train --config tiny.yaml --optim.lr=1 --optim.lr=2",
    "train --config tiny.yaml --name .. --check",
    "train --config tiny.yaml --name . --check",
    "train --config tiny.yaml --name .index --check",
    "train --config tiny.yaml --name a/b --check",
    "train --config tiny.yaml --runs images/a.png --check",
    "train --config tiny.yaml --runs read_only --check",
    "train --config tiny.yaml --runs pipe --check",
    "train --config tiny.yaml --runs dangling --check",
    "train --config tiny.yaml --runs runs",
    "train --config tiny.yaml --data.kind image_folder --data.path images_of_two --check",
    "train --config tiny.yaml --data.kind image_folder --data.path pipe --check",
    "train --config tiny.yaml --data.kind mindrecord --data.path images --check",
    "train --config tiny.yaml --data.kind cifar10 --data.path images --check",
    "train --config tiny.yaml --init.weights runs --name other --check",
    "train --config tiny.yaml --init.weights pipe --name other --check",
    "train --config tiny.yaml --init.weights images/a.png --name other --check",
    "train --config tiny.yaml --device ascend --check",
    "train --config tiny.yaml --device tpu",
    "eval",
    "eval runs",
    "eval runs/tiny runs/tiny",
    "eval runs/tiny --config tiny.yaml --weights images/a.png",
    "eval runs/tiny --weights pipe",
    "eval runs/tiny --weights images",
    "eval runs/tiny --model.depth 3",
    "eval runs/tiny --routes []",
    "predict runs/tiny",
    "predict runs/tiny nowhere.png",
    "predict runs/tiny pipe",
    "predict runs/tiny loop",
    "predict runs/tiny /dev/zero",
    "predict runs/tiny empty",
    "predict runs/tiny images --dense --routed",
    "predict runs/tiny images/a.png --show images/a.png",
    "predict runs/tiny images/a.png --show nowhere/a.png",
    "predict runs/tiny images/a.png --show runs",
    "predict images/a.png runs/tiny",
    "cost --out runs",
    "cost --config tiny.yaml --out images",
    "cost --config tiny.yaml --out nowhere/new/tokens.png",
    "cost --config tiny.yaml --out images/a.png/x.png",
    "cost --config tiny.yaml --out tokens.jpg",
    "cost --config tiny.yaml --out pipe.png",
    "convert a b",
    "convert runs/tiny/checkpoints/epoch_0002_step_000010.ckpt runs/tiny/checkpoints/epoch_0002_step_000010.ckpt",
    "convert runs/tiny/checkpoints/epoch_0002_step_000010.ckpt read_only/x.safetensors",
    "convert images/a.png x.ckpt",
    "mindrecord images_of_two images_of_two",
    "mindrecord images_of_two read_only/x",
    "mindrecord images_of_two images/a.png",
    "mindrecord empty out",
    "mindrecord nowhere out",
    "sweep",
    "sweep nowhere.yaml",
    "sweep tiny.yaml",
    "sweep plan.yaml --jobs 0",
    "sweep plan.yaml --reuse nowhere --jobs 1",
    "sweep plan.yaml --name a --dry-run",
    "sweep plan.yaml --runs images/a.png",
    "sweep twice.yaml --dry-run",
    "report",
    "report nowhere",
    "report runs",
    "report images/a.png",
    "bench",
    "bench nowhere.yaml",
    "bench tiny.yaml --rounds 1",
    "bench tiny.yaml --rounds -1",
    "bench tiny.yaml --out speed.jpg",
    "bench tiny.yaml --out nowhere/speed.png",
    "bench tiny.yaml --mode fast",
    "bench tiny.yaml --batch_sizes 0",
    "bench tiny.yaml --mode inference --parts",
    "audit --devices 0",
    "audit --config pipe",
    "importance",
    "importance runs/tiny --images 0",
    "importance runs/tiny --scorers nothing",
    "importance runs/tiny --masks nowhere",
    "pipeline --config tiny.yaml --threads 0",
    "pipeline --config tiny.yaml --data.kind image_folder --data.path nowhere",
    "doctor --data.workers 3",
    "launch",
    "launch zero",
    "launch 0",
    "launch 1 --nnodes 2",
    "launch --nnodes 0 1",
    "launch --node_rank 5 1",
    "launch --master_port 99999 1",
    "launch --master_addr no.such.address 2 --config tiny.yaml",
    "launch --rank_table pipe 1 --config tiny.yaml",
    "launch --eval 1",
    "launch 1 --config nowhere.yaml",
    "launch 1 --config tiny.yaml --runs runs",
    "launch 99999999999999999999 --config tiny.yaml",
]


def build() -> None:
    """A person's files, in the current folder."""
    rng = np.random.default_rng(0)
    write_run(Path("runs/tiny"))
    Path("tiny.yaml").write_text(Path("runs/tiny/config.yaml").read_text())
    Path("plan.yaml").write_text(PLAN)
    lines = [line for line in Path("tiny.yaml").read_text().splitlines(True) if line[:5] not in ("name:", "seed:")]
    Path("tiny_base.yaml").write_text("".join(lines))
    Path("twice.yaml").write_text("base: tiny_base.yaml\nmethods: {a: {}, a: {}}\n")
    for name in ("images", "empty", "images_of_two/train/a", "images_of_two/train/b", "images_of_two/val/a"):
        Path(name).mkdir(parents=True)
    for name in ("images/a.png", "images/b.png", "images_of_two/train/a/1.png", "images_of_two/train/b/1.png"):
        Path(name).write_bytes(encoded(scene(rng), "PNG"))
    Path("images_of_two/val/a/1.png").write_bytes(encoded(scene(rng), "PNG"))
    os.mkfifo("pipe")
    os.mkfifo("pipe.png")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("/nowhere/file")
    Path("read_only").symlink_to("/proc")  # where not even root can write


def varied(command: str, words: list[str], chance: random.Random) -> list[str]:
    """Good words with one or two of them made wrong."""
    words = list(words)
    for _ in range(chance.choice((1, 1, 1, 2))):
        at = chance.randrange(len(words))
        how = chance.choice(("absurd", "absurd", "absurd", "absurd", "gone", "twice", "misspelt", "more", "joined"))
        if how == "absurd":
            values = [i for i, word in enumerate(words) if not word.startswith("--")]
            words[chance.choice(values or [at])] = chance.choice(ABSURD)
        elif how == "gone" and len(words) > 1:
            del words[at]
        elif how == "twice":
            words.insert(at, words[at])
        elif how == "misspelt":
            words[at] = words[at].replace("-", "_", 1) if chance.random() < 0.3 else words[at] + "s"
        elif how == "more":
            words.insert(at, chance.choice(ABSURD + ["--optim.lrr", "--help", "--json", "--model.depth"]))
        elif how == "joined" and at + 1 < len(words):
            words[at : at + 2] = ["=".join(words[at : at + 2])]
    return [command, *words]


def cases(count: int, seed: int) -> list[list[str]]:
    """All lines by hand, and as many varied ones."""
    result = [line.split() for line in BY_HAND]
    good = GOOD | REFUSED
    for number in range(count):
        chance = random.Random(seed * 1_000_000 + number)
        command = chance.choice(sorted(COMMANDS))
        result.append(varied(command, good[command].split(), chance))
    return result


def ends(some: list[list[str]]) -> Iterator[tuple[str, End]]:
    """Each in a folder with the same files."""
    for words in some:
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            build()
            with untouched(Path(name)) as changed:
                end = attempt(words)
            changed = [path for path in changed if not path.endswith(".lock")]
            label = " ".join(ascii(word)[1:-1][:60] or "''" for word in words)
            yield label, End(WRONG, f"changed {changed}") if changed else end
        os.chdir("/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--varied", type=int, default=200, help="besides those by hand (default: 200)")
    parser.add_argument("--count", type=int, help="so many of all by lot (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every refusal")
    options = parser.parse_args()
    some = chosen(cases(options.varied, options.seed), options.count, options.seed)
    return run_all(ends(some), len(some), "command lines", options.show)


if __name__ == "__main__":
    sys.exit(main())
