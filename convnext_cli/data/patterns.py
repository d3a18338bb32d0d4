"""Search the paths of images by a regular expression of the user: for groups, and for classes."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from convnext_cli.errors import UsageError

MAX_SECONDS_PATH, MAX_SECONDS = 2.0, 60.0  # for a user's pattern on one path, and on all paths
NUMBERED = r"([^/]+?)[._ -]*\d+\.\w+$"
"""The class in `cat.0.jpg` and `american_bulldog_12.jpg`: all before the number."""
DATE = r"(?:19|20)\d\d(?P<mark>[-_. ]?)(?:0[1-9]|1[0-2])(?P=mark)(?:0[1-9]|[12]\d|3[01])"
"""Year, month and day."""
_EXAMPLES = {"--group-from": r"person\d+", "--label-from": NUMBERED}


def search_paths(paths: Sequence[str], pattern: str, option: str) -> dict[int, str]:
    """Return what a pattern matches in the paths, by row: its first group in brackets, or else the whole match.

    Args:
        paths: relative to the data folder.
        pattern: a regular expression.
        option: the option that it was given to, for errors.

    Raises:
        UsageError: the pattern is invalid, takes too long, or matches no path.
    """
    import regex  # as `re`, with a time limit: some patterns take for ever on some paths

    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UsageError(
            f"'{pattern}' is not a regular expression ({error})", f"Try {option} '{_EXAMPLES[option]}'"
        ) from error
    matches = {}
    end = time.monotonic() + MAX_SECONDS
    for row, path in enumerate(paths):
        try:
            match = compiled.search(path, timeout=min(MAX_SECONDS_PATH, max(0.01, end - time.monotonic())))
        except TimeoutError as error:
            raise UsageError(
                f"'{pattern}' takes too long on {path}", f"Avoid repeats inside repeats, such as (a+)+, in {option}"
            ) from error
        if match:
            matches[row] = match[1] if compiled.groups and match[1] is not None else match[0]
    if not matches:
        raise UsageError(f"'{pattern}' matches no path, such as {paths[0]}", f"Correct {option}, or leave it out")
    return matches


def are_numbered(paths: Iterable[str]) -> bool:
    """Return True if the names of images are a few words with numbers, as `cat.0.jpg` and `dog.7.jpg` are."""
    matches = [re.search(NUMBERED, path) for path in paths]
    counts = Counter(match[1] if match else "" for match in matches)
    are_words = all(any(map(str.isalpha, name)) for name in counts)
    return len(counts) > 1 and are_words and min(counts.values()) > 1 and 5 * len(counts) <= len(matches)
