"""Record the results of a checkout's commands, and compare two records byte for byte.

    python tools/same_results.py record CHECKOUT OUT [DATA]
    python tools/same_results.py compare OLD NEW

DATA is a folder with `cxr3/`, as CONVNEXT_TEST_DATA names it; without it only the digits of scikit-learn are used.
Commands: finetune for two epochs with a moving average, cross-validation, eval with a target, predict with both
engines, export. Compared: the tensors of each safetensors file, predictions, metrics, splits and logs; times, paths
and dates are left out. Runs must be on the same machine with the same libraries.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRAIN = (
    "--weights builtin --model convnext_zepto_rms --no-autotune --no-compile --seed 3 --ema-decay 0.9 --no-onnx "
    "--offline"
)
SETS = {
    "digits": ("--epochs 2 --image-size 32 --freeze-epochs 1 --average-best 2 --mixup 0.2", "sensitivity=0.9:3"),
    "cxr3": ("--epochs 2 --image-size 64 --resplit --class-weights balanced --batch-size 64", "sensitivity=0.95:VIRUS"),
}
VOLATILE = {
    "effect", "title", "action", "rule", "evidence", "notes",  # words
    "images_per_second", "bytes", "worst", "seconds", "time", "run", "runs", "data", "created", "date", "path",
    "commands", "argv", "report", "next", "root", "environment", "versions", "sha256", "version", "when", "at", "hours",
    "digest",  # of values and the path of the data
}  # fmt: skip


def run_command(checkout: Path, arguments: str, place: Path) -> str:
    """Run `convnext` of a checkout in `place` and return its standard output."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout), "CONVNEXT_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1",
        "CONVNEXT_PREDICT": "stay",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "convnext_cli", *arguments.split()],
        env=environment, cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"convnext {arguments}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def record(checkout: Path, out: Path, data: Path | None) -> None:
    """Run the commands of `checkout` in the new folder `out`."""
    out.mkdir(parents=True)
    write = "from convnext_cli.data.digits import write_digits; from pathlib import Path; write_digits(Path('digits'))"
    subprocess.run([sys.executable, "-c", write], cwd=out, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True)
    sets = {"digits": out / "digits"} | ({"cxr3": data / "cxr3"} if data else {})
    for name, folder in sets.items():
        settings, target = SETS[name]
        test = folder / "test" if (folder / "test").exists() else folder
        commands = {
            "finetune": f"finetune {folder} -o {name}-run {TRAIN} {settings} --json",
            "folds": f"finetune {folder} -o {name}-folds {TRAIN} {settings} --epochs 1 --folds 2 --json",
            "eval": f"eval {name}-run --target {target} --json",
            "predict": f"predict {test} --run {name}-run --engine torch --csv",
            "export": f"export {name}-run --json",
            "predict-onnx": f"predict {test} --run {name}-run --engine onnx --csv",
        }
        for key, command in commands.items():
            print(name, key, flush=True)
            (out / f"{name}-{key}.txt").write_text(run_command(checkout, command, out))


def drop_volatile(value: Any) -> Any:
    """Return a JSON value without times, paths and dates."""
    if isinstance(value, dict):
        return {key: drop_volatile(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [drop_volatile(item) for item in value]
    return value


def digest_tensors(path: Path) -> dict[str, str]:
    """Return a digest of each tensor of a safetensors file, by name."""
    from safetensors.numpy import load_file

    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in load_file(path).items()}


def read_results(out: Path) -> Iterator[tuple[str, Any]]:
    """Yield the name and the comparable content of each result."""
    for path in sorted(out.glob("*.txt")):
        text = path.read_text()
        if path.stem.endswith(("predict", "predict-onnx")):
            rows = list(csv.reader(text.splitlines()))
            yield path.name, [[cell for cell in row if "/" not in cell] for row in rows]
        else:
            yield path.name, drop_volatile(json.loads(text))
    for path in sorted(out.glob("*-run/**/*")) + sorted(out.glob("*-folds/**/*")):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            yield name, digest_tensors(path)
        elif path.suffix == ".json" and path.name not in ("environment.json",):
            yield name, drop_volatile(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            yield name, [drop_volatile(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "split.csv":
            yield name, path.read_text()


def compare(old: Path, new: Path) -> int:
    """Print a line for each result that differs; return how many do."""
    before, after = dict(read_results(old)), dict(read_results(new))
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in different:
        missing = "only in the old" if name not in after else "only in the new" if name not in before else "differs"
        print(f"{name}: {missing}")
    print(f"{len(before)} results compared, {len(different)} differ")
    return len(different)


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"] and len(sys.argv) in (4, 5):
        record(
            Path(sys.argv[2]).resolve(),
            Path(sys.argv[3]).resolve(),
            Path(sys.argv[4]).resolve() if sys.argv[4:] else None,
        )
    elif sys.argv[1:2] == ["compare"] and len(sys.argv) == 4:
        sys.exit(min(1, compare(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        sys.exit(__doc__)
