"""Feedback: a teacher judges, ranks or corrects what a student wrote; preferences come out (UltraFeedback, Cui et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.lm import LM, Prompt
from interfuse.data.local_lm import LocalLM
from interfuse.kit.eliciting import flat, number_of, request, trimmed, unusable
from interfuse.kit.verifiers import answer_key
from interfuse.synthesize.examples import (
    Asked,
    examples_of,
    preference_columns,
    preferred,
    put,
    refuse_kinds,
    size_of,
)
from interfuse.synthesize.room import Work

SCORED, REVISED = ("critique", "score"), ("critique", "revision")
ASPECTS = "helpful, honest, correct, and does what was asked"
JUDGE = (
    "You judge an answer that a student gave: whether it is {aspects}. Say first what is good and what is wrong, then give a score from 1 "
    '(useless) to {top} (could not be better). Answer with JSON only: {{"critique": "...", "score": 1}}'
)
REVISE = (
    "You correct an answer that a student gave, so that it is {aspects}. Say first what is wrong, then write the whole corrected answer. "
    'Answer with JSON only: {{"critique": "...", "revision": "the corrected answer"}}'
)


def _schema(fields: Sequence[str]) -> dict[str, Any]:
    kinds = {f: {"type": "number" if f == "score" else "string"} for f in fields}
    return {"type": "object", "properties": kinds, "required": list(fields)}


def _plan(call: Call) -> list[tuple[str, int, int]]:
    p, (rows, tokens) = call.params, size_of(call)
    each = p["candidates"] * p["max_tokens"]
    plan = [("student", rows, tokens + rows * each)]
    if p["judge"] == "likelihood":
        return [*plan, ("lm", rows * p["candidates"], tokens * p["candidates"] + rows * each)]
    judged = rows * p["tries"] * (p["candidates"] if p["judge"] == "score" else 1)
    return [*plan, ("lm", judged, judged * (len(JUDGE) // 4 + tokens // max(rows, 1) + 2 * p["max_tokens"]))]


def _valid(call: Call) -> None:
    refuse_kinds(call, "prompt", "messages")
    if call.params["judge"] != "revise" and call.params["candidates"] < 2:
        raise InterfuseError("param.value", "one answer cannot be compared with itself", where="candidates",
                             fix="Give candidates of at least 2, or judge: revise.")  # fmt: skip


@method(needs=("data",), takes=("student",), columns=preference_columns, plan=_plan, valid=_valid, rows=lambda call: len(call.inputs["data"]))  # fmt: skip
def feedback(
    work: Work,
    *,
    judge: Annotated[
        Literal["score", "likelihood", "revise"],
        Field(
            description="the teacher writes a critique and a score; or finds one answer's words likelier; or corrects an answer, and its text is preferred"
        ),
    ] = "score",
    candidates: Annotated[int, Field(ge=1, le=16, description="answers the student writes per prompt")] = 4,
    aspects: Annotated[str, Field(min_length=1, description="what a good answer is, in words")] = ASPECTS,
    top: Annotated[int, Field(ge=2, le=100, description="the highest score; 1 is the lowest")] = 10,
    gap: Annotated[float, Field(ge=0, description="least difference of the best and the worst score (nats per token with likelihood)")] = 1.0,
    ratio: Annotated[
        float | None, Field(ge=1, description="most that one of the two may be longer than the other, against a bias to length")
    ] = None,
    temperature: Annotated[float, Field(ge=0, description="of the student when it writes")] = 1.0,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """``phi_fb(x, y; theta_T)`` on the student's own answers: per prompt the best and the worst become ``chosen`` and ``rejected``.

    Without a student the model judges its own answers. Scores that are no number within their range are broken replies: asked for
    again, then left out. Prompts whose answers are equal, or whose scores lie closer than ``gap``, teach no preference and fall out.

    Raises:
        InterfuseError: ``needs.capability`` for ``likelihood`` with a model that gives no log-probabilities; what asking raises.
    """
    student = work.student or work.lm
    examples = examples_of(work)
    written = work.ask(
        student, [put(student, e, "") for e in examples], "answers", temperature=temperature, n=candidates
    )
    answers: list[tuple[Asked, list[str]]] = []
    for example, replies in zip(examples, written, strict=True):
        good: dict[str, str] = {}
        for reply in replies:
            reason = unusable(reply, cut=work.settings.cut and judge != "revise")
            if reason:
                work.drop(f"an answer is {reason}" if reason != "empty" else "an answer is empty", prompt=example.prompt, reply=reply.text)  # fmt: skip
            else:
                good.setdefault(answer_key(reply.text), trimmed(student, reply.text))
        if len(good) >= (1 if judge == "revise" else 2):
            answers.append((example, list(good.values())))
        else:
            work.drop("there are no two answers that differ", prompt=example.prompt)
    yield from _revised(work, answers, aspects, ratio) if judge == "revise" else _ranked(work, answers, judge, aspects, top, gap, ratio)  # fmt: skip


def _about(lm: LM, told: str, asked: Asked, answer: str) -> Prompt:
    return request(lm, told, f"Prompt:\n{asked.words}\n\nThe student's answer:\n{answer.strip()}", answer="JSON:")


def _ranked(
    work: Work, answers: Sequence[tuple[Asked, list[str]]], judge: str, aspects: str, top: int, gap: float, ratio: float | None
) -> Iterator[dict[str, Any]]:  # fmt: skip
    pairs = [(example, text) for example, texts in answers for text in texts]
    scored = _likelihoods(work, pairs) if judge == "likelihood" else _scores(work, pairs, aspects, top)
    place = iter(scored)
    for example, texts in answers:
        known = [(score, why, text) for text, (score, why) in zip(texts, place, strict=False) if score is not None]
        if len(known) < 2:
            work.drop("fewer than two answers have a score", prompt=example.prompt)
            continue
        best, worst = max(known, key=lambda k: k[0]), min(known, key=lambda k: k[0])
        if best[0] <= worst[0] or best[0] - worst[0] < gap:
            work.drop("no answer is better than the others", prompt=example.prompt)
        elif not _alike(best[2], worst[2], ratio):
            work.drop("one answer is much longer than the other", prompt=example.prompt)
        else:
            yield preferred(
                example, best[2], worst[2], chosen_score=best[0], rejected_score=worst[0], critique=worst[1]
            )


def _scores(work: Work, pairs: Sequence[tuple[Asked, str]], aspects: str, top: int) -> list[tuple[float | None, str]]:
    told = JUDGE.format(aspects=aspects, top=top)
    prompts = [_about(work.lm, told, example, text) for example, text in pairs]
    found = work.ask_records(work.lm, prompts, "scores", SCORED, needed=("score",), temperature=0.0, schema=_schema(SCORED),
                             usable=lambda row: number_of(row["score"], 1, top) is not None)  # fmt: skip
    return [(number_of(rows[0]["score"], 1, top), str(rows[0].get("critique") or "").strip()) if rows else (None, "") for rows in found]  # fmt: skip


def _likelihoods(work: Work, pairs: Sequence[tuple[Asked, str]]) -> list[tuple[float | None, str]]:
    asked = [put(work.lm, example, "") for example, _ in pairs]
    before = [_rendered(work.lm, prompt) for prompt in asked]
    scored = work.lm.score([(b, text) for b, (_, text) in zip(before, pairs, strict=True)], ctx=work.ctx)
    return [(s.logprob / max(s.tokens, 1), "") for s in scored]


def _rendered(lm: Any, prompt: Prompt) -> str:
    """A prompt as the text that answers follow."""
    if isinstance(prompt, str):
        return prompt
    inner = getattr(lm, "inner", lm)
    return inner.render(prompt) if isinstance(inner, LocalLM) else flat(prompt) + "\n"


def _revised(
    work: Work, answers: Sequence[tuple[Asked, list[str]]], aspects: str, ratio: float | None
) -> Iterator[dict[str, Any]]:
    told = REVISE.format(aspects=aspects)
    prompts = [_about(work.lm, told, example, texts[0]) for example, texts in answers]
    found = work.ask_records(work.lm, prompts, "revisions", REVISED, needed=("revision",), temperature=0.0, schema=_schema(REVISED))  # fmt: skip
    for (example, texts), rows in zip(answers, found, strict=True):
        better = str(rows[0]["revision"]).strip() if rows else ""
        space = texts[0][
            : len(texts[0]) - len(texts[0].lstrip())
        ]  # what goes on a text begins as the student's answer did
        if not better:
            work.drop("no reply could be read", prompt=example.prompt)
        elif answer_key(better) == answer_key(texts[0]):
            work.drop("nothing was corrected", prompt=example.prompt)
        elif not _alike(better, texts[0], ratio):
            work.drop("one answer is much longer than the other", prompt=example.prompt)
        else:
            yield preferred(example, space + better, texts[0], critique=str(rows[0].get("critique") or "").strip())


def _alike(first: str, second: str, ratio: float | None) -> bool:
    lengths: Mapping[str, int] = {"a": len(first.split()), "b": len(second.split())}
    return ratio is None or max(lengths.values()) <= ratio * max(min(lengths.values()), 1)
