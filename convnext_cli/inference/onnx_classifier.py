"""Classifier of an exported ONNX file: ONNX Runtime, Pillow and NumPy, without torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ConvnextError, RunError
from convnext_cli.images.preprocessing import describe_size
from convnext_cli.inference.classifier import Classifier, Heat, Outputs
from convnext_cli.inference.metadata import INPUT, REMEDY, read_metadata
from convnext_cli.machine import count_cpus
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.task import Task
from convnext_cli.text import format_count

ONNX_SUFFIX = ".onnx"
INSTALL = "Install what it needs: pip install 'convnext-cli[onnx]'"


class OnnxClassifier(Classifier):
    """The model of an exported ONNX file.

    Raises:
        RunError: the file cannot be read, or `convnext export` did not write it.
        ConvnextError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConvnextError("ONNX Runtime is not installed", INSTALL) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_cpus()
        options.log_severity_level = 3  # errors only
        try:
            path.open("rb").close()  # ONNX Runtime does not say why it cannot
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime's errors have no common base class
            reason = getattr(error, "strerror", None) or "it is damaged, or not an ONNX file"
            problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason}"
            raise RunError(f"{path} {problem}", REMEDY) from error
        self.metadata = read_metadata(metadata, path)
        self.classes, self.preprocessing = self.metadata.classes, self.metadata.preprocessing
        self.task = self.metadata.read_task()
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        inputs = {tensor.name: tensor.shape[1:] for tensor in self._session.get_inputs()}
        self._outputs = list(outputs)
        if inputs != {INPUT: [*self.preprocessing.size, 3]}:
            size = describe_size(self.preprocessing)
            raise RunError(f"{path} cannot be read: image_size {size} is not its input's", REMEDY)
        width = self.task.count_outputs(len(self.classes))
        if any(outputs.get(name, [0])[-1] != width for name in ("logits", self.task.scores)):
            number = format_count(len(self.classes), "class is", "classes are")
            raise RunError(f"{path} cannot be read: {number} not its outputs'", REMEDY)
        calibration = self.metadata.calibration
        if calibration and calibration.novelty_threshold is not None and "novelty" not in outputs:
            raise RunError(f"{path} cannot be read: it has a novelty_threshold and no output `novelty`", REMEDY)

    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: Heat) -> Outputs:
        """Return the outputs for preprocessed images, (B, H, W, 3); an exported file gives no heat map."""
        assert not heat
        arrays = dict(zip(self._outputs, self._session.run(None, {INPUT: images}), strict=True))
        return make_outputs(arrays, self.task, features=features)


def make_outputs(arrays: Mapping[str, NDArray[np.float32]], task: Task, *, features: bool) -> Outputs:
    """Return the outputs of an exported file, by the names of `metadata.list_outputs`, as those of a classifier."""
    return Outputs(
        logits=arrays["logits"],
        features=arrays["features"] if features else arrays["features"][:, :0],
        heat=np.empty((len(arrays["logits"]), 0, 0), np.float32),
        probabilities=arrays[task.scores],
        novelty=arrays.get("novelty"),
    )


def find_onnx_classifier(run: RunFolder) -> tuple[OnnxClassifier | None, str]:
    """Return the classifier of the run's `model.onnx`; None and the reason where it cannot be used.

    Raises:
        RunError: the file and `config.json` disagree.
    """
    path = run.exported("onnx")
    if not path.exists():
        return None, f"the run has no {path.name}"
    try:
        classifier = OnnxClassifier(path)
    except ConvnextError as error:
        return None, error.problem
    metadata, config = classifier.metadata, run.read_config()
    if metadata.weights != run.fingerprint_weights():
        return None, f"its {path.name} was exported from other weights"
    for name, exported, configured in (
        ("architecture", metadata.architecture, config.architecture),
        ("classes", metadata.classes, config.label_names),
        ("preprocessing", metadata.preprocessing, config.pretrained_cfg.preprocessing),
        ("task", metadata.task, config.task),
    ):
        if exported != configured:  # the weights are the same, so one of the files was edited
            raise RunError(f"{path} and config.json beside it differ in {name}", "Restore the original files")
    return classifier, ""
