"""Hints for options and values of other programs."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from convnext_cli.errors import suggest

# Names in timm, torchvision, transformers, Keras, fastai and Ultralytics, without dashes, and the name here.
NAMES = {
    "learning-rate": "--lr", "lr0": "--lr", "base-lr": "--lr", "blr": "--lr", "max-lr": "--lr", "lr-max": "--lr",
    "epoch": "--epochs", "num-epochs": "--epochs", "n-epochs": "--epochs", "num-train-epochs": "--epochs",
    "max-epochs": "--epochs", "bs": "--batch-size", "batch": "--batch-size", "train-batch-size": "--batch-size",
    "per-device-train-batch-size": "--micro-batch-size", "wd": "--weight-decay", "decay": "--weight-decay",
    "imgsz": "--image-size", "img": "--image-size", "input-size": "--image-size", "resolution": "--image-size",
    "image-resolution": "--image-size", "arch": "--model", "a": "--model", "backbone": "--model", "net": "--model",
    "model-name": "--model", "architecture": "--model", "checkpoint": "--weights", "initial-checkpoint": "--weights",
    "pretrained": "--weights", "pretrained-weights": "--weights", "ckpt": "--weights", "warmup": "--warmup-epochs",
    "warmup-ratio": "--warmup-epochs", "min-learning-rate": "--min-lr", "lr-min": "--min-lr", "lrf": "--min-lr",
    "drop": "--head-dropout", "dropout": "--head-dropout", "drop-path-rate": "--drop-path", "aa": "--rand-augment",
    "auto-augment": "--rand-augment", "augmentation": "--augment", "reprob": "--erasing",
    "random-erasing": "--erasing", "model-ema-decay": "--ema-decay", "ema": "--ema-decay", "model-ema": "--ema-decay",
    "label-smooth": "--label-smoothing", "mixup-alpha": "--mixup", "cutmix-alpha": "--cutmix",
    "fp16": "--amp", "bf16": "--amp", "precision": "--amp", "mixed-precision": "--amp", "out": "--output",
    "out-dir": "--output", "output-dir": "--output", "save-dir": "--output", "project": "--output", "name": "--output",
    "freeze": "--freeze-epochs", "freeze-backbone": "--freeze-epochs", "accumulate": "--micro-batch-size",
    "grad-accum-steps": "--micro-batch-size", "gradient-accumulation-steps": "--micro-batch-size",
    "early-stopping": "--patience", "clip": "--clip-grad", "max-grad-norm": "--clip-grad",
    "gradient-checkpointing": "--grad-checkpointing", "val-split": "--val-fraction", "test-split": "--test-fraction",
    "k-folds": "--folds", "gpus": "--devices", "num-gpus": "--devices", "nproc-per-node": "--devices",
    "random-state": "--seed", "random-seed": "--seed", "licence": "--license", "num-images": "--dataset-size",
    "num-classes": "--classes", "memory": "--vram", "gpu-memory": "--vram", "topk": "--top", "top-k": "--top",
}  # fmt: skip

COMMANDS = {
    "train": "finetune", "fit": "finetune", "fine-tune": "finetune", "evaluate": "eval", "validate": "eval",
    "test": "eval", "infer": "predict", "inference": "predict", "classify": "predict", "models": "list",
}  # fmt: skip
"""Commands of other programs, and the one here."""

_OPTIMIZER = "the optimizer is always AdamW, because the published and the measured settings are for it"
_SCHEDULE = "the schedule is always linear warm-up, then cosine; --warmup-epochs and --min-lr shape it"
_CLASSES = "the classes are counted from the data"
_DEVICE = "a GPU is used if there is one; CUDA_VISIBLE_DEVICES selects it, --devices N uses several"
_WORKERS = "--workers is the number of processes that load images"
REASONS = {
    "optimizer": _OPTIMIZER, "opt": _OPTIMIZER, "optim": _OPTIMIZER, "momentum": _OPTIMIZER, "betas": _OPTIMIZER,
    "scheduler": _SCHEDULE, "sched": _SCHEDULE, "lr-scheduler": _SCHEDULE, "lr-scheduler-type": _SCHEDULE,
    "lr-schedule": _SCHEDULE, "num-classes": _CLASSES, "nc": _CLASSES, "n-classes": _CLASSES,
    "device": _DEVICE, "gpu": _DEVICE, "cuda": _DEVICE, "num-workers": _WORKERS, "j": _WORKERS,
}  # fmt: skip


def explain_usage(
    error: typer.TyperException, words: Sequence[str], list_commands: Callable[[], Mapping[str, Any]]
) -> str:
    """Return the message of an error in parsing `words`, with a hint on the option or the value that was meant.

    Args:
        error: the error.
        words: the words after `convnext`.
        list_commands: returns all commands by name.
    """
    text = error.format_message().rstrip(".")
    # of Typer's NoSuchOption and BadOptionUsage, which it does not export
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if option is not None and context is not None and text.startswith("No such option"):
        known_to = [name for name, command in list_commands().items() if option in _list_flags(command)]
        return _explain_option(context, option, words, known_to) or text
    if (command := re.fullmatch(r"No such command '([^']*)'", text)) and (meant := COMMANDS.get(command[1])):
        return f"{text}. Did you mean {meant!r}?"
    return text


def _explain_option(context: typer.Context, option: str, words: Sequence[str], known_to: Sequence[str]) -> str | None:
    known = _list_flags(context.command)
    typed = next((word for word in words if word.startswith(option)), option).partition("=")[0]
    name = typed.lstrip("-").lower().replace("_", "-")
    if f"--{name}" in known:
        return f"No such option: {typed}. Did you mean --{name}?"
    if (meant := NAMES.get(name)) in known:
        return f"No such option: {typed}. Did you mean {meant}?"
    if word := _find_argument(context, name):
        return f"No such option: {typed}. {word} is an argument: `{context.command_path} {word}`"
    if name in REASONS and "--lr" in known:  # of finetune alone
        return f"No such option: {typed}: {REASONS[name]}"
    if Path(typed).exists():
        return f"No such option: {option}. Write ./{typed} for the file"
    if known_to:
        return f"No such option: {typed}. It is an option of {', '.join(known_to)}"
    near = suggest(f"--{name}", sorted(known)).strip()
    return f"No such option: {typed}. {near}" if near else None


def _find_argument(context: typer.Context, name: str) -> str | None:
    """Return the argument of the command whose word in the usage line is `name`, its plural, or begins `name`-dir."""
    name = re.sub("-(dir|folder|path)$", "", name)
    arguments = [p for p in context.command.params if p.param_type_name == "argument"]
    texts = [text.upper() for argument in arguments for text in (argument.name, argument.metavar) if text]
    words = {word for text in texts for word in re.findall("[A-Z]+", text)}
    return next((word for word in (name.upper(), f"{name.upper()}S") if word in words), None)


def _list_flags(command: Any) -> set[str]:
    """Return the flags of a command."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
