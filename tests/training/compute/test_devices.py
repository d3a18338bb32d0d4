"""Devices that this machine does not have, by stubs."""

import gc
import os
import signal
import socket
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from convnext_cli.diagnosis import _test_gpu
from convnext_cli.errors import ConvnextError, OutOfMemoryError, UsageError
from convnext_cli.machine import GIB, Machine, make_gpu_machine
from convnext_cli.models.forward import choose_device
from convnext_cli.training import lifecycle
from convnext_cli.training.compute import devices, ranks
from convnext_cli.training.compute.autotune import AutotuneResult, choose_compute_config
from convnext_cli.training.compute.compute_config import FAST, NATIVE, TIMM, ComputeConfig, adapt_to_device
from convnext_cli.training.compute.devices import choose_precision, explain_unusable_gpu
from convnext_cli.training.compute.ranks import sum_gradients
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import Planned
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.planning import plan_again, prepare
from convnext_cli.training.resources import guard_training
from tests.training.conftest import make_request, tiny_request, train

CUDA, XPU, MPS, CPU = map(torch.device, ("cuda", "xpu", "mps", "cpu"))


@pytest.mark.parametrize(
    ("device", "capability", "precision"),
    [
        (CUDA, (9, 0), "bf16"),  # H100
        (CUDA, (8, 6), "bf16"),  # RTX 3090
        (CUDA, (7, 5), "fp16"),  # T4, RTX 20
        (CUDA, (7, 0), "fp16"),  # V100
        (CUDA, (6, 1), "no"),  # GTX 1080
        (CPU, None, "no"),
        (MPS, None, "no"),
    ],
)
def test_precision_is_what_the_gpu_computes_in(
    device: torch.device, capability: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supports_bf16(*, including_emulation: bool) -> bool:
        return including_emulation or capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supports_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", device) == precision
    assert choose_precision("no", device) == "no"
    assert choose_precision("bf16", device) == "bf16"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert choose_precision("auto", device) == ("bf16" if precision == "bf16" else "no"), (
        "a scaler needs whole gradients"
    )


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2", "RANK": "0"}, {"LOCAL_RANK": "1"}])
def test_incomplete_variables_of_a_launcher_are_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"has {', '.join(sorted(variables))} of a launcher, but not .*MASTER_ADDR"):
        devices.make_accelerator("no")


def test_variables_that_a_plan_replaces_are_hidden_from_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "ACCELERATE_DYNAMO_BACKEND": "inductor", "ACCELERATE_DEBUG_MODE": "junk", "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "OMPI_COMM_WORLD_SIZE": "4", "PMI_SIZE": "junk", "RANK": "junk",
        "WORLD_SIZE": "1", "LOCAL_RANK": "",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    accelerator = devices.make_accelerator("no")
    assert accelerator.state.dynamo_plugin.backend == "NO"
    assert (accelerator.num_processes, accelerator.gradient_accumulation_steps) == (1, 1)
    assert {name: os.environ[name] for name in variables} == variables


@pytest.mark.parametrize(("name", "value"), [("FSDP_VERSION", "junk"), ("FSDP_SHARDING_STRATEGY", "junk")])
def test_senseless_variables_of_fsdp_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"Accelerate cannot use its .*(junk|JUNK).*Correct or unset .*FSDP_"):
        devices.make_accelerator("no")


