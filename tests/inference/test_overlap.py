import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from PIL import Image

from convnext_cli.data.audit.summary import audit_index
from convnext_cli.data.groups import group_index
from convnext_cli.data.index import Index
from convnext_cli.data.sources import scan_data
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.inference.image_notes import check_images
from convnext_cli.inference.overlap import Overlap, measure_content
from convnext_cli.inference.request import EvalRequest
from convnext_cli.inference.test_set import choose_test_set
from convnext_cli.progress import Progress, finish
from convnext_cli.runs.files import IMAGE_HASHES
from convnext_cli.runs.folder import RunFolder
from tests.conftest import change_tones, draw_frame, draw_picture, draw_scene

T = TypeVar("T")
FRAMING = Preprocessing(
    image_size=32, crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=(0.5,), std=(0.5,)
)


def drain(steps: Generator[Progress, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def draw(root: Path, numbers: range, start: int = 0) -> None:
    for number in numbers:
        path = root / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(start + number, (64, 56)).save(path)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[RunFolder, Index]:
    """What a run on 40 pictures keeps of them: 20 trained on, 10 for validation, 10 for the test. No model."""
    draw(tmp_path / "data", range(40))
    index = scan_data(tmp_path / "data")
    splits = tuple(("train", "val", "train", "test")[row % 4] for row in range(len(index)))
    index = replace(index, splits=splits)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_split(index)
    run.write_arrays(IMAGE_HASHES, drain(measure_content(index)))
    return run, index


def evaluate(run: RunFolder, data: Path) -> tuple[int, list[str], Overlap | None]:
    test_set, notes = finish(choose_test_set(run, run.read_split(), EvalRequest(data=data)))
    more, overlap = drain(check_images(run, run.read_split(), test_set, None, FRAMING))
    return len(test_set.rows), [note.text for note in (*notes, *more)], overlap


def make_new_data(trained_on: Index, root: Path) -> None:
    """20 new pictures, 6 copies of training pictures under other names, 4 saved anew, and 3 of validation."""
    draw(root, range(20), start=500)
    train, val = trained_on.rows("train"), trained_on.rows("val")
    for place, row in enumerate(train[:10]):
        source = trained_on.root / trained_on.paths[row]
        target = root / trained_on.paths[row].split("/")[0] / f"copy{place}{'.png' if place < 6 else '.jpg'}"
        if place < 6:
            shutil.copyfile(source, target)
        else:
            with Image.open(source) as picture:
                picture.resize((96, 84)).save(target, quality=80)
    for place, row in enumerate(val[:3]):
        shutil.copyfile(trained_on.root / trained_on.paths[row], root / "a" / f"val{place}.png")


def test_mirrored_and_turned_copies_of_training_images_are_found(
    trained: tuple[RunFolder, Index], tmp_path: Path
) -> None:
    run, index = trained
    draw(tmp_path / "new", range(12), start=500)
    for turn in Image.Transpose:
        path = index.paths[index.rows("train")[turn]]
        with Image.open(index.root / path) as picture:
            picture.transpose(turn).save(tmp_path / "new" / path.split("/")[0] / f"turned{turn}.jpg", quality=80)
    assert evaluate(run, tmp_path / "new")[2] == Overlap(trained=0, trained_near=len(Image.Transpose), validated=0)


def test_darker_and_brighter_copies_of_training_images_are_found(
    trained: tuple[RunFolder, Index], tmp_path: Path
) -> None:
    run, index = trained
    for number, row in enumerate(index.rows("train")):
        with Image.open(index.root / index.paths[row], formats=("PNG",)) as image:
            copy = change_tones(image.convert("RGB"), gain=(0.6, 1.1)[number % 2])
        (tmp_path / "new" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        copy.save(tmp_path / "new" / "ab"[number % 2] / f"{number}.png")
    draw(tmp_path / "new", range(100, 110), start=1000)
    overlap = evaluate(run, tmp_path / "new")[2]
    assert overlap == Overlap(trained=0, trained_near=len(index.rows("train")), validated=0)


def test_frames_of_the_camera_of_the_training_images_are_no_copies_of_them(tmp_path: Path) -> None:
    for root, numbers in (("data", range(60)), ("new", range(58, 80))):
        for number in numbers:
            path = tmp_path / root / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_frame(number).save(path)
    index = scan_data(tmp_path / "data")
    index = replace(index, splits=tuple("val" if row % 6 == 1 else "train" for row in range(60)))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_split(index)
    run.write_arrays(IMAGE_HASHES, drain(audit_index(*group_index(index, "none"))).list_image_hashes(index))
    _, notes, overlap = evaluate(run, tmp_path / "new")
    assert overlap == Overlap(trained=2, trained_near=0, validated=0, alike=20)
    assert any(note.startswith("20 of 22 images look like many images of the run") for note in notes)


@pytest.mark.parametrize("is_gone", [False, True])
def test_crops_and_turned_copies_are_found_while_the_training_images_exist(tmp_path: Path, *, is_gone: bool) -> None:
    for number in range(12):
        folders = [tmp_path / root / "ab"[number % 2] for root in ("data", "new")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(number)
        scene.save(folders[0] / f"{number:02}.png")
        copy = scene.rotate(10, Image.Resampling.BICUBIC) if number % 3 else scene.crop((30, 20, 210, 180))
        copy.save(folders[1] / f"{number:02}.jpg", quality=85)
        draw_scene(100 + number).save(folders[1] / f"new{number}.png")
    index = scan_data(tmp_path / "data")
    index = replace(index, splits=tuple("val" if row < 3 else "train" for row in range(12)))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_split(index)
    run.write_arrays(IMAGE_HASHES, drain(measure_content(index)))
    if is_gone:
        shutil.rmtree(tmp_path / "data")
    expected = (
        Overlap(trained=0, trained_near=0, validated=0) if is_gone else Overlap(trained=0, trained_near=9, validated=3)
    )
    assert evaluate(run, tmp_path / "new")[2] == expected


@pytest.mark.parametrize("has_digests", [True, False])
def test_copies_of_training_images_are_found_by_content(
    trained: tuple[RunFolder, Index], tmp_path: Path, *, has_digests: bool
) -> None:
    run, index = trained
    make_new_data(index, tmp_path / "new")
    if has_digests:
        shutil.rmtree(index.root)
    else:
        (run.path / "image_hashes.safetensors").unlink()
    images, notes, overlap = evaluate(run, tmp_path / "new")
    assert (images, overlap) == (33, Overlap(trained=6, trained_near=4, validated=3))
    assert "leakage: 10 of 33 images were trained on (4 as near-duplicates); the scores are too high" in notes
    assert any(note.startswith("3 of 33 images are validation images") for note in notes)


def test_patients_that_were_trained_on_are_noted(trained: tuple[RunFolder, Index], tmp_path: Path) -> None:
    run, index = trained
    groups = [f"p{row // 4}" if row < 36 else path for row, path in enumerate(index.paths)]  # the last have none
    run.write_split(replace(index, groups=tuple(groups)))
    draw(tmp_path / "new", range(40), start=500)
    rows = [
        f"{path},{path[0]},{'p1' if row < 9 else 'p77' if row < 30 else ''}" for row, path in enumerate(index.paths)
    ]
    (tmp_path / "new/t.csv").write_text("\n".join(["path,label,patient", *rows]))
    _, notes, _ = evaluate(run, tmp_path / "new/t.csv")
    text = "possible leakage: 1 of 12 groups has the name of a group that was trained on (p1): if these are the same"
    assert [note for note in notes if note.startswith("possible")] == [f"{text} patients, the scores are too high"]
    shutil.copytree(index.root, tmp_path / "same")  # all of whose training images are found by content
    shutil.copy(tmp_path / "new/t.csv", tmp_path / "same/t.csv")
    _, notes, _ = evaluate(run, tmp_path / "same/t.csv")
    assert not any("possible leakage" in note for note in notes)


def test_frames_that_are_not_read_are_noted(trained: tuple[RunFolder, Index], tmp_path: Path) -> None:
    draw(tmp_path / "new", range(4), start=500)
    pages = [draw_picture(number, (64, 56)) for number in (600, 601)]
    pages[0].save(tmp_path / "new/a/pages.tif", save_all=True, append_images=pages[1:])
    _, notes, _ = evaluate(trained[0], tmp_path / "new")
    assert notes == ["1 file has several frames or pages, of which one is read: a/pages.tif"]


def test_run_without_digests_and_data_gives_a_note(trained: tuple[RunFolder, Index], tmp_path: Path) -> None:
    run, index = trained
    make_new_data(index, tmp_path / "new")
    shutil.rmtree(index.root)
    (run.path / "image_hashes.safetensors").unlink()
    _, notes, overlap = evaluate(run, tmp_path / "new")
    assert overlap is None
    assert any("not compared with the training images" in note for note in notes)


def test_different_images_of_the_same_names_are_all_evaluated(trained: tuple[RunFolder, Index], tmp_path: Path) -> None:
    run, _ = trained
    draw(tmp_path / "other", range(40), start=700)
    images, notes, overlap = evaluate(run, tmp_path / "other")
    assert (images, overlap) == (40, Overlap(trained=0, trained_near=0, validated=0))
    assert any("all 40 images count as new" in note for note in notes)


def test_different_images_of_the_same_names_and_splits_count_as_new(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        numbers = range(16 * place, 16 * place + 16)
        draw(tmp_path / "data" / split, numbers)
        draw(tmp_path / "other" / split, numbers, start=700)
    for path in sorted(tmp_path.rglob("*.png")):
        path.rename(path.with_name(f"person{int(path.stem) // 4}_{path.name}"))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_split(scan_data(tmp_path / "data"))
    images, notes, overlap = evaluate(run, tmp_path / "other")
    assert (images, overlap) == (16, Overlap(trained=0, trained_near=0, validated=0))
    assert any("all 48 images count as new" in note for note in notes)
    assert any("rely on a guess: 12 groups by the repeated part of the file names" in note for note in notes)


def test_moved_images_keep_their_split(trained: tuple[RunFolder, Index], tmp_path: Path) -> None:
    run, index = trained
    index.root.rename(tmp_path / "moved")
    assert evaluate(run, tmp_path / "moved") == (10, [], None)
    draw_picture(900, (64, 56)).save(tmp_path / "moved" / index.paths[0])
    text = "2.5% of the images differ from those that the run was trained on"
    assert evaluate(run, tmp_path / "moved") == (10, [text], None)
    (run.path / "image_hashes.safetensors").unlink()
    images, notes, _ = evaluate(run, tmp_path / "moved")
    assert images == 10
    assert any("because the file names are the same" in note for note in notes)
