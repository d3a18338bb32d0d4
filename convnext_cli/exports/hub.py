"""A folder for the Hugging Face Hub: the model in timm's own format, which transformers loads too, and its card."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convnext_cli.data.index import check_outside_data
from convnext_cli.errors import ConvnextError, DataError, ImageError, RunError, UsageError, shorten_error
from convnext_cli.exports.model_card import License, find_license, write_card
from convnext_cli.files import replace_output
from convnext_cli.inference.evaluation import Evaluation, evaluate_steps
from convnext_cli.progress import Progress, Steps
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import check_single

MODEL_FILES = ("config.json", "model.safetensors")
CARD = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFolder:
    """What was written, and where it went."""

    path: Path
    license: License
    url: str | None
    """Where it was uploaded to; None where that was not asked for."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def hub_steps(run: RunFolder, output: Path, *, push: str | None = None, overwrite: bool = False) -> Steps[HubFolder]:
    """Write config.json, model.safetensors and a model card.

    The card's figures are measured now, on the run's test split where there is one; that is recorded in the run as
    every evaluation on a test split is.

    Args:
        run: the run.
        output: a new or empty folder.
        push: a repository, OWNER/NAME, to upload to. It is made private where it does not exist.
        overwrite: replace the three files in `output`.

    Raises:
        UsageError: there is something at `output`, or it lies in the data folder.
        RunError: the run cannot be read.
        ConvnextError: the Hub refused, or cannot be reached.
    """
    check_single(run.path)
    check_outside_data(output, run.read_split())
    own = {*MODEL_FILES, CARD}
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"{output} is no folder", "Choose another --output")
    if there and not (overwrite and there <= own):
        raise UsageError(f"{output} exists already", "Choose another --output; --overwrite replaces a former export")
    run.fingerprint_weights()  # a run without weights is refused before anything is written
    license = find_license(run)
    notes: list[str] = []
    with _replace_all(output, overwrite=overwrite) as files:
        for name in MODEL_FILES:
            shutil.copyfile(run.path / name, files[name])
        evaluation: Evaluation | None = None
        try:  # after what needs most room on the disk: no look at the test split is counted without a card
            evaluation = yield from evaluate_steps(run, None, None)
        except RunError:  # a damaged run is not passed on
            raise
        except (DataError, ImageError) as error:
            notes.append(f"the card has no figures with intervals: {error.problem}")
        files[CARD].write_text(write_card(run, evaluation, license), encoding="utf-8", errors="surrogateescape")
    if license.is_unknown:
        notes.append(f"licence unknown: {license.reason}. Say it in {output / CARD} before you pass the model on")
    url = None
    if push:
        yield Progress(done=0, total=1, activity=f"uploading to {push}")
        url = _push(output, push)
    return HubFolder(path=output, license=license, url=url, notes=tuple(notes))


@contextmanager
def _replace_all(output: Path, *, overwrite: bool) -> Iterator[dict[str, Path]]:
    """Give a temporary path for each of the three files; they get their names when the block ends well, or none does.

    The folder is made, and removed again if nothing came of it.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]  # the innermost first
    output.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            names = (*MODEL_FILES, CARD)
            yield {name: stack.enter_context(replace_output(output / name, overwrite=overwrite)) for name in names}
    except BaseException:
        with suppress(OSError):  # a folder that has something in it stays
            for folder in made:
                folder.rmdir()
        raise


def _push(folder: Path, repository: str) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=[*MODEL_FILES, CARD]))
    except Exception as error:  # the client raises its HTTP library's errors, its own, and OSError
        raise ConvnextError(
            f"cannot upload to {repository} ({shorten_error(error)})",
            f"`hf auth login` first; the folder {folder} is whole",
        ) from error
