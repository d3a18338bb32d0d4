"""The model, optimizer, data and devices of a training, and the part of a batch that one rank computes."""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convnext_cli.data.index import Index
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.machine import count_process_cpus
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import Settings
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.compute.compute_config import CompiledModel, drop_compiled_models
from convnext_cli.training.compute.signals import Signals
from convnext_cli.training.parts.distillation import Distillation
from convnext_cli.training.parts.ema import ModelEma
from convnext_cli.training.parts.loss import Loss


@dataclass(kw_only=True, slots=True)
class TrainingContext:
    """The model, optimizer, data and devices of one training."""

    run: RunFolder
    plan: Plan
    index: Index
    accelerator: Accelerator
    network: nn.Module
    """timm's model; `model` may be a wrapper around it."""
    model: nn.Module
    head: nn.Module
    """The network's head, for the frozen phase; a whole copy of it if the model is sharded."""
    optimizer: torch.optim.Optimizer
    criterion: Loss
    preprocessing: Preprocessing
    params: int
    new_params: int
    """Parameters that are newly initialised."""
    small_validation: str | None = None
    """Why the validation split is too small to choose the best epoch by; None if it is large enough."""
    cache: bool = True
    """True to keep decoded images for later epochs and runs."""
    workers: int | None = None
    """Processes that load the training images; 0 for threads, None for what suits the device."""
    distillation: Distillation | None = None
    """The targets from a teacher and their loss; None without a teacher."""
    ema: ModelEma | None = None
    compiled: CompiledModel | None = None
    searches_algorithms: bool = False
    """True if cuDNN searches its fastest algorithms for whole micro-batches."""
    signals: Signals = field(default_factory=Signals)
    settings: Settings = field(init=False)
    """The values of the plan's settings."""
    parameters: list[nn.Parameter] = field(init=False)
    """The model's parameters, listed once instead of in each step."""

    def __post_init__(self) -> None:
        self.settings = self.plan.settings
        self.parameters = list(self.model.parameters())

    def use_plan(self, plan: Plan) -> None:
        """Replace the plan by one with a measured learning rate or number of epochs."""
        self.plan, self.settings = plan, plan.settings

    @property
    def threads(self) -> int:
        """Decoding threads of this process."""
        return count_process_cpus()

    @property
    def keeps_last(self) -> bool:
        """True if the last epoch's weights are kept, not the best one's."""
        return self.small_validation is not None

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Input shape of most forward passes in training, (B, C, H, W)."""
        settings, train = self.settings, len(self.index.rows("train"))
        images = min(settings.micro_batch_size, self.rank_batch_size, train)
        return images, settings.in_chans, *settings.input_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, of which the last may be smaller."""
        return -(-len(self.index.rows("train")) // self.settings.batch_size)

    @property
    def passes(self) -> int:
        """Forward and backward passes of a rank in the whole run."""
        return self.settings.epochs * self.steps_per_epoch * self.passes_per_step

    @property
    def passes_per_step(self) -> int:
        """Forward and backward passes of a rank in an optimizer step."""
        return -(-self.rank_batch_size // self.settings.micro_batch_size)

    @property
    def rank_batch_size(self) -> int:
        """Images of a batch that one rank computes, at most."""
        processes: int = self.accelerator.num_processes
        return -(-self.settings.batch_size // processes)

    def drop_compiled(self) -> None:
        """Go on without the compiled model, and free the memory of its graphs."""
        if self.compiled is not None:
            self.compiled = None
            drop_compiled_models(self.accelerator.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K) of inputs (B, C, H, W), with a gradient; a student's predicted features follow."""
        if self.compiled is not None and self.compiled.takes(len(inputs)):
            return self.compiled.compute(inputs)
        logits: Tensor = self.model(inputs)
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBatch:
    """One rank's slice of a batch."""

    images: Tensor
    """Images, (B, H, W, 3) uint8, on the CPU; in pinned memory for a CUDA GPU."""
    targets: Tensor
    """Their targets, (B,) or (B, K)."""
    weight: float
    """1; 0 for a rank without images of its own in this batch, which computes another's to keep step."""
    batch_images: int
    """Images of the whole batch, over all ranks."""
    teacher: Tensor | None = None
    """The teacher's outputs for the images, (B, C + D); None without a teacher."""
