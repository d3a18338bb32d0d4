"""The licences of pretrained weights: which are permissive, and which forbid commercial use.

They are the licences of timm's licence field. The terms of the training images may restrict the use further.
"""

from collections.abc import Iterable

PERMISSIVE_LICENSES = frozenset({"apache-2.0", "mit", "bsd-3-clause"})
IMAGENET_TERMS = "imagenet-noncommercial"
NON_COMMERCIAL_LICENSES = frozenset({"cc-by-nc-4.0", "fair-noncommercial-research-license", IMAGENET_TERMS})

AND = " AND "
"""Joins the licences that all apply to one model, as in an SPDX expression."""


def join_licenses(licenses: Iterable[str | None]) -> str | None:
    """Return the licences that all apply to a model, as an SPDX expression; None if there is none or one is unknown."""
    names = list(licenses)
    if None in names:
        return None
    return AND.join(dict.fromkeys(part for name in names if name for part in name.split(AND))) or None


def is_non_commercial(license: str | None) -> bool:
    """Return True if a licence, or one of those that it joins, forbids commercial use."""
    return license is not None and any(part in NON_COMMERCIAL_LICENSES or "-nc-" in part for part in license.split(AND))


def license_matches(license: str, requested: str) -> bool:
    """Return True if a licence is the requested one; `any` and `permissive` are requests too."""
    if requested == "permissive":
        return license in PERMISSIVE_LICENSES
    return requested in ("any", license)
