"""Find pretrained weights in the package or on the Hugging Face Hub. Without torch, so that errors come at once."""

from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from convnext_cli.errors import ConvnextError, WeightsError, shorten_error
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.progress import Progress, Steps, finish

HUB_FILE = "model.safetensors"
HUB_TIMEOUT = 5.0  # seconds to wait for the Hub's first response
OFFLINE = "--offline or HF_HUB_OFFLINE is set"
MB = 1_000_000
BLOCK = 512  # bytes of a block in `stat`


def find_weights(architecture: Architecture, tag: Tag | None, *, offline: bool) -> Path:
    """Do `find_weights_steps` without events, and return the file."""
    return finish(find_weights_steps(architecture, tag, offline=offline))


def find_weights_steps(architecture: Architecture, tag: Tag | None, *, offline: bool) -> Steps[Path]:
    """Return the file with a tag's weights: in the package, or in the Hub's local cache, downloaded if necessary.

    Raises:
        WeightsError: the architecture has no weights, or the Hub cannot be reached.
    """
    if tag is None:
        raise WeightsError(
            f"no pretrained weights exist for {architecture.name}",
            "Choose another model (`convnext list --pretrained`), give your own with --weights PATH, "
            "or train from random initialisation with --weights none",
        )
    if tag.hub_id is None:
        return Path(__file__).with_name("builtin") / f"{architecture.name}.safetensors"
    if cached := find_cached(tag.hub_id):
        return cached
    choices = (
        f"Download {_name_url(tag.hub_id)} on another machine and give it with --weights PATH (or copy that machine's "
        "Hub cache), or use the small built-in weights with --weights builtin, without --model and --config (--weights "
        "none: random initialisation)"
    )
    if offline:
        raise WeightsError(f"the weights {tag.hub_id} are not in this machine's cache, and {OFFLINE}", choices)
    with report_failure(f"cannot fetch the weights {tag.hub_id} from the Hub", choices):
        return (yield from _download(tag.hub_id, ask_hub(tag.hub_id)))


def find_cached(hub_id: str, name: str = HUB_FILE) -> Path | None:
    """Return a file of a repository in the Hub's local cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, name)
    return Path(cached) if isinstance(cached, str) else None


def ask_hub(hub_id: str) -> int:
    """Ask the Hub for the weights of a repository, and return their bytes.

    Its client retries a dead connection for half a minute and more; this waits for `HUB_TIMEOUT` once.

    Raises:
        Exception: the errors of the client, and those of its HTTP library.
    """
    from huggingface_hub import get_hf_file_metadata

    return get_hf_file_metadata(_name_url(hub_id), timeout=HUB_TIMEOUT).size or 0


def _name_url(hub_id: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(hub_id, HUB_FILE)


@contextmanager
def report_failure(problem: str, remedy: str, kind: type[ConvnextError] = WeightsError) -> Iterator[None]:
    """Report in one line, as an error of this kind, that the Hub's client failed in the block."""
    try:
        yield
    except Exception as error:  # the client raises its HTTP library's errors, its own, and OSError
        raise kind(f"{problem} ({_explain_failure(error)})", remedy) from error


def _explain_failure(error: Exception) -> str:
    """Return in words why the Hub's client has failed."""
    from huggingface_hub.errors import FileMetadataError

    if FileMetadataError in (type(error), type(error.__cause__)):  # without the Hub's headers
        return "the answer is not the Hub's: a proxy or a login page may stand between"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return shorten_error(error)
    hint = (
        ": the token (HF_TOKEN, or of `hf auth login`) is wrong or has no access, or there is none"
        if status in (401, 403)
        else ""
    )
    return f"it answered with HTTP status {status}{hint}"


def _download(hub_id: str, size: int) -> Steps[Path]:
    """Download the weights of a repository into the Hub's cache; yield the megabytes that are there.

    A thread downloads, which a process that stops does not wait for.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    result: Future[str] = Future()

    def download() -> None:
        try:
            result.set_result(hf_hub_download(hub_id, HUB_FILE, etag_timeout=HUB_TIMEOUT))
        except BaseException as error:
            result.set_exception(error)

    Thread(target=download, name="download", daemon=True).start()
    blobs = Path(HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="model"), "blobs")
    while wait([result], timeout=0.5).not_done:
        done = min(size, _measure_incomplete(blobs))
        yield Progress(done=done // MB, total=size // MB, activity="MB of the weights")
    return Path(result.result())


def _measure_incomplete(blobs: Path) -> int:
    """Return the bytes of the file that the Hub's client is writing; 0 if there is none, or it cannot be seen."""
    try:
        files = [path.stat() for path in blobs.glob("*.incomplete")]
    except OSError:  # one was renamed meanwhile
        return 0
    return max(files, key=lambda file: file.st_mtime).st_blocks * BLOCK if files else 0
