"""Tables on a terminal of any width, in a pipe and in a log: what does not fit is folded, never cut."""

from __future__ import annotations

from rich.table import Table


def folded(table: Table) -> Table:
    """``table`` with nothing cut: where a column is too narrow its text goes on in the next line."""
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = False
    return table
