"""Verifiers of answers: equal to the known one, the same number, of a form, found right by another model, agreed on by most."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal

from interfuse.core.errors import InterfuseError

Kind = Literal["exact", "number", "pattern", "judge", "agreement"]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        InterfuseError: ``param.value`` naming what is wrong with it.
    """
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InterfuseError("param.value", f"{pattern!r} is no regular expression: {error}", where=where) from error


def answer_of(text: str, pattern: re.Pattern[str] | None) -> str:
    """The answer that stands in a text: the last match of the pattern (its first group, where it has one), or the whole text."""
    if pattern is None:
        return text.strip()
    found = list(pattern.finditer(text))
    if not found:
        return ""
    return (found[-1].group(1) if pattern.groups else found[-1].group()).strip()


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exactly; thousands may be parted by commas."""
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")).normalize() if found else None
    except InvalidOperation:
        return None


def answer_key(answer: str) -> str:
    """An answer to be compared by: lower case, single spaces, no marks around it (a minus sign stays)."""
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split()).strip(" .,;:!?\"'“”‘’`*$#()[]{}")


def same_words(answer: str, known: str) -> bool:
    """Equal but for case, spacing and marks around them; never for empty ones."""
    return bool(answer_key(answer)) and answer_key(answer) == answer_key(known)


def same_number(answer: str, known: str) -> bool:
    """Whether the last numbers of both are equal."""
    a, b = last_number(answer), last_number(known)
    return a is not None and a == b


def majority(answers: Sequence[str]) -> tuple[str, float]:
    """The answer given most often (words compared by :func:`same_words`, the first of equals) and its share of all; "" for none."""
    counts: dict[str, int] = {}
    for answer in answers:
        key = answer_key(answer)
        if key:
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        return "", 0.0
    best = max(counts, key=lambda k: counts[k])
    return best, counts[best] / len(answers)
