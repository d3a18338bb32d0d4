"""Sections of a report on the metrics: all of them, by class, mistakes, calibration."""

import numpy as np

from convnext_cli.images.preprocessing import REDUCTION
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.formulas import ECE_BINS
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import list_mistakes
from convnext_cli.reports import plots
from convnext_cli.reports.section import (
    Cell,
    Column,
    Gallery,
    Plot,
    Plots,
    ReportData,
    Section,
    Table,
    make_class_table,
    make_metric_table,
)
from convnext_cli.runs.files import PREDICTIONS
from convnext_cli.text import format_part, format_percent

MAX_CONFUSION = 10  # classes of a table; more are drawn
MAX_PAIRS = 10  # of confused classes that are listed

MATRIX = "confusion"
RELIABILITY = ("reliability", "frequency")


def show_mistakes(report: ReportData) -> Section | None:
    """Return the worst mistakes and the least confident predictions, with heat maps."""
    if not report.mistakes and not report.uncertain:
        return None
    height, width = report.config.pretrained_cfg.input_size[1:]
    task = report.evaluation.task
    output = "of the predicted number" if task.is_continuous else f"of the most probable {task.display.target_word}"
    explanation = (
        f"Right of each image: Grad-CAM {output}, bright where evidence for it lies, at {height // REDUCTION} x "
        f"{width // REDUCTION} positions. It shows where the model looked, not why."
    )
    kinds = (
        ("worst mistakes", report.mistakes, "The label may be wrong too: check these first."),
        ("least confident predictions", report.uncertain, "Correct and wrong ones."),
    )
    return Section(
        title="Mistakes",
        sentences=_describe_mistakes(report),
        blocks=[
            Gallery(title=f"The {len(images)} {title}", images=images, note=f"{note} {explanation}")
            for title, images, note in kinds
            if images
        ],
    )


def _describe_mistakes(report: ReportData) -> list[str]:
    evaluation = report.evaluation
    task, targets = evaluation.task, evaluation.images.targets
    decisions = task.decide(evaluation.probabilities, evaluation.calibration)
    sentences = []
    if evaluation.metrics.per_class:
        wrong = sum(not task.is_correct(decision, target) for decision, target in zip(decisions, targets, strict=True))
        counted = int(evaluation.images.make_calculator().select_counted().sum())
        sentences.append(f"{format_part(wrong, counted, 'image', 'is', 'are')} predicted wrongly.")
    if report.mistakes:
        worst = report.mistakes[0]
        sentences.append(f"The worst mistake: {worst.lines[0]} ({worst.path}).")
    return [*sentences, f"`{PREDICTIONS.name}` in the run has the prediction of each image."]


def show_metrics(report: ReportData) -> Section:
    """Return all metrics with their meaning, those of each class, the confusions and the curves."""
    evaluation = report.evaluation
    intervals, display = evaluation.intervals, evaluation.task.display
    single = "" if intervals.clustered else " If several images are of the same patient, the true CIs are wider."
    method = f"95% CIs: {intervals.method}. They do not cover another training.{single}"
    table = make_metric_table("All metrics, with their meaning", display.table, evaluation.metrics, intervals.overall)
    drawn = [name for name in display.plots if name not in (MATRIX, *RELIABILITY)]
    curves = Plots(
        title=display.curves_heading,
        plots=[Plot(name, plots.PLOTS[name](evaluation)) for name in drawn],
        note=f"The {plots.MAX_CURVES} classes with the lowest ROC AUC."
        if len(evaluation.metrics.per_class) > plots.MAX_CURVES
        else "",
    )
    is_tabulated = 0 < len(evaluation.metrics.confusion) <= MAX_CONFUSION
    files = [Plot(MATRIX, plots.plot_confusion(evaluation))] if is_tabulated else []
    thresholds = _tabulate_thresholds(evaluation)
    sentences = [method] if thresholds else [method, evaluation.task.describe_decision(evaluation.calibration)]
    if evaluation.augmentation:
        headline = METRICS[display.headline]
        gain = evaluation.augmentation.gain.differences[display.headline]
        difference = f", {headline.title} {headline.format_difference(gain)}" if gain else ""
        ratio = evaluation.augmentation.time_ratio
        sentences.append(f"With test-time augmentation: {ratio:.1f} times the time{difference}.")
    blocks = [table, *_tabulate_classes(evaluation), *thresholds, curves]
    return Section(title="Metrics", sentences=sentences, blocks=blocks, files=files)


def _tabulate_thresholds(evaluation: Evaluation) -> list[Table]:
    """Return the threshold of each label, where labels have thresholds of their own."""
    calibration = evaluation.calibration
    if calibration is None or not calibration.label_thresholds:
        return []
    pairs = zip(evaluation.images.classes, calibration.label_thresholds, strict=True)
    word = evaluation.task.display.target_word
    table = Table(
        title=f"Thresholds by {word}",
        columns=[Column(word, is_number=False), Column("threshold %")],
        rows=[(name, format_percent(threshold, 1)) for name, threshold in pairs],
        note=f"Calibrated probability from which on a {word} is predicted: the one with the highest F1 on the "
        f"{evaluation.fitted_on} images; 50.0% where these were too few.",
    )
    return [table]


