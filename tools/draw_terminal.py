"""Draws what a command prints as a terminal picture.

    python tools/draw_terminal.py docs/demo.svg convnext demo

The command runs for real; its two streams are drawn in the order in which it wrote them.
"""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 110


def draw(path: Path, command: list[str]) -> None:
    """Runs `command` and writes the picture to `path` (SVG).

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {' '.join(command)}", style="bold"))
        console.print(Text.from_ansi(done.stdout.rstrip()))
    path.write_text(console.export_svg(title="convnext"), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2:])
    print(f"wrote {sys.argv[1]}")
