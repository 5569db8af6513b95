"""What every task shares: its run's ledger and settings, and what makes it safe to run anywhere.

Arguments from the broker are checked, log lines say what they are about, a store that is away for
a while is waited for, and a task that takes too long is ended.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NoReturn

from celery import Task
from celery.exceptions import MaxRetriesExceededError
from celery.utils.time import get_exponential_backoff_interval
from redis.exceptions import RedisError

from factory.config import Settings, load_settings
from factory.errors import ConfigError, FactoryError, StoreError, TaskTooLong, UnknownRun
from factory.log import about, log
from factory.pairs.styles import NAME_PATTERN
from factory.run.ledger import Ledger
from factory.run.page import Page
from factory.store import DEFAULT_STORE, Store
from workers.flow.strays import complain
from workers.flow.tries import MAX_TRIES, Tries

RUN_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
STORE_RETRIES = 6  # 2 + 4 + ... s: about two minutes
LONGEST_PAUSE = 60  # s; below the visibility timeout, or the message would be delivered twice
LONGEST_LOAD = 7200  # s
Work = Callable[[Page, int, Settings], None]

LONGEST_WAIT = 120.0  # s, and a third of the visibility timeout, beyond which the message would be delivered twice
LONGEST_TROUBLE = 1800.0  # s that a batch meets nothing but errors; then a person must look


@lru_cache(maxsize=1)
def machine_settings() -> Settings:
    """The settings of this worker's machine, read once."""
    return load_settings()


def open_store() -> Store:
    """The store of this worker's machine."""
    return Store(machine_settings().store or DEFAULT_STORE)


@contextmanager
def step_of(task: Task, run: str, style: str) -> Iterator[tuple[Page, Settings]]:
    """The page of the style, and the settings, for one task.

    A store or broker that cannot be reached makes the task try again a while later.

    Raises:
        ConfigError: an argument is not a name, the run is not in this machine's store (who watches it
            is told), or it does not make ``style``.
    """
    check_arguments(run, style)
    with about(run, style, task.request.id or "-"):
        try:
            page = Ledger(open_store(), run).of(style)
            _ = page.style_run
            yield page, machine_settings()
        except UnknownRun:
            log.error(complain(str(task.app.conf.broker_url), run, open_store()))
            raise
        except (StoreError, RedisError, OSError) as error:
            _try_again(task, error)


def check_arguments(run: object, style: object) -> None:
    """What comes from the broker is not trusted: both names become paths in the store.

    Raises:
        ConfigError: one is not a name.
    """
    for value, pattern in ((run, RUN_PATTERN), (style, NAME_PATTERN)):
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ConfigError(f"task arguments should be a run and a style, found {str(value)[:80]!r}")


def _try_again(task: Task, error: Exception) -> NoReturn:
    retries = task.request.retries
    if retries >= STORE_RETRIES:
        raise error
    wait = get_exponential_backoff_interval(2, retries, LONGEST_PAUSE, full_jitter=False)
    log.warning("try %d of %d in %d s: %s", retries + 1, STORE_RETRIES, wait, error)
    try:
        raise task.retry(countdown=wait, exc=error, max_retries=STORE_RETRIES) from None
    except MaxRetriesExceededError:
        raise error from None


_warm: set[str] = set()  # kinds of work that this worker has done once


def run_batch(task: Task, run: str, style: str, number: int, work: Work) -> None:
    """Do ``work`` on one batch of pairs, under all guards (:func:`run_guarded`).

    Raises:
        ConfigError: the arguments are not those of a batch of this run.
        TaskTooLong: it took too long.
    """

    def on_batch(page: Page, settings: Settings) -> None:
        n_batches = page.style_run.n_batches
        if not isinstance(number, int) or not 0 <= number < n_batches:
            raise ConfigError(f"task arguments should name a batch from 0 to {n_batches - 1}, found {number!r:.80}")
        work(page, number, settings)

    def give_up(page: Page, reason: str) -> None:
        page.give_up(number, "worker_died")

    run_guarded(task, run, style, on_batch, give_up, number=number)


def run_guarded(
    task: Task,
    run: str,
    style: str,
    work: Callable[[Page, Settings], None],
    give_up: Callable[[Page, str], None],
    *,
    number: int = 0,
) -> None:
    """Do ``work`` for a style, unless it has ended or the task has killed its workers: then ``give_up``.

    ``number``: which of the style's tasks of this kind. ``give_up`` takes the reason, in words.

    Raises:
        ConfigError: the arguments are not those of a task of this run.
        TaskTooLong: it took too long.
    """
    if not isinstance(number, int) or number < 0:
        raise ConfigError(f"task arguments should name a number from 0 on, found {number!r:.80}")
    kind = task.name.rpartition(".")[2]
    name = f"{kind}-{number:06d}"
    with step_of(task, run, style) as (page, settings):
        if has_ended(page):
            return
        came_again = bool((task.request.delivery_info or {}).get("redelivered"))
        tries = Tries(page, name, came_again, settings.visibility_timeout)
        if tries.exhausted():
            reason = f"{kind} {number} ended its worker {MAX_TRIES} times and is given up"
            log.error(reason)
            give_up(page, reason)
            return
        # The first task of a kind also fetches and loads what it needs, which takes as long as it takes.
        limit = settings.visibility_timeout * 0.9 if kind in _warm else LONGEST_LOAD
        with tries.one(), time_limit(limit, f"{kind} {number} of style {style!r}"):
            work(page, settings)
        _warm.add(kind)


def has_ended(page: Page) -> bool:
    """Whether a style was cancelled, or failed by another task: every task asks before it begins."""
    ended = page.result is not None
    if ended:
        log.info("nothing is done: its style has ended")
    return ended


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """End the block with :class:`TaskTooLong` after ``seconds``.

    Celery enforces no limits on threads. The exception is raised in this thread between two
    instructions of Python: a single call into the device that never returns is not ended by it.

    Raises:
        TaskTooLong: it took longer.
    """
    thread = threading.get_ident()

    def end() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TaskTooLong))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except TaskTooLong:
        raise TaskTooLong(
            f"{what} took longer than {seconds:g} s, nine tenths of visibility_timeout. Take a smaller "
            "extraction_config.batch_size, learning.pairs_per_part or evaluation.limit, or raise "
            "visibility_timeout on every machine, then 'svf resume'"
        ) from None
    finally:
        timer.cancel()


def come_back(task: Task, wait: float, error: FactoryError, failing_since: float | None) -> NoReturn:
    """Free the slot and try again in ``wait`` seconds."""
    named = {**task.request.kwargs, "failing_since": failing_since}
    task.request.retries = -1  # a wait is no failure: the count is for a store or broker that is away
    raise task.retry(
        kwargs=named, countdown=min(wait, LONGEST_WAIT, machine_settings().visibility_timeout / 3), exc=error
    ) from None
