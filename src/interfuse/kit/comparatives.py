"""Comparisons of two things in English: plurals, comparative words, the form of a statement, and which statements contradict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interfuse.kit.language import ENDS_IN_S

AUXILIARIES = ("are", "can", "have", "need", "would", "may")
SINGULAR_AUXILIARIES = ("is", "can", "has", "needs", "would", "may")
ADVERBS = ("typically", "often", "always", "generally", "normally")
#: comparative forms and, where there is one, the form of the opposite
COMPARATIVES = [
    "heavier/lighter",
    "larger/smaller",
    "bigger/littler",
    "taller/shorter",
    "longer/shorter",
    "wider/narrower",
    "thicker/thinner",
    "deeper/shallower",
    "higher/lower",
    "older/younger",
    "newer/older",
    "faster/slower",
    "quicker/slower",
    "hotter/colder",
    "warmer/cooler",
    "stronger/weaker",
    "harder/softer",
    "harder/easier",
    "louder/quieter",
    "brighter/darker",
    "cheaper/dearer",
    "cheaper/costlier",
    "richer/poorer",
    "fatter/leaner",
    "sweeter/sourer",
    "drier/wetter",
    "denser/sparser",
    "sharper/blunter",
    "rougher/smoother",
    "cleaner/dirtier",
    "safer/riskier",
    "fresher/staler",
    "tougher/tenderer",
    "healthier/unhealthier",
    "happier/sadder",
    "smarter/dumber",
    "simpler/fancier",
    "closer/farther",
    "better/worse",
    "busier/calmer",
    "nicer/nastier",
    "rarer/commoner",
    "looser/tighter",
    "spicier/milder",
    "saltier/blander",
    "greener/browner",
    "bulkier/slimmer",
    "sturdier/frailer",
]
PAIRS = tuple((a, b) for a, b in (pair.split("/") for pair in COMPARATIVES))
#: the comparative forms of the list, each once
WORDS = tuple(dict.fromkeys(w for pair in PAIRS for w in pair))
IRREGULAR = {"man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "mouse": "mice",
             "goose": "geese", "knife": "knives", "life": "lives", "wife": "wives", "leaf": "leaves", "loaf": "loaves", "half": "halves",
             "shelf": "shelves", "wolf": "wolves", "calf": "calves", "sheep": "sheep", "fish": "fish", "deer": "deer", "ox": "oxen", "bison": "bison", "moose": "moose", "salmon": "salmon", "aircraft": "aircraft",
             "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "echo": "echoes"}  # fmt: skip
#: common nouns without a plural
UNCOUNTABLE = frozenset(
    [
        "water",
        "milk",
        "oil",
        "rice",
        "sugar",
        "salt",
        "flour",
        "butter",
        "bread",
        "cheese",
        "meat",
        "beef",
        "pork",
        "juice",
        "coffee",
        "tea",
        "wine",
        "beer",
        "sand",
        "gold",
        "silver",
        "iron",
        "steel",
        "copper",
        "wood",
        "glass",
        "paper",
        "plastic",
        "cotton",
        "wool",
        "silk",
        "leather",
        "furniture",
        "luggage",
        "equipment",
        "information",
        "advice",
        "news",
        "money",
        "music",
        "weather",
        "traffic",
        "electricity",
        "gas",
        "air",
        "snow",
        "rain",
        "ice",
        "honey",
        "jam",
        "soup",
        "fruit",
        "wheat",
        "corn",
        "chocolate",
        "concrete",
        "rubber",
        "clay",
        "charcoal",
        "petrol",
        "diesel",
        "gasoline",
    ]
)


def is_uncountable(noun: str, uncountable: Sequence[str] | frozenset[str] = UNCOUNTABLE) -> bool:
    """Whether a noun or compound (its last word) has no plural, so that it *is* and *has*; ``sheep`` has one that looks like itself."""
    words = noun.lower().split()
    return not words or noun.lower() in uncountable or words[-1] in uncountable


def plural(noun: str, uncountable: Sequence[str] | frozenset[str] = UNCOUNTABLE) -> str:
    """The plural of an English noun or compound (its last word); an uncountable one, and one that is a plural already, stays as it is."""
    if is_uncountable(noun, uncountable):
        return noun
    words = noun.split()
    last = words[-1]
    low = last.lower()
    if low in IRREGULAR:
        made = IRREGULAR[low]
    elif low.endswith("s") and not low.endswith(("ss", "us", "is")) and low not in ENDS_IN_S:
        made = last
    elif re.search(r"[^aeiou]y$", low):
        made = last[:-1] + "ies"
    elif low.endswith(("s", "x", "z", "ch", "sh")):
        made = last + "es"
    else:
        made = last + "s"
    return " ".join([*words[:-1], made])


def prompt_of(first: str, second: str, uncountable: Sequence[str] | frozenset[str] = UNCOUNTABLE) -> str:
    """``Compared to Xs, Ys``: lower case, the first letter raised."""
    return f"Compared to {plural(first, uncountable).lower()}, {plural(second, uncountable).lower()}"


@dataclass(frozen=True)
class Comparison:
    """A statement ``Compared to X, Y <auxiliary> <adverb> <comparative> <property>`` taken apart.

    Attributes:
        comparative: the form (``heavier``, ``more expensive``). aspect: what follows it, often empty.
    """

    first: str
    second: str
    text: str
    auxiliary: str
    adverb: str
    comparative: str
    aspect: str

    @property
    def more(self) -> bool:
        """Whether it says more, where the form says so itself (``less expensive`` says less)."""
        return not self.comparative.startswith(("less ", "fewer "))

    @property
    def quality(self) -> str:
        """The form without more, less and fewer: ``expensive``, ``heavier``."""
        return re.sub(r"^(?:more|less|fewer) ", "", self.comparative)


def taken_apart(first: str, second: str, continuation: str, words: Sequence[str] = WORDS) -> Comparison | str:
    """The comparison a continuation of :func:`prompt_of` makes, or the reason why it is none (filter 1 of the card).

    Args:
        words: comparative forms; words such as ``water`` that merely end like one do not count.
    """
    text = continuation.strip().rstrip(" .,;")
    tokens = re.findall(r"[\w'-]+|[^\w\s]", text)
    low = [t.lower() for t in tokens]
    if "than" in low:
        return "says than"
    auxiliary = next((i for i, t in enumerate(low) if t in AUXILIARIES or t in SINGULAR_AUXILIARIES), None)
    adverb = next((i for i, t in enumerate(low) if t in ADVERBS), None)
    if auxiliary is None:
        return "has no auxiliary"
    if low[-1] in ADVERBS or len(low) - 1 == auxiliary:
        return "breaks off"
    known, place, form = {w.lower() for w in words}, None, ""
    for i, t in enumerate(low):
        if t in ("more", "less", "fewer") and i + 1 < len(low) and low[i + 1].isalpha():
            place, form = i + 1, f"{t} {low[i + 1]}"
            break
        if t in known and t != "other":
            place, form = i, t
            break
    if place is None:
        return "has no comparative"
    rest = " ".join(tokens[place + 1 :]).strip()
    return Comparison(first, second, text, low[auxiliary], low[adverb] if adverb is not None else "", form, rest)


def opposites(pairs: Sequence[tuple[str, str]] = PAIRS) -> dict[str, set[str]]:
    """For each comparative form those that say the contrary."""
    found: dict[str, set[str]] = {}
    for a, b in pairs:
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set()).add(a)
    return found


def says_of(one: Comparison, other: Comparison, pairs: Sequence[tuple[str, str]] = PAIRS) -> str:
    """``entails``, ``contradicts`` or ``neutral``, by rules: what two statements about the same two things say of each other.

    The same quality in the same direction entails, in the other direction contradicts; an opposite form turns the direction, and so
    do exchanged things. Statements with different properties behind the comparative are neutral.
    """
    same_order = (one.first.lower(), one.second.lower()) == (other.first.lower(), other.second.lower())
    swapped = (one.first.lower(), one.second.lower()) == (other.second.lower(), other.first.lower())
    if not (same_order or swapped) or _stem(one.aspect) != _stem(other.aspect):
        return "neutral"
    turned = opposites(pairs)
    if one.quality == other.quality:
        agree = one.more == other.more
    elif other.quality in turned.get(one.quality, set()):
        agree = one.more != other.more
    else:
        return "neutral"
    return "entails" if agree == same_order else "contradicts"


def _stem(text: str) -> str:
    return " ".join(
        re.sub(r"(?:es|s)$", "", w) for w in re.findall(r"\w+", text.lower()) if w not in ("the", "a", "an", "in", "to")
    )


def outvoted(
    items: Sequence[Comparison], sizes: ArrayLike, *, entail: NDArray[np.float64] | None = None,
    contradict: NDArray[np.float64] | None = None, entail_at: float = 0.85, contradict_at: float = 0.99,
) -> list[tuple[int, int]]:  # fmt: skip
    """Supporters and opponents of every statement among those of one pair (filter 2 of the card): sums of the sizes of the clusters
    it entails (its own included) and contradicts. A statement goes when it has no more supporters than opponents.

    Args:
        sizes: how many generations each stands for [N]. entail, contradict: probabilities [N, N] of an inference model that reads
            statement ``i`` as premise and ``j`` as hypothesis; None: the rules of :func:`says_of`.
    """
    weight = np.asarray(sizes, dtype=np.int64)
    votes = []
    for i, one in enumerate(items):
        supporters, opponents = int(weight[i]), 0
        for j, other in enumerate(items):
            if i == j:
                continue
            if entail is not None and contradict is not None:
                supporters += int(weight[j]) * bool(entail[i, j] >= entail_at)
                opponents += int(weight[j]) * bool(contradict[i, j] >= contradict_at)
            else:
                verdict = says_of(one, other)
                supporters += int(weight[j]) * (verdict == "entails")
                opponents += int(weight[j]) * (verdict == "contradicts")
        votes.append((supporters, opponents))
    return votes
