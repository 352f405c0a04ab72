"""Getting examples out of a language model: requests in the form it reads, replies kept one by one, records mended, all counted.

Nothing here knows a method. A reply that is kept is not asked for again: an endpoint's ever, a local model's until the work is done.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.data.lm import LM, CachedLM, Prompt, RecordedLM, Reply, cached
from interfuse.data.local_lm import LocalLM
from interfuse.kit.document_prompts import corrected
from interfuse.kit.mended_replies import records
from interfuse.kit.near_duplicates import plain_key

#: prompts that a model here is asked at once, and that are kept before the next ones
AT_ONCE = 32
#: beginnings of replies that answer nothing
_REFUSALS = re.compile(
    r"\W*(?:(?:i(?:'|’)?m|i am) (?:very |so )?sorry\b|i (?:can(?:'|’)?t|cannot|am (?:not able|unable)|won(?:'|’)?t)\b[^.]{0,60}\b(?:help|assist|answer|provide|comply|do that)"
    r"|as an ai\b|as a(?:n ai|) language model\b)",
    re.IGNORECASE,
)


@dataclass
class Account:
    """What was asked and what became of it.

    Attributes:
        asked: model -> counts of prompts (those whose reply was kept before too), tokens read and written. lost: reason -> how many
            candidates fell out for it. notes: other counts.
    """

    asked: dict[str, dict[str, int]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, amount: int = 1) -> None:
        """Counts candidates that fell out."""
        self.lost[reason] = self.lost.get(reason, 0) + amount

    def note(self, what: str, amount: int = 1) -> None:
        """Counts something else."""
        if amount:
            self.notes[what] = self.notes.get(what, 0) + amount

    def said(self, name: str, prompts: int, replies: Sequence[Sequence[Reply]]) -> None:
        """Counts a call of a model."""
        row = self.asked.setdefault(name, {"prompts": 0, "tokens read": 0, "tokens written": 0})
        row["prompts"] += prompts
        row["tokens read"] += sum(r[0].prompt_tokens for r in replies if r)
        row["tokens written"] += sum(one.tokens for r in replies for one in r)


def keeping(lm: LM, ctx: Ctx) -> LM:
    """The model with its replies kept: those of an endpoint in the cache, others beside the unfinished work (if that is kept)."""
    if isinstance(lm, CachedLM):
        return lm
    if isinstance(lm, EndpointLM):
        return cached(lm, ctx)
    return lm if ctx.scratch is None else CachedLM(lm, ctx.scratch / "replies", AT_ONCE)


def reads_turns(lm: LM) -> bool:
    """Whether the model is asked in messages: not where it was not trained for chat, nor where replies were recorded as texts."""
    inner = lm.inner if isinstance(lm, CachedLM) else lm
    if isinstance(inner, RecordedLM) or (isinstance(inner, EndpointLM) and inner.api != "chat"):
        return False
    return not isinstance(inner, LocalLM) or bool(inner.tokenizer.chat_template)


def request(
    lm: LM, instruction: str, text: str, shots: Sequence[tuple[str, str]] = (), *, answer: str = "Answer:"
) -> Prompt:
    """An instruction, worked examples and a text, as the model reads them.

    Args:
        shots: (text, answer) pairs that show what is wanted. answer: what a model that is not for chat goes on from.
    """
    if reads_turns(lm):
        turns = [{"role": "system", "content": instruction}] if instruction else []
        for asked, said in shots:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return [*turns, {"role": "user", "content": text}]
    parts = [instruction] if instruction else []
    parts += [f"{asked}\n{answer} {said}" for asked, said in shots]
    return "\n\n".join([*parts, f"{text}\n{answer}"]) if parts else text


def flat(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as one text, for models that read no turns."""
    return "\n\n".join(str(m["content"]) for m in messages)


def ask(
    lm: LM, prompts: Sequence[Prompt], ctx: Ctx, account: Account, *, max_tokens: int, temperature: float, top_p: float = 1.0,
    n: int = 1, seed: int = 0, stop: Sequence[str] = (), schema: Mapping[str, Any] | None = None,
) -> list[list[Reply]]:  # fmt: skip
    """``n`` replies per prompt, in their order; what was asked and found is counted.

    Raises:
        InterfuseError: ``budget.spent``, ``endpoint.failed`` ..., after what was answered so far has been kept.
    """
    if not prompts:
        return []
    before = lm.found if isinstance(lm, CachedLM) else 0
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "n": n, "seed": seed,
                               "stop": tuple(stop), "schema": schema}  # fmt: skip
    replies = lm.generate(prompts, **options, ctx=ctx)
    kept = lm.found - before if isinstance(lm, CachedLM) else 0
    if kept:
        ctx.log(f"resuming: {kept} of {len(prompts)} replies of {lm.name} were there")
    account.said(lm.name, len(prompts), replies)
    return replies


