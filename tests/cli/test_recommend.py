import json
import shlex
from pathlib import Path

import pytest

from convnext_cli.recipes.plan import read_plan
from tests.conftest import Convnext, save_image

FLAGS = [
    "",
    "--vram 2",
    "--image-size 160",
    "--domain medical",
    "--domain natural",
    "--domain other --recipe published",
    "--prefer speed",
    "--prefer accuracy --license permissive",
    "--license apache-2.0",
    "--recipe specification",
    "--recipe specification --domain medical --vram 80",
    "--recipe published --image-size 96 --vram 4 --prefer size",
    "--top 2",
    "--model convnext_pico",
    "--model convnextv2_nano.fcmae_ft_in22k_in1k_384 --license cc-by-nc-4.0",
    "-o 'a plan.toml' --vram 4 --recipe specification --domain natural",
]


@pytest.mark.parametrize("model", ["convnext_tiny", "convnextv2_small", "convnext_atto_rms"])
def test_random_initialisation_is_said(convnext: Convnext, model: str) -> None:
    done = convnext("recommend", "--dataset-size", 5000, "--model", model, "--weights", "none")
    assert "random initialisation" in done.out, done.err
    assert "licence of the weights" not in done.out


def values(text: str) -> dict[str, object]:
    return {name: choice["value"] for name, choice in json.loads(text)["settings"].items()}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("by", ["folder", "number"])
