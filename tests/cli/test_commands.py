import csv
import io
import json
import os
import re
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from convnext_cli.cli import console
from convnext_cli.cli.app import COMMANDS
from convnext_cli.models.catalog import load_builtin
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs.files import CALIBRATION
from convnext_cli.runs.folder import RunFolder
from tests.conftest import ROOT, Convnext, Outcome, change_json, list_images, save_image


def errors(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    "words", ["finetune good", "eval run", "check good", "predict x.png", "export run", "demo", "doctor", "list"]
)
def test_each_command_names_a_current_folder_that_was_removed(convnext: Convnext, words: str) -> None:
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()
    outcome = convnext(*words.split())
    assert outcome.code == 2
    assert outcome.err == "error: the current folder no longer exists. Change to another one, such as `cd ~`.\n"


BAD_INPUT = [
    (3, "nowhere does not exist", "finetune nowhere"),
    (3, "no images in class folders", "finetune empty"),
    (3, "one class only", "finetune one"),
    (3, "more classes (3) than images (2)", "finetune many"),
    (2, "Did you mean convnextv2_tiny", "finetune good --model convnextv2_tinny"),
    (2, "Did you mean fb_in22k", "finetune good --model convnext_tiny.fb_in22kk"),
    (2, "--lr -0.1 is not above 0. Give --lr above 0 and below 1,000,000, or auto", "finetune good --lr -0.1"),
    (2, "--epochs", "finetune good --epcohs 3"),
    (2, "'--epochs'", "finetune good --epochs three"),
    (2, "exists already", "finetune good --output one"),
    (2, "cannot read the plan", "finetune good --config nowhere.toml"),
    (1, "no weights at nowhere.pth", "finetune good --weights nowhere.pth"),
    (1, "no pretrained weights exist for convnextv2_small", "finetune good --model convnextv2_small"),
    (3, "no run under", "eval empty"),
    (3, "nowhere does not exist", "eval nowhere"),
    (3, "no images in class folders", "eval run empty"),
    (2, "only one of these can be the data", "eval run good one"),
    (2, "only one of these can be the data", "eval run good --data one"),
    (2, "cannot read the target", "eval run --target sensitivity:1"),
    (2, "cannot read the target", "eval run --target sensitivity=95:1"),
    (2, "State it, such as ppv=0.8:1@prevalence=0.02", "eval run --target ppv=0.8:1"),
    (2, "unknown class '9'", "eval run --target sensitivity=0.95:9"),
    (2, "exclude each other", "list --json --csv"),
    (2, "exclude each other", "predict text.png --run run --json --csv"),
    (2, "--csv takes no file name", "predict good/a/0.png table.csv --run run --csv"),
    (2, "would lie in the data folder", "predict good/a/0.png --run run --explain good/a/heat"),
    (2, "would lie in the data folder", "predict one --run run --explain one/heat"),
    (3, "no run under", "eval"),
    (3, "Name one with `convnext eval RUN`", "eval"),
    (3, "Name one with `convnext export RUN`", "export"),
    (3, "Name one with `convnext predict IMAGE --run RUN`", "predict good/a/0.png"),
    (2, "--fold 0/5 is no fold. Give --fold from 1/5 to 5/5", "finetune good --fold 0/5"),
    (2, "'exam' is not one of", "eval run --split exam"),
    (3, "has no trained model", "predict good/a/0.png --run empty"),
    (3, "absent does not exist. Give a folder that", "predict good/a/0.png --run absent"),
    (3, "text.png cannot be read as an image", "predict text.png --run run"),
    (3, "nowhere.png does not exist", "predict nowhere.png --run run"),
    (3, "no images in empty", "predict empty --run run"),
    (2, "Did you mean 'predict'", "predcit"),
    (2, "no data and no --dataset-size", "recommend"),
    (2, "--dataset-size 0 is below 1. Give --dataset-size of at least 1", "recommend --dataset-size 0"),
    (2, "7,000 classes for 6,000 images", "recommend --dataset-size 6000 --classes 7000"),
    (2, "--vram 1e+308 is not below 100,000. Give --vram above 0", "recommend --dataset-size 6000 --vram 1e308"),
    (2, "--exclude is empty", "check good --exclude="),
    (2, "'--output' / '-o': the path is empty", "finetune good --output="),
    (2, "'--run' / '-r': the path is empty", "predict good --run="),
    (1, "not one of timm's models", "finetune good --weights facebook/convnext-tiny-224"),
    (2, "are not those of --model", "finetune good --model convnext_tiny --weights timm/convnext_small.fb_in1k"),
    (2, "unknown licence", "recommend --dataset-size 6000 --license gpl"),
    (2, "leave no training images", "finetune good --val-fraction 0.6 --test-fraction 0.5"),
    (2, "would lie in the data folder", "finetune good --output good/run"),
    (2, "would lie in the data folder", "recommend good --output good/plan.toml"),
    (2, "cannot write text.png/plan.toml", "recommend good --output text.png/plan.toml"),
    (2, "see `convnext finetune --help`", "finetune"),
    (2, "unknown recipe", "finetune good --recipe officail"),
    (2, "Did you mean medical", "finetune good --augment medicine"),
    (2, "--rand-augment 11 is above 10. Give --rand-augment from 0 to 10", "finetune good --rand-augment 11"),
    (2, "unknown preference", "recommend --dataset-size 6000 --prefer beauty"),
    (2, "unknown family", "list --family convnextv3"),
    (2, "no model matches", "list resnet"),
    (2, "unknown model 'convnext_tinny.in12k'", "list convnext_tinny.in12k"),
]


