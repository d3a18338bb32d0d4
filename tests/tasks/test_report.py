"""The report of each task: its sentences, its rows of mistakes, and its widths on a phone and a desk."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from convnext_cli import evaluate, write_report
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.registry import METRICS
from convnext_cli.progress import Notice
from convnext_cli.reports.gallery import draw_images
from convnext_cli.reports.per_group import show_groups
from convnext_cli.reports.performance import show_metrics, show_mistakes
from convnext_cli.reports.plots import plot_frequency, plot_reliability
from convnext_cli.reports.provenance import show_data
from convnext_cli.reports.section import Cell, ReportData, Table
from convnext_cli.reports.verdict import describe_chance
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.registry import TASKS
from convnext_cli.tasks.regression import Regression
from tests.reports.browser import CHROMIUM, Browser

TARGETS = {
    "single": ["sensitivity=0.9,specificity=0.9:1", "ppv=0.5:2@prevalence=0.1"],
    "multilabel": ["sensitivity=0.8:NE@confidence=0.8"],
    "ordinal": ["specificity=0.9:3"],
    "regression": [],
}
MISTAKES = {
    "single": r"predicted \d \([<>]?\d+%\), labelled \d",
    "multilabel": r"(predicted|did not predict) [NS][EW] \([<>]?\d+%\), labelled (present|absent)",
    "ordinal": r"predicted \d \([<>]?\d+%\), labelled \d: \d grades? too (high|low)",
    "regression": r"predicted [\d.]+ \(90% interval \[[\d.]+, [\d.]+\]\), labelled [\d.]+: [\d.]+ too (high|low)",
}
SENTENCES = {
    "single": (
        "It recognises",
        "Most frequent mistake: it predicted",
        "of at most 33.3%; always predicting",
    ),
    "multilabel": ("best,", "Most often missed:", "Most often predicted without the label:", "guessing gives 50.0%"),
    "ordinal": ("It gives the exact grade for", "at most one grade off", "guessing gives 0; always predicting"),
    "regression": ("Half of the predictions are off by at most", "Least accurate for numbers", "always predicting"),
}
TOPS = "[...document.querySelectorAll('.question')].map(each => each.getBoundingClientRect().top)"
HEIGHTS = {390: 844, 1280: 900}  # of the first screen, by its width


Reported = Callable[[str], tuple[Evaluation, Path]]


def mislabel(run: RunFolder, number: int = 12) -> None:
    """Exchange the targets of some test images, so that a good model makes mistakes."""
    index = run.read_split()
    rows = index.rows("test")[::3][:number]
    order = dict(zip(rows, rows[::-1], strict=True))
    labels = tuple(index.labels[order.get(row, row)] for row in range(len(index)))
    values = tuple(index.values[order.get(row, row)] for row in range(len(index))) if index.values else ()
    run.write_split(replace(index, labels=labels, values=values))


@pytest.fixture(scope="module")
def reported(
    run: RunFolder, task_run: Callable[[str], RunFolder], tmp_path_factory: pytest.TempPathFactory
) -> Reported:
    """Return the evaluation of a task's run and its report."""
    reports: dict[str, tuple[Evaluation, Path]] = {}

    def get(task: str) -> tuple[Evaluation, Path]:
        if task not in reports:
            folder = tmp_path_factory.mktemp("reports") / task
            shutil.copytree((run if task == "single" else task_run(task)).path, folder)
            mislabel(RunFolder(folder))
            evaluation = evaluate(folder, targets=TARGETS[task])
            reports[task] = evaluation, write_report(evaluation)
        return reports[task]

    return get


def read_lines(page: str) -> list[str]:
    """Return the texts of a page between its tags."""
    return [text for part in re.split(r"<[^>]+>", page) if (text := unescape(part).strip())]


