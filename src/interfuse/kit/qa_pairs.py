"""Questions and answers out of passages: by patterns or by a model, filtered, in the formats that trainers read (Buehler 2024)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interfuse.kit.near_duplicates import distinct
from interfuse.kit.tuple_search import STOP_WORDS

#: third person -> base form of verbs whose object answers a question
VERBS = {
    "causes": "cause", "contains": "contain", "produces": "produce", "requires": "require", "uses": "use", "includes": "include",
    "prevents": "prevent", "increases": "increase", "reduces": "reduce", "describes": "describe", "measures": "measure", "forms": "form",
    "supports": "support", "controls": "control", "provides": "provide", "determines": "determine", "affects": "affect",
    "connects": "connect", "borders": "border", "orbits": "orbit", "eats": "eat", "means": "mean", "stores": "store", "returns": "return",
}  # fmt: skip
_SUBJECT = r"(?P<x>(?:(?:The|A|An)\s+)?[A-Z][\w-]*(?:\s+[\w-]+){0,5}?)"
_DEFINITION = re.compile(rf"^{_SUBJECT}\s+(?P<be>is|are|was|were)\s+(?P<y>(?:an?|the|one of)\s+[^.;]+)\.?$")
_WHERE = re.compile(
    rf"^{_SUBJECT}\s+(?P<be>is|are|was|were)\s+(?P<how>located|situated|born|built)\s+(?P<y>(?:in|at|on|near)\s+[^.;]+)\.?$"
)
_USED = re.compile(rf"^{_SUBJECT}\s+(?P<be>is|are)\s+used\s+(?:for|to|as)\s+(?P<y>[^.;]+)\.?$")
_VERB = re.compile(rf"^{_SUBJECT}\s+(?P<verb>{'|'.join(VERBS)})\s+(?P<y>[^.;]+)\.?$")
_BECAUSE = re.compile(r"^(?P<main>[A-Z][^.;]*?),?\s+because\s+(?P<y>[^.;]+)\.?$")
#: what a question or answer must not lean on
DANGLING = re.compile(
    r"\b(?:this|that|the (?:above|following|given|present|previous))\s+(?:figure|table|chapter|section|text|passage|paragraph|paper|article|book|"
    r"author|study|work|equation)s?\b|\b(?:the|this) (?:author|passage|text|paragraph|chapter|section)s?\b|\b(?:Fig|Eq|Ref|Sec)s?\.?\s*\d|"
    r"\bet al\b|\[\d+\]|\bas (?:shown|mentioned|described|discussed) (?:above|below|earlier)\b", re.IGNORECASE)  # fmt: skip
_PRONOUN = re.compile(
    r"^(?:It|He|She|They|This|These|That|Those|Such|There|Here|We|I|You|Its|His|Her|Their|Both|Each|Some|Many|Most)\b"
)


@dataclass(frozen=True)
class Pair:
    """A question with its answer, and the characters of the passage that say so."""

    question: str
    answer: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Told:
    """A triple that a sentence states in one of the patterns."""

    subject: str
    relation: str
    object: str


def _bare(subject: str) -> str:
    words = subject.split()
    return " ".join([words[0].lower(), *words[1:]]) if words[0] in ("The", "A", "An") else subject


def by_patterns(passage: str, spans: Sequence[tuple[int, int]]) -> list[tuple[Pair, Told | None]]:
    """Definition, place, use, effect and reason questions from sentences that stand on their own.

    Args:
        spans: (start, end) of the passage's sentences. A question's answer is its whole sentence.
    """
    found: list[tuple[Pair, Told | None]] = []
    for start, end in spans:
        said = " ".join(passage[start:end].split())
        if _PRONOUN.match(said) or len(said.split()) < 4:
            continue
        answer = said if said.endswith(".") else said + "."
        if m := _BECAUSE.match(said):
            main = (
                m["main"]
                if m["main"].split()[0].isupper() or m["main"].split()[0] not in ("The", "A", "An")
                else _bare(m["main"])
            )
            found.append((Pair(f"Why is it that {main}?", answer, start, end), None))
        elif m := _WHERE.match(said):
            found.append((Pair(f"Where {m['be']} {_bare(m['x'])} {m['how']}?", answer, start, end),
                          Told(_plain(m["x"]), f"{m['how']} {m['y'].split()[0]}", _plain(" ".join(m["y"].split()[1:])))))  # fmt: skip
        elif m := _USED.match(said):
            found.append(
                (
                    Pair(f"What {m['be']} {_bare(m['x'])} used for?", answer, start, end),
                    Told(_plain(m["x"]), "used for", _plain(m["y"])),
                )
            )
        elif m := _DEFINITION.match(said):
            asked = (
                "Who"
                if re.match(
                    r"(?:an?|the)\s+(?:[\w-]+\s+){0,3}(?:author|writer|king|queen|scientist|engineer|painter|president|politician)\b",
                    m["y"],
                )
                else "What"
            )
            kind = re.split(
                r"\s+(?:that|which|who|whose|where|in|of|for|with|from|on|at|by|used|made|found|known|called)\b|,",
                m["y"],
            )[0]
            found.append(
                (
                    Pair(f"{asked} {m['be']} {_bare(m['x'])}?", answer, start, end),
                    Told(_plain(m["x"]), "is a", _plain(kind)),
                )
            )
        elif m := _VERB.match(said):
            found.append(
                (
                    Pair(f"What does {_bare(m['x'])} {VERBS[m['verb']]}?", answer, start, end),
                    Told(_plain(m["x"]), VERBS[m["verb"]], _plain(m["y"])),
                )
            )
    return found


def _plain(words: str) -> str:
    return re.sub(r"^(?:the|an?|one of the)\s+", "", words.strip().rstrip(".,"), flags=re.IGNORECASE)


def content_words(text: str) -> set[str]:
    """Words in lower case that are no stop words."""
    return {w for w in re.findall(r"[^\W_]+", text.lower()) if w not in STOP_WORDS}


def support(answer: str, passage: str) -> float:
    """The share of an answer's content words that the passage holds (numbers and words alike)."""
    words = content_words(answer)
    return len(words & content_words(passage)) / len(words) if words else 0.0


