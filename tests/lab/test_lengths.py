"""Time to equal accuracy in a report, against the same figures worked out by hand."""

import json

import numpy as np
import pytest

from skipvit.lab.report import lengths
from skipvit.lab.report.speed import Step
from skipvit.lab.report.write import write_report
from skipvit.lab.study import read_study
from support.study import ROUTED, write_run

EPOCHS = (4, 8, 16)
# By method and seed: top-1 after 4, 8 and 16 epochs.
TOPS = {"dense": ([60.0, 70.0, 80.0], [61.0, 71.0, 81.0]), "skipvit": ([58.0, 70.0, 79.0], [59.0, 71.0, 82.0])}


def test_times_and_accuracies_lie_on_lines_over_the_logarithm_of_time():
    points = [(1.0, 50.0), (4.0, 70.0), (16.0, 68.0), (64.0, 80.0)]
    assert lengths.time_of(points, 60.0) == pytest.approx(2.0)
    assert lengths.time_of(points, 50.0) == 1.0 and lengths.time_of(points, 70.0) == pytest.approx(4.0)
    assert lengths.time_of(points, 75.0) == pytest.approx(32.0)  # the fall in between is no accuracy that was lost
    assert lengths.time_of(points, 49.9) is None and lengths.time_of(points, 80.1) is None
    assert lengths.top1_at(points, 2.0) == pytest.approx(60.0) and lengths.top1_at(points, 8.0) == pytest.approx(69.0)
    assert lengths.top1_at(points, 0.9) is None and lengths.top1_at(points, 65.0) is None


def test_the_speed_up_is_taken_at_the_highest_accuracy_that_both_reach():
    dense = [(4.0, 60.0), (8.0, 70.0), (16.0, 80.0)]
    assert lengths.speed_up(dense, dense) == 1.0
    assert lengths.speed_up([(time / 2, top1) for time, top1 in dense], dense) == pytest.approx(2.0)
    # 75 % at the end of the method's 8: dense needs 8 x sqrt(2) for it.
    assert lengths.speed_up([(4.0, 65.0), (8.0, 75.0)], dense) == pytest.approx(np.sqrt(2))
    # Better than dense ever is: it is at 80 % after 2 x sqrt(2), between 2 and 4.
    assert lengths.speed_up([(2.0, 75.0), (4.0, 85.0)], dense) == pytest.approx(16 / (2 * np.sqrt(2)))
    assert lengths.speed_up([(2.0, 85.0)], dense) is None and lengths.speed_up([(2.0, 50.0)], dense) is None


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lengths")
    runs = []
    for method, seeds in TOPS.items():
        for seed, tops in enumerate(seeds):
            for epochs, top1 in zip(EPOCHS, tops):
                name, keys = f"{method}-epochs_{epochs}-s{seed}", {"optim": {"epochs": epochs, "warmup_epochs": 1}}
                keys |= ROUTED if method == "skipvit" else {}
                evaluations = [(top1, top1 if method == "skipvit" else None)]
                entry = write_run(folder, name, method, seed, keys, evaluations, epochs=(epochs,))
                runs.append(entry | {"cell": f"epochs_{epochs}", "point": {"optim.epochs": epochs}})
    (folder / "sweep.json").write_text(json.dumps({"plan": "lengths", "baseline": "dense", "runs": runs}))
    return folder


def test_a_row_by_hand(study):
    """Ten steps an epoch, dense 0.1 s, routed 0.05 s, one epoch of each routed run dense: skipvit takes 1 + 7.5 = 8.5 s
    for 16 epochs, 1 + 3.5 = 4.5 for 8, and dense 16, 8 and 4. Seed 0: 79 % after 8.5 s, where dense needs 8 x 2^0.9.
    Seed 1: dense has 81 % after 16 s, skipvit 10/11 of the way from 4.5 to 8.5 s over the logarithm."""
    read = read_study(study)
    steps = {"dense": Step(32, 0.1, 1), "routed": Step(32, 0.05, 1, (2.0, 2.0, 2.0))}
    speeds = {arm.label: steps for arm in read.arms}
    dense, skipvit = lengths.families(read, speeds)
    assert dense.times == pytest.approx([4, 8, 16]) and skipvit.times == pytest.approx([2.5, 4.5, 8.5])
    ratios = np.log([8 * 2**0.9 / 8.5, 16 / (4.5 * (8.5 / 4.5) ** (10 / 11))])
    mean, half = ratios.mean(), 12.7062 * ratios.std(ddof=1) / np.sqrt(2)
    row = lengths._row(skipvit, dense)
    assert row[1] == f"{np.exp(mean):.2f} × ({np.exp(mean - half):.2f} to {np.exp(mean + half):.2f})"
    assert row[2:4] == ["2 of 2", "1 of 2 seeds"]
    later = np.array([79 - 70 - 10 * np.log2(8.5 / 8), 82 - 71 - 10 * np.log2(8.5 / 8)])  # dense at 8.5 s
    assert row[4] == f"{later.mean():+.2f} ± {12.7062 * later.std(ddof=1) / np.sqrt(2):.2f}"


def test_the_report_begins_with_it_and_says_that_times_are_ideal(study):
    markdown = write_report(study).markdown.read_text()
    assert markdown.index("# Time to equal accuracy") < markdown.index("# Accuracy\n")
    assert "times are ideal, by multiply-accumulates" in markdown and "](lengths.png)" in markdown
    assert (study / "report/lengths.png").stat().st_size > 10_000
