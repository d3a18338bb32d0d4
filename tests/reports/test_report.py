import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from convnext_cli import evaluate, write_report
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import Interval, compute_intervals
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import compute_metrics
from convnext_cli.progress import Notice
from convnext_cli.reports.gallery import IMAGES
from convnext_cli.reports.performance import MAX_CONFUSION, show_calibration, show_metrics
from convnext_cli.reports.report import render_page
from convnext_cli.reports.section import Cell, Column, Plots, ReportData, Table
from convnext_cli.reports.verdict import answer_questions, describe_chance, describe_leakage
from convnext_cli.runs.folder import RunFolder
from tests.conftest import SMALL
from tests.reports.browser import CHROMIUM, Browser

HOSTILE = "<script>alert(1)</script>"
CLASSES = (HOSTILE, "$x_1$ & 'two'", "new\nline \udcff 数")
FINDING = {
    "kind": "duplicates across splits", "falsifies": True, "title": HOSTILE, "count": 2, "examples": [],
    "effect": "too good", "action": "kept",
}  # fmt: skip
QUOTES = """<img src=x onerror=alert(2)> "a' &amp;.png"""


@pytest.fixture(scope="module")
def hostile(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The small run, its classes and files renamed to what a page could stumble over, evaluated, with its report."""
    home = tmp_path_factory.mktemp("hostile")
    shutil.copytree(run.path, home / "run")
    mine = RunFolder(home / "run")
    index = mine.read_split()
    shutil.copytree(index.root, home / "data")
    first = index.rows("test")[0]
    paths = list(index.paths)
    paths[first] = f"0/{QUOTES}"
    (home / "data" / index.paths[first]).rename(home / "data" / paths[first])
    mine.write_split(replace(index, root=home / "data", classes=CLASSES, paths=tuple(paths)))
    config = json.loads((mine.path / "config.json").read_text())
    config["label_names"] = CLASSES
    (mine.path / "config.json").write_text(json.dumps(config))
    (mine.path / "audit.json").write_text(json.dumps({"findings": [FINDING | {"examples": [QUOTES]}]}))
    (mine.path / "calibration.json").unlink()
    mine.tests.unlink(missing_ok=True)
    result = evaluate(mine.path, targets=[f"sensitivity=0.9:{HOSTILE}"])
    # an unsure answer, so that the file with the odd name is shown
    sure: Floats = result.evaluated.logits.copy()
    sure[0] = 0
    result = replace(result, evaluated=replace(result.evaluated, logits=sure))
    write_report(result)
    return result


def test_report_has_all_sections_and_no_external_resources(hostile: Evaluation) -> None:
    run = RunFolder(hostile.run)
    page = run.report.read_text()
    for heading in (
        "How good is it?", "For whom?", "Can it be trusted?", "balanced accuracy", "Targets", "Mistakes", "Metrics",
        "Metrics by class", "Confusion matrix", "Curves", "Calibration", "Training", "Data", "Settings",
        "Training environment", "Intended use and limitations", "What the metrics mean",
    ):  # fmt: skip
        assert heading in page, heading
    assert "This is the first evaluation of this run on a test split." in page
    assert page.count("<svg") == 6
    assert 2 <= page.count("data:image/jpeg") <= 4 * IMAGES
    assert re.search(rf'>epochs</th><td data-label="value">{SMALL["epochs"]}</td>', page)
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing from elsewhere"
    assert "<script" not in page
    assert {path.name for path in run.plots.iterdir()} == {
        f"{name}.png" for name in ("roc", "pr", "reliability", "loss", "right", "confusion", "decision-1")
    }
    assert "#010203" not in page, "no stand-in colour is left"


def test_names_in_the_report_are_escaped(hostile: Evaluation) -> None:
    page = RunFolder(hostile.run).report.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert "new\\nline" in page
    assert "new\nline" not in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the report with")
def test_report_renders_without_requests_and_errors(hostile: Evaluation) -> None:
    with Browser() as browser:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                browser.open(RunFolder(hostile.run).report, width, scheme=scheme)
                assert browser.evaluate("document.documentElement.scrollWidth") == width
                assert browser.requests == []
                assert browser.complaints == []
                assert browser.list_cut() == []
                browser.unfold()
                assert browser.list_cut() == []
                text = browser.evaluate("document.body.innerText")
                assert HOSTILE in text
                assert QUOTES in text
                dark = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
                assert dark == (scheme == "dark")
        assert browser.evaluate("document.scripts.length") == 0


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to try the browser itself with")
def test_browser_detects_requests_and_errors(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<div style='width:900px'>x</div><img src='gone.png'><script>console.error(1); nothing()</script>")
    with Browser() as browser:
        browser.open(page, 390)
        assert browser.evaluate("document.documentElement.scrollWidth") > 390
        assert [url.rsplit("/")[-1] for url in browser.requests] == ["gone.png"]
        assert len(browser.complaints) >= 2


def test_confusion_matrix_of_many_classes_is_drawn(run: RunFolder, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    many = MAX_CONFUSION + 10
    shutil.copytree(run.path, tmp_path / "run")
    result = evaluate(tmp_path / "run")
    labels = random.integers(0, many - 1, 45)
    logits = random.normal(size=(45, many)).astype(np.float32)
    logits[:, :] += 2 * np.eye(many)[labels].astype(np.float32)
    classes = tuple(f"class {k}" for k in range(many))
    metrics = compute_metrics(logits, labels, classes)
    wide = replace(
        result,
        metrics=metrics,
        uncalibrated=metrics,
        intervals=compute_intervals(ClassCalculator(logits, labels), resamples=200),
        calibration=None,
        operating_points=(),
        evaluated=replace(result.evaluated, logits=logits, targets=labels, classes=classes),
    )
    report = ReportData(evaluation=wide, run=RunFolder(tmp_path / "run"), config=run.read_config())
    section = show_metrics(report)
    titles = [block.title for block in section.blocks]
    assert titles == [
        "All metrics, with their meaning",
        "Metrics by class",
        "Most frequent confusions",
        "Confusion matrix",
        "Curves",
    ]
    assert isinstance(section.blocks[3], Plots)
    calibration = show_calibration(report)
    assert calibration.sentences == ["Not calibrated: the probabilities are those of the model."]
    svg = dict.fromkeys(("roc", "pr", "confusion", "reliability"), Markup(""))
    assert f">{classes[-1]}</th>" in render_page(report, [section, calibration], svg), "a class without images"


def test_training_curves_are_drawn(run: RunFolder) -> None:
    assert run.curves.read_bytes().startswith(b"\x89PNG"), "`finetune` draws it, from the command line or not"
    assert run.curves.stat().st_size > 5000


def test_verdict_says_whether_the_images_were_trained_on(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    mine, index = RunFolder(tmp_path / "run"), run.read_split()
    for split in ("train", "test"):
        for row in index.rows(split)[::6]:
            path = tmp_path / split / index.paths[row]
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(index.root / index.paths[row], path)
    own, new, known = (
        evaluate(mine.path),
        evaluate(mine.path, tmp_path / "test"),
        evaluate(mine.path, tmp_path / "train"),
    )
    assert describe_leakage(own, mine) == [
        "No leakage found: none of these images is a duplicate or near-duplicate of a training image."
    ]
    text = "The model was trained on none of these images, nor on a near-duplicate of one."
    assert describe_leakage(new, mine) == [text]
    assert describe_leakage(known, mine) == []
    trust = answer_questions(ReportData(evaluation=known, run=mine, config=run.read_config()))[2].sentences
    assert isinstance(trust[0], Notice), "warnings come first"
    assert any("were trained on" in sentence.text for sentence in trust if isinstance(sentence, Notice))
    assert describe_leakage(replace(own, audit=None), mine) == [
        "It is not known whether training images are among these."
    ]


def test_verdict_compares_the_headline_with_chance(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    result = evaluate(tmp_path / "run")
    assert describe_chance(result) == f"It is better than chance: the 95% CI {show_ci(result)} excludes 33.3%."
    wide = replace(result.intervals, overall=result.intervals.overall | {"balanced_accuracy": Interval(0.3, 0.5)})
    warning = describe_chance(replace(result, intervals=wide))
    assert isinstance(warning, Notice)
    assert warning.text == "not shown to be better than chance: the 95% CI [30.0, 50.0] does not exclude 33.3%"
    unknown = replace(result.intervals, overall=result.intervals.overall | {"balanced_accuracy": None})
    assert "too few images" in str(describe_chance(replace(result, intervals=unknown)))


def show_ci(evaluation: Evaluation) -> str:
    return METRICS["balanced_accuracy"].format_ci(evaluation.intervals.overall["balanced_accuracy"])


def test_table_knows_where_it_fits() -> None:
    column, cell = Column(heading="metric"), Cell(text="95.0", note="[90.0, 97.5]")
    assert Table(title="", columns=[column] * 2, rows=[("name", cell)]).width == "narrow"
    assert Table(title="", columns=[column] * 5, rows=[("name", *[cell] * 4)]).width == "medium"
    assert Table(title="", columns=[column] * 12, rows=[("name", *[cell] * 11)]).width == "wide"
