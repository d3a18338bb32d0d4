"""Damage each file of a run in many ways before each command, and classify what the command then does.

    python tools/damage_runs.py OUT [--seed 0] [--limit 400]

OUT is a new folder; nothing is written outside it. Two small runs are trained there on digits. Then, again and again, a
copy of one is taken, one file is damaged (cut, emptied, noise, deleted, a folder in its place, swapped with the other
run's; one value of it replaced by another type, NaN, something huge, or removed), and one command is called in this
process. The outcomes:

    same     exit 0 and the answer of the whole run
    refused  exit 2 or 3 (1 for a file that cannot be written) and one line that names the file or what is in it
    told     exit 0, another answer, and a warning on stderr
    allowed  exit 0, another answer, no word: the new value is one that the schema allows, as a person may set it
    WRONG    a traceback, "bug", NaN, more than 30 s of processor time, or another answer of a file that does not fit

Exit code 1 where anything is WRONG.
"""

import argparse
import contextlib
import csv
import io
import json
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from convnext_cli.data.digits import write_digits

SECONDS = 30
TRAINING = (
    "--model test_convnext --weights none --epochs 2 --image-size 32 --batch-size 16 --val-fraction 0.2 --no-onnx "
    "--no-probe"
)
REPLACEMENTS: tuple[Any, ...] = (
    None, True, "", "text", "../..", -1, 0, 10**30, 1e308, float("nan"), float("inf"), [], {}, [1] * 5, "\x1b[31mred"
)  # fmt: skip


class TooLongError(BaseException):
    """A command took more than `SECONDS`; no `except Exception` stops it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str
    crash: str = ""


def call(*words: str, seconds: int = SECONDS) -> Outcome:
    """Call `convnext WORDS` in this process, for at most so many seconds of processor time, ten times that in all."""
    from convnext_cli.cli.app import main

    def give_up(*_: object) -> None:
        raise TooLongError

    out, err, code, crash = io.StringIO(), io.StringIO(), 0, ""
    former = {kind: signal.signal(kind, give_up) for kind in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(words))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except TooLongError:
        crash = f"more than {seconds} s"
    except BaseException as error:  # anything that the command line let pass is what is looked for
        crash = f"{type(error).__name__}: {error}"
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for kind, handler in former.items():
            signal.signal(kind, handler)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue(), crash=crash)


def make_images(folder: Path) -> Path:
    """Write 300 digits of three classes."""
    everything = write_digits(folder / "all")
    for digit in "012":
        (folder / "data" / digit).mkdir(parents=True)
        for path in sorted((everything / digit).glob("*.png"))[:100]:
            path.rename(folder / "data" / digit / path.name)
    shutil.rmtree(everything)
    return folder / "data"


def make_run(folder: Path, data: Path, *more: str) -> Path:
    """Train a small run whose files are all there but the exported ones."""
    done = call("finetune", str(data), *TRAINING.split(), "-o", str(folder), *more, seconds=600)
    if done.code or done.crash:
        sys.exit(f"the training failed: {done.err}{done.crash}")
    return folder


def list_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value inside a JSON value, the whole included."""
    yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from list_places(part, (*place, key))


def change_json(text: str, draw: random.Random) -> tuple[str, str]:
    """Replace or remove one value of a JSON text; return what was done, and the text."""
    value = json.loads(text)
    place = draw.choice(list(list_places(value))[1:] or [()])
    if not place:
        return "the whole", json.dumps(draw.choice(REPLACEMENTS))
    node = value
    for key in place[:-1]:
        node = node[key]
    name = ".".join(map(str, place))
    if draw.random() < 0.2:
        del node[place[-1]]
        return f"{name} removed", json.dumps(value)
    node[place[-1]] = new = draw.choice(REPLACEMENTS)
    return f"{name} = {new!r}", json.dumps(value)


def change_lines(text: str, draw: random.Random) -> tuple[str, str]:
    """Change one value of one of a text's JSON lines."""
    lines = text.splitlines()
    at = draw.randrange(len(lines))
    what, lines[at] = change_json(lines[at], draw)
    return f"line {at + 1}: {what}", "\n".join(lines) + "\n"


