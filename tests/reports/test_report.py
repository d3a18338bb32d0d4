import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
import pytest
from markupsafe import Markup
from sklearn.calibration import calibration_curve

from convnext_cli import evaluate, write_report
from convnext_cli.data.audit.findings import Kind
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.inference.subgroups import SubgroupMetric
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import UNDEFINED, Estimate, Interval, compute_intervals
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.thresholds import Bound, Target, apply_threshold, find_threshold
from convnext_cli.progress import Notice
from convnext_cli.reports.gallery import IMAGES, draw_images
from convnext_cli.reports.performance import MAX_CONFUSION, show_calibration, show_metrics, show_mistakes
from convnext_cli.reports.plots import (
    MAX_POINTS,
    make_svg,
    plot_accuracy,
    plot_confusion,
    plot_forest,
    plot_frequency,
    plot_loss,
    plot_range_test,
    plot_roc,
    plot_training,
    write_png,
)
from convnext_cli.reports.provenance import show_data, show_settings, show_training
from convnext_cli.reports.report import format_prose, render_page
from convnext_cli.reports.section import Cell, Column, Listing, Plots, ReportData, Section, Table
from convnext_cli.reports.targets import describe_point, show_targets
from convnext_cli.reports.verdict import answer_questions, describe_chance, describe_leakage
from convnext_cli.runs.files import AUDIT
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import AuditRecord
from convnext_cli.tasks.registry import SINGLE
from tests.conftest import SMALL, change_json
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
    change_json(mine.path / "config.json", "label_names", CLASSES)
    (mine.path / "audit.json").write_text(json.dumps({"findings": [FINDING | {"examples": [QUOTES]}]}))
    (mine.path / "calibration.json").unlink()
    mine.tests.unlink(missing_ok=True)
    result = evaluate(mine.path, targets=[f"sensitivity=0.9:{HOSTILE}"])
    # an unsure answer, so that the file with the odd name is shown
    sure: Floats = result.images.logits.copy()
    sure[0] = 0
    result = replace(result, images=replace(result.images, logits=sure))
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
    assert page.count("<svg") == 7
    assert 2 <= page.count("data:image/jpeg") <= 4 * IMAGES
    epochs = rf'>epochs</th><td data-label="value">{SMALL["epochs"]}</td><td data-label="source">flag</td>'
    assert re.search(epochs, page)
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing from elsewhere"
    assert "<script" not in page
    assert {path.name for path in run.plots.iterdir()} == {
        f"{name}.png" for name in ("roc", "pr", "reliability", "frequency", "loss", "right", "confusion", "decision-1")
    }
    assert "#010203" not in page, "no stand-in colour is left"
    table = (run.path / "predictions.csv").read_text().splitlines()
    assert len(table) == len(hostile.test_set.rows) + 1, "a line end in a name ends no row"


def test_names_in_the_report_are_escaped(hostile: Evaluation) -> None:
    page = RunFolder(hostile.run).report.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert "new\\nline" in page
    assert "new\nline" not in page


def test_backticks_are_code_and_the_rest_is_escaped() -> None:
    text = "`convnext export <b>` writes it; one ` alone stays"
    assert format_prose(text) == "<code>convnext export &lt;b&gt;</code> writes it; one ` alone stays"


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


