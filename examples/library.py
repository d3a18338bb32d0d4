"""The Python API in one script: from a folder of images to an exported model.

    python examples/library.py                 on 300 small digits, in a temporary folder
    python examples/library.py DATA FOLDER     on your images; output goes to FOLDER

DATA has a folder of images for each class. The settings here suit a first look at small images. Leave them out to use
the recommended ones.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from convnext_cli import check, evaluate, export, finetune, list_models, predict, recommend, write_report
from convnext_cli.data.digits import write_digits
from convnext_cli.errors import ConvnextError
from convnext_cli.progress import Progress


def show(event: Any) -> None:
    """Print the end of each long operation."""
    if isinstance(event, Progress) and event.done == event.total:
        print(f"  {event.activity}: {event.total} of {event.total}")


def main(data: Path, folder: Path) -> None:
    """Check, recommend, fine-tune, evaluate, predict and export."""
    audit = check(data, on_event=show)
    print(f"{len(audit.index)} images, findings: {', '.join(finding.title for finding in audit.findings) or 'none'}")
    small = list_models(max_params=4, license="permissive")
    print("small and permissive:", ", ".join(model.name for model in small))
    print("recommended for these images:", recommend(data).plan.model)

    result = finetune(
        data,
        model="test_convnext2",
        weights="none",
        output=folder / "run",
        epochs=4,
        image_size=32,
        batch_size=16,
        lr=2e-3,
        val_fraction=0.2,  # 60 of 300 images: enough to set a threshold
    )
    label = audit.index.classes[1]
    evaluation = evaluate(result.run, targets=[f"sensitivity=0.9:{label}"])
    ci = evaluation.intervals.overall["balanced_accuracy"]
    assert ci is not None
    print(f"balanced accuracy {evaluation.metrics.balanced_accuracy:.3f}, 95% CI [{ci.low:.3f}, {ci.high:.3f}]")
    print("report:", write_report(evaluation))

    path = audit.index.root / audit.index.paths[0]
    with Image.open(path, formats=["JPEG", "PNG"]) as image:  # a path and PIL images in one call
        predictions = predict([path, image, Image.new("RGB", image.size)], result.run, on_event=show)
    for name, prediction in zip(("file", "PIL image", "black image"), predictions, strict=True):
        print(f"{name}: {prediction.classes[0]} ({prediction.probabilities[0]:.2f}), {prediction.decisions}")

    if find_spec("onnxscript"):  # pip install 'convnext-cli[onnx]'
        exported = export(result.run, format="onnx", output=folder / "model.onnx", overwrite=True)
        print(f"{exported.path.name}: differs by {exported.parity.difference:.1e} on {exported.parity.images} images")
        assert predict(path, exported.path)[0].classes[0] == predictions[0].classes[0]


def run_on_digits() -> None:
    """Run on generated data in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"300 digits of 3 classes in {folder} (deleted at the end). For your images: DATA FOLDER")
        digits = write_digits(folder / "all")
        for label in "012":
            (folder / "digits" / label).mkdir(parents=True)
            for path in sorted((digits / label).glob("*.png"))[:100]:
                path.rename(folder / "digits" / label / path.name)
        main(folder / "digits", folder)


if __name__ == "__main__":
    try:
        if len(sys.argv) == 1:
            run_on_digits()
        elif len(sys.argv) == 3:
            main(Path(sys.argv[1]), Path(sys.argv[2]))
        else:
            sys.exit("usage: python examples/library.py [DATA FOLDER]")
    except ConvnextError as error:  # one line: the problem and the remedy
        sys.exit(f"{error}")
