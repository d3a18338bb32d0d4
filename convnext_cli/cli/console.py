"""The only place that prints. Results go to stdout, everything else to stderr, and only from the first process."""

import csv
import io
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from convnext_cli.cli.streams import name_stdout
from convnext_cli.cli.tables import count_cells, fold_line, lay_out
from convnext_cli.machine import is_launched
from convnext_cli.progress import Notice, Result, Yielded, finish
from convnext_cli.progress import Progress as StepProgress
from convnext_cli.text import format_count, guard_cell, make_visible, to_json

_RANK = os.environ["RANK"] if is_launched() else "0"  # `get_rank` checks it
_SILENT = _RANK != "0"
Style = Literal["", "bold", "dim", "yellow", "bold red", "bold yellow", "bold green"]
_STYLES: dict[Style, str] = {  # ECMA-48, SGR
    "bold": "1", "dim": "2", "yellow": "33", "bold red": "1;31", "bold yellow": "1;33", "bold green": "1;32",
}  # fmt: skip
MAX_ROWS = 100  # of a table with a row for each part of the data
PLAIN_EVERY = 30.0  # seconds between two lines of progress where there is no terminal


def _print(stream: TextIO, text: str, style: Style = "", label: str = "", label_style: Style = "") -> None:
    """Write a line, on a terminal folded between words; the label in front of it has a style of its own."""
    first, *others = fold_line(label + make_visible(text), _find_width(stream) if _is_terminal(stream) else None)
    with name_stdout():
        stream.write(_paint(stream, label, label_style) + _paint(stream, first.removeprefix(label), style) + "\n")
        stream.writelines(_paint(stream, line, style) + "\n" for line in others)
        stream.flush()  # in order, where both streams go to the same file


def _paint(stream: TextIO, text: str, style: Style) -> str:
    """Return the text in a style, if the stream shows colours; FORCE_COLOR and NO_COLOR decide first."""
    shown = os.environ.get("FORCE_COLOR") or (_is_terminal(stream) and not os.environ.get("NO_COLOR"))
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and text and shown else text


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _find_width(stream: TextIO) -> int | None:
    """Return the columns of the terminal; None for a file or a pipe, where no line is folded."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):  # 0 where a program does not know the terminal
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80 if stream.isatty() else None
    except OSError:  # the terminal was closed
        return None


def say(text: str, style: Style = "") -> None:
    """Write a line of log. Here and below a line stays one: names in it may hold what ends a line."""
    if not _SILENT:
        _print(sys.stderr, text, style)


def note(text: str) -> None:
    """Write a note: nothing needs to be done."""
    notify(Notice(text))


def notify(notice: Notice) -> None:
    """Write a notice after its severity."""
    if not _SILENT:
        label_style: Style = "yellow" if notice.severity == "warning" else "bold"
        _print(sys.stderr, notice.text, "", f"{notice.severity}: ", label_style)


def fail(text: str) -> None:
    """Write an error as one line; from every process, since it may be the only one that has it."""
    start = f"error (process {_RANK}): " if _SILENT else "error: "
    _print(sys.stderr, text, "", start, "bold red")


def show(text: str, style: Style = "") -> None:
    """Write a line of the result."""
    if not _SILENT:
        _print(sys.stdout, text, style)


def show_parts(parts: Iterable[str]) -> None:
    """Write the parts of a row of the result side by side, those that a terminal has no room for on lines below."""
    width = _find_width(sys.stdout) if _is_terminal(sys.stdout) else None
    line, *others = map(make_visible, parts)
    for part in others:
        if width is not None and count_cells(f"{line}  {part}".rstrip()) > width:
            show(line.rstrip())
            line = f"    {part}"
        else:
            line += f"  {part}"
    show(line.rstrip())


def show_lines(text: str) -> None:
    """Write lines of the result that are our own text."""
    for line in text.split("\n"):
        show(line)


def show_raw(text: str) -> None:
    """Write a part of the result exactly as it is, for programs."""
    if not _SILENT:
        with name_stdout():
            sys.stdout.write(text)


def show_csv_row(cells: Iterable[Any], *, exact: bool = False) -> None:
    """Write a row of CSV, one line, which no spreadsheet computes; `exact` leaves names as they are, to the byte."""
    text = io.StringIO()
    if exact and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    # with its own line ends it quotes both of their characters
    csv.writer(text).writerow(cells if exact else map(guard_cell, cells))
    show_raw(text.getvalue().removesuffix("\r\n") + "\n")


def show_json(data: Any) -> None:
    """Write the whole result as JSON."""
    show_raw(to_json(data, indent=1) + "\n")


def show_json_rows(rows: Iterable[Any]) -> None:
    """Write a JSON array row by row, so that a long one needs no memory."""
    first = True
    for row in rows:
        show_raw(("[\n" if first else ",\n") + to_json(row))
        first = False
    show_raw("[]\n" if first else "\n]\n")


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Sequence[str] = (),
    spare: Sequence[str] = (),
    part: str = "",
) -> None:
    """Write a table of the result.

    Args:
        columns: titles.
        rows: cells; None is a dash.
        numbers: titles of the columns aligned to the right.
        spare: titles of the columns that a narrow terminal leaves out, the first one first.
        part: the part of the data that each row is of; rows after the first `MAX_ROWS` are counted only, and `--json`
            must have them.
    """
    shown = list(rows)
    more = len(shown) - MAX_ROWS if part else 0
    _print_table(sys.stdout, columns, shown[:MAX_ROWS] if more > 0 else shown, numbers, spare)
    if more > 0:
        show(f"({format_count(more, f'more {part}')}: --json has all)")


def log_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table to the log."""
    _print_table(sys.stderr, columns, rows)


def _print_table(
    stream: TextIO,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    numbers: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    if not _SILENT:
        lines = lay_out(columns, rows, numbers, _find_width(stream), spare)
        for line, is_title in lines:
            _print(stream, line, "bold" if is_title else "")


class Bar:
    """Progress of one thing: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, label: str, draw: Callable[..., None] | None = None) -> None:
        self._label = label
        self._draw = draw
        self._next_line = time.monotonic() + PLAIN_EVERY

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` is reached; `text` is the activity, where the label does not say it."""
        text = "" if text == self._label else text
        if self._draw is not None:
            self._draw(completed=done, total=total, text=text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_EVERY
            say(f"{self._label}: {done}/{total} {text}".rstrip())


def run(
    label: str, steps: Generator[Yielded, None, Result], show: Callable[[Yielded, Bar], None] | None = None
) -> Result:
    """Run a long operation with a progress bar, and return its result.

    `label` stands before the bar; `show` shows the events that are neither `Progress` nor `Notice`.
    """
    with progress(label) as bar:

        def show_event(event: Any) -> None:
            match event:
                case StepProgress():
                    bar.update(event.done, event.total, event.activity)
                case Notice():
                    notify(event)
                case _ if show is not None:
                    show(event, bar)

        return finish(steps, show_event)


@contextmanager
def progress(label: str) -> Iterator[Bar]:
    """Provide a `Bar` for the length of the block. What is logged meanwhile appears above it."""
    if _SILENT or not _is_terminal(sys.stderr):
        yield Bar(label)
        return
    from rich.console import Console  # here: what shows no bar answers sooner without
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeRemainingColumn(),
    )
    # Results that go into a file must not be drawn above the bar, which would send them to stderr.
    # A line stays one, which the terminal folds: a path or a command in it can be copied.
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        yield Bar(label, partial(bars.update, bars.add_task(label, total=None, text="")))


def shorten_path(path: Path) -> str:
    """Return a path relative to the current folder if it lies in it, else in full."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