@pytest.mark.parametrize("many", [MAX_CONFUSION + 10, 40, 60])
def test_confusion_matrix_of_many_classes_is_drawn(
    run: RunFolder, tmp_path: Path, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext_cli.metrics.summary.MAX_MATRIX", 50)
    random = np.random.default_rng(0)
    shutil.copytree(run.path, tmp_path / "run")
    result = evaluate(tmp_path / "run")
    labels = random.integers(0, many - 1, 45)
    logits = random.normal(size=(45, many)).astype(np.float32)
    logits[:, :] += 2 * np.eye(many)[labels].astype(np.float32)
    classes = tuple(f"class {k}" for k in range(many))
    metrics = SINGLE.compute_metrics(logits, labels, classes)
    wide = replace(
        result,
        metrics=metrics,
        uncalibrated=metrics,
        intervals=compute_intervals(ClassCalculator(logits, labels), resamples=200),
        calibration=None,
        operating_points=(),
        images=replace(result.images, logits=logits, targets=labels, classes=classes, calibration=None),
    )
    report = ReportData(evaluation=wide, run=RunFolder(tmp_path / "run"), config=run.read_config())
    section = show_metrics(report)
    titles = [block.title for block in section.blocks]
    assert titles == [
        "All metrics, with their meaning",
        "Metrics by class",
        "Most frequent confusions",
        *["Confusion matrix"] * (many <= 50),
        "Curves",
    ]
    if many <= 50:
        matrix = section.blocks[3]
        assert isinstance(matrix, Plots)
        marks = [label.get_text() for label in matrix.plots[0].figure.axes[0].get_yticklabels()]
        assert (marks == list(classes)) == (many <= 30), "more names would overlap"
    calibration = show_calibration(report)
    assert calibration.sentences == ["Not calibrated: the outputs are those of the model."]
    svg = dict.fromkeys(("roc", "pr", "confusion", "reliability", "frequency"), Markup(""))
    page = render_page(report, [section, calibration], svg)
    assert f">{classes[-1]}</th>" in page, "a class without images"
    assert ">chance</span><span>100%</span>" in page
    assert "<span>0%</span>" not in page, "chance stands there"


def test_long_class_names_leave_room_for_the_confusion_matrix(run: RunFolder, tmp_path: Path) -> None:
    result = evaluate(run.path)
    classes = tuple(f"{k} {'long ' * 40}" for k in range(len(result.images.classes)))
    metrics = SINGLE.compute_metrics(result.images.logits, result.images.targets, classes)
    figure = plot_confusion(replace(result, metrics=metrics))
    write_png(figure, tmp_path / "confusion.png")
    [axes] = figure.axes
    assert axes.get_position().width > 0.25


@pytest.fixture(scope="module")
def augmented(run: RunFolder) -> Evaluation:
    """The small run on its validation images, with test-time augmentation."""
    return evaluate(run.path, split="val", tta=True)


def list_texts(section: Section | None) -> list[str]:
    """Return the sentences of a section, without their severity."""
    assert section is not None
    return [entry.text if isinstance(entry, Notice) else entry for entry in section.sentences]


def test_curve_of_many_images_keeps_its_shape_with_few_points(augmented: Evaluation) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 4000)
    logits = (random.normal(size=(4000, 3)) + np.eye(3)[labels]).astype(np.float32)
    wide = replace(
        augmented,
        metrics=SINGLE.compute_metrics(logits, labels, "abc"),
        calibration=None,
        images=replace(augmented.images, classes=tuple("abc"), logits=logits, targets=labels, calibration=None),
    )
    for line in plot_roc(wide).axes[0].lines[1:]:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert len(x) == MAX_POINTS
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        area = float(str(line.get_label()).rpartition(" ")[2])
        assert 100 * np.trapezoid(y, x) == pytest.approx(area, abs=0.2)
    for k, line in enumerate(plot_frequency(wide).axes[0].lines[1:]):
        expected = calibration_curve(labels == k, wide.probabilities[:, k], n_bins=15, strategy="quantile")
        assert line.get_ydata() == pytest.approx(expected[0], abs=0.01)
        assert line.get_xdata() == pytest.approx(expected[1], abs=0.01)


def test_frequency_is_plotted_of_the_classes_whose_probability_differs_most(
    run: RunFolder, augmented: Evaluation
) -> None:
    names = "abcdefghij"
    labels, logits = np.zeros(30, int), np.tile(np.linspace(0, 0.9, 10), (30, 1))  # all images are of a
    evaluation = replace(
        augmented,
        metrics=SINGLE.compute_metrics(logits, labels, names),
        calibration=None,
        images=replace(augmented.images, classes=tuple(names), logits=logits, targets=labels, calibration=None),
    )
    lines = plot_frequency(evaluation).axes[0].lines[1:]
    assert [line.get_label() for line in lines] == list("adefghij"), "b and c have the lowest probability"
    assert all(line.get_marker() == "o" for line in lines), "a class with one probability is a point, without a line"
    assert np.unique(lines[0].get_ydata()).tolist() == [1]
    assert lines[0].get_xdata() == pytest.approx(evaluation.probabilities[0, 0])
    [plots] = show_calibration(ReportData(evaluation=evaluation, run=run, config=run.read_config())).blocks
    assert isinstance(plots, Plots)
    assert "the 8 classes whose mean probability differs most from their frequency: above the line" in plots.note


def test_gain_of_test_time_augmentation_is_in_the_report(run: RunFolder, augmented: Evaluation) -> None:
    [_, _, sentence] = list_texts(show_metrics(ReportData(evaluation=augmented, run=run, config=run.read_config())))
    assert re.fullmatch(
        r"With test-time augmentation: [\d.]+ times the time, "
        r"balanced accuracy [+-][\d.]+ points, 95% CI \[[+-][\d.]+, [+-][\d.]+\]\.",
        sentence,
    )


