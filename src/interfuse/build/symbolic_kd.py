"""Symbolic knowledge distillation: a teacher writes triples, a critic throws the bad ones away, a student learns the rest (West et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Cost
from interfuse.core.safe import fingerprint
from interfuse.data.lm import LM, estimated_tokens
from interfuse.data.statements import Evidence, Literal
from interfuse.kit.asking import prepared
from interfuse.kit.commonsense import (
    NAMES,
    Relation,
    by_head,
    clean_head,
    clean_tail,
    head_request,
    likely,
    read_schema,
    request,
    sentence,
    training_text,
    with_names,
)
from interfuse.kit.critics import RECALLS, Critic, cut_at_recall, held_out, train_critic
from interfuse.kit.kept_steps import kept
from interfuse.kit.sifting import Funnel, Proposal, judged

#: predictions with other names that are averaged when the critic judges
VIEWS = 5


def _cost(call: Any, params: Mapping[str, Any]) -> Cost:
    """Requests for lists of ten heads, and for the tails of every head, old or new, under every relation."""
    heads = len(params["heads"]) + params["new_heads"]
    calls = -(-params["new_heads"] // 10) + heads * len(params["relations"])
    return Cost(calls=calls, seconds=float(calls))


def _rows(call: Any, params: Mapping[str, Any]) -> int:
    return int((len(params["heads"]) + params["new_heads"]) * len(params["relations"]) * params["tails"])


#: what a student reads of train.jsonl and val.jsonl
LEARNT = {"prompt": "prompt", "response": "completion"}


@method(
    per="whole",
    needs=("lm",),
    cost=_cost,
    tables={"train": ("train.jsonl", LEARNT), "val": ("val.jsonl", LEARNT)},
    rows=_rows,
    parts=("interfuse.kit.commonsense", "interfuse.kit.critics", "interfuse.kit.sifting"),
)
def symbolic_kd(
    work: Work, *,
    relations: Annotated[dict[str, dict[str, Any]], Field(description="relation -> {phrase: words after the head, examples: [[head, tail], ...]}")],
    heads: Annotated[list[str], Field(min_length=1, description="events or things the triples begin with; seeds for new ones")],
    new_heads: Annotated[int, Field(ge=0, description="further heads written by the teacher")] = 0,
    head_start: Annotated[str, Field(description="how a new head must begin, such as PersonX; empty: anyhow")] = "",
    tails: Annotated[int, Field(ge=1, description="tails asked for per head and relation")] = 10,
    shots: Annotated[int, Field(ge=1, description="examples in a request")] = 10,
    top_p: Annotated[float, Field(gt=0, le=1, description="nucleus of the tails (heads: 0.9)")] = 0.5,
    temperature: Annotated[float, Field(ge=0, description="temperature of heads and tails; 0 gives one tail each")] = 1.0,
    max_tokens: Annotated[int, Field(ge=1, description="tokens of a head or tail at most")] = 12,
    recall: Annotated[float, Field(gt=0, le=1, description="share of the valid triples that the critic's cut expects to keep; 1 keeps all")] = 0.8,
    strength: Annotated[float, Field(gt=0, description="inverse strength of the critic's penalty")] = 1.0,
    least_judgements: Annotated[int, Field(ge=20, description="judged triples that a critic needs")] = 100,
) -> Iterator[Candidate]:  # fmt: skip
    """Generates, judges and cuts; keeps corpus, thresholds, critic and the student's training texts beside the graph.

    The table, where given, holds judgements with the columns ``head``, ``relation``, ``tail`` and ``valid`` (1 or 0; negative is not
    valid, -9 not judged): the critic learns from them. Without a table nothing is cut, which the report says.

    Raises:
        InterfuseError: ``input.empty``, ``input.shape``, ``param.unknown`` for a schema that cannot be read or too few judgements;
            ``input.missing`` for an unknown relation in a judgement.
    """
    schema = read_schema(relations)
    assert work.lm is not None
    lm = prepared(work.lm, work.ctx)
    critic, thresholds = _critic(work, schema, recall, strength, least_judgements)
    funnel = Funnel()
    start = list(dict.fromkeys(h.strip() for h in heads if h.strip()))
    if not start:
        raise InterfuseError("input.empty", "every head is empty")
    if new_heads:
        written = kept(
            work.ctx, "heads", partial(_heads, work, lm, start, new_heads, head_start, temperature, max_tokens)
        )
        funnel.note("heads", written["asked"], len(written["heads"]), written["reasons"])
        start += [h for h in written["heads"] if h not in start]
    side = by_head(start, work.ctx.rng("split"))
    corpus: list[Proposal] = []
    with work.ctx.bar("triples", len(start) * len(schema), "requests") as bar:
        for relation in schema:
            for first in range(0, len(start), 32):
                part = start[first : first + 32]

                def ask(part: Sequence[str] = part, relation: Relation = relation) -> list[Any]:
                    return _tails(work, lm, relation, part, tails, shots, top_p, temperature, max_tokens)

                for head, replies in zip(
                    part, kept(work.ctx, f"{relation.name} {fingerprint(part)[:16]}", ask), strict=True
                ):
                    corpus += _cleaned(relation, head, replies, funnel)
                    work.count("requests")
                    work.count("tokens asked (estimate)", replies["tokens"])
                bar.advance(len(part))
    by_name = {r.name: r for r in schema}
    if critic is not None:
        corpus = judged(
            corpus, views(critic, [(by_name[p.key[1]], p.key[0], p.key[2]) for p in corpus], work.ctx.rng("names"))
        )
    bar_at = thresholds[f"{recall:g}"]["threshold"] if thresholds and recall < 1 else -np.inf
    passed = funnel.keep(
        "critic", corpus, lambda p: "" if p.p_valid is None or p.p_valid > bar_at else "the critic doubts it"
    )
    rows = [_row(p, side, thresholds) for p in corpus]
    work.save("corpus.jsonl", _lines(rows))
    work.save("train.jsonl", _lines([training_text(*p.key) for p in passed if side[p.key[0]] == "train"]))
    work.save("val.jsonl", _lines([training_text(*p.key) for p in passed if side[p.key[0]] == "val"]))
    if critic is not None and work.folder is not None:
        critic.save(work.folder / "critic.safetensors")
    work.report("funnel", funnel.rows())
    work.report("thresholds", thresholds)
    work.report("critic", "none: no judgements were given, and nothing was cut" if critic is None else {
        "trained on": critic.trained, "held back": critic.held, "share valid": critic.base_rate})  # fmt: skip
    for p in passed:
        yield _candidate(work, p, side)


def _row(p: Proposal, side: Mapping[str, str], thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    kept_at = [r for r, cut in thresholds.items() if p.p_valid is not None and p.p_valid > cut["threshold"]]
    return {"head": p.key[0], "relation": p.key[1], "tail": p.key[2], "logprob": p.fact("logprob"), "times": p.cluster_size, "p_valid": p.p_valid,
            "split": side[p.key[0]], "kept at recall": kept_at}  # fmt: skip


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in rows)


def _candidate(work: Work, p: Proposal, side: Mapping[str, str]) -> Candidate:
    name = work.lm.name if work.lm is not None else ""
    proof = Evidence(
        f"model:{name}", method="build/symbolic-kd", model=name, prompt=str(p.fact("prompt")), score=p.fact("logprob")
    )
    return Candidate(p.key[0], p.key[1], p.key[2], qualifiers=(("split", Literal(side[p.key[0]])),),
                     confidence=1.0 if p.p_valid is None else p.p_valid, kind="extractor" if p.p_valid is None else "critic",
                     status="model-claimed", prompt=str(p.fact("prompt")), evidence=(proof,))  # fmt: skip


def _heads(
    work: Work, lm: LM, seeds: Sequence[str], count: int, start: str, temperature: float, max_tokens: int
) -> dict[str, Any]:
    """New heads: few-shot lists go on, what does not end by itself or look like a head is dropped, then the least likely fifth."""
    rng = work.ctx.rng("heads")
    prompts = [head_request(seeds, rng) for _ in range(-(-count // 10))]
    found: list[tuple[str, float | None]] = []
    reasons = []
    for replies in (lm.generate(prompts, max_tokens=max_tokens, temperature=max(temperature, 0.1), top_p=0.9, stop=("\n",), n=10,
                                            seed=work.ctx.seed_for(f"heads {len(prompts)}") % 2**31, ctx=work.ctx)):  # fmt: skip
        for reply in replies:
            head = clean_head(reply.text, start) if reply.finish == "stop" else ""
            reasons += [] if head else ["not ended, or no head"]
            found += [(head, reply.logprob)] if head else []
    unique = likely(found)[:count]
    reasons += ["the same again, unlikely, or beyond the wanted count"] * (len(found) - len(unique))
    return {"asked": len(found) + len(reasons) - (len(found) - len(unique)), "heads": unique, "reasons": reasons}


def _tails(work: Work, lm: LM, relation: Relation, part: Sequence[str], tails: int, shots: int, top_p: float, temperature: float,
           max_tokens: int) -> list[dict[str, Any]]:  # fmt: skip
    """The teacher's replies for some heads, as they are."""
    rng = work.ctx.rng(f"{relation.name} {fingerprint(list(part))[:16]}")
    prompts = [request(relation, head, rng, shots) for head in part]
    replies = lm.generate(prompts, max_tokens=max_tokens, temperature=temperature, top_p=top_p, stop=("\n",), n=tails,
                          seed=work.ctx.seed_for(f"tails {relation.name} {part[0]}") % 2**31, ctx=work.ctx)  # fmt: skip
    return [
        {
            "prompt": fingerprint(p),
            "tokens": estimated_tokens([p], max_tokens, tails),
            "replies": [[r.text, r.logprob] for r in group],
        }
        for p, group in zip(prompts, replies, strict=True)
    ]


