"""Every plot of a run, drawn once: as a picture file, and as SVG that takes its colours from the page around it."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from convnext_cli.files import replace_file
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.curves import measure_reliability, trace_pr, trace_roc
from convnext_cli.metrics.formulas import Floats, log_softmax
from convnext_cli.metrics.summary import ClassMetrics
from convnext_cli.runs.folder import RunFolder

COLOURS = ("#3b78c9", "#d9822b", "#2f9e78", "#c24d7e", "#7a63c7", "#9a8a1f", "#3aa0b5", "#a8634a")
MAX_CURVES = len(COLOURS)  # of a plot; with more classes those that are told apart worst
PICTURE_DPI = 144
MAX_POINTS = 300  # of a curve; more cannot be seen
# Stand-ins that the page replaces, so that its dark and light themes reach into the plots.
_INK, _MUTED, _LINE = "#010203", "#040506", "#070809"
_ON_WHITE = {_INK: "#1c1f24", _MUTED: "#5b636e", _LINE: "#d9dde3"}
_THEME = {_INK: "currentColor", _MUTED: "var(--muted)", _LINE: "var(--line)"}
_STYLE: dict[Any, Any] = {
    "figure.facecolor": "none", "axes.facecolor": "none",
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": _LINE, "axes.labelcolor": _MUTED, "axes.titlecolor": _INK, "axes.titlesize": 10,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True, "grid.color": _LINE,
    "grid.linewidth": 0.6, "xtick.color": _MUTED, "ytick.color": _MUTED, "xtick.major.size": 0, "ytick.major.size": 0,
    "text.color": _INK, "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6,
    "svg.fonttype": "none", "text.parse_math": False, "axes.formatter.use_mathtext": False,
}  # fmt: skip

Log = list[dict[str, Any]]  # the run's epochs


@contextmanager
def _quietly() -> Iterator[None]:
    """Our style, and no word about letters that the font lacks: names may be in any script."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _start(width: float, height: float) -> Figure:
    """An empty figure, in inches. What is added to it is styled within `_quietly`."""
    return Figure(figsize=(width, height), layout="constrained")


def draw_curves(run: RunFolder) -> None:
    """Draws the training so far as `curves.png` in the run folder; nothing before the first epoch."""
    if log := run.read_log():
        write_png(plot_training(log), run.curves)


def draw_range_test(run: RunFolder) -> None:
    """Draws the learning-rate range test as `lr.png` in the run folder."""
    if found := run.read_range_test():
        write_png(plot_range_test(found), run.range_test)


def write_png(figure: Figure, path: Path) -> None:
    """Writes a plot as a picture, in ink on white. The figure's colours are the picture's from then on."""
    for artist in figure.findobj():
        for part in ("color", "edgecolor"):
            colour = getattr(artist, f"get_{part}", str)()
            if isinstance(colour, str) and colour in _ON_WHITE:
                getattr(artist, f"set_{part}")(_ON_WHITE[colour])
    with replace_file(path) as temporary, _quietly():
        figure.set(dpi=PICTURE_DPI, facecolor="white")
        FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]


def make_svg(figure: Figure, name: str) -> str:
    """A plot as an SVG element for the page; `name` tells its inner names from those of other plots."""
    text = io.StringIO()
    with _quietly(), mpl.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(text, metadata=nothing)  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")  # everything stands where it should, for the picture too
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for placeholder, colour in _THEME.items():
        svg = svg.replace(placeholder, colour)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', ' role="img"', svg, count=1)
    return re.sub(
        r'id="(figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|PathCollection)_\d+"', "", svg
    )


@_quietly()
def plot_training(log: Log) -> Figure:
    """Loss and share of right answers, epoch by epoch, side by side."""
    figure = _start(8.4, 3.0)
    loss, right = figure.subplots(1, 2)
    _draw_loss(loss, log)
    _draw_right(right, log)
    return figure


@_quietly()
def plot_range_test(found: dict[str, Any]) -> Figure:
    """The loss of each step of a range test over its learning rate, smoothed too, and the rate that was chosen."""
    figure = _start(4.8, 3.2)
    axes = figure.subplots()
    losses = [np.nan if loss is None else loss for loss in found["loss"]]
    axes.plot(found["lr"], losses, ".", color=COLOURS[1], markersize=3, label="a step")
    axes.plot(found["lr"], found["smoothed"], color=COLOURS[0], label="smoothed")
    if found["chosen"] is not None:
        axes.axvline(found["chosen"], color=_MUTED, linewidth=0.8, linestyle=":", label=f"chosen: {found['chosen']:g}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max(found["smoothed"]))
    axes.set_xlabel("learning rate")
    axes.set_title("Training loss at a rising learning rate")
    _add_legend(axes, "best")
    return figure


@_quietly()
def plot_loss(log: Log) -> Figure:
    """Training and validation loss, epoch by epoch."""
    figure = _start(4.8, 3.2)
    _draw_loss(figure.subplots(), log)
    return figure


@_quietly()
def plot_right(log: Log) -> Figure:
    """The share of right answers on validation, epoch by epoch."""
    figure = _start(4.8, 3.2)
    _draw_right(figure.subplots(), log)
    return figure


@_quietly()
def plot_roc(found: Evaluation) -> Figure:
    """Sensitivity against false alarms, each class against the rest."""
    figure, axes = _square("ROC: each class against the rest", "false alarms (1 - specificity)", "sensitivity")
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=":")
    for entry, k, colour in _choose_classes(found):
        false, true = _thin(*trace_roc(_scores(found)[:, k], found.evaluated.labels == k))
        axes.plot(false, true, color=colour, label=f"{shown(entry.name)}  {100 * (entry.roc_auc or 0):.1f}")
    _add_legend(axes, "lower right", "area, %")
    return figure


