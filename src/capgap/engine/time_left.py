"""Progress lines of long work, with the share done and the estimated time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
EVERY_S = 5.0


def duration(seconds: float) -> str:
    """Minutes and seconds, like 3:07."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


class Reported(Sequence[Item]):
    """Items, like batches, whose passing is printed every few seconds: `what` 12 of 64  left 0:40."""

    def __init__(self, items: Sequence[Item], what: str, every_s: float | None = None):
        self.items, self.what = items, what
        self.every_s = EVERY_S if every_s is None else every_s

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __iter__(self) -> Iterator[Item]:
        start = last = time.monotonic()
        for done, item in enumerate(self.items):
            now = time.monotonic()
            if done and now - last >= self.every_s:
                last, left = now, (now - start) / done * (len(self) - done)
                text = f"{self.what} {done} of {len(self)}  left {duration(left)}"
                print(text, flush=True)
            yield item