def _cleaned(relation: Relation, head: str, made: Mapping[str, Any], funnel: Funnel) -> list[Proposal]:
    """Distinct tails of one head; how often each came is kept as the size of its cluster."""
    best: dict[str, Proposal] = {}
    reasons = []
    for text, logprob in made["replies"]:
        tail = clean_tail(str(text))
        if not tail:
            reasons.append("empty or too short")
            continue
        old = best.get(tail.lower())
        if old is not None:
            best[tail.lower()] = replace(old, cluster_size=old.cluster_size + 1)
            reasons.append("the same again")
            continue
        facts = (("logprob", logprob), ("prompt", made["prompt"]))
        best[tail.lower()] = Proposal(
            (head, relation.name, tail), sentence(relation, head, tail), float(logprob or 0.0), facts=facts
        )
    funnel.note("tails", len(made["replies"]), len(best), reasons)
    return list(best.values())


def views(critic: Critic, triples: Sequence[tuple[Relation, str, str]], rng: np.random.Generator) -> Any:
    """The critic's probability of each triple, averaged over drawn names where persons occur, [N]."""
    if not triples:
        return np.zeros(0)
    total = np.zeros(len(triples))
    for _ in range(VIEWS):
        drawn = [[NAMES[int(n)] for n in rng.choice(len(NAMES), 3, replace=False)] for _ in triples]
        total += critic([with_names(sentence(r, h, t), names) for (r, h, t), names in zip(triples, drawn, strict=True)])
    return total / VIEWS