@pytest.mark.parametrize(
    ("epoch", "kept"),
    [
        (None, "The run has not finished."),
        (0, "Best epoch: 0, the head alone (best loss)."),
        (1, "Best epoch: 1 (best loss)."),
    ],
)
def test_report_says_which_epoch_was_kept(
    run: RunFolder, augmented: Evaluation, tmp_path: Path, epoch: int | None, kept: str
) -> None:
    if epoch is not None:
        record = {"epoch": epoch, "selected_by": "best loss", "val": None}
        (tmp_path / "metrics.json").write_text(json.dumps(record))
    log = [{"epoch": 0, "train_loss": 1.0, "val_log_loss": 1.0}, *run.read_log()]
    report = ReportData(evaluation=augmented, run=RunFolder(tmp_path), config=run.read_config(), log=log)
    assert list_texts(show_training(report)) == [f"1 epoch, after training the head alone (epoch 0). {kept}"]


def test_settings_of_a_run_without_a_plan_are_said_to_be_unknown(
    run: RunFolder, augmented: Evaluation, tmp_path: Path
) -> None:
    mine = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    report = ReportData(evaluation=augmented, run=mine, config=run.read_config())
    [sentence] = list_texts(show_settings(report))
    assert re.fullmatch(r"convnext_zepto_rms, \d\d+ settings, each with its source\.", sentence)
    mine.plan.write_text("no TOML")
    section = show_settings(report)
    assert list_texts(section) == ["convnext_zepto_rms, settings unknown: the run's plan is gone or cannot be read."]
    assert section is not None
    assert [block.title for block in section.blocks] == ["Training environment"]
    mine.plan.unlink()
    (mine.path / "environment.json").unlink()
    assert show_settings(report) is None


def test_images_and_groups_of_each_split_are_counted(run: RunFolder, augmented: Evaluation) -> None:
    index, test_set = augmented.test_set.index, augmented.test_set
    groups = tuple("one" if row < 10 else "" for row in range(len(index)))  # the others are groups of their own
    grouped = replace(augmented, test_set=replace(test_set, index=replace(index, groups=groups)))
    cells: list[list[str]] = []
    for evaluation in (augmented, grouped):
        [table, *_] = show_data(ReportData(evaluation=evaluation, run=run, config=run.read_config())).blocks
        assert isinstance(table, Table)
        cells = [[str(cell) for cell in row] for row in table.rows]
        names = ["images", *(["groups (such as patients)"] if evaluation is grouped else [])]
        assert [row[0] for row in cells] == [*index.classes, *names]
    assert sum(map(int, cells[-1][1:])) in range(len(index) - 9, len(index) - 6)


def test_other_images_are_told_apart_from_the_data_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    index = run.read_split()
    for row in index.rows("test")[::6]:
        path = tmp_path / "other" / index.paths[row]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.root / index.paths[row], path)
    shutil.copytree(run.path, tmp_path / "run")
    evaluation, mine = evaluate(tmp_path / "run", tmp_path / "other"), RunFolder(tmp_path / "run")
    section = show_data(ReportData(evaluation=evaluation, run=mine, config=mine.read_config()))
    texts = list_texts(section)
    assert texts[0] == f"Evaluated: {tmp_path / 'other'}, {evaluation.metrics.images} images."
    assert texts[1] == f"The rest of this section is on the run's own data: {index.location}, {len(index)} images."
    assert texts[2].startswith("Drawn at random, with seed 0 and stratified by classes: train, val, test.")
    [table, *_] = section.blocks
    assert isinstance(table, Table)
    splits = ["train", "val", "test"]
    assert [column.heading for column in table.columns[1:]] == splits
    assert ("images", *(f"{len(index.rows(split)):,}" for split in splits)) in table.rows


