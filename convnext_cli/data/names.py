"""Identifiers of patients or other subjects in file names, by which images are grouped."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from convnext_cli.data.index import Index
from convnext_cli.data.patterns import DATE

Cell: TypeAlias = tuple[str, int]  # a split and a class
MIN_SHARING = 0.05  # fraction of the images that must share their identifier with another image
MAX_FRACTION = 0.2  # largest fraction of the names with the same separators that may share an identifier
MIN_ALIKE = 4  # names with the same separators; fewer do not show which token varies
MAX_CAMERAS = 9  # that see one subject, or are channels of one image; more are rather places, as camera traps
MOST = 0.95  # fraction of the names in a class that must have the same word, for the word to belong to the class

# fmt: off
VIEWS = frozenset((
    "left", "right", "l", "r", "od", "os", "ou", "cc", "mlo", "ml", "lm", "xccl", "ap", "pa", "lat", "lateral",
    "frontal", "front", "back", "rear", "side", "top", "bottom", "upper", "lower", "dorsal", "ventral", "axial",
    "coronal", "sagittal", "t1", "t1c", "t1ce", "t1gd", "t1w", "t2", "t2w", "flair", "dwi", "swi",
))
"""Words for views and sequences, of which one subject has several."""
PARTS = frozenset(("crop", "patch", "tile", "frame", "slice", "cell", "aug", "copy", "view", "part", "roi"))
"""Words before a number that counts parts of a subject, unless the name has no other identifier."""
PLACES = frozenset(("x", "y", "z", "row", "col", "rot", "rotation", "scale"))
"""Words before a number for the position or transformation of a part; it never identifies a subject."""
SHOTS = frozenset("abcdef")
"""Letters after a number that distinguish images of one subject: `200a`, `200b`."""
COUNTERS = frozenset((
    "img", "image", "dsc", "dscn", "dscf", "wa", "pxl", "vid", "mvi", "gopr", "scan", "photo", "pic", "picture", "file",
    "shot", "snap", "capture", "screenshot", "at",
))
"""Words before a number that a device counts, often restarting each day."""
# fmt: on

_DATE = re.compile(
    DATE + r"(?P<time>(?:[-_ T.]|[ _-]at[ _-])(?:[01]\d|2[0-3])(?P<c>[-_.h]?)[0-5]\d(?P=c)[0-5]\d(?:\d{3})?)?"
)
_UUID = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"  # whose parts of four repeat by chance
_WELL = re.compile(r"[A-P](?:0[1-9]|1\d|2[0-4])(?=f\d)|[Rr]\d\d?[Cc]\d\d?(?!\d)")
"""A well of a plate or another place in rows and columns, whose field may follow: `B02f00`, `r02c03f01`."""
_TOKEN = re.compile(rf"(?<![^\W_])(?:(?:{_DATE.pattern}|(?i:{_UUID}))(?![^\W_])|{_WELL.pattern})|[^\W_]+")
_CAMERA = re.compile(r"(?:cam(?:era)?|kamera|channel|angle)(?:\d+|[a-h])", re.IGNORECASE)
_CHANGE_WORD = (
    r"(?:aug(?:ment(?:ed)?)?|(?:[hv]_?|horizontal_|vertical_)?flip(?:ped|lr|ud)?|mirror(?:ed)?|rot(?:ate|ated|ation)?"
    r"|crop(?:ped)?|zoom(?:ed)?|shear(?:ed)?|shift(?:ed)?|translat(?:e|ed|ion)|scaled?|resized?|warp(?:ed)?|elastic|affine"
    r"|perspective|bright(?:ness|en|ened)?|dark(?:en|ened)|contrast|gamma|clahe|equali[sz]ed?|hue|saturat(?:ed|ion)"
    r"|gr[ae]yscale|inverted|(?:colou?r[ _-]?)?jitter|sharp(?:en|ened|ness)"
    r"|(?:gaussian[ _-]?)?(?:blur(?:red)?|nois[ey])|salt(?:[ _-]?and)?[ _-]?pepper)\d*"
)
_CHANGE = re.compile(rf"^((?:{_CHANGE_WORD}[ _-]+)+)(?=.*\d)(.+)", re.IGNORECASE)
"""A name that begins with how the image was changed, such as `flip_` or `rot90_`, and has a number after that."""
_CAMEL_CHANGE = re.compile(rf"(?<=\d)(?=(?-i:(?=[A-Z]))(?!aug\d\d)(?:{_CHANGE_WORD})+(?![^\W_]))", re.IGNORECASE)
"""The place before such words after a number, as in `IMG_1Flip`; `12Aug2020` is a date."""
_CODE = re.compile(r"\d|^[a-f]{4,}$|^[A-F]{4,}$")  # digits, or a hexadecimal code without any
_PART = re.compile(r"\d+|[^\W\d_]+")


def group_by_name(index: Index) -> dict[int, str]:
    """Return the identifier in each file's name, by row.

    A name is cut into tokens at everything but letters and digits. Names with the same separators are compared token by
    token. **The identifier is the first token that many files share while another token of their names differs**, in
    any alphabet: `person100` of `person100_bacteria_475`, `08a1287f` of `08a1287f_1`, `IMG_1234` of `IMG_1234 (2)`.
    These are never identifiers:

    - a token that never varies within a class and split (the class's name, `IMG`, `n01443537`); it becomes the prefix
      of the identifier, because numbers may restart after it;
    - a token that most files share, such as a version, a stain or a site (`MAX_FRACTION`);
    - a date, which many subjects share (a date with a time of day may be one);
    - a view (`left`, `MLO`, `T1`) or a camera (`cam2`), of which one subject has several;
    - a word for a change of the image before the rest of the name (`flip_`, `rot90_`) or after a number (`1Flip`);
    - the number that is the image's target, such as the age in `61_0_p12.jpg`;
    - a number that repeats in other classes only, once in each: the numbers then restart in each class
      (`groups.py` sees to it).

    A camera's counter (`IMG_1234`, `DSC00012`, `IMG-20230101-WA0001`) does not repeat, so it is no identifier by
    itself. Copies, crops and frames of that photograph share it.

    A folder that is a date, a view or a camera counts as the beginning of the name: `2024-05-03/plant_7`.
    """
    cells = list(zip(index.splits, index.class_numbers, strict=True))
    targets = [row[0] for row in index.values] if index.task.is_continuous else []
    names = list(map(_cut, index.paths))
    rows_of: dict[Hashable, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        separators = tuple(" ".join(text.split()) or text[:1] for text in name[::2])
        rows_of[separators, tuple(bool(_CODE.search(word)) for word in name[1::2])].append(row)
    result: dict[int, str] = {}
    undecided: dict[int, Sequence[str]] = {}
    repeated: set[str] = set()
    occurrences: Counter[str] = Counter()  # number of kinds of names, by first candidate
    for rows in rows_of.values():
        if len(rows) < MIN_ALIKE:
            undecided |= {row: list(accumulate(names[row]))[1::2] for row in rows}
            continue
        numbers = [targets[row] for row in rows] if targets else []
        candidates, shared = _find_identifiers([names[row] for row in rows], [cells[row] for row in rows], numbers)
        repeated |= shared
        if candidates and _are_shared(candidates[0], shared):
            result |= zip(rows, candidates[0], strict=True)
        elif candidates:
            undecided |= zip(rows, zip(*candidates, strict=True), strict=True)
            occurrences.update(set(candidates[0]))
    repeated |= {*result.values(), *(key for key, count in occurrences.items() if count > 1)}
    for row, keys in undecided.items():  # `IMG_1234` beside `IMG_1234 (2)`, or `IMG_1234 - Copy`
        if key := next((key for key in keys if key in repeated), None):
            result[row] = key
    return result


def _cut(path: str) -> list[str]:
    """Return separators and tokens of a file's name in turn, separators first and last.

    A date, a UUID or a well is one token.
    """
    stem = path.rpartition("/")[2].rpartition(".")[0]
    stem = _CAMEL_CHANGE.sub("_", _CHANGE.sub(r"\2_\1", stem))  # `IMG_1_flip_` for `flip_IMG_1`, `IMG_1_Flip`
    stem = "/".join([*list_views(path), stem])
    pieces = []
    end = 0
    for match in _TOKEN.finditer(stem):
        pieces += [stem[end : match.start()], match[0]]
        end = match.end()
    return [*pieces, stem[end:]]


def list_views(path: str) -> list[str]:
    """Return the folders of a path that are dates, views or cameras, in which the same subjects are again."""
    folders = path.split("/")[:-1]
    return [
        folder for folder in folders if _DATE.fullmatch(folder) or _CAMERA.fullmatch(folder) or folder.lower() in VIEWS
    ]


@dataclass(frozen=True, slots=True)
class _Column:
    """The tokens at one place of names with the same separators."""

    words: Sequence[str]
    separators: Sequence[str]
    """After each word."""
    kind: str
    """As `_classify` returns it."""
    varies: bool
    """True if it has two values in any class of a split."""
    before: str
    """The word before it in the first name, in lower case."""


def _make_columns(names: Sequence[list[str]], cells: Sequence[Cell], targets: Sequence[float]) -> list[_Column]:
    """Return the columns of names with the same separators, of which those of the targets are no identifiers."""
    columns: list[_Column] = []
    _, *pieces = zip(*names, strict=True)
    for tokens, separators in zip(pieces[::2], pieces[1::2], strict=True):
        parts = _cut_regular(tokens, cells)
        inside = [("",) * len(names)] * (len(parts) - 1)
        for words, after in zip(parts, [*inside, separators], strict=True):
            before = columns[-1].words[0].lower() if columns else ""
            varies = len(set(zip(words, cells, strict=True))) > len(set(cells))
            kind = "target" if _are_targets(words, targets) else _classify(words, cells)
            if kind in ("few", "varies") and _are_cameras(words, before):
                kind = "view"
            columns.append(_Column(words, after, kind, varies, before))
    return columns


def _are_cameras(words: Sequence[str], before: str) -> bool:
    """Return True if words such as `cam2`, or `2` after `cam`, number a few cameras."""
    return len(set(words)) <= MAX_CAMERAS and any(
        all(_CAMERA.fullmatch(start + word) for word in words) for start in ("", before)
    )


def _are_targets(words: Sequence[str], targets: Sequence[float]) -> bool:
    """Return True if most words are the numbers to be predicted, or their whole part; `nan` is not known."""
    known = [(word, abs(target)) for word, target in zip(words, targets, strict=False) if not math.isnan(target)]
    same = sum(word.isdecimal() and int(word) == int(target) for word, target in known)
    return bool(known) and same >= MOST * len(known)


def _find_identifiers(
    names: Sequence[list[str]], cells: Sequence[Cell], targets: Sequence[float]
) -> tuple[list[list[str]], set[str]]:
    """Return the candidate identifiers of names with the same separators, the best first, and those that repeat.

    `targets` are the numbers to be predicted; empty if the target is not a number.
    """
    columns = _make_columns(names, cells, targets)
    candidates: list[list[str]] = []
    repeated: set[str] = set()
    for column, keys in _list_candidates([name[0] for name in names], columns):
        candidates.append(keys)
        if any(other.varies for other in columns if other is not column):
            in_class = Counter((key, label) for key, (_, label) in zip(keys, cells, strict=True))
            shared = {key for (key, _), count in in_class.items() if count > 1}
            if _are_shared(keys, shared):
                return [keys], shared
            repeated = repeated or shared
    return candidates, repeated


def _list_candidates(starts: Sequence[str], columns: Sequence[_Column]) -> Iterator[tuple[_Column, list[str]]]:
    """Yield the columns that may be identifiers, the best first, and the identifiers with their prefixes.

    Args:
        starts: the separators at which each name starts.
        columns: of these names.
    """
    for avoided in (PARTS | PLACES, PLACES):
        for place, column in enumerate(columns):
            if column.kind not in ("varies", "few") or column.before in avoided:
                continue
            is_named = column.before.isalpha() and column.before not in COUNTERS and columns[place - 1].kind == "fixed"
            kinds = ("fixed", "few") if is_named else ("fixed", "few", "date")  # other numbers may restart each day
            prefix = [other for other in columns[:place] if other.kind in kinds and other.before not in avoided]
            texts = [text for other in prefix for text in (other.words, other.separators)]
            if len(prefix) == place:  # the name as it begins
                texts.insert(0, starts)
            keys = list(map("".join, zip(*texts, column.words, strict=True)))
            is_dated = any(other.kind == "date" for other in prefix)
            if column.kind == "varies" or (is_dated and _is_spread(Counter(keys))):
                yield column, keys


def _are_shared(keys: Sequence[str], shared: Set[str]) -> bool:
    return sum(key in shared for key in keys) >= MIN_SHARING * len(keys)


def _cut_regular(tokens: Sequence[str], cells: Sequence[Cell]) -> list[Sequence[str]]:
    """Cut a column of tokens such as `img12crop3` or `17left` into parts if its letters are constant in each class."""
    if all(map(_CAMERA.fullmatch, tokens)):
        return [tokens]
    parts = []
    letters: dict[Cell, set[tuple[str, ...]]] = defaultdict(set)
    for token, cell in zip(tokens, cells, strict=True):
        if _DATE.fullmatch(token) or _WELL.fullmatch(token):
            return [tokens]
        words = _PART.findall(token)
        parts.append(words)
        form = ["#" if w.isdigit() else "*" if w.lower() in VIEWS else w for w in words]
        if len(words) == 2 and words[0].isdigit() and words[1].lower() in SHOTS:
            form[1] = "*"
        letters[cell].add(tuple(form))
    forms = {tuple(word if word == "#" else "" for word in form) for cell in letters.values() for form in cell}
    if len(forms) > 1 or any(len(cell) > 1 for cell in letters.values()):
        return [tokens]
    return list(zip(*parts, strict=True))


def _classify(words: Sequence[str], cells: Sequence[Cell]) -> str:
    """Return what a column of tokens is: `fixed` in each class and split, `date`, `view`, `few` values, or `varies`."""
    if all(_DATE.fullmatch(word) for word in words):
        return "varies" if all(_DATE.fullmatch(word)["time"] for word in words) else "date"  # type: ignore[index]
    if all(word.lower() in VIEWS for word in words):
        return "view"
    words_of: dict[Cell, Counter[str]] = defaultdict(Counter)
    for word, cell in zip(words, cells, strict=True):
        words_of[cell][word] += 1
    several = [counts for counts in words_of.values() if counts.total() > 1]
    usual = sum(counts.most_common(1)[0][1] for counts in several)
    if usual >= MOST * max(1, sum(counts.total() for counts in several)):
        return "fixed"
    return "varies" if _is_spread(Counter(words)) else "few"


def _is_spread(counts: Counter[str]) -> bool:
    """Return True if no word is in most names: none in more than a fifth, or each in at most four on average."""
    names = counts.total()
    return counts.most_common(1)[0][1] <= max(2, MAX_FRACTION * names) or names <= 4 * len(counts)
