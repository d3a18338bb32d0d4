"""Rows joined into connected sets, pair by pair."""

from collections.abc import Iterable

from convnext_cli.data.index import group_by


class JoinedRows:
    """Sets of rows, joined pair by pair (union-find)."""

    def __init__(self, links: Iterable[tuple[int, int]] = ()) -> None:
        self._parent: dict[int, int] = {}
        for one, two in links:
            self.join(one, two)

    def find(self, row: int) -> int:
        """Return the row that represents the set of `row`."""
        while (parent := self._parent.get(row, row)) != row:
            self._parent[row] = row = self._parent.get(parent, parent)
        return row

    def is_joined(self, one: int, two: int) -> bool:
        """Return True if two rows are in one set."""
        return self.find(one) == self.find(two)

    def join(self, one: int, two: int) -> None:
        """Join the sets of two rows."""
        self._parent[self.find(two)] = self.find(one)


def join_rows(links: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Return the connected sets of rows, sorted."""
    links = list(links)
    rows = sorted({row for pair in links for row in pair})
    return tuple(map(tuple, group_by(rows, JoinedRows(links).find).values()))
