"""Links of limited bandwidth and latency between the ranks of one machine.

Ranks really exchange their messages at once; whoever receives one sleeps until it would have come.  A message starts
when its sender has it, knows that the receive is posted, and the link is free.  A link carries one message at a time,
in either direction; where receives are posted early, one each way, and the word of a receiver queues behind what that
end is sending.  So it is with gloo over a shaped link, and so the planner simulates it.  The ranks share a small file
of times, which works because the clock is the machine's.
"""

from __future__ import annotations

import fcntl
import mmap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["LimitedLinks", "SlowCut", "Way"]

Way = Literal["forward", "backward"]

_ROUNDS = 4
"""of messages that are told apart: a sender may run ahead of a receiver by fewer steps"""
_FIELDS = 3
"""of a message: when it was posted by its sender, by its receiver, and when it arrives"""
_POLL_SECONDS = 2e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowCut:
    """What a micro-batch's messages take from one stage to the next, and its gradients back."""

    link: int
    """number of the link; cuts between the same two devices have the same"""
    goes_up: bool = True
    """the values' receiver has a higher rank than their sender: which of the link's two ways they take"""
    forward_seconds: float
    backward_seconds: float


class LimitedLinks:
    """One rank's view of the links.

    Args:
        path: of a file that all ranks share; made if it is not there.
        cuts: after every stage but the last; None where the link has no limit.
        num_microbatches: of a step.
        both_ways: a link carries a message each way at a time.
        waits_for_sends: a rank that waits for a gradient waits for the value that it sent last too, and the other way
            round, as torch's 1F1B does.
        clock: seconds, the same on all ranks.
        sleep: seconds.
    """

    def __init__(
        self, path: Path, cuts: Sequence[SlowCut | None], num_microbatches: int, *, both_ways: bool = False,
        waits_for_sends: bool = False, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._cuts, self._num_microbatches = tuple(cuts), num_microbatches
        self._both_ways, self._waits_for_sends, self._clock, self._sleep = both_ways, waits_for_sends, clock, sleep
        self._num_links = 2 * (1 + max((cut.link for cut in self._cuts if cut is not None), default=-1))
        num_fields = self._num_links + _FIELDS * _ROUNDS * 2 * len(self._cuts) * num_microbatches or 1
        self._file = path.open("a+b")  # of a field at least: nothing cannot be mapped
        with self._locked():
            if self._file.seek(0, 2) < 8 * num_fields:
                self._file.truncate(8 * num_fields)
        self._times = memoryview(mmap.mmap(self._file.fileno(), 8 * num_fields)).cast("d")
        self._posts: Counter[tuple[int, bool]] = Counter()
        self._unsent: tuple[Way, int] | None = None

    def post(self, way: Way, cut: int, microbatch: int, *, sends: bool) -> None:
        """Says that this end is ready for a message; the second end to say so starts it."""
        slow = self._cuts[cut] if 0 <= cut < len(self._cuts) else None
        if slow is None:
            return
        key = self._key(way, cut, microbatch)
        message = self._message(key, self._posts[key, sends])
        self._posts[key, sends] += 1
        mine, other, arrival = (message, message + 1, message + 2) if sends else (message + 1, message, message + 2)
        link, back = self._links(slow, way)
        with self._locked():
            told = 0.0 if sends else self._times[back]  # the word that a receive is posted queues there
            self._times[mine] = max(self._clock(), told)
            self._times[arrival] = 0.0  # of an earlier message in this place
            if self._times[other]:
                start = max(self._times[mine], self._times[other], self._times[link])
                seconds = slow.forward_seconds if way == "forward" else slow.backward_seconds
                self._times[arrival] = self._times[link] = start + seconds
        if sends and self._waits_for_sends:
            self._unsent = way, arrival

    def wait(self, way: Way, cut: int, microbatch: int) -> None:
        """Returns when a message that was posted as received has come."""
        if not 0 <= cut < len(self._cuts) or self._cuts[cut] is None:
            return
        key = self._key(way, cut, microbatch)
        message = self._message(key, self._posts[key, False] - 1)
        if self._unsent is not None and self._unsent[0] != way:  # 1F1B posts the two together and waits for both
            self._sleep_until(self._unsent[1])
            self._unsent = None
        self._sleep_until(message + 2)
        with self._locked():  # the arrival stays: the sender may still want to know
            self._times[message] = self._times[message + 1] = 0.0

    def _sleep_until(self, arrival: int) -> None:
        while not self._times[arrival]:
            self._sleep(_POLL_SECONDS)
        left_seconds = self._times[arrival] - self._clock()
        if left_seconds > 0:
            self._sleep(left_seconds)

    def _links(self, cut: SlowCut, way: Way) -> tuple[int, int]:
        """Where it is written until when the link is busy the way a message goes, and the other way."""
        goes_up = self._both_ways and (way == "forward") == cut.goes_up
        return 2 * cut.link + goes_up, 2 * cut.link + (self._both_ways and not goes_up)

    def _key(self, way: Way, cut: int, microbatch: int) -> int:
        return (2 * cut + (way == "backward")) * self._num_microbatches + microbatch

    def _message(self, key: int, number: int) -> int:
        """Place of the first of a message's times, the ``number``-th of its kind."""
        return self._num_links + _FIELDS * (_ROUNDS * key + number % _ROUNDS)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
