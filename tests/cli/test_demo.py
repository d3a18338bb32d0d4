import json
import subprocess
import sys


def test_the_demo_learns_the_digits_offline() -> None:
    """The whole path as a user starts it, with every connection refused."""
    script = (
        "import socket, sys\n"
        "def refuse(*_): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "from convnext_cli.cli.app import main\n"
        "main(['demo', '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["split"] == "test"
    assert found["metrics"]["images"] == 270
    assert found["metrics"]["balanced_accuracy"] > 0.9
