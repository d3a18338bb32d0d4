"""`convnext cache`: the cached images and files of earlier runs."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from convnext_cli.cli import console
from convnext_cli.cli.options import JsonFlag, OptionValues, with_options
from convnext_cli.errors import ConvnextError
from convnext_cli.machine import GIB
from convnext_cli.options import Option
from convnext_cli.text import format_count

if TYPE_CHECKING:
    from convnext_cli.images.cache import CachedSet


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheFlags:
    """Options of the command."""

    clear: Annotated[
        bool, Option("Delete the cache. A running training that reads from a zip file fails then.", is_common=True)
    ] = False
    as_json: JsonFlag = False


@with_options(CacheFlags)
def cache(values: OptionValues) -> None:
    """Show or clear the cache. It has decoded images, measurements, teachers' outputs, unpacked zip files, kernels."""
    from convnext_cli.cache_folder import clear_cache, find_cache_folder, list_cache
    from convnext_cli.images.cache import list_cached_sets

    flags = values.make(CacheFlags)
    clear = flags.clear
    parts, sets = list_cache(), list_cached_sets()
    total = sum(part.bytes for part in parts)
    remaining = clear_cache() if clear else []
    if flags.as_json:
        described = {"path": find_cache_folder(), "bytes": total, "parts": [asdict(part) for part in parts]}
        console.show_json(described | {"cleared": clear and not remaining, "sets": [asdict(entry) for entry in sets]})
    else:
        size = f"removed {total / GIB:.2f} GiB" if clear else f"{total / GIB:.2f} GiB"
        console.show(f"{find_cache_folder()}: {size}", style="bold")
        console.show_table(
            ["part", "content", "entries", "MiB"],
            ((part.name, part.title, f"{part.entries:,}", f"{part.bytes / 2**20:,.1f}") for part in parts),
            numbers=["entries", "MiB"],
        )
    if remaining:
        raise ConvnextError(
            f"cannot delete {format_count(len(remaining), 'entry', 'entries')} of the cache, such as {remaining[0]}",
            "Check its permissions",
        )
    if flags.as_json or clear:
        return
    _show_sets(sets)


def _show_sets(sets: "list[CachedSet]") -> None:
    """Show the cached images by data set, and the limit of the cache."""
    from convnext_cli.images.cache import DEFAULT_LIMIT, LIMIT

    if sets:
        now = time.time()
        console.show("")
        console.show_table(
            ["data", "prepared for", "images", "MiB", "days unused"],
            (
                (
                    entry.root,
                    entry.purpose.partition(";")[0],
                    f"{entry.images:,}",
                    f"{entry.size / 2**20:,.1f}",
                    f"{(now - entry.used) / 86400:.0f}",
                )
                for entry in sets
            ),
            numbers=["images", "MiB", "days unused"],
        )
    console.show(
        f"Cached images take at most {DEFAULT_LIMIT:g} GiB; ${LIMIT} sets another limit. The least recently used are "
        "deleted first. --clear deletes everything above; weights from the Hub are cached elsewhere and stay"
    )
