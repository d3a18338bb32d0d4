"""Read the rows of a spreadsheet (XLSX, XLS, ODS) as a CSV file's. Its reader is the extra `excel`.

The reader needs memory for all cells up to the last column and row that hold something, wherever these are, and aborts
the process if there is too little. So a process of its own reads, with a limit. It runs this module.
"""

import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convnext_cli.encoding import SPREADSHEETS
from convnext_cli.errors import DataError, shorten_error
from convnext_cli.machine import GIB
from convnext_cli.text import shorten_names

INSTALL = "needs: pip install 'convnext-cli[excel]'"
MAX_MEMORY, MAX_UNPACKED = 4 * GIB, GIB
_MERGED = "it is an ODS file with cells that are merged over rows"
_SPANS = re.compile(rb'table:number-rows-spanned="(?!1")')
"""Merged rows of ODS, which the reader does not report."""


def is_spreadsheet(path: Path) -> bool:
    """Return True if a file's first bytes are those of a spreadsheet, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(SPREADSHEETS)
    except OSError:
        return False


def lacks_reader(path: Path) -> bool:
    """Return True if a file is a spreadsheet, and the extra that reads it is not installed."""
    return is_spreadsheet(path) and find_spec("python_calamine") is None


def read_spreadsheet(path: Path) -> tuple[list[list[str]], list[int]]:
    """Return the cells of the one visible sheet with a table, without empty rows, and the line of each row.

    A cell that is merged over several rows has its value in each of them; over several columns, in the first one.

    Raises:
        DataError: the extra is not installed, the file cannot be read, several sheets have tables, or an ODS file has
            merged rows.
    """
    if lacks_reader(path):
        raise DataError(f"{path} is a spreadsheet, which {INSTALL}", "Install it, or save the table as a CSV file")
    command = [sys.executable, "-P", "-m", __name__, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    ended = f"it is damaged, or has cells so far from the table that {MAX_MEMORY // GIB} GiB of memory do not hold it"
    result = ended if done.returncode else json.loads(done.stdout)
    if isinstance(result, str):
        remedy = "Open it in a spreadsheet program, and save the table as a CSV file"
        if result == _MERGED:  # a CSV file of it has blank cells
            remedy = "Open it in a spreadsheet program, and save it as XLSX, of which merged cells are read"
        raise DataError(f"{path} cannot be read as a spreadsheet: {result}", remedy)
    filled = [sheet for sheet in result if sheet["rows"]]
    tables = [sheet for sheet in filled if len(sheet["rows"]) > 1 and len(sheet["rows"][0][1]) > 1] or filled
    if len(tables) > 1:
        names = shorten_names([sheet["name"] for sheet in tables])
        raise DataError(
            f"{path} has several sheets with a table: {names}",
            "Hide all but one in the spreadsheet program, or save the one to read as a CSV file; if they are splits, "
            "save each as a CSV file of its split's name, such as train.csv, and give their folder",
        )
    rows = tables[0]["rows"] if tables else []
    return [cells for _, cells in rows], [line for line, _ in rows]


def _read_sheets(path: str) -> list[dict[str, Any]]:
    """Return the visible sheets of a file: the name, and rows of a line and cells."""
    from python_calamine import CalamineError, CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(member.file_size for member in packed.infolist())
            if unpacked > MAX_UNPACKED:
                raise ValueError(f"it would unpack to {unpacked / GIB:,.1f} GiB, above {MAX_UNPACKED // GIB} GiB")
            if "content.xml" in packed.namelist() and _SPANS.search(packed.read("content.xml")):
                raise ValueError(_MERGED)
    with Path(path).open("rb") as file:
        try:
            workbook = CalamineWorkbook.from_filelike(file)
        except CalamineError:
            workbook = CalamineWorkbook.from_path(path)  # its errors say more
    sheets = []
    for metadata in workbook.sheets_metadata:
        if (metadata.typ, metadata.visible) != (SheetTypeEnum.WorkSheet, SheetVisibleEnum.Visible):
            continue
        sheet = workbook.get_sheet_by_name(metadata.name)
        rows = [list(map(_write_cell, cells)) for cells in sheet.to_python()]
        first, left = sheet.start or (0, 0)
        for (top, column), (bottom, _) in sheet.merged_cell_ranges or ():
            row, at = top - first, column - left
            if 0 <= row < len(rows) and 0 <= at < len(rows[row]):
                for cells in rows[row : bottom + 1 - first]:
                    cells[at] = rows[row][at]
        filled = [(line, cells) for line, cells in enumerate(rows, first + 1) if any(cells)]
        sheets.append({"name": metadata.name, "rows": filled})
    return sheets


def _write_cell(value: object) -> str:
    """Return a cell's text: a number with the 15 digits that spreadsheets keep; a date or a time in ISO form."""
    return f"{value:.15g}" if isinstance(value, float) else str(value).replace("\0", "").strip()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY if hard < 0 else min(MAX_MEMORY, hard), hard))
    try:
        answer: object = _read_sheets(sys.argv[1])
    except Exception as error:  # of the reader, of zipfile, of memory
        answer = shorten_error(error)
    json.dump(answer, sys.stdout)
