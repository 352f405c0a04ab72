"""The engine for corpora beyond one machine: ``ray.data`` reads documents and calls the method, this process puts the graph together.

Workers do what the single process does, by the same code: read a few files, cut them into chunks, and call the method for chunks that
were not read before. What they find travels as the same lines that are kept on disk, and documents come back in their order, so that
the graph is the same, statement by statement. Files must lie where every worker sees them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interfuse.build.keeping import Kept
from interfuse.core.ctx import Budget
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call
from interfuse.data.corpus import Corpus, Document, File, Skipped

#: files that a worker reads at once, and their bytes, at most
FILES, BYTES = 64, 8_000_000


class SharedBudget(Budget):
    """A budget that all workers spend from.

    Args:
        purse: the actor that keeps it.
    """

    def __init__(self, purse: Any) -> None:
        super().__init__()
        self.purse = purse

    def spend(self, **amounts: float) -> None:
        """Spends, or raises ``budget.spent`` before the work."""
        import ray

        said = ray.get(self.purse.spend.remote(**amounts))
        if said:
            raise InterfuseError("budget.spent", said[0], fix=said[1])


class Purse:
    """Keeps what is left of a budget; an actor of its own."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def spend(self, **amounts: float) -> tuple[str, str] | None:
        """None, or what an error should say."""
        try:
            self.budget.spend(**amounts)
        except InterfuseError as error:
            return error.what, error.fix
        return None

    def spent(self) -> dict[str, float]:
        """What was spent."""
        return self.budget.spent


class Reading:
    """One worker: reads files, and calls the method for their chunks.

    Args:
        call: without its documents. corpus: its limits and reader; its files are given piece by piece.
        tokens: of a chunk. done: keys of chunks that were read before.
    """

    def __init__(self, call: Call, corpus: Corpus, tokens: int, done: Sequence[str]) -> None:
        self.call, self.corpus, self.tokens, self.done = call, corpus, tokens, frozenset(done)
        self.ready: Any = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """One row of JSON per piece: documents and files that were skipped, in order, lines to be kept, and an error that ended it."""
        return {"row": [json.dumps(self.read([_file(f) for f in json.loads(str(piece))])) for piece in batch["piece"]]}

    def read(self, files: Sequence[File]) -> dict[str, Any]:
        """Reads one piece."""
        from interfuse.build.room import ChunkReader, Work
        from interfuse.data.chunks import split
        from interfuse.data.loaders.process import to_row

        kept = Kept(None)
        reader = ChunkReader(self.call, kept)
        reader.ready = self.ready
        inputs = self.call.inputs
        work = Work(
            self.call.ctx, lm=inputs["lm"], ontology=inputs["ontology"], graph=inputs["graph"], table=inputs["table"]
        )
        corpus = dataclasses.replace(self.corpus, files=tuple(files), skipped=[])
        found: list[dict[str, Any]] = []
        error: dict[str, str] = {}
        try:
            chunks = []
            for document in corpus.documents():
                found += [{"skipped": vars(s)} for s in corpus.skipped]
                corpus.skipped.clear()
                found.append(to_row(document))
                chunks += [c for c in split(document, self.tokens) if c.key not in self.done]
            found += [{"skipped": vars(s)} for s in corpus.skipped]
            size = int(self.call.method.traits.get("batch", 1))
            fresh = list({c.key: c for c in reversed(chunks)}.values())[::-1]
            for i in range(0, len(fresh), size):
                for _ in reader.read([(c, False) for c in fresh[i : i + size]], work):
                    pass
        except InterfuseError as problem:
            error = {"code": problem.code, "what": problem.what, "where": problem.where, "fix": problem.fix}
        self.ready = reader.ready
        return {"documents": found, "lines": {k: bytes(line).decode() for k, line in kept.rows.items()}, "error": error}


def _file(row: Sequence[Any]) -> File:
    name, digest, size, path, text = row
    return File(name, digest, size, path or None, text)


