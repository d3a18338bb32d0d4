import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_cli.data.audit.findings import Finding
from convnext_cli.data.audit.fix_list import write_fix_list
from convnext_cli.data.audit.measurements import Measurements, measure_images
from convnext_cli.data.audit.summary import Audit
from convnext_cli.data.dataset import Dataset, DatasetRequest, load_dataset
from convnext_cli.data.scan import scan_folder
from convnext_cli.errors import DataError
from convnext_cli.images.decode import read_image
from convnext_cli.images.raster import Decoded
from convnext_cli.progress import finish
from tests.conftest import draw_picture, save_image
from tests.data.audit.planting import Planted, audit, plant, score_duplicates
from tests.images.dicom import save_dicom


def load(data: Path, **options: object) -> Dataset:
    return finish(load_dataset(DatasetRequest(data=data, **options)))  # type: ignore[arg-type]


def find(audit: Audit, kind: str) -> Finding:
    [finding] = [finding for finding in audit.findings if finding.kind == kind]
    return finding


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    root = tmp_path_factory.mktemp("planted")
    return plant(root, distinct=600, exact=40, encoded=20, resized=20, turned=14, toned=20, conflicts=8, leaked=6)


@pytest.fixture(scope="module")
def result(planted: Planted) -> Audit:
    return audit(planted.root)


def test_planted_duplicates_and_no_others_are_detected(planted: Planted, result: Audit) -> None:
    hits, near_share, false_share = score_duplicates(planted, result)
    assert hits == planted.exact | planted.conflicts
    assert near_share >= 0.95
    assert false_share <= 0.01


def test_frames_that_are_not_read_are_noted(tmp_path: Path) -> None:
    names = ("a/stack.tif", "a/clip.gif", "a/photo.jpg", "b/plain.tif")
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        more = [draw_picture(10 * number + frame) for frame in (1, 2)] if name != "b/plain.tif" else []
        options = {"format": "MPO"} if name == "a/photo.jpg" else {}
        draw_picture(10 * number).save(tmp_path / name, save_all=bool(more), append_images=more, **options)
    save_dicom(tmp_path / "b" / "loop.dcm", np.arange(128, dtype=np.uint16).reshape(2, 8, 8), NumberOfFrames=2)
    frames = find(audit(tmp_path, group_from="none"), "frames that are not read")
    assert frames.title == "3 files have several frames or pages, of which one is read"
    assert set(frames.examples) == {"a/stack.tif", "a/clip.gif", "b/loop.dcm"}
    assert not frames.leave_out


def test_planted_conflicts_and_leakage_are_reported(planted: Planted, result: Audit) -> None:
    assert find(result, "conflicting labels").count == len(planted.conflicts)
    groups = find(result, "groups across splits")
    assert groups.count == len(planted.leaked)
    assert {example.split(":")[0] for example in groups.examples} <= planted.leaked
    assert "numbered independently" in groups.explanation
    assert result.falsifies


def test_parts_that_differ_by_a_small_defect_are_no_certain_conflict(tmp_path: Path) -> None:
    for number in range(10):
        part = draw_picture(number)
        for name in ("good", "defect"):
            (tmp_path / name).mkdir(exist_ok=True)
            part.save(tmp_path / name / f"{number}.png")
            part.paste((0, 0, 0), (30, 30, 32, 32))
    result = audit(tmp_path, group_from="none")
    conflicts = find(result, "possible label conflicts")
    assert conflicts.title == "possible label conflicts: 10 sets of near-duplicates with different labels"
    assert (conflicts.severity, conflicts.leave_out, result.falsifies) == ("note", (), False)


@pytest.mark.parametrize(
    ("splits", "effect"),
    [
        (("train", "test"), "tested on images it was trained on"),
        (("val", "test"), "tested on images that its best epoch is chosen by"),
        (("train", "val"), "validated on images it was trained on"),
    ],
)
def test_effect_of_leakage_is_that_of_its_splits(tmp_path: Path, splits: tuple[str, str], effect: str) -> None:
    for number, (split, name) in enumerate((split, name) for split in ("train", "val", "test") for name in "ab"):
        save_image(tmp_path / split / name / f"{number}.png", seed=number)
    for split in splits:
        save_image(tmp_path / split / "a" / "copy.png", seed=99)
    assert effect in find(audit(tmp_path, group_from="none"), "duplicates across splits").effect


def test_examples_of_many_copies_show_each_label_and_split(tmp_path: Path) -> None:
    for number in range(12):
        save_image(tmp_path / ("train" if number < 9 else "test") / "ab"[number == 8] / f"{number:02}.png", seed=7)
    [conflict] = find(audit(tmp_path, group_from="none"), "conflicting labels").examples
    assert conflict.endswith(" and 8 more")
    assert conflict.count(" = ") == 3
    for start, label in (("train/a/", "a"), ("train/b/", "b"), ("test/a/", "a")):
        assert re.search(rf"{start}\d\d\.png \({label}\)", conflict)


