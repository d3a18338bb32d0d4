"""One exception per kind of failure, each with its exit code and the remedy that the user reads."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial


class ConvnextError(Exception):
    """A failure that is told in one line: what is wrong, and what to do about it.

    Args:
        problem: what is wrong, without a full stop at its end.
        remedy: what the user can do, an imperative sentence without its full stop.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)  # both, so that the exception survives pickling
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        stop = "" if self.problem.endswith(("?", ".")) else "."
        return f"{self.problem}{stop} {self.remedy}."


class UsageError(ConvnextError):
    """The command or a setting is not usable as given."""

    exit_code = 2


class UnknownModelError(UsageError):
    """No ConvNeXt of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"unknown model {name!r}",
            f"{suggest(name, known)}`convnext list` shows all {len(known)} architectures",
        )
        self.name = name
        self.known = tuple(known)

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (self.name, self.known)


class DataError(ConvnextError):
    """The images, their folder or a run folder cannot be used."""

    exit_code = 3


class ImageError(DataError):
    """One file could not be read as an image."""


class RunError(DataError):
    """A run folder is missing something or cannot be read."""


class WeightsError(ConvnextError):
    """Pretrained weights could not be fetched, read or fitted to the model."""


class OutOfMemoryError(ConvnextError):
    """The device has not enough memory for the plan."""

    exit_code = 4


class StoppedError(ConvnextError):
    """A signal ended the run: 2 (Ctrl-C) or 15 (SIGTERM), told to the shell as it expects it."""

    def __init__(self, problem: str, remedy: str, *, signal: int) -> None:
        super().__init__(problem, remedy)
        self.signal = signal
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), signal=self.signal), (self.problem, self.remedy)


class DivergedError(ConvnextError):
    """The loss or its gradient is no finite number any more."""


def shorten_error(error: BaseException) -> str:
    """The first line of a library's error, at most 120 characters; its kind where it says nothing."""
    return str(error).strip().partition("\n")[0][:120] or type(error).__name__


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns "Did you mean …? " with up to three near matches of `word` in `known`, or an empty string."""
    near = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"Did you mean {', '.join(near)}? " if near else ""


def check_word(what: str, word: str | None, known: tuple[str, ...]) -> None:
    """Checks that `word` is None or one of `known`.

    Raises:
        UsageError: it is neither.
    """
    if word is not None and word not in known:
        raise UsageError(f"unknown {what} {word!r}", f"{suggest(word, known)}Known are {', '.join(known)}")
