"""Run the commands of a page and put what they print into it.

    python tools/record_outputs.py docs/tutorial.md FOLDER

Each `sh` block runs in FOLDER, in the order of the page. A `text` block that follows it directly gets the output. A
comment between both chooses lines, from 1, with negative ones from the end: `<!-- lines 1-9, -2 -->`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from convnext_cli.cli.tables import fold_line

BLOCK = re.compile(
    r"^```sh\n(?P<commands>.*?)^```\n(?P<output>\n(?:<!-- lines (?P<lines>.*?) -->\n)?```text\n.*?^```\n)?", re.M | re.S
)
WIDTH = 110  # what a code block of the site shows


def choose_lines(output: list[str], wanted: str | None) -> list[str]:
    """Return some lines, with `…` for each gap."""
    if wanted is None:
        return output
    chosen: list[int] = []
    for part in wanted.split(","):
        first, last = re.fullmatch(r"\s*(-?\d+)(?:-(-?\d+))?\s*", part).groups()  # type: ignore[union-attr]
        low, high = (
            int(number) if int(number) > 0 else len(output) + int(number) + 1 for number in (first, last or first)
        )
        chosen += range(low, high + 1)
    lines: list[str] = []
    for before, number in zip([0, *chosen], chosen, strict=False):
        lines += ["…"] if number > before + 1 else []
        lines.append(output[number - 1])
    return lines + (["…"] if chosen and chosen[-1] < len(output) else [])


def record(page: Path, folder: Path) -> None:
    """Run the page's commands in `folder` and write their output into the page.

    Raises:
        subprocess.CalledProcessError: a block failed.
    """
    environment = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}

    def run(block: re.Match[str]) -> str:
        if "pip install" in block["commands"]:
            return block[0]
        done = subprocess.run(
            ["bash", "-ec", block["commands"]], cwd=folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        print(done.stdout)
        done.check_returncode()
        if block["output"] is None:
            return block[0]
        lines = [line.rstrip() for line in done.stdout.splitlines() if not re.match(r"\S.* \d+/\d+\b.*$", line)]
        comment = f"<!-- lines {block['lines']} -->\n" if block["lines"] else ""
        text = "\n".join(part for line in choose_lines(lines, block["lines"]) for part in fold_line(line, WIDTH))
        return f"```sh\n{block['commands']}```\n\n{comment}```text\n{text}\n```\n"

    page.write_text(BLOCK.sub(run, page.read_text()), encoding="utf-8")


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]))
