"""The shifts of the drift benchmark change images as they say, and its samples are of whole patients."""

import csv
from pathlib import Path

import numpy as np

from benchmarks.drift import SHIFTS, choose
from benchmarks.sites import write_data
from convnext_cli.inference.drift import ImageMeasures
from convnext_cli.metrics.drift import measure_corners
from tests.conftest import draw_picture


def test_each_shift_changes_an_image_and_keeps_its_shape() -> None:
    image = np.asarray(draw_picture(1, (128, 96)))
    for name, shift in SHIFTS.items():
        shifted = shift(image)
        assert (shifted.shape, shifted.dtype) == (image.shape, image.dtype)
        assert np.array_equal(shifted, image) == (name == "none")
    assert SHIFTS["gamma 0.6"](image).mean() > SHIFTS["gamma 0.8"](image).mean() > image.mean()
    assert not SHIFTS["border 8%"](image)[:7].any()
    before, after = (measure_corners(each[None])[0] for each in (image, SHIFTS["scanner text"](image)))
    assert (after[:2] > before[:2]).all()
    assert np.array_equal(after[2:], before[2:])


def test_sample_has_all_images_of_its_patients() -> None:
    measures = ImageMeasures(values={"ood": np.arange(6.0)}, targets=np.arange(6), groups=list("aabbcc"))
    chosen = choose(measures, {"a", "c"})
    assert chosen.targets.tolist() == [0, 1, 4, 5]
    assert chosen.values["ood"].tolist() == [0, 1, 4, 5]
    assert chosen.groups == list("aacc")


def test_pictures_of_sites_are_written_with_their_table(tmp_path: Path) -> None:
    with write_data(tmp_path, 30).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert {row["site"] for row in rows} == {"A", "B", "C"}
    assert all((tmp_path / row["path"]).is_file() for row in rows)
