"""Makes command-line options out of the recipe's fields, so that each setting is declared once."""

import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.recipes.settings import Setting, check_settings, describe_settings
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.models.catalog import Architecture
    from convnext_cli.recipes.plan import Plan


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces a command's `**settings` by one option per setting; those not given on the command line are None.

    Args:
        names: which settings; all of them where none is named.
    """

    def change(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters += [
            _make_option(name, *found) for name, found in describe_settings().items() if name in names or not names
        ]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return command

    return change


def name_flag(setting: str) -> str:
    """Return the command-line flag of a setting."""
    return f"--{setting.replace('_', '-')}"


def _make_option(name: str, kind: Any, setting: Setting) -> inspect.Parameter:
    flag = name_flag(name)
    flags = (f"{flag}/--no-{flag[2:]}" if kind is bool else flag, *setting.flags)
    option = typer.Option(
        *flags, help=_help(setting.help, setting.unit), rich_help_panel="Settings", show_default=False
    )
    if setting.words:
        option.parser, option.metavar = _parse_number_or(setting.words), "|".join(("<float>", *setting.words))
    annotation = Annotated[kind | None, option]  # made at run time, for Typer
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def list_decided(plan: "Plan") -> list[tuple[str, str, str, str]]:
    """Name, value with unit, source and reason of what was decided for a plan; a last line for what was not."""
    units = {name: setting.unit for name, (_, setting) in describe_settings().items()}
    rows = [
        (name, f"{choice.value} {units[name]}".strip(), choice.source, choice.reason)
        for name, choice in plan.non_default.items()
    ]
    return [*rows, (f"{len(plan.choices) - len(rows)} others", "", "default", "`convnext finetune --help` lists them")]


def describe_sizes(model: "Architecture", image_size: int, channels: int, classes: int) -> str:
    """Return the shapes of input, features and output for one image."""
    features = model.feature_shape(image_size)
    return (
        f"input ({channels}, {image_size}, {image_size}) -> features {features} -> pooled ({features[0]},) -> output "
        f"({classes},)"
    )


def repeat_command(context: typer.Context, *, leave_out: Sequence[str]) -> str:
    """Return the command that was given, quoted for a shell, without some of its parameters."""
    words = context.command_path.split()
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        source = context.get_parameter_source(name)
        if name in leave_out or value is None or source is None or source.name != "COMMANDLINE":
            continue
        if isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[-1])
            continue
        flag = max(parameter.opts, key=lambda flag: flag.startswith("--"))
        for entry in value if isinstance(value, list | tuple) else [value]:
            words += [] if parameter.param_type_name == "argument" else [flag]
            words.append(quote(entry) if isinstance(entry, Path) else shlex.quote(str(entry)))
    return " ".join(words)


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that stand on the command line.

    Raises:
        UsageError: one has a value that it cannot have.
    """
    values = {name: value for name, value in settings.items() if value is not None}
    check_settings(values)
    return values


def parse_duration(text: str) -> float:
    """Seconds from `90m`, `2h`, `1h30m`, `45s` or a bare number of seconds.

    Raises:
        typer.BadParameter: it is none of these, or nothing.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    parts = found.groups("0") if found else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds:
        raise typer.BadParameter(f"{text!r} is no time; write 90m, 2h or 1h30m")
    return seconds


def _parse_number_or(words: tuple[str, ...]) -> Callable[[str], float | str]:
    def parse(text: str) -> float | str:
        try:
            return text if text in words else float(text)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is no number; write one, or {' or '.join(words)}") from error

    return parse


def _help(text: str, unit: str) -> str:
    return f"{text.removesuffix('.')} ({unit})." if unit else text
