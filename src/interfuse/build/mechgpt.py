"""MechGPT: questions and answers distilled from texts, for fine-tuning, and ontological graphs that connect topics (Buehler 2024)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from interfuse.build.asking import count_chunks
from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call, Cost
from interfuse.core.safe import fingerprint
from interfuse.data.chunks import Chunk, sentences, split
from interfuse.data.lm import LM, cached
from interfuse.data.statements import Evidence
from interfuse.kit.asking import said_to
from interfuse.kit.kept_steps import kept
from interfuse.kit.ontological import bridge, joined, measures, read_triples
from interfuse.kit.qa_pairs import (
    Pair,
    as_alpaca,
    as_messages,
    as_sharegpt,
    by_patterns,
    read_pairs,
    why_not,
    without_doubles,
)
from interfuse.kit.sifting import Funnel

ASK_PAIRS = (
    "Read the passage and write {count} question and answer pairs about it. Each question must be understood without the passage. Each answer "
    "is complete, clear, in your own words, and says only what the passage says. Do not mention figures, citations, the author or the passage.\n"
    "Passage: <<<\n{passage}\n>>>\nForm:\nQuestion: ...\nAnswer: ..."
)
ASK_TRIPLES = (
    "Write the concepts and their relations in the passage as lines of the form\nconcept | relation | concept\nwith short names. Write at most "
    "{count} lines and nothing else.\nPassage: <<<\n{passage}\n>>>"
)
ASK_TOPIC = (
    "Write what is known about {topic} as lines of the form\nconcept | relation | concept\nwith short names. Write at most {count} lines and "
    "nothing else."
)


def _rows(call: Any, params: Mapping[str, Any]) -> int:
    """Pairs asked for of every passage; about four bytes are a token."""
    files = call.inputs["documents"].files
    size = sum(int(f.size) for f in files)
    return int(params["pairs"]) * max(size // (4 * int(params["passage"])), len(files), 1)


def _cost(call: Call, params: Mapping[str, Any]) -> Cost:
    """A request for pairs and one for triples per passage, and one per topic."""
    if call.inputs["lm"] is None:
        return Cost()
    passages = count_chunks(call, params["passage"], lambda chunk: not sentences(chunk.text))
    calls = passages * (1 + (params["triples"] > 0)) + len(params["topics"])
    return Cost(calls=calls, seconds=float(calls))


CHATS = {"messages": "messages"}


@method(
    per="whole",
    needs=("documents",),
    cost=_cost,
    tables={"train": ("qa-train.jsonl", CHATS), "val": ("qa-val.jsonl", CHATS)},
    rows=_rows,
    parts=("interfuse.kit.qa_pairs", "interfuse.kit.ontological"),
)
def mechgpt(
    work: Work, *,
    pairs: Annotated[int, Field(ge=1, description="question and answer pairs asked for per passage")] = 2,
    triples: Annotated[int, Field(ge=0, description="lines of the graph asked for per passage; 0: no graph from a model")] = 8,
    topics: Annotated[list[str], Field(max_length=2, description="two topics to be connected")] = [],  # noqa: B006
    passage: Annotated[int, Field(ge=20, description="words and marks of a passage at most")] = 400,
    supported: Annotated[float, Field(ge=0, le=1, description="share of an answer's content words that its passage must hold")] = 0.6,
    shortest_answer: Annotated[int, Field(ge=1, description="words of an answer at least")] = 4,
    filters: Annotated[bool, Field(description="drop pairs that are unsupported, dangling, too short or doubled")] = True,
    held_share: Annotated[float, Field(ge=0, lt=1, description="share of the passages whose pairs are held back in qa-val.jsonl")] = 0.1,
    alike: Annotated[float, Field(gt=0, le=1, description="similarity above which two nodes are one")] = 0.9,
    temperature: Annotated[float, Field(ge=0, description="temperature of the model")] = 0.0,
) -> Iterator[Candidate]:  # fmt: skip
    """Distils pairs and triples passage by passage; without a model by patterns.

    Beside the graph: ``qa.jsonl`` with spans and scores, ``qa-train.jsonl`` and ``qa-val.jsonl`` (chat form; all pairs of a passage on one side),
    ``alpaca.jsonl``, ``sharegpt.jsonl``; the report holds the funnel, the graph's measures and what connects the topics.

    Raises:
        InterfuseError: ``param.value`` for one topic alone, ``input.empty`` when the documents hold no sentence.
    """
    if len(topics) == 1:
        raise InterfuseError(
            "param.value", "one topic has nothing to be connected with", fix="Give two topics, or none."
        )
    assert work.corpus is not None
    lm = cached(work.lm, work.ctx) if work.lm is not None else None
    chunks = [c for d in work.corpus.documents() for c in split(d, passage)]
    chunks = [c for c in chunks if sentences(c.text)]
    if not chunks:
        raise InterfuseError("input.empty", "the documents hold no sentence", where=work.corpus.name)
    work.count("passages", len(chunks))
    funnel, found = Funnel(), []  # type: tuple[Funnel, list[tuple[Chunk, Pair]]]
    drawn: list[tuple[tuple[str, str, str], Evidence, str]] = []
    with work.ctx.bar("passages", len(chunks), "passages") as bar:
        for chunk in chunks:
            made = kept(work.ctx, f"passage {chunk.id}", partial(_read, lm, work, chunk, pairs, triples, temperature))
            work.count("requests", made["requests"])
            fresh = [Pair(*p) for p in made["pairs"]]
            reasons = [
                why_not(p, chunk.text, supported=supported, answer_words=(shortest_answer, 300)) if filters else ""
                for p in fresh
            ]
            funnel.note("filters", len(fresh), reasons.count(""), [r for r in reasons if r])
            found += [(chunk, p) for p, r in zip(fresh, reasons, strict=True) if not r]
            work.count("lines that are no triple", made["lost"])
            drawn += [
                (tuple(t), _proof(work, lm, chunk, span), "model-claimed" if lm is not None else "stated")
                for t, span in made["triples"]
            ]
            bar.advance()
    if lm is not None and topics:
        for topic in topics:
            asked = ASK_TOPIC.format(topic=topic, count=max(triples, 8))
            lines, lost = read_triples(kept(work.ctx, f"topic {topic}", partial(_asked, lm, work, asked, temperature)))
            work.count("requests")
            work.count("lines that are no triple", lost)
            drawn += [
                (t, Evidence(f"model:{lm.name}", method="build/mechgpt", model=lm.name), "model-claimed") for t in lines
            ]
    if filters:
        single = without_doubles([p for _, p in found])
        funnel.note("doubles", len(found), len(single), ["near duplicate question"] * (len(found) - len(single)))
        found = [found[i] for i in single]
    _save(work, found, chunks, held_share)
    work.report("funnel", funnel.rows())
    yield from _graph(work, drawn, topics, alike)


def _read(lm: LM | None, work: Work, chunk: Chunk, pairs: int, triples: int, temperature: float) -> dict[str, Any]:
    """Pairs [question, answer, start, end] and triples with their span, of one passage."""
    text, whole = chunk.text, [0, len(chunk.text)]
    if lm is None:
        made = by_patterns(text, sentences(text))
        return {"pairs": [[p.question, p.answer, p.start, p.end] for p, _ in made], "lost": 0, "requests": 0,
                "triples": [[[t.subject, t.relation, t.object], [p.start, p.end]] for p, t in made if t is not None]}  # fmt: skip
    reply = _asked(lm, work, ASK_PAIRS.format(count=pairs, passage=text), temperature)
    found, lost = (
        read_triples(_asked(lm, work, ASK_TRIPLES.format(count=triples, passage=text), temperature))
        if triples
        else ([], 0)
    )
    return {"pairs": [[p.question, p.answer, *whole] for p in read_pairs(reply)], "lost": lost, "requests": 1 + (triples > 0),
            "triples": [[list(t), whole] for t in found]}  # fmt: skip


def _asked(lm: LM, work: Work, text: str, temperature: float) -> str:
    seed = work.ctx.seed_for(fingerprint(text)) % 2**31
    assert work.lm is not None
    return lm.generate([said_to(work.lm, text)], max_tokens=512, temperature=temperature, seed=seed, ctx=work.ctx)[0][
        0
    ].text


def _proof(work: Work, lm: LM | None, chunk: Chunk, span: Sequence[int]) -> Evidence:
    """The sentence, where a pattern read it; the model (and which passage it was shown), where the model said so."""
    if lm is not None:
        return Evidence(f"model:{lm.name}", element=chunk.id, method="build/mechgpt", model=lm.name)
    start, end = chunk.start + span[0], chunk.start + span[1]
    return Evidence(
        chunk.document.id,
        start,
        end,
        chunk.page or None,
        quote=fingerprint(chunk.document.text[start:end]),
        method="build/mechgpt",
    )


def _save(work: Work, found: Sequence[tuple[Chunk, Pair]], chunks: Sequence[Chunk], held_share: float) -> None:
    order = work.ctx.rng("held back").permutation(len(chunks))
    held = {chunks[int(i)].id for i in order[: round(held_share * len(chunks))]}
    rows, sides = [], {"train": [], "val": []}  # type: tuple[list[dict[str, Any]], dict[str, list[Pair]]]
    for chunk, pair in found:
        side = "val" if chunk.id in held else "train"
        sides[side].append(pair)
        rows.append({"question": pair.question, "answer": pair.answer, "document": chunk.document.id, "name": chunk.document.name,
                     "start": chunk.start + pair.start, "end": chunk.start + pair.end, "passage": chunk.id, "split": side})  # fmt: skip
    train = sides["train"]
    for name, lines in (("qa.jsonl", rows), ("qa-train.jsonl", [as_messages(p) for p in train]),
                        ("qa-val.jsonl", [as_messages(p) for p in sides["val"]]), ("alpaca.jsonl", [as_alpaca(p) for p in train]),
                        ("sharegpt.jsonl", [as_sharegpt(p) for p in train])):  # fmt: skip
        work.save(name, "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines))
    work.count("pairs", len(rows))


def _graph(
    work: Work, drawn: Sequence[tuple[tuple[str, str, str], Evidence, str]], topics: Sequence[str], alike: float
) -> Iterator[Candidate]:
    """The merged graph as statements; confidence grows with how many passages say the same."""
    _, stands = joined([t for t, _, _ in drawn], alike)
    proofs: dict[tuple[str, str, str], list[tuple[Evidence, str]]] = {}
    for (a, r, b), proof, status in drawn:
        a, b = stands.get(a, a), stands.get(b, b)
        if a != b:
            proofs.setdefault((a, r, b), []).append((proof, status))
    lines = list(proofs)
    sure = [1 - 0.5 ** len(dict.fromkeys(p for p, _ in proofs[t])) for t in lines]
    work.report("graph", measures(lines))
    work.report("names joined", stands)
    if topics:
        work.report("bridge", vars(bridge(lines, topics[0], topics[1], confidence=sure)))
    for t, p in zip(lines, sure, strict=True):
        evidence = tuple(dict.fromkeys(e for e, _ in proofs[t]))
        yield Candidate(t[0], t[1], t[2], confidence=p, kind="vote", status=proofs[t][0][1], evidence=evidence)
