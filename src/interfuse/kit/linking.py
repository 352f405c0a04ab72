"""Which names mean the same thing: a cascade from cheap to dear, guards against wrong merges, and clusters that weigh all evidence.

1. the same normalised name; 2. one name is recorded as the other's alias, or is its acronym and both share something; 3. similar
spelling among names that share a rare word or a beginning (blocking), scored by Jaro-Winkler and word order-free similarity, shared
neighbours counting in favour; 4. a judge, if there is one, for pairs in the grey zone only.

Guards that no score overrules: numbers must agree, short or monotonous names never merge by spelling, disjoint types never merge,
and each word of one name must have its like in the other. Clusters are made by correlation clustering (greedy additive edge
contraction, Keuper et al. 2015), so that a chain of weak links does not pull strangers together. Nothing depends on input order.
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.ontology import Ontology
from interfuse.data.statements import ALIAS, LABEL, TEXTS, TYPE, Literal

Key = TypeVar("Key")

#: words that say nothing about who is meant
EMPTY_WORDS = frozenset({"the", "a", "an", "of", "and", "de", "la", "le", "der", "die", "das", "von", "van", "inc", "ltd", "llc", "gmbh", "co",
                         "corp", "corporation", "company", "mr", "mrs", "ms", "dr", "prof", "sir"})  # fmt: skip
_ROMAN = re.compile(r"(?=[ivxlc])(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})\Z")
_LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th"})


@dataclass(frozen=True)
class Mention:
    """A name to be linked.

    Attributes:
        id: of the entity. label: its words. aliases: other names on record. types: its classes.
        near: ids of what it is connected with. weight: how often it is said.
    """

    id: str
    label: str
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    weight: int = 1


@dataclass(frozen=True)
class LinkSettings:
    """Thresholds of linking."""

    accept: Annotated[float, Field(gt=0, le=1, description="spellings at least so similar are the same")] = 0.93
    grey: Annotated[float, Field(gt=0, le=1, description="pairs between this and accept are judged, or left apart")] = (
        0.85
    )
    shortest: Annotated[int, Field(ge=0, description="one-word names with fewer letters merge only when equal")] = 6
    entropy: Annotated[float, Field(ge=0, description="bits per letter below which a name merges only when equal")] = (
        1.5
    )
    block: Annotated[int, Field(ge=2, description="of more names in a block, only neighbours are compared")] = 60
    near: Annotated[float, Field(ge=0, le=1, description="what sharing all neighbours adds to a score")] = 0.05


@dataclass(frozen=True)
class Link:
    """Two names that mean the same: ids in order, a score in [0, 1] and the reason in words."""

    a: str
    b: str
    score: float
    reason: str


@dataclass
class Parts:
    """What linking went through, for :mod:`interfuse.kit.relinking`.

    Attributes:
        groups: mentions of one name, sorted by their first id. weights: how strongly pairs of groups (indices, the smaller first) pull
            or push. spelt: pairs that only their spelling decided.
    """

    groups: list[Group]
    weights: dict[tuple[int, int], float]
    spelt: dict[tuple[int, int], None]


@dataclass(frozen=True)
class Linked:
    """What linking found.

    Attributes:
        clusters: ids that mean the same, two or more each, sorted.
        links: what joins them. grey: pairs nobody decided. refused: guard -> how many similar pairs it kept apart.
        cut: accepted pairs that the clustering left apart. pairs: how many were compared by spelling. parts: the way there.
    """

    clusters: tuple[tuple[str, ...], ...]
    links: tuple[Link, ...]
    grey: tuple[Link, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)
    cut: tuple[Link, ...] = ()
    pairs: int = 0
    parts: Parts | None = field(default=None, repr=False, compare=False)

    def merges(self) -> list[tuple[str, str]]:
        """Pairs that join every cluster, for :meth:`interfuse.data.graph.Graph.merge_all`."""
        return [(c[0], other) for c in self.clusters for other in c[1:]]


def folded(label: str) -> str:
    """A label without case, accents, punctuation and empty words (unless nothing else is left)."""
    text = unicodedata.normalize("NFKD", label.casefold().translate(_LETTERS))
    words = re.findall(
        r"\w+", "".join(c for c in text if not unicodedata.combining(c)).replace("'s", "").replace("’s", "")
    )
    kept = [w for w in words if w not in EMPTY_WORDS]
    return " ".join(kept or words)


def numbers(key: str) -> tuple[str, ...]:
    """The numbers of a folded label, Roman ones included, sorted."""
    return tuple(
        sorted([d.lstrip("0") or "0" for d in re.findall(r"\d+", key)] + [w for w in key.split() if _ROMAN.match(w)])
    )


def entropy(key: str) -> float:
    """Bits per letter of a label's own distribution of letters."""
    letters = key.replace(" ", "")
    counts: dict[str, int] = {}
    for c in letters:
        counts[c] = counts.get(c, 0) + 1
    return -sum(n / len(letters) * math.log2(n / len(letters)) for n in counts.values()) if letters else 0.0


