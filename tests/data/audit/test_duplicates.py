import io
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from convnext_cli.data.audit.candidates import MAX_DISTANCE, MAX_EACH, Hashed, find_candidates, find_similar
from convnext_cli.data.audit.duplicates import Duplicates, compare_images, shrink
from convnext_cli.data.audit.fix_list import write_fix_list
from convnext_cli.data.audit.measurements import MEASURES, THUMB, Measurements, Note
from convnext_cli.data.audit.perceptual import hash_images
from convnext_cli.data.audit.rules import find_grave, find_notes
from convnext_cli.data.audit.summary import Audit
from convnext_cli.data.groups import Grouping
from convnext_cli.data.index import Index
from tests.conftest import change_tones, draw_frame, draw_picture
from tests.data.audit.planting import audit

EXIF_OF = {
    Image.Transpose.FLIP_LEFT_RIGHT: 2,
    Image.Transpose.ROTATE_180: 3,
    Image.Transpose.FLIP_TOP_BOTTOM: 4,
    Image.Transpose.TRANSPOSE: 5,
    Image.Transpose.ROTATE_90: 6,
    Image.Transpose.TRANSVERSE: 7,
    Image.Transpose.ROTATE_270: 8,
}
"""The EXIF orientation that makes up for each way to turn an image."""


def count(audit: Audit) -> dict[str, int]:
    return {finding.kind.value: finding.count for finding in audit.findings}


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def draw_texture(seed: int) -> Image.Image:
    """Draw a checkerboard of low frequencies, which decide the hash, with a fine texture of its own."""
    rough = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((16, 16))) * 40.0 + np.linspace(0, 120, 128)
    fine = np.random.default_rng(seed).normal(size=(128, 128)) * 25
    return Image.fromarray(np.clip(rough + gaussian_filter(fine, 2) * 6 + 50, 0, 255).astype(np.uint8)).convert("RGB")


def test_find_similar_equals_an_exhaustive_comparison() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 200, dtype=np.uint64)
    for row in range(100):
        flips = random.choice(64, row % 12, replace=False).astype(np.uint64)
        hashes[100 + row] = hashes[row] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    hashes = np.unique(hashes)
    result = [tuple(pair) for pairs in find_similar(hashes, hashes) for pair in pairs.tolist()]
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = {(a, b) for a, b in np.argwhere(bits <= MAX_DISTANCE).tolist() if a <= b}
    assert len(result) == len(set(result))
    assert set(result) == expected


def test_hash_has_a_bit_for_each_low_frequency_above_the_median() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 20, 20), np.uint8)
    low = dctn(grey.astype(float), axes=(1, 2))[:, :8, :8].reshape(4, 64)
    bits = (np.array(hash_images(grey)[:, None]) >> np.arange(64, dtype=np.uint64)) & 1
    assert (bits == (low > np.median(low[:, 1:], axis=1, keepdims=True))).all()


