import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_cli.models.depthwise import SIDE, NativeDepthwise, find_weight_gradient, is_for_kernel
from convnext_cli.models.kernels import NoKernelError, load_kernels


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    try:
        load_kernels()
    except NoKernelError as error:
        pytest.skip(f"the kernel cannot be compiled here: {error}")


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing loaded, and an empty cache; its folder of kernels."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path))
    load_kernels.cache_clear()
    yield tmp_path / "kernels"
    load_kernels.cache_clear()


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(16, 50),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    threads=st.integers(1, 3),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_weight_gradient_is_pytorchs(
    batch: int, channels: int, height: int, width: int, threads: int, channels_last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (torch.randn(batch, channels, height, width).to(memory_format=memory_format) for _ in range(2))
    weight = torch.zeros(channels, 1, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    result = F.conv2d(x.double(), weight, padding=SIDE // 2, groups=channels)
    [expected] = torch.autograd.grad(result, weight, grad.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mine = find_weight_gradient(x, grad)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_the_convolution_has_pytorchs_gradients(bias: bool, frozen: str | None) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(24, 24, SIDE, padding=SIDE // 2, groups=24, bias=bias)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad = name != frozen
    native = deepcopy(plain)
    assert is_for_kernel(native)
    native.__class__ = NativeDepthwise
    x = torch.randn(3, 24, 9, 11).to(memory_format=torch.channels_last)
    gradients = []
    for conv in (plain, native):
        inputs = x.clone().requires_grad_()
        asked = [inputs, *(parameter for parameter in conv.parameters() if parameter.requires_grad)]
        gradients.append(torch.autograd.grad(conv(inputs).square().sum(), asked))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_other_convolutions_stay_pytorchs() -> None:
    few, small, strided = (
        torch.nn.Conv2d(4, 4, SIDE, padding=3, groups=4),
        torch.nn.Conv2d(32, 32, 3, padding=1, groups=32),
        torch.nn.Conv2d(32, 32, SIDE, padding=3, groups=32, stride=2),
    )
    assert not any(map(is_for_kernel, (few, small, strided, torch.nn.Conv2d(32, 32, SIDE, padding=3))))


def test_the_kernel_is_compiled_once(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_kernels()
    [kept] = anew.iterdir()
    load_kernels.cache_clear()
    monkeypatch.setenv("CC", "/nowhere/cc")
    load_kernels()
    assert list(anew.iterdir()) == [kept]


def test_threads_that_compile_at_once_end_with_one_file(anew: Path) -> None:
    found: list[object] = []
    workers = [threading.Thread(target=lambda: found.append(load_kernels())) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    assert len(list(anew.iterdir())) == 1


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        ("/nowhere/cc", "No such file"),
        ("false", "false failed: no message"),
        ("true", "file too short"),  # succeeds and writes nothing
    ],
)
def test_without_a_compiler_there_is_a_reason(
    anew: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, why: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(NoKernelError, match=why):
        load_kernels()
    assert not [path for path in anew.iterdir() if path.stat().st_size]


def test_a_damaged_kernel_is_compiled_again(anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_kernels()
    [kept] = anew.iterdir()
    load_kernels.cache_clear()
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "other"))
    damaged = tmp_path / "other/kernels" / kept.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    load_kernels()
    assert damaged.stat().st_size == kept.stat().st_size
