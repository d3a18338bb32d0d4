"""Find pretrained weights in the package or on the Hugging Face Hub. Without torch, so that errors come at once."""

from pathlib import Path

from convnext_cli.errors import WeightsError, shorten_error
from convnext_cli.models.catalog import Architecture, Tag

HUB_FILE = "model.safetensors"
HUB_TIMEOUT = 5.0  # seconds to wait for the Hub's first response


def find_weights(architecture: Architecture, tag: Tag | None, *, offline: bool) -> Path:
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
    # The Hub's client retries a dead connection for over half a minute; a request with a short timeout comes first.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(tag.hub_id, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(tag.hub_id, HUB_FILE)
    choices = (
        f"Download {url} on another machine and give it with --weights PATH (or copy that machine's Hub cache), "
        "or use the small built-in weights with --weights builtin (--weights none: random initialisation)"
    )
    if offline:
        raise WeightsError(f"the weights {tag.hub_id} are not in this machine's cache, and --offline is set", choices)
    try:
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
        return Path(hf_hub_download(tag.hub_id, HUB_FILE, etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # the client raises its HTTP library's errors, its own, and OSError
        raise WeightsError(
            f"cannot fetch the weights {tag.hub_id} from the Hub ({shorten_error(error)})", choices
        ) from error
