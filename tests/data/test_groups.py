from collections import Counter
from pathlib import Path

import pytest

from convnext_cli.data.groups import find_groups_across_splits, group_index
from convnext_cli.data.index import Index
from convnext_cli.data.scan import scan_folder
from convnext_cli.errors import UsageError
from tests.data.naming import FEWER, WITH_GROUPS, WITHOUT_GROUPS
from tests.images.dicom import XRAY, save_dicom


def make_index(*paths: str) -> Index:
    """Return an index of paths that begin with their class."""
    classes = tuple(sorted({path.split("/")[0] for path in paths}))
    ordered = tuple(sorted(paths))
    labels = tuple(classes.index(path.split("/")[0]) for path in ordered)
    return Index(
        root=Path("data"), classes=classes, paths=ordered, labels=labels, splits=("",) * len(paths), skipped={}
    )


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_repeated_identifiers_are_groups(name: str) -> None:
    index, grouping = group_index(make_index(*WITH_GROUPS[name]), "auto")
    assert grouping.groups == len(set(index.groups)) == (10 if name in FEWER else 16), grouping
    assert len(grouping.examples) == 3


@pytest.mark.parametrize("name", WITHOUT_GROUPS)
def test_names_without_identifier_give_no_groups(name: str) -> None:
    index, grouping = group_index(make_index(*WITHOUT_GROUPS[name]), "auto")
    assert grouping.source == "none", grouping
    assert index.groups == ()


def test_images_of_one_subject_share_a_group() -> None:
    for name in ("hexadecimal", "UUID", "copies", "eyes first", "crop first", "date, then patient"):
        index, _ = group_index(make_index(*WITH_GROUPS[name]), "auto")
        images = Counter(index.groups)
        assert set(images.values()) == {2 if name == "eyes first" else 3}, (name, images)


def test_identifiers_that_restart_in_each_class_are_dropped() -> None:
    """Test 120 X-rays whose numbers repeat in the other class, except four persons with three images each."""
    both = [f"{c}/person{p}_{c}_{3 * p + k}.jpeg" for p in range(54) for k, c in enumerate(("bacteria", "virus"))]
    four = [f"virus/person{200 + p}_virus_{900 + 3 * p + i}.jpeg" for p in range(4) for i in range(3)]
    index, grouping = group_index(make_index(*both, *four), "auto")
    assert grouping.source == "names"
    shared = {group: count for group, count in Counter(index.groups).items() if count > 1}
    assert shared == {f"person{200 + p}": 3 for p in range(4)}


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a+)+$", "((a{1,100}){1,100}){1,100}b"])
def test_pattern_that_takes_too_long_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext_cli.data.groups.MAX_SECONDS_PATH", 0.05)
    index = make_index(f"x/{'a' * 60}!.png", f"y/{'a' * 61}.png")
    with pytest.raises(UsageError, match=r"takes too long on x/a+!\.png|matches no path"):
        group_index(index, pattern)


def test_pattern_defines_the_groups() -> None:
    index = make_index("a/x7-1.png", "a/x7-2.png", "b/x8-1.png", "b/other.png")
    grouped, grouping = group_index(index, r"x(\d)")
    assert grouped.groups == ("7", "7", "b/other.png", "8")
    assert grouping.groups == 3
    assert group_index(index, "none")[0].groups == ()
    with pytest.raises(UsageError, match="is not a regular expression"):
        group_index(index, "(")
    with pytest.raises(UsageError, match="matches no path"):
        group_index(index, "person")


def test_dicom_attribute_defines_the_groups(tmp_path: Path) -> None:
    for name, patient in (("a/1", "P1"), ("a/2", "P2"), ("b/3", "P2"), ("b/4", "P3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_dicom(tmp_path / f"{name}.dcm", XRAY, PatientID=patient)
    index, grouping = group_index(scan_folder(tmp_path), "dicom:PatientID")
    assert index.groups == ("P1", "P2", "P2", "P3")
    assert grouping.source == "dicom"
    assert group_index(scan_folder(tmp_path), "auto")[0].groups == ("P1", "P2", "P2", "P3"), "found unasked"
    for path in tmp_path.rglob("*.dcm"):
        save_dicom(path, XRAY, PatientID="ANONYMOUS")
    assert group_index(scan_folder(tmp_path), "auto")[1].source == "none", "one ID on all files is no patient"
    with pytest.raises(UsageError, match="no file has the DICOM attribute StudyID"):
        group_index(index, "dicom:StudyID")


def test_split_folders_are_not_groups() -> None:
    paths = [f"{s}/{c}/p{p}/{i}.png" for s in ("train", "test") for c in "ab" for p in range(9) for i in (1, 2)]
    splits = tuple(path.split("/")[0] for path in sorted(paths))
    labels = tuple("ab".index(path.split("/")[1]) for path in sorted(paths))
    index = Index(
        root=Path("data"), classes=("a", "b"), paths=tuple(sorted(paths)), labels=labels, splits=splits, skipped={}
    )
    grouped, grouping = group_index(index, "auto")
    assert grouping.source == "folders"
    assert set(grouped.groups) == {f"p{p}" for p in range(9)}
    assert find_groups_across_splits(grouped.groups, grouped.splits) == {f"p{p}": {"train", "test"} for p in range(9)}


def test_chest_x_ray_patients_are_groups(shared_data: Path) -> None:
    index, grouping = group_index(scan_folder(shared_data / "cxr3"), "auto")
    straddling = find_groups_across_splits(index.groups, index.splits)
    assert sum(splits >= {"train", "test"} for splits in straddling.values()) == 170
    assert grouping.source == "names"
    assert group_index(scan_folder(shared_data / "pets"), "auto")[1].source == "none"
