"""Read the rows of a JSON Lines file, such as the `metadata.jsonl` of Hugging Face's ImageFolder, as a CSV file's."""

import csv
import json
import re
from pathlib import Path
from typing import Any

from convnext_cli.errors import DataError
from convnext_cli.tasks.reading import LIST

_SAME_KEYS = "Write the same keys in each line, with null where there is no value"


class _Number(str):
    """A number as it is written: `1.0` and `1` differ, as in a CSV file."""

    __slots__ = ()


def read_json_lines(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    """Return the names of the columns and the cells of each object, and the lines that they are in.

    A list of strings is a cell of several labels.

    Raises:
        DataError: a line is not a JSON object, has other keys than the first, or a value that is no cell.
    """
    rows: list[list[str]] = []
    lines = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a string may hold other ends of lines
        if not line.strip():
            continue
        try:
            pairs = _parse(line)
            names = [_read_value(name, name) for name, _ in pairs]
            if len(set(names)) < len(names):
                raise ValueError(f"the key {max(names, key=names.count)!r} stands there twice")
            if not rows:
                rows.append(names)
                lines.append(number)
            if odd := sorted(set(names) ^ set(rows[0])):
                has = "has no key" if odd[0] in rows[0] else "has a key"
                raise ValueError(f"it {has} {odd[0]!r}, unlike line {lines[0]}", _SAME_KEYS)
            cells = {name: _read_value(*pair) for name, pair in zip(names, pairs, strict=True)}
        except ValueError as error:
            problem, remedy, *_ = (*error.args, "Write one JSON object in each line")
            raise DataError(f"{path}, line {number}: {problem}", remedy) from error
        rows.append([cells[name] for name in rows[0]])
        lines.append(number)
    return rows, lines


def _parse(line: str) -> tuple[tuple[str, Any], ...]:
    """Return the keys and values of an object. Objects in it are tuples too, of which a ValueError says where it is."""
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


def _read_value(key: str, value: Any) -> str:
    """Return the cell of a value.

    Raises:
        ValueError: it is an object, a list of other values than strings, no text, or too long for a CSV file too.
    """
    is_list = isinstance(value, list)
    if isinstance(value, tuple) or (is_list and not all(type(item) is str for item in value)):
        kind = "a list with other values than strings" if is_list else "an object"
        raise ValueError(f"the value of {key!r} is {kind}", "Leave it out, or write its values under keys of their own")
    items = ["" if item is None else str(item).strip() for item in (value if is_list else [value])]
    text = "".join(items)
    if len(text) > csv.field_size_limit():
        raise ValueError(f"the value of {key!r} has over {csv.field_size_limit():,} characters", "Leave it out")
    if re.search(f"[\0{LIST}\ud800-\udfff]", text):
        raise ValueError(f"the value of {key!r} has a control character or half a character", "Correct it")
    return LIST.join(items)
