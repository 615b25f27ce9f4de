"""What MindSpore itself can do here: load, read a data set, train a step. `skipvit doctor` runs it as a process of its own.

A broken installation may end the process or hang; so each stage's result is printed as soon as it is there, as a line of JSON.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from functools import partial

MARK = "@probe "  # before each result: drivers print lines of their own
SAMPLE = 8  # images of each split that are decoded
STEPS = 8  # training steps; in float16 the first may be skipped, until the loss scale fits


def main(words: list[str]) -> None:
    """Run the stages: words are the device (auto, cpu or ascend) and, where a run is to be checked, its command line."""
    device, *run = words
    stages: list[tuple[str, Callable[[], dict]]] = [("mindspore", load), ("dataset", read_dataset)]
    if run:
        stages.append(("run", partial(read_run, run)))
    stages.append(("step", partial(train_a_step, device)))
    for name, stage in stages:
        result = _attempt(stage)
        print(f"\n{MARK}{json.dumps({'stage': name} | result)}", flush=True)
        if name == "mindspore" and "error" in result:
            break


def results(text: str) -> dict[str, dict]:
    """The stages' results in what `main` printed."""
    found = {}
    for line in text.splitlines():
        try:
            result = json.loads(line.partition(MARK)[2])
            found[result.pop("stage")] = result
        except (ValueError, AttributeError, KeyError, TypeError):
            continue  # a line of somebody else, or one that was cut off
    return found


def _attempt(stage: Callable[[], dict]) -> dict:
    begun = time.perf_counter()
    try:
        return stage() | {"seconds": time.perf_counter() - begun}
    except (Exception, SystemExit) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -\t")]
        return {"error": (lines or [type(error).__name__])[0][:300]}


def load() -> dict:
    """Import MindSpore; how many devices it sees, or why it has no Ascend part."""
    import mindspore
    from mindspore import device_context

    result = {"version": mindspore.__version__, "devices": 0, "reason": ""}
    if device_context.ascend.is_available():
        result["devices"] = device_context.ascend.device_count()
    else:
        from mindspore._c_expression import MSContext

        lines = str(MSContext.get_instance().load_plugin_error()).splitlines()
        result["reason"] = next((line.strip() for line in lines if "ascend" in line.lower()), "")[:200]
    return result


def _tiny_run():
    """A run whose step compiles in seconds: routed, on the built-in images."""
    from skipvit.config.config import Config

    return Config(
        model={"size": "tiny", "width": 32, "depth": 3, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10},
        routes=[{"start": 1, "end": 2, "keep_ratio": 0.5}],
        data={"kind": "shapes", "batch_size": 16, "train_size": 64},
        optim={"lr": 0.01, "warmup_epochs": 0},
    )


def read_dataset() -> dict:
    """Take an epoch of images through the training pipeline and MindSpore's data engine."""
    from skipvit.data.open import batches_of, open_source

    config = _tiny_run()
    batches = batches_of(config, open_source(config, "train"), 1, training=True)()
    read = sum(len(images) for images, *_ in batches.dataset().create_tuple_iterator(num_epochs=1, output_numpy=True))
    if read != config.data.train_size:
        raise RuntimeError(f"MindSpore's data engine gave {read} images of {config.data.train_size}")
    return {"images": read}


def train_a_step(device: str) -> dict:
    """Compile a real training step and run it a few times on one batch, whose loss starts at ln 10 and must fall.

    That it is finite says little on Ascend 910A, which turns NaN into 0 and infinity into a large number.
    """
    from skipvit.engine import distributed
    from skipvit.engine.build import build_network
    from skipvit.engine.state import REPORT
    from skipvit.engine.synthetic import random_batch, training_step

    chosen, _ = distributed.start(device)
    config = _tiny_run()
    network = build_network(config, chosen)
    step = training_step(config, chosen, network, routed=True)
    batch = random_batch(config, network.noise_width)
    times, reports = [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        reports.append(step(*batch).asnumpy())
        times.append(time.perf_counter() - begun)
    losses = [float(report[REPORT.index("loss")]) for report in reports]
    return {
        "device": chosen,
        "losses": [loss if math.isfinite(loss) else str(loss) for loss in losses],
        "skipped": float(reports[-1][REPORT.index("overflows")]),
        "first_s": times[0],
        "later_s": min(times[1:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def read_run(words: list[str]) -> dict:
    """Read a run's configuration, open its data, decode a few images; how large its checkpoints will be."""
    from skipvit import config as configuration
    from skipvit.data.open import open_source
    from skipvit.data.order import Shard, training_steps

    parser = configuration.OneLineParser(prog="skipvit doctor")
    parser.add_argument("--config")
    config, _ = configuration.from_words(parser, words)
    result = {"checkpoint_bytes": checkpoint_bytes(config), "keep": config.checkpoint.keep, "decoded": 0, "broken": []}
    for split in ("train", "val"):
        source = open_source(config, split)
        result[split], result["classes"] = len(source), len(source.classes)
        for i in range(0, len(source), -(-len(source) // SAMPLE)):
            _decode(config, source, i, result)
    result["steps"] = training_steps(result["train"], config.data.batch_size, Shard(), config.optim.accumulate)
    return result


def _decode(config, source, i: int, result: dict) -> None:
    from skipvit.data.crops import validation_image
    from skipvit.data.decode import BrokenImage
    from skipvit.util.errors import DamagedRecord

    try:
        validation_image(source.read(i), config.model.image_size, config.data.eval_crop)
        result["decoded"] += 1
    except (BrokenImage, DamagedRecord, OSError) as error:
        result["broken"].append(
            f"{source.name(i)}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )


def parameters(config) -> int:
    """Trained numbers of a run's network: patch projection, [CLS], positions, blocks of 12 d^2 + 13 d, norm, head."""
    model = config.model
    shape, d = model.shape(), model.shape().width
    ends = 3 * model.patch**2 * d + d + d + (1 + model.tokens) * d + 2 * d + (d + 1) * model.num_classes
    return ends + shape.depth * (12 * d * d + 13 * d)


def checkpoint_bytes(config) -> int:
    """Weights, two moments and, if there is one, the average: float32 each."""
    return 4 * parameters(config) * (4 if config.ema.decay else 3)


if __name__ == "__main__":
    main(sys.argv[1:])
