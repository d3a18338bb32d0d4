"""The licences of pretrained weights: which are permissive, and which forbid commercial use.

They are the licences of timm's licence field. The terms of the training images may restrict the use further.
"""

PERMISSIVE_LICENSES = frozenset({"apache-2.0", "mit", "bsd-3-clause"})
IMAGENET_TERMS = "imagenet-noncommercial"
NON_COMMERCIAL_LICENSES = frozenset({"cc-by-nc-4.0", "fair-noncommercial-research-license", IMAGENET_TERMS})


def license_matches(license: str, requested: str) -> bool:
    """Return True if a licence is the requested one; `any` and `permissive` are requests too."""
    if requested == "permissive":
        return license in PERMISSIVE_LICENSES
    return requested in ("any", license)
