"""The streaming executor: output tensors computed block by block, in bounded memory, by several threads, resumably.

A job names its sources and a function of float32 numbers. Work that treats elements or rows alike is cut into blocks of a
fixed granule; the bytes written depend neither on the blocks' size nor on the number of threads, because every block
starts at a multiple of the granule, torch runs one thread inside each worker, and sums over tensors
(:mod:`interfuse.kit.reductions`) and random numbers (:mod:`interfuse.kit.counter_random`) are defined by element.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
import xxhash
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.core.lazy import lazy
from interfuse.data.formats.safetensors import KINDS, Kind, dtype_of
from interfuse.data.weight_writer import TensorSink
from interfuse.data.weights import PLAIN, Flat, HeldTensor, StoredTensor, bytes_of, read_array
from interfuse.kit.reductions import CHUNK

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

_ROWS = 64  # granule of row-wise work: 64 rows are whole vector registers whatever the row's length
_MATRIX = {True: 1 << 19, False: 3 << 18}  # elements of a block of a matrix that is tall (or square), or wide
_SYNC_SECONDS = 1.0
_HELD = 100 << 20  # bytes of a tensor's sources that are held from its preparation on, where reading copies them
_TOGETHER = 0.15  # share of the memory that preparations take side by side; one alone may take all there is
#: largest numbers of the types that are rounded to without ``torch``
_LARGEST = {"F32": 3.4028234663852886e38, "F16": 65504.0, "BF16": 3.3895313892515355e38}


@dataclass(frozen=True, slots=True)
class Block:
    """Which part of the output a function is asked for.

    Attributes:
        name: the output tensor.
        start: flat index of the first element.
        stop: one past the last.
        shape: shape of the whole output tensor.
        facts: what the job's ``prepare`` returned; None without one.
    """

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    facts: Any


@dataclass(frozen=True, slots=True)
class Job:
    """How one output tensor is computed.

    Attributes:
        name: the output tensor.
        sources: the tensors it is made of.
        function: from the sources' numbers (float32, buffers it may overwrite) and the :class:`Block` to the output's
            numbers (float32 or float64, same number of elements as the block). None copies the first source.
        scope: what the function sees at once. ``element``: flat pieces [n] of sources as large as the output; ``row``:
            whole rows [r, columns] of sources of the output's shape (rows along the last axis); ``matrix``: the same of an output
            [m, n] in blocks that follow from the shape alone (:func:`matrix_step`), for work whose last digits depend on how many rows
            are worked on at once, as those of matrix products do; ``tensor``: the sources whole, in their own shapes.
        prepare: readings of the whole sources before the first block (norms, thresholds); its result is ``Block.facts``.
        temporaries: how many tensors of the output block's size (float32) the function needs besides its arguments.
        arrays: the function takes and returns NumPy arrays instead of tensors; only with ``scope="element"``. Where all
            sources are stored as plain floating-point numbers, nothing of ``torch`` is loaded.
        preparing: bytes that ``prepare`` takes, which are kept free for it; those of the tensors in its result (a tensor, or lists and
            tuples of them) stay so until the output is done. Its sources are not held, since such a preparation takes much longer
            than reading. 0 for one that needs next to nothing.
    """

    name: str
    sources: tuple[Flat, ...]
    function: Callable[[list[Any], Block], Any] | None = None
    scope: Literal["element", "row", "matrix", "tensor"] = "element"
    prepare: Callable[[Sequence[Flat]], Any] | None = None
    temporaries: int = 2
    arrays: bool = False
    preparing: int = 0


@dataclass(frozen=True, slots=True)
class MergeStats:
    """What a merge did.

    Attributes:
        tensors: number of output tensors.
        resumed: how many of them were taken over from an interrupted run.
        bytes_written: bytes of numbers written now.
        seconds: wall time.
        checksum: checksum of each output tensor's bytes, in layout order; empty without a journal.
    """

    tensors: int
    resumed: int
    bytes_written: int
    seconds: float
    checksum: dict[str, str]


class Journal:
    """An append-only record of finished tensors, one JSON line each, that survives a kill at any moment.

    Lines reach the system at once and the disk every second. What the journal says is believed only after the tensor's
    bytes have been hashed again.

    Args:
        path: the file; ``<path>.lock`` beside it keeps a second process out.
        key: what the output depends on (recipe, inputs, versions). A journal of another key is discarded.

    Raises:
        InterfuseError: ``output.busy`` if another process holds the journal, ``output.write`` if it cannot be written.
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path, self.key = Path(path), key
        self.done: dict[str, str] = {}
        self._synced = time.monotonic()
        self._file_lock = FileLock(str(self.path) + ".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file_lock.acquire(timeout=0)
        except Timeout as error:
            raise InterfuseError("output.busy", "another merge is writing here", where=str(self.path)) from error
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            good = self._load()
            os.ftruncate(self._fd, good)
            os.lseek(self._fd, good, os.SEEK_SET)
            if not good:
                self._append({"key": key})
        except OSError as error:
            self._file_lock.release()
            raise self._failed(error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self) -> int:
        """Reads the records; returns the number of bytes up to the first torn one, 0 for a journal of another key."""
        raw = self.path.read_bytes()
        good = 0
        for number, line in enumerate(raw.splitlines(keepends=True)):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(record, dict):
                break
            if number == 0:
                if record != {"key": self.key}:
                    return 0
            elif set(record) == {"tensor", "checksum"} and all(isinstance(value, str) for value in record.values()):
                self.done[record["tensor"]] = record["checksum"]
            else:
                break
            good += len(line)
        return good

    def restart(self) -> None:
        """Forgets everything: the output the records are about is gone."""
        self.done = {}
        try:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._append({"key": self.key})
        except OSError as error:
            raise self._failed(error) from error

    def record(self, name: str, checksum: str) -> None:
        """Notes that a tensor is complete."""
        self.done[name] = checksum
        try:
            self._append({"tensor": name, "checksum": checksum})
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._fd)
                self._synced = time.monotonic()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Flushes to disk and lets the next process in."""
        if self._file_lock.is_locked:
            try:
                os.fsync(self._fd)
            finally:
                os.close(self._fd)
                self._file_lock.release()

    def _append(self, record: dict[str, str]) -> None:
        line = json.dumps(record).encode("ascii") + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def _failed(self, error: OSError) -> InterfuseError:
        code = "output.space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "output.write"
        return InterfuseError(code, f"the journal cannot be written: {error.strerror}", where=str(self.path))


def matrix_step(shape: tuple[int, ...]) -> int:
    """Elements of a block of a matrix [m, n]: about half a million, or more of a wide one, in whole multiples of 32 rows.

    A row of a wide one is made of the whole matrix, so that larger blocks mean that it is read less often.
    """
    m, n = shape
    return min(max(_MATRIX[m >= n] // n // 32, 1) * 32, m) * n


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def stream_merge(
    jobs: Sequence[Job],
    writer: TensorSink,
    *,
    workers: int | None = None,
    block_bytes: int = 2 << 20,
    max_memory: int = 4 << 30,
    journal: Journal | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> MergeStats:
    """Computes every output tensor and hands it to the writer.

    Jobs are started in the order given; the order of the largest source's file keeps reading sequential. While it runs,
    torch uses one thread per worker.

    Args:
        jobs: one per tensor of the writer's layout.
        writer: where the numbers go; the caller completes it.
        workers: threads; the number of usable processors if None.
        block_bytes: size of a block of float32 numbers.
        max_memory: bytes that the blocks' buffers and temporaries, sources held for a second reading, and what jobs say that they take
            for ``preparing``, may take, in all threads together. Preparations that ask for memory take 15 % of it side by side; one
            that asks for more runs alone. What other preparations hold comes on top: up to 60 MB per thread for a
            magnitude threshold.
        journal: record of finished tensors; those it names are verified and skipped.
        progress: called with the bytes of output done, the bytes in all, and the tensor worked on.

    Returns:
        What was done.

    Raises:
        InterfuseError: before any work ``param.value``, ``input.missing`` or ``input.duplicate`` (jobs and layout do not
            match), ``input.shape``, ``input.type``, ``input.limit`` (a tensor does not fit into ``max_memory``); during
            work ``input.nan`` (a result is NaN, infinite or too large for its type) and what reading, writing and the
            functions raise. The first error stops all threads.
    """
    if workers is None:
        workers = processors()
    for label, value in (("workers", workers), ("block_bytes", block_bytes), ("max_memory", max_memory)):
        if value < 1:
            raise InterfuseError("param.value", f"{label} must be positive, not {value}")
    _check_names(jobs, writer)
    begun = time.perf_counter()
    tasks = [_Task(job, *writer.layout[job.name]) for job in jobs]
    plan = _Plan(tasks, workers, max(block_bytes // 4 // CHUNK, 1) * CHUNK, max_memory)
    resumed = _already_done(tasks, writer, journal, workers)
    run = _Run(plan, [task for task in tasks if task.job.name not in resumed], writer, journal, progress)
    run.execute()
    done = dict(journal.done) if journal else {}
    checksum = {name: done[name] for name in writer.layout if name in done}
    written = sum(task.nbytes for task in run.tasks)
    return MergeStats(len(tasks), len(resumed), written, time.perf_counter() - begun, checksum)


def _check_names(jobs: Sequence[Job], writer: TensorSink) -> None:
    names = [job.name for job in jobs]
    known = dict.fromkeys(names)
    if len(known) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InterfuseError("input.duplicate", f"two jobs compute tensor {twice!r}")
    for name in known:
        if name not in writer.layout:
            raise InterfuseError("input.missing", f"the output has no tensor {name!r}")
    for name in writer.layout:
        if name not in known:
            raise InterfuseError("input.missing", f"no job computes tensor {name!r}")


def _already_done(tasks: list[_Task], writer: TensorSink, journal: Journal | None, workers: int) -> dict[str, None]:
    """The tensors an interrupted run has left whole; the others' records are forgotten."""
    if journal is None or not journal.done:
        return {}
    old = journal.done
    names = [task.job.name for task in tasks if task.job.name in old]
    with ThreadPoolExecutor(workers) as pool:
        whole = list(pool.map(lambda name: writer.is_present(name, old[name]), names))
    kept = {name: None for name, good in zip(names, whole, strict=True) if good}
    if len(kept) < len(old):
        journal.restart()
        for name in kept:
            journal.record(name, old[name])
    return kept


