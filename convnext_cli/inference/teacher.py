"""The teacher of a distillation: a run, the folds of a cross-validation, an exported ONNX file, or a model of timm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from convnext_cli.errors import RunError, UsageError, WeightsError
from convnext_cli.files import checksum_file
from convnext_cli.inference.classifier import Classifier, Heat, Outputs
from convnext_cli.inference.onnx_classifier import ONNX_SUFFIX, OnnxClassifier
from convnext_cli.inference.torch_classifier import open_classifier
from convnext_cli.models.build import read_preprocessing
from convnext_cli.models.device_memory import BatchHalver, guard_memory
from convnext_cli.models.forward import choose_device, prepare_input, use_torch_defaults
from convnext_cli.models.hub import HUB_FILE, OFFLINE, ask_hub, find_cached, report_failure
from convnext_cli.models.weights import read_weights_license
from convnext_cli.recipes.plan import read_optional_plan
from convnext_cli.runs.folds import FoldsFolder, open_folder
from convnext_cli.tasks.registry import SINGLE

TIMM = "timm/"  # before a name of timm's on the Hub
REMEDY = "Give a run, a cross-validation, a file of `convnext export --format onnx`, or a name of timm's"


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A trained model whose outputs a smaller model learns."""

    name: str
    """As the user wrote it."""
    classifier: Classifier
    identity: str
    """Fingerprint of its weights."""
    licenses: tuple[str | None, ...]
    """Licences of its weights; None for an unknown one, and none if it was trained from random weights."""
    feature_width: int
    """Width of its pooled features; 0 if it has none, such as an ensemble."""

    def compute(self, images: NDArray[np.uint8], columns: Sequence[int], *, features: bool) -> NDArray[np.float16]:
        """Return the logits of some classes and, if requested, the pooled features of images (B, S, S, 3), (B, C + D).

        Raises:
            RunError: an output is not finite.
        """
        outputs = self.classifier.run_batch(images, features=features, heat=False)
        rows = np.concatenate([outputs.logits[:, columns], outputs.features], axis=1)
        limit = float(np.finfo(np.float16).max)
        if not np.isfinite(rows).all():
            raise RunError(f"the outputs of the teacher {self.name} are not finite", "Use another teacher")
        return rows.clip(-limit, limit).astype(np.float16)


class TimmClassifier(Classifier):
    """A pretrained classifier of timm, of any family; its classes are ImageNet's synsets or, of other data, numbers.

    Args:
        name: of timm, such as `convnext_base.fb_in22k_ft_in1k`.
        offline: True to use the Hub's local cache only.

    Raises:
        UsageError: timm has no such model.
        WeightsError: its weights cannot be loaded.
        OutOfMemoryError: it, or a single image, does not fit into the device's memory.
    """

    @use_torch_defaults()
    def __init__(self, name: str, *, offline: bool = False) -> None:
        self.task = SINGLE
        check_source(name, offline=offline)
        with report_failure(f"cannot load the teacher {name}", "Give a run or a file instead"):
            model = timm.create_model(name, pretrained=True)
        self.device, self.cfg = choose_device(), model.pretrained_cfg
        with guard_memory(f"the device has too little memory for the teacher {name}", "Use a smaller one", self.device):
            self.model = model.eval().to(self.device)
        self.halver = BatchHalver(self.device)
        self.preprocessing = read_preprocessing(model)
        subset = infer_imagenet_subset(self.cfg)
        names = ImageNetInfo(subset).label_names() if subset else map(str, range(int(model.num_classes)))
        self.classes = tuple(names)

    @use_torch_defaults()
    @torch.inference_mode()
    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: Heat) -> Outputs:
        """Return the outputs for preprocessed images, (B, S, S, 3), without a heat map."""
        assert not heat

        def compute(part: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
            maps = self.model.forward_features(prepare_input(part, self.preprocessing, self.device))
            vectors = self.model.forward_head(maps, pre_logits=True)
            return self.model.forward_head(maps).float().cpu(), vectors.float().cpu()

        logits, vectors = (tensor.numpy() for tensor in self.halver.run(compute, images))
        empty = np.empty((len(images), 0, 0), np.float32)
        return Outputs(logits=logits, features=vectors if features else vectors[:, :0], heat=empty)


def open_teacher(name: str, *, offline: bool = False) -> Teacher:
    """Return the teacher at a path, or timm's model of that name.

    Raises:
        UsageError: there is no such path or model.
        RunError: the run or file cannot be read.
        WeightsError: timm's weights cannot be loaded.
    """
    path = Path(name)
    if path.is_dir():
        return _open_run(name, path)
    if path.is_file() or path.suffix == ONNX_SUFFIX:
        if path.suffix != ONNX_SUFFIX or not path.is_file():
            raise UsageError(f"{name} is not a teacher", REMEDY)
        onnx = OnnxClassifier(path)
        return _make_teacher(name, onnx, f"{checksum_file(path):08x}", (onnx.metadata.license,))
    model = TimmClassifier(name.removeprefix(TIMM), offline=offline)
    return _make_teacher(name, model, model.cfg["architecture"] + f".{model.cfg['tag']}", (model.cfg.get("license"),))


def check_source(name: str, *, offline: bool) -> None:
    """Check, before anything is loaded, that there is a teacher: a path, or a model of timm whose weights can be had.

    Raises:
        UsageError: there is no such path or model.
        WeightsError: the weights of timm's model are neither in this machine's cache nor on a Hub that answers.
    """
    if Path(name).exists():
        return
    name = name.removeprefix(TIMM)
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"there is no teacher {name!r}: no such path, and no model of timm", REMEDY)
    cfg = timm.get_pretrained_cfg(name)
    hub_id = cfg.hf_hub_id if cfg else None
    if hub_id and any(find_cached(hub_id, file) for file in (HUB_FILE, "pytorch_model.bin")):
        return
    if offline:
        problem = f"the weights of the teacher {name} are not in this machine's cache, and {OFFLINE}"
        raise WeightsError(problem, "Give a run or a file instead, or copy the Hub's cache of another machine")
    if hub_id:
        with report_failure(f"cannot load the teacher {name}", "Give a run or a file instead"):
            ask_hub(hub_id)


def _open_run(name: str, path: Path) -> Teacher:
    folder = open_folder(path)
    runs = folder.list_runs() if isinstance(folder, FoldsFolder) else [folder]
    licenses: dict[str | None, None] = {}
    for run in runs:
        license = read_weights_license(run.path)
        if license is not None or read_optional_plan(run.plan).weights != "none":  # else trained from random weights
            licenses[license] = None
    return _make_teacher(name, open_classifier(folder), folder.fingerprint_weights(), tuple(licenses))


def _make_teacher(name: str, classifier: Classifier, identity: str, licenses: tuple[str | None, ...]) -> Teacher:
    """Return a teacher, after a pass over one image that measures its features."""
    if classifier.task.has_values:
        raise UsageError(f"{name} was trained on {classifier.task.title}", "Give a teacher of one class per image")
    image = np.zeros((1, *classifier.preprocessing.size, 3), np.uint8)
    width = classifier.run_batch(image, features=True, heat=False).features.shape[1]
    return Teacher(name=name, classifier=classifier, identity=identity, licenses=licenses, feature_width=width)
