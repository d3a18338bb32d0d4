"""`convnext cache`: what is kept so that it need not be made again."""

import time
from dataclasses import asdict
from typing import Annotated

import typer

from convnext_cli.cli import console
from convnext_cli.errors import ConvnextError


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all of it. A training that reads from a zip file fails then.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show or clear what is kept for later runs: decoded images, measures, unpacked zip files, compiled kernels."""
    from convnext_cli.cache_folder import clear_cache, find_cache_folder, list_cache
    from convnext_cli.images.cache import DEFAULT_LIMIT, LIMIT, list_cached_sets
    from convnext_cli.machine import GIB

    parts, sets = list_cache(), list_cached_sets()
    total = sum(part.bytes for part in parts)
    remaining = clear_cache() if clear else []
    if as_json:
        described = {"path": find_cache_folder(), "bytes": total, "parts": [asdict(part) for part in parts]}
        console.show_json(described | {"cleared": clear and not remaining, "sets": [asdict(one) for one in sets]})
    else:
        size = f"removed {total / GIB:.2f} GiB" if clear else f"{total / GIB:.2f} GiB"
        console.show(f"{find_cache_folder()}: {size}", style="bold")
        console.show_table(
            ["part", "what", "entries", "MiB"],
            ((part.name, part.title, f"{part.entries:,}", f"{part.bytes / 2**20:,.1f}") for part in parts),
            numbers=["entries", "MiB"],
        )
    if remaining:
        raise ConvnextError(
            f"{len(remaining)} entries of the cache cannot be removed, such as {remaining[0]}", "Check its permissions"
        )
    if as_json or clear:
        return
    if sets:
        now = time.time()
        console.show("")
        console.show_table(
            ["data", "prepared for", "images", "GiB", "days unused"],
            (
                (one.root, one.purpose.partition(";")[0], f"{one.images:,}", f"{one.size / GIB:.2f}",
                 f"{(now - one.used) / 86400:.0f}")
                for one in sets
            ),
            numbers=["images", "GiB", "days unused"],
        )  # fmt: skip
    console.show(
        f"Decoded images take at most {DEFAULT_LIMIT:g} GiB unless ${LIMIT} says otherwise; what is unused for longest "
        "goes first. --clear removes all parts; the Hub's weights are kept elsewhere and stay"
    )
