"""Checks that nothing is written into the data: neither an output nor the cache folder lies in it."""

import os
from collections.abc import Iterable
from pathlib import Path

from convnext_cli.cache_folder import list_cache_variables
from convnext_cli.data.index import TABLE_SUFFIXES, Index
from convnext_cli.errors import UsageError
from convnext_cli.files import check_outside, resolve_links


def check_outside_data(output: Path, index: Index, option: str = "--output") -> None:
    """Check that `output` is not in a folder of `list_data_folders`.

    Raises:
        UsageError: `output` is in one of these folders.
    """
    for folder in list_data_folders(index):
        check_outside(output, folder, option)


def check_cache_outside(folders: Iterable[Path]) -> None:
    """Check that no variable puts the cache folder into a data folder.

    Without a variable it is in the home folder, which may have images too.

    Raises:
        UsageError: one does.
    """
    caches = {name: resolve_links(cache) for name, cache in list_cache_variables().items()}
    for folder in folders if caches else ():
        resolved = resolve_links(folder)
        for variable in (name for name, cache in caches.items() if cache.is_relative_to(resolved)):
            raise UsageError(
                f"{variable} puts the cache folder into the data folder {folder}, where nothing is written",
                f"Set {variable} to another folder",
            )


def list_data_folders(index: Index) -> list[Path]:
    """Return the folders into which nothing is written: those that have images, and the data folder.

    The folder of a table is allowed: no folder in it can become a class. A folder in it that has all its images is
    not.
    """
    folders = {(index.root / path).parent for path in index.paths}
    if not any(path.suffix.lower() in TABLE_SUFFIXES for path in index.root.glob("*.*")):
        folders.add(index.root)
    else:
        common = Path(os.path.commonpath([resolve_links(folder) for folder in folders or {index.root}]))
        if resolve_links(index.root) in common.parents:
            folders.add(common)
    return sorted(folders)
