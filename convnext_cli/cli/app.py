"""The command line: its commands, and the line and exit code of a failure."""

import errno
import gc
import io
import os
import re
import resource
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from convnext_cli import __version__
from convnext_cli.cli import console
from convnext_cli.cli.help import Command
from convnext_cli.cli.hints import explain_usage
from convnext_cli.cli.signals import get_stopping_signal, stop_by_signals
from convnext_cli.cli.streams import discard, discard_unwritten, keep_streams, name_stdout
from convnext_cli.errors import ConvnextError, OutOfMemoryError, StoppedError, UsageError, shorten_error
from convnext_cli.machine import get_rank

EXIT_CODES = (
    "Exit codes: 0 done, 1 failure, 2 usage, 3 bad data, 4 out of memory, 130 interrupted, 141 output pipe closed, "
    "143 terminated."
)
DEBUG = "CONVNEXT_DEBUG"
INTERRUPTED = 130

MIN_ADDRESS_SPACE = 2**29
"""Bytes that `check` needs, on one thread. With less, OpenBLAS waits forever for memory while SciPy is imported."""

BLAS_THREAD = 2**27
"""Bytes of address space for each thread of the two OpenBLAS libraries of NumPy and SciPy, at most."""

NO_PROCESS = (
    "this user or container has too many processes and threads to start another one. "
    "Raise the limit (`ulimit -u`, or the container's), end other programs, or use fewer --workers"
)

COMMANDS = {
    "list": "list_",
    "check": "check",
    "recommend": "recommend",
    "finetune": "finetune",
    "eval": "evaluate",
    "predict": "predict",
    "export": "export",
    "demo": "demo",
    "doctor": "doctor",
    "cache": "cache",
}
"""The commands, in the order of their use: each is a module of this package, with the function in it."""


def make_app(words: Sequence[str] = ()) -> typer.Typer:
    """Return the command line with the command that `words` call, so that the others cost no time; else with all.

    Args:
        words: the words after `convnext`.
    """
    app = typer.Typer(
        help="Turn a folder of images into a fine-tuned ConvNeXt that you can trust.\n\n"
        "Use in this order: check, recommend, finetune, eval, predict. demo shows them on digits, offline.",
        epilog=EXIT_CODES,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: importing rich doubles the time to the answer
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in [called] if (called := _find_command(words)) else COMMANDS:
        function = getattr(import_module(f"convnext_cli.cli.{name}"), COMMANDS[name])
        app.command(name, cls=Command)(function)
    return app


def _find_command(words: Sequence[str]) -> str:
    """Return the command that the words after `convnext` call; empty if they call none."""
    called = next((word for word in words if not word.startswith("-")), "")
    return called if called in COMMANDS else ""


OBJECTS = 50_000
"""New objects between two garbage collections of the process. Importing PyTorch and timm makes 400,000, and with
Python's default, 700, takes a quarter longer: `python -c "import gc; gc.set_threshold(50_000); import timm"`, timed."""


def _show_version(value: bool) -> None:
    if value:
        console.show(f"convnext {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.", envvar=DEBUG)] = False,
) -> None:
    del version  # done by its callback
    _check_current_folder()
    _check_memory_limit()
    get_rank()  # for its errors: without a valid rank no process knows whether to print
    if debug:
        os.environ[DEBUG] = "1"
    from convnext_cli.cache_folder import explain_cache_location, redirect_library_caches

    note = explain_cache_location()
    redirect_library_caches()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours shows downloads
    os.environ.pop("MPLBACKEND", None)  # plots are drawn into files; matplotlib refuses a backend it does not know
    if note and context.invoked_subcommand in ("check", "demo", "eval", "finetune"):
        console.note(note)
    if context.invoked_subcommand is None:
        console.show_lines(context.get_help())


