"""Read the rows of a JSON Lines file, such as the `metadata.jsonl` of Hugging Face's ImageFolder, as a CSV file's."""

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

from convnext_cli.errors import DataError
from convnext_cli.tasks.reading import LIST
from convnext_cli.text import NESTED_TOO_DEEPLY

_NO_TEXT = re.compile(f"[\0{LIST}\ud800-\udfff]")


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
            record = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)  # numbers as written
            if not isinstance(record, dict):
                raise TypeError("it is not an object, such as " + '{"file_name": "1.png", "label": "cat"}')
            records.append({name.strip(): _read_value(name, value) for name, value in record.items()})
        except (ValueError, TypeError, RecursionError) as error:
            problem = f"it is not JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)
            problem = NESTED_TOO_DEEPLY if isinstance(error, RecursionError) else problem
            raise DataError(f"{path}, line {number}: {problem}", "Write one JSON object in each line") from error
        lines.append(number)
    left_out = {name for record in records for name, cell in record.items() if cell is None}
    names = [name for name in dict.fromkeys(chain.from_iterable(records)) if name not in left_out]
    rows = [[record.get(name) or "" for name in names] for record in records]
    return [names, *rows] if rows else [], lines[:1] + lines, sorted(left_out)


def _read_value(key: str, value: Any) -> str | None:
    """Return the cell of a value; None of an object, or of a list of other values than texts and numbers."""
    items = value if isinstance(value, list) else ["" if value is None else value]
    if isinstance(value, dict) or any(isinstance(item, list | dict | None) for item in items):
        return None
    texts = [str(item).strip() for item in items]
    if any(map(_NO_TEXT.search, (key, *texts))):
        raise ValueError(f"the value of {key!r} has a control character or half a character")
    return LIST.join(texts)
