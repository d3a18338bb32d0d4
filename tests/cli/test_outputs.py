"""Every option that names a file or a folder to write: existing files, links, pipes, the data folder, a full disk."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from convnext_cli import evaluate
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext, limit_files, save_image

WRITERS = {
    "fix-list": "check data --fix-list {}",
    "plan": "recommend --dataset-size 100 -o {}",
    "plan for data": "recommend data -o {}",
    "onnx": "export run -o {}",
    "int8": "export run --int8 -o {}",
    "pt2": "export run --format pt2 -o {}",
}


@pytest.fixture(scope="module")
def run_copy(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A calibrated copy of the run that a test may write to."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("report.html", "plots", "tests.jsonl"))
    evaluate(folder, split="val")
    return RunFolder(folder)


@pytest.fixture
def place(tmp_path: Path, run_copy: RunFolder) -> Path:
    (tmp_path / "run").symlink_to(run_copy.path)
    for k in range(12):
        save_image(tmp_path / f"data/{'ab'[k % 2]}/{k}.png", (20, 16), seed=k)
    return tmp_path


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_an_existing_file_a_link_and_a_pipe_are_left_alone(convnext: Convnext, place: Path, command: str) -> None:
    (place / "mine.txt").write_text("my own labels")
    (place / "link").symlink_to("mine.txt")
    os.mkfifo(place / "pipe")
    for name, words in (("mine.txt", "exists already"), ("link", "a symbolic link"), ("pipe", "a pipe")):
        for more in ([], ["--overwrite"]):
            if (name, more) == ("mine.txt", ["--overwrite"]):
                continue
            outcome = convnext(*command.format(name).split(), *more)
            assert outcome.code == 2
            assert words in outcome.err
    assert (place / "mine.txt").read_text() == "my own labels"
    assert (place / "link").is_symlink()
    assert (place / "pipe").is_fifo()
    assert not list(place.glob(".*"))


def test_with_overwrite_a_plan_and_a_fix_list_are_replaced(convnext: Convnext, place: Path) -> None:
    for command in (WRITERS["fix-list"], WRITERS["plan"]):
        (place / "mine.txt").write_text("old")
        outcome = convnext(*command.format("mine.txt").split(), "--overwrite")
        assert outcome.code == 0, outcome.err
        assert (place / "mine.txt").read_text() != "old"


@pytest.mark.parametrize("command", [*WRITERS.values(), "export run --format hub -o {}", "finetune data -o {}"])
def test_nothing_is_written_into_the_data(convnext: Convnext, place: Path, run_copy: RunFolder, command: str) -> None:
    data = str(run_copy.read_split().root if command.startswith("export") else place / "data")
    if command == WRITERS["plan"]:
        return  # it has no data
    before = sorted(Path(data).rglob("*"))
    for name in (f"{data}/new", f"{before[0]}/new"):
        outcome = convnext(*command.format(name).split())
        assert (outcome.code, "would lie in the data folder" in outcome.err) == (2, True), outcome.err
    assert sorted(Path(data).rglob("*")) == before


def test_a_file_beside_a_csv_is_allowed_and_among_its_images_refused(convnext: Convnext, place: Path) -> None:
    rows = [f"data/{'ab'[k % 2]}/{k}.png,{'ab'[k % 2]}" for k in range(12)]
    (place / "list.csv").write_text("\n".join(["path,label", *rows]))
    assert convnext("recommend", "list.csv", "-o", "plan.toml").code == 0
    for folder in ("data", "data/a"):
        assert convnext("recommend", "list.csv", "-o", f"{folder}/plan.toml").code == 2
        assert not (place / folder / "plan.toml").exists()


def test_the_demo_does_not_write_into_other_folders(convnext: Convnext, place: Path) -> None:
    (place / "digits/7").mkdir(parents=True)
    (place / "digits/7/0000.png").write_text("mine")
    outcome = convnext("demo", "-o", place)
    assert (outcome.code, "was not written by a demo" in outcome.err) == (2, True)
    assert [path.name for path in (place / "digits").rglob("*")] == ["7", "0000.png"]


FULL = {
    "recommend --dataset-size 100 -o plan.toml": 100,
    "check data --fix-list fix.csv": 5,
    "export run -o model.onnx": 100_000,
    "export run --format pt2 -o model.pt2": 100_000,
    "export run --format hub -o hub/new": 100_000,
    "eval run --split val --target sensitivity=0.9:1 --no-report --no-cache": 2000,
    "eval run --split val --no-cache": 20_000,
    "predict data/a/0.png --run run --explain heat": 500,
}


@pytest.mark.parametrize(
    ("command", "room"),
    [
        pytest.param(
            command, room, id=command, marks=[pytest.mark.slow] if ".onnx" in command or ".pt2" in command else []
        )
        for command, room in FULL.items()
    ],
)
def test_a_full_disk_is_one_error_and_leaves_nothing(
    convnext: Convnext, place: Path, run_copy: RunFolder, command: str, room: int
) -> None:
    before = {path: path.read_bytes() for top in (place, run_copy.path) for path in top.rglob("*") if path.is_file()}
    with limit_files(room):
        outcome = convnext(*command.split())
    assert outcome.code == 1, (outcome.out, outcome.err)
    assert [line for line in outcome.err.splitlines() if "error" in line.lower()] == [outcome.err.splitlines()[-1]]
    assert "o room on the disk" in outcome.err.splitlines()[-1]
    assert "bug" not in outcome.err
    after = {path: path.read_bytes() for top in (place, run_copy.path) for path in top.rglob("*") if path.is_file()}
    added = {path.name for path in after if path not in before}
    assert not any(name.endswith(".tmp") for name in added)
    assert all(path.read_bytes() == content for path, content in before.items())
    if not command.startswith("eval"):
        assert not added
        assert not (place / "hub").exists()
    else:
        assert not (run_copy.path / "report.html").exists()
    if command == "eval run --split val --no-cache":
        assert "balanced accuracy" in outcome.out, "the figures are not lost with the report"


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv (util-linux)")
@pytest.mark.parametrize("home", [None, "/nonexistent", "/root"])
def test_without_a_home_folder_the_cache_location_is_noted_once(place: Path, home: str | None) -> None:
    become = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]  # as `docker run --user 12345`
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    tried = [*become, sys.executable, "-c", "import convnext_cli"]
    if subprocess.run(tried, env=environment, capture_output=True, check=False).returncode:
        pytest.skip("no other user can read this Python environment")
    with tempfile.TemporaryDirectory() as shared:  # pytest's own folders are private
        Path(shared).chmod(0o777)
        shutil.copytree(place / "data", Path(shared) / "data")
        environment |= {"TMPDIR": shared, "LANG": "C.UTF-8"} | ({"HOME": home} if home else {})
        for _ in range(2):
            done = subprocess.run(
                [*become, sys.executable, "-m", "convnext_cli", "check", f"{shared}/data", "--json"],
                env=environment, cwd=shared, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["images"] == 12
            assert done.stderr.count(f"the cache is in {shared}/convnext-12345/convnext") == 1
        assert {path.parent.name for path in Path(shared).glob("convnext-12345/convnext/*/*")} >= {"audit"}
        assert sorted(path.name for path in Path(shared).iterdir()) == ["convnext-12345", "data"]