def test_unlike_images_with_one_hash_hide_no_near_duplicate(tmp_path: Path) -> None:
    """Test 30 images that share few hashes: each copy is detected among 29 others."""
    for number in range(30):
        drawn = draw_texture(number)
        save(drawn, tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
        save(drawn, tmp_path / "test" / "ab"[number % 2] / f"again{number}.jpg", quality=90)
    result = audit(tmp_path, group_from="none")
    hashes = Counter(result.measurements.measures["hash"].tolist())
    assert len(hashes) < 40, "images share hashes"
    assert count(result)["near-duplicates across splits"] == 30
    assert all(len(rows) == 2 for rows in result.clusters)


def test_fix_list_removes_duplicates_across_splits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(40):
        drawn = draw_texture(number // 4) if number % 2 else draw_picture(number // 3)
        options: dict[str, Any] = {} if number % 3 else {"quality": int(random.choice((60, 75, 90)))}
        path = tmp_path / "data" / ("train", "test")[number % 3 == 1] / "ab"[number // 20] / f"{number}"
        save(drawn, path.with_suffix(".jpg" if options else ".png"), **options)
    before = audit(tmp_path / "data", group_from="none")
    assert {"duplicates across splits", "near-duplicates across splits"} & set(count(before))
    write_fix_list(before, tmp_path / "fix.csv")
    after = audit(tmp_path / "data", group_from="none", exclude=str(tmp_path / "fix.csv"))
    assert set(count(after)) <= {"small classes", "possible label conflicts"}  # near-duplicates may be of two classes
    assert not after.falsifies


def test_black_images_are_one_cluster(tmp_path: Path) -> None:
    black = Image.new("RGB", (16, 16))
    for number in range(300):
        save(black, tmp_path / "ab"[number % 2] / f"{number}.png")
    result = audit(tmp_path, group_from="none")
    assert [len(rows) for rows in result.clusters] == [300]
    assert not result.findings[0].title.startswith("near")


def test_duplicates_and_near_duplicates_are_counted_separately(tmp_path: Path) -> None:
    for number in range(24):
        save(draw_picture(number), tmp_path / ("train", "test")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png")
    for number in range(0, 6, 2):
        save(draw_picture(number), tmp_path / "test" / "ab"[number // 2 % 2] / f"copy{number}.png")
    for number in range(8, 12, 2):
        save(draw_picture(number), tmp_path / "test" / "ab"[number // 2 % 2] / f"copy{number}.jpg", quality=80)
    result = {finding.kind.value: finding for finding in audit(tmp_path, group_from="none").findings}
    assert result["duplicates across splits"].count == 3
    assert "the same pixels" in result["duplicates across splits"].title
    assert result["near-duplicates across splits"].count == 2
    assert len(result["near-duplicates across splits"].leave_out) == 2


def make_slices(number: int) -> list[Image.Image]:
    """Draw neighbouring slices of a scan: large forms that change slowly, finer forms, and independent noise."""
    random = np.random.default_rng(number)
    large, fine = (
        gaussian_filter(random.normal(size=(12, 96, 96)), width) for width in ((24, 16, 16), (2.5, 2.5, 2.5))
    )
    volume = large / large.std() * 45 + fine / fine.std() * 15 + 128 + random.normal(size=large.shape) * 4
    return [Image.fromarray(np.clip(one, 0, 255).astype(np.uint8)).convert("RGB") for one in volume]


def test_neighbouring_slices_are_similar_and_kept(tmp_path: Path) -> None:
    for scan in range(4):
        for number, drawn in enumerate(make_slices(scan)):
            save(drawn, tmp_path / ("train", "test")[number % 2] / "ab"[scan % 2] / f"{scan * 100 + number}.png")
    result = {finding.kind.value: finding for finding in audit(tmp_path, group_from="none").findings}
    similar = result["very similar images across splits"]
    assert similar.severity == "note"
    assert not similar.leave_out
    assert "perhaps of one subject" in similar.title
    assert not any("duplicates" in kind for kind in result)


def test_frames_of_one_camera_are_no_duplicates_of_one_image(tmp_path: Path) -> None:
    """All look like all, so that one set would have nearly all of them, and the splits none."""
    for number in range(80):
        save(draw_frame(number), tmp_path / "ab"[number % 2] / f"{number:02}.png")
    save(draw_frame(3), tmp_path / "b" / "copy.png")
    for number in range(40):
        save(draw_picture(number), tmp_path / "ab"[number % 2] / f"other{number:02}.png")
        if number < 5:
            save(draw_picture(number), tmp_path / "ab"[number % 2] / f"other{number:02}.jpg", quality=80)
    result = audit(tmp_path, group_from="none")
    assert not result.falsifies
    (scene,) = (finding for finding in result.findings if finding.kind.value == "images of one scene")
    assert (scene.count, scene.leaves_doubt) == (81, True)
    assert count(result)["duplicates"] == 1
    assert count(result)["near-duplicates"] == 5
    assert [len(rows) for rows in result.duplicate_sets] == 6 * [2]


def test_those_of_too_many_candidates_that_are_most_alike_are_taken() -> None:
    images, side = 200, THUMB
    random = np.random.default_rng(0)
    thumbs = np.clip(random.uniform(0, 255, (side, side)) + random.normal(size=(images, side, side)) * 10, 0, 255)
    thumbs[150] = thumbs[7] + random.normal(size=(side, side))
    alike = Hashed(
        thumbs.clip(0, 255).astype(np.uint8), random.integers(0, 8, images).astype(np.uint64), np.arange(images)
    )
    pairs, left_out = find_candidates(alike, alike, MAX_DISTANCE, budget=1_000_000)
    assert len(pairs) == MAX_EACH * images
    assert len(pairs) + left_out == images * (images - 1) / 2
    assert [7, 150] in pairs.tolist()


def test_near_duplicates_that_may_be_frames_are_not_in_the_fix_list() -> None:
    paths = tuple(f"{number}.png" for number in range(600))
    index = Index(root=Path(), classes=("a",), paths=paths, labels=(0,) * 600, splits=("",) * 600, skipped={})
    measures = np.zeros(600, MEASURES)
    measures["readable"] = 1
    frames, copies, blanks = tuple(range(40)), (50, 51), tuple(range(100, 140))
    duplicates = Duplicates(
        exact=(blanks,), similar=(), clusters=(frames, copies, blanks), duplicate_sets=(), scenes=(), unchecked=0
    )
    findings = find_notes(index, Measurements(measures=measures, notes=(Note(),)), duplicates, (), {})
    exact, near = (finding for finding in findings if "duplicates" in finding.kind)
    assert (exact.count, exact.leave_out) == (1, blanks[1:])
    assert (near.count, near.leave_out) == (2, copies[1:])
    assert near.action.endswith(
        "not of sets with different labels or of more than 30, which may be frames of one camera"
    )


def test_near_duplicates_across_splits_that_may_be_frames_or_parts_are_not_in_the_fix_list() -> None:
    paths = tuple(f"{number}.png" for number in range(600))
    splits = ("train", "test") * 300
    labels = (*range(2),) * 50 + (0,) * 500
    index = Index(root=Path(), classes=("a", "b"), paths=paths, labels=labels, splits=splits, skipped={})
    parts, frames, copies = (10, 11), tuple(range(200, 240)), (300, 301)
    duplicates = Duplicates(
        exact=(), similar=(), clusters=(parts, frames, copies), duplicate_sets=(), scenes=(), unchecked=0
    )
    conflicts, leaked = find_grave(index, Grouping(source="none", rule=""), duplicates, None)
    assert (conflicts.count, conflicts.action) == (1, "kept; correct the labels that are wrong")
    assert (leaked.count, leaked.leave_out) == (3, (300,))
    assert leaked.action.endswith("different labels or of more than 30, which may be frames of one camera")


def test_copies_of_one_image_are_no_scene(tmp_path: Path) -> None:
    for number in range(80):
        save(draw_picture(max(number, 40)), tmp_path / "ab"[number % 2] / f"{number}.png")
    result = audit(tmp_path, group_from="none")
    assert not result.scenes
    assert [len(rows) for rows in result.clusters] == [41]


def test_frames_of_one_camera_in_two_splits_are_possible_leakage(tmp_path: Path) -> None:
    for number in range(60):
        save(draw_frame(number), tmp_path / ("train", "test")[number % 3 // 2] / "ab"[number % 2] / f"{number:02}.png")
    result = audit(tmp_path, group_from="none")
    assert not result.falsifies
    assert count(result)["images of one scene across splits"] == 60


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("scale", [0.5, 1, 1.5])
def test_image_saved_again_or_scaled_is_a_near_duplicate(quality: int, scale: float) -> None:
    for number in range(5):
        drawn = draw_picture(number, (192, 160))
        file = io.BytesIO()
        drawn.resize((round(192 * scale), round(160 * scale))).save(file, "JPEG", quality=quality)
        with Image.open(file) as again:
            assert compare_images(shrink(drawn), shrink(again.convert("RGB"))) == "near"
        assert compare_images(shrink(drawn), shrink(draw_picture(number + 100, (192, 160)))) is None


TONES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "darker": partial(change_tones, gain=0.6),
    "brighter": partial(change_tones, offset=30),
    "less contrast": partial(change_tones, gain=0.6, offset=50),
    "more contrast": partial(change_tones, gain=1.2, offset=-20),
    "gamma": partial(change_tones, gamma=0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "pale": lambda image: ImageEnhance.Color(image).enhance(0.7),
    "colourful": lambda image: ImageEnhance.Color(image).enhance(1.3),
}


@pytest.mark.parametrize("tones", TONES)
def test_copy_in_other_tones_is_a_near_duplicate(tones: str, tmp_path: Path) -> None:
    for number in range(20):
        drawn = draw_picture(number, (120, 96))
        save(drawn, tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
        save(TONES[tones](drawn), tmp_path / "test" / "ab"[number % 2] / f"copy{number}.jpg", quality=85)
    result = audit(tmp_path, group_from="none")
    assert count(result)["near-duplicates across splits"] >= 19
    numbers = [{Path(result.index.paths[row]).stem.removeprefix("copy") for row in rows} for rows in result.clusters]
    assert all(len(found) == 1 for found in numbers), "each copy is joined to its original only"


@pytest.mark.parametrize("scan", range(3))
def test_frames_in_other_tones_are_no_near_duplicates(scan: int) -> None:
    for one, two in pairwise(make_slices(scan)):
        for tones in ("darker", "gamma", "less contrast"):
            assert compare_images(shrink(one), shrink(TONES[tones](two))) != "near"
            assert compare_images(shrink(one), shrink(TONES[tones](one))) == "near"


def test_parts_of_another_colour_are_no_near_duplicates() -> None:
    red, blue = (draw_picture(1), draw_picture(1))
    red.paste((200, 60, 60), (20, 20, 60, 60))
    blue.paste((90, 90, 220), (20, 20, 60, 60))
    assert compare_images(shrink(red), shrink(blue)) is None


def draw_field(seed: int, exposure: float) -> Image.Image:
    """Draw an empty field under a microscope: dark corners and noise."""
    rows, columns = np.mgrid[-1:1:96j, -1:1:96j]
    light = 190 * exposure * (1 - 0.15 * (rows**2 + columns**2))
    noise = np.random.default_rng(seed).normal(0, 6, light.shape)
    return Image.fromarray(np.clip(light + noise, 0, 255).astype(np.uint8)).convert("RGB")


def test_empty_fields_of_another_exposure_are_no_near_duplicates() -> None:
    assert compare_images(shrink(draw_field(0, 1.0)), shrink(draw_field(1, 0.8))) is None
    black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))
    assert compare_images(shrink(black), shrink(white)) is None


def test_mirrored_and_turned_copies_are_near_duplicates(tmp_path: Path) -> None:
    """Test copies as an augmentation leaves them, which was applied before the split, of photos of another shape."""
    for number in range(16):
        drawn = draw_picture(number, (120, 96))
        save(drawn, tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
        turned = drawn.transpose(Image.Transpose(number % 8 % 7))
        if number % 8 != 7:
            turned = turned.resize((turned.width * 2 // 3, turned.height * 2 // 3))
        else:
            turned = draw_picture(100 + number, (120, 96))
        save(turned, tmp_path / "test" / "ab"[number % 2] / f"copy{number}.jpg", quality=60)
    result = audit(tmp_path, group_from="none")
    assert count(result)["near-duplicates across splits"] == 14
    assert result.falsifies
    numbers = [{Path(result.index.paths[row]).stem.removeprefix("copy") for row in rows} for rows in result.clusters]
    assert all(len(found) == 1 for found in numbers), "each copy is joined to its original only"


@pytest.mark.parametrize("turn", list(Image.Transpose), ids=lambda turn: turn.name)
def test_mirrored_frames_of_one_subject_are_no_near_duplicates(turn: Image.Transpose) -> None:
    frames = make_slices(0)
    for one, two in pairwise(frames):
        assert compare_images(shrink(one), shrink(two)) == "similar"
        assert compare_images(shrink(one), shrink(two.transpose(turn)).orient(EXIF_OF[turn])) == "similar"
        assert compare_images(shrink(one), shrink(one.transpose(turn)).orient(EXIF_OF[turn])) == "near"


def test_thumbnails_are_large_enough_to_compare() -> None:
    assert THUMB * THUMB > 64