def change_table(text: str, draw: random.Random) -> tuple[str, str]:
    """Change one cell of a CSV text, or cut one row."""
    rows = list(csv.reader(io.StringIO(text)))
    at, column = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    if draw.random() < 0.2:
        del rows[at][column:]
        what = f"row {at} cut at column {column}"
    else:
        rows[at][column] = new = str(draw.choice(REPLACEMENTS))
        what = f"row {at}, column {column} = {new!r}"
    told = io.StringIO()
    csv.writer(told).writerows(rows)
    return what, told.getvalue()


def change_plan(text: str, draw: random.Random) -> tuple[str, str]:
    """Change one value of a plan's settings."""
    lines = text.splitlines()
    at = draw.choice([at for at, line in enumerate(lines) if " = " in line and not line.startswith("#")])
    name = lines[at].partition(" = ")[0]
    new = draw.choice(["-1", "0", "1e308", "nan", '"text"', "true", "[]", "10000000000000000000000", ""])
    lines[at] = f"{name} = {new}" if new else f"# {name}"
    return f"{name} = {new}", "\n".join(lines) + "\n"


CHANGES: dict[str, Callable[[str, random.Random], tuple[str, str]]] = {
    ".json": change_json, ".jsonl": change_lines, ".csv": change_table, ".toml": change_plan,
}  # fmt: skip


def change_tensors(path: Path, draw: random.Random) -> str:
    """Change one tensor of a safetensors file."""
    from safetensors import safe_open

    arrays = dict(load_file(path))
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    if not arrays:
        return "nothing in it"
    name = draw.choice(sorted(arrays))
    what = draw.choice(["NaN", "removed", "longer", "zeros", "another type", "renamed"])
    array = arrays.pop(name)
    if what == "NaN":
        array = np.full_like(array, np.nan) if array.dtype.kind == "f" else array - 100
    elif what == "longer":
        array = np.stack([array, array])
    elif what == "zeros":
        array = np.zeros_like(array)
    elif what == "another type":
        array = array.astype(np.int32)
    if what != "removed":
        arrays["renamed" if what == "renamed" else name] = array
    save_file(arrays, path, metadata=metadata)
    return f"{name}: {what}"


def damage(path: Path, other: Path, draw: random.Random) -> str:
    """Damage a file in one way; return which."""
    kinds = ["cut", "emptied", "noise", "deleted", "folder", "swapped"] + ["changed"] * 6
    kind = draw.choice(kinds)
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(draw.randbytes(200))
    elif kind == "deleted":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "swapped":
        if not other.is_file():
            path.unlink()
            return "deleted"
        shutil.copyfile(other, path)
    elif path.suffix == ".safetensors" and len(content) > 8:
        return change_tensors(path, draw)
    elif path.suffix in CHANGES:
        what, text = CHANGES[path.suffix](content.decode(errors="surrogateescape"), draw)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        return what
    else:
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + draw.randbytes(8) + content[at + 8 :])
        return f"8 bytes at {at}"
    return kind


def plain(text: str) -> Any:
    """Read the JSON that a command printed, without what differs from call to call."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, dict):
        for key in ("run", "test_number", "notes", "path", "bytes"):
            value.pop(key, None)
    return value


def name_notes(text: str) -> Any:
    """Return the notes in the JSON that a command printed."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value.get("notes") if isinstance(value, dict) else None


