import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convnext_cli.cli import console, predict
from convnext_cli.cli.tables import fold_line, lay_out
from convnext_cli.cli.training_view import VALUE_WIDTH, head_epoch
from convnext_cli.inference.prediction import Prediction
from convnext_cli.metrics.registry import METRICS
from convnext_cli.tasks.registry import SINGLE, TASKS
from convnext_cli.text import MAX_NAME

ROWS: list[list[Any]] = [["cat", 0.5, "a word or two"], ["開発", None, "x\x1b[31my\nz"]]


def lines_of(width: int | None) -> list[str]:
    return [line for line, _ in lay_out(["class", "share", "why"], ROWS, ["share"], width)]


def test_columns_are_aligned_with_their_titles() -> None:
    assert lines_of(None) == [
        "class  share  why",
        "cat      0.5  a word or two",
        "開発       -  x\\x1b[31my\\nz",  # its two signs take four places
    ]


def test_long_texts_are_folded_between_words() -> None:
    assert lines_of(27)[1:3] == ["cat      0.5  a word or two", "開発       -  x\\x1b[31my\\nz"]
    folded = list(lay_out(["class", "why"], [["cat", "a word or two"]], [], 12))
    assert [line for line, _ in folded] == ["class  why", "cat    a", "       word", "       or", "       two"]


def test_a_licence_is_broken_at_its_hyphens() -> None:
    table = list(lay_out(["model", "licence"], [["tiny", "fair-noncommercial-research-license"]], [], 26))
    assert [line for line, _ in table][1:] == ["tiny   fair-noncommercial-", "       research-license"]


def test_prose_is_folded_between_words_and_commands_stay_whole() -> None:
    text = "  effect    one two three four five six seven `convnext export runs/a` writes it"
    assert fold_line(text, None) == fold_line(text, 90) == [text]
    assert fold_line(text, 44) == [
        "  effect    one two three four five six",
        "      seven `convnext export runs/a` writes",
        "      it",
    ]
    assert len(fold_line(f"Next: {text}", 44)) == 3
    for whole in (f"Next: convnext {text}", text, "Report: a folder/of a/long path/report.html"):
        assert fold_line(whole, 26) == [whole]


def test_parts_of_a_row_that_do_not_fit_a_terminal_are_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ["a.png ", "cat  90.0%", "dog  10.0%", "sensitivity=0.9:cat: yes"]
    console.show_parts(parts)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(console, "_is_terminal", lambda _: True)
    monkeypatch.setenv("NO_COLOR", "1")
    console.show_parts(parts)
    assert capsys.readouterr().out.splitlines() == [
        "a.png   cat  90.0%  dog  10.0%  sensitivity=0.9:cat: yes",
        "a.png   cat  90.0%  dog  10.0%",
        "    sensitivity=0.9:cat: yes",
    ]


def test_a_number_is_not_separated_from_its_unit() -> None:
    table = list(lay_out(["model", "time"], [["convnext_base", "1980 days on 2 cores"]], [], 25))
    assert [line for line, _ in table] == [
        "model          time",
        "convnext_base  1980 days",
        "               on 2 cores",
    ]


def test_rows_become_blocks_if_words_do_not_fit() -> None:
    assert lines_of(26)[:3] == ["cat", "  share 0.5;", "  why a word or two"]
    assert max(map(len, lines_of(12))) <= 12


def test_facts_of_a_block_are_not_broken() -> None:
    columns = ["group", "images", "AUC %", "95% CI", "ECE %", "95% CI "]
    rows = [["sex f", 15, 62.8, "[36.3, 84.2]", 48.9, " [0.0, 48.9]"]]
    assert [line for line, _ in lay_out(columns, rows, columns[1:], 34)] == [
        "sex f",
        "  images 15; AUC % 62.8;",
        "  95% CI [36.3, 84.2]; ECE % 48.9;",
        "  95% CI [0.0, 48.9]",
    ]


def test_the_epochs_of_every_task_fit_80_columns() -> None:
    for task in TASKS.values():
        titles = [head_epoch(METRICS[key]).rjust(VALUE_WIDTH) for key in task.display.epoch]
        assert len("    epoch  train loss  val loss  " + "  ".join([*titles, "images/s"])) <= 80


def test_zero_columns_are_no_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    console.show_table(["class", "share", "why"], ROWS, numbers=["share"])
    assert capsys.readouterr().out.splitlines() == lines_of(None)


def test_spare_columns_are_left_out_with_a_line_that_names_them() -> None:
    columns, rows = ["model", "tier", "why"], [["convnext_zepto_rms_ols", 4, "light"]]
    lines = [line for line, _ in lay_out(columns, rows, ["tier"], 32, ["tier"])]
    assert lines == [
        "model                   why",
        "convnext_zepto_rms_ols  light",
        "(no room for tier)",
    ]
    assert "tier" in next(lay_out(columns, rows, ["tier"], 40, ["tier"]))[0]


def test_a_table_of_parts_of_the_data_does_not_fill_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    many = console.MAX_ROWS + 4900
    console.show_table(["class"], [[f"c{k}"] for k in range(many)], part="class")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:-1] == [f"c{k}" for k in range(console.MAX_ROWS)]
    assert lines[-1] == "(4,900 more classes: --json has all)"
    console.show_table(["class"], [["c"]] * console.MAX_ROWS, part="class")
    assert len(capsys.readouterr().out.splitlines()) == 1 + console.MAX_ROWS


def test_a_table_without_titles_has_no_line_for_them() -> None:
    assert list(lay_out(["", ""], [["a", 1]], [], None)) == [("a  1", False)]


@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1"}, False)]
)
def test_colours_are_for_terminals_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    console.show("text", style="bold")
    console.note("bell\x07")
    bold, label = ("\x1b[1mtext\x1b[0m", "\x1b[1mnote: \x1b[0m") if coloured else ("text", "note: ")
    assert capsys.readouterr() == (f"{bold}\n", f"{label}bell\\x07\n")


def test_a_progress_bar_leaves_results_in_a_file_alone_and_lines_whole() -> None:
    line = f"run: a folder/{'long/' * 60}run"
    script = f"""
from convnext_cli.cli import console
with console.progress("predicting") as bar:
    bar.update(1, 2)
    console.show_raw("row\\n")
    console.say("{line}")
"""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TERM": "xterm", "RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
    )
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)
    assert done.stdout == b"row\n"
    assert b"predicting" in shown
    assert line.encode() + b"\r\n" in shown
    assert b"row" not in shown


def test_names_of_all_classes_are_measured_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def count(text: str) -> int:
        measured.append(text)
        return len(text)

    monkeypatch.setattr(predict, "count_cells", count)
    classes = (*(f"class {k}" for k in range(500)), "x" * 255)
    prediction = Prediction(path=Path("a.png"), task=SINGLE, classes=classes, probabilities=(1 / 501,) * 501)
    predict._show_table(iter([prediction] * 20), [Path("a.png")], 3)
    assert len(measured) == 1 + len(classes) + 20 * (1 + 3)
    assert {len(line) for line in capsys.readouterr().out.splitlines()} == {5 + 3 * (2 + MAX_NAME + 7)}, "not 3 x 255"