def test_folds_are_counted_together_and_splits_of_the_data_are_named(run: RunFolder, augmented: Evaluation) -> None:
    index, test_set = augmented.test_set.index, augmented.test_set
    splits = tuple("test" if split == "test" else f"fold-{1 + row % 2}" for row, split in enumerate(index.splits))
    audit = AuditRecord(findings=(), classes={"train": {}, "test": {}}, notes=("columns: label 'class'",))
    folds = replace(augmented, audit=audit, test_set=replace(test_set, index=replace(index, splits=splits)))
    own = replace(augmented, audit=audit)
    sections = [show_data(ReportData(evaluation=each, run=run, config=run.read_config())) for each in (folds, own)]
    [table, listing] = sections[0].blocks
    assert isinstance(table, Table)
    test = len(index.rows("test"))
    assert [column.heading for column in table.columns] == ["class", "2 folds", "test"]
    assert ("images", f"{len(index) - test:,}", f"{test:,}") in table.rows
    assert isinstance(listing, Listing)
    assert listing.lines == audit.notes
    texts = list_texts(sections[1])
    assert "The data's own splits: train, test." in texts
    assert [text for text in texts if text.startswith("Drawn at random") and ": val. The draw" in text]


def test_examples_of_a_finding_are_listed_if_there_are_some(run: RunFolder, augmented: Evaluation) -> None:
    first, second = (FINDING | {"title": title, "examples": names} for title, names in (("a", ["x.png"]), ("b", [])))
    unseen = FINDING | {"kind": Kind.UNSEEN_AREA}  # of a centre crop, which need not be the run's framing
    audit = msgspec.convert({"findings": [first, second, unseen]}, AuditRecord)
    section = show_data(ReportData(evaluation=replace(augmented, audit=audit), run=run, config=run.read_config()))
    assert [text for text in list_texts(section) if "In training" in text] == [
        f"2 x {title}. Too good. In training: kept." for title in "ab"
    ]
    assert [block.title for block in section.blocks if isinstance(block, Listing)] == ["Examples: a"]


@pytest.mark.parametrize(
    ("shortcuts", "end"), [({}, "between splits."), ({"size": {}}, "between splits, no shortcuts.")]
)
def test_an_audit_without_findings_says_what_was_looked_for(
    run: RunFolder, augmented: Evaluation, shortcuts: dict[str, object], end: str
) -> None:
    audit = AuditRecord(findings=(), shortcuts=shortcuts)
    section = show_data(ReportData(evaluation=replace(augmented, audit=audit), run=run, config=run.read_config()))
    [text] = [text for text in list_texts(section) if text.startswith("The audit found nothing")]
    assert text.endswith(end)


def test_gallery_leaves_out_images_that_are_gone(run: RunFolder, tmp_path: Path) -> None:
    index = run.read_split()
    for row in index.rows("test")[::4]:
        path = tmp_path / "data" / index.paths[row]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.root / index.paths[row], path)
    evaluation = evaluate(run.path, tmp_path / "data")
    positions = list(range(len(evaluation.images.targets)))
    everything = draw_images(evaluation, positions)
    assert list(everything) == positions
    (tmp_path / "data" / everything[1].path).unlink()
    assert draw_images(evaluation, positions) == {at: image for at, image in everything.items() if at != 1}
    shutil.rmtree(tmp_path / "data")
    assert draw_images(evaluation, positions) == {}
    assert show_mistakes(ReportData(evaluation=evaluation, run=run, config=run.read_config())) is None


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target("sensitivity", 0.95, "b", confidence=0.99), "sensitivity of at least 95% with 99% confidence for b"),
        (
            Target("sensitivity", 0.95, "b", (Bound("specificity", 0.9),)),
            "specificity of at least 90% for b together with the rest of the target",
        ),
        (Target("ppv", 0.99, "b", prevalence=0.01), "PPV of at least 99% at a prevalence of 1% for b"),
        (Target("sensitivity", 0.95, "b"), None),
    ],
)
def test_report_says_which_bound_no_threshold_reaches(target: Target, text: str | None) -> None:
    positive, random = np.arange(80) % 2 == 0, np.random.default_rng(0)
    scores = 1 / (1 + np.exp(-random.normal(positive, 1)))
    scores[1] = 1  # the highest score is false: no PPV of 1
    point = apply_threshold(find_threshold(scores, positive, target), scores, positive, None)
    warnings = [entry.text for entry in describe_point(point, "validation") if isinstance(entry, Notice)]
    unreachable = [warning for warning in warnings if warning.startswith("no threshold")]
    assert unreachable == ([f"no threshold reaches {text} on the validation images."] if text else [])