def acronym_of(label: str) -> str:
    """The initials of a label's words without empty ones, in capitals; empty for fewer than two words."""
    words = [w for w in re.findall(r"[^\W\d_]+", label) if w.lower() not in EMPTY_WORDS]
    return "".join(w[0] for w in words).upper() if len(words) > 1 else ""


def is_acronym(label: str) -> bool:
    """Whether a label is two to six capital letters, perhaps with points."""
    return re.fullmatch(r"(?:[A-Z]\.?){2,6}", label) is not None


class Group:
    """All mentions of one folded name and fitting types: they are one thing from the start."""

    def __init__(self, key: str, label: str, types: tuple[str, ...]) -> None:
        self.key, self.label, self.types = key, label, types
        self.ids: list[str] = []
        self.aliases: dict[str, None] = {}
        self.near: dict[str, None] = {}


def most_said(labels: Mapping[str, int]) -> str:
    """The label that is said most often, of several the first one."""
    return min(labels, key=lambda w: (-labels[w], w))


def mentions_of(graph: Graph) -> list[Mention]:
    """Entities of a graph with a label: their names as given, before any merge. Documents, chunks and elements are none."""
    words: dict[str, dict[str, int]] = {}
    also: dict[str, list[str]] = {}
    types: dict[str, list[str]] = {}
    near: dict[str, dict[str, None]] = {}
    state = graph.state
    for made in (s for rows in state._live.values() for s in rows):
        if made.predicate == LABEL and isinstance(made.object, Literal):
            own = words.setdefault(made.subject, {})
            own[made.object.value] = own.get(made.object.value, 0) + 1
        elif made.predicate == ALIAS and isinstance(made.object, Literal):
            also.setdefault(made.subject, []).append(made.object.value)
        elif made.predicate == TYPE and isinstance(made.object, str):
            types.setdefault(made.subject, []).append(made.object)
        elif isinstance(made.object, str):
            near.setdefault(made.subject, {})[made.object] = None
            near.setdefault(made.object, {})[made.subject] = None
    return [
        Mention(entity, most_said(labels), tuple(sorted({*labels, *also.get(entity, ())})),
                tuple(sorted(set(types.get(entity, ())))), tuple(sorted(near.get(entity, ()))), sum(labels.values()))
        for entity, labels in sorted(words.items()) if not entity.startswith(TEXTS)
    ]  # fmt: skip


Judge = Callable[[Mention, Mention], bool | None]


