"""Metadata of an exported file: a round trip, and errors with the field and the value."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as replace_struct
from PIL import Image

from convnext_cli.errors import RunError
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.metadata import Metadata, read_metadata
from convnext_cli.metrics.thresholds import Target, Threshold
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.single import Single
from convnext_cli.tasks.task import Scaling
from tests.conftest import draw_picture

THRESHOLD = Threshold(target=Target("sensitivity", 0.9, "b"), threshold=0.4, reached=0.95, images=20)
CALIBRATION = Calibration(weights="0", images=60, temperature=1.5, thresholds=(THRESHOLD,))
ABOUT = Metadata(
    architecture="test_convnext",
    classes=("a", "b"),
    preprocessing=Preprocessing(
        image_size=32, crop_pct=0.95, crop_mode="center", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    calibration=CALIBRATION,
    weights="00000000",
    license="apache-2.0",
    measured={"images": 3},
)


@pytest.mark.parametrize("about", [ABOUT, replace(ABOUT, calibration=None, license=None)])
def test_metadata_survives_a_round_trip(about: Metadata) -> None:
    assert read_metadata(about.to_strings(), "a.onnx") == about


@pytest.mark.parametrize(
    ("image_size", "crop_mode", "step"),
    [
        (32, "center", "the shorter side to 33 px and the longer one in proportion, rounded down"),
        ((32, 64), "center", "at its own proportions to the smallest size that covers 33 px of height and 67 px of w"),
        ((32, 64), "squash", "to 33 px of height and 67 px of width"),
        (32, "squash", "both sides to 33 px"),
        ((32, 64), "border", "at its own proportions to the largest size within 33 px of height and 67 px of width"),
    ],
)
def test_steps_say_what_an_image_is_scaled_to(image_size: int | tuple[int, int], crop_mode: Any, step: str) -> None:
    preprocessing = replace(ABOUT.preprocessing, image_size=image_size, crop_mode=crop_mode)
    assert step in replace(ABOUT, preprocessing=preprocessing).to_strings()["steps"]


def frame(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize, crop and pad as the words of `steps` say, with Pillow alone."""
    height, width = preprocessing.size
    rows, columns = (math.floor(side / preprocessing.crop_pct) for side in (height, width))
    ratios = rows / picture.height, columns / picture.width
    across, down = picture.size
    if preprocessing.crop_mode == "squash":
        across, down = columns, rows
    elif preprocessing.crop_mode == "center" and rows == columns:
        shorter = min(picture.size)
        across, down = (rows if side == shorter else math.floor(side * rows / shorter) for side in picture.size)
    else:
        ratio = min(ratios) if preprocessing.crop_mode == "border" else max(ratios)
        across, down = (max(1, round(side * ratio)) for side in picture.size)
    picture = picture.resize((across, down), Image.Resampling.BICUBIC)
    left, top = round(max(0, across - width) / 2), round(max(0, down - height) / 2)
    picture = picture.crop((left, top, min(left + width, across), min(top + height, down)))
    framed = Image.new("RGB", (width, height), preprocessing.fill or 0)
    framed.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return framed


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("image_size", [32, (32, 64), (64, 32)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.8])
def test_words_of_the_steps_give_the_pixels_of_evaluation(crop_mode: str, image_size: Any, crop_pct: float) -> None:
    preprocessing = replace(ABOUT.preprocessing, image_size=image_size, crop_mode=crop_mode, crop_pct=crop_pct)
    for size in [(97, 61), (61, 97), (40, 31), (500, 333), (333, 501), (34, 33), (9, 200), (1, 1), (64, 32)]:
        picture = draw_picture(1, size)
        framed = np.asarray(frame(picture, preprocessing))
        assert np.array_equal(framed, transform_for_eval(np.asarray(picture), preprocessing))


