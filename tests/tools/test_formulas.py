from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_cli.data.scan import scan_folder
from tools.pretraining.formulas import FAMILIES, draw_class, draw_image, write_images


@pytest.mark.parametrize("family", sorted(set(FAMILIES)))
def test_an_image_repeats_with_its_numbers_and_no_other(family: str) -> None:
    parameters = draw_class(family, np.random.default_rng(1))
    one, again, other = (draw_image(family, parameters, np.random.default_rng(k), 32) for k in (2, 2, 3))
    assert one.shape == (32, 32, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    assert np.abs(one.astype(int) - other).mean() > 5


def test_classes_are_folders_and_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    list(write_images(tmp_path / "few", classes=2, numbers=range(3), size=32, seed=0, processes=1))
    list(write_images(tmp_path / "more", classes=5, numbers=range(1, 2), size=32, seed=0, processes=2))
    few, more = scan_folder(tmp_path / "few"), scan_folder(tmp_path / "more")
    assert few.count_classes() == [3, 3]
    assert {name.partition("_")[0] for name in more.classes} == set(FAMILIES)
    for name in few.classes:
        same = f"{name}/0001.png"
        with Image.open(few.root / same) as one, Image.open(more.root / same) as other:
            assert one.tobytes() == other.tobytes()
