import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convnext_cli import evaluate
from convnext_cli.cli.evaluation_view import show_subgroups
from convnext_cli.data.attributes import Attribute
from convnext_cli.errors import DataError, UsageError
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.subgroups import (
    SubgroupEvaluation,
    describe_gaps,
    list_notes,
    measure_subgroups,
)
from convnext_cli.metrics.intervals import Estimate
from convnext_cli.metrics.registry import METRICS, format_ci
from convnext_cli.metrics.thresholds import Target, Threshold
from convnext_cli.progress import finish
from convnext_cli.reports.section import Cell, ReportData, Table
from convnext_cli.reports.subgroups import show_subgroups as report_subgroups
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.single import Single
from tests.conftest import Convnext


def draw_images(gap: float, *, images: int = 400, classes: int = 2) -> tuple[EvaluatedImages, Attribute]:
    """Return images of a classifier that is worse by `gap` for one sex, two of each patient, and their sex."""
    random = np.random.default_rng(3)
    patients = np.arange(images) // 2
    labels = random.integers(classes, size=patients.max() + 1)[patients]
    is_woman = (random.random(patients.max() + 1) < 0.4)[patients]
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2.0 - gap * is_woman
    scored = EvaluatedImages(
        task=Single(),
        classes=tuple("abcdefg"[:classes]),
        logits=logits,
        targets=labels,
        groups=[f"p{patient}" for patient in patients],
    )
    values = tuple("F" if woman else "M" for woman in is_woman)
    return scored, Attribute(name="sex", source="column 'sex' of a.csv", values=values, levels=("F", "M"))


def measure(scored: EvaluatedImages, *attributes: Attribute) -> SubgroupEvaluation:
    return finish(measure_subgroups(scored, attributes))


def test_planted_gap_of_two_classes_is_significant_and_an_absent_one_is_not() -> None:
    result = measure(*draw_images(1.5))
    assert (result.tests, result.clustered, result.positive) == (4, True, "b")
    names = {(name, subgroup.name, metric.key) for name, subgroup, metric in result.list_significant()}
    assert ("sex", "F", "recall") in names
    assert not {part for part in names if part[1] == "M"}, "the worse one of two is named"
    [women, men] = result.groupings[0].subgroups
    assert women.images + men.images == 400
    for one, two in zip(women.metrics, men.metrics, strict=True):
        assert one.gap.value == pytest.approx(-two.gap.value)  # type: ignore[operator]
        assert one.p_holm == two.p_holm
        assert one.gap.interval is not None
        assert one.gap.interval.low <= one.gap.value <= one.gap.interval.high  # type: ignore[operator]
    assert "sex F: sensitivity (recall) of b" in " ".join(describe_gaps(result))
    nothing = measure(*draw_images(0.0))
    assert nothing.list_significant() == []
    assert describe_gaps(nothing)[0].startswith("No gap to the rest is significant at 0.05")
    scored, sex = draw_images(0.0)
    alone = measure(scored, replace(sex, values=("F",) * len(sex.values), levels=("F",)))
    assert (alone.tests, describe_gaps(alone)) == (0, ["No gap to the rest could be tested."])


def test_significant_gaps_are_of_the_worse_subgroup_and_sorted_by_their_p_values() -> None:
    result = measure(*draw_images(1.5))
    [grouping] = result.groupings
    p_values = {"recall": 0.03, "specificity": 0.5, "roc_auc": 0.02, "ece": 0.01}
    subgroups = [
        replace(
            subgroup,
            metrics=tuple(
                replace(metric, p_holm=p_values[metric.key], gap=Estimate(gap, None)) for metric in subgroup.metrics
            ),
        )
        for subgroup, gap in zip(grouping.subgroups, (0.2, -0.2), strict=True)  # ECE of women, recall of men
    ]
    rows = replace(result, groupings=(replace(grouping, subgroups=tuple(subgroups)),)).list_significant()
    assert [(subgroup.name, metric.key) for _, subgroup, metric in rows] == [
        ("F", "ece"),
        ("M", "roc_auc"),
        ("M", "recall"),
    ]


def test_planted_gap_among_many_subgroups_can_be_significant() -> None:
    scored, sex = draw_images(0.0, images=320, classes=3)
    patients = np.arange(320) // 2
    is_worse = (patients % 5 == 0)[:, None]  # at the first of 35 sites
    worse = replace(scored, logits=np.where(is_worse, -scored.logits, scored.logits))
    sites = tuple(f"{0 if patient % 5 == 0 else 1 + patient % 34:02d}" for patient in patients)
    result = measure(worse, replace(sex, values=sites, levels=tuple(sorted(set(sites)))))
    assert result.tests > 100
    assert {subgroup.name for _, subgroup, _ in result.list_significant()} == {"00"}


