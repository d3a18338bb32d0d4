import csv
import io
import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from convnext_cli.cli import console
from convnext_cli.text import (
    MAX_NAME,
    format_count,
    format_digits,
    format_p,
    format_part,
    format_percent,
    guard_cell,
    make_visible,
    quote,
    shorten_names,
    to_json,
)

ODD = (
    "=1+1",
    "+1",
    "-2",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "line\nFAKE",
    "return\rFAKE",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "\x7f",
    "\x85",
    "\u202egnp.exe\u202c",
    "\u2066x\u2069",
    "\u200f",
    "\u061c",
    "\u2028line",
    "\u2029",
    "\ufeffx",
    'quote"x',
    "it's",
    "back\\slash",
    "$(id)",
    "`id`",
    "-x",
    "~",
    "a  b",
    "開発",
    "é",
    "👩\u200d🔬",
    "\udcff\udcfe.png",
    "nul\x01",
    "\uff1d1",
)
CONTROLS = {
    chr(code) for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), 0x2028, 0x2029, 0x2066, 0x2069)
}


@pytest.mark.parametrize("text", ODD)
def test_nothing_controls_a_terminal(text: str) -> None:
    shown = make_visible(text)
    assert not CONTROLS & set(shown)
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_letters_and_signs_are_unchanged() -> None:
    assert make_visible("naïve 開発 👩\u200d🔬 نه\u200cخیر") == "naïve 開発 👩\u200d🔬 نه\u200cخیر"
    assert make_visible("a\n\x1b\u202e\udcff") == r"a\n\x1b\u202e\udcff"


@pytest.mark.parametrize("text", [*ODD, "\x1bf", "a'\nb", "\udcffA"])
def test_a_quoted_path_is_that_path_in_a_shell(text: str) -> None:
    quoted = quote(text)
    assert not CONTROLS & set(quoted)
    done = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert done.stdout.removeprefix(b"./") == os.fsencode(text)
    assert not done.stdout.startswith(b"-")


@pytest.mark.parametrize("text", ODD)
def test_a_csv_cell_is_one_line_and_never_a_formula(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.show_csv_row([text, 0.5, None, -1, True, math.nan, Path("a")])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert not CONTROLS & set(out.removesuffix("\n"))
    [cells] = csv.reader(io.StringIO(out, newline=""))
    assert cells[0][0] not in "=+-@\t\r\uff1d\uff0b\uff0d\uff20"
    assert cells[1:] == ["0.5", "", "-1", "True", "", "a"]


@pytest.mark.parametrize("text", [text for text in ODD if "\udcff" not in text])
def test_an_exact_cell_is_the_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.show_csv_row([text, "x"], exact=True)
    [cells] = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert cells == [text, "x"]


def test_a_plain_cell_is_unchanged() -> None:
    assert guard_cell("cat") == "cat"
    assert guard_cell(-0.5) == -0.5


@pytest.mark.parametrize("text", ODD)
def test_json_is_ascii_and_restores_the_text(text: str) -> None:
    written = to_json({text: [text, Path(text)]})
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written) == {text: [text, text]}


def test_json_has_null_for_numbers_that_are_not_finite() -> None:
    written = to_json({"a": [math.nan, 1.5], "b": (math.inf, -math.inf), "c": {"d": math.nan}})
    assert json.loads(written, parse_constant=pytest.fail) == {"a": [None, 1.5], "b": [None, None], "c": {"d": None}}


def test_a_printed_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for write in (console.say, console.note, console.fail, console.show):
        write("line\nFAKE\r\u2028x")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "line\\nFAKE\\r\\u2028x",
        "note: line\\nFAKE\\r\\u2028x",
        "error: line\\nFAKE\\r\\u2028x",
    ]
    assert captured.out == "line\\nFAKE\\r\\u2028x\n"


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (1234, ("image",), "1,234 images"),
        (1, ("class",), "1 class"),
        (2, ("class",), "2 classes"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
        (1, ("image is", "images are"), "1 image is"),
        (2, ("image is", "images are"), "2 images are"),
    ],
)
def test_a_count_agrees_with_its_noun(number: int, words: tuple[str, ...], text: str) -> None:
    assert format_count(number, *words) == text


def test_a_verb_agrees_with_the_part_and_the_noun_with_the_total() -> None:
    assert format_part(1, 1234, "image", "is", "are") == "1 of 1,234 images is"
    assert format_part(0, 1, "image", "is", "are") == "0 of 1 image are"


def test_only_exact_percentages_and_p_values_are_shown_as_the_end_of_their_range() -> None:
    assert [format_percent(value) for value in (0, 0.001, 0.5, 0.996, 1)] == ["0", "<1", "50", ">99", "100"]
    assert [format_percent(value, 1) for value in (1e-9, 0.0004, 0.9996, 1.0)] == ["<0.1", "<0.1", ">99.9", "100.0"]
    assert [format_p(value) for value in (0.0, 0.0312, 1.0)] == ["< 1e-300", "= 0.031", "= 1"]


def test_numbers_below_a_million_have_no_exponent() -> None:
    values = (0.012345, 1.0, 999.4, 999.6, 12345.6, 999999.0, 1.5e6, -2500.0, 0.0)
    assert [format_digits(value, 3) for value in values] == [
        "0.0123", "1", "999", "1000", "12346", "999999", "1.5e+06", "-2500", "0",
    ]  # fmt: skip


def test_names_of_any_length_and_number_make_a_short_sentence() -> None:
    assert shorten_names(["cat", "a\nb"]) == "cat, a\\nb"
    many = [f"{k}{'x' * 400}end" for k in range(3000)]
    assert len(shorten_names(many)) < 5 * (MAX_NAME + 2) + 2
    assert shorten_names(many).startswith(f"0{'x' * 23}…{'x' * 20}end, 1x")
