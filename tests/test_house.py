import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import convnext_cli
from convnext_cli.tasks.registry import TASKS
from tests.conftest import ROOT, list_imported

LONG_FUNCTIONS: set[str] = set()  # over 60 lines; at most five
PUBLIC_FUNCTIONS = {"models/catalog.py:list_models", "recipes/recommendation.py:recommend"}  # a keyword per option
HEAVY = {"torch", "timm", "numpy", "pandas", "torchvision", "accelerate", "sklearn", "PIL", "matplotlib", "pydantic"}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list"], ["list", "convnext_tiny"], ["recommend", "--dataset-size", "6000"], ["finetune", "--help"]],
)
def test_commands_answer_without_heavy_imports(words: list[str]) -> None:
    modules, _ = list_imported(*words)
    assert "typer" in modules
    assert not modules & HEAVY


def test_library_imports_lazily_and_its_names_are_sorted() -> None:
    assert convnext_cli.__all__ == sorted(convnext_cli.__all__)
    for name in convnext_cli.__all__:
        assert callable(getattr(convnext_cli, name))
    script = "import sys, convnext_cli; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = convnext_cli.train


def measure_functions() -> Iterator[tuple[str, int, int]]:
    """Yield the name, the lines and the parameters (without self or cls) of each function of the package."""
    package = ROOT / "convnext_cli"
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                parameters = len(names) - (names[:1] in (["self"], ["cls"]))
                yield f"{path.relative_to(package)}:{node.name}", lines, parameters


def test_functions_have_at_most_60_lines() -> None:
    assert {name for name, lines, _ in measure_functions() if lines > 60} <= LONG_FUNCTIONS
    assert len(LONG_FUNCTIONS) <= 5


def test_functions_have_at_most_6_parameters() -> None:
    assert {name for name, _, parameters in measure_functions() if parameters > 6} <= PUBLIC_FUNCTIONS


# Wrong statements of the specification; no text that users read may contain them.
FALSE = (
    r"omni.?lite", r"high.?norm.?freq", r"600\s?M", r"\b1B\b", r"~1B", r"1.1\.5M\b", r"2\.7M", r"ViT-level",
    r"debugging models", r"not load pretrained", r"official rule", r"consistently outperform", r"will overfit",
    r"does not like sgd", r"strongly prefers", r"multi-GPU only", r"requires gradient checkpointing", r"FCN-based",
    r"improved training \+ layerscale", r"commercial use is fine", r"bigger MLP", r"definitive", r"GFLOPs? ?≈",
)  # fmt: skip


def test_false_statements_of_the_specification_are_not_repeated() -> None:
    texts = {path: path.read_text() for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern)}
    texts |= {path: path.read_text() for kind in ("py", "toml") for path in (ROOT / "convnext_cli").rglob(f"*.{kind}")}
    texts |= {path: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    assert len(texts) > 30
    for path, text in texts.items():
        for statement in FALSE:
            assert not re.search(statement, text, re.IGNORECASE), f"{path}: {statement}"


def test_commands_start_work_through_the_api() -> None:
    """Generators of work (`*_steps`) come from `api`, and those of the self-test from `diagnosis`."""
    for path in (ROOT / "convnext_cli/cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module not in ("convnext_cli.api", "convnext_cli.diagnosis"):
                assert not [name.name for name in node.names if name.name.endswith("_steps")], path


def test_the_command_line_uses_public_names_of_typer() -> None:
    """Others change without notice: Typer 0.29 has no `typer.models.TyperPath`, which 0.28 has."""
    public = {("typer.core", "TyperCommand")}
    for path in (ROOT / "convnext_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ("typer", "click"):
                assert {(node.module, name.name) for name in node.names} <= public, path


def test_no_test_file_imports_another() -> None:
    """Shared helpers belong into a conftest or a module of their own."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not [name for name in imported if name and name.startswith("tests.") and ".test_" in name], path


def test_only_a_tasks_own_module_asks_for_its_name() -> None:
    """No other module has the name of a task as a text, or imports a task by itself: `tasks.registry` has them all."""
    names = {name for name in TASKS if name != "single"}  # "single" is also a word of the recipes' tables
    modules = {f"convnext_cli.tasks.{name}" for name in TASKS}
    seen = 0
    for path in sorted((ROOT / "convnext_cli").rglob("*.py")):
        if path.parent.name == "tasks":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module not in modules, f"{path}:{node.lineno}"
            if isinstance(node, ast.Compare):
                seen += 1
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                is_task = any(re.search(r"\btask(\.name)?$", side) for side in sides)
                others = [side for side in sides if not re.search(r"\btask(\.name)?$", side)]
                assert not is_task or set(others) <= {"None", "AUTO"}, f"{path}:{node.lineno}: {ast.unparse(node)}"
    assert seen > 1000
