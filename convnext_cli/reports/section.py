"""The parts of a report: sections of sentences, with tables, plots and lists folded beneath them.

A section is one function that takes the `ReportData` and returns a `Section`, or None where it has nothing to show.
`reports.report.SECTIONS` lists these functions in the order of the page. The template escapes all text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from matplotlib.figure import Figure

from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.intervals import Interval
from convnext_cli.metrics.registry import METRICS, Metric
from convnext_cli.progress import Notice
from convnext_cli.reports.gallery import GalleryImage
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import Config

PHONE_LETTERS = 36  # of a table's columns together; wider tables show a row below the other on a phone
PAGE_LETTERS = 110  # likewise on a narrow window


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """Everything that a report is made from."""

    evaluation: Evaluation
    run: RunFolder
    config: Config
    """Of the run, or of the first run of a cross-validation."""
    members: int = 0
    """Number of models of a cross-validation; 0 for a run."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """The epochs of the training; empty for a cross-validation."""
    mistakes: tuple[GalleryImage, ...] = ()
    """Wrong predictions, the most confident first; for a number, the largest errors."""
    uncertain: tuple[GalleryImage, ...] = ()
    """The predictions with the lowest confidence."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    heading: str
    _: KW_ONLY
    metric: Metric | None = None
    """Explains the heading on hover, and links to the page's list of metrics."""
    is_number: bool = True
    """Numbers are aligned to the right."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell with a second line or a shade."""

    text: str
    _: KW_ONLY
    note: str = ""
    """Beneath the text, smaller: a 95% CI."""
    shade: float | None = None
    """Strength of the background, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A folded table."""

    title: str
    """The line that unfolds it."""
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""

    @property
    def width(self) -> str:
        """`narrow`, `medium` or `wide`, for a phone, a page, or a large window only."""
        cells = [[column.heading for column in self.columns], *self.rows]
        letters = sum(max(map(_measure_cell, column)) for column in zip(*cells, strict=True)) + 2 * len(self.columns)
        return "narrow" if letters <= PHONE_LETTERS else "medium" if letters <= PAGE_LETTERS else "wide"


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot; it is also written to `plots/NAME.png`."""

    name: str
    figure: Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Plots:
    """Folded plots, side by side where there is room."""

    title: str
    plots: Sequence[Plot]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Folded images with their heat maps and what was predicted."""

    title: str
    images: Sequence[GalleryImage]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Folded lines of text, such as names of files."""

    title: str
    lines: Sequence[str]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One subject of the report."""

    title: str
    sentences: Sequence[str | Notice]
    """Always visible, and readable without the rest. A `Notice` is set off as a warning or a note."""
    blocks: Sequence[Table | Plots | Gallery | Listing] = ()
    """Folded beneath the sentences."""
    files: Sequence[Plot] = ()
    """Plots that are written to `plots/` and not shown, because a table shows the same."""


def make_column(metric: Metric) -> Column:
    """Return the column of a metric."""
    return Column(metric.short_heading, metric=metric)


def make_cell(metric: Metric, value: float | None, interval: Interval | None) -> Cell:
    """Return the cell of a metric: its value with the 95% CI beneath."""
    return Cell(metric.format(value), note=metric.format_ci(interval))


def make_class_table(
    word: str, counts: Mapping[str, str], metrics: Sequence[Metric], rows: Iterable[tuple[Any, Any]]
) -> Table:
    """Return a table with a row for each class; `counts` has attributes of its metrics with their headings.

    `word` is the task's word for a target.

    The rows are pairs of the metrics of a class and their 95% CIs by key.
    """
    return Table(
        title=f"Metrics by {word}{', per group' * ('groups' in counts.values())}",
        columns=[
            Column(word, is_number=False),
            *(Column(heading) for heading in counts.values()),
            *map(make_column, metrics),
        ],
        rows=[
            (
                entry.name,
                *(f"{getattr(entry, field):,}" for field in counts),
                *(make_cell(metric, getattr(entry, metric.key), intervals[metric.key]) for metric in metrics),
            )
            for entry, intervals in rows
        ],
    )


def make_metric_table(title: str, keys: Sequence[str], values: Any, intervals: dict[str, Interval | None]) -> Table:
    """Return a table of metrics with their meaning, a row each."""
    columns = ("metric", "value", "95% CI", "meaning")
    return Table(
        title=title,
        columns=[Column(name, is_number=name in ("value", "95% CI")) for name in columns],
        rows=[
            (
                metric.title,
                metric.format_with_unit(getattr(values, key)),
                metric.format_ci(intervals[key]),
                metric.explanation,
            )
            for key in keys
            for metric in [METRICS[key]]
        ],
    )


def _measure_cell(cell: str | Cell) -> int:
    """Return the number of letters that cannot be broken; of a number with its 95% CI, those of the CI."""
    if isinstance(cell, Cell):
        return max(len(cell.note), _measure_cell(cell.text))
    return max((len(word) for word in cell.split()), default=0)
