"""Reading each shared beginning once: texts of a batch as a tree of token segments.

Few-shot texts of one batch start with the same examples, and the two sides of a pair with the
same question. The tree holds every shared run of tokens once; a segment is read on top of what
was cached of the segments that it continues. This module knows token ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

SHORTEST = 12  # a shared run below this many tokens costs more to keep than to read twice


@dataclass(eq=False)
class Segment:
    """A run of tokens read on top of ``parent``. A leaf ends text number ``text``."""

    ids: list[int]
    start: int
    parent: Segment | None = None
    text: int | None = None

    @property
    def stop(self) -> int:
        """How many tokens of a text are read with this segment and those before it."""
        return self.start + len(self.ids)


def share_prefixes(texts: Sequence[Sequence[int]], first_reads: Sequence[int]) -> list[Segment]:
    """Cut ``texts`` into segments such that long shared beginnings stand once.

    ``first_reads[i]`` is the first index of text ``i`` whose states are read: it always stays in
    the text's own leaf. Returns all segments, parents before children.
    """
    order = sorted(range(len(texts)), key=lambda index: list(texts[index]))
    if not order:
        return []
    segments: list[Segment] = []
    _grow(order, None, texts, first_reads, segments)
    return segments


def _grow(
    group: list[int],
    parent: Segment | None,
    texts: Sequence[Sequence[int]],
    first_reads: Sequence[int],
    segments: list[Segment],
) -> None:
    """Add the segments of ``group``, texts in sorted order that all share ``parent``'s tokens."""
    start = parent.stop if parent else 0
    if len(group) == 1:
        segments.append(Segment(list(texts[group[0]][start:]), start, parent, text=group[0]))
        return
    shared = _shared_length(texts[group[0]], texts[group[-1]], limit=min(first_reads[text] for text in group))
    if shared - start >= SHORTEST:
        inner = Segment(list(texts[group[0]][start:shared]), start, parent)
        segments.append(inner)
        _grow(group, inner, texts, first_reads, segments)
        return
    for part in _split(group, texts, shared):
        whole = len(part) == len(group)  # nothing left to tell the texts apart before their reads
        for members in [[text] for text in part] if whole else [part]:
            _grow(members, parent, texts, first_reads, segments)


def _split(group: list[int], texts: Sequence[Sequence[int]], at: int) -> Iterator[list[int]]:
    """Neighbours in sorted order with the same token at index ``at``."""
    for _, members in groupby(group, key=lambda text: texts[text][at] if at < len(texts[text]) else None):
        yield list(members)


def _shared_length(first: Sequence[int], last: Sequence[int], limit: int) -> int:
    for index in range(min(len(first), len(last), limit)):
        if first[index] != last[index]:
            return index
    return min(len(first), len(last), limit)
