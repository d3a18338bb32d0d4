"""Tables in the form of public chest X-ray sets are read as they are; the pictures are generated."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convnext_cli import evaluate, finetune
from convnext_cli.data.groups import group_index
from convnext_cli.data.sources import scan_data
from convnext_cli.errors import DataError
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.reading import OtherTaskError, TableOptions, find_number, sort_by_number
from tests.tasks.conftest import SETTINGS

CHEXPERT = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
FOLDER = "CheXpert-v1.0-small"


def draw(findings: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a picture in which each finding brightens its own cell of 8 x 8 px."""
    cells = np.zeros(16)
    cells[: len(findings)] = 190 * findings
    pixels = cells.reshape(4, 4).repeat(8, axis=0).repeat(8, axis=1) + random.integers(0, 40, (32, 32))
    return pixels.astype(np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_chexpert(root: Path, split: str, patients: range, place: Path) -> Path:
    """Write the pictures and the table of a split: two views of each patient."""
    random = np.random.default_rng(patients.start)
    rows: list[list[object]] = [["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT]]
    for patient in patients:
        findings = random.random(14) < 0.3
        findings[0] = not findings[1:].any() or random.random() < 0.1
        sex, age = random.choice(["Male", "Female"]), int(random.integers(18, 90))
        for view, (name, position) in enumerate((("frontal", "AP"), ("lateral", "")), start=1):
            path = f"{FOLDER}/{split}/patient{patient:05}/study1/view{view}_{name}.jpg"
            save(root / path, draw(findings, random))
            cells = [f"{float(value):.1f}" for value in findings]
            if split == "train":  # the labeller found a word for the finding, its denial, doubt, or nothing
                draws = random.random(14)
                cells = [
                    cell if draw_ < 0.6 else "-1.0" if draw_ < 0.7 and k else "" if cell == "0.0" else cell
                    for k, (cell, draw_) in enumerate(zip(cells, draws, strict=True))
                ]
                cells[0] = "1.0" if findings[0] else ""
            rows.append([path, sex, age, name.capitalize(), position, *cells])
    return write_table(place / f"{split}.csv", rows)


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with train.csv and valid.csv, beside the folder of the images."""
    root = tmp_path_factory.mktemp("chexpert")
    write_chexpert(root, "train", range(1, 101), root)
    write_chexpert(root, "valid", range(64541, 64571), root)
    return root


def test_chexpert_trains_and_is_evaluated_without_options(chexpert: Path, tmp_path: Path) -> None:
    finetune(chexpert / "train.csv", output=tmp_path / "run", **{**SETTINGS, "epochs": 6})
    split = RunFolder(tmp_path / "run").read_split()
    assert split.task.name == "multilabel"
    assert split.classes == CHEXPERT
    patients = [path.split("/")[2] for path in split.paths]
    assert len(set(zip(patients, split.splits, strict=True))) == len(set(patients)) == 100
    evaluation = evaluate(tmp_path / "run", chexpert / "valid.csv")
    metrics = evaluation.metrics
    assert metrics.images == 60
    assert [entry.name for entry in metrics.per_class] == list(CHEXPERT)
    assert metrics.macro_roc_auc > 0.8
    assert evaluation.intervals.clustered
    assert evaluation.intervals.units == 30


@pytest.mark.parametrize("is_inside", [False, True], ids=["beside the folder", "inside the folder"])
def test_chexpert_labels_and_patients_are_read(is_inside: bool, tmp_path: Path) -> None:
    """The download has the tables inside the folder that their paths begin with."""
    table = write_chexpert(tmp_path, "train", range(1, 41), tmp_path / FOLDER if is_inside else tmp_path)
    index, grouping = group_index(scan_data(table), "auto")
    assert index.classes == CHEXPERT
    assert len(index) == 80
    assert grouping.groups == 40
    assert any("not used: Sex, Age, Frontal/Lateral, AP/PA" in note for note in index.notes)
    assert any("No Finding: no cell is 0, so blank cells are read as 0" in note for note in index.notes)
    targets = index.targets()
    assert set(np.unique(targets[:, 0])) == {0, 1}
    assert {-1.0, 0.0, 1.0} <= set(np.unique(targets[:, 1:][~np.isnan(targets[:, 1:])]))
    assert np.isnan(targets[:, 1:]).any()


def test_nih_findings_are_several_labels(tmp_path: Path) -> None:
    names = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule")
    head = [
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
        "OriginalImage[Width",
        "Height]",
        "OriginalImagePixelSpacing[x",
        "y]",
        "",
    ]
    random = np.random.default_rng(0)
    rows: list[list[object]] = [list(head)]
    for number in range(120):
        patient, visit = divmod(number, 2)
        findings = random.random(6) < 0.25
        path = f"{patient + 1:08}_{visit:03}.png"
        save(tmp_path / f"images_{1 + number // 60:03}/images/{path}", draw(findings, random))
        text = "|".join(name for name, value in zip(names, findings, strict=True) if value) or "No Finding"
        rows.append([path, text, visit, patient + 1, 58, "M", "PA", 2682, 2749, 0.143, 0.143, ""])
    index = scan_data(write_table(tmp_path / "Data_Entry_2017.csv", rows))
    assert (index.task.name, index.classes) == ("multilabel", tuple(sorted((*names, "No Finding"))))
    assert len(set(index.groups)) == 60
    targets = index.targets()
    none = index.classes.index("No Finding")
    assert ((targets[:, none] == 1) == (np.delete(targets, none, axis=1).sum(axis=1) == 0)).all()
    assert any("group 'Patient ID', label 'Finding Labels', path 'Image Index'" in note for note in index.notes)


def test_vindr_findings_by_identifiers_without_suffix(tmp_path: Path) -> None:
    names = ("Aortic enlargement", "Cardiomegaly", "Pleural effusion", "Pneumothorax", "No finding")
    random = np.random.default_rng(0)
    rows: list[list[object]] = [["image_id", "rad_id", *names]]
    for number in range(60):
        findings = random.random(5) < 0.3
        findings[4] = not findings[:4].any()
        name = random.bytes(16).hex()
        save(tmp_path / f"train/{name}.png", draw(findings, random))
        rows.append([name, f"R{1 + number % 3}", *findings.astype(int)])
    index = scan_data(write_table(tmp_path / "image_labels_train.csv", rows))
    assert (index.task.name, index.classes) == ("multilabel", names)
    assert len(index) == 60
    assert index.groups == ()
    by_name = {path.rpartition("/")[2]: index.values[row] for row, path in enumerate(index.paths)}
    assert all(by_name[f"{row[0]}.png"] == tuple(map(float, row[2:])) for row in rows[1:])  # type: ignore[arg-type]
    assert any("not used: rad_id" in note for note in index.notes)


def test_vindr_rows_of_three_readers_are_what_most_say(tmp_path: Path) -> None:
    """As in the training set of VinDr-CXR; a blank cell is no vote, and a tie is uncertain."""
    names = ("Aortic enlargement", "Cardiomegaly", "No finding")
    votes: dict[str, tuple[tuple[object, ...], ...]] = {
        "a": ((1, 1, 0), (1, 0, 0), (0, 0, 0)),
        "b": ((0, 0, 1), (0, 0, 1), (0, 0, 1)),
        "c": ((1, "", 0), (0, "", 0)),
        "d": ((1, -1, ""), ("", -1, 0), ("", 1, 1)),
    }
    rows: list[list[object]] = [["image_id", "rad_id", *names]]
    for name, of_image in votes.items():
        save(tmp_path / f"train/{name}.png", np.full((32, 32), 99, np.uint8))
        rows += [[name, f"R{reader}", *values] for reader, values in enumerate(of_image)]
    index = scan_data(write_table(tmp_path / "image_labels_train.csv", rows))
    expected = np.array([[1, 0, 0], [0, 0, 1], [-1, np.nan, 0], [1, 1, -1]], np.float32)
    np.testing.assert_array_equal(index.targets(), expected)
    assert index.skipped == {}
    [note] = [note for note in index.notes if "several rows" in note]
    assert note.startswith("3 images have several rows with different labels: a label is the majority")


def test_vindr_boxes_with_one_finding_in_each_row_are_joined_if_asked(tmp_path: Path) -> None:
    rows: list[list[object]] = [["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]]
    findings = {"a": ("Cardiomegaly", "Nodule/Mass", "Cardiomegaly"), "b": ("No finding",) * 3, "c": ("Nodule/Mass",)}
    for name, of_image in findings.items():
        save(tmp_path / f"train/{name}.png", np.full((32, 32), 99, np.uint8))
        rows += [
            [name, label, len(label), f"R{k}", *([1.5 + k, 2.25, 9.75, 9.5] if label != "No finding" else [""] * 4)]
            for k, label in enumerate(of_image)
        ]
    table = write_table(tmp_path / "train.csv", rows)
    with pytest.raises(DataError, match="--task multilabel joins its rows"):
        scan_data(table)
    index = scan_data(table, table_options=TableOptions(task="multilabel", label_column="class_name"))
    assert index.classes == ("Cardiomegaly", "No finding", "Nodule/Mass")
    assert index.values == ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    assert "1 image has several rows with different labels: an image has the labels of all its rows" in index.notes


def test_one_label_per_image_is_not_read_as_several(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path / f"{name}.png", np.full((32, 32), 99, np.uint8))
    table = write_table(tmp_path / "table.csv", [["path", "label"], *([f"{name}.png", name > "b"] for name in "abcd")])
    with pytest.raises(OtherTaskError, match="no cell of column 'label'"):
        scan_data(table, table_options=TableOptions(task="multilabel"))


@pytest.mark.parametrize(
    ("name", "number"),
    [("grade-1", 1), ("KL-grade-3", 3), ("2_mild", 2), ("age-10", 10), ("x_-5", -5), ("-3", -3), ("t -0.5", -0.5)],
)
def test_hyphen_after_a_letter_is_no_minus_sign(name: str, number: float) -> None:
    assert find_number(name) == number


def test_hyphenated_grades_are_in_their_order() -> None:
    assert sort_by_number(("grade-2", "grade-0", "grade-1")) == ("grade-0", "grade-1", "grade-2")
    assert sort_by_number(("0", "1", "\u22122")) == ("\u22122", "0", "1")
