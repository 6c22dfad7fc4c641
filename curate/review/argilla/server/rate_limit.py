"""Attempts by key → how long the next one has to wait.

The generic cell rate algorithm (ITU-T I.371): one number per key, the time at which all its attempts are available
again. The number of keys is limited; the one that was used least recently is forgotten first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

MAX_KEYS = 10_000
"""Keys per limit: a few megabytes at most, with names of at most `sign_in.MAX_NAME` characters."""


class RateLimit:
    """`burst` attempts at once per key, then one per `seconds`.

    >>> limit = RateLimit(2, 30, clock=lambda: 0.0)
    >>> for _ in range(2): limit.take("ann")
    >>> limit.wait("ann"), limit.wait("bob")
    (30.0, 0.0)
    """

    def __init__(self, burst: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._seconds, self._clock = burst, seconds, clock
        self._available_at: OrderedDict[Hashable, float] = OrderedDict()

    def wait(self, key: Hashable) -> float:
        """Seconds until the next attempt is permitted; 0 if it is permitted now."""
        now = self._clock()
        return max(0.0, self._start(key, now) + (1 - self._burst) * self._seconds - now)

    def take(self, key: Hashable) -> None:
        """Count an attempt."""
        self._available_at[key] = self._start(key, self._clock()) + self._seconds
        self._available_at.move_to_end(key)
        if len(self._available_at) > MAX_KEYS:
            self._available_at.popitem(last=False)

    def give_back(self, key: Hashable) -> None:
        """Do not count the latest attempt."""
        if key in self._available_at:
            self._available_at[key] -= self._seconds

    def __len__(self) -> int:
        """The number of remembered keys."""
        return len(self._available_at)

    def _start(self, key: Hashable, now: float) -> float:
        return max(now, self._available_at.get(key, now))


class SignInLimit:
    """Attempts to sign in: per name and address, per address, and per name over all addresses.

    A name that signed in from an address before is only subject to the first of them there, so that wrong passwords
    from elsewhere, or for other names behind the same proxy, do not lock its owner out.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pairs = RateLimit(5, 30, clock=clock)
        self._addresses = RateLimit(20, 5, clock=clock)
        self._names = RateLimit(50, 10, clock=clock)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def start(self, name: str, address: str) -> float:
        """Count an attempt if it is permitted; otherwise the seconds to wait."""
        limits = self._limits(name, address)
        wait = max(limit.wait(key) for limit, key in limits)
        if not wait:
            for limit, key in limits:
                limit.take(key)
        return wait

    def succeed(self, name: str, address: str) -> None:
        """Do not count the attempt that `start` counted: the password was correct."""
        for limit, key in self._limits(name, address):
            limit.give_back(key)
        self._known[name, address] = None
        self._known.move_to_end((name, address))
        if len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)

    def _limits(self, name: str, address: str) -> list[tuple[RateLimit, Hashable]]:
        if (name, address) in self._known:
            return [(self._pairs, (name, address))]
        return [(self._pairs, (name, address)), (self._addresses, address), (self._names, name)]
