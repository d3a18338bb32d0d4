"""Compile and load the native CPU kernels. They are compiled once, in a second, into the user's cache folder."""

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
COMPILER_TIMEOUT = 60  # seconds; the compiler takes one


class NoKernelError(Exception):
    """The kernels cannot be compiled or loaded; the message has the reason."""


@cache
def load_kernels() -> ctypes.CDLL:
    """Return the kernels, compiled for this CPU and kept in the cache folder.

    Raises:
        NoKernelError: there is no compiler, or it failed.
    """
    path = _find_compiled()
    try:
        try:
            kernels = ctypes.CDLL(str(path))
        except OSError:  # missing or damaged
            _compile(path)
            kernels = ctypes.CDLL(str(path))
        kernels.count_lanes.restype = kernels.count_scratch_floats.restype = ctypes.c_long
        kernels.count_scratch_floats.argtypes = [ctypes.c_long] * 2
        kernels.sum_products.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 4 + [ctypes.c_int]
        kernels.gelu.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 2
        kernels.gelu_backward.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 2
        sizes = ctypes.c_long, *[ctypes.c_int] * 3, ctypes.c_long, ctypes.c_int
        kernels.mlp.argtypes = [*[ctypes.c_void_p] * 9, *sizes]
        kernels.mlp_backward.argtypes = [*[ctypes.c_void_p] * 12, *sizes]
        for function in (kernels.sum_products, kernels.gelu, kernels.gelu_backward, kernels.mlp, kernels.mlp_backward):
            function.restype = None
    except (OSError, AttributeError) as error:
        raise NoKernelError(str(error)) from error
    return kernels


@cache
def find_gemm() -> int:
    """Return the address of MKL's SGEMM in PyTorch's library; 0 if PyTorch is built with another one."""
    import torch

    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            gemm = getattr(ctypes.CDLL(str(path)), "SGEMM", None)
            return ctypes.cast(gemm, ctypes.c_void_p).value or 0 if gemm is not None else 0
    return 0


def _find_compiled() -> Path:
    """Return the file of the kernels in the cache folder, whose name depends on their source and on the CPU."""
    key = ([source.read_bytes() for source in SOURCES], FLAGS, *map(describe_processor, ("model name", "flags")))
    return find_cache_folder() / "kernels" / f"{hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()}.so"


def describe_processor(field: str) -> str:
    """Return a field's line of `/proc/cpuinfo`, such as `model name` or `flags`; the platform's name if unavailable."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(field)), platform.processor())


def _compile(path: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoKernelError("there is no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:  # atomic, as other processes may compile too
        command = [
            *compiler.split(),
            *FLAGS,
            *(str(source) for source in SOURCES if source.suffix == ".c"),
            "-o",
            str(temporary),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise NoKernelError(f"{compiler} took more than {COMPILER_TIMEOUT} s") from error
        if done.returncode:
            raise NoKernelError(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