TASKS: list[tuple[Any, Scaling, str]] = [
    (Single(), Scaling(temperature=1.5), "is softmax(logits / 1.5). The class with the highest probability is pred"),
    (Ordinal(), Scaling(), "The median grade is predicted: the first at which the sum of the probabilities, from the "),
    (Multilabel(), Scaling(label_thresholds=(0.25, 0.75)), "labels with probabilities >= [0.25, 0.75] are predicted."),
    (Multilabel(), Scaling(), "is sigmoid(logits). The labels with probabilities >= 0.5 are predicted."),
    (Regression(mean=9.0, std=2.0), Scaling(margin=1.5), "The 90% prediction interval is value - 3 to value + 3."),
    (Regression(log=True, std=2.0), Scaling(margin=0.5), "is value / 2.71828 to value * 2.71828."),
    (Regression(mean=9.0, std=2.0), Scaling(), "is logits * 2 + 9. There is no prediction interval."),
]  # fmt: skip


@pytest.mark.parametrize(("task", "scaling", "words"), TASKS)
def test_steps_end_with_the_prediction_of_the_task(task: Any, scaling: Scaling, words: str) -> None:
    values = {name: getattr(scaling, name) for name in scaling.__struct_fields__}
    calibration = replace_struct(CALIBRATION, **values)
    steps = replace(ABOUT, task=task.to_dict(), calibration=calibration).to_strings()["steps"]
    assert words in steps
    assert "The target sensitivity=0.9:b is positive if the probability of b is at least 0.4." in steps
    assert "novelty" not in steps


def test_steps_name_the_ood_threshold() -> None:
    calibration = replace_struct(CALIBRATION, novelty_threshold=2.5)
    steps = replace(ABOUT, calibration=calibration).to_strings()["steps"]
    assert steps.endswith("An image whose output `novelty` is above 2.5 is out-of-distribution (OOD).")


def change(name: str, place: str, value: Any) -> Callable[[dict[str, str]], None]:
    def edit(metadata: dict[str, str]) -> None:
        whole = json.loads(metadata[name])
        whole[place] = value
        metadata[name] = json.dumps(whole)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.pop("classes"), r"a\.onnx is not a file that `convnext export` wrote: it has no classes"),
        (lambda m: m.clear(), "it has no architecture"),
        (lambda m: m.update(classes="["), "a.onnx, classes, cannot be read: not JSON"),
        (lambda m: m.update(classes='["a", "a"]'), "classes: 1 different name"),
        (lambda m: m.update(classes="[]"), "classes: 0 different names"),
        (lambda m: m.update(classes='["a", 7]'), r"classes\[1\]: Expected str, got int \(it is 7\)"),
        (lambda m: m.update(classes='["a", "c"]'), r"thresholds\[0\]\.target\.name: the model has no class 'b'"),
        (change("preprocessing", "std", [0.5, 0.5, float("nan")]), r"std\[2\]: nan is not finite"),
        (change("preprocessing", "std", [0, 0, 0]), "mean and std need one channel or three"),
        (change("preprocessing", "image_size", 10**6), "image_size 1000000"),
        (change("preprocessing", "image_size", "32"), r"preprocessing\.image_size: Expected int \| array, got str"),
        (change("preprocessing", "image_size", [32, 32]), "a square image_size is one number"),
        (change("preprocessing", "crop_pct", 0), "invalid preprocessing"),
        (change("preprocessing", "crop_mode", "weird"), "invalid preprocessing"),
        (change("calibration", "label_offset", [0.5]), "label_offset: 1 value for 2 classes"),
        (change("calibration", "temperature", -1), r"calibration\.temperature: Expected float > 0.0 \(it is -1\)"),
        (change("calibration", "novelty_threshold", float("inf")), "novelty_threshold: inf is not finite"),
    ],
)
def test_invalid_metadata_raises_an_error(edit: Callable[[dict[str, str]], Any], words: str) -> None:
    metadata = ABOUT.to_strings()
    edit(metadata)
    with pytest.raises(RunError, match=words):
        read_metadata(metadata, "a.onnx")
