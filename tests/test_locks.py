import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_cli.errors import RunError
from convnext_cli.locks import LOCK, check_unlocked, is_locked, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from convnext_cli.locks import lock_folder
with lock_folder(Path("run")):
    print("held", flush=True)
    time.sleep(600)
"""


def test_folder_is_locked_by_one_process_at_a_time() -> None:
    folder = Path("a/run")
    with lock_folder(folder) as is_held:
        assert is_held
        assert is_locked(folder)
        with pytest.raises(
            RunError, match=rf"a/run is in use: process {os.getpid()} on .* trains into it\. Wait until"
        ):
            check_unlocked(folder)
        with pytest.raises(RunError, match="is in use"), lock_folder(folder):
            pass
        assert is_locked(folder), "a refused process does not release it"
    assert not Path("a").exists(), "empty folders that the lock made are removed"
    with lock_folder(folder):
        (folder / "plan.toml").touch()
    assert [path.name for path in folder.iterdir()] == ["plan.toml"]
    check_unlocked(folder)


def test_new_folder_is_made_once() -> None:
    with lock_folder(Path("run"), is_new=True), pytest.raises(FileExistsError), lock_folder(Path("run"), is_new=True):
        pass
    Path("file").touch()
    for path in (Path("file"), Path("file/run")):
        with pytest.raises(RunError, match="cannot write file"), lock_folder(path):
            pass
    with pytest.raises(RunError, match="cannot write file"), lock_folder(Path("file/run"), is_new=True):
        pass


def test_kill_releases_the_lock() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"process {process.pid} on"):
            check_unlocked(Path("run"))
        process.send_signal(signal.SIGKILL)
    assert Path("run", LOCK).exists()
    assert not is_locked(Path("run"))
    with lock_folder(Path("run")):
        pass
    assert list(Path("run").iterdir()) == [], "the killed process made the folder"
