"""Read the rows of a JSON Lines file, such as the `metadata.jsonl` of Hugging Face's ImageFolder, as a CSV file's."""

import csv
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

from convnext_cli.errors import DataError
from convnext_cli.tasks.reading import LIST


class _Number(str):
    """A number as it is written: `1.0` and `1` differ, as in a CSV file."""

    __slots__ = ()


def read_json_rows(path: Path, text: str) -> tuple[list[list[str]], list[int], list[str]]:
    """Return the names of the columns and the cells of each object, the lines they are in, and the keys left out.

    A key that a line lacks is a blank cell, and a list of texts or numbers is a cell of several labels. Keys with other
    lists or objects, such as bounding boxes, are left out.

    Raises:
        DataError: a line is not a JSON object, or has a value that is no cell.
    """
    records: list[dict[str, str | None]] = []
    lines = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a string may hold other ends of lines
        if not line.strip():
            continue
        try:
            pairs = [(_read_text(name, name), value) for name, value in _parse(line)]
            record = {name: _read_value(name, value) for name, value in pairs}
            if len(record) < len(pairs):
                names = [name for name, _ in pairs]
                raise ValueError(f"the key {max(names, key=names.count)!r} stands there twice")
        except ValueError as error:
            problem, remedy, *_ = (*error.args, "Write one JSON object in each line")
            raise DataError(f"{path}, line {number}: {problem}", remedy) from error
        records.append(record)
        lines.append(number)
    left_out = {name for record in records for name, cell in record.items() if cell is None}
    names = [name for name in dict.fromkeys(chain.from_iterable(records)) if name not in left_out]
    rows = [[record.get(name) or "" for name in names] for record in records]
    return [names, *rows] if rows else [], lines[:1] + lines, sorted(left_out)


def _parse(line: str) -> tuple[tuple[str, Any], ...]:
    """Return the keys and values of an object. Objects in it are tuples too."""
    try:
        record = json.loads(
            line, object_pairs_hook=tuple, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if not isinstance(record, tuple):
        raise ValueError("it is not an object, such as {" + '"file_name": "1.png", "label": "cat"}')
    return record


def _read_value(key: str, value: Any) -> str | None:
    """Return the cell of a value; None of an object, or of a list of other values than texts and numbers.

    Raises:
        ValueError: as `_read_text`.
    """
    if isinstance(value, list):
        return LIST.join(_read_text(key, item) for item in value) if all(isinstance(x, str) for x in value) else None
    return None if isinstance(value, tuple) else _read_text(key, "" if value is None else str(value))


def _read_text(key: str, text: str) -> str:
    """Return a text without blanks at its ends."""
    if len(text) > csv.field_size_limit():
        raise ValueError(f"the value of {key!r} has over {csv.field_size_limit():,} characters", "Leave it out")
    if re.search(f"[\0{LIST}\ud800-\udfff]", text):
        raise ValueError(f"the value of {key!r} has a control character or half a character", "Correct it")
    return text.strip()
