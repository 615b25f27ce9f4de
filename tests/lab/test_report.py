"""`skipvit report` on a sweep whose numbers are made up: its tables against the same figures worked out here, its page
in a browser, and measurements that are not true any more."""

import base64
import contextlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from skipvit.cli import run
from skipvit.lab.report import accuracy, page, speed, weights
from skipvit.lab.report.figures import kept_figure
from skipvit.lab.report.origin import save
from skipvit.lab.report.page import Plot, Text, to_html, to_markdown, to_png
from skipvit.lab.report.write import write_report
from skipvit.lab.study import Arm, outcome, read_study
from skipvit.lab.sweep import claimed
from support.damage import mutated
from support.study import ROUTED, write_run

# By method: keys; after epochs 2 and 4 top-1 by seed, dense and routed.
METHODS = {
    "dense": ({}, [([80.0, 82.0, 84.0], None), ([90.0, 92.0, 94.0], None)]),
    "skipvit": (ROUTED, [([60.0, 62.0, 64.0], [70.0, 91.0, 92.0]), ([80.0, 81.0, 82.0], [91.0, 91.0, 94.0])]),
    "random": (
        ROUTED | {"routes": [{"start": 2, "end": 5, "scorer": "random"}]},
        [([40.0] * 3, [50.0] * 3), ([70.0] * 3, [80.0, 82.0, 84.5])],
    ),
}
WARMUP = {0: [88.0, 90.0, 92.0], 2: [90.0, 90.0, 93.0]}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "made_up"
    runs = []
    for method, (keys, evaluations) in METHODS.items():
        for seed in range(3):
            values = [(dense[seed], routed and routed[seed]) for dense, routed in evaluations]
            runs.append(write_run(folder, f"{method}-s{seed}", method, seed, keys, values))
    for epochs, tops in WARMUP.items():
        keys = ROUTED | {
            "phases": [{"epochs": epochs, "routes": []}, {}],
            "ema": {"decay": 0.0},
            "optim": {"epochs": 4, "warmup_epochs": 0},
        }
        for seed, top1 in enumerate(tops):
            name, point = f"long-warmup_{epochs}", {"warmup": f"{25 * epochs}%"}
            runs.append(write_run(folder, f"{name}-s{seed}", "long", seed, keys, [(50.0, top1)] * 2, name, point))
    runs.append(runs[-1] | {"name": "lost-s0", "method": "lost", "variant": "lost"})
    about = {"plan": "made_up", "baseline": "dense", "target": 90.0, "runs": runs}
    (folder / "sweep.json").write_text(json.dumps(about))
    (folder / "failed.json").write_text(json.dumps({"lost-s0": "data.path: <nowhere> is not a folder"}))
    return folder


def fake_measure(variants, rounds):
    """Times without noise: dense 0.2 s a step, routed 0.1 s; random jumps about, too much to be quoted."""
    rng = np.random.default_rng(0)
    for variant in variants:
        step_s = {"dense": 0.2, "skipvit": 0.1}.get(variant.name, 0.1)
        noise = rng.uniform(0.5, 1.5, rounds) if variant.name == "random" else 1.0
        turn_s = (step_s * noise * np.ones(rounds)).tolist()
        variant.raw = {"step": {"first_s": 5.0, "steps_of_a_turn": 1, "turn_s": turn_s, "order": [0]}}
        variant.device, variant.peak = "cpu", 2**30 if variant.forward == "dense" else 2**29
    return variants


def tables(folder):
    """The tables of report.md: by first column, the other cells."""
    lines = (folder / "report" / "report.md").read_text().splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|") and "---" not in line
    ]
    return {(row[0], i): row[1:] for i, row in enumerate(cells)}


def rows_of(folder, name):
    return [row for (first, _), row in tables(folder).items() if first == name]


@pytest.fixture(scope="module")
def without_speed(sweep):
    assert run("report", [str(sweep)]) == 0
    return tables(sweep), (sweep / "report/report.md").read_text(), (sweep / "report/report.html").read_text()


