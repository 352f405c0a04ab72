"""Asking a language model: prompts in the form it reads, yes-or-no questions with a probability, numbered lists read back."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.data.lm import LM, Message, Prompt, RecordedLM, cached

_NUMBERED = re.compile(r"^\s*(?:\(?\d{1,4}[.):]|[-*•])\s*(.+?)\s*$")


def _local(lm: Any) -> Any:
    """The model where it computes here, else None. Nothing is imported for that: whoever made a local model has imported its module."""
    module = sys.modules.get("interfuse.data.local_lm")
    return lm if module is not None and isinstance(lm, module.LocalLM) else None


def prepared(lm: LM, ctx: Ctx) -> LM:
    """The model itself where it computes here, else with its replies kept, so that none is paid twice."""
    return lm if isinstance(lm, RecordedLM) or _local(lm) is not None else cached(lm, ctx)


def for_chat(lm: LM) -> bool:
    """Whether the model was trained for chat, as far as can be told: a local one without a chat template was not."""
    local = _local(lm)
    return local is None or bool(local.tokenizer.chat_template)


def said_to(lm: LM, text: str) -> Prompt:
    """A request as the model reads it: as a user's message where it was trained for chat, else as it stands."""
    if isinstance(lm, RecordedLM) or not for_chat(lm):
        return text
    return [{"role": "user", "content": text}]


def as_read(lm: LM, messages: Sequence[Message]) -> Prompt:
    """A conversation as the model reads it: as it is where it was trained for chat, else its turns one after another, to be continued."""
    return list(messages) if for_chat(lm) else "\n\n".join(m["content"] for m in messages) + "\n"


def p_yes(lm: LM, questions: Sequence[str], *, ctx: Ctx | None = None, shots: str = "") -> NDArray[np.float64]:
    """The probability of yes against no for each question, [N]: softmax of the log-probabilities of the two answers.

    A model that cannot score is asked to answer instead: then the values are 1, 0, or 0.5 for an answer that is neither.

    Args:
        shots: answered questions in front of each.
    """
    if not len(questions):
        return np.zeros(0)
    prompts = [f"{shots}Question: {q}\nAnswer:" for q in questions]
    try:
        scored = lm.score([(p, answer) for p in prompts for answer in (" yes", " no")], ctx=ctx)
    except InterfuseError as error:
        if error.code != "needs.capability":
            raise
        replies = lm.generate(
            [said_to(lm, f"{q} Answer with yes or no only.") for q in questions], max_tokens=4, ctx=ctx
        )
        words = [(re.findall(r"[a-z]+", r[0].text.lower()) or [""])[0] for r in replies]
        return np.array([{"yes": 1.0, "no": 0.0}.get(w, 0.5) for w in words])
    logs = np.array([s.logprob for s in scored]).reshape(-1, 2)
    return np.asarray(1 / (1 + np.exp(np.clip(logs[:, 1] - logs[:, 0], -500, 500))))


def numbered(text: str) -> list[str]:
    """The items of a list in a reply, without numbers, bullets, quotes and a final full stop; other lines are ignored."""
    found = [m[1] for line in text.splitlines() if (m := _NUMBERED.match(line))]
    marks = " \"“”'*`"
    return [item for item in (f.strip(marks).rstrip(".").strip(marks) for f in found) if item]
