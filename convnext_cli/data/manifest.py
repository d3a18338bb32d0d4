"""A data set as a CSV file: one row an image, with its label, and its split, fold and group where they are known.

Columns are recognised by name and by content; what is not used is said. The delimiter is the one by which the rows have
one number of cells; quotation marks are doubled inside quoted cells (RFC 4180).
"""

import csv
import io
import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_cli.data.encoding import UTF_8, decode_name, normalise_name, read_text
from convnext_cli.data.index import AUTO, Index
from convnext_cli.data.layout import SPLIT_NAMES, describe_joined, find_split
from convnext_cli.errors import DataError
from convnext_cli.images.formats import has_image_suffix

_COLUMNS = {
    "path": (
        "path", "file", "filename", "file_name", "filepath", "file_path", "filepaths", "filenames", "image",
        "image_path", "img_path", "image_file", "image_name", "imagename", "img", "img_name", "images", "image_index",
        "image_id", "imageid", "img_id", "isic_id", "id_code", "id", "uid", "uuid", "name", "photo", "picture", "scan",
    ),
    "label": (
        "label", "class", "category", "diagnosis", "target", "y", "labels", "classes", "class_name", "classname",
        "label_name", "category_name", "dx", "finding", "finding_labels", "disease", "condition", "species", "breed",
        "grade", "level", "diagnostic", "pathology", "severity", "stage", "class_id", "label_id", "tags",
    ),
    "split": ("split", "set", "subset", "partition", "data_set", "dataset", "phase"),
    "fold": ("fold", "folds", "kfold", "k_fold", "cv_fold", "fold_id"),
    "group": (
        "group", "group_id", "patient", "patient_id", "patientid", "subject", "subject_id", "subjectid", "case",
        "case_id", "lesion_id", "participant_id", "person_id", "donor_id", "slide_id", "study_id",
    ),
}  # fmt: skip
_SURE_GROUPS = ("group", "patient", "subject")
_NUMBERS = frozenset(
    (
        "age",
        "ages",
        "years",
        "year",
        "weight",
        "height",
        "width",
        "bmi",
        "score",
        "price",
        "count",
        "length",
        "size",
        "temperature",
        "pressure",
        "distance",
        "angle",
        "area",
        "volume",
        "dose",
        "value",
        "index",
        "idx",
        "bone_age",
        "boneage",
        "unnamed",
        "",
        "no",
        "nr",
        "number",
        "row",
        "rating",
    )
)
"""Columns that hold measurements or count the rows."""
_LABEL_WORDS = frozenset(("label", "labels", "class", "category", "diagnosis", "grade"))
_FLAGS = frozenset(("sex", "gender", "male", "female", "smoker", "is_test", "is_train", "left", "right"))
_DELIMITERS = ",;\t|"
_SAMPLE = 200
MAX_FRACTIONS = 10
"""Values that are not whole numbers: more of them are a measurement, not names of classes."""
MAX_GAPPED = 20
"""Whole numbers that do not count from 0 or 1: more of them are a measurement."""
MAX_FOLDS = 50
MAX_DEPTH = 3
"""Folders below the manifest's own in which its images are looked for."""
_EXAMPLES = 5


