import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from convnext_cli.data.groups import find_groups_across_splits, group_index, group_like, group_steps, share_numbers
from convnext_cli.data.index import Index, select_rows
from convnext_cli.data.scan import scan_folder
from convnext_cli.errors import UsageError
from tests.conftest import run_all
from tests.data.naming import FEWER, WITH_GROUPS, WITHOUT_GROUPS, uuid
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


def test_few_folders_of_words_are_no_groups_of_numbers() -> None:
    """Such as the classes of another task: every image would be in the training split."""

    def group(folders: list[str]) -> tuple[int, str]:
        paths = tuple(f"images/{folder}/{folder[0]}{chr(97 + k)}.png" for folder in folders for k in range(9))
        index = replace(make_index(*paths), classes=("age",), values=tuple((float(k),) for k in range(len(paths))))
        grouping = group_index(index, "auto")[1]
        return grouping.groups, grouping.rule

    assert group(["NORMAL", "SICK", "VIRUS"])[0] == 0
    assert group(["p1", "p2", "p3"]) == (3, "the folder in the path")
    assert group([letter * 2 for letter in "ABCDEFGHIJ"])[0] == 10


@pytest.mark.parametrize("name", WITHOUT_GROUPS)
def test_names_without_identifier_give_no_groups(name: str) -> None:
    index, grouping = group_index(make_index(*WITHOUT_GROUPS[name]), "auto")
    assert grouping.source == "none", grouping
    assert index.groups == ()


@pytest.mark.parametrize("name", ["{uuid}", "IMG_{uuid}", "{uuid}_{number}", "{number:05}_{uuid}"])
@pytest.mark.parametrize("write", [str.lower, str.upper], ids=["lower", "upper"])
def test_parts_of_uuids_that_repeat_by_chance_are_no_groups(name: str, write: Callable[[str], str]) -> None:
    """Of 3,000 random names, most have the same four digits in one place as another one."""
    paths = [f"{'ab'[k % 2]}/{name.format(uuid=write(uuid(k)), number=k)}.jpg" for k in range(3000)]
    assert group_index(make_index(*paths), "auto")[1].source == "none"


def test_numbered_folders_in_each_class_are_groups() -> None:
    index = make_index(*(f"{c}/clip_{v}/{k}.png" for c in ("run", "walk") for v in range(5) for k in range(6)))
    assert group_index(index, "auto")[1].source == "folders"
    views = make_index(*(f"{c}/T{v}/{k}.png" for c in ("ill", "well") for v in range(4) for k in range(6)))
    assert group_index(views, "auto")[1].source == "none"


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


def test_an_identifier_of_two_classes_is_cut_where_numbers_restart() -> None:
    both = [f"{c}/p{p}_{c}_0.png" for p in range(30) for c in ("cat", "dog")]
    several = [f"{c}/p{p}_{c}_{i}.png" for p in (3, 4) for c in ("cat", "dog") for i in (1, 2)]
    index, grouping = group_index(make_index(*both, *several, "dog/p5_dog_1.png"), "auto")
    shared = {group: count for group, count in Counter(index.groups).items() if count > 1}
    assert shared == {"p3 (0)": 3, "p3 (1)": 3, "p4 (0)": 3, "p4 (1)": 3, "p5": 2}
    assert "restart in each class, so only images of one class are together" in grouping.rule


def draw_eyes(numbers: range, classes: int) -> list[str]:
    """Return paths of both eyes of patients, in class folders of grades that hardly depend on each other."""
    grades = random.Random(0)
    return [f"{grades.randrange(classes)}/{p}_{eye}.jpeg" for p in numbers for eye in ("left", "right")]


@pytest.mark.parametrize("classes", [3, 5])
def test_both_eyes_of_a_patient_are_a_group_though_their_grades_differ(classes: int) -> None:
    """No number has the same eye twice: numbers that restart in each class would often have it."""
    paths = draw_eyes(range(10, 110), classes)
    index, grouping = group_index(make_index(*paths), "auto")
    assert set(Counter(index.groups).values()) == {2}
    assert grouping.rule == "the repeated part of the file names"


def test_tiles_of_a_scene_share_one_numbering_though_their_classes_differ() -> None:
    """No place of a scene is in two classes: of scenes whose numbers restart in each class, most would be."""
    draw = random.Random(0)
    places = [f"scene{scene:02}_{256 * x}_{256 * y}.png" for scene in range(12) for x in (0, 1, 2) for y in (0, 1)]
    index, _ = group_index(make_index(*(f"{draw.choice('ab')}/{place}" for place in places)), "auto")
    assert set(Counter(index.groups).values()) == {6}
    assert share_numbers(index, dict(enumerate(index.groups)))
    restarted, _ = group_index(make_index(*(f"{c}/{place}" for c in "ab" for place in places)), "auto")
    assert not share_numbers(restarted, dict(enumerate(restarted.groups)))


