"""Help pages: plain text with groups of options. Typer's own imports rich, which doubles the time to the answer."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from convnext_cli.cli import console
from convnext_cli.options import GROUPS, RUN, Declaration

MAX_WIDTH = 100
_COLUMN = 24  # of the help texts, from 0
_HELP = ("-h, --help", "Show this help and exit.")
_HELP_ALL = ("--help-all", "Show every option and exit.")
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH", tuple: "TEXT"}


class Command(TyperCommand):
    """A command whose help has groups."""

    def get_help(self, ctx: Any) -> str:
        """Return the help with the common options."""
        return describe_command(ctx.command_path, self, is_full=False)

    @property
    def declared(self) -> Mapping[str, Declaration]:
        """The declarations of the options, by field name."""
        declared: Mapping[str, Declaration] = getattr(self.callback, "declared", {})
        return declared


def show_full_help(context: typer.Context, value: bool) -> None:
    """Show every option and exit, where `value` is True."""
    if value:
        command = context.command
        assert isinstance(command, Command)
        console.show_lines(describe_command(context.command_path, command, is_full=True))
        raise typer.Exit


def describe_command(path: str, command: Command, *, is_full: bool) -> str:
    """Return the help page of the command that is typed as `path`: every option if `is_full`, else the common ones."""
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)  # of the variable COLUMNS, if it is set
    entries = command.declared.values()
    arguments = [entry for entry in entries if entry.option.is_argument]
    shown = [entry for entry in entries if not entry.option.is_argument and (is_full or entry.option.is_common)]
    lines = [f"Usage: {' '.join([path, '[OPTIONS]', *map(name_argument, arguments)])}", ""]
    lines += textwrap.wrap(
        inspect.cleandoc(command.help or ""), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
    if arguments:
        lines += ["", *_lay_out(((name_argument(entry), _describe(entry)) for entry in arguments), width)]
    tail = [_HELP_ALL, _HELP] if "help_all" in [parameter.name for parameter in command.params] else [_HELP]
    groups = [group for group in GROUPS if any(entry.option.group == group for entry in shown)]
    for group in groups or [RUN]:
        rows = [(describe_flags(entry), _describe(entry)) for entry in shown if entry.option.group == group]
        rows += tail if group == (groups or [RUN])[-1] else []
        lines += ["", f"{group if len(groups) > 1 else 'Options'}:", *_lay_out(rows, width)]
    return "\n".join(lines)


def _lay_out(rows: Iterable[tuple[str, str]], width: int) -> list[str]:
    """Return lines with flags at the left and folded texts at the right."""
    lines = []
    for left, text in rows:
        start = f"  {left}"
        folded = textwrap.wrap(text, max(20, width - _COLUMN), break_long_words=False, break_on_hyphens=False) or [""]
        if len(start) > _COLUMN - 2:
            lines.append(start)
        else:
            lines.append(f"{start:<{_COLUMN}}{folded.pop(0)}".rstrip())
        lines += [" " * _COLUMN + line for line in folded]
    return lines


def name_argument(declared: Declaration) -> str:
    """Return a positional argument as the usage line shows it."""
    name = declared.option.metavar or declared.field.upper()
    name = f"{name}..." if declared.is_repeated and "[" not in name else name
    return name if declared.default is MISSING or "[" in name else f"[{name}]"


def describe_flags(declared: Declaration) -> str:
    """Return the flags of an option with its placeholder."""
    flag = declared.flag
    long = f"--[no-]{flag[2:]}" if declared.has_negation else flag
    short = [entry for entry in declared.option.flags if not entry.startswith("--")]
    value = "" if declared.kind is bool else f" {_name_value(declared)}"
    return ", ".join([*short, long]) + value


def _name_value(declared: Declaration) -> str:
    option, kind = declared.option, declared.kind
    if option.metavar:
        return option.metavar
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return "|".join((_METAVARS[get_origin(kind) or kind], *option.words))


def _describe(declared: Declaration) -> str:
    """Return the help text with unit and default."""
    option = declared.option
    unit = f" ({option.unit})" if option.unit else ""
    text = f"{option.help.removesuffix('.')}{unit}."
    default = describe_default(declared)
    return f"{text} [{default}]" if default else text


def describe_default(declared: Declaration) -> str:
    """Return the default of an option; empty if there is none, or if the help text explains it."""
    default = declared.default
    if declared.kind is bool:
        return "on" if default is True else ""
    if default is MISSING or default is None or default in ((), "*"):
        return ""
    return "" if not default and re.search(r"\b0 ", declared.option.help) else f"{default}"
