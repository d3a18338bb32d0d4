"""A folder for the Hugging Face Hub: the model in timm's format, which transformers loads too, and a model card."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from convnext_cli.data.outside import check_outside_data
from convnext_cli.errors import ConvnextError, DataError, ImageError, RunError, UsageError
from convnext_cli.exports.model_card import License, find_license, render_card
from convnext_cli.exports.request import ExportRequest
from convnext_cli.files import check_outside, list_leftovers, remove_leftovers, replace_output
from convnext_cli.inference.calibration import read_calibration
from convnext_cli.inference.evaluation import Evaluation, evaluate_steps
from convnext_cli.inference.request import EvalRequest
from convnext_cli.inference.run_checks import list_state_notes
from convnext_cli.models.hub import report_failure
from convnext_cli.progress import Progress, Steps
from convnext_cli.runs.files import CALIBRATION, CONFIG, MODEL
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import check_single
from convnext_cli.text import quote

CARD = "README.md"
FILES = (CONFIG.name, MODEL.name, CALIBRATION.name, CARD)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFolder:
    """A folder written for the Hub."""

    path: Path
    files: tuple[str, ...]
    """Their names."""
    license: License
    url: str | None
    """URL of the upload; None without `push`."""
    notes: tuple[str, ...]
    """On the licence and the metrics, for the user."""


def hub_steps(run: RunFolder, request: ExportRequest) -> Steps[HubFolder]:
    """Write config.json, model.safetensors, calibration.json where the run has a current one, and a model card.

    The card's metrics are those of a new evaluation, on the run's test split where there is one. Like every evaluation
    on a test split, it is recorded in the run.

    `request.output` is a new or an empty folder, or with `overwrite` an earlier export. The repository of `push` is
    made private where it does not exist.

    Raises:
        UsageError: `output` exists, or lies in the data folder; or `data` are not the run's own.
        RunError: the run cannot be read.
        ConvnextError: the Hub refused, or cannot be reached.
    """
    output, data, push, overwrite = request.output, request.data, request.push, request.overwrite
    assert output is not None
    check_single(run.path)
    index = run.read_split()
    check_outside_data(output, index)
    if data is not None:
        check_outside(output, data)
    notes = list_state_notes(run, index)
    _check_folder(output, overwrite=overwrite)
    run.fingerprint_weights()  # fails for a run without weights before anything is written
    copied = [CONFIG.name, MODEL.name]
    if read_calibration(run) is not None:
        copied.append(CALIBRATION.name)
    repository = _make_repository(push) if push else None  # a refusal must not cost an evaluation on the test split
    license = find_license(run)
    for name in FILES:
        remove_leftovers(output / name)
    with ExitStack() as stack:  # all files are renamed if the block succeeds, or none
        replaced = {name: replace_output(output / name, overwrite=overwrite) for name in (*copied, CARD)}
        files = {name: stack.enter_context(file) for name, file in replaced.items()}
        for name in copied:
            shutil.copyfile(run.path / name, files[name])
        evaluation: Evaluation | None = None
        try:  # after the large files are copied: a full disk must not cost an evaluation on the test split
            evaluation = yield from evaluate_steps(run, EvalRequest(data=data))
        except RunError:  # a damaged run is not exported
            raise
        except (DataError, ImageError) as error:
            if data is not None:
                raise
            text = f"the model card has validation metrics only, without 95% CIs: {error.problem}"
            notes.append(f"{text}; --data names moved data")
        if evaluation and not evaluation.is_own:
            problem = f"{data} is no copy of the data that the run was trained with"
            raise UsageError(problem, "Give these; `convnext eval` evaluates others")
        files[CARD].write_text(render_card(run, evaluation, license), encoding="utf-8", errors="surrogateescape")
    for name in set(FILES) - {*copied, CARD}:
        (output / name).unlink(missing_ok=True)  # of an earlier export
    if license.is_unknown:
        notes.append(f"licence unknown: {license.reason}. State it in {output / CARD} before you share the model")
    url = None
    if repository:
        yield Progress(done=0, total=1, activity=f"uploading to {repository}")
        url = _upload(output, repository)
    return HubFolder(path=output, files=(*copied, CARD), license=license, url=url, notes=tuple(notes))


def _check_folder(output: Path, *, overwrite: bool) -> None:
    """Check that a folder is new or empty, but for files of an export that was killed, or an export to overwrite."""
    leftovers = {path for name in FILES for path in list_leftovers(output / name)}
    existing = {path.name for path in output.iterdir() if path not in leftovers} if output.is_dir() else set()
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"{output} is not a folder", "Choose another --output")
    if existing and not (overwrite and existing <= set(FILES)):
        raise UsageError(f"{output} exists already", "Choose another --output; --overwrite replaces an earlier export")


def _make_repository(name: str) -> str:
    """Make a private repository on the Hub if it does not exist, and return its full name.

    Raises:
        ConvnextError: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi

    remedy = "Run `hf auth login` with a token that may write there, and check the name"
    with report_failure(f"cannot upload to {name}", remedy, ConvnextError):
        return str(HfApi().create_repo(name, private=True, exist_ok=True).repo_id)


def _upload(folder: Path, repository: str) -> str:
    """Upload the folder and return its URL.

    Raises:
        ConvnextError: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi

    remedy = f"{folder} is complete: `hf upload {repository} {quote(folder)}` tries again"
    with report_failure(f"cannot upload to {repository}", remedy, ConvnextError):
        return str(HfApi().upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(FILES)))
