"""A finding: one kind of fault in a data set, what it does to the result, and what is done about it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Kind(StrEnum):
    """The kinds of findings, by the words that programs read in JSON and in a fix-list."""

    CONFLICTING_LABELS = "conflicting labels"
    POSSIBLE_CONFLICTS = "possible label conflicts"
    DUPLICATES_ACROSS_SPLITS = "duplicates across splits"
    NEAR_DUPLICATES_ACROSS_SPLITS = "near-duplicates across splits"
    GROUPS_ACROSS_SPLITS = "groups across splits"
    SIMILAR_ACROSS_SPLITS = "very similar images across splits"
    SCENE_ACROSS_SPLITS = "images of one scene across splits"
    TRAINED_BEFORE = "images that the base weights were trained on"
    UNREADABLE = "unreadable"
    FEW_LEVELS = "few grey levels"
    FRAMES = "frames that are not read"
    DUPLICATES = "duplicates"
    NEAR_DUPLICATES = "near-duplicates"
    SIMILAR = "very similar images"
    SCENE = "images of one scene"
    ALIKE_CLASS_NAMES = "class names alike"
    SMALL_CLASSES = "small classes"
    SIZE_SHORTCUT = "shortcut: size"
    FORMAT_SHORTCUT = "shortcut: format"
    MODE_SHORTCUT = "shortcut: mode"
    BORDER_SHORTCUT = "shortcut: border"
    UNSEEN_AREA = "area outside a centre crop"
    NOT_COMPARED = "not compared"


LEAKAGE = frozenset(
    {
        Kind.DUPLICATES_ACROSS_SPLITS,
        Kind.NEAR_DUPLICATES_ACROSS_SPLITS,
        Kind.GROUPS_ACROSS_SPLITS,
        Kind.SIMILAR_ACROSS_SPLITS,
        Kind.SCENE_ACROSS_SPLITS,
    }
)
"""The kinds that lie in the splits, so that new splits may be free of them."""
DOUBTFUL = LEAKAGE | {Kind.NOT_COMPARED, Kind.SCENE}
"""The kinds by which leakage is possible where it is not certain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One kind of fault, with all its cases."""

    kind: Kind
    severity: Literal["warning", "note"] = "note"
    """`warning` if it makes test scores wrong, else `note`."""
    title: str
    count: int = 0
    """Number of cases; 0 if the finding is about the whole data set."""
    examples: tuple[str, ...] = ()
    effect: str
    """Its effect on the result."""
    evidence: tuple[str, ...] = ()
    """Sentences on how certain it is, where it rests on a guess."""
    action: str
    """The action of `finetune`, and the options of the user."""
    leave_out: tuple[int, ...] = ()
    """Rows to leave out so that the fault is gone."""

    @property
    def falsifies(self) -> bool:
        """True if it makes test scores wrong, not only worse."""
        return self.severity == "warning"

    @property
    def explanation(self) -> str:
        """The effect, and the evidence after it."""
        return ". ".join((self.effect, *self.evidence))

    @property
    def is_leakage(self) -> bool:
        """True if it is leakage between splits, certain or possible."""
        return self.kind in LEAKAGE

    @property
    def leaves_doubt(self) -> bool:
        """True if leakage is possible: images may be related to those of another split, or not all were compared."""
        return not self.falsifies and self.kind in DOUBTFUL
