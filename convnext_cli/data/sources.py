"""Make an index from a folder, a CSV file or a zip file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convnext_cli.data.exclusion import find_excluded
from convnext_cli.data.index import AUTO, EXCLUDED, NONE, TABLE_SUFFIXES, Index, select_rows
from convnext_cli.data.scan import check_left, scan_folder


def scan_data(data: Path, *, image_root: str = AUTO, exclude: str = NONE, known_classes: Sequence[str] = ()) -> Index:
    """Find the images of a folder (`scan_folder`), a CSV file (`manifest.read_manifest`), or a zip file of either.

    Args:
        data: the folder or file.
        image_root: the folder that a manifest's paths begin in; `auto` searches its own folder and those below.
        exclude: images to leave out (`exclusion.find_excluded`), or `none`.
        known_classes: classes of a run; their names are not questioned.

    Raises:
        DataError: the data do not exist, cannot be read, have no images, or their layout is ambiguous.
        UsageError: `image_root` is given without a manifest.
    """
    suffix = data.suffix.lower()
    if not data.is_file() or suffix not in (*TABLE_SUFFIXES, ".zip"):
        return scan_folder(data, image_root=image_root, exclude=exclude, known_classes=known_classes)
    if suffix == ".zip":
        from convnext_cli.data.archive import check_inside, unpack

        index = scan_folder(
            unpack(data), image_root=image_root, exclude=exclude, archive=data, known_classes=known_classes
        )
        if image_root == AUTO:
            check_inside(data, index.root, index.paths)
        return index
    from convnext_cli.data.manifest import read_manifest

    return _exclude(read_manifest(data, image_root), exclude)


def _exclude(index: Index, exclude: str) -> Index:
    """Return the index of a manifest without the images that `exclude` names."""
    if exclude == NONE:
        return index
    excluded = find_excluded(exclude, index.paths, index.root)
    check_left(len(index) - len(excluded), exclude, index.root)
    selection = select_rows(index, [row for row in range(len(index)) if row not in excluded])
    return replace(selection, skipped=index.skipped | {EXCLUDED: len(excluded)})