def link(
    mentions: Iterable[Mention],
    settings: LinkSettings | None = None,
    *,
    ontology: Ontology | None = None,
    judge: Judge | None = None,
) -> Linked:
    """Finds which mentions mean the same thing.

    Args:
        judge: says yes, no or nothing to a pair in the grey zone (a trained matcher, a language model, a person).

    Raises:
        InterfuseError: ``input.duplicate`` for two mentions with one id, ``needs.package`` for rapidfuzz.
    """
    settings = settings or LinkSettings()
    order = sorted(mentions, key=lambda m: m.id)
    for one, two in itertools.pairwise(order):
        if one.id == two.id:
            raise InterfuseError("input.duplicate", "two mentions have one id", where=one.id)
    groups, links = same_names(order, ontology)
    edges: dict[tuple[int, int], tuple[float, str]] = {}
    apart: dict[tuple[int, int], None] = {}
    refused: dict[str, int] = {}
    by_record(groups, edges, apart, ontology)
    recorded = {**edges, **apart}
    codes = _candidates(groups, settings)
    grey = by_spelling(groups, codes, settings, edges, apart, refused, ontology)
    by_id = {m.id: m for m in order}
    undecided: list[Link] = []
    for (i, j), score in sorted(grey.items()):
        a, b = groups[i].ids[0], groups[j].ids[0]
        said = judge(by_id[a], by_id[b]) if judge is not None else None
        if said:
            edges[(i, j)] = (score, "judged the same")
        elif said is False:
            apart[(i, j)] = None
        else:
            undecided.append(Link(min(a, b), max(a, b), round(score, 4), "grey"))
    weights = weights_of(edges, apart)
    place = cluster(len(groups), weights)
    cut: list[Link] = []
    for (i, j), (score, reason) in sorted(edges.items()):
        a, b = sorted((groups[i].ids[0], groups[j].ids[0]))
        (links if place[i] == place[j] else cut).append(Link(a, b, round(score, 4), reason))
    found: dict[int, list[str]] = {}
    for i, group in enumerate(groups):
        found.setdefault(place[i], []).extend(group.ids)
    clusters = tuple(sorted(tuple(sorted(ids)) for ids in found.values() if len(ids) > 1))
    return Linked(clusters, tuple(sorted(links, key=lambda x: (x.a, x.b, x.reason))), tuple(sorted(undecided, key=lambda x: (x.a, x.b))),
                  dict(sorted(refused.items())), tuple(cut), len(codes), Parts(groups, weights, {k: None for k in weights if k not in recorded}))  # fmt: skip


def weights_of(
    edges: Mapping[tuple[int, int], tuple[float, str]], apart: Mapping[tuple[int, int], None]
) -> dict[tuple[int, int], float]:
    """How strongly pairs pull: 1 for a certain link, less for a spelling just accepted; what must stay apart pushes with 1."""
    weights = {pair: max(0.05, 1.0 - 5.0 * (1.0 - score)) for pair, (score, _) in edges.items()}
    weights.update({pair: -1.0 for pair in apart if pair not in edges})
    return weights


def _fit(a: Sequence[str], b: Sequence[str], ontology: Ontology | None) -> bool:
    """Whether things of these types can be one: no two are disjoint; without an ontology, the types meet or one has none."""
    if not a or not b:
        return True
    if ontology is None:
        return any(t in b for t in a)
    if any(ontology.disjoint(x, y) for x in a for y in b):
        return False
    return any(ontology.is_a(x, y) or ontology.is_a(y, x) for x in a for y in b)