@dataclass(slots=True, eq=False)
class _Task:
    """A job, its output, and how far it has come."""

    job: Job
    code: str
    shape: tuple[int, ...]
    numel: int = 0
    nbytes: int = 0
    step: int = 0  # elements per block
    memory: int = 0  # bytes one block needs, without reusable source buffers
    raw: bool = False  # the stored bytes are copied as they are
    state: Literal["new", "preparing", "ready"] = "new"
    facts: Any = None
    sources: tuple[Flat, ...] = ()  # the job's, or the same held in memory
    held: int = 0  # bytes kept free for them, or for the preparation
    start: int = 0  # first element not handed out
    hashed: int = 0  # first element not hashed
    done: int = 0  # elements written
    digest: Any = field(default_factory=xxhash.xxh3_128)

    def __post_init__(self) -> None:
        self.numel = math.prod(self.shape)
        self.nbytes = self.numel * self.kind.itemsize
        self.sources = self.job.sources
        self.raw = self._check()

    @property
    def kind(self) -> Kind:
        """The output's element type."""
        return KINDS[self.code]

    @property
    def light(self) -> bool:
        """Whether it is computed without ``torch``."""
        plain = all(_stored(s) and s.info.code in PLAIN for s in self.job.sources)
        return self.raw or (self.job.arrays and self.code in PLAIN and plain)

    def _check(self) -> bool:
        """Whether the work is a plain copy of bytes; refuses what cannot be computed."""
        job = self.job
        where = f"tensor {job.name!r}"
        if not job.sources:
            raise InterfuseError("input.empty", "the job has no sources", where=where)
        first = job.sources[0]
        if job.function is None or job.scope != "tensor":
            for source in job.sources:
                same = math.prod(source.shape) == self.numel and (job.scope == "element" or source.shape == self.shape)
                if not same:
                    what = f"a source is {list(source.shape)}, the output {list(self.shape)}"
                    raise InterfuseError("input.shape", what, where=where)
        if job.function is None and isinstance(first, StoredTensor) and first.info.code == self.code:
            return True
        if not self.kind.floating:
            fix = "Copy it from one source in that source's type."
            raise InterfuseError(
                "input.type", f"torch.{self.kind.name} numbers can be copied, not computed", where=where, fix=fix
            )
        return False