class OtherTaskError(DataError):
    """A manifest for a task that this program does not train on: regression, several labels for an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """The cells of a file."""

    path: Path
    columns: dict[str, list[str]]
    """Each column's cells, stripped, by the file's own name of it."""
    lines: list[int]
    """The line that each row ends in."""
    encoding: str

    def __len__(self) -> int:
        return len(self.lines)

    def refuse(self, what: str, rows: Sequence[int], examples: Sequence[str] = (), remedy: str = "") -> None:
        """Raise if there are such rows."""
        if rows:
            shown = ", ".join(examples) or ", ".join(f"line {self.lines[row]}" for row in rows[:_EXAMPLES])
            raise DataError(f"{self.path} has {what} in {len(rows)} rows: {shown}", remedy or "Correct these rows")


def read_manifest(path: Path, image_root: str = AUTO) -> Index:
    """Read `path`: a column for the image's path, and one for its label or one of 0 and 1 for each class.

    Paths are relative to the CSV file (or to the folders below it, where that alone fits), or absolute; an image's
    suffix may be left out. Columns for split, fold and group (or patient) are used where there are any.

    Args:
        path: the file, in any encoding that `text.read_text` knows.
        image_root: the folder that paths are relative to; `auto` for the above.

    Raises:
        OtherTaskError: the target is a number, or images have several labels.
        DataError: a column is missing, a file does not exist, a row is inconsistent. All such rows are counted.
    """
    table = _read_table(path)
    if image_root != AUTO and not Path(image_root).is_dir():
        raise DataError(f"--image-root {image_root} is no folder", "Give the folder that the paths of the CSV begin in")
    root = path.parent if image_root == AUTO else Path(image_root)
    finder = _FileFinder(root, find_split(path.stem), search=image_root == AUTO, encoding=table.encoding)
    named = _find_columns(table, finder)
    paths = _find_files(table, finder, named["path"])
    notes = [f"read as {table.encoding}, as it is not UTF-8"] if table.encoding != UTF_8 else []
    notes += finder.notes
    splits = _read_splits(table, named)
    folds = _read_folds(table, named, splits)
    if not folds:
        named.pop("fold", None)
    groups = _read_groups(table, named)
    labels, used = _read_labels(table, named)
    spellings: dict[str, set[str]] = {}
    for label in set(labels):
        spellings.setdefault(normalise_name(label), set()).add(label)
    notes += describe_joined(spellings)
    roles: dict[str, str] = {what: named[what] for what in ("path", "split", "fold", "group") if what in named}
    if len(used) == 1:
        roles["label"] = used[0]
    described = ", ".join(f"{what} {name!r}" for what, name in sorted(roles.items()) if what != name)
    several = f"; classes by the {len(used)} columns of 0 and 1" if len(used) > 1 else ""
    if described or several:
        notes.append(f"columns: {described}{several}".replace("columns: ;", "columns:"))
    if folds:
        number = len(set(folds) - {""})
        notes.append(
            f"column {named['fold']!r} has {number} folds: --folds {number} uses them; without, it is not used"
        )
    if unused := [name for name in table.columns if name not in {*roles.values(), *used}]:
        notes.append(f"columns that are not used: {', '.join(name or '(without a name)' for name in unused)}")
    rows = _Rows(paths, [normalise_name(label) for label in labels], splits, folds, groups)
    return _make_index(table, root, rows, notes)


# ---- cells


def _read_table(path: Path) -> _Table:
    text, encoding = read_text(path, "Give a CSV file with the columns path and label")
    text = re.sub(r"\Asep=.\r?\n", "\n", text)  # Excel's own first line; an empty one keeps the lines' numbers
    try:
        delimiter = _find_delimiter(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows, lines = [], []
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"cannot read {path}: {error}", "Give a CSV file with the columns path and label") from error
    if not rows:
        raise DataError(f"{path} has no rows", "Give a row for each image")
    if any(has_image_suffix(cell) for cell in rows[0]) and len(rows[0]) > 1:
        names = [f"column {place + 1}" for place in range(len(rows[0]))]  # a file without a header
    else:
        names, rows, lines = rows[0], rows[1:], lines[1:]
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of the same name", "Rename or remove one of them")
    width = len(names)
    long = [row for row, cells in enumerate(rows) if any(cells[width:])]
    columns = {name: [cells[at] if at < len(cells) else "" for cells in rows] for at, name in enumerate(names)}
    table = _Table(path=path, columns=columns, lines=lines, encoding=encoding)
    table.refuse("more cells than the header", long, remedy=f"Put cells that have a {delimiter!r} in quotation marks")
    return table


def _find_delimiter(text: str) -> str:
    """The delimiter by which most of the first rows have as many cells as the header, and more than one."""
    start = text[: 1 << 20]

    def fit(delimiter: str) -> tuple[float, int]:
        reader = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            rows = [row for row in itertools.islice(reader, _SAMPLE) if any(row)]
        except csv.Error:
            return 0.0, 0
        if not rows or len(rows[0]) < 2:
            return 0.0, 0
        return sum(len(row) == len(rows[0]) for row in rows) / len(rows), len(rows[0])

    return max(_DELIMITERS, key=fit)  # the first of equals


# ---- columns


def _find_columns(table: _Table, finder: "_FileFinder") -> dict[str, str]:
    """The file's own name of each known column but the label."""
    lower = {_fold_column(name): name for name in table.columns}
    found: dict[str, str] = {}
    candidates = [lower[known] for known in _COLUMNS["path"] if known in lower]
    others = [name for name in table.columns if name not in candidates and _is_text(table.columns[name])]
    fitting = (name for name in (*candidates, *others) if finder.fits(table.columns[name]))
    first = next(fitting, candidates[0] if candidates else None)
    if first is None:
        first = next((name for name in others if _mostly(table.columns[name], has_image_suffix)), None)
    if first is None:
        names = ", ".join(list(table.columns)[:10]) or "none"
        raise DataError(
            f"{table.path} has no column for the images' paths (it has {names})",
            f"Name one of them {', '.join(_COLUMNS['path'][:5])}, and one {', '.join(_COLUMNS['label'][:3])}",
        )
    found["path"] = first
    for known in _COLUMNS["split"]:
        name = lower.get(known)
        if name and (known == "split" or _mostly(table.columns[name], lambda cell: _read_split(cell) is not None)):
            found["split"] = name
            break
    for known in _COLUMNS["fold"]:
        if (name := lower.get(known)) and 1 < len(set(table.columns[name]) - {""}) <= MAX_FOLDS:
            is_split = "split" not in found and all(_read_split(cell) is not None for cell in table.columns[name])
            found["split" if is_split else "fold"] = name
            break
    for known in _COLUMNS["group"]:
        name = lower.get(known)
        if name and name != first and (known.startswith(_SURE_GROUPS) or len(set(table.columns[name])) > 2):
            found["group"] = name
            break
    labels = [lower[known] for known in _COLUMNS["label"] if known in lower and lower[known] not in found.values()]
    full = [name for name in labels if len(set(table.columns[name])) > 1]
    if labels:
        found["label"] = (full or labels)[0]
    return found


