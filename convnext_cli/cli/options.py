"""Command-line options, made from request classes, so that each option is declared once."""

import inspect
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from convnext_cli.cli.completion import complete_model, complete_run
from convnext_cli.cli.help import show_full_help
from convnext_cli.options import Declaration, Option, check_options, convert_value, describe_options
from convnext_cli.recipes.settings import declare_settings
from convnext_cli.text import quote

Request = TypeVar("Request")
JsonFlag = Annotated[bool, Option("Print JSON.", is_common=True, name="json")]
_COMPLETIONS = {"model": complete_model, "run": complete_run, "": None}


class OptionValues(dict[str, Any]):
    """The options that the command line or the environment sets, by name, converted and checked."""

    def __init__(self, values: Mapping[str, Any], context: typer.Context) -> None:
        super().__init__(values)
        self.context = context

    def make(self, request: type[Request], **more: Any) -> Request:
        """Return a request with its own options of these."""
        return request(**self.select(describe_options(request)) | more)  # type: ignore[arg-type]  # a class is hashable

    def select(self, names: Collection[str]) -> dict[str, Any]:
        """Return those of these names."""
        return {name: value for name, value in self.items() if name in names}


def with_options(
    *requests: type, settings: Sequence[str] = ()
) -> Callable[[Callable[[OptionValues], None]], Callable[..., None]]:
    """Give a command the options of request classes; it is called with those that are set.

    Args:
        requests: classes whose fields are options.
        settings: names of single settings that are options too.
    """
    declared = {name: entry for request in requests for name, entry in describe_options(request).items()}
    declared |= {name: declare_settings()[name] for name in settings}

    def change(command: Callable[[OptionValues], None]) -> Callable[..., None]:
        def call(context: typer.Context, **values: Any) -> None:
            values.pop("help_all", None)
            chosen = {name: convert_value(declared[name], value) for name, value in values.items() if value is not None}
            unparsed = {
                name: value
                for name, value in chosen.items()
                if declared[name].option.parse is None or not isinstance(value, str)  # else it is checked already
            }
            check_options(unparsed, declared, kind="option", is_command_line=True)
            command(OptionValues(chosen, context))

        parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
        parameters += [_make_parameter(entry) for entry in declared.values()]
        if any(not (entry.option.is_common or entry.option.is_argument) for entry in declared.values()):
            parameters.append(_make_help_all())
        call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        call.declared = declared  # type: ignore[attr-defined]
        return call

    return change


def _make_parameter(declared: Declaration) -> inspect.Parameter:
    option, kind = declared.option, declared.kind
    kind = list[get_args(kind)[0]] if declared.is_repeated else kind  # type: ignore[misc]  # made at run time
    details: dict[str, Any] = {
        "help": option.help,
        "show_default": False,
        "autocompletion": _COMPLETIONS[option.completion],
        "envvar": option.env or None,
        "metavar": option.metavar or None,
    }
    is_required = option.is_argument and declared.default is MISSING
    default = inspect.Parameter.empty if is_required else None
    if option.is_argument:
        info: Any = typer.Argument(**details)
    else:
        flag = f"{declared.flag}/--no-{declared.flag[2:]}" if declared.has_negation else declared.flag
        info = typer.Option(flag, *option.flags, **details)
    if option.parse or kind in (Path, list[Path], int, float):
        info.parser = _make_parser(option, Path if kind == list[Path] else kind)
    if option.words:
        info.metavar = "|".join(("<float>", *option.words))
    accepted: Any = kind if is_required else kind | None
    annotation: Any = Annotated[accepted, info]  # made at run time, for Typer
    return inspect.Parameter(declared.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _make_help_all() -> inspect.Parameter:
    option = typer.Option(
        "--help-all", is_eager=True, callback=show_full_help, help="Show every option and exit.", show_default=False
    )
    return inspect.Parameter(
        "help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


def quote_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as words of a command line, quoted for a shell."""
    words = []
    for name, value in settings.items():
        flag = declare_settings()[name].flag
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words.append(f"{flag} {quote(str(value))}")
    return words


def repeat_command(context: typer.Context, *, leave_out: Sequence[str]) -> str:
    """Return the command line, quoted for a shell, without some of its parameters."""
    words = context.command_path.split()
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        source = context.get_parameter_source(name)
        if name in leave_out or value is None or source is None or source.name != "COMMANDLINE":
            continue
        if isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
            continue
        flag = max(parameter.opts, key=lambda flag: flag.startswith("--"))
        for entry in value if isinstance(value, list | tuple) else [value]:
            words += [] if parameter.param_type_name == "argument" else [flag]
            words.append(quote(entry) if isinstance(entry, Path) else shlex.quote(str(entry)))
    return " ".join(words)


def _make_parser(option: Option, kind: Any) -> Callable[[str], Any]:
    """Return the parser of a path, a number or an option's own text. Its errors are usage errors of Typer's."""

    def parse(text: str) -> Any:
        if kind is Path and not text:
            raise typer.BadParameter("the path is empty")  # `Path` takes it for the current folder
        try:
            return text if text in option.words else option.parse(text) if option.parse else kind(text)
        except ValueError as error:
            words = f"; write one, or {' or '.join(option.words)}" if option.words else ""
            problem = f"{text!r} is not a {'whole ' if kind is int else ''}number{words}"
            raise typer.BadParameter(str(error) if option.parse else problem) from error

    return parse
