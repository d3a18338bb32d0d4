"""Our own C kernels, where this machine can compile them: once, in a second, into the user's cache folder."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from convnext_cli.cache_folder import find_cache_folder
from convnext_cli.files import replace_file

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
PATIENCE = 60  # seconds for the compiler, which takes one


class NoKernelError(Exception):
    """The kernels cannot be compiled or loaded here; says why."""


@cache
def load_kernels() -> ctypes.CDLL:
    """The compiled kernels, kept in the cache folder for this processor.

    Raises:
        NoKernelError: there is no compiler, or it failed.
    """
    key = ([source.read_bytes() for source in SOURCES], FLAGS, *map(describe_processor, ("model name", "flags")))
    path = find_cache_folder() / "kernels" / f"{hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()}.so"
    try:
        try:
            kernels = ctypes.CDLL(str(path))
        except OSError:  # none yet, or a damaged one
            _compile(path)
            kernels = ctypes.CDLL(str(path))
        kernels.find_lanes.restype = kernels.find_room.restype = ctypes.c_long
        kernels.find_room.argtypes = [ctypes.c_long] * 2
        kernels.sum_products.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 4 + [ctypes.c_int]
        kernels.gelu.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 2 + [ctypes.c_int]
        kernels.gelu_backward.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 2 + [ctypes.c_int]
        kernels.sum_products.restype = kernels.gelu.restype = kernels.gelu_backward.restype = None
    except (OSError, AttributeError) as error:
        raise NoKernelError(str(error)) from error
    return kernels


def describe_processor(what: str) -> str:
    """What `/proc/cpuinfo` says of it (Linux), `model name` or `flags`, or the platform does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(what)), platform.processor())


def _compile(path: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoKernelError("there is no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:  # whole or not at all, whoever else is at it
        command = [
            *compiler.split(),
            *FLAGS,
            *(str(source) for source in SOURCES if source.suffix == ".c"),
            "-o",
            str(temporary),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired as error:
            raise NoKernelError(f"{compiler} took more than {PATIENCE} s") from error
        if done.returncode:
            raise NoKernelError(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
