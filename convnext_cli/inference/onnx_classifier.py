"""An exported ONNX file at work: ONNX Runtime, Pillow and NumPy, without torch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ConvnextError, RunError
from convnext_cli.inference.classifier import Classifier, Outputs
from convnext_cli.inference.metadata import INPUT, read_metadata, to_preprocessing
from convnext_cli.machine import count_cpus
from convnext_cli.runs.folder import RunFolder

ONNX_SUFFIX = ".onnx"
REMEDY = "Give a file that `convnext export` wrote, or export the run again"
INSTALL = "Install what it needs: pip install 'convnext-cli[onnx]'"


class OnnxClassifier(Classifier):
    """An exported file, ready to classify.

    Args:
        path: the file that `convnext export --format onnx` wrote.

    Raises:
        RunError: the file cannot be read, or is not ours.
        ConvnextError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConvnextError("ONNX Runtime is not installed", INSTALL) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_cpus()
        options.log_severity_level = 3  # errors; its warnings speak of its own optimisations
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime's errors have no common base class, and say its own line numbers
            raise RunError(f"{path} cannot be read: it is damaged, or no ONNX file", REMEDY) from error
        self.about = read_metadata(metadata, path)
        self.classes, self.preprocessing = self.about.classes, self.about.preprocessing
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        inputs = {tensor.name: tensor.shape[1:] for tensor in self._session.get_inputs()}
        self._outputs = list(outputs)
        if inputs != {INPUT: [self.preprocessing.image_size, self.preprocessing.image_size, 3]}:
            raise RunError(
                f"{path} cannot be read: image_size {self.preprocessing.image_size} is not its input's", REMEDY
            )
        if any(outputs.get(name, [0])[-1] != len(self.classes) for name in ("logits", "probabilities")):
            raise RunError(f"{path} cannot be read: {len(self.classes)} classes are not its outputs'", REMEDY)
        fitted = self.about.calibration
        if fitted and fitted.novelty_threshold is not None and "novelty" not in outputs:
            raise RunError(f"{path} cannot be read: it has a novelty_threshold and no output of that name", REMEDY)

    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: bool) -> Outputs:
        """Asks the model about prepared images, (B, S, S, 3); an exported file has no heat."""
        assert not heat
        told = dict(zip(self._outputs, self._session.run(None, {INPUT: images}), strict=True))
        return Outputs(
            logits=told["logits"],
            features=told["features"] if features else told["features"][:, :0],
            heat=np.empty((len(images), 0, 0), np.float32),
            probabilities=told["probabilities"],
            novelty=told.get("novelty"),
        )


def find_onnx_classifier(run: RunFolder) -> OnnxClassifier | str:
    """The run's own ONNX file, ready; or why it cannot be used: there is none, it is old, or nothing reads it."""
    path = run.exported("onnx")
    if not path.exists():
        return f"the run has no {path.name}"
    try:
        found = OnnxClassifier(path)
    except ConvnextError as error:
        return error.problem
    if found.about.weights != run.fingerprint_weights():
        return f"its {path.name} was made of other weights"
    config, about = run.read_config(), found.about
    for name, told, own in (
        ("architecture", about.architecture, config.architecture),
        ("classes", about.classes, config.label_names),
        ("preprocessing", about.preprocessing, to_preprocessing(config)),
    ):
        if told != own:  # both hold for the same weights, so one of them was edited
            raise RunError(f"{path} and config.json beside it differ in {name}", "Bring the former files back")
    return found
