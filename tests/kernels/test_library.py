import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext_cli.kernels import library
from convnext_cli.kernels.library import NoKernelError, load_kernels

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing loaded, and an empty cache; its folder of kernels."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path))
    load_kernels.cache_clear()
    yield tmp_path / "kernels"
    load_kernels.cache_clear()


def test_kernels_are_compiled_once(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_kernels()
    [kept] = anew.iterdir()
    load_kernels.cache_clear()
    monkeypatch.setenv("CC", "/nowhere/cc")
    load_kernels()
    assert list(anew.iterdir()) == [kept]


def test_concurrent_compilations_leave_one_file(anew: Path) -> None:
    kernels: list[object] = []
    workers = [threading.Thread(target=lambda: kernels.append(load_kernels())) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(kernels) == 3
    assert len(list(anew.iterdir())) == 1


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        ("/nowhere/cc", r"^\$CC names /nowhere/cc, which is not there$"),
        ("false", "false failed: no message"),
        ("true", "file too short"),  # succeeds and writes nothing
    ],
)
def test_missing_compiler_gives_a_reason(anew: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, why: str) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(NoKernelError, match=why):
        load_kernels()
    assert not [path for path in anew.glob("*") if path.stat().st_size]


def test_machine_without_compiler_gives_a_reason(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(anew))
    with pytest.raises(NoKernelError, match=r"^there is no C compiler$"):
        load_kernels()
    assert not anew.exists()


def test_compiler_that_hangs_gives_a_reason(anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow-cc"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(library, "COMPILER_TIMEOUT", 0.1)
    with pytest.raises(NoKernelError, match=r"slow-cc took more than 0\.1 s"):
        load_kernels()
    assert not [path for path in anew.glob("*") if path.stat().st_size]


def test_damaged_kernels_are_compiled_again(anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_kernels()
    [kept] = anew.iterdir()
    load_kernels.cache_clear()
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "other"))
    damaged = tmp_path / "other/kernels" / kept.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    load_kernels()
    assert damaged.stat().st_size == kept.stat().st_size
