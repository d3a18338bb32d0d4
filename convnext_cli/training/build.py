"""Building of a training: the model on its devices, with optimizer and loss."""

from copy import deepcopy

import torch
from accelerate import Accelerator
from torch import nn

from convnext_cli.inference.teacher import Teacher
from convnext_cli.kernels.blocks import keep_freed_memory
from convnext_cli.models.build import ModelOptions, build_model, read_preprocessing, scale_head
from convnext_cli.recipes.framing import apply_framing
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.compute.devices import is_whole_on_gpu, spread_model
from convnext_cli.training.compute.ranks import is_sharded
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.parts.distillation import add_projection
from convnext_cli.training.parts.loss import make_loss
from convnext_cli.training.parts.optimizer import make_optimizer
from convnext_cli.training.preparation import Preparation
from convnext_cli.training.teaching import plan_distillation


def build_context(
    preparation: Preparation, run: RunFolder, accelerator: Accelerator, teacher: "Teacher | None"
) -> TrainingContext:
    """Return the context of a training, with the plan's model on the devices. All ranks call it."""
    request, index, plan = preparation.request, preparation.index, preparation.plan
    settings = plan.settings
    with accelerator.local_main_process_first():  # one download for all processes of a machine
        network, new = _build_network(preparation)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}  # before sharding
    if teacher is not None:
        add_projection(network, teacher.feature_width if settings.teacher_features else 0)
    network.set_grad_checkpointing(settings.grad_checkpointing)  # type: ignore[operator]  # timm's models have it
    head = _lay_out(network, accelerator)
    preprocessing = apply_framing(read_preprocessing(network), settings.image_size, settings.fit, settings.crop_pct)
    optimizer = make_optimizer(
        network,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
        fused=is_whole_on_gpu(accelerator),
    )
    model, prepared_optimizer = spread_model(accelerator, network, optimizer)
    context = TrainingContext(
        run=run,
        plan=plan,
        index=index,
        accelerator=accelerator,
        network=network,
        model=model,
        head=head,
        optimizer=prepared_optimizer,
        params=sum(sizes.values()),
        new_params=sum(sizes[name] for name in new),
        small_validation=preparation.small_validation,
        preprocessing=preprocessing,
        criterion=make_loss(settings, index, accelerator.device),
        cache=request.cache,
        workers=request.workers,
    )
    if teacher is not None:
        context.distillation = plan_distillation(context, teacher)
    return context


def _build_network(preparation: Preparation) -> tuple[nn.Module, list[str]]:
    """Return the plan's model on the CPU, and the names of its newly initialised parameters."""
    request, index, plan = preparation.request, preparation.index, preparation.plan
    settings = plan.settings
    torch.manual_seed(settings.seed)  # for newly initialised parameters
    network, new = build_model(
        preparation.architecture,
        preparation.tag,
        ModelOptions(
            num_classes=index.task.count_outputs(len(index.classes)),
            drop_path=settings.drop_path,
            in_chans=settings.in_chans,
            head_hidden_size=settings.head_hidden_size if settings.head == "mlp" else None,
            head_dropout=settings.head_dropout,
        ),
        weights="none" if request.resume else plan.weights,
        offline=request.offline,
    )
    scale_head(network, new, settings.head_init_scale)
    return network, new


def _lay_out(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Give the weights their memory format, in place, and return the head that the frozen phase trains.

    FSDP takes contiguous parameters only. Inputs in channels last make the convolutions choose the same algorithms.
    """
    head: nn.Module = network.get_submodule("head")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if is_sharded(accelerator):
        return deepcopy(head).to(accelerator.device)
    network.to(memory_format=torch.channels_last)
    return head
