"""User-facing text has the field's words: none of the private ones below."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import convnext_cli
from convnext_cli.cli.app import make_app

PACKAGE = Path(convnext_cli.__file__).parent
FORBIDDEN = (
    r"top-1", r"calibration error", r"formulations?", r"wishes", r"intake", r"pictures?", r"from random values",
    r"anew", r"too sure", r"too modest", r"how-manieth", r"figures?", r"by which", r"does without",
    r"of another kind", r"unasked", r"said to", r"told", r"whoever", r"speaks (?:for|against)", r"weak points?",
    r"saved anew", r"score will be false", r"what was taken in", r"held against", r"what speaks",
    r"made with others", r"as it says of itself", r"remarks?", r"said", r"saying", r"do not rise",
)  # fmt: skip
FOREIGN_FLAGS = {"--local-dir"}  # of `hf download`
PRINTING = ("show", "say", "note", "warn", "fail")
PATTERN = re.compile(rf"(?<![\w-])(?:{'|'.join(FORBIDDEN)})(?![\w-])", re.IGNORECASE)


def is_user_facing(call: ast.Call) -> bool:
    """Return True for a call whose texts a user reads: errors, notices, options, and what the console prints."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return isinstance(function.value, ast.Name) and function.value.id == "console" and function.attr in PRINTING
    return isinstance(function, ast.Name) and (
        function.id.endswith("Error") or function.id in ("Notice", "Option", "Finding")
    )


def list_texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of each literal in an expression, without the expressions of f-strings."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.lineno, node.value
    elif not isinstance(node, ast.FormattedValue | ast.Subscript | ast.Compare | ast.Dict):
        for child in ast.iter_child_nodes(node):
            yield from list_texts(child)


def list_user_facing(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and is_user_facing(node):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                yield from list_texts(argument)


def list_sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each literal of several words that is not a docstring."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        if len(node.value.split()) > 2:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_messages_have_no_private_words(path: Path) -> None:
    wrong = [f"{line}: {text!r}" for line, text in list_user_facing(path) if PATTERN.search(text)]
    assert not wrong


def test_messages_name_only_options_that_exist() -> None:
    group: Any = typer.main.get_command(make_app())
    entries = [entry for command in group.commands.values() for entry in command.declared.values()]
    flags = {flag for option in group.params for flag in option.opts} | {"--help", "--help-all"}
    for entry in entries:
        flags |= {entry.flag, *entry.option.flags}
        flags |= {f"--no-{entry.flag[2:]}"} if entry.has_negation else set()
    wrong = [
        f"{path.name}:{line}: {flag}"
        for path in PACKAGE.rglob("*.py")
        for line, text in list_sentences(path)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)
        if flag not in flags | FOREIGN_FLAGS
    ]
    assert not wrong


def test_private_words_are_recognised() -> None:
    for text in ("top-1 accuracy", "Pictures of", "begin anew", "No figures here"):
        assert PATTERN.search(text)
    for text in ("top-100", "configuration", "retold"):
        assert not PATTERN.search(text)
