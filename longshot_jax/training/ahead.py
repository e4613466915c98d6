"""Batches made in one background thread, ahead of the device, in their order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`take()` returns make(first), make(first + 1), ...; a context manager that ends the thread.

    Args:
      make: a pure function of the number, so that what was made and never taken is lost without loss.
      first: number of the first item.
      depth: how many items are made in advance.

    An exception of `make` is raised by the `take` of its item.
    """

    def __init__(self, make: Callable[[int], T], first: int, depth: int = 2):
        self._make, self._next = make, first
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._coming: deque[Future[T]] = deque()
        for _ in range(depth):
            self._order()

    def _order(self) -> None:
        self._coming.append(self._thread.submit(self._make, self._next))
        self._next += 1

    def take(self) -> T:
        """The next item; waits for it."""
        item = self._coming.popleft()
        self._order()
        return item.result()

    def close(self) -> None:
        """Drops what nobody took and waits for the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
