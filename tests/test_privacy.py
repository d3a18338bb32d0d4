"""Nothing leaves the machine: checked by system calls, since a library's threads pass Python's sockets by."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
SCRIPT = """
import sys
from convnext_cli.cli.app import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as stop:
        print("exit code", stop.code, "of", line)
"""
COMMANDS = """
finetune digits --offline --no-onnx --model test_convnext2 --weights none --epochs 1 --image-size 32 --output run
eval run --no-report
export run
predict digits --run run --engine onnx
predict digits/0 --run run/model.onnx
doctor --offline
""".strip()
CONNECTING = re.compile(r"(?:connect|sendto|sendmsg|bind)\(.*AF_INET6?\b.*")
LOOPBACK = re.compile(r'"127\.|"::1"|"::ffff:127\.')


def find_outside_calls(trace: str) -> list[str]:
    """Return the system calls of a trace that name an address outside this machine."""
    return [line for line in trace.splitlines() if CONNECTING.search(line) and not LOOPBACK.search(line)]


def trace(script: str, words: str, home: Path) -> tuple[str, str]:
    """Run a Python script under strace with `words` as its input and `home` as home folder; return output and trace."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CONVNEXT_ONNX", "CONVNEXT_CACHE", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")
    }
    command = [str(STRACE), "-f", "-qq", "-e", "trace=network", "-o", "net.txt", sys.executable, "-c", script]
    done = subprocess.run(
        command, input=words, capture_output=True, text=True, env=environment | {"HOME": str(home)}, check=False
    )
    if "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, Path("net.txt").read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_commands_make_no_connection_and_leave_no_device_id(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "digits").symlink_to(digits)
    home = tmp_path / "home"
    home.mkdir()
    output, calls = trace(SCRIPT, COMMANDS, home)
    codes = re.findall(r"exit code (\S+) of", output)
    assert codes == ["0"] * len(COMMANDS.splitlines()), output
    assert find_outside_calls(calls) == []
    assert [path for path in home.rglob("*") if "microsoft" in str(path).lower() or "deviceid" in path.name] == []


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_trace_shows_a_connection() -> None:
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 53)); s.close()"
    )
    _, calls = trace(script, "", Path.cwd())
    assert len(find_outside_calls(calls)) == 1
