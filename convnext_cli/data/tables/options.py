"""The options of reading a CSV file: its columns and the task. `auto` decides by names and content."""

from collections.abc import Sequence
from dataclasses import dataclass

from convnext_cli.data.index import AUTO


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """The options of reading a CSV file; names and meanings are those of the settings."""

    task: str = AUTO
    label_columns: str = AUTO
    label_column: str = AUTO
    label_sep: str = AUTO
    path_column: str = AUTO
    group_column: str = AUTO
    split_column: str = AUTO
    blank: str = "unknown"
    log_target: str = AUTO
    known_labels: Sequence[str] = ()
    """The labels of a run: other columns are not labels."""
