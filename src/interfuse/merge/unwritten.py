"""Merges whose result is another merge's source: computed tensor by tensor while it is read, never written."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interfuse.core.rooms import Call, key_of
from interfuse.data.overlay import Overlay
from interfuse.data.weights import Flat
from interfuse.kit.streaming import Block, Job, matrix_step
from interfuse.merge.calibrate import Found, calibrated
from interfuse.merge.plan import Output
from interfuse.merge.prepare import Prepared, prepared
from interfuse.merge.room import Tell, layout_of, make_job, overall_of

Tensor = torch.Tensor
#: tensors of methods that see a whole tensor at once, kept while their readers need them in pieces
_KEPT = 8


@dataclass(frozen=True)
class Unwritten:
    """A checked call as :class:`~interfuse.data.overlay.Computed` tensors; nothing between the two merges is rounded."""

    call: Call

    def open(self, tell: Tell | None = None) -> Overlay:
        """The result's tensors, float32 until whoever reads them rounds. ``tell``: as in :func:`~interfuse.merge.room.make_job`."""
        stack = contextlib.ExitStack()
        plan = stack.enter_context(prepared(self.call))
        kept = _Kept()
        labels = functools.cache(lambda: [m.fingerprint() for m in self.call.inputs["models"]])
        flats: dict[str, tuple[Flat, torch.dtype | str]] = {}
        lock = threading.Lock()

        @functools.cache
        def examined() -> Found | None:
            return stack.enter_context(calibrated(self.call, plan))

        def found() -> Found | None:
            with lock:  # the first reader calibrates, the others wait
                return examined()

        @functools.cache
        def surveyed() -> Mapping[str, Any]:
            return overall_of(self.call, plan, labels())

        def overall() -> Mapping[str, Any]:
            with lock:
                return surveyed()

        for output, (code, shape) in zip(plan.outputs, layout_of(self.call, plan).values(), strict=True):
            make = functools.partial(self._job, plan, output, labels, found, overall, tell)
            flats[output.name] = (_Merged(make, shape, kept), code)
        return Overlay(None, flats, closing=stack.close)

    def _job(
        self,
        plan: Prepared,
        output: Output,
        labels: Callable[[], list[str]],
        found: Callable[[], Found | None],
        overall: Callable[[], Mapping[str, Any]],
        tell: Tell | None,
    ) -> Job:
        return make_job(self.call, plan, output, labels(), found(), overall=overall(), tell=tell)

    def fingerprint(self) -> str:
        """The key of the call."""
        return key_of(self.call)


class _Kept:
    """The last few whole tensors, shared by the threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: OrderedDict[str, Tensor] = OrderedDict()

    def put(self, name: str, value: Tensor) -> Tensor:
        with self.lock:
            self.held[name] = value
            while len(self.held) > _KEPT:
                self.held.popitem(last=False)
        return value


class _Merged:
    """One output tensor of a merge, computed where it is read."""

    def __init__(self, make: Callable[[], Job], shape: tuple[int, ...], kept: _Kept) -> None:
        self._make, self._shape, self.kept = make, shape, kept
        self.lock = threading.RLock()
        self.known = False
        self.facts: object = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's shape."""
        return self._shape

    @functools.cached_property
    def job(self) -> Job:
        """How it is computed; made when the first number is asked for, since it needs the models' fingerprints."""
        with self.lock:
            return self._make()

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop``, float32 [stop - start]."""
        job = self.job
        if job.function is None:
            return job.sources[0].read(start, stop, out)
        if job.scope in ("tensor", "matrix"):  # a matrix has the bytes of its own blocks, whatever piece is asked for
            values = self._whole().view(-1)[start:stop]
        elif job.scope == "row":
            columns = self._shape[-1]
            low, high = start // columns * columns, -(-stop // columns) * columns
            values = self._piece(low, high, columns).reshape(-1)[start - low : stop - low]
        else:
            values = self._piece(start, stop, 0).reshape(-1)
        return values.float() if out is None else out.copy_(values)

    def _piece(self, start: int, stop: int, columns: int) -> Tensor:
        values = [source.read(start, stop) for source in self.job.sources]
        if columns:
            values = [v.view(-1, columns) for v in values]
        assert self.job.function is not None, "jobs without a function are copies"
        block = Block(self.job.name, start, stop, self._shape, self._facts())
        if self.job.arrays:
            return torch.from_numpy(self.job.function([v.numpy() for v in values], block))
        made: Tensor = self.job.function(values, block)
        return made

    def _whole(self) -> Tensor:
        with self.lock:
            found = self.kept.held.get(self.job.name)
            if found is None:
                found = self.kept.put(self.job.name, self._made())
            return found

    def _made(self) -> Tensor:
        size = math.prod(self._shape)
        if self.job.scope == "matrix":
            step, columns = matrix_step(self._shape), self._shape[1]
            return torch.cat([self._piece(at, min(at + step, size), columns).float() for at in range(0, size, step)])
        assert self.job.function is not None, "jobs without a function are copies"
        values = [s.read(0, math.prod(s.shape)).view(s.shape) for s in self.job.sources]
        whole: Tensor = self.job.function(values, Block(self.job.name, 0, size, self._shape, self._prepare()))
        return whole.float().contiguous()

    def _facts(self) -> object:
        with self.lock:
            return self._prepare()

    def _prepare(self) -> object:
        if not self.known:
            self.facts = self.job.prepare(self.job.sources) if self.job.prepare is not None else None
            self.known = True
        return self.facts
