"""Self-knowledge: a model's own answers that a verifier passes become its lessons (STaR, Zelikman et al. 2022; rejection sampling)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.kit.asking import p_yes
from interfuse.kit.eliciting import trimmed, unusable
from interfuse.kit.verifiers import Kind, answer_key, answer_of, compiled, majority, same_number, same_words
from interfuse.synthesize.examples import (
    Asked,
    answer_columns,
    answered,
    examples_of,
    preference_columns,
    preferred,
    put,
    refuse_kinds,
    size_of,
)
from interfuse.synthesize.room import Work

HINT = "(The answer is {answer}. Explain how it is found, and end with it.)"


def _plan(call: Call) -> list[tuple[str, int, int]]:
    p, (rows, tokens) = call.params, size_of(call)
    around = len(p["instruction"]) // 4
    plan = [("lm", rows, tokens + rows * (around + p["samples"] * p["max_tokens"]))]
    plan += [("lm", rows, tokens + rows * (around + len(HINT) // 4 + p["max_tokens"]))] if p["hint"] else []
    if p["verify"] == "judge":
        plan.append(("verifier", 2 * rows * p["samples"], 2 * p["samples"] * (tokens + rows * p["max_tokens"])))
    return plan


def _valid(call: Call) -> None:
    p, table = call.params, call.inputs["data"]
    refuse_kinds(call, "prompt", "messages")
    compiled(p["pattern"], "pattern")
    if p["verify"] == "pattern" and not p["pattern"]:
        raise InterfuseError("param.missing", "the verifier needs the pattern an answer must match", where="pattern")
    if p["verify"] in ("exact", "number") and table.kind == "prompt" and "response" not in table.columns:
        raise InterfuseError("input.missing", f"verify: {p['verify']} compares with known answers, the table has none", where=table.name,
                             fix="Declare the column: columns: {prompt: NAME, response: NAME}; or verify: agreement, pattern or judge.")  # fmt: skip
    if p["hint"] and p["verify"] not in ("exact", "number"):
        raise InterfuseError("param.value", "a hint tells the known answer, which only exact and number have", where="hint")  # fmt: skip
    if p["verify"] == "agreement" and p["samples"] < 2:
        raise InterfuseError("param.value", "one sample agrees with itself", where="samples", fix="Draw at least 2.")
    if (p["verify"] == "judge") != (call.inputs.get("verifier") is not None):
        raise InterfuseError("param.value", "a verifier is given where, and only where, verify is judge", where="verifier",
                             fix="Name the model that judges as verifier, or choose verify: exact, number, pattern or agreement.")  # fmt: skip


def _columns(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    return (preference_columns if params["pairs"] else answer_columns)(params, inputs)


def _rows(call: Call) -> int:
    return len(call.inputs["data"]) * (1 if call.params["pairs"] else call.params["per_prompt"])


@method(needs=("data",), takes=("verifier",), columns=_columns, plan=_plan, valid=_valid, rows=_rows)
def self_knowledge(
    work: Work,
    *,
    verify: Annotated[
        Kind,
        Field(
            description="exact: the known answer; number: the same last number; pattern: the reply matches; judge: the verifier says yes; agreement: most samples say so"
        ),
    ] = "exact",
    samples: Annotated[int, Field(ge=1, le=64, description="answers drawn per prompt")] = 4,
    per_prompt: Annotated[int, Field(ge=1, le=64, description="different passed answers kept per prompt")] = 1,
    instruction: Annotated[str, Field(description="what the model is told before every prompt; it is not in what comes out")] = "",
    pattern: Annotated[
        str, Field(description="regular expression whose last match (first group) is the answer in a reply; empty: all of it")
    ] = "",
    least: Annotated[float, Field(ge=0, le=1, description="least share that agrees, or probability that the judge says yes")] = 0.5,
    hint: Annotated[
        bool, Field(description="where every sample fails, ask once more with the known answer told, and verify that too")
    ] = False,
    pairs: Annotated[bool, Field(description="make preferences: a passed answer over a failed one to the same prompt")] = False,
    temperature: Annotated[float, Field(ge=0, description="of the model when it writes")] = 0.7,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Draws ``samples`` answers per prompt and keeps those that pass; all that fails is counted and written down.

    Raises:
        InterfuseError: ``input.missing`` for a row without the known answer that its verifier compares with; what asking raises.
    """
    examples = examples_of(work)
    form = compiled(pattern, "pattern") if pattern else None
    if verify in ("exact", "number"):
        for row, example in enumerate(examples):
            if not example.answer.strip():
                raise InterfuseError(
                    "input.missing", "the known answer is empty", where=f"{work.need_table().name}: example {row}"
                )
    drawn = work.ask(work.lm, [put(work.lm, e, instruction) for e in examples], "samples", temperature=temperature, n=samples)  # fmt: skip
    sets: list[tuple[Asked, list[str], list[str]]] = []
    for example, replies in zip(examples, drawn, strict=True):
        said = []
        for reply in replies:
            reason = unusable(reply, cut=work.settings.cut)
            if reason:
                work.drop(reason, prompt=example.prompt, reply=reply.text)
            else:
                said.append(trimmed(work.lm, reply.text))
        sets.append((example, list(dict.fromkeys(said)), said))
    passed, failed = [], []
    for (_, texts, _), good in zip(sets, _verdicts(work, sets, verify, form, least), strict=True):
        passed.append([t for t, ok in zip(texts, good, strict=True) if ok])
        failed.append([t for t, ok in zip(texts, good, strict=True) if not ok])
    work.account.note("prompts solved by a sample", sum(map(bool, passed)))
    if hint:
        _hinted(work, examples, passed, instruction, verify, form, least)
    for example, right, wrong in zip(examples, passed, failed, strict=True):
        for text in wrong:
            work.drop("the verifier does not pass it", prompt=example.prompt, reply=text)
        if pairs:
            if right and wrong:
                yield preferred(example, right[0], wrong[0])
            else:
                work.drop("every sample fails" if wrong or not right else "no sample fails", prompt=example.prompt)
        else:
            for text in right[:per_prompt]:
                yield answered(example, text)


