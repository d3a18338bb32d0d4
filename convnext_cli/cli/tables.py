"""Text tables. Not rich's: importing rich would take a third of the time of `list`."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any
from unicodedata import combining, east_asian_width

from convnext_cli.text import make_visible

_GAP = "  "  # between two columns
# A space that a line may be broken at: not between a number and its unit, and not within an interval.
_BREAK = re.compile(r" (?!(?<=\d )(?:s|min|h|days?|px|degrees|GiB|MiB|MB)(?!\w)|(?<=\d, )[-+\d.]+\])")
# A word of prose, with what must not be broken: a command in backticks, the blanks of a layout, a number with its unit.
_WORD = re.compile(r"(?:`[^`]*`| {2,}|(?<=\d) (?=(?:s|min|h|px|GiB|MB)\b)|\S)+")
_HYPHENATED = re.compile(r"[a-z]+(-[a-z]+){2,},?")  # such as a licence, which may be broken at its hyphens
MIN_PROSE = 8  # words; shorter lines hold paths


def lay_out(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    numbers: Sequence[str],
    width: int | None,
    spare: Sequence[str] = (),
) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a table, each with True if it belongs to the titles.

    Words are kept whole. If the columns do not fit, spare ones are left out, and a line names them. If that is not
    enough, each row becomes a block of lines.

    Args:
        columns: titles.
        rows: cells; None is a dash.
        numbers: titles of the columns aligned to the right.
        width: columns of the terminal, into which long texts are folded; None folds nothing.
        spare: titles of the columns that may be left out, the first one first.
    """
    grid = [[make_visible("-" if cell is None else str(cell)) for cell in row] for row in (columns, *rows)]
    kept, left_out = _choose_columns(grid, width, [list(columns).index(title) for title in spare])
    if width is not None and _find_least(grid, kept) > width:
        yield from _stack(grid, width)
        return
    are_right = [columns[at] in numbers for at in kept]
    grid = [[row[at] for at in kept] for row in grid]
    widths = [max(map(count_cells, column)) for column in zip(*grid, strict=True)]
    if width is not None:
        _narrow(widths, grid, width - len(_GAP) * (len(widths) - 1))
    for at, row in enumerate(grid):
        if at > 0 or any(columns):
            for line in _fold_row(row, widths, are_right):
                yield line, at == 0
    if left_out and width is not None:
        for line in _fold(f"(no room for {', '.join(columns[at] for at in left_out)})", width):
            yield line, False


def fold_line(text: str, width: int | None) -> list[str]:
    """Return a line of prose as lines of at most `width` columns, broken between words; None folds nothing.

    The next command, and lines with a path or command that does not fit, stay whole: a terminal folds these, and they
    can be copied.
    """
    words = _WORD.findall(text)
    if width is None or count_cells(text) <= width or len(words) < MIN_PROSE or text.startswith("Next: convnext "):
        return [text]
    start = text[: len(text) - len(text.lstrip(" "))]
    indent = f"{start}    "
    lines = [start + words[0].lstrip(" ")]
    for word in words[1:]:
        if count_cells(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return lines if max(map(count_cells, lines)) <= width else [text]


def _choose_columns(
    grid: Sequence[Sequence[str]], width: int | None, spare: Sequence[int]
) -> tuple[list[int], Sequence[int]]:
    """Return the columns that are shown, and the spare ones that are left out so that they fit."""
    everything = range(len(grid[0]))
    for number in range(len(spare) + 1):
        kept = [at for at in everything if at not in spare[:number]]
        if width is None or _find_least(grid, kept) <= width:
            break
    return kept, spare[:number]


def _fold_row(row: Sequence[str], widths: Sequence[int], are_right: Sequence[bool]) -> Iterator[str]:
    """Yield the lines of a row, whose cells are folded into their columns and aligned to the right or left."""
    folded = [_fold(cell, cells) for cell, cells in zip(row, widths, strict=True)]
    for parts in zip_longest(*folded, fillvalue=""):
        padded = (_pad(*cell) for cell in zip(parts, widths, are_right, strict=True))
        yield _GAP.join(padded).rstrip()


def _stack(grid: Sequence[Sequence[str]], width: int) -> Iterator[tuple[str, bool]]:
    """Yield each row as a block: its first cell, and below it the others with their titles, as one text."""
    titles, *rows = grid
    for row in rows:
        for line in _fold(row[0], width):
            yield line, False
        facts = [
            f"{title.strip()} {cell.strip()}".strip() for title, cell in zip(titles[1:], row[1:], strict=True) if cell
        ]
        for line in _join_facts(facts, max(1, width - len(_GAP))):
            yield _GAP + line, False


def _join_facts(facts: Sequence[str], cells: int) -> Iterator[str]:
    """Yield lines of at most `cells` of facts, of which one is folded only if it does not fit a line of its own."""
    line = ""
    for at, fact in enumerate(facts, start=1):
        ended = f"{fact};" if at < len(facts) else fact
        if line and count_cells(f"{line} {ended}") > cells:
            yield from _fold(line, cells)
            line = ""
        line = f"{line} {ended}".lstrip()
    yield from _fold(line, cells)


def _find_least(grid: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Return the width of a table of these columns folded between all words."""
    longest = (max(_find_longest(row[at]) for row in grid) for at in kept)
    return sum(longest) + len(_GAP) * (len(kept) - 1)


def _find_longest(cell: str) -> int:
    """Return the width of the longest part of a text that is not broken."""
    return max(count_cells(part) for word in _BREAK.split(cell) for part in _split_word(word))


def _split_word(word: str) -> list[str]:
    """Return the parts between which a long word may be broken."""
    return re.split(r"(?<=-)", word) if _HYPHENATED.fullmatch(word) else [word]


def _narrow(widths: list[int], grid: Sequence[Sequence[str]], width: int) -> None:
    """Take from the widest columns until they fit; no column gets narrower than its longest word."""
    words = [max(map(_find_longest, column)) for column in zip(*grid, strict=True)]
    while sum(widths) > width:
        spare = [cells if cells > word else 0 for cells, word in zip(widths, words, strict=True)]
        widths[spare.index(max(spare))] -= 1


def count_cells(text: str) -> int:
    """Return the width of a text in a terminal: East Asian letters take two cells, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(sign) else 2 if east_asian_width(sign) in "WF" else 1 for sign in text)


def _fold(text: str, cells: int) -> list[str]:
    """Return lines of at most `cells`, broken between words, or within a word that is longer."""
    if count_cells(text) <= cells:
        return [text]
    lines = [""]
    for word in _BREAK.split(text):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if count_cells(longer) <= cells:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        parts = _split_word(word)
        for part in word if max(map(count_cells, parts)) > cells else parts:
            if lines[-1] and count_cells(lines[-1] + part) > cells:
                lines.append("")
            lines[-1] += part
    return lines


def _pad(text: str, cells: int, is_right: bool) -> str:
    space = " " * (cells - count_cells(text))
    return space + text if is_right else text + space
