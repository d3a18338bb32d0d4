"""Damage files of a run in many ways, run a command on it, and classify the outcome.

    OMP_NUM_THREADS=1 python -m tools.damage_runs OUT [--seed 0] [--limit 400]

OUT is a new folder; nothing is written outside it. Three small runs are trained there on digits: a finished one with
model.onnx, another finished one, and one stopped after its first epoch. Then, `--limit` times, one of them is copied,
one file is damaged (cut, emptied, noise, deleted, replaced by a folder, swapped with the other run's; one of its values
removed or replaced by another type, NaN, a huge number), and one command is run in a fork of this process, with limited
memory. The outcomes:

    same     exit code and output of the undamaged run
    refused  exit 1, 2 or 3, and an error of one line
    noticed  exit 0, another output, and a warning or note
    allowed  exit 0, another output, no notice: the schema allows the new value, which a user could have set
    WRONG    a traceback, "bug", NaN, a signal, exit 4, more than 30 s, or another model out of a resumed run

The exit code is 1 if any outcome is WRONG. Forking is safe because this process imports torch but computes nothing.
"""

import argparse
import csv
import io
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tools.commands import Outcome, call, call_apart, make_images, make_run, make_stopped_run, prepare_forks

REPLACEMENTS: tuple[Any, ...] = (
    None, True, "", "text", "../..", -1, 0, 10**30, 1e308, float("nan"), float("inf"), [], {}, [1] * 5, "\x1b[31mred"
)  # fmt: skip


def list_locations(value: Any, location: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the location of each value inside a JSON value, beginning with the JSON value itself."""
    yield location
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from list_locations(part, (*location, key))


def change_json(text: str, draw: random.Random) -> tuple[str, str]:
    """Replace or remove one value of a JSON text; return the change in words, and the new text."""
    value = json.loads(text)
    location = draw.choice(list(list_locations(value))[1:] or [()])
    if not location:
        return "the whole", json.dumps(draw.choice(REPLACEMENTS))
    node = value
    for key in location[:-1]:
        node = node[key]
    name = ".".join(map(str, location))
    if draw.random() < 0.2:
        del node[location[-1]]
        return f"{name} removed", json.dumps(value)
    node[location[-1]] = new = draw.choice(REPLACEMENTS)
    return f"{name} = {new!r}", json.dumps(value)


def change_lines(text: str, draw: random.Random) -> tuple[str, str]:
    """Change one value of one of a text's JSON lines."""
    lines = text.splitlines()
    at = draw.randrange(len(lines))
    change, lines[at] = change_json(lines[at], draw)
    return f"line {at + 1}: {change}", "\n".join(lines) + "\n"


def change_table(text: str, draw: random.Random) -> tuple[str, str]:
    """Change one cell of a CSV text, or cut one row."""
    rows = list(csv.reader(io.StringIO(text)))
    at, column = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    if draw.random() < 0.2:
        del rows[at][column:]
        change = f"row {at} cut at column {column}"
    else:
        rows[at][column] = new = str(draw.choice(REPLACEMENTS))
        change = f"row {at}, column {column} = {new!r}"
    changed = io.StringIO()
    csv.writer(changed).writerows(rows)
    return change, changed.getvalue()


def change_plan(text: str, draw: random.Random) -> tuple[str, str]:
    """Change one value of a plan's settings."""
    lines = text.splitlines()
    at = draw.choice([at for at, line in enumerate(lines) if " = " in line and not line.startswith("#")])
    name = lines[at].partition(" = ")[0]
    new = draw.choice(["-1", "0", "1e308", "nan", '"text"', "true", "[]", "10000000000000000000000", ""])
    lines[at] = f"{name} = {new}" if new else f"# {name}"
    return f"{name} = {new}", "\n".join(lines) + "\n"


def change_onnx(path: Path, draw: random.Random) -> str:
    """Change one value of the metadata of an ONNX file, or 8 bytes anywhere."""
    import onnx

    if draw.random() < 0.3:
        content = path.read_bytes()
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + draw.randbytes(8) + content[at + 8 :])
        return f"8 bytes at {at}"
    model = onnx.load(path)
    at = draw.randrange(len(model.metadata_props))
    entry = model.metadata_props[at]
    try:
        json.loads(entry.value)
        change, entry.value = change_json(entry.value, draw)
    except ValueError:
        new = draw.choice(REPLACEMENTS)
        change, entry.value = f"= {new!r}", str(new)
    if draw.random() < 0.1:
        del model.metadata_props[at]
        change = "removed"
    name = entry.key
    onnx.save(model, path)
    return f"{name}: {change}"


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
    change = draw.choice(["NaN", "removed", "longer", "zeros", "another type", "renamed"])
    array = arrays.pop(name)
    if change == "NaN":
        array = np.full_like(array, np.nan) if array.dtype.kind == "f" else array - 100
    elif change == "longer":
        array = np.stack([array, array])
    elif change == "zeros":
        array = np.zeros_like(array)
    elif change == "another type":
        array = array.astype(np.int32)
    if change != "removed":
        arrays["renamed" if change == "renamed" else name] = array
    save_file(arrays, path, metadata=metadata)
    return f"{name}: {change}"


