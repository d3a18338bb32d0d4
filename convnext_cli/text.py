"""Texts for people, and escapes for text from outside: safe in a terminal, a shell command, a spreadsheet or JSON."""

import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

# What moves a cursor, changes a colour, ends a line or reverses the order of what is shown: C0, DEL and C1; line and
# paragraph separators; Unicode's Bidi_Control characters and their deprecated kin; the byte order mark.
_CONTROLS = (
    *range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x2070), 0xFEFF,
)  # fmt: skip
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
MAX_NAME = 48
"""Characters of a class's name in a sentence or a table of the terminal."""
NESTED_TOO_DEEPLY = "its values are nested too deeply"
"""The reason why a file of TOML or JSON cannot be read where Python ends with `RecursionError`."""
_SURROGATES = re.compile("[\ud800-\udfff]")  # Python's form of bytes of a file name that are not text
_FORMULA = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")  # and their full-width forms


def _escape(code: int) -> str:
    return _SHORT.get(chr(code), f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


_VISIBLE = {code: _escape(code) for code in _CONTROLS}


def make_visible(text: str) -> str:
    r"""Return the text as one line, each control character replaced by its escape, such as `\x1b` or `\n`."""
    return _SURROGATES.sub(lambda match: _escape(ord(match[0])), text.translate(_VISIBLE))


def quote(path: str | Path) -> str:
    """Return a path quoted for a shell, for commands that a user pastes.

    A path with control characters or with bytes that are not text becomes bash's `$'…'`.
    """
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"
    if make_visible(text) == text:
        return shlex.quote(text)
    parts = (char if char.isprintable() and char not in "\\'" else _quote_char(char) for char in text)
    return f"$'{''.join(parts)}'"


def _quote_char(char: str) -> str:
    bytes_ = char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in bytes_)


def guard_cell(cell: Any) -> Any:
    """Return a CSV cell of one line that a spreadsheet does not evaluate. Numbers that are not finite become None.

    Text that begins like a formula gets a leading apostrophe (OWASP, "CSV Injection").
    """
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if cell is None or isinstance(cell, int):
        return cell
    text = str(cell)
    return ("'" if text.startswith(_FORMULA) else "") + make_visible(text)


def title_probabilities(classes: Iterable[str]) -> list[str]:
    """Return the CSV columns of the probability of each class."""
    return [f"p({name})" for name in classes]


def _path_to_text(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a type of JSON")


def to_json(data: Any, *, indent: int | None = None) -> str:
    """Return the data as JSON in ASCII, readable in any locale; numbers that are not finite become null.

    Paths become text. Bytes of a file name that are not text stay lone surrogates, which `os.fsencode` turns back into
    the name.

    Raises:
        TypeError: the data have an object that is none of JSON's types.
    """
    try:
        text = json.dumps(data, indent=indent, default=_path_to_text, allow_nan=False)
    except ValueError:
        text = json.dumps(_drop_nan(data), indent=indent, default=_path_to_text, allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def _drop_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _drop_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_drop_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


class Advice(str):
    """A note that ends with options which change what it states: `read as classes; --task ordinal reads them as …`."""

    fact: str
    """The note without them, for a command that lacks them."""

    def __new__(cls, fact: str, advice: str = "") -> "Advice":
        """Return the note with its options."""
        note = super().__new__(cls, fact + advice)
        note.fact = fact
        return note


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun, such as `1 image`, `1,234 images` or `2 classes`.

    A noun with more words after it, such as a verb, has its plural given: `image is`, `images are`.
    """
    words = noun if number == 1 else plural or f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{number:,} {words}"


def format_part(number: int, total: int, noun: str, verb: str, plural_verb: str) -> str:
    """Return a part of a total and its verb, such as `1 of 10 images is` or `2 of 10 images are`."""
    return f"{number:,} of {format_count(total, noun)} {verb if number == 1 else plural_verb}"


def format_inside(value: float, digits: int, low: float, high: float) -> str:
    """Return a number from `low` to `high` with `digits` decimals; only what is exact is shown as one of these.

    What rounding alone would show as an end is `<0.1` or `>99.9`.
    """
    text, step = f"{value:.{digits}f}", 10.0**-digits
    if value > low and text == f"{low:.{digits}f}":
        return f"<{low + step:.{digits}f}"
    return f">{high - step:.{digits}f}" if value < high and text == f"{high:.{digits}f}" else text


def format_digits(value: float, digits: int) -> str:
    """Return a number with some significant digits, and below a million without an exponent: `0.0123`, `12345`."""
    is_whole = 10**digits - 0.5 <= abs(value) < 1e6
    return f"{value:.0f}" if is_whole else f"{value:.{digits}g}"


def format_percent(fraction: float, digits: int = 0) -> str:
    """Return a fraction in percent, without the sign: `61`; `<1` or `>99` where only rounding would give 0 or 100."""
    return format_inside(100 * fraction, digits, 0, 100)


def format_p(p_value: float) -> str:
    """Return a p value with its sign: `= 0.031`; `< 1e-300` where it is too small for a number, since none is 0."""
    return f"= {p_value:.2g}" if p_value else "< 1e-300"


def shorten_names(names: Sequence[str]) -> str:
    """Return the first five names, separated by commas, long ones shortened."""
    return ", ".join(map(shorten_name, names[:5])) + (" …" if len(names) > 5 else "")


def shorten_name(name: str, length: int = MAX_NAME) -> str:
    """Return a name as one visible line of at most `length` characters, both ends kept."""
    text = make_visible(name)
    return text if len(text) <= length else f"{text[: length // 2]}…{text[length // 2 + 1 - length :]}"


def shorten(text: str, length: int = 80) -> str:
    """Return a text in one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def find_address(path: Path) -> str:
    """Return the address, such as `https://a.org/b`, of which a path was made, which joins slashes; else empty."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.+)", str(path), re.IGNORECASE | re.DOTALL)
    return f"{match[1]}://{match[2]}" if match else ""


def capitalise(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]
