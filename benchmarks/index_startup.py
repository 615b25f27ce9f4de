"""How fast an image folder opens: python benchmarks/index_startup.py [--files N] [--classes N] [--folder FOLDER].

Makes a tree of empty files named as ImageNet's, opens it in fresh processes, prints a table, removes the tree. The
directories have just been written and are in the system's memory: a cold or shared disk is slower, most of all without
the index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from skipvit.data.sources.image_folder import open_split
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
source = open_split(Path(sys.argv[1]), "train", Path(sys.argv[2]) if sys.argv[2:] else None)
seconds = time.perf_counter() - start
print(json.dumps({"images": len(source), "seconds": seconds, "before_mib": before, "peak_mib": peak()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N", help="images (default: 1000000)")
    parser.add_argument("--classes", type=int, default=1000, metavar="N", help="class folders (default: 1000)")
    parser.add_argument(
        "--folder", metavar="FOLDER", help="where to make the tree (default: the system's temporary folder)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="index_startup_") as folder:
        tree, index = Path(folder) / "data", Path(folder) / "index"
        made = make_tree(tree / "train", options.files, options.classes)
        print(f"{options.files:,} files in {options.classes:,} folders, made in {made:.0f} s\n")
        time.sleep(2.5)  # folders changed within the last two seconds are not trusted
        print(f"{'':32}{'seconds':>9}{'peak MiB':>10}{'of which imports':>18}")
        show("without an index", measure(tree))
        show("first start, writes the index", measure(tree, index))
        show("next start, reads it", measure(tree, index))
        next((tree / "train").iterdir()).joinpath("new.JPEG").touch()
        show("after one folder changed", measure(tree, index))
        size = sum(path.stat().st_size for path in index.iterdir())
        print(f"\nindex file: {size / 2**20:.1f} MiB")


def make_tree(root: Path, files: int, classes: int) -> float:
    """Make the tree; seconds it took."""
    start = time.perf_counter()
    for label in range(classes):
        name = f"n{1440764 + 1009 * label:08d}"
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(label, files, classes):
            os.close(os.open(f"{folder}/{name}_{i // classes * 17}.JPEG", os.O_CREAT | os.O_WRONLY))
    return time.perf_counter() - start


def measure(tree: Path, index: Path | None = None) -> dict:
    """Open the tree in a process of its own."""
    words = [sys.executable, "-c", MEASURE, str(tree)] + ([str(index)] if index else [])
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)


def show(what: str, result: dict) -> None:
    print(f"{what:32}{result['seconds']:9.2f}{result['peak_mib']:10.0f}{result['before_mib']:18.0f}", flush=True)


if __name__ == "__main__":
    main()
