"""YAML that would take minutes, gigabytes or the stack, and values that are none: a short line, at once."""

import time

import pytest

from skipvit.util.yaml_text import parse

NINE = "[" + ",".join(["x"] * 9) + "]"
CHAIN = list(zip("abcdefgh", "bcdefghi"))
LISTS = f"a: &a {NINE}\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in CHAIN)
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in CHAIN)
WRONG = [
    (LISTS, "more than 100,000 values once its aliases are written out"),
    (MERGES, "more than 100,000 values once its aliases are written out"),
    ("a: &a [*a]", "more than 100,000 values"),
    ("a: &a {b: *a}", "more than 100,000 values"),
    ("a: 2024-13-45", "line 1, column 4: not valid YAML ('2024-13-45' is not of the type timestamp)"),
    ("a: 0x_", "line 1, column 4: not valid YAML ('0x_' is not of the type int)"),
    ("!!int abc", "'abc' is not of the type int"),
    ("a: !!bool maybe", "'maybe' is not of the type bool"),
    ("!!int ''", "'' is not of the type int"),
    ("!!timestamp never", "'never' is not of the type timestamp"),
    ("!!map abc", "expected a mapping"),
    ("a: " + "9" * 5000, "9...99999999999999999' is not of the type int"),
    ("0x" + "f" * 6000, "a whole number of more than 64 bits"),
    ("1:" * 3000 + "1", "a whole number of more than 64 bits"),
    ("[" * 20_000, "nested deeper than 40 lists and mappings"),
    ('{"a": ' * 10_000, "nested deeper than 40"),
    ("[" * 100 + "]" * 100, "nested deeper than 40"),
    ("- " * 20_000, "nested deeper than 40"),
    ("? " * 20_000, "nested deeper than 40"),
    ("x" * 200_000, "longer than 100,000 characters"),
    ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ("a: 1\na: 2", "line 2, column 1: not valid YAML (a is there twice)"),
    ("k" * 900 + ": 1\n" + "k" * 900 + ": 2", "...kkkkkkkkkkkkkkkkk is there twice"),
    ('"\\e[31m": 1\n"\\e[31m": 2', "\\x1b[31m is there twice"),
    ("? [a]\n: 1", "unhashable"),
    ("a: 1\n---\nb: 2", "another document"),
    ('a: "\\ud800"', "line 1, column 4: not valid YAML ('\\ud800' is not of the type str)"),
    ("\x00", "special characters are not allowed"),
    ("a: *b", "undefined alias"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[:20] for text, _ in WRONG])
def test_a_short_line_in_under_a_second(text, message):
    begun = time.process_time()
    with pytest.raises(ValueError) as refused:
        parse(text)
    said = str(refused.value)
    assert message in said and said.isprintable() and len(said) < 200
    assert time.process_time() - begun < 1


def test_what_people_write_is_read():
    assert parse("") is None and parse("a: &x [1, 2.5, yes, null]\nb: *x") == {
        "a": [1, 2.5, True, None],
        "b": [1, 2.5, True, None],
    }
    assert parse("base: &b {lr: 1.0e-3}\nrun: {<<: *b, name: '[[['}") == {
        "base": {"lr": 1e-3},
        "run": {"lr": 1e-3, "name": "[[["},
    }
