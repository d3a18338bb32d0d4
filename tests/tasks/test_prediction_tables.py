"""The tables of predictions: every number of an evaluation can be computed from them."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convnext_cli import evaluate, predict, write_report
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.reports import predictions
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.registry import TASKS

Table = list[dict[str, str]]


def read(path: Path) -> Table:
    """Return the rows of a table, each by its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_tables(run: RunFolder, folder: Path, per: str = "image") -> tuple[Evaluation, RunFolder]:
    """Evaluate a copy of a run, with its report."""
    shutil.copytree(run.path, folder)
    evaluation = evaluate(folder, per=per)  # type: ignore[arg-type]
    write_report(evaluation)
    return evaluation, RunFolder(folder)


@pytest.fixture(scope="module")
def single(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Table]:
    """The evaluation of the digits, and its table."""
    evaluation, copy = write_tables(run, tmp_path_factory.mktemp("single") / "run")
    return evaluation, read(copy.path / "predictions.csv")


def test_each_image_has_its_label_and_what_predict_says(single: tuple[Evaluation, Table]) -> None:
    evaluation, table = single
    index, rows = evaluation.test_set.index, evaluation.test_set.rows
    labels = {index.paths[row]: index.classes[index.labels[row]] for row in rows}
    assert {row["path"]: row["label"] for row in table} == labels
    said = predict([index.root / row["path"] for row in table], evaluation.run)
    for row, one in zip(table, said, strict=True):
        assert row["class"] == one.classes[0]
        known = dict(zip(one.classes, one.probabilities, strict=True))
        assert [float(row[f"p({name})"]) for name in known] == pytest.approx(list(known.values()), abs=1e-4)


def test_metrics_follow_from_the_table(single: tuple[Evaluation, Table]) -> None:
    evaluation, table = single
    assert np.mean([row["class"] == row["label"] for row in table]) == pytest.approx(evaluation.metrics.top1)
    losses = [-np.log(float(row[f"p({row['label']})"])) for row in table]
    assert np.mean(losses) == pytest.approx(evaluation.metrics.log_loss, rel=1e-6)


def test_wrong_predictions_come_first_the_most_confident_first(single: tuple[Evaluation, Table]) -> None:
    _, table = single
    wrong = [row["class"] != row["label"] for row in table]
    assert wrong == sorted(wrong, reverse=True)
    confidences = [float(row["probability"]) for row in table]
    first = sum(wrong)
    assert confidences[:first] == sorted(confidences[:first], reverse=True)
    assert confidences[first:] == sorted(confidences[first:])


@pytest.mark.parametrize("kind", [name for name in TASKS if name != "single"])
def test_targets_and_predictions_of_other_tasks(
    kind: str, task_run: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    evaluation, copy = write_tables(task_run(kind), tmp_path / "run", per="group")
    table, index, metrics = read(copy.path / "predictions.csv"), evaluation.test_set.index, evaluation.metrics
    row_of = {path: row for row, path in enumerate(index.paths)}
    assert {row["path"] for row in table} == {index.paths[row] for row in evaluation.test_set.rows}
    assert all(row["group"] == index.groups[row_of[row["path"]]] for row in table)
    for row in table if index.values else ():
        cells = [row[f"target: {name}"] for name in evaluation.images.classes]
        np.testing.assert_array_equal([float(cell or "nan") for cell in cells], index.values[row_of[row["path"]]])
    if kind == "regression":
        errors = [abs(float(row["value"]) - float(row["target: brightness"])) for row in table]
        assert np.mean(errors) == pytest.approx(metrics.mae)
        assert errors == sorted(errors, reverse=True)
    elif kind == "ordinal":
        assert np.mean([row["class"] == row["label"] for row in table]) == pytest.approx(metrics.top1)
    else:
        known = [row for row in table if row["target: NW"] in ("0", "1")]
        brier = np.mean([(float(row["p(NW)"]) - float(row["target: NW"])) ** 2 for row in known])
        assert brier == pytest.approx(next(each.label_brier for each in metrics.per_class if each.name == "NW"))
    groups = read(copy.path / "predictions-groups.csv")
    assert evaluation.per_group is not None
    assert [row["images"] for row in groups] == ["2"] * evaluation.per_group.groups
    assert sorted(row["group"] for row in groups) == sorted({row["group"] for row in table})
    if kind == "ordinal":
        right = [row["class"] == row["label"] for row in groups]
        assert np.mean(right) == pytest.approx(evaluation.per_group.metrics.top1)


def test_many_classes_have_no_column_each(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "MAX_CLASSES", 2)
    _, copy = write_tables(run, tmp_path / "run")
    assert list(read(copy.path / "predictions.csv")[0]) == ["path", "group", "label", "class", "probability"]