def test_metrics_of_a_subgroup_are_those_of_its_images_alone() -> None:
    scored, sex = draw_images(1.0)
    women = measure(scored, sex).groupings[0].subgroups[0]
    alone = scored.select(np.flatnonzero(np.array(sex.values) == "F"))
    metrics = alone.task.compute_metrics(alone.logits, alone.targets, alone.classes)
    values = {result.key: result.estimate.value for result in women.metrics}
    assert values["recall"] == metrics.per_class[1].recall
    assert values["roc_auc"] == metrics.per_class[1].roc_auc
    assert values["ece"] == pytest.approx(metrics.ece)
    assert women.prevalence is not None
    assert women.prevalence.value == pytest.approx((alone.targets == 1).mean())
    assert women.groups == len(set(alone.groups or ()))


def test_several_classes_are_compared_by_overall_metrics() -> None:
    result = measure(*draw_images(1.5, images=600, classes=4))
    [women, _] = result.groupings[0].subgroups
    assert [result.key for result in women.metrics] == ["balanced_accuracy", "macro_roc_auc", "ece"]
    assert result.positive is None
    assert women.prevalence is None


def test_thresholds_of_targets_decide() -> None:
    scored, sex = draw_images(0.5)
    threshold = Threshold(target=Target("sensitivity", 0.9, "a"), threshold=0.3, reached=0.9, images=50)
    calibration = Calibration(weights="0", images=60, thresholds=(threshold,))
    result = measure(replace(scored, calibration=calibration), sex)
    women = result.groupings[0].subgroups[0]
    assert result.positive == "a"
    assert [result.title for result in women.metrics[:2]] == [
        "sensitivity (recall) of a at sensitivity=0.9:a",
        "specificity of a at sensitivity=0.9:a",
    ]
    inside = np.array(sex.values) == "F"
    probabilities = scored.task.activate(scored.logits)[:, 0]
    expected = (probabilities >= 0.3)[inside & (scored.targets == 0)].mean()
    assert women.metrics[0].estimate.value == pytest.approx(expected)
    assert women.metrics[0].target == "a at sensitivity=0.9:a"
    expected = (probabilities < 0.3)[inside & (scored.targets != 0)].mean()
    assert women.metrics[1].estimate.value == pytest.approx(expected)
    assert [result.key for result in women.metrics] == ["recall", "specificity", "roc_auc", "ece"]


def test_class_that_is_named_like_a_target_is_none() -> None:
    scored, sex = draw_images(0.5)
    result = measure(replace(scored, classes=("cat", "dog at home")), sex)
    metrics = result.groupings[0].subgroups[0].metrics
    assert {metric.of for metric in metrics} == {"", "dog at home"}
    assert {metric.target for metric in metrics} == {""}


def test_small_subgroups_and_unknown_values_are_said() -> None:
    scored, _ = draw_images(0.0)
    values = np.array(["tiny"] * 6 + [""] * 14 + ["large"] * 380, object)
    for label, number in ((0, 40), (1, 4)):
        values[np.flatnonzero((scored.targets == label) & (values == "large"))[:number]] = "most a"
    levels = ("large", "most a", "tiny")
    result = measure(scored, Attribute(name="site", source="s", values=tuple(values), levels=levels, example="a.png"))
    left_out = "14 images without a value are left out, such as a.png"
    assert list_notes(result)["site"] == ["s", left_out, "most a is small (4 of b)", "tiny is small (3 groups)"]
    tiny = result.groupings[0].subgroups[2]
    assert (tiny.images, tiny.groups, tiny.small) == (6, 3, "3 groups")


def test_class_without_images_of_a_subgroup_is_named_where_averages_leave_it_out() -> None:
    scored, _ = draw_images(0.0, images=600, classes=4)
    values = tuple("a" if target != 3 else "b" for target in scored.targets)
    result = measure(scored, Attribute(name="site", source="s", values=values, levels=("a", "b")))
    [first, second] = result.groupings[0].subgroups
    name = scored.classes[3]
    assert first.small == f"0 of {name}, which averages leave out"
    assert second.small is not None
    assert second.small.count("averages leave out") == 3
    two, _ = draw_images(0.0)
    values = tuple("a" if target else "b" for target in two.targets)
    [first, _] = (
        measure(two, Attribute(name="site", source="s", values=values, levels=("a", "b"))).groupings[0].subgroups
    )
    assert first.small is not None
    assert "averages" not in first.small, "there are none of two classes"


def test_single_value_has_no_gap() -> None:
    scored, _ = draw_images(0.0)
    result = measure(scored, Attribute(name="site", source="s", values=("X",) * 400, levels=("X",)))
    assert (result.tests, result.list_significant()) == (0, [])
    assert list_notes(result)["site"] == ["s", "one value only, so there is no gap"]