@_quietly()
def plot_pr(found: Evaluation) -> Figure:
    """Precision against recall, each class against the rest."""
    figure, axes = _square("Precision and recall", "recall (sensitivity)", "precision")
    for entry, k, colour in _choose_classes(found):
        recall, precision = _thin(*trace_pr(_scores(found)[:, k], found.evaluated.labels == k))
        axes.plot(recall, precision, color=colour, label=f"{shown(entry.name)}  {100 * (entry.pr_auc or 0):.1f}")
    _add_legend(axes, "lower left", "average precision, %")
    return figure


@_quietly()
def plot_reliability(found: Evaluation) -> Figure:
    """How often the model is right when it is so and so sure, before and after calibration."""
    figure, axes = _square("Reliability", "probability of the predicted class", "share that is right")
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=":")
    cases, fitted = found.evaluated, found.calibration
    before = f"calibration error {100 * found.uncalibrated.ece:.1f}%"
    series = [(cases.logits, f"as trained, {before}", COLOURS[1], "o")]
    if fitted and fitted.weak is None:
        after = f"calibrated, {100 * found.metrics.ece:.1f}%"
        series.append((cases.logits / fitted.temperature, after, COLOURS[0], "s"))
    for logits, title, colour, marker in series:
        bins = measure_reliability(logits, cases.labels)
        points = np.array([(b.confidence, b.accuracy) for b in bins])
        axes.plot(*points.T, color=colour, marker=marker, markersize=3.5, label=title)
    _add_legend(axes, "upper left")
    return figure


@_quietly()
def plot_confusion(found: Evaluation) -> Figure:
    """Images by true class (row) and predicted class (column), shaded by the share of the row."""
    counts = np.array(found.metrics.confusion)
    size = min(12.0, 2.6 + 0.45 * len(counts))
    figure = _start(size, size)
    axes = figure.subplots()
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    names = [shown(entry.name) for entry in found.metrics.per_class]
    if len(names) <= 30:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if rates[row, column] > 0.6 else "#1c1f24"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("Confusion")
    return figure


def shown(name: str) -> str:
    """A name that any picture or page can show: bytes that are no text, and control characters, are spelt out."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _draw_loss(axes: Axes, log: Log) -> None:
    _draw_epochs(axes, log, (("train_loss", "training"), ("val_log_loss", "validation")))
    axes.set_title("Loss")


def _draw_right(axes: Axes, log: Log) -> None:
    _draw_epochs(axes, log, (("val_balanced_accuracy", "balanced accuracy"), ("val_top1", "accuracy")))
    best = [entry["epoch"] for entry in log if entry.get("best")]
    if best:
        axes.axvline(best[-1], color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set_title("Validation; dotted: the epoch that is kept")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")


def _draw_epochs(axes: Axes, log: Log, lines: Sequence[tuple[str, str]]) -> None:
    marker = "o" if len(log) < 30 else None  # a lone epoch is no line
    for (key, title), colour in zip(lines, COLOURS, strict=False):
        values = [np.nan if entry.get(key) is None else entry[key] for entry in log]
        if not np.isnan(values).all():
            axes.plot([entry["epoch"] for entry in log], values, color=colour, label=title, marker=marker, markersize=3)
    _add_legend(axes, "best")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = _start(4.2, 3.9)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    return figure, axes


def _add_legend(axes: Axes, place: Any, title: str | None = None) -> None:
    """A legend where there is something to name: one class alone has no curve."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=place, title=title, title_fontsize=8)


def _scores(found: Evaluation) -> NDArray[np.float64]:
    temperature = found.calibration.temperature if found.calibration else 1.0
    return np.exp(log_softmax(found.evaluated.logits / temperature))


def _choose_classes(found: Evaluation) -> list[tuple[ClassMetrics, int, str]]:
    """The classes to draw, with their colours: all, or those that are told apart worst."""
    drawable = [(entry, k) for k, entry in enumerate(found.metrics.per_class) if entry.roc_auc is not None]
    worst = sorted(drawable, key=lambda pair: pair[0].roc_auc or 0)[:MAX_CURVES]
    return [(entry, k, colour) for (entry, k), colour in zip(sorted(worst, key=lambda p: p[1]), COLOURS, strict=False)]


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) <= MAX_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    return x[kept], y[kept]
