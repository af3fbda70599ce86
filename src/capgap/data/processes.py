"""A function over many items in several processes, in order and with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from capgap.terminal import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


def available() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """Results in the order of the items, whatever the number of processes.

    At most two items per process are in flight, so neither items nor results pile up. With one
    process no worker is started. Workers are forked, so they share the memory that `function` holds.
    """
    if processes == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(function,)) as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append(pool.submit(_call, item))
                if len(pending) > 2 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _start(function: Callable) -> None:
    die_with_parent()
    _call.function = function


def _call(item):
    return _call.function(item)
