import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from convnext_cli.data.audit import duplicates
from tests.conftest import Convnext, draw_picture, draw_relative, save_image


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Two classes in own splits; plants 0 to 2 lie in both, one picture is in both, one file cannot be read."""
    data = tmp_path / "leaking"
    for number in range(80):
        plant = number // 2
        split = ("train", "test")[number % 2] if plant < 3 else ("test" if plant % 4 == 0 else "train")
        path = data / split / ("leaf", "root")[plant % 2] / f"plant{plant:02}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_relative(plant, number, (48, 40)).save(path)
    shutil.copyfile(data / "train/leaf/plant06_12.png", data / "test/leaf/plant08_99.png")
    (data / "train/root/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return data


@pytest.fixture
def few_pictures() -> list[Path]:
    """Twelve pictures of two classes in the folder `data`, which the test names by relative paths."""
    paths = [Path("data", ("leaf", "root")[number % 2], f"{number}.png") for number in range(12)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(number, (48, 40)).save(path)
    return paths


def test_check_reports_leakage(convnext: Convnext, leaking: Path) -> None:
    outcome = convnext("check", str(leaking))
    assert outcome.code == 3
    for words in (
        "warning: leakage: 1 image is in more than one split, as duplicates (the same pixels)",
        "warning: leakage: 3 groups (patients?) have images in both train and test",
        "a guess, supported: images of one group are more alike than images of different groups",
        "plant00_1.png -> plant00",
        "note: 1 file cannot be read as an image",
        "Scores on this data will be wrong",
    ):
        assert words in outcome.out.replace("\n", " "), outcome.out


def test_pairs_that_were_not_compared_leave_leakage_possible(
    convnext: Convnext, few_pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convnext("check", "data").out.splitlines()[-2] == "No leakage or label conflicts found."
    Image.open(few_pictures[0]).save(few_pictures[0].with_name("copy.jpg"), quality=95)
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 0)
    doubt = "No certain leakage or label conflicts found; see the notes on possible ones."
    assert convnext("check", "data").out.splitlines()[-2] == doubt
    findings = json.loads(convnext("check", "data", "--json").out)["findings"]
    assert {finding["kind"]: finding["leaves_doubt"] for finding in findings}["not compared"]


def test_check_shows_findings_in_colour(convnext: Convnext, leaking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = convnext("check", str(leaking))
    assert outcome.code == 3
    assert "\x1b[1;31m" in outcome.out
    assert "\x1b[1;33mnote: " in outcome.out


def test_data_have_the_name_that_the_user_gave(convnext: Convnext, few_pictures: list[Path]) -> None:
    Path("list.csv").write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in few_pictures))
    Path("one.csv").write_text("path,label\n" + "".join(f"{path},leaf\n" for path in few_pictures))
    with zipfile.ZipFile("pictures.zip", "w") as archive:
        for path in few_pictures:
            archive.write(path)
    for name in ("list.csv", "pictures.zip", "data"):
        assert json.loads(convnext("check", name, "--json").out)["data"] == name
        assert convnext("check", name).out.startswith(f"{name}: 12 images; ")
    assert convnext("check", "one.csv").err.splitlines()[-1].startswith("error: one.csv has one class only ('leaf')")


def test_check_tells_the_area_outside_a_centre_crop(convnext: Convnext, tmp_path: Path) -> None:
    for name, size in (("leaf", (96, 32)), ("root", (48, 48))):
        for number in range(24):
            path = tmp_path / "data" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_picture(number + 100 * len(name), size).save(path)
    outcome = convnext("check", "data")
    text = " ".join(outcome.out.split())
    assert "unseen by a square centre crop: " in text
    assert "33% of the images' area, 0% of root and 67% of leaf at --crop-pct 1" in text
    assert "note: a square centre crop never sees 33% of the images' area, on average leaf: 67% root: 0%" in text
    areas = json.loads(convnext("check", "data", "--json").out)["unseen_area"]
    assert areas["1"]["classes"] == {"leaf": pytest.approx(2 / 3, abs=0.01), "root": pytest.approx(0, abs=1e-9)}
    assert areas["0.875"]["all"] > areas["1"]["all"]


def test_chance_is_of_the_classes_that_metadata_was_tried_on(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(26):
        path = tmp_path / ("leaf", "root", "leaf", "root", "seed")[min(number // 6, 4)] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        draw_picture(number, (48, 40)).save(path)
    line = "balanced accuracy from metadata alone (chance 50%, of the 2 classes with 10 images or more): size 50%"
    assert line in convnext("check", str(tmp_path)).out


def test_check_as_json_and_its_fix_list(convnext: Convnext, leaking: Path) -> None:
    outcome = convnext("check", str(leaking), "--json", "--fix-list", "fix.csv")
    result = json.loads(outcome.out)
    kinds = {finding["kind"]: finding for finding in result["findings"]}
    assert (outcome.code, result["images"], result["groups"]["number"]) == (3, 82, 41)
    assert kinds["duplicates across splits"]["falsifies"]
    assert not kinds["unreadable"]["falsifies"]
    assert Path("fix.csv").read_text().splitlines() == [
        "path,reason",
        "train/leaf/plant06_12.png,duplicates across splits",
        "train/root/torn.png,unreadable",
    ]
    after = json.loads(convnext("check", str(leaking), "--json", "--exclude", "fix.csv", "--resplit").out)
    assert not any(finding["falsifies"] for finding in after["findings"])
    assert convnext("check", str(leaking), "--exclude", "fix.csv", "--resplit").code == 0


def test_the_next_command_of_check_fixes_the_findings(convnext: Convnext, leaking: Path) -> None:
    def find_next(*flags: str) -> str:
        last = convnext("check", "leaking", *flags).out.splitlines()[-1]
        assert last.startswith("Next: convnext ")
        return last.removeprefix("Next: convnext ")

    assert find_next() == "check leaking --resplit"
    assert find_next("--fix-list", "a list.csv") == "check leaking --exclude 'a list.csv'"
    assert find_next("--exclude", "a list.csv", "--fix-list", "none.csv").endswith(" --resplit")  # groups are left
    shutil.copyfile(leaking / "train/leaf/plant06_12.png", leaking / "train/root/plant06_13.png")
    assert find_next() == "check leaking --fix-list leave-out.csv"  # other splits do not mend a label


def test_the_fix_list_never_lands_in_the_data(convnext: Convnext, leaking: Path) -> None:
    assert convnext("check", str(leaking), "--fix-list", str(leaking / "fix.csv")).code == 2


@pytest.mark.parametrize(
    ("flags", "is_unused"),
    [("--test-fraction 0.2", True), ("--val-fraction 0.2", False), ("--test-fraction 0.2 --resplit", False)],
)
def test_a_note_says_that_the_data_have_the_split_of_a_fraction(
    convnext: Convnext, leaking: Path, flags: str, *, is_unused: bool
) -> None:
    words = ["--model", "test_convnext2", "--weights", "none", "--dry-run", "--json", *flags.split()]
    notes = json.loads(convnext("finetune", leaking, *words).out)["notes"]
    text = "--test-fraction has no effect: the data have their own splits (train, test), which --resplit draws again"
    assert (text in notes) == is_unused


def test_a_dry_run_shows_the_findings_and_resplits(convnext: Convnext, leaking: Path) -> None:
    flags = ["finetune", str(leaking), "--model", "test_convnext2", "--weights", "none", "--dry-run", "--json"]
    own = json.loads(convnext(*flags).out)
    assert own["images"] == {"train": 50, "val": 9, "test": 22}
    assert any(note.startswith("warning: leakage: 3 groups") for note in own["notes"])
    drawn = json.loads(convnext(*flags, "--resplit").out)
    assert sum(drawn["images"].values()) == 81
    assert not any("leakage" in note for note in drawn["notes"])
    folds = [json.loads(convnext(*flags, "--folds", "4", "--fold", str(k)).out)["images"] for k in (1, 2, 3, 4)]
    assert sum(images["val"] for images in folds) == 59
    assert {images["test"] for images in folds} == {22}
    assert convnext(*flags, "--folds", "4", "--fold", "5").code == 2


@pytest.mark.parametrize("kind", ["csv", "zip"])
def test_a_manifest_and_a_zip_train_like_a_folder(convnext: Convnext, leaking: Path, kind: str) -> None:
    shutil.rmtree(leaking / "test")
    (leaking / "train/root/torn.png").unlink()
    paths = sorted((leaking / "train").rglob("*.png"))
    if kind == "csv":
        rows = [f"{path.relative_to(leaking)},{path.parent.name},{path.stem.split('_')[0]}" for path in paths]
        data = leaking / "list.csv"
        data.write_text("\n".join(["path,label,patient", *rows]))
    else:
        data = leaking.with_suffix(".zip")
        with zipfile.ZipFile(data, "w") as archive:
            for path in paths:
                archive.write(path, path.relative_to(leaking / "train"))
    flags = "--model test_convnext2 --weights none --epochs 1 --image-size 32 --batch-size 16 -o run"
    assert convnext("finetune", str(data), *flags.split()).code == 0
    split = Path("run/split.csv").read_text().splitlines()
    assert len(split) == len(paths) + 1
    assert all(",plant" in line for line in split[1:])
    assert convnext("eval", "run").code == 0


def test_odd_data_are_reported_without_hanging(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / "odd" / ("leaf", "root")[number % 2] / "AB"[number // 2 % 2] / f"take#{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(number, (32, 32)).save(path)
    os.mkfifo(tmp_path / "odd/leaf/A/pipe.png")
    outcome = convnext("check", "odd", "--json")
    assert json.loads(outcome.out)["skipped"] == {
        "not a regular file (a broken link, a pipe), such as odd/leaf/A/pipe.png": 1
    }
    assert outcome.code == 0
    flags = "--model test_convnext2 --weights none --dry-run --folds 500"
    assert "too few for 500 folds" in convnext("finetune", "odd", *flags.split()).err


def test_check_refuses_data_that_cannot_be_trained_on(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / f"one/A/{number}.png", seed=number)
    outcome = convnext("check", "one")
    assert outcome.code == 3
    assert "one class only" in outcome.err
    assert "one: 3 images; 1 class\n" in outcome.out
    assert "Nothing found" not in outcome.out


def test_check_and_finetune_describe_the_layout(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(40):
        save_image(tmp_path / f"d/x_train/x_train/{'ab'[number % 2]}/{number}.png", seed=number)
    save_image(tmp_path / "d/x_pred/x_pred/1.png", seed=99)
    outcome = convnext("check", "d")
    assert outcome.code == 0
    said = " ".join(outcome.out.split())
    assert "layout the classes of the train split are the folders in x_train/x_train" in said
    assert "1 image without a class, in 'x_pred'" in said
    assert json.loads(convnext("check", "d", "--json").out)["notes"]
    dry = convnext("finetune", "d", "--model", "test_convnext2", "--weights", "none", "--dry-run", "--json")
    assert any("x_train/x_train" in note for note in json.loads(dry.out)["notes"])


def test_duplicates_across_the_folds_of_a_table_are_reported(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(20):
        save_image(tmp_path / f"i/{number}.png", size=(40, 40), seed=number % 19)  # the last is the first again
    rows = [f"i/{number}.png,{'ab'[number // 2 % 2]},{number % 2}" for number in range(20)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,fold", *rows]))
    flags = ("--model", "test_convnext2", "--weights", "none", "--dry-run", "--json", "--folds", "2", "--fold", "1")
    said = json.loads(convnext("finetune", "list.csv", *flags).out)["notes"]
    assert any("1 group or duplicate is in more than one of the table's folds" in note for note in said)
    assert not any(
        "table's folds" in note
        for note in json.loads(convnext("finetune", "list.csv", *flags, "--resplit").out)["notes"]
    )


def test_an_ambiguous_layout_is_an_error(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / f"d/{('train_images', 'test_images')[number % 2]}/{number}.png", seed=number)
    for words in (("check", "d"), ("recommend", "d"), ("finetune", "d", "--dry-run")):
        outcome = convnext(*words)
        assert outcome.code == 3
        assert "test_images, train_images are folders of splits without a folder for each class" in outcome.err
        assert "Nothing found" not in outcome.out


def test_image_root_and_exclude_decide_for_all_commands(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(40):
        save_image(tmp_path / f"pictures/{number}.png", seed=number)
        save_image(tmp_path / f"others/{number}.png", seed=number + 100)
    rows = [f"{number},{'ab'[number % 2]}" for number in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["id,label", *rows]))
    assert "more than one file" in convnext("check", "list.csv").err
    options = ("--image-root", "pictures", "--exclude", "3?.png")
    assert json.loads(convnext("check", "list.csv", "--json", *options).out)["images"] == 30
    result = json.loads(convnext("recommend", "list.csv", "--json", *options, "-o", "plan.toml").out)
    assert result["dataset_size"] == 30
    flags = ("--model", "test_convnext2", "--weights", "none", "--dry-run", "--json", "--no-check")
    dry = json.loads(convnext("finetune", "list.csv", *flags, *options).out)
    assert sum(dry["images"].values()) == 30
    planned = json.loads(convnext("finetune", "list.csv", *flags, "--config", "plan.toml").out)
    assert sum(planned["images"].values()) == 30


def test_nothing_is_written_beside_a_manifests_images(convnext: Convnext, tmp_path: Path) -> None:
    for number in range(8):
        save_image(tmp_path / f"pictures/{'ab'[number % 2]}/{number}.png", seed=number)
    paths = sorted(path.relative_to(tmp_path) for path in (tmp_path / "pictures").rglob("*.png"))
    Path("list.csv").write_text("\n".join(["path,label", *(f"{path},{path.parts[1]}" for path in paths)]))
    assert convnext("check", "list.csv", "--fix-list", "pictures/a/fix.csv").code == 2
    assert convnext("finetune", "list.csv", "--dry-run", "-o", "pictures/a/run").code == 2
    assert not list((tmp_path / "pictures").rglob("*.csv"))


def test_check_ends_with_the_next_command(convnext: Convnext, tmp_path: Path) -> None:
    for i in range(6):
        for name in ("a", "b"):
            save_image(tmp_path / f"my data/{name}/{i}.png", seed=10 * i + ord(name))
    words = ("check", "my data", "--group-from", "none")
    assert convnext(*words).out.splitlines()[-1] == "Next: convnext recommend 'my data'"
    outcome = convnext(*words, "--fix-list", "out.csv")
    assert outcome.out.splitlines()[-1] == "Next: convnext recommend 'my data'"  # nothing to leave out
    for name in ("a", "b"):
        save_image(tmp_path / f"split/train/{name}/0.png", seed=ord(name))
        save_image(tmp_path / f"split/train/{name}/1.png", seed=1 + ord(name))
        save_image(tmp_path / f"split/test/{name}/2.png", seed=ord(name))
    outcome = convnext("check", "split")
    assert outcome.code == 3
    assert outcome.out.splitlines()[-1] == "Next: convnext check split --fix-list leave-out.csv"  # labels differ too


def test_targets_are_called_what_they_are(tmp_path: Path, convnext: Convnext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{number}.png,{number + 0.5}" for number in range(12)]
    for number in range(12):
        save_image(tmp_path / f"{number}.png", seed=number)
    (tmp_path / "areas.csv").write_text("\n".join(["path,area", *rows]))
    lines = convnext("check", "areas.csv").out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["number", "images"], ["area", "12"]]


def test_folder_that_cannot_be_read_is_a_warning(
    digits: Path, convnext: Convnext, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: str) -> object:  # root may read everything
        if str(path).endswith("/1"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    words = ("finetune", digits, "--model", "test_convnext2", "--weights", "none", "--dry-run")
    assert "skipped in the data folder" not in convnext(*words).err
    monkeypatch.setattr(os, "scandir", refuse)
    outcome = convnext(*words)
    text = " ".join((outcome.out + outcome.err).split())
    assert "warning: skipped in the data folder: 1 folder that cannot be read (Permission denied)" in text


def test_several_labels_need_no_test_split(tmp_path: Path, convnext: Convnext) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = ["path,round,red,split"]
    for number in range(24):
        save_image(data / f"{number}.png", seed=number)
        lines.append(f"{number}.png,{number % 2},{number // 2 % 2},{'val' if number % 3 else 'train'}")
    (data / "t.csv").write_text("\n".join(lines))
    outcome = convnext("finetune", data / "t.csv", "--model", "test_convnext2", "--weights", "none", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "there is no test split" in outcome.out + outcome.err
