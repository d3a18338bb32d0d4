"""Read text files of users, such as lists of paths and tables, in any common encoding.

The rules, in order:

1. A byte order mark decides (UTF-8, UTF-16, UTF-32).
2. UTF-8, if all bytes are valid.
3. UTF-16, if most of every second byte are zero.
4. Windows-1252, which includes the letters of Latin-1, if each non-ASCII byte is one of its letters or typographic
   signs. No three may be adjacent, as in Cyrillic, Greek or Asian encodings. No capital may stand inside a word, as in
   text of a Macintosh.

Other files are refused, with the byte and its line. The result never has surrogates.
"""

import codecs
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from convnext_cli.errors import DataError

UTF_8 = "UTF-8"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # before UTF-16, whose mark is the beginning of it
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
SPREADSHEETS = (b"PK\3\4", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
"""First bytes of zip files, XLSX and ODS among them, and of XLS."""
_GZIP = b"\x1f\x8b\x08"
_SIGNS = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u20ac\xa0\xd7°±²³µ§ªº½¼¾"
_REMEDY = "Save it as UTF-8"


def read_text(path: Path, remedy: str = _REMEDY) -> tuple[str, str]:
    """Read a text file; return its text and the name of its encoding.

    Raises:
        DataError: it cannot be read, or its encoding is not known.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", remedy) from error
    return decode_text(raw, str(path))


def decode_text(raw: bytes, source: str) -> tuple[str, str]:
    """Decode the bytes of a whole file by the rules above; return its text and the name of its encoding.

    Raises:
        DataError: the encoding is not known.
    """
    if raw.startswith((*SPREADSHEETS, _GZIP)):
        raise DataError(f"{source} is a spreadsheet or an archive, not text", "Save it as text: a table as CSV")
    for mark, codec, name in _MARKS:
        if raw.startswith(mark):
            try:
                return raw.decode(codec).removeprefix("\ufeff"), name
            except UnicodeDecodeError as error:
                raise _refuse(raw, source, error.start, f"it has the mark of {name} but is not {name}") from error
    if b"\0" in raw:
        if (utf_16 := _decode_utf_16(raw)) is not None:
            return utf_16, "UTF-16"
        raise _refuse(raw, source, raw.index(0), "it has zero bytes, so it is not text")
    try:
        return raw.decode("utf-8"), UTF_8
    except UnicodeDecodeError as error:
        first = error.start
    if (windows := _decode_windows(raw)) is not None:
        return windows, "Windows-1252"
    raise _refuse(raw, source, first, "it is neither UTF-8, UTF-16 nor Windows-1252")


def decode_name(name: str) -> str:
    """Return a file or folder name as text. Bytes that are not UTF-8 are decoded as above, or shown in hex."""
    if not any("\udc80" <= sign <= "\udcff" for sign in name):
        return name
    raw = name.encode("utf-8", "surrogateescape")
    text = _decode_windows(raw)  # no other rule: a name has no byte order mark
    return raw.decode("utf-8", "backslashreplace") if text is None else text


def _decode_utf_16(raw: bytes) -> str | None:
    """Decode UTF-16 without a mark by rule 3; None if the bytes are not that."""
    for codec, zeros in (("utf-16-le", raw[1::2]), ("utf-16-be", raw[::2])):
        if len(raw) % 2 == 0 and zeros.count(0) > 0.5 * len(zeros):
            with suppress(UnicodeDecodeError):
                text = raw.decode(codec)
                if "\0" not in text:
                    return text
    return None


def _decode_windows(raw: bytes) -> str | None:
    """Decode Windows-1252 by rule 4; None if the bytes are not that."""
    if re.search(rb"[\x80-\xff]{3,}|[\x81\x8d\x8f\x90\x9d]", raw):
        return None
    text = raw.decode("cp1252")
    is_usual = all(sign.isalpha() or sign in _SIGNS for sign in set(text) if not sign.isascii())
    if not is_usual or re.search("[A-Za-z][\xc0-\xd6\xd8-\xde\u0152\u0160\u0178\u017d][a-z]", text):
        return None
    return text


def compose_name(name: str) -> str:
    """Return a name or a path in the composed Unicode form (NFC), decoded as by `decode_name`."""
    return name if name.isascii() else unicodedata.normalize("NFC", decode_name(name))


def normalise_name(name: str) -> str:
    """Return the common form of all names that look the same.

    NFC, with one space for each run of blanks (non-breaking ones too), none at the ends, without zero-width characters
    and marks of the writing direction.
    """
    if name.isascii() and name.strip() == name and "  " not in name and name.isprintable():
        return name
    return " ".join(compose_name(name).translate(_NO_WIDTH).split()) or decode_name(name)


def fold_name(name: str) -> str:
    """Return a form that is equal for names that differ only in case, hyphens, width, zeros or alphabet.

    For example `1`, `01` and `1.00`, or the Latin and the Cyrillic `A`.
    """
    folded = unicodedata.normalize("NFKC", normalise_name(name)).translate(_LATIN).casefold()
    folded = re.sub(r"^-(?=\d)", "\u2212", folded)  # a minus sign
    folded = re.sub(r"(?<![\d.,])0+(?=\d)|(?<=\d)[.,]0+(?![\d.,])", "", folded)
    return re.sub(r"[\s_\-\u2010-\u2015]+", " ", folded).strip()


def find_name(name: str, names: Sequence[str]) -> int | None:
    """Return the position of a name in `names`, in any Unicode form; None if it is not there. An exact match wins."""
    if name in names:
        return names.index(name)
    normal = normalise_name(name)
    return next((place for place, other in enumerate(names) if normalise_name(other) == normal), None)


_NO_WIDTH = dict.fromkeys(
    (0xAD, 0x61C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF)
)
_LATIN = str.maketrans(
    "АВЕКМНОРСТУХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",  # Cyrillic and Greek letters  # noqa: RUF001
    "ABEKMHOPCTYXIJSaeopcyxijsABEZHIKMNOPTYXo",  # that look like these
)


def _refuse(raw: bytes, source: str, place: int, reason: str) -> DataError:
    line = raw.count(b"\n", 0, place) + 1
    return DataError(
        f"{source} cannot be read as text: byte 0x{raw[place]:02x} in line {line} (byte {place + 1}); {reason}", _REMEDY
    )
