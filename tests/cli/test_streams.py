"""A training goes on whatever happens to its terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_cli.cli.app import main
from convnext_cli.cli.streams import Log, discard, keep_streams, survive_lost_reader
from convnext_cli.runs.folder import RunFolder
from tools.kill_test import check_files

WORDS = ["--model", "test_convnext2", "--weights", "none", "--epochs", "2", "--image-size", "32", "-o", "run"]


def open_lost(kind: str) -> int:
    """A file number that cannot be written to."""
    if kind == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        return os.open("/dev/full", os.O_WRONLY)
    theirs, ours = os.pipe() if kind == "pipe" else pty.openpty()
    os.close(theirs)
    return ours


LOST = ("pipe", "terminal", "full disk")


@pytest.mark.parametrize("kind", LOST)
def test_a_log_that_cannot_be_written_is_dropped(kind: str) -> None:
    with os.fdopen(open_lost(kind), "w", buffering=1) as stream:
        with pytest.raises(OSError, match=r"Broken pipe|Input/output error|No space left"):
            stream.write("line\n")
        log = Log(stream)
        for _ in range(3):
            assert log.write("line\n") == 5
            log.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what waits in its buffer
    Log(stream).write("closed\n")
    Log(stream).flush()


@pytest.mark.parametrize("kind", LOST)
def test_a_training_ends_well_without_a_terminal(kind: str, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> None:
        with (
            os.fdopen(open_lost(kind), "w", buffering=1) as err,
            os.fdopen(open_lost(kind), "w") as out,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stderr", err)  # here: pytest sets its own between a fixture and its test
            patch.setattr(sys, "stdout", out)
            main(["finetune", str(few_digits), *WORDS])

    with pytest.raises(SystemExit) as ended:
        train()
    assert ended.value.code == (1 if kind == "full disk" else 0), "a result that a disk has no room for is said"
    assert json.loads(Path("run/metrics.json").read_text())["epoch"] > 0
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_closed_streams_do_not_stop_a_training(few_digits: Path) -> None:
    script = 'exec "$0" -m convnext_cli finetune "$@" <&- >&- 2>&-'
    command = ["bash", "-c", script, sys.executable, str(few_digits), *WORDS]
    assert subprocess.run(command, check=False).returncode == 0
    run = RunFolder(Path("run"))
    assert run.is_finished
    assert check_files(run) > 8


@pytest.mark.parametrize("words", [["list", "--json"], ["--help"], ["cache"]])
def test_a_result_printed_to_a_closed_stdout_is_an_error(words: list[str]) -> None:
    command = ["bash", "-c", 'exec "$0" -m convnext_cli "$@" >&-', sys.executable, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: standard output is closed, so the result is lost. Redirect it to a file, or to /dev/null\n"
    )


@pytest.mark.parametrize("words", [["list", "--json"], ["--help"], ["cache"]])
def test_a_result_that_nobody_reads_ends_as_other_unix_tools_do(words: list[str]) -> None:
    with os.fdopen(open_lost("pipe"), "w") as stream:
        command = [sys.executable, "-m", "convnext_cli", *words]
        done = subprocess.run(command, check=False, stdout=stream, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_lost_reader_is_ignored_and_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(open_lost("pipe"), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with survive_lost_reader():
            sys.stdout.write("result\n")
    with os.fdopen(open_lost("full disk"), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OSError, match="No space left"), survive_lost_reader():
            sys.stdout.write("result\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_files_are_written_where_a_reader_such_as_head_ends_early(
    flags: list[str], run_copy: RunFolder, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["eval", str(run_copy.path)], ["check", str(digits), "--fix-list", "list.txt"]):
        with os.fdopen(open_lost("pipe"), "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            with pytest.raises(SystemExit) as ended:
                main([*words, *flags])
            discard(stream)
        assert ended.value.code == 0
    assert run_copy.report.exists()
    assert Path("list.txt").exists()


@pytest.mark.parametrize("words", [["list", "--json"], ["list"], ["cache"]])
def test_a_full_disk_below_stdout_is_called_so(words: list[str]) -> None:
    with os.fdopen(open_lost("full disk"), "w") as stream:
        command = [sys.executable, "-m", "convnext_cli", *words]
        done = subprocess.run(command, check=False, stdout=stream, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device: standard output. Check ")
    assert done.stderr.count("\n") == 1


def test_missing_standard_streams_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with keep_streams():
        sys.stdout.write("out\n")
        sys.stderr.write("err\n")
        assert sys.stdin.read() == ""
        for stream in (sys.stdin, sys.stdout):
            stream.close()
    sys.stderr.close()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 4, "too little memory"),
        (ImportError("libtorch.so: failed to map segment", path="/lib/_C.so"), 1, "cannot load a library (libtorch.so"),
        (ImportError("cannot import name 'x'", path="/lib/x.py"), 1, "bug"),
    ],
)
def test_too_little_memory_is_no_bug(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("convnext_cli.cli.eval.run_evaluations", fail)
    Path("run").mkdir()
    Path("run/plan.toml").touch()
    with pytest.raises(SystemExit) as ended:
        main(["eval", "run"])
    assert ended.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert ("bug" in lines[0]) == (words == "bug")


@pytest.mark.parametrize("is_loaded", [False, True])
def test_objects_are_freed_at_exit_where_a_library_reports_those_that_are_not(is_loaded: bool) -> None:
    program = (
        "import atexit, gc, sys, types\n"
        "from convnext_cli.cli.app import main\n"
        f"sys.modules |= {{'triton': types.ModuleType('triton')}} if {is_loaded} else {{}}\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "main(['--version'])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == str(not is_loaded)