@pytest.mark.parametrize("patient", ["", "_p{}"])
def test_the_number_to_be_predicted_is_no_group(patient: str) -> None:
    """Such as the age in UTKFace's names: each age would be in one split only."""
    ages = [20 + k % 25 for k in range(100)]
    paths = tuple(f"faces/{age}_{k // 4 % 2}{patient.format(k // 4)}_2017{k:05}.jpg" for k, age in enumerate(ages))
    values = tuple((float(age),) for age in ages)
    index = replace(make_index(*paths), paths=paths, values=values, task_record={"name": "regression"})
    groups = group_index(index, "auto")[0].groups
    assert sorted(set(Counter(groups).values())) == ([4] if patient else [])


def test_eyes_whose_numbers_restart_in_each_class_are_cut() -> None:
    paths = sorted({*draw_eyes(range(60), 2), "0/3_left.jpeg", "1/3_left.jpeg"})
    assert "restart in each class" in group_index(make_index(*paths), "auto")[1].rule


@pytest.mark.parametrize("per_class", [1, 3])
def test_a_folder_with_images_of_several_classes_is_one_group(per_class: int) -> None:
    """Test a table's images, whose folders do not name the class: a plot has all species, and is the same plot."""
    paths = tuple(f"photos/plot{p}/IMG_{p}{k}.jpg" for p in range(12) for k in range(3 * per_class))
    index = replace(make_index(*paths), classes=("a", "b", "c"), labels=tuple(k % 3 for k in range(len(paths))))
    index, grouping = group_index(index, "auto")
    assert set(Counter(index.groups).values()) == {3 * per_class}
    assert grouping.rule == "the folder that holds the image"


def test_few_identifiers_that_repeat_are_groups() -> None:
    paths = [f"{c}/person{p}_{c}_{p}.png" for k, c in enumerate(("cat", "dog")) for p in range(500 * k, 500 * k + 200)]
    index, grouping = group_index(make_index(*paths, "cat/person7_cat_900.png"), "auto")
    assert grouping.source == "names"
    assert [group for group, count in Counter(index.groups).items() if count > 1] == ["person7"]


def test_the_reason_for_no_groups_is_true() -> None:
    once = [f"{c}/{i:03}.png" for c in ("cat", "dog") for i in range(20)]
    other = [f"{c}/{i + 50 * k:03}.png" for k, c in enumerate(("cat", "dog")) for i in range(20)]
    for paths in (once, other):
        rule = group_index(make_index(*paths), "auto")[1].rule
        assert rule == "none: no identifier repeats in the file names of one class"


def test_subsets_of_chest_x_rays_keep_the_identifiers_that_repeat(shared_data: Path) -> None:
    """Of 120 X-rays, all images of one person and class are together, however few persons have several.

    Names like `IM-0115-0001-0002` are left out: three or fewer in 120 do not show which number is the person's.
    """
    full = scan_folder(shared_data / "cxr3")
    person = re.compile(r"person\d+|(?:NORMAL2-)?IM-\d+")
    usual = [row for row in full.rows("train") if not re.search(r"-\d+-\d+-\d+", full.paths[row])]
    for seed in range(20):
        rows = sorted(random.Random(seed).sample(usual, 120))
        index, grouping = group_index(replace(select_rows(full, rows), splits=("",) * 120), "auto")
        keys = [(person.findall(path)[0], label) for path, label in zip(index.paths, index.labels, strict=True)]
        repeated = {key for key, count in Counter(keys).items() if count > 1}
        if not repeated:
            assert grouping.rule == "none: no identifier repeats in the file names of one class"
            continue
        assert grouping.source == "names"
        for key in repeated:
            assert len({index.groups[row] for row, other in enumerate(keys) if other == key}) == 1, key


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a+)+$", "((a{1,100}){1,100}){1,100}b"])
def test_pattern_that_takes_too_long_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext_cli.data.patterns.MAX_SECONDS_PATH", 0.05)
    index = make_index(f"x/{'a' * 60}!.png", f"y/{'a' * 61}.png")
    with pytest.raises(UsageError, match=r"takes too long on x/a+!\.png|matches no path"):
        group_index(index, pattern)