def why_not(pair: Pair, passage: str, *, supported: float = 0.6, question_words: tuple[int, int] = (3, 60),
            answer_words: tuple[int, int] = (4, 300)) -> str:  # fmt: skip
    """Why a pair is not fit for training; empty when it is."""
    question, answer = pair.question.strip(), pair.answer.strip()
    if not question or not answer:
        return "empty"
    if answer.rstrip("?. ").lower() == question.rstrip("?. ").lower():
        return "the answer is the question"
    if answer.endswith("?"):
        return "the answer is a question"
    if not question_words[0] <= len(question.split()) <= question_words[1]:
        return "question too short or too long"
    if not answer_words[0] <= len(answer.split()) <= answer_words[1]:
        return "answer too short or too long"
    if DANGLING.search(question) or DANGLING.search(answer):
        return "leans on the passage"
    letters = sum(c.isalpha() for c in question + answer)
    if letters < 0.5 * len(question + answer):
        return "hardly any words"
    if support(answer, passage) < supported - 1e-12:
        return "the passage does not say so"
    return ""


def without_doubles(pairs: Sequence[Pair], threshold: float = 0.8) -> list[int]:
    """The places of pairs whose question is no near duplicate of an earlier one."""
    return distinct([p.question for p in pairs], threshold=threshold, size=2)


_QUESTION = re.compile(r"(?:^|\n)\s*(?:\d+[.)]\s*)?(?:Q(?:uestion)?)\s*\d*\s*[:.]\s*(?P<q>.+?)\s*\n\s*(?:A(?:nswer)?)\s*\d*\s*[:.]\s*(?P<a>.+?)(?=\n\s*(?:\d+[.)]\s*)?Q(?:uestion)?\s*\d*\s*[:.]|\Z)",
                       re.DOTALL | re.IGNORECASE)  # fmt: skip


def read_pairs(reply: str) -> list[Pair]:
    """``Question: ... Answer: ...`` pairs in a reply; anything else in it is ignored."""
    return [Pair(" ".join(m["q"].split()), " ".join(m["a"].split())) for m in _QUESTION.finditer(reply)]


def as_messages(pair: Pair) -> dict[str, Any]:
    """The chat form that trl reads."""
    return {"messages": [{"role": "user", "content": pair.question}, {"role": "assistant", "content": pair.answer}]}


def as_alpaca(pair: Pair) -> dict[str, str]:
    """Instruction, input, output."""
    return {"instruction": pair.question, "input": "", "output": pair.answer}


def as_sharegpt(pair: Pair) -> dict[str, Any]:
    """Conversations of human and gpt."""
    return {"conversations": [{"from": "human", "value": pair.question}, {"from": "gpt", "value": pair.answer}]}
