"""Do the tests notice a small fault? Change one place of the code, run its tests, and say which faults survive.

    python tools/mutants.py [--number 40] [--seed 0] [--only PATH] [--list] [--quick]

A mutant differs from the code in one operator, comparison, number or boolean inside a function. Mutants are drawn at
random, evenly over `MODULES`. The tests that `MODULES` names run first; a mutant that survives them meets the whole
fast tier (`--quick` leaves that out). All tests must pass without a mutant. Exit code 1 if fewer than 90% are killed.

`tools/mutants.txt` keeps the results.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINING_TESTS = [
    f"tests/training/test_{name}.py"
    for name in ("resume", "origin", "settings", "limits", "finetuning", "distillation")
]
MODULES = {
    "convnext_cli/metrics": ["tests/metrics", "tests/tasks/test_metrics.py"],
    "convnext_cli/images": ["tests/images"],
    "convnext_cli/data/split.py": ["tests/data/test_split.py"],
    "convnext_cli/training/step.py": TRAINING_TESTS,
    "convnext_cli/training/checkpoint.py": TRAINING_TESTS,
}
LEAST = 0.9  # fraction of mutants to be killed
SECONDS = 1800  # after which a test run counts as one that never ends: the mutant is killed

_COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
_OPERATORS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.BitAnd: "|",
    ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed place."""

    path: str
    line: int
    old: str
    new: str
    start: int
    """Character offsets of `old` in the file."""
    end: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.old} -> {self.new}"


def list_mutants(path: Path) -> list[Mutant]:
    """Return all mutants of a file, in the order of its lines."""
    text = path.read_text(encoding="utf-8")
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    mutants: list[Mutant] = []

    def offset(line: int, column: int) -> int:
        whole = text[lines[line - 1] : lines[line]].encode()
        return lines[line - 1] + len(whole[:column].decode())

    def replace(node: ast.expr, new: str) -> None:
        start, end = offset(node.lineno, node.col_offset), offset(node.end_lineno or 0, node.end_col_offset or 0)
        add(start, end, new, node.lineno)

    def replace_between(left: ast.expr, right: ast.expr, new: str) -> None:
        start, end = offset(left.end_lineno or 0, left.end_col_offset or 0), offset(right.lineno, right.col_offset)
        inside = text[start:end]
        operator = inside.strip(" ()\n")
        if operator and "#" not in inside and "\n" not in inside.strip():
            at = start + inside.index(operator)
            add(at, at + len(operator), new, left.end_lineno or 0)

    def add(start: int, end: int, new: str, line: int) -> None:
        mutants.append(Mutant(str(path.relative_to(ROOT)), line, text[start:end], new, start, end))

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            replace_between(node.left, node.comparators[0], _COMPARISONS[type(node.ops[0])])
        elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            replace_between(node.left, node.right, _OPERATORS[type(node.op)])
        elif isinstance(node, ast.BoolOp) and len(node.values) == 2:
            replace_between(node.values[0], node.values[1], "or" if isinstance(node.op, ast.And) else "and")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            replace(node, str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            replace(node, repr(node.value + 1))
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.JoinedStr | ast.Raise | ast.arguments):  # messages, and types of parameters
                visit(child)

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                if not isinstance(statement, ast.FunctionDef):
                    visit(statement)
    unique = {(mutant.start, mutant.end): mutant for mutant in mutants}
    return [unique[place] for place in sorted(unique)]


def draw_mutants(number: int, seed: int, only: str) -> list[tuple[Mutant, list[str]]]:
    """Draw mutants evenly over the modules; return each with the tests of its module."""
    chosen = {module: tests for module, tests in MODULES.items() if module.startswith(only)}
    drawn: list[tuple[Mutant, list[str]]] = []
    for place, (module, tests) in enumerate(chosen.items()):
        files = sorted((ROOT / module).rglob("*.py")) if (ROOT / module).is_dir() else [ROOT / module]
        pool = [mutant for file in files for mutant in list_mutants(file)]
        count = number // len(chosen) + (place < number % len(chosen))
        picked = random.Random(f"{seed} {module}").sample(pool, min(count, len(pool)))  # noqa: S311
        drawn += [(mutant, tests) for mutant in sorted(picked, key=str)]
    return drawn


def tests_pass(mutant: Mutant | None, tests: list[str]) -> bool:
    """Return whether tests pass in a copy of the checkout, with a mutant or without one; no tests: the fast tier."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in filter(None, listed.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        if mutant:
            path = copy / mutant.path
            text = path.read_text(encoding="utf-8")
            path.write_text(text[: mutant.start] + mutant.new + text[mutant.end :], encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        try:
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def check_tests(selections: list[list[str]]) -> None:
    """Check that the tests pass without a mutant; if they do not, every mutant would count as killed."""
    for tests in selections:
        if not tests_pass(None, tests):
            sys.exit(f"without a mutant pytest fails: {' '.join(tests) or 'the fast tier'}")


def main() -> int:
    """Run the mutants, print a line each, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a module of MODULES, or the beginning of one")
    parser.add_argument("--quick", action="store_true", help="run the module's own tests only")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()
    drawn = draw_mutants(options.number, options.seed, options.only)
    if options.list:
        print(*(mutant for mutant, _ in drawn), sep="\n")
        return 0
    whole: list[list[str]] = [] if options.quick else [[]]
    check_tests(list(map(list, {tuple(tests) for _, tests in drawn})) + whole)
    killed = 0
    for mutant, tests in drawn:
        alive = all(tests_pass(mutant, selection) for selection in [tests, *whole])
        killed += not alive
        print(f"{'SURVIVED' if alive else 'killed  '} {mutant}", flush=True)
    print(f"{killed} of {len(drawn)} mutants killed")
    return int(killed < LEAST * len(drawn))


if __name__ == "__main__":
    sys.exit(main())
