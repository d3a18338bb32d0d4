from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter, map_coordinates

from convnext_cli.data.audit.alignment import are_copies
from convnext_cli.data.audit.keypoints import MIRRORED, SIDE, SIGMAS, blur, find_keypoints, sample, shrink_grey
from convnext_cli.data.audit.matching import find_matches
from convnext_cli.data.audit.measurements import measure_images
from convnext_cli.data.audit.moved import find_moved
from convnext_cli.data.index import select_rows
from convnext_cli.data.sources import scan_data
from convnext_cli.progress import finish
from tests.conftest import change_tones, draw_scene
from tests.data.audit.planting import audit

SCENES = 8


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def turn(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop of three quarters": lambda image: image.crop((50, 10, 230, 160)),
    "crop of two thirds, enlarged": lambda image: image.crop((40, 30, 200, 163)).resize(image.size),
    "turned by 7 degrees": partial(turn, degrees=7),
    "turned by 140 degrees": partial(turn, degrees=140),
    "turned, other tones": lambda image: change_tones(turn(image, -12), gain=0.8, offset=20),
    "turned, saved at quality 50": partial(turn, degrees=20),
    "mirrored and turned": lambda image: turn(ImageOps.mirror(image), 10),
    "mirrored crop": lambda image: ImageOps.mirror(image.crop((0, 0, 216, 180))),
    "turned with a new border": lambda image: ImageOps.expand(turn(image, 5), 20, (90, 20, 20)),
}


@dataclass(frozen=True)
class Moved:
    pairs: set[tuple[str, str]]
    left_out: int


def find(root: Path) -> Moved:
    index = scan_data(root)
    measures, paths = finish(measure_images(index)).measures, [root / path for path in index.paths]
    moved, left_out = finish(find_moved(paths, measures, np.arange(len(index))))
    return Moved({(Path(index.paths[one]).stem, Path(index.paths[two]).stem) for one, two in moved}, left_out)


@pytest.mark.parametrize("name", CHANGES)
def test_moved_copies_and_no_others_are_detected(name: str, tmp_path: Path) -> None:
    quality = 50 if "50" in name else 85
    for number in range(SCENES):
        drawn = draw_scene(number)
        save(drawn, tmp_path / "ab"[number % 2] / f"{number}.png")
        save(CHANGES[name](drawn), tmp_path / "ab"[number % 2] / f"{number}copy.jpg", quality=quality)
    pairs = find(tmp_path).pairs
    assert pairs <= {(f"{number}", f"{number}copy") for number in range(SCENES)}
    assert len(pairs) >= SCENES - 1


