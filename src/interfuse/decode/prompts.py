"""Prompts of a stream: texts, conversations, and questions with a context, as one stream's tokenizer reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interfuse.core.errors import InterfuseError


@dataclass(frozen=True)
class Contexts:
    """How a context becomes part of a prompt, whether the method reads the prompt without it too, and whether a question is a turn of a
    conversation where the tokenizer has a template."""

    template: str
    needed: bool
    chat: bool = True

    def join(self, context: str, question: str) -> str:
        """The question with its context; just the question where there is none."""
        return self.template.replace("{context}", context).replace("{question}", question) if context else question


def texts_of(
    prompt: Any, tokenizer: Any, contexts: Contexts, *, plain: bool, name: str, where: str
) -> tuple[str, bool]:
    """The text a stream reads for a prompt, and whether it stands for itself (else it is a conversation with its own start tokens).

    Args:
        prompt: a text (read as it is), messages with ``role`` and ``content`` (a message of the role ``context`` holds the context
            of the last user message), or a table with ``question`` and ``context``.
        plain: leave the context out. name: the stream, for errors.

    Raises:
        InterfuseError: ``input.type``, ``input.empty``, ``input.missing`` or ``needs.capability``.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise InterfuseError("input.empty", "the prompt is empty", where=where)
        return prompt, True
    if isinstance(prompt, Mapping):
        if "question" not in prompt:
            raise InterfuseError("input.missing", "a prompt given as a table has a question", where=where)
        if contexts.needed and "context" not in prompt:
            raise InterfuseError("input.missing", "the method compares the answer with and without a context, and there is none", where=where,
                                 fix="Give each question its context; an empty one leaves the model as it is.")  # fmt: skip
        context = "" if plain else str(prompt.get("context") or "")
        question = str(prompt["question"])
        if not tokenizer.chat_template or not contexts.chat:
            return contexts.join(context, question), True
        return _rendered([{"role": "user", "content": contexts.join(context, question)}], tokenizer, name), False
    messages = list(prompt) if isinstance(prompt, Sequence) else None
    if messages is None or not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in messages):
        raise InterfuseError(
            "input.type", "a prompt is a text, a question with its context, or a list of messages", where=where
        )
    context = "" if plain else "\n".join(str(m["content"]) for m in messages if m["role"] == "context")
    rest = [dict(m) for m in messages if m["role"] != "context"]
    if not rest:
        raise InterfuseError("input.empty", "the conversation holds no message", where=where)
    if context:
        last = next((m for m in reversed(rest) if m["role"] == "user"), None)
        if last is None:
            raise InterfuseError(
                "input.missing", "a context belongs to a user's message, and there is none", where=where
            )
        last["content"] = contexts.join(context, str(last["content"]))
    return _rendered(rest, tokenizer, name), False


def _rendered(messages: Sequence[Mapping[str, Any]], tokenizer: Any, name: str) -> str:
    if not tokenizer.chat_template:
        raise InterfuseError("needs.capability", f"the tokenizer of the stream {name} has no chat template", where=name,
                             fix="Give the prompt as a text, or add templates: main to use the main model's for all.")  # fmt: skip
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def ids_of(text: str, tokenizer: Any, *, raw: bool) -> list[int]:
    """Token ids of a prompt's text; an end token that the tokenizer added is left out.

    Args:
        raw: the text is the prompt itself, so that start tokens are added; a rendered conversation has its own.
    """
    ids = list(tokenizer(text, add_special_tokens=raw)["input_ids"])
    end = tokenizer.eos_token_id
    return ids[:-1] if ids and ids[-1] == end and not text.endswith(str(tokenizer.eos_token)) else ids