def pieces(files: Sequence[File]) -> list[list[File]]:
    """Files in order, gathered into pieces for the workers."""
    made: list[list[File]] = []
    size = BYTES + 1
    for file in files:
        if size + file.size > BYTES or len(made[-1]) >= FILES:
            made.append([])
            size = 0
        made[-1].append(file)
        size += file.size
    return made


def spread(call: Call, corpus: Corpus, kept: Kept, tokens: int, workers: int | None) -> Iterator[Document]:
    """The documents of a corpus in order; what the method finds in their chunks is in ``kept`` when a document comes.

    Args:
        tokens: of a chunk. workers: processes; none: one per processor. A running cluster is used when RAY_ADDRESS names one.

    Raises:
        InterfuseError: ``needs.package`` without ray; ``input.type`` for inputs that cannot be sent; ``run.failed`` when workers die;
            and what the method raises, after what was found before it is kept.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise InterfuseError(
            "needs.package", "the engine 'ray' needs ray", fix="pip install 'interfuse[scale]'"
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = (
            {}
            if os.environ.get("RAY_ADDRESS")
            else {"num_cpus": (workers or os.cpu_count() or 1) + 1, "include_dashboard": False}
        )
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    purse = ray.remote(num_cpus=0)(Purse).remote(call.ctx.budget)
    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
        sent = dataclasses.replace(
            call, inputs={**call.inputs, "documents": None}, replicas=(),
            ctx=call.ctx.with_(log=_silent, bar=type(call.ctx)().bar, scratch=None, budget=SharedBudget(purse)),
        )  # fmt: skip
        rows = [
            {
                "piece": json.dumps(
                    [[f.name, f.sha256, f.size, str(f.path.resolve()) if f.path else "", f.text] for f in piece]
                )
            }
            for piece in pieces(corpus.files)
        ]
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), 4 * count)).map_batches(
            Reading, batch_size=1, batch_format="numpy", concurrency=min(count, len(rows)), num_cpus=1,
            fn_constructor_args=(sent, dataclasses.replace(corpus, files=(), skipped=[]), tokens, sorted(kept.rows)),
        )  # fmt: skip
        yield from _documents(data, corpus, kept)
    except (TypeError, ray.exceptions.RayError) as error:
        code = "input.type" if isinstance(error, TypeError) else "run.failed"
        raise InterfuseError(
            code,
            f"the workers could not do it: {_reason(error)}",
            fix="Use the engine 'local'.",
        ) from error
    finally:
        call.ctx.budget.spent.update(ray.get(purse.spent.remote()))
        ray.kill(purse)
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if ours:
            ray.shutdown()


def _documents(data: Any, corpus: Corpus, kept: Kept) -> Iterator[Document]:
    """What comes back, in order: lines are kept at once, and a document that came before is skipped and counted."""
    from interfuse.data.loaders.process import from_row

    corpus.skipped.clear()
    seen: dict[str, str] = {}
    for row in data.iter_rows():
        made = json.loads(row["row"])
        for key, line in made["lines"].items():
            kept.put_line(key, line.encode())
        for one in made["documents"]:
            item = Skipped(**one["skipped"]) if "skipped" in one else from_row(one)
            if isinstance(item, Document) and item.id in seen:
                item = Skipped(item.name, "input.duplicate", f"the same bytes as {seen[item.id]}", item.id)
            if isinstance(item, Skipped):
                corpus.skipped.append(item)
            else:
                seen[item.id] = item.name
                yield item
        if made["error"]:
            raise InterfuseError(
                made["error"]["code"], made["error"]["what"], where=made["error"]["where"], fix=made["error"]["fix"]
            )


def _reason(error: Exception) -> str:
    """The line of a worker's report that names its error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((x for x in reversed(lines) if re.match(r"[\w.]+(?:Error|Exception|Killed)\b", x)), lines[-1])[:300]


def _silent(line: str) -> None:
    pass
