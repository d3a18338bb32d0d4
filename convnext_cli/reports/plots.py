"""The plots of a run, as PNG files and as SVG that takes its colours from the report."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from convnext_cli.files import replace_file
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.inference.subgroups import SubgroupMetric
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.curves import measure_reliability, trace_pr, trace_roc
from convnext_cli.metrics.decision import DecisionCurve
from convnext_cli.metrics.registry import METRICS, Metric
from convnext_cli.runs.files import CURVES, RANGE_TEST_PLOT
from convnext_cli.runs.folder import RunFolder
from convnext_cli.text import format_digits, make_visible, shorten_name

COLOURS = ("#3b78c9", "#d9822b", "#2f9e78", "#c24d7e", "#7a63c7", "#9a8a1f", "#3aa0b5", "#a8634a")
STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))  # of curves beside each other, for print without colours
MAX_CURVES = len(COLOURS)  # of a plot; of more classes, those with the lowest ROC AUC
TITLE_LETTERS = 48  # of a line across a forest plot
PNG_DPI = 144
MAX_POINTS = 300  # of a curve; more are not visible
# Placeholder colours, which the report replaces by those of its light or dark theme.
_INK, _MUTED, _LINE = "#010203", "#040506", "#070809"
_ON_WHITE = {_INK: "#1c1f24", _MUTED: "#5b636e", _LINE: "#d9dde3"}
_THEME = {_INK: "currentColor", _MUTED: "var(--muted)", _LINE: "var(--line)"}
# A notebook's style may be dark, large, or set in TeX. Its fonts are kept: they may have the script of the names.
_DEFAULTS = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith(("backend", "font."))}
_STYLE: dict[Any, Any] = _DEFAULTS | {
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
    """Apply the style, and ignore warnings about missing glyphs: names may be in any script."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _start(width: float, height: float, title: str = "") -> tuple[Figure, Axes]:
    """Return a figure with axes; sizes are in inches. Add to it within `_quietly`, which applies the style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def draw_curves(run: RunFolder) -> None:
    """Write the training curves so far, of one epoch or more, to `curves.png` in the run folder."""
    write_png(plot_training(run.read_log()), CURVES.path(run.path))


def draw_range_test(run: RunFolder, range_test: dict[str, Any]) -> None:
    """Write the plot of the learning-rate range test to `lr.png` in the run folder."""
    write_png(plot_range_test(range_test), RANGE_TEST_PLOT.path(run.path))


def write_png(figure: Figure, path: Path) -> None:
    """Write a plot as PNG on white. The figure keeps these colours."""
    with replace_file(path) as temporary, _quietly():
        for artist in figure.findobj():  # makes the ticks, in the style
            for part in ("color", "edgecolor"):
                colour = getattr(artist, f"get_{part}", str)()
                if isinstance(colour, str) and colour in _ON_WHITE:
                    getattr(artist, f"set_{part}")(_ON_WHITE[colour])
        figure.set(dpi=PNG_DPI, facecolor="white")
        FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]


def make_svg(figure: Figure, name: str) -> str:
    """Return a plot as an SVG element; `name` makes its ids unique in the report."""
    text = io.StringIO()
    with _quietly(), mpl.rc_context({"svg.hashsalt": name}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(text, metadata=no_metadata)  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")  # the layout is final, for the PNG too
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
    """Plot loss and validation accuracy by epoch, side by side."""
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _draw_loss(loss, log)
    _draw_accuracy(accuracy, log)
    return figure


@_quietly()
def plot_range_test(range_test: dict[str, Any]) -> Figure:
    """Plot the loss of each step of a range test over its learning rate, smoothed too, and the chosen rate."""
    figure, axes = _start(4.8, 3.2, "Training loss at a rising learning rate")
    losses, smoothed = (np.array(range_test[key], np.float64) for key in ("loss", "smoothed"))  # None: not finite
    axes.plot(range_test["lr"], losses, ".", color=COLOURS[1], markersize=3, label="step")
    axes.plot(range_test["lr"], smoothed, color=COLOURS[0], label="smoothed")
    if (chosen := range_test["chosen"]) is not None:
        axes.axvline(chosen, color=_MUTED, linewidth=0.8, linestyle=":", label=f"chosen: {chosen:g}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max(smoothed[np.isfinite(smoothed)], default=1.0))
    axes.set_xlabel("learning rate")
    _add_legend(axes, "best")
    return figure


@_quietly()
def plot_loss(log: Log) -> Figure:
    """Plot training and validation loss by epoch."""
    figure, axes = _start(4.8, 3.2)
    _draw_loss(axes, log)
    return figure


@_quietly()
def plot_accuracy(log: Log) -> Figure:
    """Plot validation accuracy by epoch."""
    figure, axes = _start(4.8, 3.2)
    _draw_accuracy(axes, log)
    return figure


@_quietly()
def plot_roc(evaluation: Evaluation) -> Figure:
    """Plot the ROC curve of each class against the rest."""
    figure, axes = _square("ROC, one-vs-rest", "false positive rate (1 - specificity)", "sensitivity")
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=":")
    _draw_curves(axes, evaluation, METRICS["roc_auc"], trace_roc)
    _add_legend(axes, "lower right", METRICS["roc_auc"].heading)
    return figure


@_quietly()
def plot_pr(evaluation: Evaluation) -> Figure:
    """Plot the precision-recall curve of each class against the rest."""
    figure, axes = _square("Precision-recall, one-vs-rest", "sensitivity (recall)", "precision")
    _draw_curves(axes, evaluation, METRICS["pr_auc"], trace_pr)
    _add_legend(axes, "lower left", METRICS["pr_auc"].heading)
    return figure


@_quietly()
def plot_reliability(evaluation: Evaluation) -> Figure:
    """Plot accuracy by confidence, or frequency by probability, before and after calibration."""
    figure, axes = _square("Reliability", *evaluation.task.display.confidence_axes)
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=":")
    ece, logits = METRICS[dict(evaluation.task.display.calibration)["ece"]], evaluation.images.logits
    before, after = (getattr(m, ece.key) for m in (evaluation.uncalibrated, evaluation.metrics))
    start = "uncalibrated, " if evaluation.calibration else ""  # the members of an ensemble are calibrated
    series = [(logits, f"{start}ECE {ece.format_with_unit(before)}", COLOURS[1], "o")]
    if evaluation.calibration and evaluation.calibration.is_fitted:
        title = f"calibrated, ECE {ece.format_with_unit(after)}"
        series.append((evaluation.images.calibrated, title, COLOURS[0], "s"))
    for logits, title, colour, marker in series:
        bins = measure_reliability(*evaluation.task.list_confidences(logits, evaluation.images.targets))
        confidence, accuracy, _ = zip(*bins, strict=True)
        axes.plot(confidence, accuracy, color=colour, marker=marker, markersize=3.5, label=title)
    _add_legend(axes, "upper left")
    return figure


@_quietly()
def plot_frequency(evaluation: Evaluation) -> Figure:
    """Plot the frequency of each class by its calibrated probability, in bins of equal size.

    Of more than `MAX_CURVES` classes, those are drawn whose mean probability differs most from their frequency.
    """
    word = evaluation.task.display.target_word
    figure, axes = _square("Frequency by probability", f"probability of the {word}", f"frequency of the {word}")
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=":")
    images, probabilities = evaluation.images, evaluation.probabilities
    pairs = {}
    for k, name in enumerate(images.classes):
        positive, known = images.select_known(k)
        if known.any():
            pairs[name] = probabilities[known, k], positive[known]
    shifts = {name: abs(float(p.mean() - positive.mean())) for name, (p, positive) in pairs.items()}
    most = sorted(shifts, key=lambda name: -shifts[name])[:MAX_CURVES]
    shown = (name for name in pairs if name in most)
    for name, colour, style in zip(shown, COLOURS, cycle(STYLES), strict=False):
        points = np.transpose(measure_reliability(*pairs[name]))[:2]
        axes.plot(*points, color=colour, linestyle=style, marker="o", markersize=2.5, label=_label(name))
    _add_legend(axes, "upper left")
    return figure


@_quietly()
def plot_confusion(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix, shaded by the fraction of each row."""
    counts = np.array(evaluation.metrics.confusion)
    names = [_label(entry.name) for entry in evaluation.metrics.per_class]
    margin = 1.6 + 0.08 * max(10, *map(len, names))
    size = min(12.0, margin + 0.45 * len(counts))
    figure, axes = _start(size, size, "Confusion matrix")
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    if len(names) <= 30:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if rates[row, column] > 0.6 else "#1c1f24"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


