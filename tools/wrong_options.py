"""Give each option of each command wrong values, and classify what the command then does.

    python -m tools.wrong_options OUT [--seed 0] [--limit 0]

OUT is a new folder, which becomes the working directory; every value is a name inside it, never a path that leads out
of it, because some options write. HOME and all caches are in it too. Commands are called in this process, `finetune`
with --dry-run. The outcomes:

    clear     exit 2 or 3 (1 for weights or an export that cannot be had) and one short line on stderr
    accepted  exit 0: the value is one that the option takes
    WRONG     a traceback, "bug", NaN in an answer, a control character, or more than 30 s

Exit code 1 where anything is WRONG.
"""

import argparse
import os
import random
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools.damage_runs import Outcome, call, make_images, make_run

VALUES = (
    "1e308", "-1", "0", "nan", "inf", "1" + "0" * 30, "", "   ", "no/such/path", "data/0", "Größe-\U0001f600",
    "\x1b[31mred\nline\t\u202e", "x" * 300, "--", "a=b:c,d;*?[", "1e-320",
)  # fmt: skip


def list_baselines(picture: str) -> dict[str, list[str]]:
    """Return the words with which each command ends well, by its name."""
    return {
        "list": [],
        "recommend": ["--dataset-size", "100"],
        "check": ["data"],
        "finetune": ["data", "-m", "test_convnext", "--weights", "none", "--dry-run", "--no-audit"],
        "eval": ["run", "--no-report"],
        "predict": [picture, "--run", "run", "--engine", "torch"],
        "export": ["run", "-f", "hub", "-o", "hub", "--overwrite"],
    }


def list_options(command: str) -> list[str]:
    """Return the command's options that take a value, one name of each."""
    import typer

    from convnext_cli.cli.app import app

    group = typer.main.get_command(app)
    parameters = group.commands[command].params  # type: ignore[attr-defined]  # Typer's group has them
    return [p.opts[-1] for p in parameters if p.param_type_name == "option" and not getattr(p, "is_flag", False)]


def classify(done: Outcome, value: str) -> str:
    """Say which of the outcomes it is; what was given may be told again."""
    text = done.out + done.err
    if done.crash or "This is a bug" in text or "Traceback" in text:
        return "WRONG"
    if any(unicodedata.category(sign) == "Cc" and sign != "\n" for sign in text):
        return "WRONG"
    if done.code == 0:
        has_nan = "NaN" in done.out or (" nan " in done.out and value != "nan")
        return "WRONG" if has_nan else "accepted"
    lines = [line for line in done.err.splitlines() if line]
    return "clear" if done.code in (1, 2, 3) and lines and len(lines[-1]) < 1200 else "WRONG"


def try_options(seed: int, limit: int) -> Iterator[tuple[str, Outcome, str]]:
    """Yield the words, what came of them, and the outcome; all combinations in a drawn order, or `limit` of them."""
    baselines = list_baselines(str(sorted(Path("data/1").iterdir())[0]))
    todo = [(name, option, value) for name in baselines for option in list_options(name) for value in VALUES]
    todo += [(name, "", value) for name in baselines for value in VALUES]  # an argument more
    random.Random(seed).shuffle(todo)  # noqa: S311
    for name, option, value in todo[: limit or None]:
        words = [name, *baselines[name], *([option] if option else []), value]
        done = call(*words)
        yield " ".join(map(ascii, words)), done, classify(done, value)
        for path in ("hub", "runs"):
            shutil.rmtree(path, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="calls; 0 tries everything")
    asked = parser.parse_args(arguments)
    out: Path = asked.out.resolve()
    out.mkdir(parents=True)
    os.chdir(out)
    os.environ |= {"HOME": str(out), "XDG_CACHE_HOME": str(out / ".cache"), "HF_HUB_OFFLINE": "1"}
    os.environ.pop("CONVNEXT_CACHE", None)
    make_images(out)
    make_run(Path("run"), Path("data"), "--lr", "0.002")
    counts: Counter[str] = Counter()
    for words, done, outcome in try_options(asked.seed, asked.limit):
        counts[outcome] += 1
        if outcome == "WRONG":
            last = done.crash or ascii((done.err or done.out).strip().splitlines()[-1:])
            print(f"WRONG: {words}: rc {done.code}: {last[:300]}", flush=True)
    print(f"tried {sum(counts.values())}: {dict(counts)}")
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
