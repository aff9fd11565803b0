"""Tasks over a few processes, which end with the one that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any, Self

# New processes after so many tasks for each, so that nothing piles up in them. Not the executor's own
# max_tasks_per_child, with which it may wait for ever (https://github.com/python/cpython/issues/115634).
_TASKS = 25


class Workers:
    """A few processes of one thread each; a context manager.

    An exception in the block, Ctrl-C among them, ends the processes where they are.
    """

    def __init__(self, count: int):
        self._count = count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            for process in multiprocessing.active_children():
                process.kill()

    def each(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[Any, BaseException | None]]:
        """Call ``function(*task)`` for every task; results, or what they raised, as they are finished."""
        context = multiprocessing.get_context("spawn")
        at_a_time = self._count * _TASKS
        for start in range(0, len(tasks), at_a_time):
            pool = ProcessPoolExecutor(self._count, context, _begin)
            try:
                futures = [pool.submit(function, *task) for task in tasks[start : start + at_a_time]]
                for future in as_completed(futures):
                    error = future.exception()
                    yield (None if error is not None else future.result()), error
            finally:
                pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a new process: one thread, deaf to the terminal's Ctrl-C, and gone when its parent is."""
    import torch

    torch.set_num_threads(1)
    os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
