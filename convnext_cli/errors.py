"""Exceptions: one class per kind of failure, each with an exit code; each error has a problem and a remedy."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial


class ConvnextError(Exception):
    """A failure with a one-line message: the problem, and the remedy.

    Args:
        problem: the fact, without a full stop.
        remedy: what the user can do, in the imperative, without a full stop.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)  # both arguments, so that the exception can be pickled
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        stop = "" if self.problem.endswith(("?", ".")) else "."
        return f"{self.problem}{stop} {self.remedy}."


class UsageError(ConvnextError):
    """A command, an option or a setting is wrong."""

    exit_code = 2


class UnknownModelError(UsageError):
    """No model has this name."""

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
    """Images, a data folder or a run folder cannot be used."""

    exit_code = 3


class ImageError(DataError):
    """A file cannot be read as an image."""


class RunError(DataError):
    """A run folder is incomplete or cannot be read."""


class WeightsError(ConvnextError):
    """Pretrained weights cannot be downloaded, read, or loaded into the model."""


class OutOfMemoryError(ConvnextError):
    """The device has too little memory for the plan."""

    exit_code = 4


class StoppedError(ConvnextError):
    """A signal stopped the run: 2 (Ctrl-C) or 15 (SIGTERM); the exit code is 128 plus its number."""

    def __init__(self, problem: str, remedy: str, *, signal: int) -> None:
        super().__init__(problem, remedy)
        self.signal = signal
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), signal=self.signal), (self.problem, self.remedy)


class DivergedError(ConvnextError):
    """The loss or its gradient is not finite."""


def shorten_error(error: BaseException) -> str:
    """Return the first line of an error's message, at most 120 characters; its class name if it has none."""
    return str(error).strip().partition("\n")[0][:120] or type(error).__name__


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean …? " with up to three near matches of `word` in `known`, or an empty string."""
    near = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"Did you mean {', '.join(near)}? " if near else ""


def check_word(kind: str, word: str | None, known: tuple[str, ...]) -> None:
    """Check that `word` is None or one of `known`; `kind` names it in the message.

    Raises:
        UsageError: it is neither.
    """
    if word is not None and word not in known:
        raise UsageError(f"unknown {kind} {word!r}", f"{suggest(word, known)}Known: {', '.join(known)}")


def check_kind(name: str, value: object, kind: type) -> None:
    """Check that an argument is an object of a class.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{name} = {value!r} must be of the class {kind.__name__}", "Give such an object")