def _critic(
    work: Work, schema: Sequence[Relation], recall: float, strength: float, least: int
) -> tuple[Critic | None, dict[str, Any]]:
    """A critic from the judgements, and its cut at each recall, chosen on judgements that it did not learn from.

    The published code averages the thresholds of validation and test data; here the test data is left alone.
    """
    if work.table is None:
        return None, {}
    known = {r.name: r for r in schema}
    rows, valid = [], []
    columns = [work.table.column(c) for c in ("head", "relation", "tail", "valid")]
    for i, (head, name, tail, label) in enumerate(zip(*columns, strict=True)):
        if name not in known:
            raise InterfuseError("input.missing", f"a judgement is of the relation {name!r}, which the schema has not",
                                 where=f"{work.table.name}: row {i}", fix="Relations: " + ", ".join(known))  # fmt: skip
        if label is None or (isinstance(label, float) and not np.isfinite(label)):
            raise InterfuseError("input.nan", "a judgement is empty", where=f"{work.table.name}: row {i}")
        if float(label) > -9:
            rows.append((known[name], str(head), str(tail)))
            valid.append(float(label) > 0)
    groups = [h for _, h, _ in rows]
    outside = held_out(groups, 0.25, work.ctx.rng("critic test"))
    names = work.ctx.rng("critic names")
    texts = [
        with_names(sentence(r, h, t), [NAMES[int(n)] for n in names.choice(len(NAMES), 3, replace=False)])
        for r, h, t in rows
    ]
    inner = [i for i in range(len(rows)) if not outside[i]]
    critic = train_critic([texts[i] for i in inner], [valid[i] for i in inner], groups=[groups[i] for i in inner], strength=strength,
                          rng=work.ctx.rng("critic"), least=max(least * 3 // 4, 1))  # fmt: skip
    chosen = [i for i in range(len(rows)) if outside[i]]
    p = views(critic, [rows[i] for i in chosen], work.ctx.rng("critic views"))
    truth = [valid[i] for i in chosen]
    cuts = {f"{r:g}": vars(cut_at_recall(p, truth, r)) for r in sorted({*RECALLS, *([recall] if recall < 1 else [])})}
    return critic, cuts
