import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_runs_offline_and_compares_pretrained_with_newly_initialised() -> None:
    """The whole path as a user starts it, with every connection refused."""
    script = (
        "import socket, sys\n"
        "def refuse(*_): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "from convnext_cli.cli.app import main\n"
        "main(['demo', '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    right = {}
    for name in ("from-scratch", "run"):
        assert result[name]["split"] == "test"
        assert result[name]["metrics"]["images"] == 270
        right[name] = result[name]["metrics"]["balanced_accuracy"]
    assert right["run"] > 0.97
    assert right["run"] > right["from-scratch"] + 0.02
