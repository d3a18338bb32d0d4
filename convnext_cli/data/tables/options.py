"""The options of reading a table: its columns and the task. `auto` decides by names and content."""

from collections.abc import Sequence
from dataclasses import dataclass

from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import TargetOptions

COLUMN_OPTIONS = ("label_columns", "label_column", "path_column", "group_column", "split_column")
"""The options that name columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions(TargetOptions):
    """The options of reading a table; names and meanings are those of the settings."""

    image_root: str = AUTO
    """The folder that the paths begin in; `auto` searches beside and below the file."""
    label_from: str = AUTO
    """A regular expression for the class in an image's path, in place of folders and tables."""
    label_columns: str = AUTO
    label_column: str = AUTO
    path_column: str = AUTO
    group_column: str = AUTO
    split_column: str = AUTO
    attributes: Sequence[str] = ()
    """The attributes of the images that are read from their columns afterwards: these count as used."""


AUTO_OPTIONS = TableOptions()
