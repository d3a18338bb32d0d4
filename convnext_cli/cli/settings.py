"""Makes command-line options out of the recipe's fields, so that each setting is declared once."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from convnext_cli.recipes.recipe import describe_settings


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces a command's `**settings` by one option per setting; those not given on the command line are None."""
    signature = inspect.signature(command)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, (kind, setting) in describe_settings().items():
        flags = (f"--{name.replace('_', '-')}", *setting.flags)
        option = typer.Option(
            *flags, help=_help(setting.help, setting.unit), rich_help_panel="Settings", show_default=False
        )
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]  # made at run time, for Typer
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return command


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that stand on the command line."""
    return {name: value for name, value in settings.items() if value is not None}


def _help(text: str, unit: str) -> str:
    return f"{text.removesuffix('.')} ({unit})." if unit else text