def save_weights(sweep):
    """What --weights would find: dense weights of each seed along skipvit's routes, and a figure of kept patches."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    kept = {2: np.tile(np.arange(20, 49), (2, 1)), 10: np.tile(np.arange(29), (2, 1))}
    runs = {arm.label: arm.runs for arm in read_study(sweep).arms}
    paths = {run.run.path.name: run.run.checkpoints()[-1] for of in runs.values() for run in of.values()}
    dense = {seed: weights.of_checkpoint(run, paths[f"dense-s{seed}"]) for seed, run in runs["dense"].items()}
    tops = [{"top1": 70.0 + seed} | about for seed, about in dense.items()]
    png = base64.b64encode(to_png(kept_figure(images, kept, 8))).decode()
    of_kept = {"png": png} | weights.of_checkpoint(runs["skipvit"][0], paths["skipvit-s0"])
    save(sweep / "weights.json", "cpu", {"dense_weights_routed": {"skipvit": tops}, "kept": {"skipvit": of_kept}})


@pytest.fixture(scope="module")
def complete(sweep, without_speed):
    """The report after a measurement, with dense weights along the routes and kept patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "take_turns", fake_measure)
        save_weights(sweep)
        assert run("report", [str(sweep), "--bench"]) == 0
    return sweep / "report"


def test_accuracies_and_paired_differences(sweep, without_speed):
    """90, 92, 94: mean 92, s 2, half width 4.3027 x 2 / sqrt(3) = 4.97. skipvit less dense: 1, -1, 0: 0 +- 2.48."""
    assert rows_of(sweep, "dense")[0] == ["3", "dense", "92.00 ± 4.97", "92.00 ± 4.97", "–", "", "", "baseline"]
    assert rows_of(sweep, "skipvit")[0] == [
        "3",
        "routed",
        "92.00 ± 4.30",
        "81.00 ± 2.48",
        "92.00 ± 4.30",
        "+0.00 ± 2.48",
        "3.26",  # 2.48 x 1.314: noncentral t with two degrees of freedom, 5.654 / 4.303
        "not distinguishable from dense",
    ]
    assert rows_of(sweep, "random")[0][-3:] == ["-9.83 ± 0.72", "0.94", "below dense"]
    order = ["method", "dense", "skipvit", "random", "long-warmup_0", "long-warmup_2"]
    assert [row[0] for row in tables(sweep)][:6] == order


def test_equal_differences_are_no_certainty(sweep):
    """Three seeds that all differ by one point have an interval of no width, which is no evidence of anything."""
    read = read_study(sweep)
    (arm,) = [arm for arm in read.arms if arm.label == "skipvit"]
    for seed, top1 in enumerate((91.0, 93.0, 95.0)):
        arm.runs[seed].top1["routed"] = top1
    assert accuracy.difference(read, arm) == (
        "+1.00 ± 0.00",
        "–",
        "the same in every seed, by chance: its spread is not known",
    )


def test_another_method_can_be_the_baseline(sweep, tmp_path):
    """Of dense, 90, 92, 94, and random, each by seed; random's own difference to dense with the other sign."""
    assert run("report", [str(sweep), "--baseline", "random", "--out", str(tmp_path / "report")]) == 0
    assert rows_of(tmp_path, "dense")[0][-3:] == ["+9.83 ± 0.72", "0.94", "above random"]
    assert rows_of(tmp_path, "random")[0][-1] == "baseline"
    assert (
        rows_of(tmp_path, "skipvit")[-1][0] == "92.00 ± 4.97"
    )  # the matrix is of the dense weights, whatever the baseline


def test_it_says_how_many_seeds_what_is_missing_and_that_it_does_not_rank(without_speed):
    _, markdown, page = without_speed
    assert "5 methods, 3 seeds (0, 1, 2); 15 of 16 runs are finished" in markdown and "left out: lost-s0." in markdown
    assert "lost-s0 failed: data.path: \\<nowhere> is not a folder" in markdown and "&lt;nowhere&gt;" in page
    assert "which is no ranking" in markdown and "best" not in markdown.lower()


def test_without_a_measurement_there_is_no_measured_speed(without_speed):
    _, markdown, _ = without_speed
    assert "no speed was measured yet" in markdown and "images/s" not in markdown and "measured gain" not in markdown
    assert "The speeds are ideal, not measured." in markdown
    assert "Dense weights along the routes were not evaluated" in markdown


def test_measured_gains_count_the_warm_up(sweep, complete):
    """Steps of 0.1 instead of 0.2 s in 3 of 4 epochs: the whole run is 4 / (1 + 3 / 2) = 1.6 x as fast."""
    speed = rows_of(sweep, "skipvit")[1]
    assert speed[3:] == ["320", "2.00 × (2.00 to 2.00)", "1.60 × (1.60 to 1.60)", "512 (0.50 ×)"]
    assert rows_of(sweep, "dense")[1][3:] == ["160", "", "", "1024"]
    assert "Without a speed that could be quoted, and so not here: random." in (complete / "report.md").read_text()
    assert rows_of(sweep, "random")[1][3] == "" and rows_of(sweep, "random")[1][4].startswith("too noisy to say (")
    ideal, whole = (float(cell.split()[0]) for cell in speed[1:3])
    assert whole == pytest.approx(4 / (1 + 3 / ideal), abs=0.01)
    for epochs, gain in ((2, "1.33 ×"), (0, "2.00 ×")):
        assert rows_of(sweep, f"long-warmup_{epochs}")[1][5].startswith(gain)


