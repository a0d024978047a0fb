"""The threads of a pass over an expert: every byte read once, hashed where it must be, worked on, in bounded memory.

A file is cut into chunks. Reading the next chunk of a lane, hashing it as part of the file, hashing it as part of its
tensor and working on a whole tensor are steps; each thread takes the oldest step that is ready and reads ahead, where
least is waiting, when there are fewer ready steps than threads. A file is one stream, and so is a tensor: their chunks
are hashed in order, and files and tensors side by side. A file that is not hashed is read in several lanes, so that
several of its tensors are hashed at one time. Results are in file order, whatever the order of the work.

Memory is that of two pools of buffers: chunks, and, where tensors are worked on as a whole, weights in BF16.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

import numpy as np

from .progress import Progress
from .scan_parts import CHUNK_BYTES, FED_BYTES, Buffers, Chunk, FilePass, Lane, Order, TensorPass
from .threads import stoppable

__all__ = ["Pass", "weights_at_once"]

# Weights that are read, hashed or worked on at one time: seven of the largest of a 14B model.
_WEIGHTS_BYTES: Final = 1_000_000_000
_READ_AHEAD: Final = 40
"""Chunks: rows that are fed one after another take longer than hashing them as a part of their file, and meanwhile the
next tensor of a file has to be reached. As much as a large weight of a 14B model; most of it stays unused."""
_WAIT_S: Final = 0.2

_FIRST: Final = (-1, 0)
_LAST: Final = (1 << 62, 0)

_Step = tuple[Order, Callable[[], None], Callable[[], None]]
"""Its place, what a thread does, and what follows under the lock, whether it was done or not."""


def weights_at_once(threads: int, largest: int) -> int:
    """How many weights, the largest of so many bytes in BF16, a pass with work has in memory."""
    return max(2, min(threads + 1, _WEIGHTS_BYTES // max(1, largest)))


class Pass:
    """One pass; `run` it once.

    Args:
        files: in order.
        threads: how many work.
        work: called with each tensor when its values and digest are there, on any thread, several at a time; its
            result is kept. The values are gone when it returns. A tensor with a `feed` has got them before, and has
            none. None: digests alone, no tensor is held.
        cost: bytes that the work on a tensor takes beside its values.
        memory_bytes: what the costs of works that run at one time may add up to; a single one may be larger.

    Attributes:
        total_bytes: what will be read.
    """

    def __init__(
        self,
        files: Sequence[FilePass],
        threads: int,
        work: Callable[[TensorPass], Any] | None = None,
        cost: Callable[[TensorPass], int] | None = None,
        memory_bytes: int = 0,
    ) -> None:
        self._files, self._threads, self._work = files, max(1, threads), work
        self._cost, self._memory_bytes = cost or (lambda _: 0), memory_bytes
        self._spent = self._works = 0
        tensors = [tensor for part in files for tensor in part.tensors]
        feeds = any(tensor.feed is not None for tensor in tensors)
        self._chunk_bytes = FED_BYTES if feeds else CHUNK_BYTES
        self._chunk_buffers = Buffers(self._chunk_bytes, self._threads + 2 + (_READ_AHEAD if feeds else 0))
        largest = max((tensor.rounded_bytes for tensor in tensors if self._is_held(tensor)), default=0)
        count = weights_at_once(self._threads, largest)
        self._weight_buffers = Buffers(largest, count if largest else 0)
        # A lane that is half read may hold a weight: as many at a time as there are weights, less one to work on.
        self._lanes_at_once = min(self._threads, count - 1) if largest else self._threads
        self._ready: list[tuple[Order, int, Callable[[], None], Callable[[], None]]] = []
        self._count = 0
        self._waiting: deque[TensorPass] = deque()  # for memory to work in
        self._running = 0
        self._errors: dict[Order, BaseException] = {}
        self._stop: Order = _LAST
        self._untold = 0
        self._changed = threading.Condition()
        self._idle = 0
        self._over = threading.Event()
        self._lanes = [lane for index, part in enumerate(files) for lane in self._lay(part, index)]
        self.total_bytes = sum(chunk.size for lane in self._lanes for chunk in lane.chunks)

    def _is_held(self, tensor: TensorPass) -> bool:
        """Whether a tensor is worked on as a whole."""
        return self._work is not None and tensor.feed is None

    def _lay(self, part: FilePass, index: int) -> Iterable[Lane]:
        """A file's chunks in lanes; a tensor is in one of them."""
        chunks = list(self._cut(index, part))
        size = len(chunks) if part.hashed else -(-len(chunks) // self._threads)
        while chunks:
            end = min(size, len(chunks))
            while end < len(chunks) and chunks[end].tensor is chunks[end - 1].tensor:
                end += 1
            lane = Lane(part, deque(chunks[:end]))
            for chunk in lane.chunks:
                chunk.lane = lane
            yield lane
            del chunks[:end]

    def _cut(self, index: int, part: FilePass) -> Iterable[Chunk]:
        end, wanted = part.file.header_bytes, {tensor.entry.name: tensor for tensor in part.tensors}
        spans: list[tuple[int, int, TensorPass | None]] = [(0, end, None)] if part.hashed else []
        for entry in part.file.tensors.values():
            tensor = wanted.get(entry.name)
            if tensor is not None and (self._work is not None or tensor.digest is None):
                spans.append((entry.begin, entry.end, tensor))
            elif part.hashed:
                spans.append((entry.begin, entry.end, None))
        for begin, end, owner in spans:
            # An empty tensor has a digest, too.
            row = 1 if owner is None or owner.feed is None else owner.row_bytes
            size = self._chunk_bytes // row * row
            starts = range(begin, end, size) if end > begin else range(begin, begin + 1)
            if owner is not None:
                owner.left = len(starts)
            for start in starts:
                yield Chunk(owner, (index, start), min(size, end - start))

    def run(self, progress: Progress) -> None:
        """Do it all; the caller's thread waits and tells `progress`, which has been started.

        Raises:
            The error of the step that comes first in file order: everything before it has been done, whatever the
            number of threads. An interruption ends the pass at once.
        """
        threads = [
            threading.Thread(target=self._take_steps, name=f"hfq-pass-{number}", daemon=True)
            for number in range(self._threads)
        ]
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            while not self._tell(progress):
                pass
        except BaseException:
            with self._changed:
                self._stop = _FIRST
                self._changed.notify_all()
            raise
        finally:
            for thread in started:
                thread.join()
        if self._errors:
            stopped = [order for order, error in self._errors.items() if not isinstance(error, Exception)]
            raise self._errors[min(stopped or self._errors)]

    def _tell(self, progress: Progress) -> bool:
        """Wait a moment, tell how much has been read since the last time, and return whether the pass is over."""
        is_over = self._over.wait(_WAIT_S)
        with self._changed:
            amount, self._untold = self._untold, 0
        if amount:
            progress.advance(amount)
        return is_over

    def _take_steps(self) -> None:
        with self._changed:
            try:
                self._take_all()
            except BaseException as error:  # no memory for a buffer: the others must not wait for this thread
                self._errors[_FIRST] = error
                self._stop = _FIRST
            self._over.set()
            self._changed.notify_all()

    def _take_all(self) -> None:
        """Take steps until there are none; called, and left, with the lock held."""
        while not self._is_over():
            step = self._next_step()
            if step is None:
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
                continue
            order, action, end = step
            self._running += 1
            self._changed.release()
            error: BaseException | None = None
            try:
                action()
            except BaseException as raised:
                error = raised
            finally:
                self._changed.acquire()
                self._running -= 1
            if error is not None:
                self._errors[order] = error
                self._stop = min(self._stop, order if isinstance(error, Exception) else _FIRST)
            end()
            if self._idle:
                self._changed.notify_all()

    def _is_over(self) -> bool:
        return not self._running and not self._may_go_on()

    def _may_go_on(self) -> bool:
        return bool(
            any(order < self._stop for order, *_ in self._ready)
            or any(tensor.order < self._stop for tensor in self._waiting)
            or any(lane.chunks and lane.chunks[0].order < self._stop for lane in self._lanes)
        )

    def _next_step(self) -> _Step | None:
        """The next thing to do, or None when there is nothing now; call it with the lock held."""
        if len(self._ready) < self._threads:
            reading = self._next_read()
            if reading is not None:
                return reading
        while self._ready:
            working = self._next_work(before=self._ready[0][0])
            if working is not None:
                return working
            order, _, action, end = heapq.heappop(self._ready)
            if order < self._stop:
                return order, action, end
            end()
        return self._next_work(before=self._stop) or self._next_read()

    def _next_work(self, before: Order) -> _Step | None:
        """A tensor to work on, if there is one before a place and memory for it."""
        for tensor in list(self._waiting):
            if tensor.order >= self._stop:
                self._waiting.remove(tensor)
                self._let_go(tensor)
                continue
            cost = self._cost(tensor)
            if tensor.order < before and (not self._works or self._spent + cost <= self._memory_bytes):
                self._waiting.remove(tensor)
                self._spent += cost
                self._works += 1
                return tensor.order, partial(self._do_work, tensor), partial(self._end_work, tensor, cost)
        return None

    def _next_read(self) -> _Step | None:
        begun = list(islice((lane for lane in self._lanes if lane.chunks), self._lanes_at_once))
        for lane in sorted(begun, key=lambda lane: lane.held):
            chunk = lane.chunks[0]
            if lane.is_read or chunk.order >= self._stop or not self._provide(chunk):
                continue
            lane.chunks.popleft()
            lane.is_read = True
            lane.held += 1
            # Hashed at once while it is in the core's cache, unless this file is the one that all wait for.
            part = lane.owner
            chunk.in_file = part.hashed and not part.pending and self._are_many()
            return chunk.order, partial(self._read, chunk), partial(self._end_read, chunk)
        return None

    def _are_many(self) -> bool:
        return sum(bool(lane.chunks) for lane in self._lanes) >= self._threads

    def _provide(self, chunk: Chunk) -> bool:
        """Give a chunk memory to be read into, if there is some: a part of its weight's, or a buffer of its own."""
        tensor = chunk.tensor
        held = tensor is not None and self._is_held(tensor)
        direct = held and tensor is not None and tensor.entry.dtype == "BF16"
        if held and tensor is not None and tensor.buffer is None and not self._weight_buffers:
            return False
        if not direct and not self._chunk_buffers:
            return False
        if held and tensor is not None and tensor.buffer is None:
            tensor.buffer = self._weight_buffers.take()
            tensor.users = 1  # the work
            tensor.values = tensor.buffer[: tensor.rounded_bytes].view(np.uint16)
        if direct and tensor is not None and tensor.buffer is not None:
            begin = chunk.order[1] - tensor.entry.begin
            chunk.data = tensor.buffer[begin : begin + chunk.size]
            tensor.users += 1
        else:
            chunk.buffer = self._chunk_buffers.take()
            chunk.data = chunk.buffer[: chunk.size]
        chunk.users = 1  # the reading
        return True

    def _push(self, order: Order, action: Callable[[], None], end: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._ready, (order, self._count, action, end))

    def _read(self, chunk: Chunk) -> None:
        assert chunk.data is not None
        if chunk.size:
            chunk.owner.file.pread_into(chunk.data.data, chunk.order[1])
        if not chunk.lane.chunks:
            chunk.owner.file.check_unchanged()
        if chunk.in_file:
            chunk.owner.hash_state.update(chunk.data.data)

    def _end_read(self, chunk: Chunk) -> None:
        """After reading: the chunk's hashes are due. Nobody reads on in a file that failed: `_stop` is before it."""
        part, tensor = chunk.owner, chunk.tensor
        chunk.lane.is_read = False
        self._untold += chunk.size
        if part.hashed and not chunk.in_file:
            chunk.users += 1
            part.pending.append(chunk)
            if len(part.pending) == 1:
                self._push_file_step(part)
        if tensor is not None:
            chunk.users += 1
            tensor.chunks.append(chunk)
            if len(tensor.chunks) == 1:
                self._push_tensor_step(tensor)
        self._leave(chunk)
        self._end_file(chunk.lane)

    def _end_file(self, lane: Lane) -> None:
        part = lane.owner
        if part.hashed and not lane.chunks and not part.pending and not lane.is_read:
            part.sha256 = part.hash_state.hexdigest()

    def _push_file_step(self, part: FilePass) -> None:
        chunk = part.pending[0]
        assert chunk.data is not None
        data = chunk.data.data

        def end() -> None:
            part.pending.popleft()
            self._leave(chunk)
            if part.pending:
                self._push_file_step(part)
            self._end_file(chunk.lane)

        self._push(chunk.order, lambda: part.hash_state.update(data), end)

    def _push_tensor_step(self, tensor: TensorPass) -> None:
        chunk = tensor.chunks[0]

        def end() -> None:
            tensor.chunks.popleft()
            self._leave(chunk)
            tensor.left -= 1
            if tensor.chunks:
                self._push_tensor_step(tensor)
            elif not tensor.left:
                self._end_tensor(tensor)

        self._push(chunk.order, lambda: tensor.digest_chunk(chunk), end)

    def _end_tensor(self, tensor: TensorPass) -> None:
        tensor.end()
        if self._work is not None:
            self._waiting.append(tensor)

    def _do_work(self, tensor: TensorPass) -> None:
        assert self._work is not None
        with stoppable(lambda: tensor.order >= self._stop):
            tensor.result = self._work(tensor)

    def _end_work(self, tensor: TensorPass, cost: int) -> None:
        self._spent -= cost
        self._works -= 1
        self._let_go(tensor)

    def _leave(self, chunk: Chunk) -> None:
        chunk.users -= 1
        if chunk.users:
            return
        chunk.data = None
        chunk.lane.held -= 1
        if chunk.buffer is not None:
            self._chunk_buffers.give(chunk.buffer)
            chunk.buffer = None
        elif chunk.tensor is not None:
            self._let_go(chunk.tensor)

    def _let_go(self, tensor: TensorPass) -> None:
        tensor.users -= 1
        if not tensor.users and tensor.buffer is not None:
            self._weight_buffers.give(tensor.buffer)
            tensor.buffer = tensor.values = None
