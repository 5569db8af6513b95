"""A worker of an embedded run: ``python -m factory.cluster.worker PARENT [OPTION ...]``, options as Celery's.

It takes the app from where this module lies. ``celery -A factory`` looks into the current folder first.
"""

from __future__ import annotations

import contextlib
import os
import sys

import redis

from factory.celery import app
from factory.cluster.lifeline import die_with, end_with_input


def take_the_broker_along() -> None:
    """End the private broker too: on Linux the kernel has done it, elsewhere nobody would."""
    client = redis.Redis.from_url(os.environ["FACTORY_BROKER_URL"], socket_timeout=2, socket_connect_timeout=2)
    with contextlib.suppress(redis.RedisError, OSError):
        client.shutdown(nosave=True)


def work() -> None:
    """Work until told to stop, or until the parent is gone."""
    die_with(int(sys.argv[1]))
    end_with_input(take_the_broker_along)
    app.worker_main(["worker", *sys.argv[2:]])


if __name__ == "__main__":
    work()