def _check_current_folder() -> None:
    """Check that the current folder exists: without it PyTorch cannot be loaded, nor a relative path be opened."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder no longer exists", "Change to another one, such as `cd ~`") from error


def _check_memory_limit() -> None:
    """Check that a limit of the address space leaves room for libraries; if it leaves little, use one BLAS thread."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    if limit < MIN_ADDRESS_SPACE:
        problem = f"this process may have {limit / 2**20:,.0f} MiB of memory (`ulimit -v`), which is too little"
        raise OutOfMemoryError(problem, "Raise the limit to 1 GiB, and for PyTorch to 8 GiB or more")
    if limit < 2**31 + (os.cpu_count() or 1) * BLAS_THREAD:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        args: the words after `convnext`; None for those of the process.
    """
    gc.set_threshold(OBJECTS)
    with keep_streams(), stop_by_signals():
        code = _run(args)
    if "triton" not in sys.modules:  # since 3.9, it would print all that is frozen as leaked
        gc.freeze()  # Python would go through all objects once more before it exits
    sys.exit(code)


def _run(args: list[str] | None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if args is None else args
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        code = make_app(words)(args, standalone_mode=False, prog_name="convnext")
        with name_stdout():
            sys.stdout.flush()  # here, so that a failure is reported like any other
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, words)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # Typer ends with 1
            return _report(ended.__context__, words)
        raise
    if code == INTERRUPTED:  # Typer's answer to Ctrl-C
        return _report(KeyboardInterrupt(), words)
    return code if isinstance(code, int) else 0


def _report(error: BaseException, words: Sequence[str]) -> int:
    """Report a failure in one line, and return the exit code. With --debug, raise it."""
    if isinstance(error, StoppedError):  # all processes stop; the first one reports it
        console.say(str(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        console.fail("interrupted. Saved files are intact")
        return 128 + get_stopping_signal()
    if isinstance(error, BrokenPipeError):  # the reader is gone; Python would complain again when it closes stdout
        discard(sys.stdout)
        return 128 + signal.SIGPIPE  # as a shell shows for other programs
    if isinstance(error, OSError):  # perhaps stdout's: the same
        discard_unwritten(sys.stdout)
    if os.environ.get(DEBUG):
        raise error
    text, code = _explain(error, words)
    console.fail(text)
    return code


def _explain(error: BaseException, words: Sequence[str]) -> tuple[str, int]:
    """Return the line and the exit code of a failure."""
    match error:
        case ConvnextError():
            return str(error), error.exit_code
        case typer.TyperException():
            command = f"convnext {_find_command(words)}".rstrip()
            problem = explain_usage(error, words, lambda: typer.main.get_command(make_app()).commands)  # type: ignore[attr-defined]
            return f"{problem} (`{command} --help` lists the options)", error.exit_code
        case MemoryError():
            remedy = "Raise its limit (`ulimit -v`), or end other programs"
            return f"this process has too little memory. {remedy}", OutOfMemoryError.exit_code
        case BlockingIOError(filename=None) | RuntimeError(args=["can't start new thread"]):  # of fork
            return NO_PROCESS, 1
        case OSError(errno=errno.EBADF, filename=None):
            return "standard output is closed, so the result is lost. Redirect it to a file, or to /dev/null", 1
        case PermissionError(filename=str(path)):
            return f"{path}: {error.strerror}. Check its permissions and those of its folder", 1
        case FileNotFoundError() if "temporary directory" in str(error):  # of Python's tempfile, which PyTorch asks
            return "no temporary folder is writable. Set TMPDIR to a folder that is", 1
        case OSError():
            where = f": {error.filename}" if error.filename else ""
            return f"{error.strerror or error}{where}. Check the path, the disk's space and its permissions", 1
        case ModuleNotFoundError(name=str(name)) if not name.startswith("convnext_cli"):
            return f"the Python module {name} is missing. Install convnext again, with the packages that it needs", 1
        case ImportError(path=str(path)) if path.endswith(".so"):  # at a limit of memory, or damaged
            return f"cannot load a library ({error}). Raise the memory limit (`ulimit -v`), or install it again", 1
    if variables := _find_variables(error):
        problem = f"a library cannot use the environment variable {variables} ({shorten_error(error)})"
        return f"{problem}. Correct or unset it", UsageError.exit_code
    problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{problem}. This is a bug; --debug before the command shows the traceback", 1


def _find_variables(error: BaseException) -> str:
    """Return the environment variables whose value an error complains of; libraries read some hundred.

    It names the variable, or quotes its value. It does not if it only advises to set it (`CUDA_LAUNCH_BLOCKING=1`). By
    chance a key that is missing may equal a value, and so may a path.
    """
    text = str(error)
    advice = re.compile(r"\b([A-Z]+_[A-Z_]+)=\S*")
    advised, rest = advice.findall(text), advice.sub("", text)
    named = re.findall(r"[A-Z]+_[A-Z_]+", rest)

    def is_meant(name: str, value: str) -> bool:
        if name in named or (isinstance(error, ValueError) and os.sep not in value and repr(value) in rest):
            return True
        return name in advised and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", rest) is not None

    return ", ".join(name for name, value in os.environ.items() if value and is_meant(name, value))
