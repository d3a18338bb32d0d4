"""`convnext eval`: how good a run is, how sure that is, and which of several runs is better."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnext_cli.cli import console
from convnext_cli.cli.completion import complete_run
from convnext_cli.errors import RunError, UsageError
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.metrics.comparison import Comparison
    from convnext_cli.metrics.intervals import Interval
    from convnext_cli.metrics.thresholds import Target
    from convnext_cli.runs.folder import RunFolder

SPLITS = ("train", "val", "test", "all")
MAX_CONFUSION = 12  # classes that a screen has room for; --json and the report have all


def evaluate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]... [DATA]",
            help="Runs; the newest if none. A folder that is no run is the data.",
            autocompletion=complete_run,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Folder of images; the run's own data and split if not given.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; test if there is one, else val, else all.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Set a threshold on validation and keep it: sensitivity=0.95:CLASS or specificity=…"),
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over shifted views; says its cost and gain.")] = False,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep prepared images for the next time.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html and its plots into the run.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a run, or compare several. Each figure with its 95% interval, and a report in the run."""
    if split is not None and split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", f"Give one of {', '.join(SPLITS)}")
    runs, data = _sort_paths(paths or [], data)

    from convnext_cli.inference.calibration import parse_target
    from convnext_cli.runs.folds import find_newest_run

    targets = [parse_target(text) for text in target or ()]
    if not runs:
        runs = [find_newest_run()]
        console.say(f"run: {runs[0].path} (the newest)")
    found = run_evaluations(runs, data, split, targets, tta=tta, cache=cache)
    compared = _compare(found)
    if as_json:
        alone = found[0].to_dict()
        console.show_json(alone if len(found) == 1 else _as_json(found, compared))
    for evaluation in found:
        if not as_json:
            show_evaluation(evaluation)
        if report:  # after the figures: they are not lost where it cannot be written
            from convnext_cli.runs.folder import RunFolder

            write_report(evaluation)
            if not as_json:
                console.show(f"Report: {console.shorten(RunFolder(evaluation.run).report)}")
    if as_json:
        return
    for evaluation, comparison in zip(found[1:], compared, strict=True):
        _show_comparison(found[0], evaluation, comparison)
    if len(found) == 1:
        console.show(_summarise(found[0]))
        console.show(f"Next: convnext predict IMAGE --run {quote(console.shorten(found[0].run))}")


def _summarise(found: "Evaluation") -> str:
    """Return one sentence: how good, how sure, on what."""
    ci = found.intervals.overall["balanced_accuracy"]
    sure = f", 95% CI [{100 * ci.low:.1f}, {100 * ci.high:.1f}]" if ci else ""
    where = "" if found.split == "all" else f"{found.split} "
    percent = console.percent(found.metrics.balanced_accuracy)
    return f"Balanced accuracy {percent}%{sure}, on {found.metrics.images:,} {where}images"


def run_evaluations(
    runs: "list[RunFolder]",
    data: Path | None = None,
    split: str | None = None,
    targets: "Sequence[Target]" = (),
    *,
    tta: bool = False,
    cache: bool = True,
) -> "list[Evaluation]":
    """Evaluate with a progress bar, all runs on the images of the first."""
    from convnext_cli.inference.evaluation import evaluate_all_steps

    steps = evaluate_all_steps(runs, data, split, targets=targets, tta=tta, cache=cache)
    return console.run("evaluating", steps)


def write_report(found: "Evaluation") -> None:
    """Write the report with a progress bar."""
    from convnext_cli.reports.report import write_report_steps

    console.run("report", write_report_steps(found))


def show_evaluation(found: "Evaluation") -> None:
    """Figures, classes, confusion."""
    metrics, sure = found.metrics, found.intervals
    console.show(
        f"{console.shorten(found.run)} on {console.shorten(found.data)}, {found.split}: {metrics.images:,} images",
        style="bold",
    )
    if found.test_number is not None:
        console.show(_describe_number(found.test_number))
    for note in found.notes:
        console.warn(f"warning: {note}" if note.startswith("leakage") else note)
    console.show("")
    console.show_table(
        ["figure", "", "95% interval"],
        [
            *(
                (title, _share(getattr(metrics, name)), _between(sure.overall[name]))
                for name, title in (
                    ("balanced_accuracy", "balanced accuracy %"), ("top1", "accuracy %"), ("macro_f1", "macro F1 %"),
                    ("macro_roc_auc", "macro ROC AUC %"), ("macro_pr_auc", "macro PR AUC %"), ("kappa", "kappa %"),
                    ("mcc", "MCC %"), ("ece", "calibration error %"), ("brier", "Brier score %"),
                )
            ),
            ("log loss", f"{metrics.log_loss:.4f}", _between(sure.overall["log_loss"], 1, 4)),
        ],
        numbers=["", "95% interval"],
    )  # fmt: skip
    drawn = f"{sure.units:,} groups" if sure.clustered else "single images; groups, such as patients, are not known"
    console.show(f"95% intervals from {sure.resamples:,} resamples of {drawn}")
    if (fitted := found.calibration) and fitted.weak is None:
        console.show(
            f"Calibrated by temperature {fitted.temperature:.2f} from {fitted.images:,} validation images; before: log "
            f"loss {found.uncalibrated.log_loss:.4f}, calibration error {console.percent(found.uncalibrated.ece)}%"
        )
    console.show("")
    _show_classes(found)
    _show_targets(found)
    _show_augmentation(found)


