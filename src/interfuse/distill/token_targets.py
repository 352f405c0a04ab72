"""What teachers of language models say, at the positions of the student and in its tokens.

A method asks for it once, in :meth:`~interfuse.distill.hooks.Hooks.setup`; batches then carry it under ``extra``. Nothing here
knows a method's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call
from interfuse.data.models import Model, open_tokenizer
from interfuse.distill.hooks import Batch, Run
from interfuse.kit.lexicon import tokenizer_key
from interfuse.kit.token_align import Alignment, align, align_by_edits, count_pairs
from interfuse.kit.token_cache import TokenSaid, token_said
from interfuse.kit.token_map import VocabularyMap, vocabulary_map
from interfuse.kit.token_rows import TokenRows

#: how unmatched tokens of another vocabulary are placed; ``same`` refuses another vocabulary
Mapping = Literal["same", "exact", "prefix", "edit", "counted", "counted-reference"]
Aligned = Literal["bytes", "edits"]


@dataclass(frozen=True)
class Targets:
    """A teacher's k best tokens at every counted position of the student, in the student's ids.

    Attributes:
        ids: int64 [T, k]; 0 where a place holds none. logp: float32 [T, k], ``-inf`` there. tail: float32 [T], log of the mass
            beyond. valid: bool [T], false where the teacher says nothing that the student can use.
        loss: float64 [N], the teacher's mean cross entropy on the learnt tokens of every text, in its own tokens.
        report: coverage of the alignment and of the map.
    """

    ids: Tensor = field(repr=False)
    logp: Tensor = field(repr=False)
    tail: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    loss: NDArray[np.float64] = field(repr=False)
    report: dict[str, Any]


def refuse_other_tokens(call: Call, way_out: str) -> None:
    """Refuses teachers whose tokenizer is not the student's, before anything is loaded.

    Raises:
        InterfuseError: ``input.vocabulary``; ``input.missing`` for a model without tokenizer.
    """
    student: Model = call.inputs["student"]
    mine = ""
    for teacher in call.inputs["teacher"]:
        sizes = (teacher.labels or 0, student.labels or 0)  # padded vocabularies count as others
        mine = mine if mine or sizes[0] != sizes[1] else tokenizer_key(open_tokenizer(student))
        if sizes[0] != sizes[1] or tokenizer_key(open_tokenizer(teacher)) != mine:
            raise InterfuseError("input.vocabulary", f"{call.method.id} needs teachers that read the student's tokens",
                                 where=f"{teacher.name}, {student.name}", fix=way_out)  # fmt: skip


def cache_folder(run: Run) -> Path | None:
    """Where predictions are kept: for other trainings too (``teacher_cache: disk``), for this one until it is done, or nowhere."""
    if run.settings.teacher_cache == "disk":
        return Path(run.ctx.cache).expanduser() / "teachers"
    return run.ctx.scratch / "teachers" if run.ctx.scratch is not None else None


def said_by(run: Run, number: int, k: int) -> TokenSaid:
    """What teacher ``number`` says of the table in its own tokens; -1 is the student as it is before training.

    Positions at which it gives no number do not count, which is told and written down.
    """
    if number < 0:
        model, module, rows = run.student_model, run.student, run.encoder.token_rows
    else:
        model, module, rows = run.teacher_models[number], run.teachers[number], run.teacher_encoders[number].token_rows
    said = token_said(model, module, rows, run.ctx, k=k, folder=cache_folder(run), device=run.device)
    lost = int((~torch.isfinite(said.lse)).sum())
    about = {"model": model.name, "positions": len(said.lse), "bytes per position": round(said.bytes_per_token, 1)}
    if lost:
        run.ctx.log(f"{model.name} gives no number at {lost} of {len(said.lse)} positions, which do not count")
        about["positions without a number"] = lost
    run.facts.setdefault("teacher caches", []).append(about)
    return said


def alignments(run: Run, number: int, way: Aligned) -> list[Alignment]:
    """The student's positions in each text and the teacher's that belong to them."""
    mine, theirs = run.encoder.token_rows, run.teacher_encoders[number].token_rows
    if way == "bytes":
        return [align(a, b) for a, b in zip(mine.readings, theirs.readings, strict=True)]
    pairs = zip(mine.readings, theirs.readings, strict=True)
    return [align_by_edits(a.ids, b.ids, mine.lex, theirs.lex) for a, b in pairs]


def targets_of(
    run: Run, number: int, *, k: int, mapping: Mapping = "same", way: Aligned = "bytes", gold: bool = False
) -> Targets:
    """What a teacher says at the student's positions, in the student's tokens.

    Args:
        number: which teacher; -1 is the student itself as it is before training.
        mapping: how tokens of another vocabulary are placed. way: how positions are aligned.
        gold: where the teacher says nothing, the target is the token that follows, alone (FuseChat); else it is not valid.
    """
    said = said_by(run, number, k)
    mine = run.encoder.token_rows
    if number < 0 or run.teacher_encoders[number].token_rows.lex.key == mine.lex.key:
        loss = said.mean_loss(mine)
        valid = torch.isfinite(said.lse)
        report = {"model": (run.student_model if number < 0 else run.teacher_models[number]).name, "same tokens": True}
        ids, logp, tail = said.ids.long(), said.logp.float(), said.tail
        if bool((ids >= run.outputs).any()):  # rows of a padded vocabulary that the student does not have
            beyond = ids >= run.outputs
            ids, logp = ids.masked_fill(beyond, 0), logp.masked_fill(beyond, -torch.inf)
            tail = (1 - logp.double().exp().sum(-1)).clamp_min(0).log().float()
        return Targets(ids, logp, tail, valid, loss, report)
    theirs = run.teacher_encoders[number].token_rows
    found = alignments(run, number, way)
    counts = None
    if mapping.startswith("counted"):
        pairs = count_pairs(found, [r.ids for r in mine.readings], [r.ids for r in theirs.readings])
        counts = dict(pairs)
    assert mapping != "same", "refused before work"
    mapped = vocabulary_map(theirs.lex, mine.lex, policy=mapping, counts=counts, ctx=run.ctx)
    made = _at_my_positions(said, mine, theirs, found, mapped, gold)
    weight = np.bincount(np.concatenate([r.ids for r in theirs.readings]), minlength=len(theirs.lex))
    synchronous = sum(float((a.same >= 0).sum()) for a in found) / max(sum(len(a) for a in found), 1)
    report = {
        "model": run.teacher_models[number].name,
        "same tokens": False,
        "positions with a target": round(float(made.valid.float().mean()), 4),
        "positions aligned": round(synchronous, 4),
        "map": mapped.report(weight),
    }
    return replace(made, loss=said.mean_loss(theirs), report=report)


def _at_my_positions(said: TokenSaid, mine: TokenRows, theirs: TokenRows, found: Sequence[Alignment], mapped: VocabularyMap,
                     gold: bool) -> Targets:  # fmt: skip
    """Gathers a teacher's rows at the student's positions and sends its tokens through the map."""
    total = int(mine.offsets[-1])
    source = np.full(total, -1, dtype=np.int64)
    following = np.zeros(total, dtype=np.int64)
    for row, alignment in enumerate(found):
        counted = mine.counted[row]
        place = np.full(len(theirs.readings[row]) + 1, -1, dtype=np.int64)  # the last is for "none"
        place[theirs.counted[row]] = np.arange(theirs.offsets[row], theirs.offsets[row + 1])
        begin, end = mine.offsets[row], mine.offsets[row + 1]
        source[begin:end] = place[alignment.same[counted]]
        following[begin:end] = mine.readings[row].ids[counted + 1]
    has = source >= 0
    k = said.ids.shape[1]
    ids = np.zeros((total, k), dtype=np.int64)
    logp = np.full((total, k), -np.inf, dtype=np.float32)
    tail = np.full(total, -np.inf, dtype=np.float32)
    picked = said.logp.float().numpy()[source[has]]
    sent = np.minimum(said.ids.long().numpy()[source[has]], len(mapped) - 1)
    picked[said.ids.numpy()[source[has]] >= len(mapped)] = -np.inf  # rows of a padded vocabulary stand for nothing
    ids[has], logp[has] = mapped.send(sent, picked)
    with np.errstate(divide="ignore"):
        tail[has] = np.log(np.maximum(1.0 - np.exp(logp[has]).sum(axis=1), 0.0))
    valid = has & np.isfinite(logp).any(axis=1)
    if gold:
        ids[~valid], logp[~valid], tail[~valid] = 0, -np.inf, -np.inf
        ids[~valid, 0], logp[~valid, 0] = following[~valid], 0.0
    return Targets(torch.from_numpy(ids), torch.from_numpy(logp), torch.from_numpy(tail), torch.from_numpy(valid),
                   np.zeros(0), {})  # fmt: skip


def in_own_tokens(
    run: Run, number: int, *, k: int, way: Literal["order", "bytes"], said: TokenSaid | None = None
) -> Targets:
    """What a teacher says at the student's positions, in the teacher's own ids: for losses that need no common vocabulary.

    Args:
        way: the n-th learnt position of the student goes with the teacher's n-th, cut to the shorter (``order``), or with the
            one at which the same bytes have been read (``bytes``).
        said: what it says, where that is at hand.
    """
    said = said or said_by(run, number, k)
    mine, theirs = run.encoder.token_rows, run.teacher_encoders[number].token_rows
    source = np.full(int(mine.offsets[-1]), -1, dtype=np.int64)
    found = alignments(run, number, "bytes") if way == "bytes" else []
    for row in range(len(mine)):
        begin, end = int(mine.offsets[row]), int(mine.offsets[row + 1])
        start, stop = int(theirs.offsets[row]), int(theirs.offsets[row + 1])
        if way == "order":
            shared = min(end - begin, stop - start)
            source[begin : begin + shared] = np.arange(start, start + shared)
        else:
            place = np.full(len(theirs.readings[row]) + 1, -1, dtype=np.int64)
            place[theirs.counted[row]] = np.arange(start, stop)
            source[begin:end] = place[found[row].same[mine.counted[row]]]
    index = torch.from_numpy(np.maximum(source, 0))
    valid = torch.from_numpy(source >= 0) & torch.isfinite(said.lse[index])
    report = {
        "model": run.teacher_models[number].name,
        "positions with a target": round(float(valid.float().mean()), 4),
    }
    return Targets(
        said.ids[index].long(), said.logp[index].float(), said.tail[index], valid, said.mean_loss(theirs), report
    )


def places(rows: TokenRows, positions: NDArray[np.int64], shape: Sequence[int]) -> Tensor:
    """Where the predictions for a batch stand: int64 [B, L-1], -1 at positions that are not counted."""
    out = np.full(tuple(shape), -1, dtype=np.int64)
    for line, row in enumerate(positions.tolist()):
        counted = rows.counted[row]
        out[line, counted] = np.arange(rows.offsets[row], rows.offsets[row + 1])
    return torch.from_numpy(out)


def attach(run: Run, batch: Batch, targets: Sequence[Targets]) -> Batch:
    """Puts what the teachers say into ``batch.extra["said"]``: per teacher ``ids``, ``logp`` [B, L-1, k], ``tail``, ``valid`` [B, L-1]."""
    assert batch.labels is not None, "a causal language model has targets"
    where = places(run.encoder.token_rows, batch.positions, batch.labels.shape)
    index = where.clamp_min(0)
    said = []
    for one in targets:
        valid = (where >= 0) & one.valid[index]
        row = {"ids": one.ids[index], "logp": one.logp[index], "tail": one.tail[index], "valid": valid}
        said.append({name: t.to(run.device) for name, t in row.items()})
    batch.extra["said"] = said
    return batch
