"""A model on its device, with all that its training needs."""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from convnext_cli.models.build import build_model, read_preprocessing, scale_head, seed_weights
from convnext_cli.models.fast import keep_memory
from convnext_cli.training.devices import spread_model
from convnext_cli.training.objective import make_objective
from convnext_cli.training.optim import make_optimizer
from convnext_cli.training.preparation import Prepared, Request
from convnext_cli.training.step import Job


class Built(NamedTuple):
    """What the loop works on, and what it was made of."""

    job: Job
    network: nn.Module
    """The model itself; the job's may be a wrapper around it."""
    params: int
    new_params: int
    """How many of `params` start from random values."""


def build_job(request: Request, prepared: Prepared, accelerator: Accelerator) -> Built:
    """Builds the model as the plan says, and spreads it over the devices; all ranks call it."""
    index, plan = prepared.index, prepared.plan
    recipe = plan.recipe
    seed_weights(recipe.seed)
    with accelerator.local_main_process_first():  # one download for all of a machine's processes
        network, new = build_model(
            prepared.architecture,
            prepared.tag,
            num_classes=len(index.classes),
            drop_path=recipe.drop_path,
            weights="none" if request.resume else plan.weights,
            offline=request.offline,
            in_chans=recipe.in_chans,
            head_hidden_size=recipe.head_hidden_size if recipe.head == "mlp" else None,
            head_dropout=recipe.head_dropout,
        )
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}  # whole: not yet sharded
    scale_head(network, new, recipe.head_init_scale)
    network.set_grad_checkpointing(recipe.grad_checkpointing)  # type: ignore[operator]  # timm's models have it
    network = network.to(memory_format=torch.channels_last)
    if accelerator.device.type == "cpu":
        keep_memory()
    how = read_preprocessing(network, recipe.image_size)
    groups = make_optimizer(network, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay)
    model, optimizer = spread_model(accelerator, network, groups)
    job = Job(
        model=model,
        optimizer=optimizer,
        accelerator=accelerator,
        recipe=recipe,
        index=index,
        how=how,
        objective=make_objective(recipe, index.count_classes("train"), accelerator.device),
        cache=request.cache,
    )
    return Built(job, network, sum(sizes.values()), sum(sizes[name] for name in new))
