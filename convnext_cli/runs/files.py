"""The files of a run folder. Each is declared once; paths, clean-up and the table of the documentation follow.

Schemas are named, not imported: commands that read no run start without `records.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Stage = Literal["begin", "train", "finish", "evaluate", "export"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """One file of a run folder, or several that share a pattern."""

    name: str
    """Path below the run folder; `*` stands for a step, an epoch or a plot."""
    content: str
    stage: Stage
    """When it is written. Files of `begin` come before the plan, which makes the folder a run."""
    writer: str = "finetune"
    """The command that writes it."""
    schema: str | None = None
    """Name of the class that it must fit, in `records.py` or `inference/`; None if it is not JSON."""
    has_digest: bool = False
    """True if it has a digest of its values, by which a change by hand is noticed."""
    remedy: str = ""
    """What the user can do if it cannot be read; `{resume}` stands for the command that resumes the run."""

    def path(self, folder: Path, part: str = "") -> Path:
        """Return its path in a run folder, with `part` in place of the `*`."""
        return folder / self.name.replace("*", part)

    def find(self, folder: Path) -> Iterator[Path]:
        """Yield the paths of all such files that are in a run folder."""
        return folder.glob(self.name)


SPLIT = RunFile(name="split.csv", content="path, label, group and split of each image", stage="begin")
DATA = RunFile(
    name="data.json", content="data folder, classes in the order of the outputs, skipped files", stage="begin",
    schema="Data", remedy="Give a folder that `convnext finetune` made",
)  # fmt: skip
AUDIT = RunFile(
    name="audit.json", content="findings of `check`", stage="begin", schema="AuditRecord", has_digest=True,
    remedy="Run `convnext check` on the data",
)  # fmt: skip
IMAGE_HASHES = RunFile(
    name="image_hashes.safetensors", stage="begin",
    content="digests, perceptual hash, 12 x 12 px thumbnail, size and scene of each image, for `eval` to recognise it",
)  # fmt: skip
ENVIRONMENT = RunFile(
    name="environment.json", content="command line, versions, device, git state", stage="begin", schema="Environment",
    remedy="Restore the file",
)  # fmt: skip
ORIGIN = RunFile(
    name="last/origin.safetensors", content="digests of the split's rows and of the image files, for `--resume`",
    stage="begin",
)  # fmt: skip
RANGE_TEST = RunFile(
    name="lr.json", content="learning-rate range test of `--lr auto`", stage="begin", schema="RangeTest",
    remedy="Delete it: lr.json is only used for the plot",
)  # fmt: skip
CHECKPOINT = RunFile(
    name="last/step-*.safetensors", stage="begin",
    content="model, optimizer and training state after a step, for `--resume`; the last two are kept",
)  # fmt: skip
PLAN = RunFile(name="plan.toml", content="settings with their reasons; `--config` repeats the run", stage="train")
RANGE_TEST_PLOT = RunFile(name="lr.png", content="plot of the learning-rate range test", stage="train")
MODEL = RunFile(name="model.safetensors", content="weights of the best epoch, for timm", stage="train")
CONFIG = RunFile(
    name="config.json", content="architecture, classes and preprocessing, for timm", stage="train", schema="Config",
    remedy="Give a folder that `convnext finetune` made and finished an epoch in",
)  # fmt: skip
LOG = RunFile(
    name="metrics.jsonl", content="one line per epoch", stage="train", schema="Epoch",
    remedy="Delete it: it is only used for the plots",
)  # fmt: skip
CURVES = RunFile(name="curves.png", content="loss, accuracy and learning rate by epoch", stage="train")
CANDIDATE = RunFile(
    name="last/epoch-*.safetensors", content="weights of the epochs that may be averaged; removed at the end",
    stage="train",
)  # fmt: skip
CALIBRATION = RunFile(
    name="calibration.json", content="temperature, thresholds and OOD threshold, fitted on the validation split",
    stage="finish", writer="finetune, eval --target", schema="Calibration", has_digest=True,
    remedy="Delete it; `convnext eval` fits it again",
)  # fmt: skip
CALIBRATION_ARRAYS = RunFile(
    name="calibration.safetensors", stage="finish",
    content="validation logits, OOD scores and pixel statistics, and training features, for calibration and drift",
    remedy=f"Delete {CALIBRATION.name} there; `convnext eval` fits both again",
)  # fmt: skip
ONNX = RunFile(
    name="model.onnx", content="model for `predict` without PyTorch, and for other programs", stage="finish",
    writer="finetune, export",
)  # fmt: skip
METRICS = RunFile(
    name="metrics.json", content="kept epoch and its validation metrics; marks the run as finished", stage="finish",
    schema="Result", has_digest=True, remedy="Delete it; {resume} writes it again",
)  # fmt: skip
POOLING = RunFile(
    name="pooling.json", content="rule that pools the images of a group, its calibration and thresholds",
    stage="evaluate", writer="eval --per group", schema="Pooling", has_digest=True,
    remedy="Delete it; `convnext eval --per group` fits it again",
)  # fmt: skip
REPORT = RunFile(name="report.html", content="newest evaluation, for people", stage="evaluate", writer="eval")
PREDICTIONS = RunFile(
    name="predictions.csv", content="newest evaluation: label, prediction and probabilities of each image",
    stage="evaluate", writer="eval",
)  # fmt: skip
GROUP_PREDICTIONS = RunFile(
    name="predictions-groups.csv", content="newest evaluation per group: the same of each group", stage="evaluate",
    writer="eval --per group",
)  # fmt: skip
PLOTS = RunFile(name="plots/*.png", content="plots of the report", stage="evaluate", writer="eval")
TESTS = RunFile(
    name="tests.jsonl", content="one line per evaluation on the test split", stage="evaluate", writer="eval",
    schema="Test", remedy="Correct the line; each evaluation on the test split is recorded there",
)  # fmt: skip
ONNX_INT8 = RunFile(name="model-int8.onnx", content="8-bit ONNX model", stage="export", writer="export --int8")
PT2 = RunFile(name="model.pt2", content="PyTorch program", stage="export", writer="export --format pt2")

RUN_FILES = (
    SPLIT, DATA, AUDIT, IMAGE_HASHES, ENVIRONMENT, ORIGIN, CHECKPOINT, RANGE_TEST, PLAN,
    RANGE_TEST_PLOT, MODEL, CONFIG, LOG, CURVES, CANDIDATE,
    CALIBRATION, CALIBRATION_ARRAYS, ONNX, METRICS,
    POOLING, REPORT, PREDICTIONS, GROUP_PREDICTIONS, PLOTS, TESTS,
    ONNX_INT8, PT2,
)  # fmt: skip
"""All files of a run, in the order in which they are written."""

FOLDS_PLAN = RunFile(
    name="folds.toml", content="settings of all folds; marks the folder as a cross-validation", stage="train"
)
TEMPORARY = (".*.tmp", ".tmp*", "last/.*.tmp", "last/.tmp*", "plots/.*.tmp")
"""Patterns of files that a killed process was writing: names of `replace_file` end in `.tmp`, safetensors' begin so."""


def list_temporary(folder: Path) -> list[Path]:
    """Return what a killed process was writing into a run folder."""
    return [path for pattern in TEMPORARY for path in folder.glob(pattern)]


def list_beginning(folder: Path) -> list[Path]:
    """Return the files of a run folder that may be there before its plan is."""
    files = [path for file in RUN_FILES if file.stage == "begin" for path in file.find(folder)]
    return [*files, *list_temporary(folder)]


def list_removable(folder: Path) -> list[Path]:
    """Return all files of a run folder in an order of removal: after each, the rest can be replaced or begun again.

    The plan goes after all that is written later, the beginning last.
    """
    later = [file for file in RUN_FILES if file.stage != "begin" and file not in (METRICS, PLAN)]
    files = [path for file in (METRICS, *later, PLAN) for path in file.find(folder)]
    return [*files, *list_beginning(folder)]