def same_names(order: Sequence[Mention], ontology: Ontology | None) -> tuple[list[Group], list[Link]]:
    """The groups of mentions that have one name and fitting types, sorted by their first id. What becomes of a name depends on its
    own mentions alone."""
    by_key: dict[str, list[Group]] = {}
    groups: list[Group] = []
    links: list[Link] = []
    ranked = sorted(
        order, key=lambda m: (not m.types, m.types, m.id)
    )  # typed ones first: the untyped join a typed one if there is just one
    for m in ranked:
        key = folded(m.label)
        rows = by_key.setdefault(key, [])
        fitting = [g for g in rows if _fit(g.types, m.types, ontology)] if key else []
        if len(fitting) == 1 or (fitting and m.types):
            group = fitting[0]
            links.append(Link(min(group.ids[0], m.id), max(group.ids[0], m.id), 1.0, "the same name"))
            group.types = tuple(sorted({*group.types, *m.types}))
        else:
            group = Group(key, m.label, m.types)
            rows.append(group)
            groups.append(group)
        group.ids.append(m.id)
        group.aliases.update((a, None) for a in m.aliases if a != m.label)
        group.near.update((n, None) for n in m.near)
    for group in groups:
        group.ids.sort()
    return sorted(groups, key=lambda g: g.ids[0]), links


def by_record(groups: Sequence[Group], edges: dict[tuple[int, int], tuple[float, str]], apart: dict[tuple[int, int], None],
              ontology: Ontology | None) -> None:  # fmt: skip
    """Adds the pairs of which one is recorded as the other's alias, or is its acronym and both share something."""
    by_key: dict[str, list[int]] = {}
    short: dict[str, list[int]] = {}
    for i, g in enumerate(groups):
        by_key.setdefault(g.key, []).append(i)
        if is_acronym(g.label):
            short.setdefault(g.label.replace(".", ""), []).append(i)

    def join(i: int, j: int, score: float, reason: str) -> None:
        pair = (min(i, j), max(i, j))
        if i == j:
            return
        if not _fit(groups[i].types, groups[j].types, ontology):
            apart[pair] = None
        elif pair not in edges or edges[pair][0] < score:
            edges[pair] = (score, reason)

    for i, g in enumerate(groups):
        for alias in g.aliases:
            key = folded(alias)
            others = [j for j in by_key.get(key, ()) if j != i]
            if len(others) == 1:  # an alias of several is nobody's
                join(i, others[0], 0.97, f"alias {alias!r}")
        letters = acronym_of(g.label)
        candidates = [j for j in short.get(letters, ()) if j != i] if letters else []
        for j in candidates:
            if any(n in groups[j].near for n in g.near):
                join(i, j, 0.95, "acronym, and both are connected with the same")


def block_keys(key: str, settings: LinkSettings) -> list[str]:
    """The blocks of a folded name: names that may be spelt alike share a word, or the beginning, the end or the set of their letters."""
    joined = key.replace(" ", "")
    found = [f"w {word}" for word in dict.fromkeys(key.split()) if len(word) > 2]
    if len(joined) >= settings.shortest:
        found += [f"b {joined[:4]}", f"e {joined[-4:]}", "s " + "".join(sorted(dict.fromkeys(joined)))[:12]]
    return found


def comparable(key: str, settings: LinkSettings) -> bool:
    """Whether a folded name is long and varied enough to be compared by spelling."""
    return (len(key.replace(" ", "")) >= settings.shortest or " " in key) and entropy(key) >= settings.entropy


