"""Reading each shared beginning once: texts of a batch as a tree of token segments.

Few-shot texts of one batch start with the same examples, and the two sides of a pair with the
same question. The tree holds every shared run of tokens once; levels of the tree are read one
after the other, each on top of the cache of the level before. This module knows token ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

SHORTEST = 12  # a shared run below this many tokens costs more to keep than to read twice


@dataclass(eq=False)
class Segment:
    """A run of tokens read on top of ``parent``. A leaf ends text number ``text``."""

    ids: list[int]
    start: int
    parent: Segment | None = None
    text: int | None = None
    children: list[Segment] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """How many segments come before this one."""
        return 0 if self.parent is None else self.parent.depth + 1


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
    start = parent.start + len(parent.ids) if parent else 0
    if len(group) == 1:
        _add(Segment(list(texts[group[0]][start:]), start, parent, text=group[0]), segments)
        return
    shared = _shared_length(texts[group[0]], texts[group[-1]], limit=min(first_reads[text] for text in group))
    if shared - start >= SHORTEST:
        inner = _add(Segment(list(texts[group[0]][start:shared]), start, parent), segments)
        _grow(group, inner, texts, first_reads, segments)
        return
    for part in _split(group, texts, shared):
        whole = len(part) == len(group)  # nothing left to tell the texts apart before their reads
        for members in [[text] for text in part] if whole else [part]:
            _grow(members, parent, texts, first_reads, segments)


def _add(segment: Segment, segments: list[Segment]) -> Segment:
    if segment.parent:
        segment.parent.children.append(segment)
    segments.append(segment)
    return segment


def _split(group: list[int], texts: Sequence[Sequence[int]], at: int) -> Iterator[list[int]]:
    """Neighbours in sorted order with the same token at index ``at``."""
    for _, members in groupby(group, key=lambda text: texts[text][at] if at < len(texts[text]) else None):
        yield list(members)


def _shared_length(first: Sequence[int], last: Sequence[int], limit: int) -> int:
    for index in range(min(len(first), len(last), limit)):
        if first[index] != last[index]:
            return index
    return min(len(first), len(last), limit)


def levels(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments by depth; each level needs only the one before it."""
    depths: dict[int, list[Segment]] = {}
    for segment in segments:
        depths.setdefault(segment.depth, []).append(segment)
    return [depths[depth] for depth in sorted(depths)]
