"""How batches of pairs and of differences lie in the store.

Pairs are JSON under their own hash. Differences are a safetensors file under the hash of what the
target model read: token ids, positions, model, revision, layers and dtype (docs/format.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from factory.errors import StoreError
from factory.files import hash_of
from factory.pairs.pair import ContrastivePair
from factory.pairs.rejected import RejectedQuestion
from factory.run.page import Page
from factory.store import Store

READING_VERSION = 2  # of the code that reads: raised where a change of it may change a number

if TYPE_CHECKING:
    from factory.extraction.extract import Differences, RenderedBatch
    from factory.target.model import Target


def put_pairs(store: Store, pairs: Sequence[ContrastivePair], rejected: Sequence[RejectedQuestion]) -> str:
    """Keep a batch of pairs, and what became of the others; returns its key."""
    content = {"pairs": [pair.to_json() for pair in pairs], "rejected": [line.to_json() for line in rejected]}
    return store.put_json("pairs", content)


def get_pairs(store: Store, key: str) -> tuple[list[ContrastivePair], list[RejectedQuestion]]:
    """The pairs and the rejected questions of a batch.

    Raises:
        StoreError: missing or damaged.
    """
    content = store.require_json(key)
    pairs = [ContrastivePair.from_json(line) for line in content["pairs"]]
    return pairs, [RejectedQuestion.from_json(line) for line in content["rejected"]]


def differences_key(batch: RenderedBatch, target: Target, layers: Sequence[int]) -> str:
    """Where the differences of ``batch`` lie: a hash of everything that decides them."""
    read = {
        "version": READING_VERSION,
        "texts": [asdict(rendering) for rendering in batch.renderings],
        "pair_ids": batch.pair_ids,
        "rejected": [asdict(rejection) for rejection in batch.rejected],
        "model": target.name,
        "revision": target.revision,
        "layers": list(layers),
        "dtype": target.dtype,
    }
    return f"batches/{hash_of(read)}.safetensors"


def put_differences(store: Store, key: str, differences: Differences) -> None:
    """Keep a batch's differences under ``key``."""
    from safetensors.torch import save

    header = {
        "pair_ids": differences.pair_ids,
        "rejected": [asdict(rejection) for rejection in differences.rejected],
        "n_examples": differences.n_examples,
    }
    tensors = {"keys": differences.keys.contiguous(), "values": differences.values.contiguous()}
    store.write_sealed(key, save(tensors, metadata={name: json.dumps(value) for name, value in header.items()}))


def get_differences(store: Store, key: str) -> Differences | None:
    """The differences under ``key``, verified, or None.

    Raises:
        StoreError: damaged.
    """
    from safetensors.torch import load

    from factory.extraction.extract import Differences, Rejection

    raw = store.read_sealed(key)
    if raw is None:
        return None
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])["__metadata__"]
    tensors = load(raw)
    rejected = [Rejection(**rejection) for rejection in json.loads(header["rejected"])]
    n_examples = json.loads(header.get("n_examples", "[]"))
    return Differences(json.loads(header["pair_ids"]), tensors["keys"], tensors["values"], rejected, n_examples)


def require_differences(store: Store, key: str) -> Differences:
    """Like :func:`get_differences`, but they must be there.

    Raises:
        StoreError: missing or damaged.
    """
    differences = get_differences(store, key)
    if differences is None:
        raise StoreError(f"{store.path(key)} is missing: a batch that was extracted is gone; 'svf resume' makes it")
    return differences


def batch_of(page: Page, number: int) -> tuple[list[ContrastivePair], list[RejectedQuestion]]:
    """The pairs and the rejected questions of one batch.

    Raises:
        StoreError: the batch is not written, or its artifact is damaged.
    """
    key = page.batches[number].pairs_key
    if key is None:
        entry = page.written(number)
        if entry is None:
            raise StoreError(f"batch {number} of style {page.name!r} is not written yet; 'svf resume' writes it")
        key = entry.key
    return get_pairs(page.store, key)
