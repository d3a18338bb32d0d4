"""How long the command line takes to answer, as a ratio to an empty Python process of the same run.

    python benchmarks/startup.py [ROUNDS]

The commands are run in turn, round after round, so that a machine whose speed drifts touches all of them alike.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "convnext --help": [sys.executable, "-m", "convnext_cli", "--help"],
    "convnext list": [sys.executable, "-m", "convnext_cli", "list"],
    "convnext recommend": [sys.executable, "-m", "convnext_cli", "recommend", "--dataset-size", "6000"],
}


def measure(rounds: int) -> dict[str, list[float]]:
    """Wall seconds of every command in every round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    seconds = measure(rounds)
    empty = seconds["python -c pass"]
    print(f"{'command':<20} {'median s':>9} {'min':>6} {'max':>6} {'x python':>9}   (n = {rounds})")
    for name, taken in seconds.items():
        ratio = statistics.median(mine / its for mine, its in zip(taken, empty, strict=True))
        print(f"{name:<20} {statistics.median(taken):>9.3f} {min(taken):>6.3f} {max(taken):>6.3f} {ratio:>9.1f}")
