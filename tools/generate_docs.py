"""Write the generated parts of the documents, from the program itself.

    python -m cogapp -P -r README.md CONTRIBUTING.md docs/*/*.md           write them
    python -m cogapp -P --check README.md CONTRIBUTING.md docs/*/*.md      fail where one is stale

A document calls the functions below between `[[[cog` and `[[[end]]]`; each prints Markdown.
"""

import ast
import html
import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

from convnext_cli.text import capitalise

ROOT = Path(__file__).parents[1]


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("|", " | ".join(head), "|")
    print("|" + "---|" * len(head))
    for row in rows:
        print("|", " | ".join(_escape_bars(str(cell)) for cell in row), "|")


def _escape_bars(cell: str) -> str:
    """Return a table's cell with its bars escaped; in code, the site would show the backslash."""

    def escape(code: re.Match[str]) -> str:
        return f"<code>{html.escape(code[1]).replace('|', '&#124;')}</code>"

    return re.sub(r"`([^`]*\|[^`]*)`", escape, cell).replace("|", "\\|")


def show_layers() -> None:
    """Print the package's layers as the import contract in pyproject.toml has them, the top first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    print("```text")
    for number, layer in zip(range(len(layers), 0, -1), layers, strict=True):
        print(f"{number:>2}  {layer.replace('convnext_cli.', '')}")
    print("```")


def show_file(path: str, language: str) -> None:
    """Print a file of the repository as a code block."""
    print(f"```{language}", (ROOT / path).read_text().rstrip(), "```", sep="\n")


def show_commands() -> None:
    """Print a section for each command: usage, purpose, arguments and options."""
    import typer

    from convnext_cli.cli.app import make_app
    from convnext_cli.cli.help import name_argument
    from convnext_cli.options import GROUPS

    group: Any = typer.main.get_command(make_app())
    for name, command in group.commands.items():
        declared = command.declared.values()
        arguments = [entry for entry in declared if entry.option.is_argument]
        options = [entry for entry in declared if not entry.option.is_argument]
        usage = " ".join(map(name_argument, arguments))
        print(f"\n## {name}\n\n```text\nconvnext {name} [OPTIONS] {usage}".rstrip(), "```", sep="\n")
        print("\n" + inspect.cleandoc(command.help or "") + "\n")
        for argument in arguments:
            print(f"`{name_argument(argument)}`: {_escape(argument.option.help)}\n")
        titles = [title for title in GROUPS if any(entry.option.group == title for entry in options)]
        for title in titles:
            if len(titles) > 1:
                print(f"\n### {name}: {title}\n")
            shown = [entry for entry in options if entry.option.group == title]
            show_table(("option", "meaning", "default"), map(_describe_option, shown))


def _describe_option(declared: Any) -> tuple[str, str, str]:
    from convnext_cli.cli.help import describe_default, describe_flags

    option, default = declared.option, describe_default(declared)
    unit = f" ({option.unit})" if option.unit else ""
    variable = f" Environment: `{option.env}`." if option.env else ""
    meaning = _escape(f"{option.help.removesuffix('.')}{unit}.{variable}")
    return f"`{describe_flags(declared)}`", meaning, f"`{default}`" if default else ""


def _escape(text: str) -> str:
    """Return text with what Markdown would take for an HTML tag or emphasis as code."""
    return re.sub(r"((?:[\w{},/-]*<[^>`]*>)+/?|'\*[^']*'|\*\.\w+)", r"`\1`", text)


def show_settings() -> None:
    """Print every setting: values, bounds, unit, default and meaning, a table for each group."""
    from convnext_cli.options import GROUPS
    from convnext_cli.recipes.settings import declare_settings

    for group in GROUPS:
        entries = [entry for entry in declare_settings().values() if entry.option.group == group]
        rows = [
            (f"`{entry.field}`", _describe_values(entry), _describe_default(entry), _escape(entry.option.help))
            for entry in entries
        ]
        if rows:
            print(f"\n## {group}\n")
            show_table(("setting", "values", "default", "meaning"), rows)


def _describe_default(declared: Any) -> str:
    if declared.default is MISSING:
        return "recipe"
    return f"`{declared.default}`" if declared.default is not None else ""


def _describe_values(declared: Any) -> str:
    option, kind = declared.option, declared.kind
    if values := get_args(kind):
        return ", ".join(f"`{value}`" for value in values)
    names = {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}
    words = "".join(f" or `{word}`" for word in option.words)
    first = "" if option.low is None else f", {'above' if option.is_open else 'from'} {option.low:,g}"
    last = "" if option.high is None else f" to {option.high:,.12g}"
    unit = f" {option.unit}" if option.unit else ""
    return f"{option.metavar or names[kind.__name__]}{words}{first}{last}{unit}"


def show_exit_codes() -> None:
    """Print each exit code with the errors that end in it."""
    from convnext_cli import errors

    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ConvnextError) and kind is not errors.StoppedError
    ]
    rows: list[tuple[object, ...]] = [(0, "done", "")]
    meanings = {1: "failure", 2: "usage", 3: "bad data", 4: "out of memory"}
    for code, meaning in meanings.items():
        names = sorted((kind for kind in kinds if kind.exit_code == code), key=lambda kind: kind.__name__)
        causes = [f"`{kind.__name__}`: {_first_line(kind)}" for kind in names]
        rows.append((code, meaning, "<br>".join(causes)))
    rows += [
        (130, "interrupted (Ctrl-C)", "`StoppedError`: a training has saved its state."),
        (141, "output pipe closed (SIGPIPE), as by `head`", ""),
        (143, "terminated (SIGTERM)", "`StoppedError`: a training has saved its state."),
    ]
    show_table(("code", "meaning", "errors"), rows)


def _first_line(item: Any) -> str:
    docstring: str = item.__doc__ or ""
    return inspect.cleandoc(docstring).partition("\n")[0]


def show_run_files() -> None:
    """Print the files of a run folder in the order in which they are written."""
    from convnext_cli.runs.files import FOLDS_PLAN, RUN_FILES

    rows = [
        (f"`{file.name}`", file.content, f"`{file.writer}`", f"`{file.schema}`" if file.schema else "")
        for file in (*RUN_FILES, FOLDS_PLAN)
    ]
    show_table(("file", "content", "written by", "schema"), rows)


def show_formats() -> None:
    """Print the image formats that are read, with their suffixes."""
    from convnext_cli.images.formats import DICOM_SUFFIXES, PILLOW_SUFFIXES

    suffixes = {**PILLOW_SUFFIXES, "DICOM": tuple(sorted(DICOM_SUFFIXES))}
    extras = {"DICOM": " (extra `dicom`)", "HEIF": ", HEIC (extra `heic`)"}
    rows = [(name + extras.get(name, ""), " ".join(f"`{each}`" for each in those)) for name, those in suffixes.items()]
    show_table(("format", "suffixes"), rows)


def show_licences() -> None:
    """Print the licences of the pretrained weights, with the models that they are for."""
    from convnext_cli.models.catalog import load_catalog
    from convnext_cli.models.licenses import PERMISSIVE_LICENSES

    weights: Counter[str] = Counter()
    names: dict[str, dict[str, None]] = {}
    for model in load_catalog().values():
        for tag in model.tags:
            weights[tag.license] += 1
            names.setdefault(tag.license, {})[model.parsed.family] = None
    rows = [
        (
            f"`{licence}`",
            count,
            ", ".join(names[licence]),
            "yes" if licence in PERMISSIVE_LICENSES else "no, or read its terms",
        )
        for licence, count in weights.most_common()
    ]
    show_table(("licence", "weights", "families", "permissive"), rows)


def show_ranking() -> None:
    """Print the specification's ranking of models."""
    tiers = tomllib.loads((ROOT / "convnext_cli/models/ranking.toml").read_text())["tiers"]
    rows = [(tier["tier"], tier["title"], ", ".join(tier["models"])) for tier in tiers]
    show_table(("tier", "title", "models, in order"), rows)


