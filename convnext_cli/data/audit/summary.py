"""The audit of a data set: a summary of its measurements, and its findings."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.duplicates import find_duplicates
from convnext_cli.data.audit.findings import Finding
from convnext_cli.data.audit.measurements import Measurements, measure_images
from convnext_cli.data.audit.rules import find_grave, find_notes
from convnext_cli.data.audit.shortcuts import Shortcut, find_shortcuts
from convnext_cli.data.audit.support import weigh_groups
from convnext_cli.data.groups import Grouping
from convnext_cli.data.index import Index
from convnext_cli.data.unseen import Shape, Unseen, measure_centre_crops
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.progress import Steps

FINDING_KEYS = ("falsifies", "leaves_doubt", "severity", "title", "count", "examples", "effect", "evidence", "action")
"""The attributes of a finding that the JSON has beside its kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The result of checking a data set."""

    index: Index
    """The images with their classes, groups and splits."""
    grouping: Grouping
    """The groups, and the rule that gave them."""
    sizes: dict[str, tuple[int, int]]
    """Smallest, median and largest image: width and height in pixels."""
    formats: dict[str, int]
    """Images by `suffix mode`, such as `.png I;16`."""
    shortcuts: tuple[Shortcut, ...]
    unseen: dict[float, Unseen]
    """The fraction of the area that a square centre crop never sees, by `crop_pct`."""
    findings: tuple[Finding, ...]
    """Each kind of fault, with `title`, `count`, `effect` and `action`."""
    unreadable: tuple[int, ...] = field(repr=False)
    clusters: tuple[tuple[int, ...], ...] = field(repr=False)
    """Sets of rows that show the same image: duplicates and near-duplicates."""
    duplicate_sets: tuple[tuple[int, ...], ...] = field(repr=False)
    """Sets of rows to keep in one split: duplicates, near-duplicates and very similar images."""
    scenes: tuple[tuple[int, ...], ...] = field(repr=False)
    """Sets of rows that look alike, as frames of one camera do."""
    measurements: Measurements = field(repr=False)
    """The measurements of every image."""

    @property
    def falsifies(self) -> bool:
        """True if any finding makes test scores wrong."""
        return any(finding.falsifies for finding in self.findings)

    def list_image_hashes(self, index: Index) -> dict[str, NDArray[Any]]:
        """Return the hashes, sizes and scenes of the images of `index`, all of them checked, for a run to keep."""
        rows = self._find_rows(index)
        scene = np.zeros(len(self.index), np.uint32)
        for number, of_scene in enumerate(self.scenes, start=1):
            scene[list(of_scene)] = number
        signatures = self.measurements.measures["signature"][rows]
        sizes = self.measurements.list_sizes(rows)
        return self.measurements.select(rows) | {"size": sizes, "signature": signatures, "scene": scene[rows]}

    def list_measures(self, index: Index) -> NDArray[Any]:
        """Return the measures of the images of `index`, (N,) of `MEASURES`."""
        return self.measurements.measures[self._find_rows(index)]

    def _find_rows(self, index: Index) -> list[int]:
        place = {path: row for row, path in enumerate(self.index.paths)}
        return [place[path] for path in index.paths]

    def to_dict(self) -> dict[str, object]:
        """Return everything but the rows, for JSON."""
        index = self.index
        return {
            "data": str(index.location),
            "images": len(index),
            "classes": {
                split or "all": dict(zip(index.classes, index.count_classes(split), strict=True))
                for split in sorted(set(index.splits))
            },
            "sizes": self.sizes,
            "formats": self.formats,
            "skipped": index.skipped,
            "notes": list(index.notes),
            "groups": {
                "source": self.grouping.source,
                "rule": self.grouping.rule,
                "number": self.grouping.groups,
                "examples": self.grouping.examples,
                "certainty": self.grouping.certainty,
                "evidence": self.grouping.evidence,
            },
            "shortcuts": {
                shortcut.name: {
                    "balanced_accuracy": shortcut.score,
                    "spread": shortcut.spread,
                    "chance": shortcut.chance,
                }
                for shortcut in self.shortcuts
            },
            "unseen_area": {
                f"{crop_pct:g}": {"all": unseen.area, "classes": unseen.by_class}
                for crop_pct, unseen in self.unseen.items()
            },
            "findings": [
                {"kind": finding.kind.value} | {name: getattr(finding, name) for name in FINDING_KEYS}
                for finding in self.findings
            ],
        }


def audit_index(index: Index, grouping: Grouping) -> Steps[Audit]:
    """Audit every image of an index. Images that did not change since the last audit are not read again."""
    measurements = yield from measure_images(index)
    index, grouping, across = weigh_groups(index, grouping, measurements)
    duplicates = yield from find_duplicates(index, measurements)
    shortcuts = find_shortcuts(index, measurements)
    unseen = measure_centre_crops(_list_shapes(index, measurements))
    return Audit(
        index=index,
        grouping=grouping,
        sizes=_describe_sizes(measurements),
        formats=_count_formats(index, measurements),
        shortcuts=shortcuts,
        unseen=unseen,
        findings=(
            *find_grave(index, grouping, duplicates, across),
            *find_notes(index, measurements, duplicates, shortcuts, unseen),
        ),
        unreadable=tuple(measurements.errors),
        clusters=duplicates.clusters,
        duplicate_sets=duplicates.duplicate_sets,
        scenes=duplicates.scenes,
        measurements=measurements,
    )


def _list_shapes(index: Index, measurements: Measurements) -> list[Shape]:
    """Return class, width and height of each readable image."""
    measures = measurements.measures
    rows = np.flatnonzero(measures["readable"]).tolist()
    sizes = zip(measures["width"][rows].tolist(), measures["height"][rows].tolist(), strict=True)
    return [(index.name_class(row), *size) for row, size in zip(rows, sizes, strict=True)]


def _describe_sizes(measurements: Measurements) -> dict[str, tuple[int, int]]:
    readable = measurements.measures[measurements.measures["readable"] == 1]
    if not len(readable):
        return {}
    order = np.argsort(readable["width"].astype(np.int64) * readable["height"], kind="stable")
    places = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    return {name: (int(readable["width"][at]), int(readable["height"][at])) for name, at in places.items()}


def _count_formats(index: Index, measurements: Measurements) -> dict[str, int]:
    def describe(row: int) -> str:
        mode, steps, _ = measurements.notes[measurements.measures["note"][row]]
        path = index.paths[row]
        suffix = PurePath(path).suffix.lower() if has_image_suffix(path) else "no image suffix:"
        return f"{suffix} {mode}" + (f" ({', '.join(step.words for step in steps)})" if steps else "")

    return dict(Counter(map(describe, np.flatnonzero(measurements.measures["readable"]).tolist())).most_common())
