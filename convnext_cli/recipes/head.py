"""Which classifiers go with which model."""

from collections.abc import Mapping

from convnext_cli.errors import UsageError
from convnext_cli.models.catalog import Architecture
from convnext_cli.recipes.rules import Choice


def check_head(model: Architecture | None, given: Mapping[str, Choice]) -> None:
    """Checks that a model can have the classifier that is asked for.

    A width that a plan holds is none that was asked for: plans hold every setting.

    Args:
        model: the model; None where it is not chosen yet.
        given: the settings that are decided.

    Raises:
        UsageError: the model has no place for a hidden layer, or a width is given without one.
    """
    hidden = "head" in given and given["head"].value == "mlp"
    if hidden and model is not None and not model.takes_hidden_layer:
        raise UsageError(
            f"{model.name} cannot have --head mlp: its norm stands before the pooling, where timm adds no hidden layer",
            "Leave --head out, or choose another model",
        )
    width = given.get("head_hidden_size")
    if width is not None and width.source == "flag" and not hidden:
        raise UsageError("head_hidden_size has no effect with the linear head", "Add --head mlp, or leave it out")