@_quietly()
def plot_agreement(evaluation: Evaluation) -> Figure:
    """Plot predicted over true numbers."""
    figure, axes = _start(4.2, 3.9, "Predicted and true numbers")
    true, predicted = evaluation.images.targets, evaluation.probabilities[:, 0]
    ends = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    axes.plot(ends, ends, color=_MUTED, linewidth=0.8, linestyle=":")
    axes.plot(true, predicted, ".", color=COLOURS[0], markersize=3)
    name = _label(evaluation.images.classes[0])
    axes.set(xlabel=f"{name}, true", ylabel=f"{name}, predicted")
    return figure


@_quietly()
def plot_bland_altman(evaluation: Evaluation) -> Figure:
    """Plot differences over means, with the bias and the limits of agreement (Bland and Altman 1986)."""
    figure, axes = _start(4.2, 3.9, "Bland-Altman")
    true, predicted = evaluation.images.targets, evaluation.probabilities[:, 0]
    axes.plot((true + predicted) / 2, predicted - true, ".", color=COLOURS[0], markersize=3)
    for key, style in (("bias", "-"), ("limit_low", ":"), ("limit_high", ":")):
        value, title = getattr(evaluation.metrics, key), METRICS[key].title
        if value is None:
            continue
        axes.axhline(
            value, color=COLOURS[1], linewidth=0.9, linestyle=style, label=f"{title} {format_digits(value, 3)}"
        )
    name = _label(evaluation.images.classes[0])
    axes.set(xlabel=f"{name}, mean of predicted and true", ylabel=f"{name}, predicted - true")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # the legend lies above the lines
    _add_legend(axes, "upper right")
    return figure