def test_target_of_a_class_without_images_has_a_row_and_no_sentence(run: RunFolder, tmp_path: Path) -> None:
    index = run.read_split()
    shutil.copytree(run.path, tmp_path / "run")
    for row in index.rows("test"):
        path = tmp_path / "data" / index.paths[row]
        path.parent.mkdir(parents=True, exist_ok=True)
        if index.name_class(row) != "1":
            shutil.copy(index.root / index.paths[row], path)
    evaluation = evaluate(tmp_path / "run", tmp_path / "data", targets=["sensitivity=0.9:1"])
    section = show_targets(ReportData(evaluation=evaluation, run=run, config=run.read_config()))
    assert not [text for text in list_texts(section) if text.lower().startswith("target ")]
    assert section is not None
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert [cell.text if isinstance(cell, Cell) else cell for cell in table.rows[0]][3:] == ["-", "-", "-"]


@pytest.mark.parametrize("is_own", [True, False])
def test_thresholds_were_set_on_the_runs_own_validation_images(run: RunFolder, tmp_path: Path, is_own: bool) -> None:
    """A val split of other data is not the run's."""
    index, copy = run.read_split(), RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    for row in index.rows("test"):
        path = tmp_path / "data/val" / index.name_class(row) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.root / index.paths[row], path)
    evaluation = evaluate(copy.path, None if is_own else tmp_path / "data", split="val", targets=["sensitivity=0.9:1"])
    section = show_targets(ReportData(evaluation=evaluation, run=copy, config=copy.read_config()))
    sentences = list_texts(section)
    assert section is not None
    assert section.blocks[0].note.endswith("the threshold was set on them.") == is_own
    assert any("on these same images" in sentence for sentence in sentences) == is_own
    assert any("on the validation images and applied" in sentence for sentence in sentences) != is_own


def test_training_without_validation_has_one_curve_and_no_best_epoch() -> None:
    log = [{"epoch": epoch, "train_loss": 1 / epoch, "val_log_loss": None, "val_top1": None} for epoch in (1, 2)]
    assert [line.get_label() for line in plot_loss(log).axes[0].lines] == ["training"]


