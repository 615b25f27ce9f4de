"""What a run comes to: numbers that are known, and nothing made up for those that are not."""

import pytest

from skipvit.runs.summary import as_text, summary

MACS = {"dense": 4_000_000_000, "routed": 2_500_000_000}


def epoch(number, trained, speed, top1, **values):
    val = {name: {"top1": top1 + i, "top5": 90.0} for i, name in enumerate(("dense", "routed", "routed_ema"))}
    return {"epoch": number, "trained": trained, "images_per_s": speed, "val": val} | values


RECORDS = [
    epoch(1, "dense", 100.0, 40.0),
    epoch(2, "dense", 500.0, 50.0),
    epoch(3, "routed", 800.0, 70.0),
    epoch(4, "routed", 900.0, 60.0),
    epoch(5, "routed", 1000.0, 62.0),
    epoch(6, "routed", 813.0, 65.0, best_top1=72.0, overflows=3.0, broken_images=1),
]


def test_summary_of_two_forwards():
    found = summary(RECORDS, "routed_ema", MACS)
    assert found["trained"] == "routed" and found["epochs"] == 6
    assert found["best"] == {"forward": "routed_ema", "top1": 72.0, "epoch": 3}
    assert found["overflows"] == 3 and found["broken_images"] == 1
    dense, routed, averaged = (found["forwards"][name] for name in ("dense", "routed", "routed_ema"))
    assert dense == {"top1": 65.0, "top5": 90.0, "train_images_per_s": 300.0, "gmacs": 4.0}  # median of 100 and 500
    assert routed["train_images_per_s"] == (813 + 900) / 2 and routed["gmacs"] == averaged["gmacs"] == 2.5
    assert (routed["top1"], averaged["top1"]) == (66.0, 67.0)


def test_the_text_compares_what_is_counted_and_not_what_a_log_happens_to_say():
    """Epochs of one run are timed at different hours: their ratio is of the machine's other work too."""
    text = as_text(summary(RECORDS, "routed_ema", MACS))
    assert "routed against dense: MACs 1.60 x fewer" in text
    assert f"{856.5 / 300:.2f}" not in text and text.count(" x ") == 1
    assert "best: 72.00 % (routed_ema, epoch 3)" in text and "3 updates were skipped" in text


@pytest.mark.parametrize("lost", [[], [2, 3], [0, 1, 2, 3, 4]])
def test_what_the_log_has_lost_is_null(lost):
    """Lines of single epochs (a full disk), and what a run that was killed in its last evaluation cannot know."""
    records = [record for i, record in enumerate(RECORDS) if i not in lost]
    last = {name: value for name, value in RECORDS[-1].items() if name not in ("images_per_s", "broken_images")}
    found = summary([*records[:-1], last], "routed_ema", MACS)
    assert found["broken_images"] is None and found["epochs"] == 6
    assert found["best"]["epoch"] == (None if 2 in lost else 3) and found["best"]["top1"] == 72.0
    speeds = {(): (300.0, 900.0), (2, 3): (300.0, 1000.0), (0, 1, 2, 3, 4): (None, None)}[tuple(lost)]
    assert tuple(found["forwards"][name]["train_images_per_s"] for name in ("dense", "routed")) == speeds
    text = as_text(found)
    assert "None" not in text and ("epoch 3" in text) == (2 not in lost)


def test_a_run_without_routes_has_one_row_and_nothing_to_compare():
    val = {"dense": {"top1": 50.0, "top5": 80.0}}
    found = summary([{"epoch": 1, "trained": "dense", "val": val, "best_top1": 50.0}], "dense", {"dense": 10**9})
    assert list(found["forwards"]) == ["dense"] and found["forwards"]["dense"]["train_images_per_s"] is None
    assert "x fewer" not in as_text(found)
