"""Run the command line in this process or a fork of it, with limits on time and memory, and make small runs for it."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from convnext_cli.data.digits import write_digits

SECONDS = 30
MEMORY = 8 << 30  # bytes of address space of a fork; torch needs more than half of it
TRAINING = (
    "--model test_convnext2 --weights none --epochs 3 --image-size 32 --batch-size 16 --val-fraction 0.2 --no-autotune"
)


class TooLongError(BaseException):
    """A command took more than `SECONDS`; not an `Exception`, so that no command catches it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str
    crash: str = ""


def call(*words: str, seconds: int = SECONDS) -> Outcome:
    """Run `convnext WORDS` in this process, for at most `seconds` of CPU time and ten times that of wall time."""
    from convnext_cli.cli.app import main

    def raise_timeout(*_: object) -> None:
        raise TooLongError

    out, err, code, crash = io.StringIO(), io.StringIO(), 0, ""
    former = {kind: signal.signal(kind, raise_timeout) for kind in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(words))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except TooLongError:
        crash = f"more than {seconds} s"
    except BaseException as error:  # any error that the command line did not handle
        crash = f"{type(error).__name__}: {error}"
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for kind, handler in former.items():
            signal.signal(kind, handler)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue(), crash=crash)


def call_apart(*words: str, seconds: int = SECONDS) -> Outcome:
    """Run `convnext WORDS` as `call` does, in a fork of this process with limited memory; a crash is an outcome.

    Safe if this process has started no threads: it must not have computed anything with torch.
    """
    with tempfile.TemporaryFile() as result, tempfile.TemporaryFile() as native:
        child = os.fork()
        if not child:
            os.dup2(native.fileno(), 2)  # output of C libraries
            sys.argv = ["convnext", *words]  # which --devices runs again
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            done = call(*words, seconds=seconds)
            result.write(json.dumps(asdict(done)).encode())
            result.flush()
            os._exit(0)
        crash = _wait(child, 12 * seconds)
        result.seek(0)
        native.seek(0)
        native_output = native.read().decode(errors="replace")
        try:
            values = json.loads(result.read())
        except ValueError:
            return Outcome(code=-1, out="", err=native_output, crash=crash or "no result")
        values["err"] = native_output + values["err"]
        return Outcome(**values)


def _wait(child: int, seconds: float) -> str:
    """Wait for a child process, or kill it after `seconds`; return how it was ended, or an empty string."""
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else ""
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"more than {seconds:.0f} s"
        time.sleep(0.005)


def make_images(folder: Path) -> Path:
    """Write 300 digits of three classes."""
    everything = write_digits(folder / "all")
    for digit in "012":
        (folder / "data" / digit).mkdir(parents=True)
        for path in sorted((everything / digit).glob("*.png"))[:100]:
            path.rename(folder / "data" / digit / path.name)
    shutil.rmtree(everything)
    return folder / "data"


def make_run(folder: Path, data: Path, *more: str) -> Path:
    """Train a small run."""
    done = call_apart("finetune", str(data), *TRAINING.split(), "-o", str(folder), *more, seconds=600)
    if done.code or done.crash:
        sys.exit(f"the training failed: {done.err}{done.crash}")
    return folder


def make_stopped_run(folder: Path, data: Path, *more: str) -> Path:
    """Train a run, and stop it with SIGTERM after its first epoch."""
    child = os.fork()
    if not child:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        call("finetune", str(data), *TRAINING.split(), "-o", str(folder), *more, seconds=600)
        os._exit(0)
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.001)
    os.kill(child, signal.SIGTERM)
    _wait(child, 600)
    if (folder / "metrics.json").exists():
        sys.exit("the run finished before it was stopped")
    return folder


def prepare_forks(out: Path) -> None:
    """Import what the commands need, and give their forks their own cache and home folder."""
    os.environ |= {
        "HOME": str(out),
        "CONVNEXT_CACHE": str(out / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    import accelerate  # noqa: F401
    import onnx  # noqa: F401
    import timm  # noqa: F401

    import convnext_cli.training.finetuning  # noqa: F401
