"""Groups: images of one patient, plant, part or photograph, which must not lie on both sides of a split."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath

from convnext_cli.data.encoding import normalise_name
from convnext_cli.data.folders.splits import find_split
from convnext_cli.data.index import Index
from convnext_cli.errors import ConvnextError, UsageError

MIN_SHARING = 0.05  # of the images must share their identifier with another one for it to be one
MIN_PER_CLASS = 3  # identifiers a class on average, so that every split can get some
MIN_GROUPS = 10  # identifiers that are enough, however many classes there are
MAX_FRACTION = 0.2  # of the names with the same separators may have the same identifier
MAX_PATIENT = 0.5  # of the DICOM files may have the same PatientID
MIN_ALIKE = 4  # names with the same separators; fewer do not show what varies
MOST = 0.95  # of the names in a class must have the same word for it to be the class's own

# fmt: off
VIEWS = frozenset((
    "left", "right", "l", "r", "od", "os", "ou", "cc", "mlo", "ml", "lm", "xccl", "ap", "pa", "lat", "lateral",
    "frontal", "front", "back", "rear", "side", "top", "bottom", "upper", "lower", "dorsal", "ventral", "axial",
    "coronal", "sagittal", "t1", "t1c", "t1ce", "t1gd", "t1w", "t2", "t2w", "flair", "dwi", "swi",
))
"""Words for views and sequences: one subject has several."""
PARTS = frozenset(("crop", "patch", "tile", "frame", "slice", "cell", "aug", "copy", "view", "part", "roi"))
"""Words before a number that counts parts of a subject, unless nothing else in the name can identify it."""
PLACES = frozenset(("x", "y", "z", "row", "col", "rot", "rotation", "scale"))
"""Words before a number that says where or how a part was taken; it never identifies a subject."""
SHOTS = frozenset("abcdef")
"""Letters behind a number that tell images of one subject apart: `200a`, `200b`."""
COUNTERS = frozenset((
    "img", "image", "dsc", "dscn", "dscf", "wa", "pxl", "vid", "mvi", "gopr", "scan", "photo", "pic", "picture", "file",
    "shot", "snap", "capture", "screenshot", "at",
))
"""Words before a number that a device counts, often anew each day."""
# fmt: on

_DATE = re.compile(
    r"(?:19|20)\d\d(?P<s>[-_.]?)(?:0[1-9]|1[0-2])(?P=s)(?:0[1-9]|[12]\d|3[01])"
    r"(?P<time>(?:[-_ T.]|[ _-]at[ _-])(?:[01]\d|2[0-3])(?P<c>[-_.h]?)[0-5]\d(?P=c)[0-5]\d(?:\d{3})?)?"
)
_TOKEN = re.compile(rf"(?<![^\W_]){_DATE.pattern}(?![^\W_])|[^\W_]+")
_CODE = re.compile(r"\d|^[a-f]{4,}$|^[A-F]{4,}$")  # digits, or a part of a UUID that happens to have none
_PART = re.compile(r"\d+|[^\W\d_]+")
_DICOM = "dicom:"
MAX_SECONDS_PATH, MAX_SECONDS = 2.0, 60.0  # for a pattern of the user's on one path, and on all


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """Where the groups come from."""

    source: str
    """`manifest`, `names`, `folders`, `pattern`, `dicom`, or `none`."""
    rule: str
    """In words, for people."""
    groups: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    """Up to three paths with their groups."""
    certainty: str = "given"
    """`given`; or of a guess `supported` by the pictures, or `unsure`."""
    evidence: str = ""
    """Of a guess: what the pictures say of it."""

    @property
    def is_guess(self) -> bool:
        """Whether names or folders suggested the groups."""
        return self.source in ("names", "folders")


def group_index(index: Index, group_from: str) -> tuple[Index, Grouping]:
    """Gives an index its groups.

    Args:
        index: scanned; may have groups from a manifest.
        group_from: `auto` (the manifest's, else inferred), `none`, `dicom:KEYWORD` (such as `dicom:PatientID`), or a
            regular expression that is searched for in the relative path: its first bracket, or all of it, is the group.

    Raises:
        UsageError: the pattern is not valid, or finds nothing.
    """
    if group_from == "none":
        return replace(index, groups=()), Grouping(source="none", rule="switched off: every image by itself")
    if group_from == "auto" and index.groups:
        return index, _describe(index.groups, index.paths, "manifest", "the manifest's column")
    if group_from.startswith(_DICOM):
        found = _read_dicom(index, group_from.removeprefix(_DICOM))
        return _apply(index, found, "dicom", f"the DICOM attribute {group_from.removeprefix(_DICOM)}")
    if group_from != "auto":
        return _apply(index, _search(index.paths, group_from), "pattern", f"the pattern {group_from}")
    if patients := _read_patients(index):
        return _apply(index, patients, "dicom", "the DICOM attribute PatientID")
    for source, rule, guesses in (
        ("folders", "the folder inside the class folder", _group_by_folder(index)),
        ("names", "the part of the file's name that repeats", iter([_group_by_name(index)])),
    ):
        for guess in guesses:
            if groups := _keep_believable(index, guess):
                return _apply(index, groups, source, rule)
    return replace(index, groups=()), Grouping(source="none", rule="no identifier repeats in the names")


def _apply(index: Index, found: Mapping[int, str], source: str, rule: str) -> tuple[Index, Grouping]:
    """A row without an identifier is a group by itself, named by its path."""
    groups = tuple(found.get(row, path) for row, path in enumerate(index.paths))
    return replace(index, groups=groups), _describe(groups, index.paths, source, rule)


def _describe(groups: Sequence[str], paths: Sequence[str], source: str, rule: str) -> Grouping:
    counts = Counter(groups)
    shown: dict[str, str] = {}
    for group, path in zip(groups, paths, strict=True):
        if counts[group] > 1 and len(shown) < 3:
            shown.setdefault(group, path)
    examples = tuple((path, group) for group, path in shown.items())
    unsure = source in ("names", "folders")
    return Grouping(
        source=source,
        rule=rule,
        groups=len(counts),
        examples=examples,
        certainty="unsure" if unsure else "given",
        evidence="not compared with the pictures" if unsure else "",
    )


def _search(paths: Sequence[str], pattern: str) -> dict[int, str]:
    import regex  # it reads what `re` does, and has a time limit: some patterns take for ever on some paths

    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UsageError(f"{pattern!r} is no regular expression ({error})", r"Try --group-from 'person\d+'") from error
    found = {}
    end = time.monotonic() + MAX_SECONDS
    for row, path in enumerate(paths):
        try:
            match = compiled.search(path, timeout=min(MAX_SECONDS_PATH, max(0.01, end - time.monotonic())))
        except TimeoutError as error:
            raise UsageError(
                f"{pattern!r} takes too long on {path}", "Avoid repeats inside repeats, such as (a+)+, in --group-from"
            ) from error
        if match:
            found[row] = match[1] if compiled.groups and match[1] is not None else match[0]
    if not found:
        raise UsageError(
            f"{pattern!r} is found in no path, such as {paths[0]}", "Correct --group-from, or give auto or none"
        )
    return found


def _list_dicom(index: Index) -> list[int]:
    """Return the rows that may be DICOM: by suffix, or without one of another format."""
    from convnext_cli.images.formats import PILLOW_SUFFIXES

    others = frozenset[str]().union(*PILLOW_SUFFIXES.values())
    return [row for row, path in enumerate(index.paths) if PurePosixPath(path).suffix.lower() not in others]


def _read_dicom(index: Index, keyword: str) -> dict[int, str]:
    from convnext_cli.images.dicom import read_tag

    found = {}
    for row in _list_dicom(index):
        if value := read_tag(index.root / index.paths[row], keyword):
            found[row] = value
    if not found:
        raise UsageError(f"no file has the DICOM attribute {keyword}", "Give another keyword, such as dicom:PatientID")
    return found


def _read_patients(index: Index) -> dict[int, str]:
    """Return the PatientID of each DICOM file; empty where no two files share one, or nothing can read DICOM."""
    if not _list_dicom(index):
        return {}
    try:
        patients = _read_dicom(index, "PatientID")
    except ConvnextError:
        return {}
    counts = Counter(patients.values())
    # One ID on most files is what anonymising left, such as "ANONYMOUS": those images stand for themselves.
    patients = {row: patient for row, patient in patients.items() if counts[patient] <= MAX_PATIENT * len(patients)}
    return patients if len(set(patients.values())) < len(patients) else {}


def _group_by_folder(index: Index) -> Iterator[dict[int, str]]:
    """Yield the folders inside the class folder, the outermost first: `NORMAL/p001/a.png` is of p001."""
    inside = []
    for row, path in enumerate(index.paths):
        inside.append(_list_inside(path, index.classes[index.labels[row]], index.splits[row]))
    for depth in range(max(map(len, inside), default=0)):
        yield {row: folders[depth] for row, folders in enumerate(inside) if len(folders) > depth}


def _list_inside(path: str, name: str, split: str) -> list[str]:
    """The folders inside the class folder; those behind the first one where a manifest has other names."""
    parts = path.split("/")[:-1]
    place = next((at for at, part in enumerate(parts) if part == name or normalise_name(part) == name), None)
    inside = parts[1 if place is None else place + 1 :]
    if split and inside and (known := find_split(inside[0])) and known[0] == split:
        return inside[1:]  # `<class>/train`
    return inside


def _group_by_name(index: Index) -> dict[int, str]:
    """Return the identifier in each file's name, by row.

    A name is cut into tokens at everything that is no letter or digit; names with the same separators are looked at
    together, token by token. **The identifier is the first token that many files share while another token of their
    names differs**, whatever its alphabet: `person100` of `person100_bacteria_475`, `08a1287f` of `08a1287f_1`,
    `IMG_1234` of `IMG_1234 (2)`. None of these is one:

    - a token that never varies within a class and split (its name, `IMG`, `n01443537`); it is kept in front of the
      identifier, because numbers may begin anew after it;
    - a token that most files share, such as a version, a stain or a site (`MAX_FRACTION`);
    - a date, which many subjects share; a date with a time of day may be one;
    - a view (`left`, `MLO`, `T1`): one subject has several;
    - a number that repeats in other classes only, once in each: each class then counts anew (`_keep_believable`).

    A camera's counter (`IMG_1234`, `DSC00012`, `IMG-20230101-WA0001`) does not repeat, so it is none by itself; copies,
    crops and frames of that photograph share it.
    """
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in index.paths]
    cells = list(zip(index.splits, index.labels, strict=True))
    shapes: dict[tuple[str | bool, ...], list[int]] = defaultdict(list)
    tokens = [_cut(stem) for stem in stems]
    for row, (stem, spans) in enumerate(zip(stems, tokens, strict=True)):
        between = [stem[one[1] : two[0]] for one, two in pairwise([(0, 0), *spans, (len(stem), len(stem))])]
        is_code = (bool(_CODE.search(stem[a:b])) for a, b in spans)
        shapes[(*(" ".join(text.split()) or text[:1] for text in between), *is_code)].append(row)
    result: dict[int, str] = {}
    single: dict[int, list[str]] = {}
    known: set[str] = set()
    seen: dict[str, set[int]] = defaultdict(set)
    for number, rows in enumerate(shapes.values()):
        if len(rows) < MIN_ALIKE:
            single |= {row: [stems[row][:end] for _, end in tokens[row]] for row in rows}
            continue
        keys, repeated = _find_identifiers(
            [stems[r] for r in rows], [tokens[r] for r in rows], [cells[r] for r in rows]
        )
        known |= repeated
        if repeated and sum(key in repeated for key in keys[0]) >= MIN_SHARING * len(rows):
            result |= zip(rows, keys[0], strict=True)
            continue
        single |= {row: [column[at] for column in keys] for at, row in enumerate(rows)}
        for key in keys[0] if keys else ():
            seen[key].add(number)
    known |= {*result.values(), *(key for key, numbers in seen.items() if len(numbers) > 1)}
    for row, candidates in single.items():  # `IMG_1234` beside `IMG_1234 (2)`, or `IMG_1234 - Copy`
        if shared := [key for key in candidates if key in known]:
            result[row] = shared[0]
    return result


def _cut(stem: str) -> list[tuple[int, int]]:
    """Return where a name's tokens begin and end; a date, with its time of day, is one token."""
    return [match.span() for match in _TOKEN.finditer(stem)]


def _find_identifiers(
    stems: Sequence[str], tokens: Sequence[list[tuple[int, int]]], cells: Sequence[tuple[str, int]]
) -> tuple[list[list[str]], set[str]]:
    """Return what can identify names that have the same separators, the best first, and those of it that repeat."""
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
            is_daily = not label.isalpha() or label in COUNTERS  # then the number begins anew each day
            before = ("fixed", "few", "date") if is_daily else ("fixed", "few")
            kept = [at for at in range(place) if kinds[at] in before and not is_part[at]]
            keys = [
                stem[: columns[place][row][1]]
                if len(kept) == place
                else "".join(stem[columns[at][row][0] : columns[at + 1][row][0]] for at in kept) + words[place][row]
                for row, stem in enumerate(stems)
            ]
            if kind == "few" and not (any(kinds[at] == "date" for at in kept) and _is_spread(Counter(keys))):
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
    """Cut a column of tokens such as `img12crop3` or `17left` into parts, if its letters are the same in each class."""
    parts = []
    letters: dict[tuple[str, int], set[tuple[str, ...]]] = defaultdict(set)
    for stem, (start, end), cell in zip(stems, spans, cells, strict=True):
        text = stem[start:end]
        if _DATE.fullmatch(text):
            return [list(spans)]
        found = [(start + m.start(), start + m.end()) for m in _PART.finditer(text)]
        parts.append(found)
        words = [stem[a:b] for a, b in found]
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
    seen: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for word, cell in zip(words, cells, strict=True):
        seen[cell][word] += 1
    several = [counts for counts in seen.values() if sum(counts.values()) > 1]
    if sum(counts.most_common(1)[0][1] for counts in several) >= MOST * max(
        1, sum(map(sum, map(Counter.values, several)))
    ):
        return "fixed"
    return "varies" if _is_spread(Counter(words)) else "few"


def _varies_within(words: Sequence[str], cells: Sequence[tuple[str, int]]) -> bool:
    """Return whether a column of tokens has two values in any class of a split."""
    return len(set(zip(words, cells, strict=True))) > len(set(cells))


def _is_spread(counts: Counter[str]) -> bool:
    """Return whether no word is in most names: none in a fifth of them, or each in four on average."""
    names = sum(counts.values())
    return counts.most_common(1)[0][1] <= max(2, MAX_FRACTION * names) or names <= 4 * len(counts)


def _keep_believable(index: Index, guess: Mapping[int, str]) -> dict[int, str]:
    """Return what of a guess can be groups; empty where too few images share one, or there are too few to split by.

    Where most identifiers that repeat do so in other classes only, once in each (`1_cat`, `1_dog`, `2_cat` ...), each
    class counts anew: those are left out. An identifier that repeats within a class stays.
    """
    counts = Counter(guess.values())
    alone = len(index) - len(guess)
    if len(counts) + alone < min(MIN_PER_CLASS * len(index.classes), MIN_GROUPS):
        return {}
    classes = Counter(group for group, _ in {(group, index.labels[row]) for row, group in guess.items()})
    repeated = {group for group, count in counts.items() if count > 1}
    restarted = {group for group in repeated if counts[group] == classes[group]}
    dropped = restarted if len(restarted) > len(repeated) / 2 else set()
    sharing = sum(counts[group] for group in repeated - dropped)
    if sharing < MIN_SHARING * len(index):
        return {}
    return {row: group for row, group in guess.items() if group not in dropped}


def find_groups_across_splits(groups: Iterable[str], splits: Iterable[str]) -> dict[str, set[str]]:
    """Each group that lies in more than one split, with those splits."""
    where: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        where[group].add(split)
    return {group: found for group, found in where.items() if len(found) > 1}
