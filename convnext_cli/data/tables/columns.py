"""Recognise the columns of a table by name and content, and read its splits, folds and groups."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from convnext_cli.data.folders.masks import has_mask_words
from convnext_cli.data.folders.splits import PARTITION, UNLABELLED, find_simple_split, find_split
from convnext_cli.data.folders.words import list_words
from convnext_cli.data.index import NONE, SPLITS, is_one_to_one
from convnext_cli.data.split import name_fold
from convnext_cli.data.tables.files import FileFinder
from convnext_cli.data.tables.table import SAMPLE, find_named, list_columns
from convnext_cli.errors import DataError
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import (
    EXAMPLES,
    Table,
    TableOptions,
    fold_column,
    is_flag,
    is_unknown,
    join_decimals,
    parse_flag,
    parse_number,
)
from convnext_cli.text import Advice, find_address, quote, shorten

PATH_NAMES = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "filepaths", "filenames", "image",
    "image_path", "img_path", "image_file", "image_name", "imagename", "img", "img_name", "images", "image_index",
    "image_id", "imageid", "img_id", "isic_id", "id_code", "id", "uid", "uuid", "name", "photo", "picture", "scan",
)  # fmt: skip
_LABEL_NAMES = (
    "label", "class", "category", "diagnosis", "target", "y", "labels", "classes", "class_name", "classname",
    "label_name", "category_name", "dx", "finding", "finding_labels", "disease", "condition", "species", "breed",
    "grade", "level", "diagnostic", "pathology", "severity", "stage", "class_id", "label_id", "tags",
    "group",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data_set", "dataset", "phase")
_FOLD_NAMES = ("fold", "folds", "kfold", "k_fold", "cv_fold", "fold_id")
_PATIENT_WORDS = frozenset((
    "patient", "patients", "patienten", "patientin", "pat", "paciente", "pacientes", "paziente", "pazienti",
    "patiënt", "pacjent", "pacjenta", "hasta", "пациент", "пациента", "患者", "病人", "환자", "subject",
    "participant", "proband", "probanden", "mrn", "empi", "patientid", "subjectid",
))  # fmt: skip
_ID_WORDS = frozenset((
    "id", "ids", "nr", "no", "num", "number", "nummer", "index", "key", "code", "name", "anon", "uid", "uuid", "iuid",
    "instance", "hash", "sn", "barcode", "submitter", "número",
))  # fmt: skip
GROUP_COLUMNS = ("group", "group_id")
_OBJECT_WORDS = (
    "person", "donor", "individual", "animal", "mouse", "rat", "cow", "pig", "fish", "bird", "plot", "plant", "pflanze",
    "plante", "planta", "pianta", "tree", "observation", "occurrence", "case", "study", "exam", "lesion", "video",
    "specimen", "sample", "slide", "serial", "wafer", "board", "object",
)  # fmt: skip
"""Words for objects that several images show, the larger first. Not `part` or `leaf`: a part number is a type, and
leaves are counted anew on each plant."""
_VECTOR = re.compile(r"\[[\d.,\s]+\]")
"""A list of numbers, such as a one-hot vector beside its columns."""
MIN_OBJECTS = 10  # values of a column that may be groups
MAX_ARMS = 3  # values of a column `group` that are the arms of a study, such as control and treated
MAX_FOLDS = 50
MAX_TITLES = 5  # rows among which a header is searched
MAX_READERS = 10  # rows of an image, each with the finding of one reader


def find_columns(table: Table, finder: FileFinder, options: TableOptions) -> dict[str, str]:
    """Return the name in the file of each known column: `path`, and if any, `split`, `fold`, `group`, `label`.

    Raises:
        DataError: there is no column for the paths, or none of a name that the options give.
    """
    named = {role: getattr(options, f"{role}_column") for role in ("path", "label", "group", "split")}
    chosen = {
        role: find_named(table, name, f"--{role}-column") for role, name in named.items() if name not in (AUTO, NONE)
    }
    name_of = {fold_column(name): name for name in table.columns if name not in chosen.values()}
    columns = {"path": chosen.get("path") or _find_path_column(table, chosen.values(), finder)}
    _check_header(table, columns["path"], finder)
    columns |= _guess_columns(table, name_of, columns)
    columns |= chosen
    return {role: name for role, name in columns.items() if getattr(options, f"{role}_column", AUTO) != NONE}


def _check_header(table: Table, path_column: str, finder: FileFinder) -> None:
    """Check that no row below the first line is the header, as in an exported spreadsheet with a title."""
    for row, cell in enumerate(table.columns[path_column][:MAX_TITLES]):
        if fold_column(cell) in PATH_NAMES and finder.find(cell) is None:
            raise DataError(
                f"{table.path}: its first line ({shorten(', '.join(filter(None, table.columns)))}) is read as the "
                f"header, but line {table.lines[row]} looks like it: it has {cell!r}",
                "Remove the lines above the header",
            )


def _guess_columns(table: Table, name_of: dict[str, str], columns: dict[str, str]) -> dict[str, str]:
    """Return the columns for split, fold, group and label that names and content tell, beside `columns`."""
    columns = dict(columns)
    for known_name in SPLIT_COLUMNS:
        name = name_of.get(known_name)
        if name and (
            known_name == "split" or _most(_read_split_cells(table, name), lambda cell: _parse_split(cell) is not None)
        ):
            columns["split"] = name
            break
    others = [name for name in table.columns if name != columns["path"]]
    if "split" not in columns and (split := next((n for n in others if _holds_splits(table.columns[n])), None)):
        columns["split"] = split
    flags = [name for name in table.columns if find_flagged_split(table, name)]
    if "split" not in columns and len(flags) == 1:
        columns["split"] = flags[0]
    for known_name in _FOLD_NAMES:
        name = name_of.get(known_name)
        if name and name != columns.get("split") and 1 < len(set(table.columns[name]) - {""}) <= MAX_FOLDS:
            is_split = "split" not in columns and all(_parse_split(cell) is not None for cell in table.columns[name])
            columns["split" if is_split else "fold"] = name
            break
    if group := next(_list_groups(table, name_of, columns["path"]), None):
        columns["group"] = group
    free = [name for known in _LABEL_NAMES if (name := name_of.get(known)) and name not in columns.values()]
    labels = [name for name in free if fold_column(name) not in GROUP_COLUMNS or not is_flag(table, name)]
    if name_of.get("x", columns["path"]) != columns["path"]:  # y is a position, as of a tile in a slide
        labels = [name for name in labels if fold_column(name) != "y"]
    varied = [
        name
        for name in labels
        if len(set(table.columns[name])) > 1 and not all(map(_VECTOR.fullmatch, table.columns[name]))
    ]
    if labels:
        columns["label"] = (varied or labels)[0]
    return columns


def list_path_columns(table: Table, finder: FileFinder) -> Iterator[str]:
    """Yield the columns that may hold paths: those that name files, then folders, then those that look like it."""
    name_of = {fold_column(name): name for name in table.columns}
    candidates = [name_of[known] for known in PATH_NAMES if known in name_of]
    others = [
        name
        for name in table.columns
        if name not in candidates and _may_name(table.columns[name]) and not has_mask_words(set(list_words(name)))
    ]
    numbered_last = sorted((*candidates, *others), key=lambda name: all(map(str.isdecimal, table.columns[name])))
    yield from (name for name in numbered_last if finder.matches(table.columns[name]))
    for name in numbered_last:
        is_label = fold_column(name) in _LABEL_NAMES or not (name in candidates or _may_name(table.columns[name], 2))
        if not is_label and finder.folders.matches(table.columns[name]):
            yield name
    yield from candidates
    yield from (name for name in others if _most(table.columns[name], _is_path))


def _is_path(cell: str) -> bool:
    """Return True if a cell looks like the path of an image, or is an address, which the error of a path names."""
    return has_image_suffix(cell) or bool(find_address(Path(cell)))


def list_further_images(table: Table, finder: FileFinder, path: str) -> list[str]:
    """Return the columns that name other images than the column of paths, as of further cameras; masks are left out."""
    stems = [PurePath(cell).stem for cell in table.columns[path]]
    return [
        name
        for name, cells in table.columns.items()
        if _most(cells, has_image_suffix)
        and not has_mask_words(set(list_words(name)))
        and 2 * sum(PurePath(cell).stem == stem for cell, stem in zip(cells, stems, strict=True)) < len(table)
        and finder.matches(cells)
    ]


def _find_path_column(table: Table, chosen: Collection[str], finder: FileFinder) -> str:
    path = next((name for name in list_path_columns(table, finder) if name not in chosen), None)
    if path is None and len(table.columns) == 1:
        raise DataError(
            f"{table.path} has one column only ({shorten(min(table.columns))})",
            "Separate path and label with a comma, a semicolon, a tab or |",
        )
    if path is None:
        names = ", ".join(list_columns(table.columns)[:10]) or "none"
        raise DataError(
            f"{table.path} has no column for the images' paths (it has {names})",
            "Name it with --path-column, or add a column path with the file of each row; --image-root DIR names the "
            "folder that paths begin in",
        )
    return path


def read_splits(table: Table, columns: dict[str, str]) -> list[str]:
    """Return the split of each row, empty where the table has none.

    Raises:
        DataError: a cell is not the name of a split.
    """
    if "split" not in columns:
        return [""] * len(table)
    cells = _read_split_cells(table, columns["split"])
    if split := find_flagged_split(table, columns["split"], is_chosen=True):
        other = "test" if split == "train" else "train"
        return [(split if parse_flag(cell) else other) if cell else "" for cell in cells]
    splits = [_parse_split(cell) for cell in cells]
    unknown = [row for row, split in enumerate(splits) if split is None]
    examples = list(dict.fromkeys(cells[row] for row in unknown))[:EXAMPLES]
    remedy = "Write train, val or test; --split-column names another column, or none"
    table.refuse(f"an unknown split in column {columns['split']!r}", unknown, examples, remedy)
    return [split or "" for split in splits]


def find_flagged_split(table: Table, name: str, *, is_chosen: bool = False) -> str | None:
    """Return the split whose rows a column such as fastai's `is_valid` marks by 1 or true, others by 0; None if none.

    The others are the training split's, or the test split's where the training split is marked. A column called `test`
    alone may be the result of a test, so the user must choose it.
    """
    *before, word = list_words(name) or [""]
    split = find_simple_split(word) if before in (["is"], ["in"]) or (is_chosen and not before) else None
    return split if split and {parse_flag(cell) for cell in table.columns[name] if cell} == {0.0, 1.0} else None


def join_split_columns(table: Table) -> tuple[Table, list[str]]:
    """Return the table with one column in place of those called `train`, `val` or `test`, and a note on it.

    These columns are of 1 and 0, with one 1 in a row at most.
    """
    split_of = {name: split for name in table.columns if (split := find_simple_split(name))}
    rows = list(zip(*(map(parse_flag, table.columns[name]) for name in split_of), strict=True))
    are_flags = all(set(flags) <= {0.0, 1.0} and flags.count(1.0) <= 1 for flags in rows)
    if len(split_of) < 2 or "train" not in split_of.values() or "split" in table.columns or not are_flags:
        return table, []
    columns = {name: cells for name, cells in table.columns.items() if name not in split_of}
    splits = [*split_of.values(), ""]
    columns["split"] = [splits[(*flags, 1.0).index(1.0)] for flags in rows]
    return replace(table, columns=columns), [f"the columns {', '.join(split_of)} are read as one column, split"]


def _read_split_cells(table: Table, name: str) -> list[str]:
    """Return the cells of a column of splits; the numbers 0, 1 and 2 of a `partition` by their names."""
    cells = table.columns[name]
    is_numbered = fold_column(name) == "partition" and set(cells) == PARTITION.keys()
    return [PARTITION[cell] for cell in cells] if is_numbered else cells


def _parse_split(cell: str) -> str | None:
    """Return the split that a cell names, empty for an empty cell; None for another word."""
    if not cell:
        return ""
    split = find_simple_split(cell) or find_split(cell)
    return None if split == UNLABELLED else split


def read_folds(table: Table, columns: dict[str, str], splits: Sequence[str]) -> list[str]:
    """Return the fold in which each row validates; empty if it is not known for all.

    Test images need none.
    """
    if "fold" not in columns:
        return []
    cells = table.columns[columns["fold"]]
    order = sorted(set(cells) - {""}, key=lambda cell: (parse_number(cell) is None, parse_number(cell) or 0.0, cell))
    fold_of = {cell: name_fold(number) for number, cell in enumerate(order, start=1)}
    is_known = all(cell or split == "test" for cell, split in zip(cells, splits, strict=True))
    return [fold_of.get(cell, "") for cell in cells] if is_known else []


def read_groups(table: Table, columns: dict[str, str]) -> list[str]:
    """Return the group of each row, an empty one where its cell is; empty if the table has none."""
    if "group" not in columns:
        return []
    cells = join_decimals(table.columns[columns["group"]])
    return ["" if is_unknown(cell) else unicodedata.normalize("NFC", cell) for cell in cells]


def _holds_splits(cells: Sequence[str]) -> bool:
    """Return True if most cells of a column name splits, the training split among them; another word is an error."""
    words = set(cells)
    splits = {split for word in words if (split := _parse_split(word))}
    is_split = {"train"} < splits and len(words) <= len(SPLITS) + 1
    return is_split and _most(cells, lambda cell: _parse_split(cell) is not None)


def _list_groups(table: Table, name_of: dict[str, str], path: str) -> Iterator[str]:
    """Yield the columns that may hold groups, the most certain first; a `group` of few values is rather a label."""
    yield from (name for name in list_patients(table) if name in name_of.values() and name != path)
    groups = [name_of[known] for known in GROUP_COLUMNS if known in name_of]
    yield from (name for name in groups if not is_flag(table, name) and not _holds_arms(table.columns[name]))
    words_of = {name: set(list_words(name)) for name in name_of.values() if name != path}
    for word in _OBJECT_WORDS:
        either = {word, f"{word}id"}
        objects = (name for name, words in words_of.items() if words & either and words <= either | _ID_WORDS)
        yield from (name for name in objects if _numbers_objects(table, name))


def _numbers_objects(table: Table, name: str) -> bool:
    """Return True if a column has identifiers of objects, and no words of another column stand for the same."""
    cells = table.columns[name]
    others = [table.columns[other] for other in table.columns if other != name]
    names_classes = any(is_one_to_one(cells, words) for words in others if not _most(words, _has_digit))
    return len(set(cells)) > 2 and not _holds_arms(cells) and _most(cells, _has_digit) and not names_classes


def holds_identifiers(table: Table, name: str) -> bool:
    """Return True if a column has identifiers, by its name and its values."""
    cells = table.columns[name]
    is_called_so = bool(_ID_WORDS & set(list_words(name)))
    return is_called_so and len(set(cells)) >= MIN_OBJECTS and _may_name(cells) and _most(cells, _has_digit)


def _has_digit(cell: str) -> bool:
    return any(map(str.isdigit, cell))


def _holds_arms(cells: Sequence[str]) -> bool:
    """Return True if a column has few values for its rows, such as control and treated, or AD, CN and MCI."""
    values = len(set(cells))
    return values <= MAX_ARMS and len(cells) > 10 * values


def suggest_groups(table: Table, unused: Sequence[str], targets: Sequence[object]) -> list[str]:
    """Return a note on the unused column with the most values that may be groups: each of them has one target only.

    There is none where that may be chance, as with one frequent class.
    """
    fractions = [count / len(table) for count in Counter(targets).values()]
    for name in sorted(unused, key=lambda name: -len(set(table.columns[name]))):
        cells = table.columns[name]
        images = Counter(cells)
        if not (MIN_OBJECTS <= len(images) <= len(cells) / 2 and _most(cells, _has_digit)):
            continue
        if len(set(zip(cells, targets, strict=True))) > len(images):
            continue
        by_chance = sum(
            values * sum(fraction**size for fraction in fractions) for size, values in Counter(images.values()).items()
        )
        if by_chance < len(images) / 2:
            problem = f"column {name!r} has {len(images):,} values, each with one target only"
            remedy = f"--group-column {quote(name)} keeps its images in one split"
            return [Advice(problem, f". If a value is one plant, part or patient, {remedy}")]
    return []


def list_patients(table: Table) -> list[str]:
    """Return the columns whose name is a word for patients, alone or with one for numbers: `Patienten-Nr.`."""
    words_of = {name: set(list_words(name)) for name in table.columns}
    return [name for name, words in words_of.items() if words & _PATIENT_WORDS and words <= _PATIENT_WORDS | _ID_WORDS]


def _may_name(cells: Sequence[str], rows: int = MAX_READERS) -> bool:
    """Return True if a column can hold paths: its cells have fewer than `rows` rows each, on average."""
    return len(set(cells[:SAMPLE])) > min(len(cells), SAMPLE) / rows


def _most(cells: Sequence[str], matches: Callable[[str], bool]) -> bool:
    filled = [cell for cell in cells[: 10 * SAMPLE] if cell]
    return bool(filled) and sum(map(matches, filled)) > len(filled) / 2
