"""Turn a folder of images into a fine-tuned ConvNeXt that its owner can trust.

    from convnext_cli import check, recommend, finetune, evaluate, predict, export

Nothing heavy is imported until one of these is used.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

# ONNX Runtime 1.29 and later otherwise contacts a telemetry host and writes a device id into the home folder. Its
# library reads this when it is loaded, by us or by torch's exporter, so it is set before any module of ours.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# The Hub's client otherwise fetches a list of AI agents, to say which one runs it, and names PyTorch's version.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOMES = {
    "check": "convnext_cli.api",
    "compare": "convnext_cli.inference.evaluation",
    "cross_validate": "convnext_cli.api",
    "evaluate": "convnext_cli.inference.evaluation",
    "export": "convnext_cli.exports.export",
    "finetune": "convnext_cli.api",
    "list_models": "convnext_cli.models.catalog",
    "predict": "convnext_cli.inference.prediction",
    "recommend": "convnext_cli.recipes.recommendation",
    "write_report": "convnext_cli.reports.report",
}

__all__ = [
    "check",
    "compare",
    "cross_validate",
    "evaluate",
    "export",
    "finetune",
    "list_models",
    "predict",
    "recommend",
    "write_report",
]

if TYPE_CHECKING:
    from convnext_cli.api import check, cross_validate, finetune
    from convnext_cli.exports.export import export
    from convnext_cli.inference.evaluation import compare, evaluate
    from convnext_cli.inference.prediction import predict
    from convnext_cli.models.catalog import list_models
    from convnext_cli.recipes.recommendation import recommend
    from convnext_cli.reports.report import write_report


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_system()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))


def check_system() -> None:
    """Check that the system has the file locks of Linux and macOS, which native Windows lacks.

    Raises:
        ImportError: it has none.
    """
    if find_spec("fcntl") is None:
        raise ImportError("convnext does not run on native Windows. Install it in WSL 2, a Linux inside Windows")