def is_close(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same but for rounding."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return abs(one - other) <= 1e-5
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    return bool(one == other)


def classify(done: Outcome, whole: Outcome, run: Path, reference: Path, what: str) -> str:
    """Say which of the outcomes it is."""
    text = done.out + done.err
    lines = [line for line in done.err.splitlines() if line]
    if done.crash or "This is a bug" in text or "Traceback" in text or "\x1b" in text:
        return "WRONG"
    if done.code:
        is_clear = done.code in (1, 2, 3) and lines and len(lines[-1]) < 600
        return "refused" if is_clear else "WRONG"
    if "NaN" in done.out or "Infinity" in done.out or " nan" in done.out:
        return "WRONG"
    if run.exists() and reference.exists() and run.read_bytes() != reference.read_bytes():
        return "WRONG" if "model.safetensors" not in what else "told"
    if is_close(plain(done.out), plain(whole.out)):
        return "same"
    said = (
        "note: " in done.err or "warning" in done.err or '"notes": ["' in done.out.replace("\n", "").replace("  ", "")
    )
    return "told" if said or plain(whole.out) == plain(done.out) else "allowed"


def list_commands(picture: Path) -> dict[str, Callable[[Path, Path], list[str]]]:
    """Return the commands by name; each takes a run and a folder to write to."""
    return {
        "predict": lambda run, _: ["predict", str(picture), "--run", str(run), "--engine", "torch", "--json"],
        "predict --abstain": lambda run, _: ["predict", str(picture), "--run", str(run), "--abstain", "--json"],
        "eval": lambda run, _: ["eval", str(run), "--no-report", "--json"],
        "eval with report": lambda run, _: ["eval", str(run), "--json"],
        "eval --target": lambda run, _: ["eval", str(run), "--no-report", "--json", "--target", "sensitivity=0.9:1"],
        "export hub": lambda run, out: ["export", str(run), "--format", "hub", "-o", str(out / "hub"), "--json"],
        "resume": lambda run, _: ["finetune", "--resume", str(run), "--no-onnx"],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=400, help="commands to call")
    parser.add_argument("--only", help="one command by its name")
    asked = parser.parse_args(arguments)
    out: Path = asked.out.resolve()
    out.mkdir(parents=True)
    data = make_images(out)
    whole = make_run(out / "whole", data, "--lr", "auto")
    other = make_run(out / "other", data, "--lr", "0.002", "--seed", "1", "--in-chans", "1")
    counts: Counter[str] = Counter()
    by_command: dict[str, Counter[str]] = {}
    for number, (name, what, outcome, done) in enumerate(
        try_damages(out, whole, other, data, asked.seed, asked.limit, asked.only), start=1
    ):
        counts[outcome] += 1
        by_command.setdefault(name, Counter())[outcome] += 1
        if outcome in ("WRONG", "allowed"):
            told = done.crash or (done.err or done.out).strip().splitlines()[-1:]
            print(f"{number}: {outcome}: {name}: {what}: rc {done.code}: {str(told)[:300]}", flush=True)
    for name, found in sorted(by_command.items()):
        print(f"{name}: {dict(found)}")
    print(f"tried {sum(counts.values())}: {dict(counts)}")
    return 1 if counts["WRONG"] else 0


def try_damages(
    out: Path, whole: Path, other: Path, data: Path, seed: int, limit: int, only: str | None = None
) -> Iterator[tuple[str, str, str, Outcome]]:
    """Yield the command, the damage, the outcome and what was said, `limit` times."""
    draw = random.Random(seed)  # noqa: S311
    run, reference = out / "run", whole / "model.safetensors"
    commands = list_commands(sorted((data / "1").iterdir())[0])
    commands = {name: make for name, make in commands.items() if only in (None, name)}
    expected: dict[str, Outcome] = {}
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.suffix != ".png"]
    for _ in range(limit):
        name = draw.choice(sorted(commands))
        prepare(whole, run, name)
        if name not in expected:
            expected[name] = call(*commands[name](run, out), seconds=600)
            assert expected[name].code == 0, expected[name].err
            prepare(whole, run, name)
        file = draw.choice([file for file in files if (run / file).is_file()])
        what = f"{file}: {damage(run / file, other / file, draw)}"
        shutil.rmtree(out / "hub", ignore_errors=True)
        done = call(*commands[name](run, out))
        ended = run / "model.safetensors" if name == "resume" else Path("none")
        outcome = classify(done, expected[name], ended, reference, what)
        yield name, what, outcome, done


def prepare(whole: Path, run: Path, name: str) -> None:
    """Copy the whole run; for `resume`, as it was after its first epoch."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    if name == "resume":
        (run / "metrics.json").unlink()
        checkpoints = sorted((run / "last").glob("step-*.safetensors"))
        checkpoints[-1].unlink()


if __name__ == "__main__":
    sys.exit(main())