def _tabulate_classes(evaluation: Evaluation) -> list[Table | Plots]:
    metrics, display = evaluation.metrics, evaluation.task.display
    if not metrics.per_class:
        return []
    rows = list(zip(metrics.per_class, evaluation.intervals.per_class, strict=True))
    if key := display.class_order:
        rows.sort(key=lambda row: -np.inf if getattr(row[0], key) is None else getattr(row[0], key), reverse=True)
    shown = [METRICS[key] for key in (*display.class_estimates, *display.class_values)]
    table = make_class_table(display.target_word, dict(display.class_counts), shown, rows)
    return [table, *_show_confusion(evaluation)]


def _show_confusion(evaluation: Evaluation) -> list[Table | Plots]:
    """Return the confusion matrix as a table or, of many classes, as a plot with the most frequent confusions."""
    task, metrics = evaluation.task, evaluation.metrics
    if MATRIX not in task.display.plots:
        return []
    names, totals = [entry.name for entry in metrics.per_class], [entry.images for entry in metrics.per_class]
    note = "Rows: true class; columns: predicted class. Number of images and percentage of the row."
    if len(names) <= MAX_CONFUSION:
        cells = [[_make_count(n, total) for n in row] for row, total in zip(metrics.confusion, totals, strict=True)]
        columns = [Column("true \\ predicted", is_number=False), *(Column(name) for name in names)]
        rows = [(name, *row) for name, row in zip(names, cells, strict=True)]
        return [Table(title="Confusion matrix", columns=columns, rows=rows, note=note)]
    decisions = task.decide(evaluation.probabilities, evaluation.calibration)
    pairs = list_mistakes(evaluation.images.targets, decisions)[:MAX_PAIRS]
    table = Table(
        title="Most frequent confusions",
        columns=[Column(h, is_number=h == "images") for h in ("predicted", "labelled", "images")],
        rows=[(names[k], names[j], _make_count(n, totals[j])) for j, k, n in pairs],
    )
    if not metrics.confusion:
        return [table]
    drawing = Plot(MATRIX, plots.plot_confusion(evaluation))
    return [table, Plots(title="Confusion matrix", plots=[drawing], note="Rows: true class; columns: predicted class.")]


def _make_count(count: int, total: int) -> Cell:
    rate = count / total if total else 0.0
    return Cell(f"{count:,}", note=f"{format_percent(rate)}%", shade=0.06 + 0.5 * rate)


def show_calibration(report: ReportData) -> Section:
    """Return the agreement of stated probabilities with observed frequencies, before and after calibration."""
    evaluation, calibration = report.evaluation, report.evaluation.calibration
    display = evaluation.task.display
    if calibration and calibration.is_fitted:
        method = evaluation.task.describe_calibration(calibration)
        sentences = [f"Calibrated with {method}, fitted on {calibration.images:,} {evaluation.fitted_on} images."]
        changes = []
        for _, key in display.calibration:
            metric = METRICS[key]
            before, after = (getattr(part, key) for part in (evaluation.uncalibrated, evaluation.metrics))
            change = f"from {metric.format_with_unit(before)} to {metric.format_with_unit(after)}"
            changes.append(f"the {metric.title} {change}")
        if changes:
            sentences.append(f"On these images, that changes {' and '.join(changes)}.")
    elif report.members:
        average = (
            "Each image is predicted by the one model that was not trained on it (out of fold)."
            if evaluation.test_set.is_out_of_fold
            else "The probabilities are the mean over the models."
        )
        models = (
            f"Ensemble of the {report.members} models of a cross-validation, each with its own calibration (if any)."
        )
        sentences = [models, average]
    else:
        sentences = ["Not calibrated: the outputs are those of the model."]
    drawn = [Plot(name, plots.PLOTS[name](evaluation)) for name in RELIABILITY if name in display.plots]
    if not drawn:
        return Section(title="Calibration", sentences=sentences)
    images = evaluation.images
    number = len(evaluation.task.list_confidences(images.calibrated, images.targets)[0])
    alone = f"each {display.target_word} alone"
    if len(images.classes) > plots.MAX_CURVES:
        alone = (
            f"the {plots.MAX_CURVES} {display.target_words} whose mean probability differs most from their frequency"
        )
    note = (
        f"{display.confidence_note} N = {number:,}, about {max(1, round(number / ECE_BINS)):,} in each bin. Beside it, "
        f"{alone}: above the line, a {display.target_word} is more frequent than its probability says."
    )
    drawing = Plots(title="Reliability", plots=drawn, note=note)
    return Section(title="Calibration", sentences=sentences, blocks=[drawing])
