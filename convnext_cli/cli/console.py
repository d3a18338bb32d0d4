"""The only place that prints. Results go to stdout, everything else to stderr, and only from the first process."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table

_RANK = os.environ.get("RANK", "0")
_SILENT = _RANK != "0"
# A file's name may hold what a terminal obeys, such as colours; shown as \x1b and the like. New lines are our own.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}
PLAIN_EVERY = 30.0  # seconds between two lines of progress where there is no terminal


def _console(*, stderr: bool, silent: bool = _SILENT) -> "Console":
    return _make_console(sys.stderr if stderr else sys.stdout, silent)


@cache
def _make_console(stream: TextIO, silent: bool) -> "Console":
    """A console that never wraps or cuts what goes into a file or a pipe."""
    from rich.console import Console  # here, because `--help` does without

    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return Console(file=stream, highlight=False, width=width, quiet=silent)


def _print(text: str, style: str, *, stderr: bool) -> None:
    from rich.text import Text  # plain text: names from the user's folders are never read as markup

    _console(stderr=stderr).print(Text(text.translate(_VISIBLE), style=style), soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """Writes a line of log."""
    _print(text, style, stderr=True)


def warn(text: str) -> None:
    """Writes a line that the user should not miss."""
    from rich.text import Text

    _console(stderr=True).print(Text.assemble(("note: ", "yellow"), text), soft_wrap=True)


def fail(text: str) -> None:
    """Writes an error as one line; from every process, since it may be the only one that has it."""
    from rich.text import Text

    start = f"error (process {_RANK}): " if _SILENT else "error: "
    line = Text.assemble((start, "bold red"), " ".join(text.split()))
    _console(stderr=True, silent=False).print(line, soft_wrap=True)


def show(text: str, style: str = "") -> None:
    """Writes a line of the result."""
    _print(text, style, stderr=False)


def show_raw(text: str) -> None:
    """Writes a part of the result exactly as it is, for programs."""
    if not _SILENT:
        sys.stdout.write(text)


def show_json(data: Any) -> None:
    """Writes the whole result as JSON."""
    show_raw(json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")


def show_json_rows(rows: Iterable[Any]) -> None:
    """Writes a JSON array row by row, so that a long one needs no memory."""
    first = True
    for row in rows:
        show_raw(("[\n" if first else ",\n") + json.dumps(row, ensure_ascii=False, default=str))
        first = False
    show_raw("[]\n" if first else "\n]\n")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = ()) -> None:
    """Writes a table of the result; `numbers` names the columns that stand to the right. None is a dash."""
    _console(stderr=False).print(make_table(columns, rows, numbers))


def log_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = ()) -> None:
    """Writes a table to the log."""
    _console(stderr=True).print(make_table(columns, rows, numbers))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[str]) -> "Table":
    """A table whose cells are never read as markup: names come from the user's folders."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("-" if cell is None else _flatten(str(cell))) for cell in row))
    return table


class Bar:
    """Progress of one thing: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, progress: "Progress | None", task: "TaskID | None", label: str) -> None:
        self._progress = progress
        self._task = task
        self._label = label
        self._next_line = time.monotonic() + PLAIN_EVERY

    def update(self, done: int, total: int, text: str = "") -> None:
        """Shows that `done` of `total` is reached."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, text=text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_EVERY
            say(f"{self._label} {done}/{total} {text}".rstrip())


@contextmanager
def progress(label: str) -> Iterator[Bar]:
    """Gives a `Bar` for the length of the block. What is logged meanwhile appears above it."""
    console = _console(stderr=True)
    if not console.is_interactive or _SILENT:
        yield Bar(None, None, label)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield Bar(bars, bars.add_task(label, total=None, text=""), label)


def shorten(path: Path) -> str:
    """A path from here where it lies below, else the whole of it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _flatten(text: str) -> str:
    """A table's cell: one line, and nothing in it that a terminal would obey."""
    return text.replace("\n", "\\n").replace("\t", "\\t").translate(_VISIBLE)


def percent(share: float | None) -> str | None:
    """A share as percent with one decimal."""
    return None if share is None else f"{100 * share:.1f}"
