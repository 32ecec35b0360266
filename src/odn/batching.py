"""Micro-batching: requests that arrive while the network is busy are computed together. No torch here."""

import asyncio
import collections
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np

from odn.predictions import Answered
from odn.texts import Batch

_Waiting = tuple[Batch, asyncio.Future[Answered]]


class Overloaded(Exception):
    """More images wait than may."""


@final
class Batcher:
    """Runs images of many requests through one network.

    Args:
        network: of a runtime; it runs in a thread of its own, one batch at a time.
        max_batch: images computed at once; a request with more makes a batch by itself.
        max_waiting: images that may wait.
    """

    def __init__(self, network: Callable[[Batch], Answered], max_batch: int, max_waiting: int) -> None:
        self.network, self.max_batch, self.max_waiting = network, max_batch, max_waiting
        self.waiting = 0
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._arrived, self._stopping = asyncio.Event(), False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; called within the running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what waits, then end."""
        self._stopping = True
        self._arrived.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def run(self, images: Batch) -> Answered:
        """Compute the logits of some images as part of the next batch.

        Args:
            images: uint8, shape (B, C, H, W).

        Returns:
            Logits of shape (B, K), and the depth at which each image left, shape (B,), if any could early.

        Raises:
            Overloaded: when too many images wait already.
        """
        if self.waiting and self.waiting + len(images) > self.max_waiting:
            raise Overloaded
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self.waiting += len(images)
        self._queue.append((images, answer))
        self._arrived.set()
        return await answer

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._queue:
                return  # stopping
            batch: list[_Waiting] = []
            count = 0
            # Whatever has come in the meantime joins, as far as there is room; nothing waits for more to come.
            while self._queue and (not batch or count + len(self._queue[0][0]) <= self.max_batch):
                batch.append(self._queue.popleft())
                count += len(batch[-1][0])
            if not self._queue and not self._stopping:
                self._arrived.clear()
            self.waiting -= count
            await self._compute(batch)

    async def _compute(self, batch: list[_Waiting]) -> None:
        batch = [(images, answer) for images, answer in batch if not answer.cancelled()]  # the client has gone
        if not batch:
            return
        try:
            together = np.concatenate([images for images, _ in batch])
            logits, depths = await asyncio.get_running_loop().run_in_executor(self._thread, self.network, together)
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        start = 0
        for images, answer in batch:
            if not answer.done():
                mine = slice(start, start + len(images))
                answer.set_result((logits[mine], None if depths is None else depths[mine]))
            start += len(images)
