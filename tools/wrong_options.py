"""Give each option of each command wrong values, and classify what the command then does.

    OMP_NUM_THREADS=1 python -m tools.wrong_options OUT [--seed 0] [--limit 0] [--only finetune]

OUT is a new folder, which becomes the working directory; every value is a name inside it, never a path that leads out
of it, because some options write. HOME and all caches are in it too. Each command is called in a fork of this process.
`finetune` is called with --dry-run first; what that accepts is then trained for an epoch. Flags are given values too,
and each command gets an argument more. The outcomes:

    clear     exit 1, 2 or 3 and one short line on stderr
    accepted  exit 0: the value is one that the option takes
    WRONG     a traceback, "bug", NaN in an answer, a control character, a signal, exit 4, more than 30 s (300 s for
              demo), or a change of the data

Exit code 1 where anything is WRONG.
"""

import argparse
import os
import random
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tools.commands import SECONDS, Outcome, call, call_apart, make_images, make_run, prepare_forks

VALUES = (
    "1e308", "-1", "0", "nan", "inf", "1" + "0" * 30, "", "   ", "no/such/path", "data/0", "Größe-\U0001f600",
    "\x1b[31mred\nline\t\u202e", "x" * 300, "--", "a=b:c,d;*?[", "1e-320",
)  # fmt: skip


DRY = "--dry-run"
TRIAL = "few -m test_convnext2 --weights none --image-size 32 --epochs 1 --lr 0.001 --no-check --no-autotune --no-onnx"
SLOW = {"demo": 300}  # seconds


def list_baselines(picture: str) -> dict[str, list[str]]:
    """Return the words with which each command ends well, by its name."""
    return {
        "list": [],
        "recommend": ["--dataset-size", "100"],
        "check": ["data"],
        "finetune": [*TRIAL.split(), DRY],
        "eval": ["run", "--no-report"],
        "predict": [picture, "--run", "run", "--engine", "torch"],
        "export": ["run", "-f", "hub", "-o", "hub", "--overwrite"],
        "cache": [],
        "doctor": ["--offline"],
        "demo": [],
    }


def list_options(command: str) -> tuple[list[str], list[str]]:
    """Return one name each of the command's options that take a value, and of its flags."""
    import typer

    from convnext_cli.cli.app import make_app

    group = typer.main.get_command(make_app())
    parameters = group.commands[command].params  # type: ignore[attr-defined]  # Typer's group has them
    options = [p for p in parameters if p.param_type_name == "option"]
    names = {p: max(p.opts, key=lambda flag: flag.startswith("--")) for p in options}
    taking = [name for p, name in names.items() if not getattr(p, "is_flag", False)]
    return taking, [name for p, name in names.items() if getattr(p, "is_flag", False)]


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


def list_calls(picture: str, only: str | None = None) -> list[tuple[list[str], str]]:
    """Return the words of each call, and the value that is wrong in it."""
    calls = []
    for name, baseline in list_baselines(picture).items():
        if only not in (None, name):
            continue
        taking, flags = list_options(name)
        for value in VALUES:
            calls += [([name, *baseline, option, value], value) for option in taking]
            calls += [([name, *baseline, f"{flag}={value}"], value) for flag in flags if flag.startswith("--")]
            calls.append(([name, *baseline, value], value))  # an argument more
    return calls


def try_options(
    seed: int, limit: int, only: str | None = None, caller: Callable[..., Outcome] = call, *, trials: bool = False
) -> Iterator[tuple[str, Outcome, str]]:
    """Yield the words, what came of them, and the outcome; all calls in a drawn order, or `limit` of them.

    Args:
        seed: of the order.
        limit: number of calls; 0 makes all.
        only: a command's name; None for all.
        caller: what calls a command.
        trials: train with what `finetune` accepts.
    """
    todo = list_calls(str(sorted(Path("data/1").iterdir())[0]), only)
    random.Random(seed).shuffle(todo)  # noqa: S311
    before = describe_data()
    for words, value in todo[: limit or None]:
        done = caller(*words, seconds=SLOW.get(words[0], SECONDS))
        outcome = classify(done, value)
        if trials and outcome == "accepted" and DRY in words:
            yield " ".join(map(ascii, words)), done, outcome
            words.remove(DRY)
            done = caller(*words, seconds=SECONDS)
            outcome = classify(done, value)
        if describe_data() != before:
            done, outcome = replace(done, crash="the data are not what they were"), "WRONG"
            before = describe_data()
        yield " ".join(map(ascii, words)), done, outcome
        for path in ("hub", "runs", "convnext-demo"):
            shutil.rmtree(path, ignore_errors=True)


def describe_data() -> dict[str, tuple[int, int]]:
    """Return the size and time of all files and folders that no command may change."""
    paths = [path for folder in ("data", "few") for path in Path(folder).rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="calls; 0 tries everything")
    parser.add_argument("--only", help="one command by its name")
    asked = parser.parse_args(arguments)
    out: Path = asked.out.resolve()
    out.mkdir(parents=True)
    os.chdir(out)
    prepare_forks(out)
    make_images(out)
    for digit in "012":
        Path("few", digit).mkdir(parents=True)
        for path in sorted(Path("data", digit).iterdir())[:16]:
            shutil.copy(path, Path("few", digit))
    make_run(Path("run"), Path("data"), "--lr", "0.002", "--no-onnx")
    for name, words in list_baselines(str(sorted(Path("data/1").iterdir())[0])).items():
        if asked.only in (None, name) and (done := call_apart(name, *words, seconds=300)).code:
            sys.exit(f"the call without a wrong value fails: convnext {name} {' '.join(words)}: {done.err}{done.crash}")
    shutil.rmtree("convnext-demo", ignore_errors=True)
    counts: Counter[str] = Counter()
    by_command: dict[str, Counter[str]] = {}
    for line, done, outcome in try_options(asked.seed, asked.limit, asked.only, call_apart, trials=True):
        counts[outcome] += 1
        by_command.setdefault(line.split()[0], Counter())[outcome] += 1
        last = done.crash or ascii((done.err or done.out).strip().splitlines()[-1:])
        with Path("log.txt").open("a") as log:
            print(f"{outcome}: {line}: rc {done.code}: {last[:600]}", file=log)
        if outcome == "WRONG":
            print(f"WRONG: {line}: rc {done.code}: {last[:300]}", flush=True)
    for name, found in by_command.items():
        print(f"{name}: {dict(found)}")
    print(f"tried {sum(counts.values())}: {dict(counts)}")
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
