"""Concepts of a text without a language model: runs of content words, counted over a collection, plurals folded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from interfuse.kit.tuple_search import STOP_WORDS

#: words that end a phrase although they are no stop words of English
WEAK = frozenset(
    [
        "using",
        "used",
        "use",
        "based",
        "show",
        "shows",
        "shown",
        "study",
        "studies",
        "paper",
        "result",
        "results",
        "method",
        "methods",
        "approach",
        "propose",
        "proposed",
        "present",
        "new",
        "via",
        "however",
        "thus",
        "well",
        "within",
        "across",
        "among",
        "several",
        "different",
        "large",
        "small",
        "high",
        "low",
        "many",
        "much",
        "various",
        "present",
        "here",
        "also",
        "et",
        "al",
        "fig",
        "figure",
        "table",
        "section",
        "we",
        "find",
        "found",
        "one",
        "two",
        "three",
        "given",
        "make",
        "makes",
        "made",
        "like",
    ]
)
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


def singular(word: str) -> str:
    """The singular of a regular English plural; anything else as it is."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def runs(text: str) -> list[list[str]]:
    """Runs of content words; stop words, numbers and signs end a run."""
    found = []
    for clause in re.split(r"[^\w\s-]|\n\s*\n", text):
        run: list[str] = []
        for word in [*_WORD.findall(clause), ""]:
            low = word.lower()
            if not word or low in STOP_WORDS or low in WEAK or low.isdigit() or len(low) < 2:
                if run:
                    found.append(run)
                run = []
            else:
                run.append(word)
    return found


def phrases(text: str, shortest: int = 1, longest: int = 4) -> dict[str, str]:
    """All sequences of ``shortest`` to ``longest`` words within runs of content words: folded form -> as first written."""
    found: dict[str, str] = {}
    for run in runs(text):
        for n in range(shortest, min(longest, len(run)) + 1):
            for i in range(len(run) - n + 1):
                part = run[i : i + n]
                found.setdefault(
                    " ".join([*(w.lower() for w in part[:-1]), singular(part[-1].lower())]), " ".join(part)
                )
    return found


def concepts(
    texts: Sequence[str], *, least: int = 3, most_share: float = 0.05, longest: int = 4, shortest: int = 2
) -> tuple[list[str], list[list[int]], Mapping[str, str]]:
    """The vocabulary of a collection and which of it each text carries.

    Args:
        least: texts that must carry a concept. most_share: share of the texts beyond which it is too general.
        shortest, longest: words of a concept. A phrase that mostly stands within a kept longer one is dropped.

    Returns:
        Names (folded), per text the indices of its concepts, and folded -> as first written.
    """
    own = [phrases(t, shortest, longest) for t in texts]
    counts: dict[str, int] = {}
    written: dict[str, str] = {}
    for found in own:
        for folded, form in found.items():
            counts[folded] = counts.get(folded, 0) + 1
            written.setdefault(folded, form)
    top = max(most_share * len(texts), least)
    kept = {n: c for n, c in counts.items() if least <= c <= top}
    within: dict[str, int] = {}
    for name, count in kept.items():
        words = name.split()
        for n in range(shortest, len(words)):
            for i in range(len(words) - n + 1):
                part = words[i : i + n]
                inner = " ".join([*part[:-1], singular(part[-1])])
                within[inner] = max(within.get(inner, 0), count)
    names = sorted(n for n, c in kept.items() if within.get(n, 0) < 0.8 * c)
    place = {n: i for i, n in enumerate(names)}
    return names, [[place[n] for n in found if n in place] for found in own], {n: written[n] for n in names}
