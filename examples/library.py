"""The whole path in Python: from a folder of images to a model for elsewhere.

    python examples/library.py DATA FOLDER

DATA has a folder of images for each class. What is written goes to FOLDER, the report and the exported model too. The
settings here are for a first look at small images; leave them out, and the recommendation's hold.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from convnext_cli import evaluate, export, finetune, list_models, predict, recommend, write_report
from convnext_cli.errors import ConvnextError


def main(data: Path, folder: Path) -> None:
    """Recommends, fine-tunes, evaluates, predicts and exports."""
    small = list_models(max_params=4, license="permissive")
    print("small and permissive:", ", ".join(model.name for model in small))
    print("recommended for 6,000 images:", recommend(6000).plan.model)

    finished = finetune(
        data,
        model="test_convnext",
        weights="none",
        output=folder / "run",
        epochs=4,
        image_size=32,
        batch_size=16,
        lr=2e-3,
        val_fraction=0.2,  # 60 of 300 images: enough to set a threshold on
    )
    found = evaluate(finished.run, targets=["sensitivity=0.9:1"])
    sure = found.intervals.overall["balanced_accuracy"]
    assert sure is not None
    print(f"balanced accuracy {found.metrics.balanced_accuracy:.3f}, 95% {sure.low:.3f} to {sure.high:.3f}")
    print("report:", write_report(found))

    image = next(path for path in sorted(data.rglob("*")) if path.is_file())
    [told] = predict(image, finished.run, abstain=True)
    print(f"{image.name}: {told.classes[0]} ({told.probabilities[0]:.2f}), decisions {told.decisions}")

    if find_spec("onnxscript"):  # pip install 'convnext-cli[onnx]'
        exported = export(finished.run, output=folder / "digits.onnx", overwrite=True)
        print(f"{exported.path.name}: differs by {exported.parity.difference:.1e} on {exported.parity.images} images")
        assert predict(image, exported.path)[0].classes[0] == told.classes[0]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConvnextError as error:  # one line: what is wrong, and what to do
        sys.exit(f"{error}")
