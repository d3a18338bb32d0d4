"""The choice of a framing from the images' proportions, and what it says of them."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convnext_cli.data.scan import scan_folder
from convnext_cli.data.unseen import Shape, measure_centre_crops, measure_unseen_area
from convnext_cli.errors import UsageError
from convnext_cli.models.catalog import find_model
from convnext_cli.recipes.fingerprint import DataCounts, Fingerprint, compute_fingerprint
from convnext_cli.recipes.framing import apply_framing, warn_padding, warn_unseen
from convnext_cli.recipes.plan import Plan, PlanInputs, make_plan, read_plan
from convnext_cli.recipes.recommendation import measure_plan_unseen
from convnext_cli.recipes.settings import Choice, check_settings, expand_settings

NAME = "convnextv2_tiny"  # 224 px, a centre crop of 0.875 in timm


def make_shapes(*sizes: tuple[int, int], images: int = 20) -> tuple[Shape, ...]:
    """Return shapes of images of two classes, `images` of each size (width, height)."""
    return tuple(("ab"[number % 2], *size) for size in sizes for number in range(images))


def plan_for(shapes: tuple[Shape, ...], recipe: str = "measured", **flags: object) -> Plan:
    widths = sorted(width for _, width, _ in shapes) or [0]
    heights = sorted(height for *_, height in shapes) or [0]
    fingerprint = Fingerprint(
        images=1000, classes=2, groups=0, smallest_class=("a", 500), largest_class=("b", 500), sampled=len(shapes),
        median_size=(widths[len(widths) // 2], heights[len(heights) // 2]), is_grey=False, unreadable=0, shapes=shapes,
    )  # fmt: skip
    model, tag = find_model(NAME)
    choices = {name: Choice(value=value, source="flag") for name, value in flags.items()}
    return make_plan(
        PlanInputs(
            model=model, tag=tag, counts=DataCounts(images=1000, train=1000, val=0), recipe=recipe,
            fingerprint=fingerprint, choices=choices,
        )
    )  # fmt: skip


def describe(plan: Plan) -> tuple[Any, ...]:
    return tuple(plan.choices[name].value for name in ("fit", "crop_pct", "image_size"))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(640, 640)], ("squash", 1.0, 224)),
        ([(640, 480)], ("squash", 1.0, "192x256")),
        ([(480, 640)], ("squash", 1.0, "256x192")),
        ([(1920, 1080)], ("squash", 1.0, "160x288")),
        ([(900, 300)], ("squash", 1.0, "128x384")),
        ([(640, 120)], ("squash", 1.0, "96x512")),
        ([(640, 200), (200, 640)], ("pad", 1.0, 224)),
    ],
)
def test_auto_gives_the_input_the_proportions_that_all_images_have(
    sizes: list[tuple[int, int]], expected: tuple[Any, ...]
) -> None:
    plan = plan_for(make_shapes(*sizes), fit="auto")
    assert describe(plan) == expected
    height, width = plan.settings.input_size
    assert 0.75 <= height * width / 224**2 <= 1.25, "training takes about as long"
    assert plan.choices["fit"].source == "rule"
    assert "evaluation sees the whole image" in plan.choices["fit"].reason
    assert ("the images have the input's proportions" in plan.choices["fit"].reason) == (
        sizes not in ([(1920, 1080)], [(640, 200), (200, 640)])
    )


def test_auto_keeps_a_chosen_size() -> None:
    assert describe(plan_for(make_shapes((640, 120)), fit="auto", image_size=160)) == ("pad", 1.0, 160)
    reason = plan_for(make_shapes((640, 120)), fit="auto", image_size=160).choices["fit"].reason
    assert reason.endswith("at its own proportions: no image is within 3:2 of the proportions of 160 x 160 px")
    assert describe(plan_for(make_shapes((640, 120)), fit="auto", image_size="64x320")) == ("squash", 1.0, "64x320")


def test_auto_waits_for_the_images_of_a_plan_without_data() -> None:
    plan = plan_for((), fit="auto")
    assert describe(plan) == ("auto", "auto", 224)


def test_a_crop_has_the_fraction_of_the_weights_and_others_the_whole_image() -> None:
    shapes = make_shapes((640, 480))
    fits = {fit: plan_for(shapes, fit=fit) for fit in ("crop", "pad", "squash", "weights")}
    assert {fit: plan.choices["crop_pct"].value for fit, plan in fits.items()} == {
        "crop": 0.875, "pad": 1.0, "squash": 1.0, "weights": 0.875,
    }  # fmt: skip
    assert plan_for(shapes, fit="pad", crop_pct=0.9).choices["crop_pct"].value == 0.9
    assert fits["crop"].choices["fit"].reason == "evaluation never sees 43% of the images' area"
    assert fits["pad"].choices["fit"].reason == "evaluation sees the whole image"


@pytest.mark.parametrize("recipe", ["specification", "published"])
def test_other_recipes_keep_the_framing_of_the_weights(recipe: str) -> None:
    assert describe(plan_for(make_shapes((640, 480)), recipe=recipe)) == ("weights", 0.875, 224)


def test_a_plan_file_keeps_the_framing_and_an_earlier_one_that_of_the_weights(tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.toml", plan_for(make_shapes((640, 480)), fit="auto")
    path.write_text(plan.to_toml())
    choices = read_plan(path).choices
    assert [choices[name].value for name in ("fit", "crop_pct", "image_size")] == ["squash", 1.0, "192x256"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(("fit =", "crop_pct ="))))
    choices = read_plan(path).choices
    assert [choices[name].value for name in ("fit", "crop_pct")] == ["weights", "auto"]
    path.write_text("[settings]\nepochs = 3\n")
    assert "fit" not in read_plan(path).choices


def test_unseen_area_is_told_by_class() -> None:
    shapes = [*(("square", 100, 100),) * 20, *(("wide", 300, 100),) * 20]
    _, tag = find_model(NAME)
    assert tag is not None
    unseen = measure_unseen_area(shapes, apply_framing(tag.preprocessing, 224, "crop", 1.0))
    assert unseen is not None
    assert unseen.by_class == {"square": pytest.approx(0, abs=1e-9), "wide": pytest.approx(2 / 3, abs=0.01)}
    assert unseen.is_uneven
    assert str(unseen) == "33% of the images' area, 0% of square and 67% of wide"
    text = warn_unseen(unseen)
    assert text is not None
    assert text.startswith("evaluation never sees 33% of the images' area, 0% of square and 67% of wide")
    assert measure_centre_crops(shapes)[1.0] == unseen
    few = measure_unseen_area(shapes[15:25], apply_framing(tag.preprocessing, 224, "crop", 1.0))
    assert few is not None
    assert not few.is_uneven, "five images of a class are too few to compare"


def test_a_notable_loss_gives_a_warning_and_whole_images_none() -> None:
    shapes = make_shapes((640, 480))
    _, tag = find_model(NAME)
    for fit, is_warned in (("weights", True), ("crop", True), ("pad", False), ("squash", False), ("auto", False)):
        plan = plan_for(shapes, fit=fit)
        fingerprint = Fingerprint(
            images=1, classes=2, groups=0, smallest_class=("a", 1), largest_class=("b", 1), sampled=1,
            median_size=(640, 480), is_grey=False, unreadable=0, shapes=shapes,
        )  # fmt: skip
        assert (warn_unseen(measure_plan_unseen(plan, tag, fingerprint)) is not None) == is_warned, fit


def test_fingerprint_has_the_shapes_of_a_sample(tmp_path: Path) -> None:
    for name, size in (("a", (30, 20)), ("b", (20, 40))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size, "red").save(tmp_path / name / "1.png")
    assert compute_fingerprint(scan_folder(tmp_path)).shapes == (("a", 30, 20), ("b", 20, 40))


def test_python_functions_take_paths_and_folds() -> None:
    assert expand_settings({"image_root": Path("a/b"), "exclude": Path("x.txt")}) == {
        "image_root": str(Path("a/b")), "exclude": "x.txt",
    }  # fmt: skip
    assert expand_settings({"fold": "2/5"}) == {"fold": 2, "folds": 5}
    assert expand_settings({"fold": "2", "folds": 5}) == {"fold": 2, "folds": 5}
    with pytest.raises(UsageError, match="'two' is not a fold; write K/N, such as 2/5"):
        expand_settings({"fold": "two"})
    with pytest.raises(UsageError, match="--fold 2/5 and --folds 3 differ"):
        expand_settings({"fold": "2/5", "folds": 3})


def test_sizes_of_the_python_function_and_of_plans() -> None:
    assert expand_settings({"image_size": (224, 320)})["image_size"] == "224x320"
    assert expand_settings({"image_size": [96, 96]})["image_size"] == 96
    assert expand_settings({"image_size": "64X96"})["image_size"] == "64x96"
    for size in ("64x100", "64x64", "large", 31, 4096, 1.5):
        with pytest.raises(UsageError, match="image_size = "):
            check_settings({"image_size": size})
    with pytest.raises(UsageError, match=r"crop_pct = 0 is below 0.1; fit = 'centre' must be one of auto, crop"):
        check_settings({"crop_pct": 0, "fit": "centre"})


def test_lines_that_padding_makes_thin_strips_are_warned_of() -> None:
    """Lines of 8000 x 200 px become 6 px high."""
    shapes = make_shapes((8000, 200))
    plan = plan_for(shapes)
    text = warn_padding(shapes, plan.settings.image_size, plan.settings.fit)
    assert text == (
        "images of 8000 x 200 px become strips of 6 px in an input of 224 x 224 px: small details are lost. Cut them "
        "into parts, or give --image-size 64x960"
    )
    assert warn_padding(shapes, "64x960", "pad") is None
    for sizes in ([(640, 200), (200, 640)], [(1500, 200), (200, 200)]):
        assert warn_padding(make_shapes(*sizes), 224, "pad") is None
    for sizes in ([(640, 480)], [(640, 120)]):
        plan = plan_for(make_shapes(*sizes))
        assert warn_padding(make_shapes(*sizes), plan.settings.image_size, plan.settings.fit) is None