def test_a_single_group_across_splits_and_a_single_small_class_are_counted_as_one(tmp_path: Path) -> None:
    for number in range(26):
        split, name = ("train", "test")[number % 2], "b" if number < 2 else "a"
        save_image(tmp_path / split / name / f"p{max(number, 1)}.png", seed=number)
    result = audit(tmp_path, group_from="(p[0-9]+)")
    assert find(result, "groups across splits").title.startswith("leakage: 1 group (patient?) has images in both")
    assert find(result, "small classes").title == "1 class has fewer than 20 images"


def test_fix_list_removes_duplicates_and_conflicts(planted: Planted, result: Audit, tmp_path: Path) -> None:
    written = write_fix_list(result, tmp_path / "fix.csv")
    after = audit(planted.root, exclude=str(tmp_path / "fix.csv"))
    assert len(after.index) == len(result.index) - written
    assert after.clusters == ()
    assert {finding.kind for finding in after.findings} <= {"groups across splits", "area outside a centre crop"}


def test_resplit_keeps_groups_and_duplicates_in_one_split(planted: Planted) -> None:
    after = audit(planted.root, resplit=True)
    kinds = {finding.kind for finding in after.findings} - {"area outside a centre crop"}
    assert kinds == {"conflicting labels", "duplicates", "near-duplicates"}