def show_conflicts() -> None:
    """Print where the specification contradicts itself, each with the rule that decides."""
    conflicts = tomllib.loads(Path("convnext_cli/recipes/specification.toml").read_text())["conflicts"]
    show_table(("it says", "the rule here"), [(conflict["says"], conflict["rule"]) for conflict in conflicts])


def show_api() -> None:
    """Print the signature and the docstring of every public function, and the fields of its result."""
    import convnext_cli

    for name in convnext_cli.__all__:
        function = getattr(convnext_cli, name)
        print(f"\n## {name}\n\n```python\n{_show_signature(function)}\n```\n")
        print(_to_markdown(inspect.cleandoc(function.__doc__ or "")))
        for result in _list_results(function):
            print(f"\n**Fields of `{result.__module__}.{result.__qualname__}`**\n")
            show_table(("field", "type", "content"), _list_fields(result))


def _list_results(function: Any) -> list[type]:
    """Return the dataclasses in a function's return annotation, which its module may import for type checkers only."""
    module = inspect.getmodule(function)
    assert module is not None
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: node.module for node in imports for alias in node.names}
    [node] = ast.parse(inspect.getsource(function)).body
    assert isinstance(node, ast.FunctionDef)
    assert node.returns is not None
    names = re.findall(r"[A-Z]\w+", ast.unparse(node.returns))
    kinds = [getattr(import_module(modules.get(name) or module.__name__), name) for name in names]
    return [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]