def test_each_target_has_a_table_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, sex = draw_images(1.5)
    result = measure(scored, sex)
    [grouping] = result.groupings
    targets = ("b at sensitivity=0.95:b", "b at specificity=0.9:b")
    several = [
        replace(
            subgroup,
            metrics=(*(replace(subgroup.metrics[0], of=of, target=of) for of in targets), *subgroup.metrics[1:]),
        )
        for subgroup in grouping.subgroups
    ]
    result = replace(result, groupings=(replace(grouping, subgroups=tuple(several)),))
    show_subgroups(result)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split()[:2] == ["sex", "F"] for line in lines) == 6, "three tables of metrics and three of gaps"
    assert [line for line in lines if line.startswith("b at")] == [f"{target}:" for target in targets]
    assert max(map(len, lines)) < 200
    monkeypatch.setenv("COLUMNS", "30")
    show_subgroups(result)
    assert "b at specificity=0.9:b:" in capsys.readouterr().out, "too narrow for one line per subgroup"


def test_two_classes_are_shown_with_prevalence_and_gaps_on_the_terminal_and_in_the_report(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    scored, sex = draw_images(1.5)
    alone = Attribute(name="site", source="s", values=("X",) * 400, levels=("X",))
    result = measure(scored, sex, alone)
    [women, _] = result.groupings[0].subgroups
    show_subgroups(result)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    [metrics, gaps] = [line for line in lines if line[:2] == ["sex", "F"]]
    assert women.prevalence is not None
    prevalence = f"{100 * women.prevalence.value:.1f}"  # type: ignore[operator]
    assert metrics[2:5] == [str(women.images), str(women.groups), prevalence]
    significant = [metric for metric in women.metrics if metric.is_significant]
    assert [word[-1] for word in gaps].count("*") == len(significant) > 0
    assert ["site", "X", *["-"] * len(women.metrics)] in lines, "nothing to compare with"

    evaluation = replace(evaluate(run.path, split="val"), subgroups=result)
    section = report_subgroups(ReportData(evaluation=evaluation, run=run, config=run.read_config()))
    assert section is not None
    _, metric_table, gap_table = section.blocks
    assert isinstance(metric_table, Table)
    assert isinstance(gap_table, Table)
    place = [column.heading for column in metric_table.columns].index("b %")
    assert metric_table.rows[0][place] == Cell(text=prevalence, note=format_ci(women.prevalence.interval))
    assert [row[0] for row in gap_table.rows] == ["sex F", "sex M", "site X"]
    assert set(gap_table.rows[2][1:]) == {Cell(text="-")}
    for cell, metric in zip(gap_table.rows[0][1:], women.metrics, strict=True):
        assert isinstance(cell, Cell)
        assert cell.text.endswith(f" (p = {metric.p_holm:.2g})")
        assert cell.note == format_ci(metric.gap.interval, METRICS[metric.key].format_signed)


@pytest.fixture
def table(run: RunFolder, tmp_path: Path) -> Path:
    """A table with a sex and an age for each image of the digits."""
    index = run.read_split()
    with (tmp_path / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "sex", "age"])
        writer.writerows([path, "FM"[row % 2], 5 + row % 80] for row, path in enumerate(index.paths))
    return tmp_path / "patients.csv"


def test_eval_shows_subgroups_and_writes_them_as_json(convnext: Convnext, run: RunFolder, table: Path) -> None:
    options = ("--split", "val", "--subgroups", "sex,age:18,65", "--subgroup-table", table, "--no-report")
    shown = convnext("eval", run.path, *options)
    assert shown.code == 0
    assert "sex: column 'sex' of patients.csv" in shown.out
    assert "age: column 'age' of patients.csv; cut at 18, 65 (as asked for)" in shown.out
    assert "age 18 to < 65" in shown.out
    assert "Holm-corrected for" in shown.out
    record = json.loads(convnext("eval", run.path, *options, "--json").out)["subgroups"]
    [sex, age] = record["groupings"]
    assert [group["name"] for group in sex["subgroups"]] == ["F", "M"]
    assert sum(group["images"] for group in age["subgroups"]) == 60
    result = sex["subgroups"][0]["metrics"][0]
    assert result["estimate"]["interval"].keys() == {"low", "high"}
    assert 0 < result["p_holm"] <= 1


def test_wrong_subgroups_are_refused_before_the_model_is_run(run: RunFolder, table: Path) -> None:
    with pytest.raises(DataError, match="no table with a column 'sex'"):
        evaluate(run.path, split="val", subgroups="sex")
    with pytest.raises(DataError, match="has no column 'site'"):
        evaluate(run.path, split="val", subgroups="site", subgroup_table=table)
    with pytest.raises(UsageError, match="names no columns"):
        evaluate(run.path, split="val", subgroup_table=table)
