"""Compile and load the native CPU kernels. They are compiled once, in a second, into the user's cache folder."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from convnext_cli.cache_folder import KERNELS, find_cache_folder, name_entry
from convnext_cli.files import replace_file
from convnext_cli.machine import find_compiler

if TYPE_CHECKING:
    from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
COMPILER_TIMEOUT = 60  # seconds; the compiler takes one


class NoKernelError(Exception):
    """The kernels cannot be compiled or loaded; the message has the reason."""


@cache
def load_kernels() -> ctypes.CDLL:
    """Return the kernels, compiled for this CPU and kept in the cache folder.

    Raises:
        NoKernelError: there is no compiler, or it failed.
    """
    key = ([source.read_bytes() for source in SOURCES], FLAGS, *map(describe_processor, ("model name", "flags")))
    path = find_cache_folder() / KERNELS / f"{name_entry(repr(key).encode())}.so"
    try:
        try:
            kernels = ctypes.CDLL(str(path))
        except OSError:  # missing or damaged
            _compile(path)
            kernels = ctypes.CDLL(str(path))
        kernels.count_lanes.restype = kernels.count_scratch_floats.restype = ctypes.c_long
        kernels.count_scratch_floats.argtypes = [ctypes.c_long] * 2
    except (OSError, AttributeError) as error:
        raise NoKernelError(str(error)) from error
    return kernels


def call_kernel(name: str, *places: "Tensor | int | None", sizes: Sequence[int]) -> None:
    """Call a function of the kernels.

    Args:
        name: of the function.
        places: its pointers: contiguous tensors, addresses such as that of `find_multiply`, None for NULL.
        sizes: its further arguments; all are `long`.

    Raises:
        NoKernelError: the kernels cannot be compiled or loaded.
    """
    addresses = (place if place is None or isinstance(place, int) else place.data_ptr() for place in places)
    function = load_kernels()[name]
    function.restype = None
    function(*map(ctypes.c_void_p, addresses), *map(ctypes.c_long, sizes))


@cache
def find_multiply() -> int:
    """Return the address of PyTorch's product of small float32 matrices; 0 if this build has none.

    It is `at::native::cpublas::brgemm` (`products.h`). Its symbol contains the types of the arguments, so that of a
    version with other ones is not found.
    """
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if platform.machine() not in ("x86_64", "AMD64") or not path.exists():
        return 0
    multiply = getattr(ctypes.CDLL(str(path)), "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb", None)
    return ctypes.cast(multiply, ctypes.c_void_p).value or 0 if multiply is not None else 0


def describe_processor(field: str) -> str:
    """Return a field's line of `/proc/cpuinfo`, such as `model name` or `flags`; the platform's name if unavailable."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(field)), platform.processor())


def _compile(path: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CC", "").strip()
        raise NoKernelError(f"$CC names {named}, which is not there" if named else "there is no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:  # atomic, as other processes may compile too
        command = [
            *compiler,
            *FLAGS,
            *(str(source) for source in SOURCES if source.suffix == ".c"),
            "-o",
            str(temporary),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise NoKernelError(f"{compiler[0]} took more than {COMPILER_TIMEOUT} s") from error
        if done.returncode:
            raise NoKernelError(f"{compiler[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
