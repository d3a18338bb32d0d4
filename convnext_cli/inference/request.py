"""The options of a prediction and of an evaluation. No torch and no NumPy, so that parsing is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from convnext_cli.options import AUTO, DataOption, Option

EVAL_RUN = "convnext eval RUN"  # how the command names a run
PREDICT_RUN = "convnext predict IMAGE --run RUN"


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupOptions:
    """The unit of a result: an image, or a group of images, such as a patient."""

    per: Annotated[
        Literal["image", "group"],
        Option(
            "image, or group: one result for each group (patient), pooled from its images.",
            is_common=True,
            metavar="UNIT",
        ),
    ] = "image"
    group_from: Annotated[
        str,
        DataOption("Groups (patients): auto for the run's own, dicom:PatientID, or a regular expression on the path."),
    ] = AUTO


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest(GroupOptions):
    """The options of a prediction."""

    raw: Annotated[bool, Option("Leave out the run's temperature and thresholds.", is_common=True)] = False
    calibration: Annotated[
        Path | None,
        Option(
            "File of `eval --save-calibration`, used in place of the run's own calibration and thresholds.",
            is_common=True,
            metavar="FILE",
        ),
    ] = None
    abstain: Annotated[bool, Option("Flag images that are out-of-distribution (OOD).", is_common=True)] = False
    explain: Annotated[Path | None, Option("Folder for Grad-CAM heat maps.", is_common=True, metavar="DIR")] = None
    explain_class: Annotated[
        tuple[str, ...], Option("Class or label to explain, whatever is predicted; repeatable.", metavar="NAME")
    ] = ()
    overwrite: Annotated[bool, Option("Replace existing heat maps in --explain.", is_common=True)] = False
    tta: Annotated[
        bool, Option("Test-time augmentation: average over shifted views; several times slower.", is_common=True)
    ] = False
    engine: Annotated[
        Literal["auto", "onnx", "torch"],
        Option(
            "auto, onnx (ONNX Runtime) or torch; auto is onnx where the run has model.onnx.",
            is_common=True,
            metavar="NAME",
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequest(GroupOptions):
    """The options of an evaluation."""

    runs: tuple[Path, ...] = ()
    """Run folders; empty for the newest under `runs/`."""
    data: Annotated[
        Path | None,
        DataOption(
            "Folder of images; default: the run's own data and split.", is_common=True, flags=("-d",), metavar="DIR"
        ),
    ] = None
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        DataOption("train, val, test or all; default: test, else val, else all.", is_common=True, metavar="NAME"),
    ] = None
    targets: Annotated[
        tuple[str, ...],
        Option(
            "Set a threshold: sensitivity=0.9[,specificity=0.8]:CLASS[@confidence=0.9] or "
            "ppv=0.3:CLASS@prevalence=0.02.",
            is_common=True,
            name="target",
        ),
    ] = ()
    subgroups: Annotated[
        str | None,
        Option(
            "Compare subgroups: columns or DICOM attributes, with cuts of numbers, such as sex,age:18,65,site.",
            is_common=True,
            metavar="NAMES",
        ),
    ] = None
    subgroup_table: Annotated[
        Path | None,
        Option(
            "Table with the columns of --subgroups, by path or by group; default: the data's own.",
            is_common=True,
            metavar="FILE",
        ),
    ] = None
    recalibrate: Annotated[
        int | None,
        Option(
            "Fit a calibration on N of the images and evaluate the others; the run keeps its own.",
            is_common=True,
            low=2,
            metavar="N",
        ),
    ] = None
    save_calibration: Annotated[
        Path | None,
        Option(
            "With --recalibrate, write the new calibration into a file, for `predict --calibration`.",
            is_common=True,
            metavar="FILE",
        ),
    ] = None
    overwrite: Annotated[bool, Option("Replace an existing file of --save-calibration.")] = False
    tta: Annotated[bool, Option("Test-time augmentation; its cost and gain are measured.", is_common=True)] = False
    cache: Annotated[bool, Option("Cache preprocessed images for the next evaluation.", is_common=True)] = True
    group_column: Annotated[str, DataOption("Column of a table given as DATA with the groups (patients).")] = AUTO
    negative_class: Annotated[
        str | None,
        Option(
            "With --per group, the class without a finding: any other class of a group's images outweighs it.",
            metavar="CLASS",
        ),
    ] = None