@pytest.mark.parametrize("task", TASKS)
def test_report_has_plain_sentences_and_a_row_for_each_mistake(reported: Reported, task: str) -> None:
    evaluation, path = reported(task)
    text = path.read_text()
    lines = read_lines(text)
    before = lines[: lines.index("Mistakes")]
    leakage = "No leakage found" if evaluation.audit else "It is not known whether training images are among these"
    for part in (*SENTENCES[task], "Measured on", leakage, "chance", "Other scanners, hospitals"):
        assert any(part in line for line in before), part
    rows = [line for line in lines if re.fullmatch(MISTAKES[task], line)]
    assert rows
    word = {"multilabel": "label", "ordinal": "grade"}.get(task, "class")
    output = "predicted number" if task == "regression" else f"most probable {word}"
    assert any(f"Grad-CAM of the {output}" in line for line in lines)
    if task == "multilabel":
        assert any(re.fullmatch(r"(other )?labels: .*\d unknown", line) for line in lines)
        order = [line for line in lines[lines.index("Metrics by label") :] if line in ("NW", "NE", "SW", "SE")][:4]
        auc = {entry.name: entry.roc_auc for entry in evaluation.metrics.per_class}
        assert order == sorted(auc, key=lambda name: -(auc[name] or 0))
    for key in evaluation.task.display.table:
        assert METRICS[key].explanation in lines, "each metric is explained in print"
    assert "Each heading" not in text


