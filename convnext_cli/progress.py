"""How far something is that takes a while."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How many of how many images are done, and with what."""

    done: int
    total: int
    what: str = ""