def test_plots_do_not_follow_the_style_of_the_program(tmp_path: Path) -> None:
    log = [{"epoch": epoch, "train_loss": 1 / epoch, "val_log_loss": None, "val_top1": None} for epoch in (1, 2)]
    write_png(plot_loss(log), tmp_path / "plain.png")
    style = {
        "text.usetex": True,
        "font.size": 30,
        "figure.dpi": 300,
        "savefig.bbox": "tight",
        "axes.facecolor": "black",
    }
    with mpl.rc_context(style):  # type: ignore[arg-type]  # a dict of str has any names
        write_png(plot_loss(log), tmp_path / "styled.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()
    [axes] = plot_accuracy(log).axes
    assert (list(axes.lines), axes.get_legend()) == ([], None)


@pytest.mark.parametrize(
    ("smoothed", "chosen", "labels", "top"),
    [
        ([2.0, 1.0, 4.0], 0.01, ["step", "smoothed", "chosen: 0.01"], 4.4),
        ([1.0, 2.0, None], None, ["step", "smoothed"], 2.2),
        ([None, None, None], None, ["step", "smoothed"], 1.1),
    ],
)
def test_range_test_is_drawn_whatever_its_result(
    smoothed: list[float | None], chosen: float | None, labels: list[str], top: float
) -> None:
    result = {"chosen": chosen, "lr": [0.001, 0.01, 0.1], "loss": smoothed, "smoothed": smoothed}
    [axes] = plot_range_test(result).axes
    assert [line.get_label() for line in axes.lines] == labels
    assert axes.get_ylim() == pytest.approx((0, top))


def test_forest_plot_has_a_row_for_a_metric_that_is_not_defined() -> None:
    values = {"both": Estimate(0.9, Interval(0.8, 0.95)), "point": Estimate(0.7, None), "none": UNDEFINED}
    row = SubgroupMetric(key="recall", of="", target="", estimate=UNDEFINED, rest=UNDEFINED, gap=UNDEFINED)
    rows = [(name, replace(row, estimate=estimate)) for name, estimate in values.items()]
    [axes] = plot_forest("recall", METRICS["recall"], rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(values)
    drawn = [(list(map(float, line.get_xdata())), set(line.get_ydata())) for line in axes.lines]  # type: ignore[arg-type]
    assert drawn == [([80, 95], {0}), ([90], {0}), ([70], {1})]


def test_long_title_of_a_forest_plot_is_not_cut() -> None:
    row = SubgroupMetric(key="recall", of="", target="", estimate=Estimate(0.9, None), rest=UNDEFINED, gap=UNDEFINED)
    title = "sensitivity (recall) of BACTERIA at ppv=0.5:BACTERIA@prevalence=0.1"
    figure = plot_forest(title, METRICS["recall"], [("a", row)])
    make_svg(figure, "forest")
    [text] = [artist for artist in figure.texts if artist.get_text().startswith("sensitivity")]
    assert " ".join(text.get_text().split()) == title
    assert text.get_window_extent().x1 < figure.bbox.x1


def test_curves_differ_without_colours(hostile: Evaluation) -> None:
    lines = plot_roc(hostile).axes[0].lines[1:]
    assert len({str(line.get_linestyle()) for line in lines}) == len(lines) == 3


def test_training_curves_are_drawn(run: RunFolder) -> None:
    curves = (run.path / "curves.png").read_bytes()
    assert curves.startswith(b"\x89PNG"), "`finetune` draws it, from the command line or not"
    assert len(curves) > 5000
    log = [{"epoch": n, "train_loss": 1.0, "val_log_loss": 1.0, "val_top1": 0.5} for n in (1, 2)]
    styles = [line.get_linestyle() for axes in plot_training(log).axes for line in axes.lines]
    assert styles == ["-", "--", "-"], "equal curves are both seen"
    numbers = [{"epoch": n, "train_loss": 0.2, "val_rmse": 50.0, "val_r2": 0.5, "val_mae": 40.0} for n in (1, 2)]
    labels = [[str(line.get_label()) for line in axes.lines] for axes in plot_training(numbers).axes]
    assert labels == [["training"], ["MAE", "R2", "RMSE"]], "an error in the target's unit is beside no training loss"
    precise = [{"epoch": n, "train_loss": 1.0, "val_log_loss": 1.0, "val_top1": 0.992 + 0.002 * n} for n in (1, 2)]
    [accuracy] = plot_accuracy(precise).axes
    ticks = accuracy.yaxis.get_major_formatter().format_ticks(list(accuracy.get_yticks()))
    assert len(set(ticks)) == len(ticks), "each tick has its value: 99.4%, 99.6%"
    [loss, _] = plot_training(log[:1]).axes
    low, high = loss.get_xlim()
    assert [tick for tick in loss.get_xticks() if low <= tick <= high] == [1]


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
    assert describe_leakage(own) == [
        "No leakage found: none of these images is a duplicate or near-duplicate of a training image."
    ]
    title = "possible leakage: 3 groups (Dr. A) have images in both train and test"
    doubt = {**FINDING, "kind": "groups across splits", "falsifies": False, "severity": "note", "title": title}
    doubt |= {"effect": "test scores may be too high", "evidence": ["The groups are a guess"]}
    mine.write(AUDIT, {"findings": [doubt]})
    unsure = evaluate(mine.path)
    assert describe_leakage(unsure) == [
        "Possible leakage: 3 groups (Dr. A) have images in both train and test. Test scores may be too high."
    ]
    assert f"{title}. Test scores may be too high. The groups are a guess" in [note.text for note in unsure.notes]
    text = "No leakage found: none of these images is a duplicate or near-duplicate of a training image."
    assert describe_leakage(new) == [text]
    assert describe_leakage(known) == []
    assert new.overlap is not None
    frames = replace(new, overlap=replace(new.overlap, alike=3))
    assert describe_leakage(frames) == [
        "None of these images is a duplicate of a training image; near-duplicates are not recognised."
    ]
    conflict = {**FINDING, "kind": Kind.CONFLICTING_LABELS, "severity": "warning"}
    wrong = msgspec.convert({"findings": [conflict]}, AuditRecord)
    assert describe_leakage(replace(own, audit=wrong)) == describe_leakage(own), "wrong labels are no leakage"
    for split in ("train", "all"):
        assert describe_leakage(evaluate(mine.path, split=split)) == [], "a warning says it"
    assert describe_leakage(replace(new, split="train")) == [text], "a split of other data is not the run's"
    trust = answer_questions(known)[2].sentences
    assert isinstance(trust[0], Notice), "warnings come first"
    assert any("were trained on" in sentence.text for sentence in trust if isinstance(sentence, Notice))
    assert describe_leakage(replace(own, audit=None)) == ["It is not known whether training images are among these."]


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
    column, cell = Column("metric"), Cell("95.0", note="[90.0, 97.5]")
    assert Table(title="", columns=[column] * 2, rows=[("name", cell)]).width == "narrow"
    assert Table(title="", columns=[column] * 5, rows=[("name", *[cell] * 4)]).width == "medium"
    assert Table(title="", columns=[column] * 12, rows=[("name", *[cell] * 11)]).width == "wide"