def test_time_to_the_target_is_epochs_times_measured_seconds(sweep, complete):
    """Of skipvit seed 0 reaches 90 % after 4 epochs, the others after 2; an epoch is 10 steps. 1 x 2 s + 3 x 1 s and
    twice 2 + 1."""
    assert rows_of(sweep, "skipvit")[2][:2] == ["3 of 3", "2.7 ± 2.9"]
    mean, half = np.mean([5, 3, 3]), 4.3027 * np.std([5, 3, 3], ddof=1) / np.sqrt(3)
    assert rows_of(sweep, "skipvit")[2][2] == f"{mean:.1f} ± {half:.1f}"
    assert rows_of(sweep, "dense")[2] == ["3 of 3", "4.0 ± 0.0", "8.0 ± 0.0"]
    assert rows_of(sweep, "random")[2] == ["0 of 3", "–", "–"]


def test_the_matrix_of_training_and_evaluation(sweep, complete):
    assert rows_of(sweep, "skipvit")[3] == ["92.00 ± 4.97", "71.00 ± 2.48", "81.00 ± 2.48", "92.00 ± 4.30"]
    assert rows_of(sweep, "random")[3][1] == "–"


def test_the_page_is_one_small_file_that_needs_no_network(complete):
    page = (complete / "report.html").read_text()
    assert len(page.encode()) < 5e6
    assert not re.search(r"https?://|<script|<link|@import|url\(|srcset", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    for source in sources:
        assert base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG")


def test_accuracy_is_drawn_over_numbers_and_over_shares(complete):
    assert "# Accuracy over warmup, %\n" in (complete / "report.md").read_text()
    assert accuracy._number(("routes.0.keep_ratio", 0.3)) == ("routes.0.keep_ratio", 0.3)
    assert accuracy._number(("warmup", "2.5%")) == ("warmup, %", 2.5)
    assert accuracy._number(("size", "small")) is None and accuracy._number(("phases.hold", True)) is None


def test_the_markdown_names_figures_that_are_there(complete):
    markdown = (complete / "report.md").read_text()
    named = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert named == ["seeds.png", "front.png", "time.png", "curve_warmup.png", "kept_skipvit.png"]
    for name in named:
        assert np.asarray(Image.open(complete / name).convert("L")).std() > 5


def test_distinct_steps_are_measured_once(sweep):
    """Warm-up and learning rates do not change a step: `long` is timed as skipvit is, `random` is not."""
    (steps,) = speed.groups(read_study(sweep)).values()
    assert [(arm.name, forward) for arm, forward in steps.values()] == [
        ("dense", "dense"),
        ("skipvit", "routed"),
        ("random", "routed"),
    ]


def test_nothing_is_timed_beside_a_running_sweep(sweep, capsys):
    with claimed(sweep):
        assert run("report", [str(sweep), "--bench"]) == 2
    assert "another sweep works in it; wait for its end or stop it" in capsys.readouterr().err


def test_figures_show_the_speed_of_whole_runs(sweep, complete):
    """Routed steps are twice as fast: with one dense epoch of four the run is 1.6 times, with two 1.33, with none 2
    times as fast."""
    study = read_study(sweep)
    _, speeds, left_out = speed.read(study, "cpu")
    gains = speed.gains_of(study, speeds)
    assert gains["skipvit"] == pytest.approx((1.6, 1.6, 1.6)) and gains["dense"] == (1, 1, 1) and not left_out
    assert gains["long-warmup_2"][0] == pytest.approx(4 / 3) and "random" not in gains
    ideal = {label: gain[0] for label, gain in speed.gains_of(study, {}).items()}
    zero, two = ideal["long-warmup_0"], ideal["long-warmup_2"]
    assert zero > ideal["skipvit"] > two > 1 == ideal["dense"]


def test_gains_and_times_go_by_phases(tmp_path):
    """2 dense epochs, 3 on few tokens at 4 times the speed, 5 on more at 2 times: 10 / (2 + 3 / 4 + 5 / 2) = 1.905."""
    few = [{"start": 2, "end": 5, "keep_ratio": 0.2}]
    phases = [{"epochs": 2, "routes": []}, {"epochs": 3, "routes": few}, {}]
    keys = {"routes": ROUTED["routes"], "phases": phases, "optim": {"epochs": 10, "warmup_epochs": 0}}
    write_run(tmp_path, "mixed-s0", "mixed", 0, keys, [(50.0, 60.0)] * 2)
    (tmp_path / "mixed-s0/summary.json").write_text('{"epochs": 10, "forwards": {"routed": {"top1": 60.0}}}')
    run_ = outcome(tmp_path / "mixed-s0", 0)
    arm = Arm("mixed", "mixed", "", {}, {0: run_})
    assert arm.others == ["phase2", "routed"] and arm.forward == "routed"
    gains = {"dense": (1.0, 1.0, 1.0), "phase2": (4.0, 3.0, 5.0), "routed": (2.0, 2.0, 2.0)}
    steps = {name: speed.Step(32, 0.8 / gain[0], 1, gain) for name, gain in gains.items()}
    assert speed.run_gain(arm.config, steps) == pytest.approx((10 / 5.25, 10 / 5.5, 10 / 5.1))
    times = {1: 8.0, 2: 16.0, 4: 20.0, 5: 22.0, 7: 30.0, 10: 42.0}  # 10 steps an epoch of 0.8, 0.2, 0.4 s
    assert {epochs: speed.seconds_until(run_, steps, epochs) for epochs in times} == pytest.approx(times)


def copied(sweep, tmp_path, methods=("dense", "skipvit", "random"), seeds=(0, 1, 2)):
    """The sweep with some of its methods, in a folder of its own."""
    about = json.loads((sweep / "sweep.json").read_text())
    about["runs"] = [run for run in about["runs"] if run["method"] in methods and run["seed"] in seeds]
    for run_ in about["runs"]:
        shutil.copytree(sweep / run_["name"], tmp_path / "copy" / run_["name"])
    for path in sweep.glob("*.json"):
        shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy/sweep.json").write_text(json.dumps(about))
    return tmp_path / "copy"


def test_what_was_measured_with_other_code_or_on_another_device_is_left_out(sweep, complete, tmp_path, capsys):
    folder = copied(sweep, tmp_path)
    for name, key, other in (("bench.json", "skipvit", "0.1+00000000"), ("weights.json", "device", "ascend")):
        found = json.loads((folder / name).read_text())
        found["origin"][key], found["date"] = other, "2025-01-02"
        (folder / name).write_text(json.dumps(found))
    assert run("report", [str(folder)]) == 0
    markdown = (folder / "report/report.md").read_text()
    said = "bench.json is left out: measured on 2025-01-02 with skipvit 0.1+00000000, now "
    assert said in markdown and said in capsys.readouterr().err
    assert "weights.json is left out: measured on 2025-01-02 with device ascend, now cpu" in markdown
    assert "no speed was measured yet" in markdown and "kept_skipvit" not in markdown
    assert rows_of(folder, "skipvit")[-1][1] == "–"


def test_weights_of_a_run_that_was_trained_since_are_left_out(sweep, complete, tmp_path):
    folder = copied(sweep, tmp_path)
    (folder / "dense-s1/checkpoints/epoch_0004_step_000010.ckpt").write_bytes(b"others")
    (folder / "skipvit-s0/config.yaml").write_text(
        (folder / "skipvit-s0/config.yaml").read_text().replace("0.9", "0.8")
    )
    (folder / "random-s0/checkpoints/epoch_0004_step_000010.ckpt").write_bytes(b"others")  # not of what was measured
    assert run("report", [str(folder)]) == 0
    markdown = (folder / "report/report.md").read_text()
    assert "weights.json: trained since, and so left out: dense-s1, skipvit-s0;" in markdown
    assert rows_of(folder, "skipvit")[-1][1] == "71.00 ± 12.71" and "kept_skipvit" not in markdown  # of 70 and 72


SIDE_FILES = ["sweep.json", "failed.json", "bench.json", "weights.json", "skipvit-s0/summary.json"]
SIDE_FILES += ["skipvit-s0/config.yaml", "skipvit-s0/metrics.jsonl", "dense-s0/versions.json"]


@pytest.mark.parametrize("name", SIDE_FILES)
def test_files_of_the_wrong_shape_are_one_line(sweep, complete, tmp_path, capsys, monkeypatch, name):
    """Cut, no JSON, JSON of another shape, and each value in turn replaced by one of another type."""
    monkeypatch.setattr(page, "to_png", lambda figure: b"png")  # drawing takes most of the time
    folder = copied(sweep, tmp_path, ("dense", "skipvit"), (0,))
    text = (folder / name).read_text() if (folder / name).exists() else '[{"skipvit": "1"}]'
    wrong = [text[: len(text) // 2], "", "[1]", '"x"', "{}", '{"epochs": 4}', "\x00\xff"]
    if name.endswith("json"):
        rng = np.random.default_rng(0)
        wrong += [json.dumps(mutated(json.loads(text), rng)) for _ in range(8)]
    for content in wrong:
        (folder / name).write_text(content)
        assert run("report", [str(folder)]) in (0, 1, 2), content[:200]
        err = capsys.readouterr().err
        assert "Traceback" not in err and len(err.splitlines()) <= 2 and len(err) < 2000, content[:200]


@pytest.mark.parametrize("name", ["bench.json", "weights.json"])
def test_measurements_of_the_wrong_types_are_left_out_whatever_their_checksum(
    sweep, complete, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(page, "to_png", lambda figure: b"png")
    folder, rng = copied(sweep, tmp_path, ("dense", "skipvit"), (0,)), np.random.default_rng(1)
    whole = json.loads((folder / name).read_text())
    whole = {key: value for key, value in whole.items() if key not in ("origin", "date", "checksum")}
    wrong = [json.loads(json.dumps(whole)) for _ in range(4)]
    if name == "bench.json":
        timed = [values["groups"][0]["variants"][1]["step"] for values in wrong]
        timed[0]["speedup"], timed[1]["speedup_interval"], timed[2]["median_s"] = "fast", [1], {}
        timed[2]["speedup_interval"], wrong[3]["load_before"] = None, {}
    else:
        rows = [values["dense_weights_routed"]["skipvit"][0] for values in wrong]
        rows[0]["top1"], rows[1]["top1"], rows[2]["seed"], rows[3]["top1"] = "x", 1e300, [], None
    for i, values in enumerate([*wrong, *(mutated(whole, rng) for _ in range(4))]):
        with contextlib.suppress(ValueError):  # NaN is written by none of ours
            save(folder / name, "cpu", values)
        assert write_report(folder) and (i > 3 or f"{name} is left out" in report_text(folder)), values


def report_text(folder):
    return (folder / "report" / "report.md").read_text()


def test_names_that_mean_something_to_others_stay_names(tmp_path):
    """To HTML, to Markdown, to a file system and to a terminal."""
    image = to_png(kept_figure(np.zeros((1, 8, 8, 3), np.uint8), {}, 2))
    blocks = [
        Text(["<b>*x*</b> `<i>` \x1b[31m | [a](b)"]),
        Plot("drop.fused", image, "a"),
        Plot("drop_fused", image, "b"),
    ]
    html, markdown = to_html("a & b", blocks), to_markdown("a & b", blocks, tmp_path)
    assert "&lt;b&gt;*x*&lt;/b&gt; <code>&lt;i&gt;</code> \\x1b[31m" in html and "<title>a &amp; b</title>" in html
    assert "\\<b>\\*x\\*\\</b> `<i>` " in markdown and "\\[a\\](b)" in markdown and "\x1b" not in html + markdown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drop_fused.png", "drop_fused_2.png"]
    assert "(drop_fused.png)" in markdown and "(drop_fused_2.png)" in markdown


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{empty}"], 2, "not the folder of a sweep"),
        (["{unfinished}"], 1, "no run of this sweep is finished yet"),
        (["{empty}", "--benhc"], 2, "--benhc is not an option; did you mean --bench?"),
        (["{empty}", "--rounds", "3"], 2, "rounds: 3 rounds have no 95 % interval"),
        (["{sweep}", "--baseline", "randem"], 2, "randem is not a finished method of this sweep; did you mean random?"),
        (["{sweep}", "--baseline", "long"], 2, "long is several methods (long-warmup_0, long-warmup_2)"),
        (["{empty}", "--target", "0"], 2, "--target: 0 is not an accuracy"),
        ([], 2, "folder"),
    ],
)
def test_wrong_words_are_refused_in_one_line(sweep, tmp_path, capsys, words, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    shutil.copy(sweep / "sweep.json", tmp_path / "unfinished")
    places = {"empty": tmp_path / "empty", "unfinished": tmp_path / "unfinished", "sweep": sweep}
    assert run("report", [word.format(**places) for word in words]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message.upper() in lines[0].upper()


@pytest.mark.slow
def test_the_page_opens_in_a_browser(complete, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no headless browser here")
    image = tmp_path / "page.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1366,768",
        f"--screenshot={image}",
    ]
    subprocess.run(
        [browser, *options, (complete / "report.html").as_uri()], capture_output=True, timeout=120, check=True
    )
    shown = np.asarray(Image.open(image).convert("L"))
    assert shown.shape == (768, 1366)
    assert shown.mean() > 200 and (shown < 128).mean() > 0.005  # dark text on white, not an empty page