def damage(path: Path, other: Path, draw: random.Random) -> str:
    """Damage a file in one random way, and return the way in words."""
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
    elif path.suffix == ".onnx":
        return change_onnx(path, draw)
    elif path.suffix in CHANGES:
        change, text = CHANGES[path.suffix](content.decode(errors="surrogateescape"), draw)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        return change
    else:
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + draw.randbytes(8) + content[at + 8 :])
        return f"8 bytes at {at}"
    return kind


def parse_stable(text: str) -> Any:
    """Return the JSON that a command printed, without values that differ from call to call."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, dict):
        for key in ("run", "test_number", "notes", "path", "bytes", "seconds", "time", "machine"):
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
    """Return True if two JSON values are equal within rounding."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return abs(one - other) <= 1e-5
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    return bool(one == other)


def classify(done: Outcome, source: Outcome, run: Path, reference: Path, change: str) -> str:
    """Return the outcome, as in the list of this module."""
    text = done.out + done.err
    lines = [line for line in done.err.splitlines() if line]
    if done.crash or "This is a bug" in text or "Traceback" in text or "\x1b" in text:
        return "WRONG"
    if done.code:
        if done.code == source.code and lines[-1:] == source.err.splitlines()[-1:]:
            return "same"
        is_clear = done.code in (1, 2, 3) and lines and len(lines[-1]) < 600
        return "refused" if is_clear else "WRONG"
    if "NaN" in done.out or "Infinity" in done.out or " nan" in done.out:
        return "WRONG"
    if run.exists() and reference.exists() and run.read_bytes() != reference.read_bytes():
        return "WRONG" if "model.safetensors" not in change else "noticed"
    if done.code == source.code and is_close(parse_stable(done.out), parse_stable(source.out)):
        return "same"
    has_notice = (
        "note: " in done.err or "warning" in done.err or '"notes": ["' in done.out.replace("\n", "").replace("  ", "")
    )
    return "noticed" if has_notice else "allowed"


FINISHED, STOPPED = "finished", "stopped"
MakeWords = Callable[[Path, Path], list[str]]