def test_the_next_command_has_the_settings_that_were_shown(
    convnext: Convnext, digits: Path, flags: str, by: str
) -> None:
    what = [digits] if by == "folder" else [
        "--dataset-size", 300, "--classes", 3, "--image-size", 128, "--fit", "pad",
    ]  # fmt: skip
    words = [*what, *shlex.split(flags)]
    shown = convnext("recommend", *words, "--json")
    assert shown.code == 0, shown.err
    result = json.loads(shown.out)
    command = shlex.split(result["next"])
    assert command[:2] == ["convnext", "finetune"]
    assert command[2] == (str(digits) if by == "folder" else "DATA")
    planned = convnext("finetune", digits, *command[3:], "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert values(planned.out) == values(shown.out)
    assert json.loads(planned.out)["model"] == result["weights"]
    if "--vram" not in flags:
        assert json.loads(planned.out)["seconds"] == pytest.approx(sum(result["time"].values()), rel=0.1)


def test_the_next_command_is_in_the_text_output(convnext: Convnext, tmp_path: Path) -> None:
    for name in "ab":
        for i in range(12):
            save_image(tmp_path / f"my data/{name}/{i}.png", size=(40, 40), seed=i)
    outcome = convnext("recommend", "my data")
    assert outcome.out.splitlines()[-1] == "Next: convnext finetune 'my data' --model convnextv2_tiny"
    outcome = convnext("recommend", "my data", "-o", "plan.toml")
    assert outcome.out.splitlines()[-1] == "Next: convnext finetune 'my data' --config plan.toml"
    assert "wrote the plan to plan.toml" in outcome.err
    assert read_plan(Path("plan.toml")).model == "convnextv2_tiny.fcmae_ft_in22k_in1k"


def test_a_plan_given_as_config_keeps_its_reasons(convnext: Convnext, digits: Path) -> None:
    shown = json.loads(convnext("recommend", digits, "-o", "plan.toml", "--json").out)["settings"]
    planned = json.loads(convnext("finetune", digits, "--config", "plan.toml", "--dry-run", "--json").out)["settings"]
    assert planned == shown


def test_grey_images_are_assumed_medical_with_a_note(convnext: Convnext, tmp_path: Path) -> None:
    from PIL import Image

    for name in "ab":
        (tmp_path / f"data/{name}").mkdir(parents=True)
        for i in range(12):
            Image.effect_noise((120, 100), 10 + i).save(tmp_path / f"data/{name}/{i}.png")

    def choose(*words: str) -> tuple[object, bool, bool]:
        result = json.loads(convnext(*words, "--json").out)
        notes = " ".join(result.get("notes", []) + result.get("warnings", []))
        return result["settings"]["rotation"]["value"], "as X-rays are" in notes, "overrides it" in notes

    assert choose("recommend", "data") == (10.0, True, True)
    assert choose("recommend", "data", "--domain", "other") == (0.0, False, False)
    assert choose("recommend", "data", "--recipe", "published") == (0.0, False, False), "it has its own"
    assert choose("finetune", "data", "--dry-run") == (10.0, True, True)
    assert choose("finetune", "data", "--dry-run", "--augment", "light") == (0.0, False, False)
    assert choose("finetune", "data", "--dry-run", "--rotation", "3") == (3.0, True, True)
    size = json.loads(convnext("recommend", "data", "--json").out)["settings"]["image_size"]
    assert size["value"] == "128x160", "120 x 100 px, enlarged as little as possible"
    assert "109 px" in size["reason"]


def test_a_dry_run_shows_sizes_time_an_unusual_lr_and_the_next_command(convnext: Convnext, digits: Path) -> None:
    words = ("finetune", digits, "--model", "convnext_base", "--lr", 0.05, "--image-size", 160, "--no-check")
    outcome = convnext(*words, "--dry-run")
    assert "input (3, 160, 160) -> features (1024, 5, 5) -> pooled (1024,) -> output (3,)" in outcome.out
    assert "lr 0.05 is outside the range for convnext_base, 0.0001 to 0.00015 at batch 128" in outcome.err
    expected = f"Next: convnext finetune {digits} --no-check --model convnext_base --lr 0.05 --image-size 160"
    assert outcome.out.splitlines()[-1] == expected
    assert "start 8 s" in outcome.out


def test_classes_with_data_are_a_usage_error(convnext: Convnext, digits: Path) -> None:
    outcome = convnext("recommend", digits, "--classes", 4)
    assert outcome.code == 2
    assert "counted from the data" in outcome.err


def test_recommend_tells_the_area_that_evaluation_never_sees(convnext: Convnext, tmp_path: Path) -> None:
    for name in "ab":
        for i in range(12):
            save_image(tmp_path / f"data/{name}/{i}.png", size=(90, 30), seed=i)
    whole, cropped = convnext("recommend", "data"), convnext("recommend", "data", "--fit", "crop")
    assert "never seen by evaluation: 0% of the images' area with this plan" in whole.out
    assert "evaluation never sees" not in whole.out + whole.err
    assert "evaluation never sees 74% of the images' area: what lies at the edge has no effect" in cropped.err
    plan = json.loads(convnext("recommend", "data", "--fit", "crop", "--json").out)
    assert plan["unseen_area"]["all"] == pytest.approx(0.74, abs=0.01)
    assert "shapes" not in plan["fingerprint"]


@pytest.mark.parametrize(
    ("column", "cells", "said", "unsaid"),
    [
        (
            "age",
            [1.5 * place for place in range(12)],
            ["12 images; one number (age);"],
            ["per class", "label_smoothing"],
        ),
        (
            "a,b",
            ["0,0", "1,1", *["1,0"] * 10],
            ["12 images; 2 labels;", "judge by the ROC AUC", "asymmetric"],
            ["sampler"],
        ),
        ("grade", [1] + [0] * 11, ["fewest of 1 (1): judge by balanced", "--imbalance sampler", "label_smoothing"], []),
    ],
)
def test_recommend_speaks_of_the_task(
    convnext: Convnext, tmp_path: Path, column: str, cells: list[object], said: list[str], unsaid: list[str]
) -> None:
    """A column of numbers was "12 images in 1 class", with label smoothing; labels were told to be sampled."""
    rows = []
    for place, cell in enumerate(cells):
        save_image(tmp_path / f"images/{place}.png", seed=place)
        rows.append(f"images/{place}.png,{cell}\n")
    (tmp_path / "data.csv").write_text(f"path,{column}\n{''.join(rows)}")
    shown = convnext("recommend", tmp_path / "data.csv", "--weights", "builtin")
    for words in said:
        assert words in shown.out + shown.err
    for words in unsaid:
        assert words not in shown.out + shown.err
