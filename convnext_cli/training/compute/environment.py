"""The environment of a run: command line, versions, device, git state."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convnext_cli.machine import count_processes


def describe_environment(device: str) -> dict[str, Any]:
    """Return the content of `environment.json`."""
    packages = ("convnext-cli", "torch", "timm", "accelerate", "numpy", "pillow")
    return {
        "command": sys.argv,
        "working_directory": str(Path.cwd()),
        "git": _describe_git(),
        "device": device,
        "num_processes": count_processes(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def _describe_git() -> str | None:
    """Return commit and state (`-dirty`) of the working directory's repository; None outside of one."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
