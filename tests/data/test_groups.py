from pathlib import Path

import pytest

from convnext_cli.data.groups import find_straddling, group_index
from convnext_cli.data.scan import Index, scan_folder
from convnext_cli.errors import UsageError
from tests.data.test_decode import XRAY, save_dicom


def make_index(*paths: str) -> Index:
    """An index of paths that begin with their class."""
    classes = tuple(sorted({path.split("/")[0] for path in paths}))
    ordered = tuple(sorted(paths))
    labels = tuple(classes.index(path.split("/")[0]) for path in ordered)
    return Index(
        root=Path("data"), classes=classes, paths=ordered, labels=labels, splits=("",) * len(paths), skipped={}
    )


TWO, TWENTY = (1, 2), range(20)
WITH = {
    "patient and image": [f"{c}/person{1000 + p}_{c}_{p * 3 + i}.jpeg" for c in "ab" for p in TWENTY for i in TWO],
    "series and image": [f"{c}/IM-{k}{p:03}-{i:04}.jpeg" for k, c in enumerate("ab") for p in TWENTY for i in TWO],
    "a constant number first": [
        f"{c}/N2-IM-{p + 50 * (c == 'b')}-{i:04}.png" for c in "ab" for p in TWENTY for i in TWO
    ],
    "both eyes": [f"{c}/{p + 50 * (c == 'b')}_{s}.jpeg" for c in "ab" for p in TWENTY for s in ("left", "right")],
    "folders": [f"{c}/p{p:03}/{i}.png" for c in "ab" for p in range(10) for i in range(3)],
}
WITHOUT = {
    "numbered": [f"{c}/{i:04}.png" for c in "ab" for i in range(50)],
    "word and number": [f"{c}/{c}.{i}.jpg" for c in ("cat", "dog") for i in range(50)],
    "number and word": [f"{c}/{i}_{c}.jpg" for c in ("cat", "dog") for i in range(50)],
    "the class's own name": [f"n{c}4567/n{c}4567_{i}.JPEG" for c in (1, 2, 3) for i in range(50)],
    "random": [f"{c}/{'abcdefgh'[i % 8]}{'stuvwxyz'[i // 8]}.png" for c in "ab" for i in range(50)],
    "version last": [f"{c}/img_{i + 50 * (c == 'b')}_v2.png" for c in "ab" for i in range(50)],
    "one folder for all": [f"{c}/images/{i}.png" for c in "ab" for i in range(50)],
}


@pytest.mark.parametrize("name", WITH)
def test_identifiers_that_repeat_are_found(name: str) -> None:
    index, grouping = group_index(make_index(*WITH[name]), "auto")
    per_group = 3 if name == "folders" else 2
    assert grouping.groups == len(set(index.groups))
    if name == "patient and image":  # both classes number their patients alike: taken for the same ones
        assert grouping.groups == 20
    elif name != "folders":
        assert grouping.groups == len(index) // per_group
    assert len(grouping.examples) == 3
    assert all(group in path for path, group in grouping.examples)


@pytest.mark.parametrize("name", WITHOUT)
def test_names_without_identifier_give_no_groups(name: str) -> None:
    index, grouping = group_index(make_index(*WITHOUT[name]), "auto")
    assert grouping.source == "none", grouping
    assert index.groups == ()


def test_a_pattern_decides() -> None:
    index = make_index("a/x7-1.png", "a/x7-2.png", "b/x8-1.png", "b/other.png")
    grouped, grouping = group_index(index, r"x(\d)")
    assert grouped.groups == ("7", "7", "b/other.png", "8")
    assert grouping.groups == 3
    assert group_index(index, "none")[0].groups == ()
    with pytest.raises(UsageError, match="is no regular expression"):
        group_index(index, "(")
    with pytest.raises(UsageError, match="is found in no path"):
        group_index(index, "person")


def test_a_dicom_attribute_decides(tmp_path: Path) -> None:
    for name, patient in (("a/1", "P1"), ("a/2", "P2"), ("b/3", "P2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_dicom(tmp_path / f"{name}.dcm", XRAY, PatientID=patient)
    index, grouping = group_index(scan_folder(tmp_path), "dicom:PatientID")
    assert index.groups == ("P1", "P2", "P2")
    assert grouping.source == "dicom"
    with pytest.raises(UsageError, match="no file has the DICOM attribute StudyID"):
        group_index(index, "dicom:StudyID")


def test_own_splits_are_passed_over_when_folders_are_groups() -> None:
    paths = [f"{s}/{c}/p{p}/{i}.png" for s in ("train", "test") for c in "ab" for p in range(9) for i in (1, 2)]
    splits = tuple(path.split("/")[0] for path in sorted(paths))
    labels = tuple("ab".index(path.split("/")[1]) for path in sorted(paths))
    index = Index(
        root=Path("data"), classes=("a", "b"), paths=tuple(sorted(paths)), labels=labels, splits=splits, skipped={}
    )
    grouped, grouping = group_index(index, "auto")
    assert grouping.source == "folders"
    assert set(grouped.groups) == {f"p{p}" for p in range(9)}
    assert find_straddling(grouped.groups, grouped.splits) == {f"p{p}": {"train", "test"} for p in range(9)}


def test_the_patients_of_the_chest_x_rays_are_found(shared_data: Path) -> None:
    index, grouping = group_index(scan_folder(shared_data / "cxr3"), "auto")
    straddling = find_straddling(index.groups, index.splits)
    assert sum(splits >= {"train", "test"} for splits in straddling.values()) == 170
    assert grouping.source == "names"
    assert group_index(scan_folder(shared_data / "pets"), "auto")[1].source == "none"