def test_messy_folder_is_audited(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(12):
        label = ("SICK", "WELL")[number % 2]
        (data / label / f"deep/er{number % 3}").mkdir(parents=True, exist_ok=True)
        draw_picture(number).save(data / label / f"deep/er{number % 3}/{number}.png")
    torn = (data / "SICK/deep/er0/0.png").read_bytes()
    (data / "SICK/torn.png").write_bytes(torn[:300])
    (data / "SICK/empty.jpg").touch()
    (data / "WELL/text.png").write_text("not an image")
    (data / "WELL/.ipynb_checkpoints").mkdir()
    draw_picture(1).save(data / "WELL/.ipynb_checkpoints/1.png")
    (data / "WELL/Thumbs.db").touch()
    (data / "notes.txt").touch()
    (data / "SICK/loop").symlink_to(data / "SICK")
    odd = [data / "WELL/new\nline.png", data / "WELL/😀.png", Path(os.fsdecode(bytes(data / "SICK") + b"/\xff.png"))]
    for number, path in enumerate(odd):
        draw_picture(50 + number).save(str(path).replace("\udcff", "raw"))
        if "\udcff" in str(path):
            Path(str(path).replace("\udcff", "raw")).rename(path)
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(data / "SICK/xray.png")
    draw_picture(60).convert("CMYK").save(data / "SICK/print.jpg")
    draw_picture(61).convert("P").save(data / "WELL/palette.png")
    for name in ("SICK/bare", "WELL/1.2.840.7"):
        draw_picture(70 + len(name)).save(data / name, format="PNG")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    result = audit(data)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before  # the data folder is not changed
    unreadable = find(result, "unreadable")
    assert unreadable.count == 3
    assert all(any(name in text for text in unreadable.examples) for name in ("torn.png", "empty.jpg", "text.png"))
    dataset = load(data)
    assert len(dataset.index) == 12 + 3 + 3 + 2
    assert dataset.index.skipped["unreadable image"] == 3
    assert result.formats[".png I;16 (stretched)"] == 1
    assert result.formats[".jpg CMYK (converted to RGB)"] == 1
    assert result.formats["no image suffix: RGB"] == 2
    assert result.index.skipped == {"hidden or system file": 2, "not an image": 1}


@pytest.mark.parametrize("thing", ["size", "format", "mode", "border"])
def test_shortcut_is_reported_by_name(tmp_path: Path, thing: str) -> None:
    for number in range(120):
        well = number % 2
        image = draw_picture(number, (80 + 20 * well, 80) if thing == "size" else (80, 80))
        if thing == "mode" and well:
            image = image.convert("L")
        if thing == "border" and well:
            image.paste(255, (0, 0, 80, 6))
        path = tmp_path / ("SICK", "WELL")[well] / f"{number:04}.{'bmp' if thing == 'format' and well else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    result = audit(tmp_path)
    assert {shortcut.name for shortcut in result.shortcuts if shortcut.is_predictive} == {thing}
    assert not result.falsifies
    assert find(result, f"shortcut: {thing}").examples[0].startswith("balanced accuracy 1")


def test_jpg_and_jpeg_are_one_format(tmp_path: Path) -> None:
    for number in range(60):
        path = tmp_path / ("SICK", "WELL")[number % 2] / f"{number:04}.{('jpg', 'jpeg')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(number, (48, 48)).save(path)
    assert not any(shortcut.is_predictive for shortcut in audit(tmp_path).shortcuts)


def make_border_set(root: Path, number: int, *, planted: bool) -> Path:
    """Make images of two classes that differ in brightness, with a brighter frame on one class if `planted`."""
    for row in range(80):
        light, noise = row % 2, np.random.default_rng((number, row))
        pixels = np.asarray(draw_picture(1000 * number + row, (48, 48)), float) * (0.8 + 0.15 * light)
        if planted and light:
            pixels[:2] = pixels[-2:] = 150 + noise.normal() * 20
        path = root / f"{number}{planted}" / "ab"[light] / f"{row:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return root / f"{number}{planted}"


@pytest.mark.parametrize("planted", [True, False])
def test_border_is_reported_if_it_predicts_better_than_the_inside(tmp_path: Path, *, planted: bool) -> None:
    reported = [
        any(
            s.is_predictive
            for s in audit(make_border_set(tmp_path, n, planted=planted)).shortcuts
            if s.name == "border"
        )
        for n in range(6)
    ]
    assert sum(reported) >= 5 if planted else sum(reported) <= 1, reported


def test_small_classes_are_reported_and_unreadable_set_is_refused(tmp_path: Path) -> None:
    for number in range(30):
        save_image(tmp_path / ("many" if number < 27 else "few") / f"{number}.png", seed=number)
    assert find(audit(tmp_path), "small classes").examples == ("few: 3",)
    assert all(finding.kind != "small classes" for finding in audit(tmp_path / "few", unlabelled=True).findings)
    for path in tmp_path.rglob("*.png"):
        path.write_text("gone")
    with pytest.raises(DataError, match=r"none of the 30 images .*, such as: .*/few/27\.png cannot be read as an"):
        load(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"%!PS-Adobe")
    with pytest.raises(DataError, match=r"such as: .* is PostScript.* Convert it to PNG, TIFF or JPEG\.$"):
        load(tmp_path)


def test_measurements_are_cached_and_follow_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        save_image(tmp_path / "data" / "ab"[number % 2] / f"{number}.png", seed=number)
    decoded: list[Path] = []

    def read(path: Path) -> Decoded:
        decoded.append(path)
        return read_image(path)

    monkeypatch.setattr("convnext_cli.data.audit.measurements.read_image", read)
    index = scan_folder(tmp_path / "data")

    def measure() -> Measurements:
        return finish(measure_images(index))

    first = measure()
    assert len(decoded) == 6
    second = measure()
    assert len(decoded) == 6
    np.testing.assert_array_equal(first.measures, second.measures)
    changed = save_image(tmp_path / "data/a/0.png", seed=99)
    os.utime(changed, (1, 1))
    third = measure()
    assert decoded[6:] == [changed]
    assert (third.measures["digest"][0] != first.measures["digest"][0]).any()
    for path in Path(os.environ["CONVNEXT_CACHE"]).rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    measure()
    assert len(decoded) == 7 + 6  # a damaged cache counts as missing


def test_exclusions_must_name_existing_files(tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / "data" / "ab"[number % 2] / f"{number}.png", seed=number)
    (tmp_path / "plain.txt").write_text("a/0.png\n")
    index = load(tmp_path / "data", exclude=str(tmp_path / "plain.txt"), audit=False).index
    assert index.paths == ("a/2.png", "b/1.png", "b/3.png")
    assert index.skipped == {"excluded image": 1}
    (tmp_path / "plain.txt").write_text("a/9.png\n")
    with pytest.raises(DataError, match=r"names 1 file that is not in .*: a/9\.png"):
        load(tmp_path / "data", exclude=str(tmp_path / "plain.txt"))


@pytest.mark.slow
def test_chest_x_rays_audit(shared_data: Path) -> None:
    result = audit(shared_data / "cxr3")
    groups = find(result, "groups across splits")
    assert groups.count == 170
    assert "both train and test" in groups.title
    assert result.grouping.certainty == "supported"
    assert not groups.falsifies, "images of one number in two splits are no more alike than of two numbers"
    assert not any(shortcut.is_predictive for shortcut in result.shortcuts if shortcut.name != "border")
    repaired = load(shared_data / "cxr3", resplit=True)
    assert replace(repaired.index, skipped={}).groups == result.index.groups
    assert repaired.audit is not None
    assert not repaired.audit.falsifies


def test_images_whose_range_a_few_extreme_values_set_are_noted(tmp_path: Path) -> None:
    for number in range(9):
        grey = np.asarray(draw_picture(number).convert("L"), np.uint16)
        hot, few = grey * 8, (grey // 128 * 255).astype(np.uint8)  # the second has two levels of its 8 bits
        hot[3, 7] = 65535
        for name, values in (("whole", grey * 8), ("hot", hot), ("few", few)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / name / f"{number}.png")
    result = audit(tmp_path)
    finding = find(result, "few grey levels")
    assert (finding.count, {example[:3] for example in finding.examples}) == (9, {"hot"})
    assert result.formats[".png I;16 (stretched, few grey levels)"] == 9
    assert find(audit(tmp_path), "few grey levels") == finding, "from the cache"
