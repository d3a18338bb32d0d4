"""Identifiers of patients or other subjects in file names, by which images are grouped."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from convnext_cli.data.index import Index

MIN_SHARING = 0.05  # fraction of the images that must share their identifier with another image
MAX_FRACTION = 0.2  # largest fraction of the names with the same separators that may share an identifier
MIN_ALIKE = 4  # names with the same separators; fewer do not show which token varies
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
    r"(?:19|20)\d\d(?P<s>[-_.]?)(?:0[1-9]|1[0-2])(?P=s)(?:0[1-9]|[12]\d|3[01])"
    r"(?P<time>(?:[-_ T.]|[ _-]at[ _-])(?:[01]\d|2[0-3])(?P<c>[-_.h]?)[0-5]\d(?P=c)[0-5]\d(?:\d{3})?)?"
)
_TOKEN = re.compile(rf"(?<![^\W_]){_DATE.pattern}(?![^\W_])|[^\W_]+")
_CODE = re.compile(r"\d|^[a-f]{4,}$|^[A-F]{4,}$")  # digits, or a part of a UUID without any
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
    - a view (`left`, `MLO`, `T1`), of which one subject has several;
    - a number that repeats in other classes only, once in each: the numbers then restart in each class
      (`groups.py` sees to it).

    A camera's counter (`IMG_1234`, `DSC00012`, `IMG-20230101-WA0001`) does not repeat, so it is no identifier by
    itself. Copies, crops and frames of that photograph share it.
    """
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in index.paths]
    cells = list(zip(index.splits, index.class_numbers, strict=True))
    shapes: dict[tuple[str | bool, ...], list[int]] = defaultdict(list)
    tokens = [_cut(stem) for stem in stems]
    for row, (stem, spans) in enumerate(zip(stems, tokens, strict=True)):
        between = [stem[one[1] : two[0]] for one, two in pairwise([(0, 0), *spans, (len(stem), len(stem))])]
        is_code = (bool(_CODE.search(stem[a:b])) for a, b in spans)
        shapes[(*(" ".join(text.split()) or text[:1] for text in between), *is_code)].append(row)
    result: dict[int, str] = {}
    single: dict[int, list[str]] = {}
    all_repeated: set[str] = set()
    shapes_of: dict[str, set[int]] = defaultdict(set)
    for number, rows in enumerate(shapes.values()):
        if len(rows) < MIN_ALIKE:
            single |= {row: [stems[row][:end] for _, end in tokens[row]] for row in rows}
            continue
        keys, repeated = _find_identifiers(
            [stems[r] for r in rows], [tokens[r] for r in rows], [cells[r] for r in rows]
        )
        all_repeated |= repeated
        if repeated and sum(key in repeated for key in keys[0]) >= MIN_SHARING * len(rows):
            result |= zip(rows, keys[0], strict=True)
            continue
        single |= {row: [column[at] for column in keys] for at, row in enumerate(rows)}
        for key in keys[0] if keys else ():
            shapes_of[key].add(number)
    all_repeated |= {*result.values(), *(key for key, numbers in shapes_of.items() if len(numbers) > 1)}
    for row, candidates in single.items():  # `IMG_1234` beside `IMG_1234 (2)`, or `IMG_1234 - Copy`
        if shared := [key for key in candidates if key in all_repeated]:
            result[row] = shared[0]
    return result


def _cut(stem: str) -> list[tuple[int, int]]:
    """Return the start and end of each token of a name; a date, with its time of day, is one token."""
    return [match.span() for match in _TOKEN.finditer(stem)]