@pytest.mark.parametrize(("code", "words", "command"), BAD_INPUT, ids=[command for _, _, command in BAD_INPUT])
def test_bad_input_is_one_line_with_a_remedy_and_its_exit_code(
    convnext: Convnext, run: RunFolder, tmp_path: Path, code: int, words: str, command: str
) -> None:
    (tmp_path / "run").symlink_to(run.path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    for i in range(10):
        save_image(tmp_path / f"good/a/{i}.png", seed=i)
        save_image(tmp_path / f"good/b/{i}.png", seed=i)
    save_image(tmp_path / "one/a/0.png")
    for name in "ab":
        save_image(tmp_path / f"many/{name}/0.png")
    (tmp_path / "many/c").mkdir()
    outcome = convnext(*command.split())
    assert outcome.code == code
    assert len(errors(outcome)) == 1, outcome.err
    assert words in errors(outcome)[0]
    assert outcome.err.strip().splitlines()[-1] == errors(outcome)[0]
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_number_out_of_range_is_named_by_its_flag_with_the_range(convnext: Convnext, command: str) -> None:
    module = import_module(f"convnext_cli.cli.{command}")
    for declared in getattr(module, COMMANDS[command]).declared.values():
        option = declared.option
        if declared.kind in (int, float) and option.parse is None:
            assert option.low is not None, f"{declared.flag} has no bound"
            value = option.low - 1
            outcome = convnext(command, *["x"] * (command == "predict"), declared.flag, value)
            assert outcome.code == 2
            side = "not above" if option.is_open else "below"
            problem = f"error: {declared.flag} {value:g} is {side} {option.low:g}"
            assert outcome.err.endswith(f"{problem}. Give {declared.flag} {option.describe_range()}.\n")


def test_list_and_its_filters(convnext: Convnext) -> None:
    rows = json.loads(convnext("list", "--json").out)
    assert len(rows) == 31 + 1, "timm's, and one for the weights in the package"
    assert len(json.loads(convnext("list", "--tags", "--json").out)) == 101 + 1
    tiny = json.loads(convnext("list", "tiny", "--family", "convnext", "--sort", "params", "--json").out)
    assert {row["model"] for row in tiny} == {"convnext_tiny", "convnext_tiny_hnf"}
    permissive = json.loads(convnext("list", "--tags", "--license", "permissive", "--json").out)
    assert permissive
    assert all(row["license"] == "apache-2.0" for row in permissive)
    table = list(csv.DictReader(io.StringIO(convnext("list", "--csv").out)))
    assert [row["model"] for row in table] == [row["model"] for row in rows]
    compared = json.loads(convnext("list", "convnext_tiny*", "--compare", "--json").out)
    assert [row["model"].partition(".")[0] for row in compared[-3:]] == [
        "resnet50",
        "swin_tiny_patch4_window7_224",
        "vit_base_patch16_224",
    ]
    assert compared[-3]["params_m"] == 25.56
    assert "convnextv2_small" in convnext("list").out
    assert "convnextv2_small" not in convnext("list", "--pretrained").out


def test_a_card_has_the_shapes(convnext: Convnext) -> None:
    card = json.loads(convnext("list", "convnextv2_tiny", "--json").out)
    assert (card["input"], card["feature_map"], card["output"]) == ([3, 224, 224], [768, 7, 7], [1000])
    text = convnext("list", "convnext_zepto_rms_ols").out
    assert "overlapping stem" in text
    assert "2,164,232" in text
    assert "No pretrained weights exist" in convnext("list", "convnextv2_small").out
    one = json.loads(convnext("list", "convnext_tiny.in12k_ft_in1k_384", "--json").out)
    assert one["feature_map"] == [768, 12, 12]
    assert [tag["name"] for tag in one["tags"]] == ["in12k_ft_in1k_384"]


def test_recommend_shows_reasons_and_the_next_command(convnext: Convnext, digits: Path) -> None:
    outcome = convnext("recommend", "--dataset-size", 6000, "--classes", 4, "--vram", 12)
    assert outcome.code == 0
    for words in ("convnextv2_tiny", "cc-by-nc-4.0", "specification 3.7", "Next: convnext finetune DATA"):
        assert words in outcome.out
    result = json.loads(convnext("recommend", digits, "--json").out)
    assert (result["model"], result["dataset_size"]) == ("convnextv2_tiny", 300)
    assert result["settings"]["lr"].keys() == {"value", "source", "reason"}
    assert next(m for m in result["models"] if m["model"] == "convnextv2_small")["why_not"]


def test_header_names_weights_of_the_user(convnext: Convnext, digits: Path, run: RunFolder) -> None:
    outcome = convnext("finetune", digits, "--model", "test_convnext2", "--weights", run.path, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert f", weights from {run.path}" in "".join((outcome.out + outcome.err).splitlines())


def test_recommend_writes_a_plan_that_finetune_reads(convnext: Convnext, digits: Path, tmp_path: Path) -> None:
    assert convnext("recommend", digits, "-o", "plan.toml").code == 0
    flags = ("--model", "test_convnext2", "--weights", "none", "--epochs", 1, "--image-size", 32, "-o", "run")
    outcome = convnext("finetune", digits, "--config", "plan.toml", *flags, "--json")
    assert outcome.code == 0, outcome.err
    shown, kept = json.loads(outcome.out)["calibration"], json.loads(Path("run/calibration.json").read_text())
    assert shown.keys() | {"digest"} == kept.keys() | {"label_scale", "label_offset", "label_thresholds", "margin"}
    epochs, freeze_epochs = (
        read_plan(tmp_path / "run/plan.toml").choices[name] for name in ("epochs", "freeze_epochs")
    )
    assert (epochs.value, epochs.source) == (1, "flag")
    assert (freeze_epochs.value, freeze_epochs.source) == (10, "measured")


def test_a_head_that_is_trained_alone_is_epoch_0(convnext: Convnext, digits: Path) -> None:
    flags = ("--weights", "builtin", "--image-size", 32, "--epochs", 0, "--freeze-epochs", 1, "--no-check", "--no-onnx")
    outcome = convnext("finetune", digits, *flags, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "Kept epoch 0, the head alone (last epoch, because" in outcome.out


def test_a_dry_run_shows_the_plan_and_writes_nothing(convnext: Convnext, digits: Path, tmp_path: Path) -> None:
    flags = ("--model", "convnextv2_nano", "--epochs", 3, "--recipe", "published", "--dry-run")
    outcome = convnext("finetune", digits, *flags)
    assert outcome.code == 0
    assert re.search(r"GiB; time, .+: about \d", outcome.out)
    assert "published V2 table 13" in outcome.out
    result = json.loads(convnext("finetune", digits, *flags, "--json").out)
    assert result["settings"]["epochs"] == {"value": 3, "source": "flag", "reason": ""}
    assert result["images"] == {"train": 210, "val": 45, "test": 45}
    assert result["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_augmentation_from_a_domain_a_plan_file_a_preset_and_a_flag(convnext: Convnext, digits: Path) -> None:
    def planned(*flags: object) -> dict[str, tuple[object, str]]:
        result = json.loads(convnext("finetune", digits, "--dry-run", "--json", *flags).out)["settings"]
        return {name: (result[name]["value"], result[name]["source"]) for name in ("hflip", "rotation", "rand_augment")}

    assert planned()["hflip"] == (0.0, "augmentation light")
    assert convnext("recommend", digits, "--domain", "medical", "-o", "plan.toml").code == 0
    medical = "augmentation medical"
    kept = planned("--config", "plan.toml")
    assert kept == {"hflip": (0.0, medical), "rotation": (10.0, medical), "rand_augment": (0.0, medical)}
    natural = planned("--config", "plan.toml", "--augment", "natural", "--rotation", 3)
    assert natural == {
        "hflip": (0.5, "augmentation natural"),
        "rotation": (3.0, "flag"),
        "rand_augment": (9.0, "augmentation natural"),
    }


def test_eval_and_predict_use_the_newest_run_and_name_it(
    convnext: Convnext, digits: Path, run: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(run.path)
    outcome = convnext("eval", "--json")
    assert "runs/mine (the newest)" in outcome.err
    result = json.loads(outcome.out)
    assert (result["split"], result["metrics"]["images"]) == ("test", 45)
    assert len(result["metrics"]["confusion"]) == 3

    image = sorted((digits / "0").glob("*.png"))[0]
    outcome = convnext("predict", image, "--json")
    assert "runs/mine (the newest)" in outcome.err
    [row] = json.loads(outcome.out)
    assert row["path"] == str(image)
    assert sum(entry["probability"] for entry in row["top"]) == pytest.approx(1)
    assert row["class"] == row["top"][0]["class"]


def test_eval_on_a_folder(convnext: Convnext, digits: Path, run: RunFolder, tmp_path: Path) -> None:
    outcome = convnext("eval", run.path, digits, "--json")
    assert json.loads(outcome.out)["split"] == "test", "its own data: its own split holds"
    other = tmp_path / "other/0"
    other.mkdir(parents=True)
    for path in sorted((digits / "0").glob("*.png"))[:30]:
        (other / path.name).symlink_to(path)
    outcome = convnext("eval", run.path, tmp_path / "other")
    assert "images were trained on; the scores are too high" in outcome.err
    assert "no image of class 1, class 2" in outcome.err
    (tmp_path / "other/-").mkdir()  # sorted before class 0
    again = convnext("eval", run.path, tmp_path / "other")
    assert (again.code, again.out) == (0, outcome.out), "a class without images changes nothing"
    save_image(tmp_path / "other/cat/1.png")
    outcome = convnext("eval", run.path, tmp_path / "other")
    assert outcome.code == 3
    assert "1 class that the run does not know: cat. Name them as in training: 0, 1, 2; or leave out" in outcome.err


def test_moved_data_keep_their_split(convnext: Convnext, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "data")
    flags = ("--model", "test_convnext2", "--weights", "none", "--epochs", 1, "--image-size", 32, "-o", "run")
    assert convnext("finetune", "data", *flags).code == 0
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    outcome = convnext("eval", "run")
    assert outcome.code == 3
    assert "is gone" in outcome.err
    result = json.loads(convnext("eval", "run", "elsewhere", "--json").out)
    assert (result["split"], result["metrics"]["images"]) == ("test", 45)


def test_without_a_command_help_is_shown(convnext: Convnext) -> None:
    outcome = convnext()
    assert outcome.code == 0
    assert "finetune" in outcome.out
    assert not outcome.err


def test_each_row_of_predict_says_that_a_target_was_missed(
    convnext: Convnext, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    target = "sensitivity=0.5,specificity=0.2:1"
    outcome = convnext("eval", "mine", "--target", target, "--no-report")
    assert f"Target {target} is met on these images: sensitivity" in outcome.out
    assert "(confidence that it is at least 50%: " in outcome.out
    start = "Decision curve of class 1 at a prevalence of 33.3%: on these images, acting on the model is better than"
    assert start in outcome.out
    assert "PPV and NPV at a prevalence of 33.3% of class 1" in outcome.out
    change_json(CALIBRATION.path(run_copy.path), "thresholds.0.threshold", 1.1)
    outcome = convnext("eval", "mine", "--no-report")
    assert f"warning: target {target} is not met on these images: sensitivity 0.0%" in outcome.err + outcome.out
    images = list_images(run_copy, "test")[:2]
    outcome = convnext("predict", *images, "--run", "mine")
    rows = outcome.out.splitlines()
    assert len(rows) == 2
    assert all(row.endswith(f"{target}: no (missed on test: sensitivity 0.0%)") for row in rows)
    table = list(csv.DictReader(io.StringIO(convnext("predict", *images, "--run", "mine", "--csv").out)))
    assert {row["targets missed on test"] for row in table} == {f"{target}: sensitivity 0.0%"}
    parts = json.loads(convnext("predict", *images, "--run", "mine", "--json").out)
    assert [part["missed_targets"] for part in parts] == 2 * [{target: "sensitivity 0.0%"}]


def test_predict_goes_on_after_an_unreadable_image(
    convnext: Convnext, digits: Path, run: RunFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "a.png").write_text("no picture")
    (folder / "b.png").symlink_to(sorted((digits / "2").glob("*.png"))[0])
    outcome = convnext("predict", folder, "--run", run.path, "--json")
    assert outcome.code == 3
    bad, good = json.loads(outcome.out)
    assert "cannot be read" in bad["error"]
    assert good["class"] in "012"
    assert len(errors(outcome)) == 1
    outcome = convnext("predict", folder, "--run", run.path, "-k", 1)
    assert outcome.code == 3
    assert outcome.out.count("%") == 1


def test_predict_classifies_a_folder_and_counts_skipped_files(
    convnext: Convnext, digits: Path, run: RunFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    picture = Image.open(sorted((digits / "1").glob("*.png"))[0]).convert("RGB")
    for name, format in (("a.jfif", "JPEG"), ("b.pnm", "PPM"), ("c", "PNG"), ("line\nFAKE.png", "PNG")):
        picture.save(folder / name, format=format)
    (folder / "notes.txt").write_text("no image")
    (folder / "=self.png").symlink_to("=self.png")
    (tmp_path / "empty").mkdir()
    note = "note: skipped: 1 not an image"

    outcome = convnext("predict", "empty", folder, "--run", run.path, "--json")
    assert (outcome.code, note in outcome.err) == (3, True)
    *rows, last = json.loads(outcome.out)
    assert [Path(row["path"]).name for row in rows] == [
        "empty", "=self.png", "a.jfif", "b.pnm", "c", "line\nFAKE.png",
    ]  # fmt: skip
    assert ["error" in row for row in rows] == [True, True, False, False, False, False]
    assert last == {"skipped": {"not an image": 1}}
    assert "2 of 6 images cannot be read" in outcome.err

    outcome = convnext("predict", folder, "--run", run.path, "-k", 1, "--abstain")
    assert note in outcome.err
    flagged = outcome.out.count("out-of-distribution (OOD)")
    assert re.search(rf"note: flagged as out-of-distribution .*: {flagged} of 4 images", outcome.err)
    assert outcome.out.count("\n") == 4
    assert "line\\nFAKE.png" in outcome.out


def test_unreadable_images_do_not_stop_heat_maps(
    convnext: Convnext, digits: Path, run: RunFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    shutil.copyfile(sorted((digits / "1").glob("*.png"))[0], folder / f"{'😀' * 60}.png")
    (folder / "self.png").symlink_to("self.png")
    os.mkfifo(folder / "pipe.png")
    outcome = convnext("predict", folder, f"{'x' * 5000}.png", "--run", run.path, "--explain", "heat", "--json")
    assert outcome.code == 3
    rows = json.loads(outcome.out)
    assert sorted("error" in row for row in rows) == [False, True, True, True]
    [picture] = Path("heat").iterdir()
    assert picture.name.startswith("00003-😀")
    assert "3 of 4 images cannot be read" in outcome.err


@pytest.mark.parametrize("command", ["predict - --run run", "export run --images -"])
def test_an_image_on_standard_input_is_an_error(
    convnext: Convnext, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "run").symlink_to(run.path)
    raw = save_image(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    outcome = convnext(*command.split())
    assert outcome.code == 3
    assert "standard input is an image (PNG), and `-` reads a list of paths" in outcome.err


def test_names_from_folders_are_never_markup(convnext: Convnext, tmp_path: Path) -> None:
    for name in ("[red]a", "[bold]"):
        for i in range(10):
            save_image(tmp_path / "data" / name / f"{i}.png", seed=i)
    flags = ("--model", "test_convnext2", "--weights", "none", "--epochs", 1, "--image-size", 32, "-o", "run")
    assert convnext("finetune", "data", *flags).code == 0
    outcome = convnext("eval", "run", "--split", "all")
    assert outcome.code == 0, outcome.err
    assert "[red]a" in outcome.out


def test_version_is_that_of_the_distribution(convnext: Convnext) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert convnext("--version").out == f"convnext {version}\n"


def test_several_runs_are_compared_and_reported(
    convnext: Convnext, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        shutil.copytree(run.path, tmp_path / name, ignore=shutil.ignore_patterns("tests.jsonl"))
    outcome = convnext("eval", "one", "two", "--json")
    result = json.loads(outcome.out)
    assert [entry["run"] for entry in result["runs"]] == ["one", "two"]
    [pair] = result["comparisons"]
    assert (pair["first"], pair["second"], pair["p_value"]) == ("one", "two", 1.0)
    assert pair["differences"]["top1"] == {"value": 0.0, "interval": None}  # models that are alike have no variance
    assert (tmp_path / "two/report.html").exists()
    (tmp_path / "one/tests.jsonl").unlink()
    (tmp_path / "two/tests.jsonl").unlink()
    shutil.rmtree(tmp_path / "one/plots")
    (tmp_path / "one/plots").write_text("no folder")
    outcome = convnext("eval", "one", "two")
    assert outcome.code == 1
    assert "error: cannot write the report (one/plots" in outcome.err
    assert "free disk space, or add --no-report" in outcome.err
    assert "two compared with one" in outcome.out, "the comparison is not lost"
    monkeypatch.setattr(console, "PLAIN_EVERY", 0)
    outcome = convnext("eval", "one", "two", "--no-report", "--target", "sensitivity=0.9:1")
    assert "comparing: 0/1 bootstrapping the 95% CIs" in outcome.err
    progress = convnext("eval", "one", "--no-report").err.splitlines()
    assert any(re.fullmatch(r"evaluating: \d+/\d+", line) for line in progress), "the activity is not said twice"
    assert outcome.code == 0, outcome.err
    assert "two compared with one" in outcome.out
    assert "Evaluation 2 on the test split. Choosing a model by these results biases them upward." in outcome.out
    assert "sensitivity=0.9:1" in outcome.out
    assert "Report:" not in outcome.out


def test_list_shows_the_weights_in_the_package(convnext: Convnext) -> None:
    own = load_builtin()
    name = f"{own.architecture}.{own.tag.name}"
    [row] = [row for row in json.loads(convnext("list", "zepto", "--json").out) if row["model"] == name]
    assert (row["licenses"], row["top1"], row["pretrained"]) == ([own.tag.license], None, True)
    card = convnext("list", name).out
    assert all(title in card for title in own.card)
    assert own.tag.license in card


def test_the_cache_is_shown_and_cleared(
    convnext: Convnext, digits: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")  # a table folds its cells where the paths are long
    assert convnext("eval", run.path, "--no-report", "--no-cache").code == 0
    assert not (tmp_path / "cache").exists()
    assert convnext("eval", run.path, "--no-report").code == 0
    shown = json.loads(convnext("cache", "--json").out)
    [kept] = shown["sets"]
    assert (kept["root"], kept["images"]) == (str(digits), 45)
    sizes = {part["name"]: part["bytes"] for part in shown["parts"]}
    assert sizes["pictures"] == kept["size"]
    assert sum(sizes.values()) == shown["bytes"]
    text = convnext("cache").out
    assert "evaluation at 32 px" in text
    assert all(name in text for name in sizes)
    assert convnext("cache", "--clear").code == 0
    shown = json.loads(convnext("cache", "--json").out)
    assert (shown["sets"], shown["bytes"]) == ([], 0)