@pytest.mark.parametrize("limit", ["matching.MAX_MATCHED", "moved.MAX_COMPARED"])
def test_pairs_beyond_a_limit_are_counted(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(SCENES):
        drawn = draw_scene(number)
        save(drawn, tmp_path / "ab"[number % 2] / f"{number}.png")
        save(turn(drawn, 5), tmp_path / "ab"[number % 2] / f"{number}copy.png")
    monkeypatch.setattr(f"convnext_cli.data.audit.{limit}", 3)
    result = find(tmp_path)
    assert (len(result.pairs), result.left_out) == (3, SCENES - 3)


def test_keypoints_that_many_images_have_match_few_of_them() -> None:
    shared = draw_scene(100, 80, 120)
    keypoints = []
    for number in range(30):
        image = draw_scene(number, 128, 120)
        image.paste(shared, (40, 0))
        keypoints.append(find_keypoints(shrink_grey(image)))
    rows = np.arange(30)
    for part, least, most in ((rows, 0, 10), (rows[:20], 150, 190)):  # 20 are too few to know what is common
        matches, left_out = finish(find_matches(np.stack(keypoints), np.full(30, SIDE), part, part))
        assert least <= len(matches) <= most
        assert left_out == 0


def test_crops_across_splits_are_leakage_and_kept_in_one_new_split(tmp_path: Path) -> None:
    for number in range(SCENES):
        drawn = draw_scene(number)
        save(drawn, tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
        save(drawn.crop((20, 20, 220, 180)), tmp_path / "test" / "ab"[number % 2] / f"{100 + number}.png")
    result = audit(tmp_path, group_from="none")
    finding = result.findings[0]
    assert (finding.kind.value, finding.count) == ("near-duplicates across splits", SCENES)
    assert result.falsifies
    assert "cropped" in finding.title
    assert all(len(rows) == 2 for rows in result.duplicate_sets)


def test_many_moved_copies_of_one_image_are_one_cluster(tmp_path: Path) -> None:
    for number in range(30):
        save(draw_scene(number), tmp_path / "ab"[number % 2] / f"{number}.png")
    for degrees in range(10, 40, 10):
        save(turn(draw_scene(3), degrees), tmp_path / "b" / f"{degrees}degrees.png")
    result = audit(tmp_path, group_from="none")
    assert [len(rows) for rows in result.clusters] == [4]


def test_overlapping_tiles_of_a_large_image_are_similar_and_no_single_image(tmp_path: Path) -> None:
    """A chain of tiles connects the ends of the image, which have nothing in common."""
    large = draw_scene(0, width=3000, height=160)
    for number in range(40):
        save(large.crop((70 * number, 0, 70 * number + 160, 160)), tmp_path / "ab"[number % 2] / f"{number:02}.png")
    result = audit(tmp_path, group_from="none")
    assert not result.clusters
    (finding,) = (finding for finding in result.findings if finding.kind.value == "very similar images")
    assert finding.count >= 35
    assert "new splits may part those that form a chain" in finding.action


def test_small_images_are_not_searched(tmp_path: Path) -> None:
    for number in range(4):
        drawn = draw_scene(number)
        save(drawn.resize((60, 50)), tmp_path / "ab"[number % 2] / f"{number}.png")
        save(drawn.crop((20, 20, 220, 180)).resize((60, 50)), tmp_path / "ab"[number % 2] / f"{number}copy.png")
    assert not find(tmp_path).pairs


@pytest.mark.parametrize("value", [0, 128])
def test_images_without_detail_are_not_joined(value: int, tmp_path: Path) -> None:
    """Drawn discs differ by their place alone, and plain images by nothing that can be compared."""
    rows, columns = np.mgrid[:120, :160]
    for number in range(6):
        disc = np.hypot(rows - 40 - 6 * number, columns - 50 - 8 * number) < 30
        drawn = np.where(disc, value + 90, value).astype(np.uint8)
        save(Image.fromarray(drawn).convert("RGB"), tmp_path / "ab"[number % 2] / f"disc{number}.png")
        save(Image.new("RGB", (160, 120 + number), (value,) * 3), tmp_path / "ab"[number % 2] / f"plain{number}.png")
    assert not find(tmp_path).pairs


def test_hash_of_a_mirrored_keypoint_differs_in_the_bits_of_odd_frequencies() -> None:
    grey = shrink_grey(draw_scene(1))
    plain, mirrored = find_keypoints(grey), find_keypoints(np.ascontiguousarray(grey[:, ::-1]))
    place = {(grey.shape[1] - 1 - point["x"], int(point["y"])): point["hash"] for point in plain}
    same = [(point["hash"], place[key]) for point in mirrored if (key := (int(point["x"]), int(point["y"]))) in place]
    bits = [int(np.bitwise_count(one ^ two ^ MIRRORED)) for one, two in same]
    assert len(same) >= 40
    assert np.median(bits) <= 4, "of 64; unrelated hashes differ in 32"


def test_blurs_and_samples_are_those_of_scipy() -> None:
    grey = shrink_grey(draw_scene(1, 80, 60))
    for blurred, sigma in zip(blur(grey), SIGMAS, strict=True):
        assert np.allclose(blurred, gaussian_filter(grey, sigma, mode="nearest", truncate=6), atol=0.05)
    x, y = np.random.default_rng(0).uniform(-5, 135, (2, 500))
    assert np.allclose(sample(grey[None], x, y), map_coordinates(grey, [y, x], order=1, mode="nearest"), atol=0.2)


def test_alignment_corrects_a_rough_transform() -> None:
    drawn = draw_scene(2)
    one, two = shrink_grey(drawn), shrink_grey(turn(drawn, 10))
    cosine, sine = np.cos(np.radians(8.5)), np.sin(np.radians(8.5))
    centre = np.array([one.shape[1], one.shape[0]]) / 2
    linear = np.array([[cosine, sine], [-sine, cosine]])
    rough: NDArray[np.float64] = np.column_stack([linear, centre - linear @ centre + 1])
    assert are_copies(one, two, rough)
    plain = np.where(np.hypot(*(np.indices(one.shape) - 60)) < 25, 200, 90).astype(np.float32)
    assert not are_copies(plain, plain, np.eye(2, 3)), "a form on a plain ground is alike wherever it lies"
    assert not are_copies(one, shrink_grey(turn(draw_scene(3), 10)), rough)


def test_measurements_of_images_outside_an_index_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        save(draw_scene(number), tmp_path / "ab"[number % 2] / f"{number}.png")
    index = scan_data(tmp_path)
    former = finish(measure_images(index)).measures
    finish(measure_images(select_rows(index, [0, 1])))
    monkeypatch.setattr("convnext_cli.data.audit.measurements.read_image", None)  # nothing is decoded again
    assert np.array_equal(finish(measure_images(index)).measures, former)


def test_comparison_is_kept_by_the_content_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(SCENES):
        save(draw_scene(number), tmp_path / "ab"[number % 2] / f"{number}.png")
    save(turn(draw_scene(1), 10), tmp_path / "b" / "turned.png")
    former = audit(tmp_path, group_from="none")
    assert len(former.clusters) == 1
    with monkeypatch.context() as patch:
        patch.setattr("convnext_cli.data.audit.duplicates._compare_all", None)  # nothing is compared again
        assert audit(tmp_path, group_from="none").clusters == former.clusters
    save(draw_scene(20), tmp_path / "b" / "turned.png")
    assert not audit(tmp_path, group_from="none").clusters