@pytest.mark.parametrize("task", ["single", "multilabel"])
def test_reliability_plot_says_what_its_axes_are(reported: Reported, task: str) -> None:
    evaluation, path = reported(task)
    [axes] = plot_reliability(evaluation).axes
    labels = {
        "single": ("confidence (probability of the predicted class)", "accuracy"),
        "multilabel": ("probability of a label", "fraction of images with the label"),
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == labels[task]
    number = len(evaluation.task.list_confidences(evaluation.images.logits, evaluation.images.targets)[0])
    note = f"{evaluation.task.display.confidence_note} N = {number}, about {round(number / 15)} in each bin."
    assert any(line.startswith(note) for line in read_lines(path.read_text()))
    [axes] = plot_frequency(evaluation).axes
    word = evaluation.task.display.target_word
    assert (axes.get_xlabel(), axes.get_ylabel()) == (f"probability of the {word}", f"frequency of the {word}")


def test_unknown_labels_are_counted_by_split(reported: Reported) -> None:
    evaluation, path = reported("multilabel")
    run, index = RunFolder(path.parent), evaluation.test_set.index
    first = index.rows("train")[0]
    values = tuple((-1.0, float("nan"), *row[2:]) if at == first else row for at, row in enumerate(index.values))
    other = replace(evaluation, test_set=replace(evaluation.test_set, index=replace(index, values=values)))
    before, after = (
        [row for row in block.rows if row[0] == "unknown labels"]
        for each in (evaluation, other)
        for block in show_data(ReportData(evaluation=each, run=run, config=run.read_config())).blocks[:1]
        if isinstance(block, Table)
    )
    known = [int(str(number)) for row in before for number in row[1:]] or [0] * len(index.list_splits())
    [(_, *numbers)] = after
    was_known = sum(value in (0, 1) for value in index.values[first][:2])
    assert [int(str(number)) for number in numbers] == [known[0] + was_known, *known[1:]]


def test_thresholds_of_labels_are_in_the_report(reported: Reported) -> None:
    evaluation, path = reported("multilabel")
    assert evaluation.calibration is not None
    run = RunFolder(path.parent)
    section = show_metrics(ReportData(evaluation=evaluation, run=run, config=run.read_config()))
    [table] = [block for block in section.blocks if isinstance(block, Table) and block.title == "Thresholds by label"]
    thresholds = evaluation.calibration.label_thresholds
    assert table.rows == [
        (name, f"{100 * value:.1f}") for name, value in zip(evaluation.images.classes, thresholds, strict=True)
    ]


def test_images_without_a_known_label_are_not_counted_as_correct(reported: Reported) -> None:
    evaluation, path = reported("multilabel")
    run, targets = RunFolder(path.parent), evaluation.images.targets.copy()
    targets[3:] = -1
    evaluation = replace(evaluation, images=replace(evaluation.images, targets=targets))
    mistakes = tuple(draw_images(evaluation, [0]).values())
    section = show_mistakes(ReportData(evaluation=evaluation, run=run, config=run.read_config(), mistakes=mistakes))
    assert section is not None
    assert re.fullmatch(r"\d of 3 images (is|are) predicted wrongly\.", str(section.sentences[0]))


def test_skewed_numbers_are_compared_with_chance_image_by_image(reported: Reported) -> None:
    evaluation, _ = reported("regression")
    random = np.random.default_rng(5)
    truth = random.normal(size=100)
    outputs = 0.8 * truth + 0.36 * random.normal(size=100)  # correlated by 0.9 with the logarithms
    for logits, expected in (
        (outputs, r"It is better than chance: the MAE differs from chance \(.*\) by -.*, which excludes 0\."),
        (-outputs, r"not shown to be better than chance: the MAE differs .* by \+.*, which does not exclude 0"),
    ):
        images = replace(
            evaluation.images,
            task=Regression(log=True, std=1.7),
            logits=logits[:, None],
            targets=np.exp(1.7 * truth),
            calibration=None,
            groups=None,
        )
        intervals = images.compute_intervals()
        verdict = describe_chance(
            replace(evaluation, images=images, metrics=images.compute_metrics(), intervals=intervals)
        )
        assert re.fullmatch(expected, verdict.text if isinstance(verdict, Notice) else verdict)
        mae = intervals.overall["mae"]
        assert mae is not None
        level = images.task.measure_chance(images.compute_metrics(), images.targets).value
        assert mae.high > level, "that the CI of the MAE includes the chance level says nothing"


def test_numbers_of_groups_have_one_table(task_run: Callable[[str], RunFolder], tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(task_run("regression").path, tmp_path / "run"))
    evaluation = evaluate(run.path, split="val", per="group")
    section = show_groups(ReportData(evaluation=evaluation, run=run, config=run.read_config()))
    assert section is not None
    assert evaluation.per_group is not None
    [table] = section.blocks
    assert isinstance(table, Table)
    assert table.title == "Metrics per image and per group"
    error = METRICS["mae"]
    [row] = [row for row in table.rows if row[0] == error.heading]
    assert [cell.text for cell in row if isinstance(cell, Cell)] == [
        error.format(part.metrics.mae) for part in (evaluation, evaluation.per_group)
    ]


@pytest.mark.parametrize("task", ["single", "multilabel", "ordinal"])
def test_report_says_for_each_target_whether_it_is_met(reported: Reported, task: str) -> None:
    evaluation, path = reported(task)
    lines = read_lines(path.read_text())
    assert len(evaluation.operating_points) == len(TARGETS[task])
    for point in evaluation.operating_points:
        for result in point.results:
            word = "target missed" if result.is_missed else "Target met"
            start = f"{word}: {result.bound.title} of at least {100 * result.bound.value:g}%"
            assert sum(line.startswith(start) and f"Here: {result}; confidence" in line for line in lines) == 2
    assert "Decision curves" in lines
    assert {"likelihood ratio", "Operating points"} <= {line.removeprefix("positive ") for line in lines}
    assert sum(path.name.startswith("decision-") for path in (evaluation.run / "plots").iterdir()) == len(TARGETS[task])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the report with")
@pytest.mark.parametrize("task", TASKS)
def test_no_table_is_cut_and_the_first_screen_answers(reported: Reported, task: str) -> None:
    _, path = reported(task)
    with Browser() as browser:
        for width, height in HEIGHTS.items():
            browser.open(path, width)
            assert browser.list_cut() == []
            tops = browser.evaluate(
                "[...document.querySelectorAll('.question')].map(e => e.getBoundingClientRect().top)"
            )
            assert len(tops) == 3
            assert max(tops) < height - 100, "the third answer begins on the first screen"
            browser.unfold()
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            assert browser.list_cut() == []
            assert browser.evaluate("document.querySelectorAll('table').length") >= 3


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to print the report with")
def test_printed_report_unfolds_everything_and_cuts_nothing(
    reported: Reported,
) -> None:
    _, path = reported("multilabel")
    with Browser() as browser:
        browser.open(path, 718)  # px: A4 less its margins
        folded = browser.evaluate("document.documentElement.scrollHeight")
        browser.ask("Emulation.setEmulatedMedia", media="print")
        assert browser.evaluate("document.documentElement.scrollHeight") > 3 * folded
        assert browser.list_cut() == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to measure with")
def test_cut_tables_are_detected(tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    page.write_text(
        "<main><div style='width:200px;overflow:auto'><table><tr><td style='min-width:300px'>x</table></div></main>"
    )
    with Browser() as browser:
        browser.open(page, 390)
        assert any(entry.startswith("TABLE") for entry in browser.list_cut())