def _read_labels(table: _Table, named: dict[str, str]) -> tuple[list[str], list[str]]:
    """The label of each row, and the columns that say it."""
    if not len(table):
        raise DataError(f"{table.path} has no rows", "Give a row for each image")
    if "label" in named:
        return _check_labels(table, named["label"]), [named["label"]]
    left = [name for name in table.columns if name not in named.values()]
    binary = [name for name in left if _is_binary(table.columns[name])]
    hot = [name for name in binary if _fold_column(name) not in _FLAGS | _NUMBERS]
    worded = [
        name
        for name in left
        if set(_fold_column(name).split("_")) & _LABEL_WORDS and 1 < len(set(table.columns[name])) < len(table)
    ]
    if len(hot) > 1:
        try:
            return _read_one_hot(table, hot), hot
        except OtherTaskError:
            worded = [name for name in worded if name not in binary]  # flags beside a label
            if not worded:
                raise
    for name in worded:
        return _check_labels(table, name), [name]
    likely = [
        name
        for name in left
        if 1 < len(set(table.columns[name])) <= max(2, len(table) // 2) and not _is_measure(table, name)
    ]
    if len(likely) == 1 and all(table.columns[likely[0]]):
        return _check_labels(table, likely[0]), likely
    if len(left) == 1 and _is_measure(table, left[0]):
        _check_labels(table, left[0])
    names = f" (it has {', '.join(left[:10])} beside the paths)" if left else ""
    raise DataError(
        f"{table.path} has no column for the labels{names}",
        "Name one label, or give a column of 0 and 1 per class",
    )


def _read_one_hot(table: _Table, names: list[str]) -> list[str]:
    """The one class of each row; one column that is no class, such as a sign of the patient, is left out."""
    hot = [[name for name in names if _number(table.columns[name][row]) == 1.0] for row in range(len(table))]
    wrong = [row for row, classes in enumerate(hot) if len(classes) != 1]
    if wrong and len(names) > 2:
        for odd in names:
            rest = [[name for name in classes if name != odd] for classes in hot]
            if all(len(classes) == 1 for classes in rest):
                names.remove(odd)
                return [classes[0] for classes in rest]
    if wrong:
        lines = ", ".join(f"line {table.lines[row]}" for row in wrong[:_EXAMPLES])
        raise OtherTaskError(
            f"{table.path} has not exactly one class in {len(wrong)} rows: {lines}. The columns of 0 and 1 "
            f"({', '.join(names[:_EXAMPLES])}) look like a multi-label set, which this program does not train on",
            "Correct these rows, or give a column label with one class for each image",
        )
    empty = set(names) - {classes[0] for classes in hot}
    names[:] = [name for name in names if name not in empty]  # ISIC's UNK, of which there is no image
    return [classes[0] for classes in hot]


def _check_labels(table: _Table, name: str) -> list[str]:
    """The labels of a column, which must be the names of classes: one in each cell, and no measurements."""
    labels = table.columns[name]
    table.refuse("no label", [row for row, label in enumerate(labels) if not label])
    if _is_measure(table, name):
        values = sorted(_list_values(labels))
        raise OtherTaskError(
            f"column {name!r} of {table.path} is a number ({len(values)} values from {values[0]:g} to {values[-1]:g}): "
            "a regression set, which this program does not train on",
            "Give a column label with classes, such as ranges of this number (numbers that name classes need a letter)",
        )
    if separator := _find_separator(labels):
        several = [row for row, label in enumerate(labels) if separator in label or label.startswith("[")]
        raise OtherTaskError(
            f"column {name!r} of {table.path} has several labels in {len(several)} of {len(labels)} rows, such as "
            f"{labels[several[0]]!r}: a multi-label set, which this program does not train on",
            "Give each image one label, such as the combination under a name of its own, or leave these rows out",
        )
    return labels


def _is_measure(table: _Table, name: str) -> bool:
    """Return whether a column's cells are numbers that measure or count something, not names of classes."""
    cells = [cell for cell in table.columns[name] if cell]
    values = _list_values(cells)
    if len(values) < 3:
        return False
    words = _fold_column(name)
    if not all(value.is_integer() for value in values):
        return len(values) > MAX_FRACTIONS or len(values) > len(cells) / 2
    low, high = min(values), max(values)
    counts_up = low in (0, 1) and high - low + 1 <= 2 * len(values)
    if words in _NUMBERS or words.partition(":")[0] in _NUMBERS:
        return len(values) > 5
    return (len(values) > MAX_GAPPED and not counts_up) or (len(values) > 10 and len(values) > len(cells) / 2)


def _list_values(cells: Sequence[str]) -> set[float]:
    """The different numbers in cells, with a point or a comma; none where a cell is no number."""
    numbers = [_number(cell.replace(",", ".") if cell.count(",") == 1 else cell) for cell in cells]
    return set() if None in numbers else {number for number in numbers if number is not None}


def _find_separator(labels: Sequence[str]) -> str:
    """The sign that parts several labels in a cell; empty where each cell has one.

    Parts must be labels of their own elsewhere: most of them by themselves, or for `|` in any other combination.
    """
    counts = Counter(labels)
    if all(label.startswith("[") and label.endswith("]") for label in counts):
        return "," if any("," in label for label in counts) else ""
    for separator in "|;, ":
        combined = [label for label in counts if separator in label]
        if not combined:
            continue
        parts = [[part.strip() for part in label.split(separator)] for label in combined]
        if any("" in cell for cell in parts):
            continue
        alone = set(counts) - set(combined)
        atoms = {part for cell in parts for part in cell}
        known = len(atoms & alone)
        shared = Counter(part for cell in parts for part in cell)
        if separator == "|" and (known or any(count > 1 for count in shared.values())):
            return separator
        if separator == " " and known == len(atoms) and len(combined) > 1:
            return separator
        if separator in ";," and known > 1 and known >= len(atoms) / 2:
            return separator
    return ""


def _read_splits(table: _Table, named: dict[str, str]) -> list[str]:
    if "split" not in named:
        return [""] * len(table)
    splits = [_read_split(cell) for cell in table.columns[named["split"]]]
    table.refuse("an unknown split", [row for row, split in enumerate(splits) if split is None])
    return [split or "" for split in splits]


def _read_split(cell: str) -> str | None:
    """The split that a cell names, empty where it is empty; None for another word."""
    if not cell:
        return ""
    if cell.casefold() in SPLIT_NAMES:
        return SPLIT_NAMES[cell.casefold()]
    found = find_split(cell)
    return found[0] if found and found[0] in SPLIT_NAMES.values() else None


def _read_folds(table: _Table, named: dict[str, str], splits: Sequence[str]) -> list[str]:
    """The fold that each row validates in, as `split.name_fold` names it; no rows where that is not known.

    Test images need none.
    """
    if "fold" not in named:
        return []
    cells = table.columns[named["fold"]]
    order = sorted(set(cells) - {""}, key=lambda cell: (_number(cell) is None, _number(cell) or 0.0, cell))
    names = {cell: f"fold-{place}" for place, cell in enumerate(order, start=1)}
    is_known = all(cell or split == "test" for cell, split in zip(cells, splits, strict=True))
    return [names.get(cell, "") for cell in cells] if is_known else []


def _read_groups(table: _Table, named: dict[str, str]) -> list[str]:
    return [unicodedata.normalize("NFC", cell) for cell in table.columns[named["group"]]] if "group" in named else []


def _is_binary(cells: Sequence[str]) -> bool:
    return {_number(cell) for cell in cells} <= {0.0, 1.0}


def _is_text(cells: Sequence[str]) -> bool:
    """Return whether a column can hold paths: cells that are not the same again and again."""
    return len(set(cells[:_SAMPLE])) > min(len(cells), _SAMPLE) / 2


def _mostly(cells: Sequence[str], fits: Callable[[str], bool]) -> bool:
    filled = [cell for cell in cells[: 10 * _SAMPLE] if cell]
    return bool(filled) and sum(map(fits, filled)) > len(filled) / 2


def _fold_column(name: str) -> str:
    """`Image Index` -> image_index."""
    return re.sub(r"[\s\-_]+", "_", normalise_name(name).casefold()).strip("_")


def _number(text: str) -> float | None:
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


# ---- files


class _FileFinder:
    """Looks for the files that a manifest names: at their place, else in the folders below.

    A name is compared as it is, then without regard to Unicode's normal forms, to capitals, and to a missing suffix.
    Back slashes part folders where no file has them in its name. Paths that begin on another machine are cut.
    """

    def __init__(self, root: Path, split: tuple[str, tuple[str, ...]] | None, *, search: bool, encoding: str) -> None:
        self.root, self.split, self.search, self.encoding = str(root), split, search, encoding
        self.notes: list[str] = []
        self.ambiguous: list[str] = []
        self._listings: dict[str, dict[str, list[str]]] = {}
        self._below: dict[str, list[str]] | None = None

    def fits(self, cells: Sequence[str]) -> bool:
        """Return whether most of a column's first cells name files."""
        sample = [cell for cell in cells[:_SAMPLE] if cell]
        step = max(1, len(sample) // 20)
        tried = sample[::step]
        if not tried:
            return False
        direct = sum(self.find(cell) is not None for cell in tried)
        if 2 * direct > len(tried):
            return True
        for prefix, cut in self._list_places(tried):
            if 2 * sum(self.find(cell, prefix, cut) is not None for cell in tried) > len(tried):
                return True
        return self.search and 2 * sum(bool(self._find_below(cell)) for cell in tried) > len(tried)

    def find_all(self, names: Sequence[str]) -> list[str | None]:
        """Each name as a path from the root, with its suffix; None where there is no such file."""
        self.ambiguous = []
        found = [self.find(name) for name in names]
        if any(found) or self.ambiguous or not names:
            return found
        for prefix, cut in self._list_places(names):
            moved = [self.find(name, prefix, cut) for name in names]
            if all(moved):
                start = "/".join(_split_path(names[0])[:cut])
                self.notes.append(f"paths are taken without their beginning {start}/")
                return moved
        if not self.search:
            return found
        places = [self._find_below(name) for name in names]
        self.ambiguous = [name for name, paths in zip(names, places, strict=True) if len(paths) > 1]
        if any(places) and not self.ambiguous:
            within = sorted({path.rpartition("/")[0] for paths in places for path in paths})
            shown = ", ".join(map(decode_name, within[:_EXAMPLES])) + (" …" if len(within) > _EXAMPLES else "")
            self.notes.append(f"images found in {shown}")
        return [paths[0] if len(paths) == 1 else None for paths in places]

    def find(self, name: str, prefix: str = "", cut: int = 0) -> str | None:
        """A name's file, looked for at its place below the root and `prefix`, without its first `cut` folders."""
        for form in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            parts = _split_path(form)[cut:] if cut else [form]
            if not parts:
                continue
            place = os.path.normpath("/".join([*([prefix] if prefix else []), *parts]))
            folder, _, last = place.rpartition("/")
            if place.startswith("/") and not folder:
                folder = "/"
            if match := self._look(folder, last):
                return os.path.join(folder, match) if folder else match  # noqa: PTH118
        return None

    def _look(self, folder: str, name: str) -> str | None:
        listing = self._list(folder)
        if not listing:
            return None
        for key in _make_keys(name):
            if matches := listing.get(key):
                if len(matches) > 1 and name not in matches:
                    self.ambiguous.append(name)
                    return None
                return name if name in matches else matches[0]
        if self.encoding == "Windows-1252" and not name.isascii():
            try:
                raw = os.fsdecode(name.encode("cp1252"))
            except UnicodeEncodeError:
                return None
            return raw if raw in listing.get(f"={raw}", ()) else None
        return None

    def _list(self, folder: str) -> dict[str, list[str]]:
        """The files of a folder, by each form of their names; of suffixes, by images' alone."""
        if folder in self._listings:
            return self._listings[folder]
        listing: dict[str, list[str]] = defaultdict(list)
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:  # noqa: PTH118
                names = [entry.name for entry in entries if _is_file(entry)]
        except OSError:
            names = []
        for name in names:
            for key in _make_keys(name):
                listing[key].append(name)
            stem, dot, _ = name.rpartition(".")
            if dot and has_image_suffix(name):
                listing[f"stem={_compose(stem)}"].append(name)
        self._listings[folder] = listing
        return listing

    def _list_places(self, names: Sequence[str]) -> Iterator[tuple[str, int]]:
        """How many of the first folders to cut, from few to all but the name, for paths of another machine."""
        parts = _split_path(names[0])
        if len(parts) > 1 and (re.match(r"[A-Za-z]:|/|\\|~|\.\.|file:", names[0]) or not self.search or len(parts) > 2):
            yield from (("", cut) for cut in range(1, len(parts)))

    def _find_below(self, name: str) -> list[str]:
        """The files of this name in all folders below the root, to a depth; those of the manifest's split first."""
        *folders, last = _split_path(name) or [""]
        behind = "/".join(["", *map(_compose, folders)])
        found: list[str] = []
        for key in _make_keys(last):
            places = self._index_below().get(key, [])
            found = [path for path in places if f"/{_compose(os.path.dirname(path))}".endswith(behind)]  # noqa: PTH120
            if found:
                break
        if len(found) > 1 and self.split:
            own = [path for path in found if any(_has_split(part, self.split[0]) for part in path.split("/")[:-1])]
            return own or found
        return found

    def _index_below(self) -> dict[str, list[str]]:
        """The files in all folders below the root, to a depth, by each form of their names."""
        if self._below is None:
            self._below, level = defaultdict(list), [""]
            for _ in range(MAX_DEPTH):
                level = [inner for folder in level for inner in _list_subfolders(self.root, folder)]
                for folder in level:
                    for key, names in self._list(folder).items():
                        self._below[key] += [f"{folder}/{name}" for name in names]
        return self._below


def _list_subfolders(root: str, folder: str) -> list[str]:
    try:
        with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
            names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        return []
    return [f"{folder}/{name}" if folder else name for name in names]


def _has_split(part: str, split: str) -> bool:
    found = find_split(part)
    return found is not None and found[0] == split


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _split_path(text: str) -> list[str]:
    """The folders and the name of a path in Windows' or POSIX's manner."""
    return [part for part in re.split(r"[/\\]+", text) if part and part != "."]


def _make_keys(name: str) -> list[str]:
    """What a name may be found by, the exact one first."""
    composed = _compose(name)
    keys = [f"={name}", f"nfc={composed}", f"case={composed.casefold()}"]
    return keys if has_image_suffix(name) else [*keys, f"stem={composed}"]


def _compose(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", decode_name(name))


def _find_files(table: _Table, finder: _FileFinder, column: str) -> list[str]:
    """Each row's path from the root, with its suffix."""
    names = table.columns[column]
    table.refuse("no path", [row for row, name in enumerate(names) if not name])
    found = finder.find_all(names)
    if finder.ambiguous:
        raise DataError(
            f"{table.path}: {len(finder.ambiguous)} names are those of more than one file, such as "
            f"{finder.ambiguous[0]}",
            "Say where the paths begin by --image-root DIR, or write them with their folders and suffixes",
        )
    missing = [row for row, path in enumerate(found) if path is None]
    table.refuse(
        "a file that does not exist",
        missing,
        [names[row] for row in missing[:_EXAMPLES]],
        "Correct these rows, or say where the paths begin by --image-root DIR",
    )
    return [path for path in found if path is not None]


@dataclass(frozen=True, slots=True)
class _Rows:
    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    folds: Sequence[str]
    groups: Sequence[str]


def _make_index(table: _Table, root: Path, rows: _Rows, notes: Sequence[str]) -> Index:
    """Sorted by path, one row a file; the same file twice must say the same."""
    first: dict[str, int] = {}
    again, conflicts = 0, []
    for row, path in enumerate(rows.paths):
        at = first.setdefault(path, row)
        again += at != row
        if (rows.labels[at], rows.splits[at]) != (rows.labels[row], rows.splits[row]):
            conflicts.append(row)
    table.refuse(
        "a file named before with another label or split",
        conflicts,
        remedy="Correct these rows; images that have several labels are a multi-label set, which this program does not "
        "train on",
    )
    order = [first[path] for path in sorted(first)]
    classes = tuple(sorted(set(rows.labels)))
    number = {name: label for label, name in enumerate(classes)}
    return Index(
        root=root,
        classes=classes,
        paths=tuple(rows.paths[row] for row in order),
        labels=tuple(number[rows.labels[row]] for row in order),
        splits=tuple(rows.splits[row] for row in order),
        groups=tuple(rows.groups[row] or rows.paths[row] for row in order) if any(rows.groups) else (),
        folds=tuple(rows.folds[row] for row in order) if rows.folds else (),
        skipped={"row that repeats a file": again} if again else {},
        notes=tuple(notes),
    )