def _find_identifiers(
    stems: Sequence[str], tokens: Sequence[list[tuple[int, int]]], cells: Sequence[tuple[str, int]]
) -> tuple[list[list[str]], set[str]]:
    """Return the candidate identifiers of names with the same separators, the best first, and those that repeat."""
    columns = [
        part
        for place in range(len(tokens[0]))
        for part in _cut_regular(stems, [spans[place] for spans in tokens], cells)
    ]
    words = [[stem[a:b] for stem, (a, b) in zip(stems, spans, strict=True)] for spans in columns]
    kinds = [_classify(column, cells) for column in words]
    single: list[list[str]] = []
    few: set[str] = set()
    for avoided in (PARTS | PLACES, PLACES):
        is_part = [place > 0 and words[place - 1][0].lower() in avoided for place in range(len(words))]
        for place, kind in enumerate(kinds):
            if kind not in ("varies", "few") or is_part[place]:
                continue
            label = words[place - 1][0].lower() if place and kinds[place - 1] == "fixed" else ""
            is_daily = not label.isalpha() or label in COUNTERS  # such numbers may restart each day
            before = ("fixed", "few", "date") if is_daily else ("fixed", "few")
            prefix = [at for at in range(place) if kinds[at] in before and not is_part[at]]
            keys = [
                stem[: columns[place][row][1]]
                if len(prefix) == place
                else "".join(stem[columns[at][row][0] : columns[at + 1][row][0]] for at in prefix) + words[place][row]
                for row, stem in enumerate(stems)
            ]
            if kind == "few" and not (any(kinds[at] == "date" for at in prefix) and _is_spread(Counter(keys))):
                continue
            single.append(keys)
            if any(_varies_within(column, cells) for at, column in enumerate(words) if at != place):
                in_class = Counter((key, label) for key, (_, label) in zip(keys, cells, strict=True))
                repeated = {key for (key, _), count in in_class.items() if count > 1}
                if sum(key in repeated for key in keys) >= MIN_SHARING * len(keys):
                    return [keys], repeated
                few = few or repeated
    return single, few


def _cut_regular(
    stems: Sequence[str], spans: Sequence[tuple[int, int]], cells: Sequence[tuple[str, int]]
) -> list[list[tuple[int, int]]]:
    """Cut a column of tokens such as `img12crop3` or `17left` into parts if its letters are constant in each class."""
    parts = []
    letters: dict[tuple[str, int], set[tuple[str, ...]]] = defaultdict(set)
    for stem, (start, end), cell in zip(stems, spans, cells, strict=True):
        text = stem[start:end]
        if _DATE.fullmatch(text):
            return [list(spans)]
        pieces = [(start + m.start(), start + m.end()) for m in _PART.finditer(text)]
        parts.append(pieces)
        words = [stem[a:b] for a, b in pieces]
        form = ["#" if w.isdigit() else "*" if w.lower() in VIEWS else w for w in words]
        if len(words) == 2 and words[0].isdigit() and words[1].lower() in SHOTS:
            form[1] = "*"
        letters[cell].add(tuple(form))
    forms = {tuple(word if word == "#" else "" for word in form) for cell in letters.values() for form in cell}
    if len(forms) > 1 or any(len(cell) > 1 for cell in letters.values()):
        return [list(spans)]
    return [list(column) for column in zip(*parts, strict=True)]


def _classify(words: Sequence[str], cells: Sequence[tuple[str, int]]) -> str:
    """Return what a column of tokens is: `fixed` in each class and split, `date`, `view`, `few` values, or `varies`."""
    if all(_DATE.fullmatch(word) for word in words):
        return "varies" if all(_DATE.fullmatch(word)["time"] for word in words) else "date"  # type: ignore[index]
    if all(word.lower() in VIEWS for word in words):
        return "view"
    words_of: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for word, cell in zip(words, cells, strict=True):
        words_of[cell][word] += 1
    several = [counts for counts in words_of.values() if counts.total() > 1]
    usual = sum(counts.most_common(1)[0][1] for counts in several)
    if usual >= MOST * max(1, sum(counts.total() for counts in several)):
        return "fixed"
    return "varies" if _is_spread(Counter(words)) else "few"


def _varies_within(words: Sequence[str], cells: Sequence[tuple[str, int]]) -> bool:
    """Return True if a column of tokens has two values in any class of a split."""
    return len(set(zip(words, cells, strict=True))) > len(set(cells))


def _is_spread(counts: Counter[str]) -> bool:
    """Return True if no word is in most names: none in more than a fifth, or each in at most four on average."""
    names = counts.total()
    return counts.most_common(1)[0][1] <= max(2, MAX_FRACTION * names) or names <= 4 * len(counts)
