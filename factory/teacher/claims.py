"""Claims on calls, in the store: whoever makes a call makes it alone, whatever broker it works for.

A claim is a lease: its holder renews it while the call runs, and one that is not renewed passes to
the next. Claims on a call are numbered, and each is put down only where nothing lies: of two who
find number 3 run out, one gets number 4. Clocks of machines on one store may differ by half a minute.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from factory.errors import StoreError, TeacherPaced
from factory.log import log
from factory.store import Store

LEASE = 60.0  # s after which a claim that nobody renews passes to another
RENEWAL = 10.0  # s between renewals
COME_BACK = 5.0  # s until a worker asks again for a call that another makes


class Claim:
    """The right to make one call, until it is lost."""

    def __init__(self, store: Store, request_key: str, number: int, owner: str) -> None:
        self.store, self.owner = store, owner
        self.names = [f"claims/{request_key}.{at}.json" for at in range(number + 1)]
        self._next = f"claims/{request_key}.{number + 1}.json"
        self._renewed = time.time()
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._keep, name="claim", daemon=True)

    def require(self) -> None:
        """Go on only while the claim is ours: asked right before money is spent.

        Raises:
            TeacherPaced: it took us so long that another makes the call.
        """
        if time.time() - self._renewed > RENEWAL and not self._renew():
            raise TeacherPaced("another worker has taken this call over", COME_BACK)

    @contextmanager
    def held(self) -> Iterator[Claim]:
        """Renew the claim until the block ends, then give it up."""
        self._renewing.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._renewing.join()
            if self._is_ours():
                for name in reversed(self.names):
                    self.store.delete(name)

    def _keep(self) -> None:
        while not self._ended.wait(RENEWAL):
            try:
                if not self._renew():
                    log.warning("another worker has taken a call over that is still under way here")
                    return
            except StoreError as error:
                log.warning("a claim is not renewed: %s", error)

    def _renew(self) -> bool:
        if not self._is_ours():
            return False
        now = time.time()
        self.store.write_json(self.names[-1], _entry(self.owner, now))
        self._renewed = now
        return True

    def _is_ours(self) -> bool:
        entry = self.store.read_json(self.names[-1])
        return entry is not None and bool(entry["owner"] == self.owner) and not self.store.exists(self._next)


def _entry(owner: str, now: float) -> dict[str, object]:
    return {"owner": owner, "until": round(now + LEASE, 3)}


@contextmanager
def claimed(store: Store, request_key: str) -> Iterator[Claim]:
    """Make a call alone: nobody else on this store makes the same one meanwhile.

    A worker that is killed inside leaves its claim until the lease runs out.

    Raises:
        TeacherPaced: another worker is making this call.
    """
    with _take(store, request_key, uuid.uuid4().hex).held() as claim:
        yield claim


def _take(store: Store, request_key: str, owner: str) -> Claim:
    number = 0
    while True:
        name = f"claims/{request_key}.{number}.json"
        if store.create_json(name, _entry(owner, time.time())):
            return Claim(store, request_key, number, owner)
        entry = store.read_json(name)
        if entry is None:  # given up a moment ago
            continue
        if entry["until"] > time.time():
            raise TeacherPaced("another worker is making this call", COME_BACK)
        number += 1