def reach_of(settings: LinkSettings) -> int:
    """With how many names that follow it when sorted a name of a large block is compared."""
    return max(1, settings.block * 3 // 4)


def pairs_within(rows: Sequence[int], keys: Sequence[str], settings: LinkSettings) -> Iterable[tuple[int, int]]:
    """The pairs of a block that are compared: all, or in a large one those that stand near each other when sorted.

    Args:
        rows: members of the block that are :func:`comparable`, ascending. keys: the folded name of every group.
    """
    if len(rows) <= settings.block:
        return itertools.combinations(rows, 2)
    ranked = sorted(rows, key=lambda i: keys[i])
    reach = reach_of(settings)
    return ((i, j) for x, i in enumerate(ranked) for j in ranked[x + 1 : x + 1 + reach])


def _candidates(groups: Sequence[Group], settings: LinkSettings) -> Any:
    """Codes of the pairs that are compared by spelling, sorted, int64 [P]."""
    import numpy as np

    blocks: dict[str, list[int]] = {}
    keys, count = [g.key for g in groups], len(groups)
    for i, key in enumerate(keys):
        for block in block_keys(key, settings) if comparable(key, settings) else ():
            blocks.setdefault(block, []).append(i)
    pairs: dict[int, None] = {}
    for rows in blocks.values():
        for i, j in pairs_within(rows, keys, settings):
            pairs[(i * count + j) if i < j else (j * count + i)] = None
    codes = np.fromiter(pairs, dtype=np.int64, count=len(pairs))
    codes.sort()
    return codes


def _rapidfuzz() -> tuple[Any, Any, Any]:
    """Likeness of words in any order, of letters, and what compares two lists pair by pair.

    Raises:
        InterfuseError: ``needs.package``.
    """
    try:
        from rapidfuzz import fuzz
        from rapidfuzz.distance import JaroWinkler
        from rapidfuzz.process import cpdist
    except ImportError as error:
        raise InterfuseError(
            "needs.package", "linking by spelling needs the package rapidfuzz", fix="pip install 'interfuse[graph]'"
        ) from error
    return fuzz.token_sort_ratio, JaroWinkler.similarity, cpdist


def _spelling(names: Sequence[str], others: Sequence[str], settings: LinkSettings) -> tuple[Any, Any]:
    """Which pairs of folded names are alike enough that shared neighbours may decide (places, int64 [K]), and how alike, float64 [K]."""
    import numpy as np

    sorted_ratio, winkler_of, cpdist = _rapidfuzz()
    words = cpdist(names, others, scorer=sorted_ratio, dtype=np.float32) / 100.0
    ranked = np.flatnonzero(words >= settings.grey - 0.1)
    places = ranked.tolist()
    names, others = [names[k] for k in places], [others[k] for k in places]
    ordered = {key: " ".join(sorted(key.split())) for key in dict.fromkeys((*names, *others))}
    winkler = cpdist(names, others, scorer=winkler_of, dtype=np.float32)
    turned = cpdist([ordered[n] for n in names], [ordered[n] for n in others], scorer=winkler_of, dtype=np.float32)
    scores = (0.5 * np.maximum(winkler, turned) + 0.5 * words[ranked]).astype(np.float64)
    some = scores + settings.near >= settings.grey  # sharing all neighbours adds no more
    return ranked[some], scores[some]


def near_spelling(names: Sequence[str], others: Sequence[str], settings: LinkSettings) -> Any:
    """Which pairs of folded names :func:`by_spelling` may decide on, whatever else is known of them: places, int64 [K]."""
    return _spelling(names, others, settings)[0]


def by_spelling(groups: Sequence[Group], codes: Any, settings: LinkSettings, edges: dict[tuple[int, int], tuple[float, str]],
                apart: dict[tuple[int, int], None], refused: dict[str, int], ontology: Ontology | None) -> dict[tuple[int, int], float]:  # fmt: skip
    """Adds the pairs (codes, int64 [P]) whose spelling decides; returns the scores of those that stay undecided.

    Raises:
        InterfuseError: ``needs.package``.
    """
    similar, count = _rapidfuzz()[1], len(groups)
    left, right = codes // max(count, 1), codes % max(count, 1)
    keys = [g.key for g in groups]
    grey: dict[tuple[int, int], float] = {}
    step = 500_000
    for start in range(0, len(codes), step):
        a, b = left[start : start + step], right[start : start + step]
        ranked, scores = _spelling([keys[i] for i in a], [keys[j] for j in b], settings)
        for k, score in zip(ranked.tolist(), scores.tolist(), strict=True):
            i, j = int(a[k]), int(b[k])
            one, two = groups[i], groups[j]
            if one.key == two.key:
                continue  # their types have decided
            shared = sum(1 for n in one.near if n in two.near)
            if shared:
                score += settings.near * shared / min(len(one.near), len(two.near))
            if score < settings.grey or (i, j) in edges:
                continue
            guard = ("numbers differ" if numbers(one.key) != numbers(two.key) else "types do not fit" if not _fit(one.types, two.types, ontology)
                     else "" if _words_agree(one.key, two.key, similar) else "words differ")  # fmt: skip
            if guard:
                refused[guard] = refused.get(guard, 0) + 1
                apart[(i, j)] = None
            elif score >= settings.accept:
                edges[(i, j)] = (min(score, 0.99), "similar spelling")
            else:
                grey[(i, j)] = score
    return grey


def _words_agree(a: str, b: str, similar: Any) -> bool:
    """Whether each word of the shorter name has its like in the other, an initial being like a word that begins with it, and what
    is left over is at most one word."""
    one, two = sorted((a.split(), b.split()), key=len)
    if "".join(one) == "".join(two):
        return True
    rest = list(two)
    for word in one:
        best = max(rest, key=lambda w: (similar(word, w), w), default="")
        initial = next((w for w in rest if (len(word) == 1 or len(w) == 1) and word[0] == w[0]), "")
        found = best if best and similar(word, best) >= 0.88 and abs(len(word) - len(best)) <= 2 else initial
        if not found:
            return False
        rest.remove(found)
    return len(rest) <= 1 and all(len(w) <= 3 for w in rest)


def root_of(parent: dict[Key, Key], item: Key) -> Key:
    """The root of an item in a forest of parents, in which roots are their own; ways there are halved as they are gone."""
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


def cluster(count: int, weights: Mapping[tuple[int, int], float]) -> list[int]:
    """Correlation clustering by greedy additive edge contraction: the cluster (its smallest member) of each of ``count`` nodes.

    Joins the two clusters with the largest sum of weights between them while that sum is positive. Ties go to the smallest pair. What is
    not connected by positive weights is never joined, so that negative ones between such parts are left out: parts do not know of each other.
    """
    part = {i: i for i in range(count)}
    for (i, j), w in weights.items():
        if w > 0:
            a, b = root_of(part, i), root_of(part, j)
            part[max(a, b)] = min(a, b)
    weights = {(i, j): w for (i, j), w in weights.items() if w > 0 or root_of(part, i) == root_of(part, j)}
    near: list[dict[int, float]] = [{} for _ in range(count)]
    for (i, j), w in weights.items():
        near[i][j] = near[j][i] = near[i].get(j, 0.0) + w
    heap = [(-w, i, j) for (i, j), w in weights.items() if w > 0]
    heapq.heapify(heap)
    parent = {i: i for i in range(count)}
    while heap:
        w, i, j = heapq.heappop(heap)
        if parent[i] != i or parent[j] != j or near[i].get(j) != -w:
            continue  # of an earlier state
        i, j = min(i, j), max(i, j)
        keep, drop = (i, j) if len(near[i]) >= len(near[j]) else (j, i)
        del near[keep][drop], near[drop][keep]
        for k, x in near[drop].items():
            del near[k][drop]
            total = near[keep].get(k, 0.0) + x
            near[keep][k] = near[k][keep] = total
            if total > 0:
                heapq.heappush(heap, (-total, min(keep, k), max(keep, k)))
        near[drop] = {}
        parent[drop] = keep
    smallest: dict[int, int] = {}
    roots = [root_of(parent, i) for i in range(count)]
    for i, root in enumerate(roots):
        smallest.setdefault(root, i)
    return [smallest[root] for root in roots]


def link_graph(
    graph: Graph, settings: LinkSettings | None = None, *, ontology: Ontology | None = None, judge: Judge | None = None
) -> Linked:
    """Links a graph's entities and merges them as one operation, which replaces that of an earlier call."""
    found = link(mentions_of(graph), settings, ontology=ontology, judge=judge)
    graph.merge_all(found.merges(), "linked by name", group="link")
    return found