@_quietly()
def plot_decision(curve: DecisionCurve) -> Figure:
    """Plot the net benefit over the threshold probability, beside treating all and none (Vickers and Elkin 2006)."""
    figure, axes = _start(4.8, 3.4, f"Decision curve of {_label(curve.name)}")
    axes.axhline(0, color=_MUTED, linewidth=0.9, label="treat none")
    axes.plot(curve.thresholds, curve.treat_all, color=COLOURS[1], linestyle="--", label="treat all")
    axes.plot(curve.thresholds, curve.model, color=COLOURS[0], label="model")
    top = max(curve.prevalence, *curve.model)
    axes.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.25 * top, 1.05 * top))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    _add_legend(axes, "best")
    return figure


@_quietly()
def plot_forest(title: str, metric: Metric, rows: Sequence[tuple[str, SubgroupMetric]]) -> Figure:
    """Plot a metric of several named subgroups with its 95% CIs, a row each, the first one on top."""
    lines = wrap(make_visible(title), TITLE_LETTERS)
    figure, axes = _start(4.6, 0.75 + 0.15 * len(lines) + 0.28 * len(rows))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10, fontweight="bold", color=_INK)
    for place, (_, result) in enumerate(rows):
        colour = COLOURS[3] if result.is_significant else COLOURS[0]
        value, interval = result.estimate.value, result.estimate.interval
        if interval is not None:
            axes.plot((metric.scale * interval.low, metric.scale * interval.high), (place, place), color=colour)
        if value is not None:
            fill = colour if result.is_significant else "none"
            axes.plot([metric.scale * value], [place], "o", color=colour, markerfacecolor=fill, markersize=5)
    axes.set_yticks(range(len(rows)), [_label(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(metric.unit)
    return figure


PLOTS = {
    "roc": plot_roc,
    "pr": plot_pr,
    "reliability": plot_reliability,
    "frequency": plot_frequency,
    "confusion": plot_confusion,
    "agreement": plot_agreement,
    "bland_altman": plot_bland_altman,
}
"""The plots of an evaluation, by the names that tasks give them."""


def _draw_loss(axes: Axes, log: Log) -> None:
    losses, _ = _list_validation(log)
    _draw_epochs(axes, log, [("train_loss", "training"), *((f"val_{metric.key}", "validation") for metric in losses)])
    axes.set_title("Loss" if losses else "Training loss")


def _list_validation(log: Log) -> tuple[list[Metric], list[Metric]]:
    """Return the logged validation metrics: the loss, and the others with one that is not in the training's unit."""
    metrics = [METRICS[key.removeprefix("val_")] for key in log[0] if key.startswith("val_")]
    losses = 0 if metrics and metrics[0].has_target_unit else 1
    return metrics[:losses], metrics[losses:]


def _draw_accuracy(axes: Axes, log: Log) -> None:
    shown = _list_validation(log)[1][::-1]
    _draw_epochs(axes, log, [(f"val_{metric.key}", metric.title) for metric in shown])
    best = [entry["epoch"] for entry in log if entry.get("best")]
    if best:
        axes.axvline(best[-1], color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set_title("Validation metrics; dotted: best epoch")
    if shown and shown[0].unit:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_epochs(axes: Axes, log: Log, lines: Sequence[tuple[str, str]]) -> None:
    """Plot values of the log by epoch; `lines` has their keys and titles."""
    marker = "o" if len(log) < 30 else None  # a single epoch has no line
    epochs = [entry["epoch"] for entry in log]
    for number, (key, title) in enumerate(lines):
        values = [np.nan if entry.get(key) is None else entry[key] for entry in log]
        style = "--" if number else "-"  # equal lines are both seen
        if not np.isnan(values).all():
            axes.plot(epochs, values, style, color=COLOURS[number], label=title, marker=marker, markersize=3)
    _add_legend(axes, "best")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # 1 for a single epoch


def _label(name: str) -> str:
    return shorten_name(name, 32)  # so that the axes keep their room


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Return a square figure with axes from 0% to 100%."""
    figure, axes = _start(4.2, 3.9, title)
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure, axes


def _add_legend(axes: Axes, location: Any, title: str | None = None) -> None:
    """Add a legend unless there is no curve, as with a single class."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=location, title=title, title_fontsize=8)


def _draw_curves(
    axes: Axes, evaluation: Evaluation, metric: Metric, trace: Callable[..., tuple[Floats, Floats]]
) -> None:
    """Draw the curve of each class, of more than `MAX_CURVES` those with the lowest ROC AUC, in their own order."""
    images, probabilities = evaluation.images, evaluation.probabilities
    drawable = [entry for entry in evaluation.metrics.per_class if entry.roc_auc is not None]
    worst = sorted(drawable, key=lambda entry: entry.roc_auc)[:MAX_CURVES]
    shown = (entry for entry in drawable if entry in worst)
    for entry, colour, style in zip(shown, COLOURS, cycle(STYLES), strict=False):
        k = images.classes.index(entry.name)
        positive, known = images.select_known(k)
        curve = trace(probabilities[known, k], positive[known])
        points = np.unique(np.linspace(0, len(curve[0]) - 1, MAX_POINTS).round().astype(int))
        x, y = (values[points] for values in curve)
        label = f"{_label(entry.name)}: {metric.format(getattr(entry, metric.key))}"
        axes.plot(x, y, color=colour, linestyle=style, label=label)
