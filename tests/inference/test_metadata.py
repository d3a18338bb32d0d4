"""Metadata of an exported file: a round trip, and errors with the field and the value."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from convnext_cli.errors import RunError
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.metadata import Metadata, read_metadata
from convnext_cli.metrics.thresholds import Target, Threshold

THRESHOLD = Threshold(target=Target("sensitivity", 0.9, "b"), threshold=0.4, reached=0.95, images=20)
ABOUT = Metadata(
    architecture="test_convnext",
    classes=("a", "b"),
    preprocessing=Preprocessing(
        image_size=32, crop_pct=0.95, crop_mode="center", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    calibration=Calibration(weights="0", images=60, unfitted_reason=None, temperature=1.5, thresholds=(THRESHOLD,)),
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
        (32, "center", "the shorter side to 33 px"),
        ((32, 64), "center", "at its own proportions to the smallest size that covers 33 px of height and 67 px of w"),
        ((32, 64), "squash", "to 33 px of height and 67 px of width"),
        (32, "squash", "both sides to 33 px"),
        ((32, 64), "border", "at its own proportions to the largest size within 33 px of height and 67 px of width"),
    ],
)
def test_steps_say_what_an_image_is_scaled_to(image_size: int | tuple[int, int], crop_mode: Any, step: str) -> None:
    preprocessing = replace(ABOUT.preprocessing, image_size=image_size, crop_mode=crop_mode)
    assert step in replace(ABOUT, preprocessing=preprocessing).to_strings()["steps"]


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
