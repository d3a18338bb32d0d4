"""Data, split, model and plan of a training, from its request. Without torch, so that errors in them come at once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from convnext_cli.data.attributes import parse_attributes, read_attributes
from convnext_cli.data.audit.findings import Finding, Kind
from convnext_cli.data.audit.summary import Audit
from convnext_cli.data.dataset import Dataset, DatasetRequest, audit_steps, read_index
from convnext_cli.data.groups import group_steps
from convnext_cli.data.index import NONE, Index, check_trainable, digest_images, list_untrained_classes, select_rows
from convnext_cli.data.outside import check_outside_data
from convnext_cli.data.split import Folds, choose_fold, leave_out, name_fold, split_index
from convnext_cli.errors import DataError, RunError, UsageError, check_word
from convnext_cli.files import check_outside, check_writable, resolve_links
from convnext_cli.inference.overlap import find_moved_copies, find_overlap, read_image_hashes
from convnext_cli.locks import check_unlocked
from convnext_cli.machine import Machine, detect_machine
from convnext_cli.models.catalog import find_model, resolve_weights
from convnext_cli.models.hub import find_weights_steps
from convnext_cli.options import is_unicode
from convnext_cli.progress import Notice, Progress, Steps, finish
from convnext_cli.recipes.fingerprint import DataCounts, Fingerprint, compute_fingerprint, explain_domain
from convnext_cli.recipes.framing import warn_unseen
from convnext_cli.recipes.plan import Plan, PlanInputs, make_plan
from convnext_cli.recipes.recommendation import choose_augmentation, measure_plan_unseen, recommend, warn_plan_padding
from convnext_cli.recipes.rules import check_head, explain_lr
from convnext_cli.recipes.settings import (
    IMBALANCE,
    READING_SETTINGS,
    RECIPES,
    Choice,
    check_combinations,
    check_schedule,
    check_settings,
    check_teacher,
    default_settings,
    has_folds,
    list_unused_flags,
)
from convnext_cli.recipes.tables import load_augmentations
from convnext_cli.runs.files import SPLIT
from convnext_cli.runs.folder import RUNS, RunFolder
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.text import format_count, quote
from convnext_cli.training.preparation import Preparation
from convnext_cli.training.request import TRACKERS, TrainRequest
from convnext_cli.training.resumption import prepare_resumed


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """A request that is checked, and its data as their folders and tables tell: no image is opened yet."""

    request: TrainRequest
    """The request, with weights resolved."""
    dataset_request: DatasetRequest
    index: Index
    model: str
    """The model that the request names, or the recommended one for this number of images."""


def prepare(request: TrainRequest) -> Preparation:
    """Do `prepare_steps` without events, and return its result."""
    return finish(prepare_steps(request))


def prepare_steps(request: TrainRequest) -> Steps[Preparation]:
    """Check a request, load and split its data, and make the plan. To resume a run, read all of this from the run.

    Raises:
        UsageError: a setting, the model or the output folder is wrong.
        DataError: the data cannot be trained on.
        WeightsError: the weights do not exist.
        RunError: the run to resume is missing or damaged.
    """
    if request.resume is not None:
        _check_trackers(request)
        return prepare_resumed(request, request.resume)
    return (yield from plan_scan(scan_request(request)))


def scan_request(request: TrainRequest) -> Scan:
    """Check the request for a new run, scan its data, and choose the model; errors are those of `prepare_steps`."""
    # 1. The request: all that can be checked without the data.
    _check_trackers(request)
    if request.data is None:
        raise UsageError("no data", "Name the folder of images, or use --resume RUN; see `convnext finetune --help`")
    data = request.data
    model, weights = resolve_weights(request.model, request.weights)
    request = replace(request, model=model, weights=weights)
    _check_request(request, data)

    # 2. The data, and the model, which their number decides on if the user does not.
    values = request.values
    reading = {name: values[name] for name in (*READING_SETTINGS, "unlabelled")}
    cuts = parse_attributes(values["leave_out"], "--leave-out") if values["leave_out"] != NONE else {}
    dataset_request = DatasetRequest(
        data=data, audit=request.audit, chosen=request.chosen, attributes=tuple(cuts), **reading
    )
    index = read_index(dataset_request)
    check_outside_data(request.output or RUNS, index)
    if not values["unlabelled"]:
        check_trainable(index)
    model = _choose_model(request, index, detect_machine(), fingerprint=None)
    return Scan(request=request, dataset_request=dataset_request, index=index, model=model)


def plan_scan(scan: Scan) -> Steps[Preparation]:
    """Check and split the images of a scan, and make the plan; errors are those of `prepare_steps`."""
    # 1. The data and their split.
    request, dataset = yield from _load_data(scan)
    index, fold_index = _split(dataset, request.values)
    if dataset.audit is not None and (finding := (yield from _compare_with_base(request, dataset.audit, index))):
        dataset = replace(dataset, audit=replace(dataset.audit, findings=(*dataset.audit.findings, finding)))

    # 2. The model, the user's or the recommended one, and the plan.
    machine, fingerprint = detect_machine(), compute_fingerprint(dataset.index)
    if fingerprint.unreadable == fingerprint.sampled:
        number = format_count(fingerprint.sampled, "sampled image")
        raise DataError(f"none of {number} can be opened", "`convnext check` tells why")
    inputs = _choose_inputs(request, index, machine, fingerprint)
    plan, plan_notices = _make_plan(inputs, request.chosen)
    _check_task(index, plan)
    return Preparation(
        request=request,
        dataset=dataset,
        index=index,
        fold_index=fold_index,
        architecture=inputs.model,
        tag=inputs.tag,
        machine=machine,
        plan=plan,
        image_digest=digest_images(index),
        fingerprint=fingerprint,
        plan_notices=plan_notices,
    )


def fetch_weights(request: TrainRequest, model: str) -> Steps[None]:
    """Download the pretrained weights of a model, unless this machine has them or the request names others.

    Raises:
        WeightsError: they do not exist, or the Hub cannot be reached.
    """
    if request.weights == "auto":
        yield from find_weights_steps(*find_model(model), offline=request.offline)


def check_sources(request: TrainRequest, model: str) -> None:
    """Check what a new model would learn from: its file of weights, and its teacher. Imports torch.

    Raises:
        WeightsError: the weights cannot be read, or are of another model; those of a teacher of timm cannot be had.
        UsageError: there is no such teacher.
    """
    from convnext_cli.inference.teacher import check_source
    from convnext_cli.models.weights import check_weights

    if request.weights not in ("auto", "none"):
        check_weights(Path(request.weights), find_model(model)[0])
    if request.teacher is not None:
        check_source(request.teacher, offline=request.offline)


def plan_again(preparation: Preparation, machine: Machine) -> Preparation:
    """Return a preparation with the plan for another machine. A run that is resumed keeps its plan."""
    request, index, fingerprint = preparation.request, preparation.index, preparation.fingerprint
    if fingerprint is None:
        return replace(preparation, machine=machine)
    inputs = _choose_inputs(request, index, machine, fingerprint)
    plan, notices = _make_plan(inputs, request.chosen)
    return replace(
        preparation, machine=machine, architecture=inputs.model, tag=inputs.tag, plan=plan, plan_notices=notices
    )


def _choose_model(request: TrainRequest, index: Index, machine: Machine, fingerprint: Fingerprint | None) -> str:
    """Return the name of the model that the request names, or of the recommended one.

    Without a fingerprint, the index has no split yet, and the default one is assumed.
    """
    model = request.model
    if model is None:
        counts = DataCounts.from_index(index, fingerprint) if fingerprint else None
        recommendation = recommend(
            len(index), machine=machine, recipe=request.recipe, counts=counts, fingerprint=fingerprint
        )
        model = recommendation.plan.model
    check_head(find_model(model)[0], request.choices)
    return model


def _choose_inputs(request: TrainRequest, index: Index, machine: Machine, fingerprint: Fingerprint) -> PlanInputs:
    """Return what the plan is made from, with the recommended model where the request names none."""
    architecture, tag = find_model(_choose_model(request, index, machine, fingerprint))
    guess = choose_augmentation(None, request.recipe, fingerprint) if request.augment is None else None
    teacher = request.teacher
    if teacher is not None and Path(teacher).exists():  # so that the run can be resumed from any folder
        teacher = str(Path(teacher).absolute())
    return PlanInputs(
        model=architecture,
        tag=tag,
        weights=request.weights,
        teacher=teacher,
        counts=DataCounts.from_index(index, fingerprint),
        fingerprint=fingerprint,
        machine=machine,
        recipe=request.recipe,
        augment=request.augment or guess,
        is_augment_guessed=guess is not None,
        choices=request.choices,
    )


def _check_request(request: TrainRequest, data: Path) -> None:
    """Check all that can be checked without reading `data`."""
    values = request.values
    check_settings(values)
    check_combinations(values)
    check_teacher(request.chosen, has_teacher=request.teacher is not None, unlabelled=values["unlabelled"])
    check_word("recipe", request.recipe, RECIPES)
    check_word("augmentation", request.augment, tuple(load_augmentations()))
    check_head(None if request.model is None else find_model(request.model)[0], request.choices)
    check_outside(request.output or RUNS, data)
    if request.output is not None:
        folder = FoldsFolder(request.output) if has_folds(values) else RunFolder(request.output)
        check_unlocked(request.output)
        folder.check_free(overwrite=request.overwrite)
    check_writable(request.output or RUNS)
    if request.teacher is None and values["unlabelled"]:
        raise UsageError("--unlabelled needs a teacher, whose predictions are the labels", "Add --teacher")
    if not is_unicode(request.weights):
        raise UsageError(f"--weights {request.weights!r} is not Unicode, so no plan can store it", "Rename the file")


def _load_data(scan: Scan) -> Steps[tuple[TrainRequest, Dataset]]:
    """Group and check the images of a scan; images without labels get those of the teacher.

    What their tables tell is checked before the images are, which may take long.

    Returns:
        The request, with the number of folds for `--leave-out`; and the data set.
    """
    request, dataset_request, values = scan.request, scan.dataset_request, scan.request.values
    index, grouping = yield from group_steps(scan.index, dataset_request.group_from)
    if values["leave_out"] != NONE:
        request, index = yield from _read_left_out(request, index)
    dataset = yield from audit_steps(dataset_request, index, grouping)
    gone = [name for at, name in enumerate(index.fold_names, 1) if name_fold(at) not in dataset.index.folds]
    if gone:
        raise DataError(
            f"no image of {', '.join(gone[:5])} can be read, so --leave-out has none to test on",
            "Replace the files, or leave them out with --exclude",
        )
    return request, (yield from _label_by_teacher(request, dataset)) if values["unlabelled"] else dataset


def _split(dataset: Dataset, values: Mapping[str, Any]) -> tuple[Index, Index | None]:
    """Split the data, and check that each training and validation split can be trained on.

    Returns:
        The index with its split; and in a cross-validation, where the former is the first fold, the index with the
        validation folds, else None.
    """
    number, fold = values["folds"], values["fold"]
    if not values["unlabelled"]:
        check_trainable(dataset.index)
    draw = {name: values[name] for name in ("val_fraction", "seed")} | {"duplicate_sets": dataset.duplicate_sets}
    if dataset.index.fold_names:
        index = leave_out(dataset.index, **draw)
        index = choose_fold(index, fold) if fold else index
    else:
        folds = Folds(number=number, fold=fold) if number else None
        index = split_index(dataset.index, test_fraction=values["test_fraction"], folds=folds, **draw)
    trains_all = has_folds(values)
    parts = {at: choose_fold(index, at) for at in range(1, number + 1)} if trains_all else {fold: index}
    if not values["unlabelled"]:
        for at, part in parts.items():
            _check_part(part, at, values["leave_out"])
    return next(iter(parts.values())), index if trains_all else None


def _compare_with_base(request: TrainRequest, audit: Audit, index: Index) -> Steps[Finding | None]:
    """Return a finding if the weights are those of a run that was trained on images that this one holds out."""
    path = Path(request.weights)
    run = RunFolder(path if path.is_dir() else path.parent)
    if request.weights in ("auto", "none") or not SPLIT.path(run.path).is_file():
        return None
    reason, known = "it has no digests of them, and they are gone", None
    try:
        trained_on = run.read_split()
        known = yield from read_image_hashes(run, trained_on)
    except RunError as error:
        reason = error.problem
    if known is None:
        return Finding(
            kind=Kind.NOT_COMPARED,
            title=f"not compared with the images that {run.path} was trained on: {reason}",
            effect="if test images are among them, test scores will be too high",
            action="the weights of that run are used",
        )
    held_out = select_rows(index, [*index.rows("test"), *index.rows("val")])
    measures = audit.list_measures(held_out)
    moved = yield from find_moved_copies(trained_on, held_out, measures)
    counts = {}
    for split in ("test", "val"):
        rows = held_out.rows(split)
        of_split = moved[np.isin(moved[:, 1], rows)] - (0, rows[0] if rows else 0)
        overlap = find_overlap(known, trained_on, measures[rows], of_split)
        counts[split] = overlap.trained + overlap.trained_near
    if not any(counts.values()):
        return None
    shown = " and ".join(f"{n:,} of {len(index.rows(split)):,} {split} images" for split, n in counts.items() if n)
    root = quote(str(trained_on.root))
    remedy = f"{SPLIT.path(run.path)} as data, with --image-root {root}, keeps that run's split"
    if request.values["folds"]:
        remedy = "use other weights: a cross-validation holds each image out once"
    return Finding(
        kind=Kind.TRAINED_BEFORE,
        severity="warning",
        title=f"leakage: {run.path} was trained on {shown}, and its weights are the base of this training",
        count=sum(counts.values()),
        effect="scores on these images will be too high",
        action=f"all are kept; {remedy}",
    )


def _check_part(index: Index, fold: int, leave_out: str) -> None:
    """Check that the training images of a fold can be trained on; the error names what is left out. Fold 0 is none."""
    try:
        check_trainable(index)
    except DataError as error:
        if not fold:
            raise
        part, remedy = f"fold {fold}", error.remedy
        if index.fold_names:
            column = next(iter(parse_attributes(leave_out)))
            part = f"{column} {index.fold_names[fold - 1]}"
            is_binned = index.fold_names[0].startswith("< ")
            other = f"Cut it elsewhere, as in --leave-out {quote(f'{column}:NUMBER,NUMBER')}"
            remedy = other if is_binned else f"Join this value of {column} with another one in the table"
            remedy += ", or name another column"
        elif index.folds:
            remedy = "Correct the table's folds, or draw new ones with --resplit"
        effect = f": {error.problem.removeprefix(f'{index.location}: ')}"
        if missing := list_untrained_classes(index):
            effect = f" leaves no training image of {', '.join(missing[:5])}"
        raise DataError(f"leaving out {part}{effect}", remedy) from error


def _read_left_out(request: TrainRequest, index: Index) -> Steps[tuple[TrainRequest, Index]]:
    """Return the request with the number of folds, and the index with the fold of each image, for `--leave-out`."""
    values, choice = request.values, request.choices.get("folds")
    text = values["leave_out"]
    if choice is not None and choice.value and choice.source == "flag":
        raise UsageError("--leave-out and --folds both choose the folds", "Leave out --folds")
    if not values["val_fraction"]:
        raise UsageError("--leave-out needs validation images, and --val-fraction is 0", "Give another --val-fraction")
    cuts = parse_attributes(text, "--leave-out")
    if len(cuts) > 1:
        raise UsageError(f"--leave-out {text} names {len(cuts)} columns", "Name one")
    [attribute] = yield from read_attributes(index, cuts, option="--leave-out")
    names = attribute.levels
    if len(names) < 2 or values["fold"] > len(names):
        problem = f"{attribute.name} has {format_count(len(names), 'value')}: {', '.join(names[:5])}"
        raise UsageError(problem, "Name a column of two values or more, and a --fold of at most their number")
    fold_of = {name: name_fold(number) for number, name in enumerate(names, start=1)}
    unknown = attribute.values.count("")
    notes = [f"{attribute.source}: a fold for each of {', '.join(names)}, whose images are its test split"]
    if unknown:
        without = f"without a value of {attribute.name}"
        number = format_count(unknown, f"image {without} trains or validates", f"images {without} train or validate")
        notes.append(f"{number} in every fold")
    if set(index.splits) - {""}:
        notes.append("the data's own splits are not used: each fold has its own")
    index = replace(
        index,
        splits=("",) * len(index),
        folds=tuple(fold_of.get(value, "") for value in attribute.values),
        fold_names=names,
        notes=(*index.notes, *notes),
    )
    choices = {**request.choices, "folds": Choice(value=len(names), source="rule", reason=f"--leave-out {text}")}
    return replace(request, choices=choices), index


def _label_by_teacher(request: TrainRequest, dataset: Dataset) -> Steps[Dataset]:
    """Return a data set without labels with the classes that the teacher predicts."""
    from convnext_cli.inference.teacher import open_teacher
    from convnext_cli.training.teaching import label_images

    assert request.teacher is not None
    yield Progress(done=0, total=1, activity="opening the teacher")
    teacher, index = open_teacher(request.teacher, offline=request.offline), dataset.index
    labels = yield from label_images(index, teacher, cache=request.cache)
    text = (
        "the images have no labels: the teacher's predictions stand for them, so that the validation metrics are the "
        "agreement with the teacher"
    )
    index = replace(index, classes=teacher.classifier.classes, labels=labels, notes=(*index.notes, text))
    return replace(dataset, index=index)


def _make_plan(inputs: PlanInputs, chosen: Collection[str]) -> tuple[Plan, tuple[Notice, ...]]:
    """Return the plan, with notices about settings without effect, augmentation, unseen parts and learning rate."""
    plan, fingerprint = make_plan(inputs), inputs.fingerprint
    check_schedule(chosen, plan.settings)
    if not plan.settings.epochs and inputs.teacher is not None and not plan.settings.unlabelled:
        problem = "--teacher has no effect with --epochs 0: the head alone is trained on the labels alone"
        raise UsageError(problem, "Give --epochs, or leave out --teacher")
    notices = []
    if unused := list_unused_flags(chosen, plan.settings):
        reason = (
            "With --epochs 0, the head alone is trained: at its own learning rate, on images as evaluation sees them"
        )
        notices.append(Notice(f"no effect: {', '.join(unused)}. {reason}"))
    is_used = any(choice.preset == inputs.augment for choice in plan.choices.values())
    if fingerprint and inputs.is_augment_guessed and is_used:
        notices.append(Notice(explain_domain(fingerprint, "--augment light, natural or none overrides it")))
    unseen = measure_plan_unseen(plan, inputs.tag, fingerprint)
    texts = (warn_unseen(unseen), warn_plan_padding(plan, fingerprint))
    notices += [Notice(text, "warning") for text in texts if text]
    lr = plan.choices["lr"]
    if lr.is_chosen and plan.settings.epochs:
        other_choices = {name: choice for name, choice in inputs.choices.items() if name not in ("lr", "min_lr")}
        default = make_plan(replace(inputs, choices=other_choices))
        if text := explain_lr(inputs.model, lr.value, plan.settings.batch_size, default.settings.lr):
            notices.append(Notice(text))
    return plan, tuple(notices)


def _check_task(index: Index, plan: Plan) -> None:
    """Check that no setting is on that does not apply to the task."""
    values, defaults = {"teacher": plan.teacher, **plan.values}, {"teacher": None, **default_settings()}
    for key, reason in index.task.unsupported.items():
        name, _, value = key.partition("=")
        is_on = values[name] == value if value else values[name] != defaults[name]
        if is_on:
            words = [word for word, part in IMBALANCE.items() if part.get(name) == values[name]]
            flag = f"--imbalance {words[0]}" if words else f"--{name}"
            raise UsageError(f"{flag} does not go with {index.task.title}: {reason}", f"Leave out {flag}")


def _check_trackers(request: TrainRequest) -> None:
    """Check that each tracker is known and installed, and writes nothing into the data folder."""
    data = request.data
    for name in request.track:
        check_word("tracker", name, TRACKERS)
        if find_spec(name) is None:
            raise UsageError(f"{name} is not installed", f"Install it with `pip install 'convnext-cli[{name}]'`")
        is_inside = data is not None and resolve_links(Path.cwd()).is_relative_to(resolve_links(data))
        if name != "tensorboard" and is_inside:  # TensorBoard's files are in the run's folder
            problem = f"{name} writes into the current folder, which lies in the data folder {data}"
            raise UsageError(problem, "Start elsewhere, or use --track tensorboard")