def _stored(source: Flat) -> TypeGuard[StoredTensor]:
    """Whether a source lies in a file."""
    return isinstance(source, StoredTensor) and source.info.file is not None


def _copied(source: Flat) -> TypeGuard[StoredTensor]:
    """Whether every reading of a source copies its bytes: those of a mapped file are looked at where they are."""
    return _stored(source) and not source.weights.maps(source.info)


class _Plan:
    """Block sizes and memory, decided before any work."""

    def __init__(self, tasks: list[_Task], workers: int, block: int, max_memory: int) -> None:
        self.workers, self.max_memory = workers, max_memory
        sources = max((len(task.job.sources) for task in tasks if task.job.scope != "tensor"), default=0)
        spare = max((task.job.temporaries for task in tasks if task.job.scope != "tensor"), default=0)
        while block > CHUNK and workers * block * 4 * (sources + spare + 1) > max_memory:
            block = max(block // 2 // CHUNK, 1) * CHUNK
        for task in tasks:
            self._size(task, block)
        buffered = [task.step * len(task.job.sources) for task in tasks if task.job.scope != "tensor"]
        #: Bytes of source buffers that each worker keeps from block to block.
        self.kept = 4 * max(buffered, default=0)
        largest, prepared = _least(tasks), max((task.job.preparing for task in tasks), default=0)
        while self.workers > 1 and self.workers * (self.kept + largest) + prepared > max_memory:
            self.workers -= 1
        self.free = max_memory - self.workers * self.kept
        for task in tasks:
            preparing = task.job.preparing
            work = max(task.memory, largest) + preparing if preparing else task.memory
            if work > self.free:
                needed = work + self.workers * self.kept
                what = f"the work needs {needed:,} bytes at once, max_memory is {max_memory:,}"
                raise InterfuseError("input.limit", what, where=f"tensor {task.job.name!r}", fix="Raise max_memory.")

    @staticmethod
    def _size(task: _Task, block: int) -> None:
        job = task.job
        if task.raw or job.scope == "element":
            task.step = min(block, task.numel)
        elif job.scope == "row":
            columns = max(task.shape[-1] if task.shape else 1, 1)
            task.step = min(max(block // columns // _ROWS, 1) * _ROWS * columns, task.numel)
        elif job.scope == "matrix":
            task.step = matrix_step(task.shape)
        else:
            task.step = task.numel
        own = task.step * (1 + job.temporaries)
        if job.scope == "tensor" and not task.raw:
            own += sum(math.prod(source.shape) for source in job.sources)
        task.memory = 4 * own


def _bytes_in(facts: Any) -> int:
    """Bytes of the tensors in what a preparation gave, each storage once."""
    storages: dict[int, int] = {}
    left = [facts]
    while left:
        found = left.pop()
        if isinstance(found, list | tuple):
            left += found
        elif isinstance(found, torch.Tensor):
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


def _least(tasks: list[_Task]) -> int:
    return max((task.memory for task in tasks if task.job.scope != "tensor"), default=0)


def _large_first(tasks: list[_Task]) -> list[_Task]:
    """As given, but large tensors with a preparation, which one thread does alone, come first: no thread shall wait for it at the end."""
    large = sum(task.numel for task in tasks) // 20
    return sorted(tasks, key=lambda task: task.job.prepare is None or task.numel <= large)  # stable


class _Run:
    """The threads and what they share; every field is guarded by ``changed``."""

    def __init__(
        self,
        plan: _Plan,
        tasks: list[_Task],
        writer: TensorSink,
        journal: Journal | None,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self.plan, self.tasks, self.writer, self.journal, self.progress = plan, tasks, writer, journal, progress
        self.pending = deque(_large_first(tasks))
        self.free = plan.free
        #: Bytes for preparations and held sources: what is left when the largest task runs in every thread.
        self.spare = plan.free - plan.workers * max((task.memory for task in tasks), default=0)
        self.prepared = 0  # bytes of it that preparations, and what they gave, take now
        self.buffers: list[NDArray[np.uint8]] = []  # of sources held before, to be used again
        self.total = sum(task.nbytes for task in tasks)
        self.bytes_done = 0
        self.error: BaseException | None = None
        self.stop = False
        self.changed = threading.Condition()

    def execute(self) -> None:
        """Runs all tasks; raises the first error after every thread has stopped."""
        heavy = not all(task.light for task in self.tasks)
        before = torch.get_num_threads() if heavy else 0
        if heavy:
            torch.set_num_threads(1)  # threads started from now on use one
        work = self._work_in_torch if heavy else self._work
        threads = [threading.Thread(target=work, daemon=True) for _ in range(self.plan.workers)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            with self.changed:
                self.stop = True
                self.changed.notify_all()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            if heavy:
                torch.set_num_threads(before)
        if self.error is not None:
            raise self.error

    def _work_in_torch(self) -> None:
        with torch.no_grad():
            torch.set_num_threads(1)
            self._work()

    def _work(self) -> None:
        name = ""
        try:
            hand = _Hand(self.plan.kept)
            while (piece := self._next()) is not None:
                task, start = piece
                name = task.job.name
                if start < 0:
                    if task.held and not task.job.preparing:
                        task.sources = tuple(HeldTensor(s, self._buffer(s)) if _copied(s) else s for s in task.sources)
                    facts = task.job.prepare(task.sources) if task.job.prepare else None
                    with self.changed:
                        task.facts, task.state = facts, "ready"
                        if task.job.preparing:
                            self._release(task, task.held - min(_bytes_in(facts), task.held))
                        self.changed.notify_all()
                    del facts  # which would stay until the next preparation
                    continue
                stop = min(start + task.step, task.numel)
                data = hand.copy(task, start, stop) if task.raw else hand.compute(task, start, stop)
                self.writer.write_raw(name, start, data)
                self._finish(task, start, stop, data)
        except BaseException as error:
            error.add_note(f"while computing tensor {name!r}")
            with self.changed:
                self.error = self.error or error
                self.stop = True
                self.changed.notify_all()

    def _next(self) -> tuple[_Task, int] | None:
        """The next block as task and first element, or task and -1 for its preparation; None when all is handed out."""
        with self.changed:
            while not self.stop and self.pending:
                for task in self.pending:
                    if task.state == "new":
                        if task.job.prepare is not None:
                            if self._must_wait(task):
                                break  # until what runs, or is held, is done: alone it fits
                            task.state = "preparing"
                            self._reserve(task)
                            return task, -1
                        task.state = "ready"
                    if task.state == "ready":
                        if task.memory > self.free:
                            break  # in order: a large tensor is not overtaken for ever
                        self.free -= task.memory
                        start = task.start
                        task.start += task.step
                        if task.start >= task.numel:
                            self.pending.remove(task)
                        return task, start
                self.changed.wait()
            return None

    def _must_wait(self, task: _Task) -> bool:
        """Whether a preparation that asks for memory has to wait for others, or for what is left of them."""
        needed = task.job.preparing
        crowded = self.prepared and self.prepared + needed > _TOGETHER * self.plan.max_memory
        return bool(needed and crowded) or (needed > self.spare and self.free < self.plan.free)

    def _reserve(self, task: _Task) -> None:
        """Memory for a preparation that asks for it; else for the sources of a task that reads them several times, where there is plenty."""
        needed = task.job.preparing or sum(s.info.nbytes for s in task.sources if _copied(s))
        if task.job.preparing or needed <= min(_HELD, self.spare):
            task.held = needed
            self.spare -= needed
            self.free -= needed
            self.prepared += needed if task.job.preparing else 0

    def _release(self, task: _Task, size: int) -> None:
        """Gives back some of what :meth:`_reserve` took."""
        task.held -= size
        self.spare += size
        self.free += size
        self.prepared -= size if task.job.preparing else 0

    def _buffer(self, source: StoredTensor) -> NDArray[np.uint8]:
        """Memory for a source: the least buffer of about its size, or a new one in place of the least there is."""
        size = source.info.nbytes
        with self.changed:
            self.buffers.sort(key=len)
            enough = next((i for i, b in enumerate(self.buffers) if size <= len(b) <= 2 * size + (1 << 20)), None)
            if enough is not None:
                return self.buffers.pop(enough)
            del self.buffers[:1]
        return np.empty(size, dtype=np.uint8)

    def _finish(self, task: _Task, start: int, stop: int, data: memoryview) -> None:
        """Hashes a written block when its turn has come, and notes a finished tensor."""
        if self.journal is not None:
            with self.changed:
                while task.hashed != start and not self.stop:
                    self.changed.wait()
                if self.stop:
                    return
            task.digest.update(data)
        with self.changed:
            task.hashed = stop
            task.done += stop - start
            self.free += task.memory
            self.bytes_done += (stop - start) * task.kind.itemsize
            if task.done == task.numel:
                self.buffers += [s.buffer for s in task.sources if isinstance(s, HeldTensor)]
                task.facts, task.sources = None, ()
                self._release(task, task.held)
                if self.journal is not None:
                    self.journal.record(task.job.name, task.digest.hexdigest())
            if self.progress is not None:
                self.progress(self.bytes_done, self.total, task.job.name)
            self.changed.notify_all()


class _Hand:
    """One thread's buffers. What it computes is good until it computes again."""

    def __init__(self, kept: int) -> None:
        self.buffer = np.empty(kept // 4, dtype=np.float32)
        self.spare, self.made = np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.uint16)

    def copy(self, task: _Task, start: int, stop: int) -> memoryview:
        """The stored bytes of a piece, unchanged."""
        source, size = task.job.sources[0], task.kind.itemsize
        out = np.empty((stop - start) * size, dtype=np.uint8).data
        if isinstance(source, StoredTensor) and len(out):
            source.weights.read_bytes(source.info, start * size, out)
        return out

    def compute(self, task: _Task, start: int, stop: int) -> memoryview:
        """The job's function of one block, rounded to the output's type, as bytes."""
        job, n = task.job, stop - start
        slots = (
            [self.buffer[i * task.step : i * task.step + n] for i in range(len(job.sources))]
            if job.scope != "tensor"
            else []
        )
        block = Block(job.name, start, stop, task.shape, task.facts)
        if job.arrays and job.function is not None and task.code in PLAIN:
            arrays = [read_array(s, start, stop, slot) for s, slot in zip(task.sources, slots, strict=True)]
            result = job.function(arrays, block)
            if result.size != n or result.dtype != np.float32:
                what = f"the function returned {result.dtype} {list(result.shape)} for {n} elements"
                raise InterfuseError("input.shape", what, where=f"tensor {job.name!r}")
            return self._rounded(task, result.reshape(-1), start)
        if job.scope == "tensor":
            values = [source.read(0, math.prod(source.shape)).view(source.shape) for source in task.sources]
        else:
            into = [torch.from_numpy(slot) for slot in slots]
            values = [source.read(start, stop, out) for source, out in zip(task.sources, into, strict=True)]
            if job.scope in ("row", "matrix") and n:
                columns = task.shape[-1] if task.shape else 1
                values = [value.view(-1, columns) for value in values]
        given = [value.numpy() for value in values] if job.arrays else values
        result = job.function(given, block) if job.function is not None else values[0]
        kind = np.ndarray if job.arrays and job.function is not None else torch.Tensor
        if not isinstance(result, kind):
            what = f"the function returned a {type(result).__name__}, not a {kind.__name__}"
            raise InterfuseError("input.type", what, where=f"tensor {job.name!r}",
                                 fix="A function of NumPy arrays says so: @method(arrays=True).")  # fmt: skip
        made: Tensor = torch.from_numpy(result) if isinstance(result, np.ndarray) else result
        if made.numel() != n or not made.is_floating_point():
            what = f"the function returned {made.dtype} {list(made.shape)} for {n} elements"
            raise InterfuseError("input.shape", what, where=f"tensor {job.name!r}")
        dtype = dtype_of(task.code)
        if n:
            low, high = torch.aminmax(made)
            self._refuse(task, low.item(), high.item(), torch.finfo(dtype).max, start, stop)
        out = made.reshape(-1).to(dtype).contiguous()  # round to nearest, ties to even
        return bytes_of(out) if n else memoryview(b"")

    def _refuse(self, task: _Task, low: float, high: float, largest: float, start: int, stop: int) -> None:
        if not (low >= -largest and high <= largest):
            what = f"the result is NaN, infinite or too large for torch.{task.kind.name}"
            raise InterfuseError("input.nan", what, where=f"tensor {task.job.name!r}, elements {start} to {stop}")

    def _rounded(self, task: _Task, values: NDArray[np.float32], start: int) -> memoryview:
        """Finite numbers of the output's type, rounded to nearest, ties to even, as bytes. Overwrites the values."""
        n = values.size
        if not n:
            return memoryview(b"")
        self._refuse(task, float(values.min()), float(values.max()), _LARGEST[task.code], start, start + n)
        if task.code == "F32":
            return np.ascontiguousarray(values).data.cast("B")
        if task.code == "F16":
            return values.astype(np.float16).data.cast("B")
        if self.spare.size < n:  # new memory costs more than the rounding
            self.spare, self.made = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.uint16)
        bits, odd, made = values.view(np.uint32), self.spare[:n], self.made[:n]
        np.right_shift(bits, 16, out=odd)
        np.bitwise_and(odd, 1, out=odd)
        np.add(bits, odd, out=bits)
        np.add(bits, 0x7FFF, out=bits)
        np.right_shift(bits, 16, out=bits)
        np.copyto(made, bits, casting="unsafe")
        return made.data.cast("B")