def ask_records(
    lm: LM, prompts: Sequence[Prompt], ctx: Ctx, account: Account, fields: Sequence[str], *, needed: Sequence[str] = (),
    usable: Callable[[Mapping[str, Any]], bool] | None = None, tries: int = 2, max_tokens: int, temperature: float, top_p: float = 1.0,
    seed: int = 0, schema: Mapping[str, Any] | None = None,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """The records of every reply, mended where they are broken; a reply of which nothing can be read is asked for again, told what was wrong.

    Args:
        fields: of a record. needed: those without which it is lost (all when empty). usable: refuses a record whose values make no sense.
        tries: times a prompt is asked at most.

    Returns:
        per prompt its records; none where no try gave any (counted).
    """
    found: list[list[dict[str, Any]]] = [[] for _ in prompts]
    waiting: dict[int, Prompt] = dict(enumerate(prompts))
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "schema": schema}  # fmt: skip
    for attempt in range(tries):
        asked = list(waiting.items())
        replies = ask(lm, [p for _, p in asked], ctx, account, **options)
        for (i, prompt), (reply, *_) in zip(asked, replies, strict=True):
            made = records(reply.text, fields, needed=needed)
            account.note("records mended", made.mended)
            account.note("records lost in replies", made.lost)
            rows = [row for row in made.rows if usable is None or usable(row)]
            account.note("records that make no sense", len(made.rows) - len(rows))
            if rows:
                found[i] = rows
                del waiting[i]
                continue
            account.note("replies that could not be read")
            if attempt + 1 < tries:
                problem = f"no record could be read from it; every record has the fields {', '.join(needed or fields)}"
                if isinstance(lm, CachedLM):
                    lm.forget(prompt, **options)
                waiting[i] = (
                    f"{prompt}\n{reply.text[:4000]}\n\nThat reply cannot be used: {problem}. Answer again, with the JSON only."
                    if isinstance(prompt, str)
                    else corrected(prompt, reply.text, [problem])
                )
        if not waiting:
            break
    return found


def refuses(text: str) -> bool:
    """Whether a reply begins as refusals do."""
    return bool(_REFUSALS.match(text))


def unusable(reply: Reply, *, cut: bool) -> str:
    """Why a reply is no example: it is empty, refuses, or (``cut``) ends because its tokens did. Empty when it is one."""
    if not reply.text.strip():
        return "empty"
    if refuses(reply.text):
        return "a refusal"
    return "cut off at max_tokens" if cut and reply.finish == "length" else ""


def trimmed(lm: LM, text: str) -> str:
    """A reply as it stands in an example: without space around it; where it goes on a text, the space before it is part of it."""
    return text.strip() if reads_turns(lm) else text.rstrip()


def rouge_above(candidate: str, others: Sequence[str], threshold: float) -> bool:
    """Whether ROUGE-L F1 of a text with any of the others is at least ``threshold``; shared words bound it, so few are compared."""
    from interfuse.kit.near_duplicates import rouge_l

    mine = plain_key(candidate).split()
    bag = Counter(mine)
    for other in others:
        theirs = plain_key(other).split()
        whole = len(mine) + len(theirs)
        if not mine or not theirs or 2 * min(len(mine), len(theirs)) < threshold * whole:
            continue
        shared = sum((bag & Counter(theirs)).values())
        if 2 * shared >= threshold * whole and rouge_l(candidate, other) >= threshold:
            return True
    return False


def number_of(value: Any, low: float, high: float) -> float | None:
    """A score as a number within its range: a number, or the first one in a text such as ``7/10``; None otherwise."""
    match = re.search(r"-?\d+(?:\.\d+)?", str(value)) if not isinstance(value, bool) else None
    score = float(match.group()) if match else float("nan")
    return score if low <= score <= high else None


def prompts_and_answers(table: Any) -> tuple[list[Any], list[str]]:
    """What a table asks, and what it answers: prompts with responses ("" without), or conversations up to their last answer.

    Raises:
        InterfuseError: ``input.missing`` for a table of another kind or an empty prompt, ``input.empty`` for a conversation that asks nothing.
    """
    if table.kind not in ("prompt", "messages"):
        raise InterfuseError("input.missing", "there are no prompts in the table", where=table.name,
                             fix="Declare a column: columns: {prompt: NAME}, or messages.")  # fmt: skip
    if table.kind == "prompt":
        prompts = table.values("prompt")
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise InterfuseError(
                    "input.missing", "the prompt is empty", where=f"{table.name}: row {int(table.rows[row])}"
                )
        answers = table.values("response") if "response" in table.columns else [""] * len(prompts)
        return list(prompts), [str(a) if a is not None else "" for a in answers]
    asked, answers = [], []
    for row, messages in enumerate(table.values("messages")):
        turns = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
        said = ""
        while turns and turns[-1]["role"] == "assistant":
            said = turns.pop()["content"]
        if not turns:
            raise InterfuseError(
                "input.empty", "the conversation asks nothing", where=f"{table.name}: row {int(table.rows[row])}"
            )
        asked.append(turns)
        answers.append(said)
    return asked, answers
