"""One store for the whole cluster: before a run starts, the workers that are up are asked whether they see it."""

from __future__ import annotations

import uuid
from typing import Any

from celery.worker.control import inspect_command

from factory.celery import app
from factory.errors import FactoryError, StoreError
from factory.store import Store
from workers.flow.strays import place_of
from workers.flow.task import open_store

PATIENCE = 1.0  # s in which workers answer; one that does not is not judged


@inspect_command(args=[("key", str)], signature="<key>")
def sees_artifact(state: Any, key: str) -> dict[str, object]:
    """Whether this worker's store holds ``key``, and where that store is."""
    try:
        store = open_store()
        return {"store": place_of(store), "found": store.exists(key)}
    except FactoryError as error:
        return {"store": str(error), "found": False}


def stores_elsewhere(store: Store) -> dict[str, str]:
    """Workers that are up and do not see ``store``: by name, each with the place of its own.

    Raises:
        StoreError: the store cannot be written here.
    """
    key = f"probes/{uuid.uuid4().hex}"
    store.write(key, b"")
    try:
        answers = app.control.broadcast("sees_artifact", arguments={"key": key}, reply=True, timeout=PATIENCE) or []
    finally:
        store.delete(key)
    said = {worker: answer for answers_of in answers for worker, answer in answers_of.items()}
    return {worker: str(answer["store"]) for worker, answer in sorted(said.items()) if answer.get("found") is False}


def require_shared_store(store: Store) -> None:
    """Refuse a store that a worker does not see, as far as workers are up and answer.

    Raises:
        StoreError: names the workers, their stores, and what to set.
    """
    elsewhere = stores_elsewhere(store)
    if elsewhere:
        named = ", ".join(f"{worker} has {place}" for worker, place in elsewhere.items())
        raise StoreError(
            f"workers do not see the store {place_of(store)}: {named}. Nothing was sent. One store is for all: set "
            "FACTORY_STORE (a folder that every machine has, or s3://...) here and for the workers, and start them anew"
        )