def test_signals_end_a_process_that_waits_for_other_ranks(launched: pytest.MonkeyPatch) -> None:
    seen = []
    launched.setattr(devices, "Accelerator", lambda **_: seen.append(signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    devices.make_accelerator("no")
    assert (seen, signal.getsignal(signal.SIGINT)) == ([signal.SIG_DFL], before)


def test_machine_of_the_first_process_that_does_not_exist_is_an_error(launched: pytest.MonkeyPatch) -> None:
    answers: list[OSError] = [ConnectionRefusedError(), socket.gaierror(-2, "Name or service not known")]

    def connect(*_: object, **_options: object) -> None:
        raise answers.pop()

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere", "MASTER_PORT": "29500"}.items():
        launched.setenv(name, value)
    launched.setattr(socket, "create_connection", connect)
    launched.setattr(devices, "MEETING_TIMEOUT", -1.0)
    launched.setattr(devices, "Accelerator", lambda **_: "met")
    with pytest.raises(UsageError, match=r"does not answer at nowhere:29500 \(Name or service not known\)"):
        devices.make_accelerator("no")
    assert devices.make_accelerator("no") == "met", "its process may still prepare"


@pytest.mark.parametrize("device", [CPU, MPS])
def test_fp16_without_its_gpu_is_refused(device: torch.device) -> None:
    with pytest.raises(UsageError, match="--amp fp16 needs a GPU"):
        choose_precision("fp16", device)


@pytest.mark.parametrize(("present", "device"), [("cuda", CUDA), ("xpu", XPU), ("mps", MPS), ("", CPU)])
def test_device_is_the_gpu_of_any_maker(present: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present == "cuda")
    monkeypatch.setattr(torch.xpu, "is_available", lambda: present == "xpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: present == "mps")
    assert choose_device() == device


@pytest.mark.parametrize(
    ("capability", "built", "device"),
    [
        ((7, 0), "sm_75 sm_80 sm_90 sm_120 compute_120", CPU),  # V100, with a build for CUDA 13
        ((7, 0), "sm_50 sm_60 sm_70 sm_75 sm_80 sm_90", CUDA),
        ((8, 9), "sm_75 sm_80 sm_86 sm_90", CUDA),  # RTX 4090: code for an earlier minor version
        ((8, 0), "sm_86 sm_90a", CPU),
        ((12, 1), "sm_90 compute_90", CUDA),  # the driver compiles for later ones
        ((9, 4), "gfx90a gfx942", CUDA),  # ROCm
        ((7, 0), "", CUDA),
        (None, "sm_75", CUDA),  # a GPU that another process has filled
    ],
)
def test_gpu_that_this_build_of_torch_has_no_kernels_for_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, built: str, device: torch.device
) -> None:
    def get_capability(_: torch.device) -> tuple[int, int]:
        if capability is None:
            raise RuntimeError("CUDA error: out of memory")
        return capability

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", built.split)
    monkeypatch.setattr(torch.cuda, "get_device_capability", get_capability)
    assert choose_device() == device
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert explain_unusable_gpu(Machine(name="Tesla V100", is_gpu=True, memory=GIB, cores=1)) == (
        f"Tesla V100 is not used: PyTorch {torch.__version__} does not support it. Training runs on the CPU, many "
        "times slower. Install a build of PyTorch that supports it from pytorch.org"
    )


@pytest.mark.parametrize(("rank", "index"), [(None, None), ("0", 0), ("1", 1), ("3", 1)])
def test_each_process_of_a_launcher_has_its_own_gpu(
    launched: pytest.MonkeyPatch, rank: str | None, index: int | None
) -> None:
    """Accelerate makes it the current one, but a teacher that labels the images is opened before."""
    launched.setenv("LOCAL_RANK", rank or "")
    launched.setattr(torch.cuda, "is_available", lambda: True)
    launched.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device().index == index


def test_garbage_of_an_earlier_training_is_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1, 1)
    model.forward = model.__call__  # type: ignore[method-assign]  # a cycle, as Accelerate makes with mixed precision
    left = weakref.ref(model)
    module = SimpleNamespace(
        get_device_properties=lambda _: SimpleNamespace(name="GPU"), empty_cache=lambda: None,
        mem_get_info=lambda _: (10 * GIB if left() is None else GIB, 12 * GIB),
        memory_reserved=lambda _: 0, memory_allocated=lambda _: 0,
    )  # fmt: skip
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    gc.disable()
    try:
        del model
        accelerator: Any = SimpleNamespace(device=CUDA, num_processes=1)
        assert devices.find_torch_machine(accelerator).memory == 10 * GIB
    finally:
        gc.enable()


def test_apple_and_intel_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Intel Arc B580", total_memory=12 * GIB)
    module = SimpleNamespace(
        get_device_properties=lambda _: properties, mem_get_info=lambda _: (10 * GIB, 12 * GIB),
        memory_reserved=lambda _: 3, memory_allocated=lambda _: 1, empty_cache=lambda: None,
    )  # fmt: skip
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: GIB)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    accelerator: Any = SimpleNamespace(device=XPU, num_processes=1)
    assert devices.describe_device(XPU) == "Intel Arc B580, 12 GiB"
    assert str(devices.find_torch_machine(accelerator)) == "Intel Arc B580, 10.0 GiB free"
    accelerator.device = MPS
    assert devices.describe_device(MPS) == "Apple GPU (arm64)"
    assert str(devices.find_torch_machine(accelerator)) == "Apple GPU (arm64), 11.0 GiB free"