def _verdicts(
    work: Work, sets: Sequence[tuple[Asked, Sequence[str], Sequence[str]]], verify: Kind, form: Any, least: float
) -> list[list[bool]]:
    """Whether each of the different texts of every example passes; the last of a set are all its samples, for the share that agrees."""
    if verify == "judge":
        assert work.verifier is not None, "refused before work"
        asked = [
            f"{e.words}\nProposed answer: {t.strip()}\nIs the proposed answer right?"
            for e, texts, _ in sets
            for t in texts
        ]
        sure = iter(p_yes(work.verifier, asked, ctx=work.ctx).tolist())
        return [[next(sure) >= least for _ in texts] for _, texts, _ in sets]
    return [_by_rule(example, texts, said, verify, form, least) for example, texts, said in sets]


def _by_rule(
    example: Asked, texts: Sequence[str], said: Sequence[str], verify: Kind, form: Any, least: float
) -> list[bool]:
    if verify == "pattern":
        return [bool(form.search(t)) for t in texts]
    if verify == "agreement":
        best, share = majority([answer_of(t, form) for t in said])
        return [share >= least and bool(best) and answer_key(answer_of(t, form)) == best for t in texts]
    known = answer_of(example.answer, form) or example.answer
    same = same_number if verify == "number" else same_words
    return [same(answer_of(t, form), known) for t in texts]


def _hinted(
    work: Work, examples: Sequence[Asked], passed: list[list[str]], instruction: str, verify: Kind, form: Any, least: float
) -> None:  # fmt: skip
    """Rationalisation: the unsolved ones again with their answer told; what passes is kept without the hint."""
    open_ones = [i for i, found in enumerate(passed) if not found]
    prompts = []
    for i in open_ones:
        told = HINT.format(answer=answer_of(examples[i].answer, form) or examples[i].answer.strip())
        asked = examples[i].prompt
        with_hint = f"{asked}\n{told}" if isinstance(asked, str) else [*asked[:-1], {**asked[-1], "content": f"{asked[-1]['content']}\n{told}"}]  # fmt: skip
        prompts.append(put(work.lm, Asked(with_hint), instruction))
    for i, (reply, *_) in zip(open_ones, work.ask(work.lm, prompts, "hints", temperature=0.0), strict=True):
        text = trimmed(work.lm, reply.text)
        if unusable(reply, cut=work.settings.cut):
            continue
        if _by_rule(examples[i], [text], [text], verify, form, least)[0]:
            passed[i].append(text)
            work.account.note("prompts solved with a hint")
        else:
            work.drop("the verifier does not pass it, with a hint", prompt=examples[i].prompt, reply=text)