def list_commands(image: Path, data: Path, other: Path) -> dict[str, tuple[str, int, MakeWords]]:
    """Return the commands by name: the run that each needs, its weight in the draw, and how its words are made.

    Words are made from the run's folder and a folder to write to.
    """
    commands: dict[str, tuple[int, MakeWords]] = {
        "predict": (3, lambda run, _: ["predict", str(image), "--run", str(run), "--engine", "torch", "--json"]),
        "predict onnx": (3, lambda run, _: ["predict", str(image), "--run", str(run), "--engine", "onnx", "--json"]),
        "predict --abstain": (2, lambda run, _: ["predict", str(image), "--run", str(run), "--abstain", "--json"]),
        "eval": (3, lambda run, _: ["eval", str(run), "--no-report", "--json"]),
        "eval with report": (2, lambda run, _: ["eval", str(run), "--json"]),
        "eval --target": (
            2,
            lambda run, _: ["eval", str(run), "--no-report", "--json", "--target", "sensitivity=0.9:1"],
        ),
        "compare": (2, lambda run, _: ["eval", str(run), str(other), "--no-report", "--json"]),
        "export hub": (3, lambda run, out: ["export", str(run), "--format", "hub", "-o", str(out / "hub"), "--json"]),
        "export onnx": (
            1,
            lambda run, out: ["export", str(run), "--format", "onnx", "-o", str(out / "model.onnx"), "--json"],
        ),
        "resume": (4, lambda run, _: ["finetune", "--resume", str(run), "--no-onnx"]),
        "finetune --config": (
            2,
            lambda run, out: [
                *["finetune", str(data), "--config", str(run / "plan.toml"), "-o", str(out / "new")],
                *["--dry-run", "--no-check", "--json"],
            ],
        ),
        "finetune --weights": (
            1,
            lambda run, out: [
                *["finetune", str(data), "-m", "test_convnext2", "--weights", str(run), "--image-size", "32"],
                *[
                    "--epochs",
                    "1",
                    "--lr",
                    "0.001",
                    "--no-onnx",
                    "--no-check",
                    "--no-autotune",
                    "-o",
                    str(out / "new"),
                ],
            ],
        ),
    }
    rest = {"predict": 1, "predict onnx": 1, "eval": 2, "export hub": 1, "compare": 1}
    return {
        **{name: (FINISHED, weight, make) for name, (weight, make) in commands.items() if name != "resume"},
        "resume, finished": (FINISHED, 2, commands["resume"][1]),
        "resume": (STOPPED, *commands["resume"]),
        **{f"{name}, stopped": (STOPPED, weight, commands[name][1]) for name, weight in rest.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=400, help="commands to call")
    parser.add_argument("--only", help="one command by its name")
    args = parser.parse_args(arguments)
    out: Path = args.out.resolve()
    out.mkdir(parents=True)
    prepare_forks(out)
    data = make_images(out)
    runs = {
        FINISHED: make_run(out / "finished", data, "--lr", "auto"),
        STOPPED: make_stopped_run(out / "stopped", data, "--lr", "auto", "--no-onnx"),
    }
    other = make_run(out / "other", data, "--lr", "0.002", "--seed", "1", "--in-chans", "1")
    counts: Counter[str] = Counter()
    by_command: dict[str, Counter[str]] = {}
    for number, (name, change, outcome, done) in enumerate(
        try_damages(out, runs, other, data, args.seed, args.limit, args.only, caller=call_apart), start=1
    ):
        counts[outcome] += 1
        by_command.setdefault(name, Counter())[outcome] += 1
        message = done.crash or (done.err or done.out).strip().splitlines()[-1:]
        with (out / "log.txt").open("a") as log:
            print(f"{number}: {outcome}: {name}: {change}: rc {done.code}: {ascii(message)[:600]}", file=log)
        if outcome in ("WRONG", "allowed"):
            print(f"{number}: {outcome}: {name}: {change}: rc {done.code}: {ascii(message)[:300]}", flush=True)
    for name, outcomes in sorted(by_command.items()):
        print(f"{name}: {dict(outcomes)}")
    print(f"tried {sum(counts.values())}: {dict(counts)}")
    return 1 if counts["WRONG"] else 0


def try_damages(
    out: Path, runs: dict[str, Path], other: Path, data: Path, seed: int, limit: int, only: str | None = None,
    caller: Callable[..., Outcome] = call,
) -> Iterator[tuple[str, str, str, Outcome]]:  # fmt: skip
    """Yield `limit` times a command, the damage, the class of the outcome, and the outcome."""
    draw = random.Random(seed)  # noqa: S311
    run, written, reference = out / "run", out / "written", runs[FINISHED] / "model.safetensors"
    commands = list_commands(sorted((data / "1").iterdir())[0], data, other)
    names = [name for name, (kind, weight, _) in commands.items() for _ in range(weight) if kind in runs]
    names = [name for name in names if only in (None, name)]
    expected: dict[str, Outcome] = {}
    for _ in range(limit):
        name = draw.choice(names)
        kind, _, make = commands[name]
        source = runs[kind]
        files = [
            path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file() and path.suffix != ".png"
        ]
        if name not in expected:
            prepare(source, run, written)
            expected[name] = caller(*make(run, written), seconds=600)
            assert not expected[name].crash, expected[name]
            assert kind == STOPPED or name == "resume, finished" or expected[name].code == 0, expected[name].err
        prepare(source, run, written)
        file = draw.choice(files)
        change = f"{file}: {damage(run / file, other / file, draw)}"
        done = caller(*make(run, written))
        ended = run / "model.safetensors" if name == "resume" else Path("none")
        yield name, change, classify(done, expected[name], ended, reference, change), done


def prepare(source: Path, run: Path, written: Path) -> None:
    """Copy a run, and empty the folder that commands write to."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run)
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()


if __name__ == "__main__":
    sys.exit(main())