def _show_classes(found: "Evaluation") -> None:
    metrics, sure = found.metrics, found.intervals
    console.show_table(
        ["class", "images", "recall %", "95%", "precision %", "95% ", "specificity %", "F1 %", "ROC AUC %", "PR AUC %"],
        (
            (c.name, c.images, _share(c.recall), _between(i["recall"]), _share(c.precision), _between(i["precision"]),
             _share(c.specificity), _share(c.f1), _share(c.roc_auc), _share(c.pr_auc))
            for c, i in zip(metrics.per_class, sure.per_class, strict=True)
        ),
        numbers=["images", "recall %", "95%", "precision %", "95% ", "specificity %", "F1 %", "ROC AUC %", "PR AUC %"],
    )  # fmt: skip
    names = [entry.name for entry in metrics.per_class]
    if len(names) > MAX_CONFUSION:
        return
    console.show("")
    console.show_table(
        ["true \\ predicted", *names],
        ((name, *row) for name, row in zip(names, metrics.confusion, strict=True)),
        numbers=names,
    )


def _show_targets(found: "Evaluation") -> None:
    if not found.operating_points:
        return
    console.show("")
    console.show_table(
        ["target", "threshold %", "sensitivity %", "95%", "specificity %", "95% "],
        (
            (point.threshold.target, _share(point.threshold.threshold), _share(point.sensitivity),
             _between(point.sensitivity_interval), _share(point.specificity), _between(point.specificity_interval))
            for point in found.operating_points
        ),
        numbers=["threshold %", "sensitivity %", "95%", "specificity %", "95% "],
    )  # fmt: skip


def _show_augmentation(found: "Evaluation") -> None:
    if found.augmentation is None:
        return
    console.show("")
    console.show(
        f"Test-time augmentation took {found.augmentation.time_ratio:.1f} times as long; against none: "
        f"{_describe_differences(found.augmentation.gain)}"
    )


def _show_comparison(first: "Evaluation", second: "Evaluation", compared: "Comparison") -> None:
    console.show("")
    console.show(f"{console.shorten(second.run)} against {console.shorten(first.run)}", style="bold")
    console.show(_describe_differences(compared))
    kind = "McNemar's test, by groups" if compared.clustered else "McNemar's test"
    console.show(
        f"right alone: the first on {compared.only_first_right} images, the second on {compared.only_second_right}; "
        f"{kind}: p = {compared.p_value:.2g}"
    )


def _describe_differences(compared: "Comparison") -> str:
    parts = []
    for name, title in (("balanced_accuracy", "balanced accuracy"), ("top1", "accuracy"), ("log_loss", "log loss")):
        if difference := compared.differences[name]:
            scale, digits, unit = (1, 4, "") if name == "log_loss" else (100, 1, " points")
            low, high = (scale * end for end in (difference.interval.low, difference.interval.high))
            parts.append(
                f"{title} {scale * difference.value:+.{digits}f}{unit} ({low:+.{digits}f} to {high:+.{digits}f})"
            )
    return ", ".join(parts)


def _describe_number(number: int) -> str:
    count = f"Evaluation {number} on the test split."
    return count if number == 1 else f"{count} Choosing a model by these results biases them upward."


def _sort_paths(paths: list[Path], data: Path | None) -> "tuple[list[RunFolder], Path | None]":
    """Tells runs from data: a run has a plan or a model in it."""
    from convnext_cli.runs.folder import RunFolder

    runs: list[RunFolder] = []
    others: list[Path] = []
    for path in paths:
        if not path.exists():
            raise RunError(f"{path} does not exist", "Give a run folder, or a folder of images")
        if RunFolder(path).is_run:
            runs.append(RunFolder(path))
        else:
            others.append(path)
    if len(others) > 1 or (others and data):
        names = ", ".join(str(path) for path in (*others, *([data] if data else [])))
        raise UsageError(f"{names}: at most one of these can be the data, and none is a run", "Give runs, and one DATA")
    return runs, others[0] if others else data


def _compare(found: "list[Evaluation]") -> "list[Comparison]":
    from convnext_cli.inference.evaluation import compare_evaluations

    return [compare_evaluations(found[0], other) for other in found[1:]]


def _as_json(found: "list[Evaluation]", compared: "list[Comparison]") -> dict[str, object]:
    from dataclasses import asdict

    pairs = [
        {"first": found[0].run, "second": second.run} | asdict(comparison)
        for second, comparison in zip(found[1:], compared, strict=True)
    ]
    return {"runs": [evaluation.to_dict() for evaluation in found], "comparisons": pairs}


def _share(value: float | None) -> str | None:
    return console.percent(value)


def _between(interval: "Interval | None", scale: float = 100, digits: int = 1) -> str | None:
    return None if interval is None else f"{scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f}"
