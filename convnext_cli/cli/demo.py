"""`convnext demo`: the whole path, offline, in about a minute."""

from pathlib import Path
from typing import Annotated

import typer

from convnext_cli.cli import console
from convnext_cli.cli.eval import run_evaluation, show_evaluation
from convnext_cli.cli.finetune import follow, show_finished

FOLDER = Path("convnext-demo")
MODEL = "test_convnext"  # timm's smallest: learns the digits on two cores within the minute
SETTINGS = {
    "epochs": 12,
    "batch_size": 32,
    "lr": 2e-3,  # from random weights, far above a fine-tuning rate
    "warmup_epochs": 1.0,
    "image_size": 32,
    "min_crop_area": 0.7,
}


def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the demo's images and run go.")] = FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Try it all on handwritten digits. Fine-tunes, evaluates and predicts, offline, in a minute on two cores."""
    from convnext_cli.data.digits import write_digits
    from convnext_cli.inference.prediction import predict
    from convnext_cli.recipes.plan import Choice
    from convnext_cli.runs import RunFolder
    from convnext_cli.training.finetuning import finetune_steps
    from convnext_cli.training.preparation import Request

    digits = write_digits(folder / "digits")
    console.warn(f"{MODEL} starts from random weights here: this shows the path, not what pretraining is worth")
    run = folder / "run"
    request = Request(
        data=digits,
        model=MODEL,
        output=run,
        weights="none",
        offline=True,
        overwrite=True,
        settings={name: Choice(value=value, source="the demo") for name, value in SETTINGS.items()},
    )
    finished = follow(finetune_steps(request))
    if not as_json:
        show_finished(finished)
    found = run_evaluation(RunFolder(run), None, None)
    if as_json:
        console.show_json(found.to_dict())
        return
    console.show("")
    show_evaluation(found)
    index = RunFolder(run).read_split()
    image = index.root / index.paths[index.rows("test")[0]]
    [prediction] = predict(image, run)
    console.show("")
    console.show(
        f"{console.shorten(image)} is a {prediction.classes[0]} ({100 * prediction.probabilities[0]:.1f}% sure)"
    )
    console.show(f"Next: convnext predict {folder}/digits/7 --run {run}")