def test_pattern_defines_the_groups() -> None:
    index = make_index("a/x7-1.png", "a/x7-2.png", "b/x8-1.png", "b/other.png")
    grouped, grouping = group_index(index, r"x(\d)")
    assert grouped.groups == ("7", "7", "b/other.png", "8")
    assert (grouping.groups, grouping.examples) == (3, (("a/x7-1.png", "7"),))
    assert group_index(index, "^(.)")[1].rule == "the pattern ^(.)"
    lacking = group_index(make_index("cat/x1_a.png", "cat/x1_b.png", "cat/plain.png"), r"x(\d)")[1].rule
    assert lacking == r"the pattern x(\d), which 1 of 3 images lacks: each is a group of its own"
    assert group_index(index, "none")[0].groups == ()
    with pytest.raises(UsageError, match="is not a regular expression"):
        group_index(index, "(")
    with pytest.raises(UsageError, match=re.escape(r"'person\d' matches no path")):
        group_index(index, r"person\d")


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
    for number, path in enumerate(tmp_path.rglob("*.dcm")):
        save_dicom(path, XRAY, PatientID=f"P{number}")
    assert group_index(scan_folder(tmp_path), "auto")[1].source == "none", "an ID of its own on each file groups none"
    with pytest.raises(UsageError, match="no file has the DICOM attribute StudyID"):
        group_index(index, "dicom:StudyID")


def test_reading_dicom_headers_shows_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext_cli.data.attributes.FILES_PER_EVENT", 2)
    for number in range(6):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        save_dicom(tmp_path / "ab"[number % 2] / f"{number}.dcm", XRAY, PatientID=f"P{number // 2}")
    *events, (index, grouping) = run_all(group_steps(scan_folder(tmp_path), "auto"))
    assert [(event.done, event.total) for event in events] == [(2, 6), (4, 6), (6, 6)]
    assert (grouping.source, grouping.groups) == ("dicom", 3)
    assert Counter(index.groups) == {"P0": 2, "P1": 2, "P2": 2}


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_other_files_get_groups_by_the_same_rule(name: str) -> None:
    """All images of the last three subjects are left out of the data set, and come later."""
    index, _ = group_index(make_index(*WITH_GROUPS[name]), "auto")
    subjects = sorted(set(index.groups))[-3:]
    late = [row for row, group in enumerate(index.groups) if group in subjects]
    early = [row for row in range(len(index)) if row not in late]
    known, grouping = group_index(select_rows(index, early), "auto")
    if grouping.source == "none":
        pytest.skip("too few subjects are left to see them in the names")
    groups = group_like(known, [index.paths[row] for row in late])
    assert groups is not None
    assert len(set(groups)) == len(subjects)
    pairs = {(groups[at], index.groups[row]) for at, row in enumerate(late)}
    assert len(pairs) == len(subjects), "one to one"


def test_folders_around_new_files_do_not_change_their_groups() -> None:
    """A date in the path of a folder to predict was no part of the names in training."""
    known, _ = group_index(make_index(*WITH_GROUPS["patient and image"]), "auto")
    new = ["/in/2024-05-03/patient7_1.png", "/in/2024-05-03/patient90_1.png"]
    assert group_like(known, new) == ["patient7", "patient90"]
    known, _ = group_index(make_index(*WITH_GROUPS["folders of cameras"]), "auto")
    new = [f"/in/2024-05-03/cam{camera}/part_900.png" for camera in (1, 2, 3, 4)]
    assert group_like(known, new) == ["part_900"] * 4


def test_a_folder_that_is_not_named_as_a_patient_is_no_group() -> None:
    paths = tuple(f"{c}/patient{p:03}/{i}.png" for c in "ab" for p in range(12) for i in (1, 2))
    known, _ = group_index(make_index(*paths), "auto")
    assert group_like(known, ["new/1.png", "new/2.png"]) is None
    mixed = ["in/patient900/1.png", "in/patient900/2.png", "new/1.png", "new/2.png", "3.png"]
    assert group_like(known, mixed) == ["patient900", "patient900", *mixed[2:]]


def test_names_that_do_not_give_the_groups_give_no_rule() -> None:
    index = make_index(*(f"a/{number:03}.png" for number in range(20)), *(f"b/{number:03}.png" for number in range(20)))
    assert group_like(index, ["new/1.png"]) is None
    grouped = replace(index, groups=tuple(f"p{row % 7}" for row in range(len(index))))
    assert group_like(grouped, ["new/1.png"]) is None


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
