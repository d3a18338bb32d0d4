"""Puts what commands really print into the README: `python -m cogapp -P -r README.md`."""

import os
import subprocess
import sys

WIDTH = 120


def show(command: str) -> None:
    """Prints a fenced block with `command` and its output on both streams, as on a plain terminal."""
    environment = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("FORCE_COLOR", None)
    words = [sys.executable, "-m", "convnext_cli", *command.split()[1:]]
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    print(f"```text\n$ {command}", *lines, "```", sep="\n")
