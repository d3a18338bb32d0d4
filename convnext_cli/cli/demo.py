"""`convnext demo`: the whole path, offline, in about a minute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnext_cli.cli import console
from convnext_cli.cli.eval import run_evaluations, show_evaluation, write_report
from convnext_cli.cli.training_view import follow
from convnext_cli.errors import UsageError
from convnext_cli.models.catalog import BUILTIN, load_builtin
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.training.request import TrainRequest

FOLDER = Path("convnext-demo")
SETTINGS = {
    "epochs": 2,
    "batch_size": 16,
    "lr": 2e-3,  # far above a usual fine-tuning rate: random weights learn with it too
    "warmup_epochs": 0.2,
    "image_size": 32,
    "min_crop_area": 0.7,
}


def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the demo's images and runs go.")] = FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print both evaluations as JSON.")] = False,
) -> None:
    """Try it all on handwritten digits. Fine-tunes, evaluates and predicts, offline, in a minute on two cores.

    The model starts from the weights in the package; beside it the same model starts from random ones.
    """
    from convnext_cli.data.digits import is_digits_folder, write_digits
    from convnext_cli.inference.prediction import predict
    from convnext_cli.runs.folder import RunFolder

    if (folder / "digits").exists() and not is_digits_folder(folder / "digits"):
        raise UsageError(f"{folder / 'digits'} exists already, and not from a demo", "Choose another --output")
    console.say(
        "Fine-tunes a small ConvNeXt on 1,797 handwritten digits twice, from random and from pretrained weights; "
        "evaluates both on the test digits; writes a report. About a minute on two cores."
    )
    digits = write_digits(folder / "digits")
    found = {}
    for start, name in (("none", "from-scratch"), (BUILTIN, "run")):
        follow(_request(digits, folder / name, start), settings=False)
        [found[name]] = run_evaluations([RunFolder(folder / name)])
    write_report(found["run"])
    if as_json:
        console.show_json({name: evaluation.to_dict() for name, evaluation in found.items()})
        return
    show_evaluation(found["run"])
    scratch, tuned = (found[name].metrics.balanced_accuracy for name in ("from-scratch", "run"))
    console.show("")
    console.show(
        f"Balanced accuracy on the test digits after {SETTINGS['epochs']} epochs: {console.percent(tuned)}% from the "
        f"pretrained weights in the package, {console.percent(scratch)}% from random ones",
        style="bold",
    )
    run = RunFolder(folder / "run")
    index = run.read_split()
    image = index.root / index.paths[index.rows("test")[0]]
    [prediction] = predict(image, run.path)
    console.show(f"{console.shorten(image)}: {prediction.classes[0]}, {100 * prediction.probabilities[0]:.1f}%")
    console.show(f"Report: {console.shorten(run.report)} (open it in a browser)")
    console.show(f"Next: convnext predict {quote(folder / 'digits/7')} --run {quote(run.path)}")


def _request(digits: Path, run: Path, weights: str) -> "TrainRequest":
    from convnext_cli.recipes.settings import Choice
    from convnext_cli.training.request import TrainRequest

    return TrainRequest(
        data=digits,
        model=load_builtin().architecture,
        output=run,
        weights=weights,
        offline=True,
        overwrite=True,
        choices={name: Choice(value=value, source="the demo") for name, value in SETTINGS.items()},
    )