@pytest.mark.parametrize(
    ("cuda", "init_error", "reason"),
    [
        (None, None, "this PyTorch is the CPU build"),
        (
            "13.0",
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
            "driver .* too old",
        ),
    ],
)
def test_gpu_that_torch_cannot_use_is_a_warning_and_the_plan_is_for_the_cpu(
    cuda: str | None, init_error: Exception | None, reason: str, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        assert init_error is not None
        raise init_error

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    gpu = Machine(name="NVIDIA A100", is_gpu=True, memory=80 * GIB, cores=8)
    monkeypatch.setattr("convnext_cli.training.planning.detect_machine", lambda: gpu)
    monkeypatch.setattr("convnext_cli.diagnosis.detect_machine", lambda: gpu)
    options = {"model": "test_convnext2", "weights": "none", "image_size": 32, "batch_size": 512, "audit": False}
    request = make_request(options, few_digits, "run")
    assert prepare(request).plan.settings.micro_batch_size == 512
    planned = next(event for event in finetune_steps(request) if isinstance(event, Planned))
    [warning] = [notice for notice in planned.notices if notice.severity == "warning" and "A100" in notice.text]
    assert warning.text.startswith("NVIDIA A100 is not used: ")
    assert planned.plan.settings.micro_batch_size < 512, "the plan is for the CPU"
    with pytest.raises(ValueError, match=reason):
        _test_gpu()


def test_gpu_that_only_torch_knows_is_planned_for(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ROCm, or where NVML and the driver differ in version."""
    monkeypatch.setattr(devices, "find_torch_machine", lambda _: make_gpu_machine(16))
    planned = next(event for event in finetune_steps(tiny_request(few_digits, "run")) if isinstance(event, Planned))
    [text] = [notice.text for notice in planned.notices if notice.text.startswith("planned for the GPU")]
    assert text.startswith("planned for the GPU that PyTorch uses: GPU, 16.0 GiB free, instead of CPU")


def test_plan_of_another_machine_differs_in_its_settings_only(few_digits: Path) -> None:
    options = {"model": "convnext_base", "weights": "none", "audit": False, "batch_size": 512}
    preparation = prepare(make_request(options, few_digits, "run"))
    again = plan_again(preparation, make_gpu_machine(80))
    assert again.machine.is_gpu
    assert again.index is preparation.index
    assert again.plan.settings.micro_batch_size > preparation.plan.settings.micro_batch_size


def test_filled_gpu_is_an_error_with_its_memory(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(devices, "make_accelerator", fail)
    monkeypatch.setattr("convnext_cli.training.resources.choose_device", lambda: CUDA)
    monkeypatch.setattr("convnext_cli.models.device_memory._measure_memory", lambda _: (GIB // 5, 24 * GIB, 0))
    with pytest.raises(
        OutOfMemoryError, match=r"other processes use 23\.8 of the GPU's 24\.0 GiB.*CUDA_VISIBLE_DEVICES"
    ):
        list(finetune_steps(tiny_request(few_digits, "run")))


@pytest.mark.parametrize(
    "place",
    [
        "build.spread_model", "parts.ema.ModelEma.__init__", "phases.head._forward_head",
        "checkpoint._gather_weights", "step.sum_gradients",
    ],
)  # fmt: skip
def test_memory_may_run_out_anywhere(place: str, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(f"convnext_cli.training.{place}", fail)
    with pytest.raises(OutOfMemoryError, match=r"too little memory.*Try a smaller --model"):
        list(finetune_steps(tiny_request(few_digits, "run", freeze_epochs=1, ema_decay=0.9)))


def test_run_of_a_cpu_goes_on_without_its_kernels_on_a_gpu() -> None:
    accelerator: Any = SimpleNamespace(device=CUDA, distributed_type="NO")
    config, notice = adapt_to_device(ComputeConfig(blocks=NATIVE, threads=2), accelerator)
    assert config == ComputeConfig(blocks=FAST, threads=2)
    assert notice
    assert "round differently" in notice.text
    assert adapt_to_device(ComputeConfig(blocks=TIMM), accelerator) == (ComputeConfig(blocks=TIMM), None)
    accelerator.device = CPU
    assert adapt_to_device(ComputeConfig(blocks=NATIVE), accelerator) == (ComputeConfig(blocks=NATIVE), None)


@pytest.mark.parametrize(
    ("device", "kind", "amp", "goes_on"),
    [
        (CUDA, "NO", "bf16", True), (CUDA, "FSDP", "bf16", False), (CPU, "NO", "no", True), (CPU, "NO", "bf16", False),
        (torch.device("mps"), "NO", "no", False),
    ],
)  # fmt: skip
def test_run_goes_on_compiled_where_a_new_one_may_be(
    device: torch.device, kind: str, amp: str, *, goes_on: bool
) -> None:
    accelerator: Any = SimpleNamespace(device=device, distributed_type=kind, mixed_precision=amp)
    config, notice = adapt_to_device(ComputeConfig(compiled=True), accelerator)
    assert config.compiled == goes_on
    words = "the run began with timm's own blocks, compiled and goes on with timm's own blocks: "
    assert goes_on if notice is None else notice.text.startswith(words)


def test_kernels_are_not_called_for_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have shapes and no memory: a kernel that read their address would crash the process."""
    import timm

    from convnext_cli.kernels.blocks import use_fused_blocks

    model: nn.Module = timm.create_model("convnext_atto", num_classes=2)
    use_fused_blocks(model, native=True)
    monkeypatch.setattr("convnext_cli.kernels.depthwise._Depthwise.apply", None)
    monkeypatch.setattr("convnext_cli.kernels.blocks.native_mlp", None)
    model.to("meta").train()
    logits = model(torch.empty(2, 3, 64, 64, device="meta"))
    assert logits.shape == (2, 2)
    logits.sum().backward()


def test_gradients_are_exchanged_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def add(flat: torch.Tensor) -> None:
        sizes.append(len(flat))
        flat *= 2

    model = nn.ModuleList(nn.Linear(10, 10, bias=False) for _ in range(5))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    monkeypatch.setattr(torch.distributed, "all_reduce", add)
    monkeypatch.setattr(ranks, "BUCKET", 2 * 400)
    accelerator: Any = SimpleNamespace(num_processes=2, distributed_type="MULTI_CPU")
    sum_gradients(accelerator, list(model.parameters()))
    assert sizes == [200, 200, 100]
    assert [float(each.grad.mean()) for each in model.parameters() if each.grad is not None] == [0, 2, 4, 6, 8]


def test_amd_gpu_needs_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    assert "not the ROCm build" in explain_unusable_gpu(Machine(name="AMD GPU", is_gpu=True, memory=GIB, cores=1))


@pytest.mark.parametrize(("from_passes", "deterministic"), [(1, False), (1, True), (10_000, False)])
def test_long_runs_measure_and_cudnn_searches_algorithms_of_whole_batches(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, from_passes: int, deterministic: bool
) -> None:
    seen: set[tuple[int, bool, bool]] = set()
    forward = TrainingContext.forward

    def record(self: TrainingContext, inputs: torch.Tensor) -> torch.Tensor:
        seen.add((len(inputs), torch.is_grad_enabled(), torch.backends.cudnn.benchmark))
        return forward(self, inputs)

    def choose(*inputs: Any, measure: bool, **options: Any) -> AutotuneResult:
        measures.append(measure)
        return choose_compute_config(*inputs, measure=False, **options)

    measures: list[bool] = []
    monkeypatch.setattr(TrainingContext, "forward", record)
    monkeypatch.setattr(lifecycle, "AUTOTUNED_PASSES", from_passes)
    monkeypatch.setattr(lifecycle, "choose_compute_config", choose)
    request = tiny_request(few_digits, tmp_path / "run", deterministic=deterministic, batch_size=10)
    train(replace(request, autotune=from_passes == 1))
    searches = from_passes == 1 and not deterministic
    assert measures == [searches]
    batch = max(images for images, *_ in seen)
    assert {images for images, *_ in seen} != {batch}, "the last micro-batch of a batch is smaller"
    assert {benchmark for images, _, benchmark in seen if images == batch} == {searches}
    assert not any(benchmark for images, _, benchmark in seen if images < batch)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("text", "expected", "problem"),
    [
        ("[gloo/transport/tcp/pair.cc:561] Connection closed by peer", ConvnextError, "another process of this run"),
        ("shapes do not match", RuntimeError, "shapes do not match"),
    ],
)
def test_the_end_of_another_process_is_an_error_that_points_to_it(
    text: str, expected: type[Exception], problem: str
) -> None:
    accelerator: Any = SimpleNamespace(device=CPU)
    with pytest.raises(expected, match=problem), guard_training(accelerator):
        raise RuntimeError(text)