def _list_fields(result: type) -> list[tuple[str, str, str]]:
    """Return name, type and description of each field and property of a dataclass, those of its bases last."""
    parts = [ast.parse(inspect.getsource(part)).body[0] for part in result.__mro__ if is_dataclass(part)]
    body = [entry for part in parts if isinstance(part, ast.ClassDef) for entry in part.body]
    rows = []
    for entry, after in pairwise([*body, ast.Pass()]):
        if isinstance(entry, ast.AnnAssign):
            name, annotation, text = ast.unparse(entry.target), entry.annotation, ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = str(after.value.value)
        elif isinstance(entry, ast.FunctionDef) and "property" in map(ast.unparse, entry.decorator_list):
            name, annotation = entry.name, entry.returns or ast.Constant(None)
            text = capitalise((ast.get_docstring(entry) or "").split("\n\n")[0].removeprefix("Return "))
        else:
            continue
        kind = ast.unparse(annotation).strip("'").replace(" | ", " or ")
        rows.append((f"`{name}`", f"`{kind}`", " ".join(text.split())))
    return rows


def show_metrics() -> None:
    """Print the keys of the metrics that evaluations have."""
    from convnext_cli.metrics.registry import METRICS
    from convnext_cli.tasks.registry import TASKS

    calculators = {task: get_type_hints(task.make_calculator)["return"] for task in TASKS.values()}
    rows = []
    for key, metric in METRICS.items():
        tasks = [task for task, calculator in calculators.items() if key in calculator.overall + calculator.per_class]
        place = "each class" if any(key in calculators[task].per_class for task in tasks) else "all images"
        if tasks:
            rows.append((f"`{key}`", metric.title, place, "; ".join(task.title for task in tasks)))
    show_table(("key", "metric", "of", "tasks"), rows)


def _show_signature(function: Any) -> str:
    """Return a function's signature as its source has it, one parameter a line."""
    [node] = ast.parse(inspect.getsource(function)).body
    assert isinstance(node, ast.FunctionDef)
    arguments = node.args
    named = [*zip(arguments.args[::-1], arguments.defaults[::-1], strict=False)][::-1]
    parts = [ast.unparse(argument) for argument in arguments.args[: len(arguments.args) - len(named)]]
    parts += [f"{ast.unparse(argument)} = {ast.unparse(default)}" for argument, default in named]
    parts += ["*"] if arguments.kwonlyargs else []
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(ast.unparse(argument) + (f" = {ast.unparse(value)}" if value else ""))
    parts += [f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else []
    result = ast.unparse(node.returns).strip("'") if node.returns else "None"
    return f"{node.name}(\n    " + ",\n    ".join(parts) + f",\n) -> {result}"


SECTION = re.compile(r"(Args|Returns|Raises):")


def _to_markdown(docstring: str) -> str:
    """Turn a Google-style docstring into Markdown: sections become bold titles, their entries lists."""
    titles = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises"}
    lines: list[str] = []
    inside = ""
    for line in docstring.splitlines():
        if section := SECTION.fullmatch(line.strip()):
            inside = section[1]
            lines += [f"**{titles[inside]}**", ""]
        elif inside and (entry := re.match(r"    (\*{0,2}\w+): (.*)", line)) and inside != "Returns":
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif inside and line.strip():
            lines.append(f"  {line.strip()}" if inside != "Returns" else line.strip())
        else:
            lines.append(line)
    return "\n".join(lines)
