"""Tables line up, errors and names stay within a line, and a misspelt word finds what was meant."""

import json
import re

import pytest

from skipvit.util.text import (
    as_json,
    counted,
    duration,
    for_figure,
    nearest,
    one_line,
    printable,
    shortened,
    size,
    table,
)


def test_numbers_to_the_right_names_to_the_left():
    rows = [("dense", "98.70", "-", "all"), ("routed, 中文", "9.5 %", 814, None), ("x",)]
    assert table(rows, ("", "top-1 %", "training\nimages/s", "note"), indent=1).split("\n") == [
        "                        training",
        "               top-1 %  images/s  note",
        " dense           98.70         -  all",
        " routed, 中文    9.5 %       814",  # two columns of the terminal a character
        " x",
    ]
    assert table([("1", "b")], align="<>") == "1  b"
    assert table([("10 x", "1:2"), ("2 x", "10:2")]) == "10 x  1:2\n 2 x  10:2"
    assert table([]) == ""


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("\n------\n  bad \x1b[31mvalue\nmore"), r"bad \x1b[31mvalue"),
        (KeyError(), "KeyError"),
        (RuntimeError("a" * 1000), "a" * 300),
        (FileNotFoundError(2, "No such file or directory", "/x/y"), "/x/y: No such file or directory"),
        (FileNotFoundError(2, "No such file or directory", b"/x\n\xff"), r"/x\n\udcff: No such file or directory"),
        (OSError(9, "Bad file descriptor", 7), "Bad file descriptor"),
    ],
)
def test_one_line_of_an_error(error, line):
    assert one_line(error) == line


def test_long_values_lose_their_middle():
    assert shortened("a" * 60) == "a" * 60
    for text in ("b" * 61 + "end", "b" * 10**6 + "end", "b" * 119 + "end"):
        assert len(shortened(text)) == 60 and re.fullmatch("b{40}[.]{3}b+end", shortened(text))
    assert len(shortened("\x1b" * 100)) == 60 and shortened("\n") == "\\n"


def test_json_has_no_numbers_that_are_not_finite():
    values = {"a": [1.5, float("nan"), (float("-inf"), None)], "b": {"c": float("inf"), "\udcff": True}}
    text = as_json(values)
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word)) == {
        "a": [1.5, None, [None, None]],
        "b": {"c": None, "\udcff": True},
    }


def test_names_cannot_upset_a_terminal_or_a_figure():
    assert printable("猫 é $x$") == "猫 é $x$"
    assert printable("a\nb\x1b]0;\udcff\u202e") == r"a\nb\x1b]0;\udcff\u202e"
    assert for_figure("$x\n") == r"\$x\n"


def test_quantities():
    assert [duration(s) for s in (5.4, 89, 600, 12000)] == ["5 s", "89 s", "10 min", "3 h 20 min"]
    assert [counted(1, "image"), counted(12000, "image"), counted(2, "process", "processes")] == [
        "1 image",
        "12,000 images",
        "2 processes",
    ]
    assert [size(512 << 20), size(4.6 * 2**30)] == ["512 MiB", "4.6 GiB"]


OPTIONS = (
    "-h --help --log --log.steps --optim.lr --optim.min_lr --optim.warmup_epochs --optim.epochs --data.batch_size "
    "--data.path --config --runs --model.depth"
).split()


@pytest.mark.parametrize(
    "word, meant",
    [
        ("--lr", "--optim.lr"),
        ("--optim.learning_rate", "--optim.lr"),
        ("--learning-rate", "--optim.lr"),
        ("--batch_size", "--data.batch_size"),
        ("--batch-size", "--data.batch_size"),
        ("--epochs", "--optim.epochs"),
        ("--data.pth", "--data.path"),
        ("--confg", "--config"),
        ("--model.dept", "--model.depth"),
    ],
)
def test_what_a_misspelt_option_meant(word, meant):
    assert nearest(word, OPTIONS) == f"; did you mean {meant}?"


def test_nothing_is_near():
    assert nearest("--quixotry", OPTIONS) == "" and nearest("x", []) == ""
