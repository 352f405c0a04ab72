"""Relations learnt from sentences with triples: distant supervision (Mintz et al. 2009) with dependency paths and n-grams.

Every pair of mentions of a training sentence that stands in the list of triples is a positive of its relation; the other pairs of that
sentence are negatives of it; pairs of other relations' sentences weigh little, since nobody said that the relation does not hold
there. One logistic regression per relation gives probabilities. No GPU: some seconds for thousands of sentences.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.kit.language import Parser, Sentence
from interfuse.kit.mentions import Mention, find_mentions, gazetteer, topic_span

#: the columns of hashed features
WIDTH = 1 << 19


@dataclass(frozen=True)
class Example:
    """A sentence and triples (subject, relation, object) that it states, in words; more may be true of it."""

    text: str
    triples: tuple[tuple[str, str, str], ...]


@dataclass
class Extractor:
    """A trained extractor.

    Attributes:
        relations: names. weights: [relations + 1, WIDTH] float32, the last row says which subject; bias: [relations + 1].
        objects: (words in lower case) -> relation -> how often it was an object, for gazetteer features.
        threshold: from which probability on a relation is given; found on sentences that were left out in turn.
        shown: surface in lower case -> the label it stood for in training, where they differ.
    """

    relations: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    objects: dict[str, dict[str, int]]
    table: dict[str, dict[tuple[str, ...], tuple[str, str]]]
    shown: dict[str, str] = field(default_factory=dict)
    threshold: float = 0.1


def plain(text: str) -> str:
    """What two spellings of a label share: no case, spaces or marks."""
    return re.sub(r"[\W_]+", "", text.casefold())


def _hash(text: str) -> int:
    import xxhash

    return int(xxhash.xxh32_intdigest(text.encode("utf-8", "replace"))) % WIDTH


def object_features(
    sentence: Sentence, target: Mention, counts: Mapping[str, int], topic: tuple[int, int] | None
) -> list[str]:
    """What is seen of an object in its sentence, whatever the subject.

    Args:
        counts: relation -> how often its words were its object elsewhere. topic: the words that the sentence defines.
    """
    words = sentence.words
    low = [w.text.casefold() for w in words[max(0, target.first - 3) : target.last + 3]]
    at = target.first - max(0, target.first - 3)
    size = target.last - target.first
    left, own, right = ["^", "^", "^", *low[:at]][-3:], low[at : at + size], [*low[at + size :], "$", "$", "$"][:3]
    verb = next(
        (words[i].lemma for i in range(target.first - 1, max(-1, target.first - 12), -1) if words[i].pos == "VERB"), ""
    )
    shape = "d" if own[0].isdigit() else "A" if words[target.first].text[0].isupper() else "a"
    found = [f"ok:{target.kind}", f"os:{target.source}", f"l1:{left[2]}", f"l2:{left[1]}_{left[2]}", f"l3:{'_'.join(left)}", f"r1:{right[0]}",
             f"r2:{right[0]}_{right[1]}", f"l1k:{left[2]}:{target.kind}", f"ow:{own[-1]}", f"of:{own[0]}", f"on:{min(size, 5)}", f"o:{'_'.join(own)}",
             f"v:{verb}", f"v:{verb}:{left[2]}", f"vk:{verb}:{target.kind}", f"shape:{shape}",
             f"tag:{words[target.last - 1].pos}:{words[target.last].pos if target.last < len(words) else '$'}"]  # fmt: skip
    for i in range(max(0, target.first - 6), min(len(words), target.last + 4)):
        if not target.first <= i < target.last and words[i].pos in ("NOUN", "VERB", "ADJ", "PROPN", "ADP"):
            side = "<" if i < target.first else ">"
            found.append(f"w{side}:{words[i].lemma.casefold()}:{shape}")
    found += [
        f"has:{word}:{shape}:{size > 1}"
        for word in dict.fromkeys(w.lemma.casefold() for w in words if w.pos in ("NOUN", "VERB"))
    ]
    if topic is not None:
        found.append(f"otopic:{target.first < topic[1] and topic[0] < target.last}")
    for relation, count in sorted(counts.items()):
        found += [f"gaz:{relation}", f"gaz:{relation}:{min(count, 4)}"]
    if sentence.parsed:
        head = _head(sentence, target)
        up = words[words[head].head]
        found += [
            f"dep:{words[head].dep}",
            f"up:{words[head].dep}:{up.lemma}",
            f"upup:{words[head].dep}:{up.lemma}:{up.dep}:{words[up.head].lemma}",
        ]
    return found


def pair_features(sentence: Sentence, subject: Mention, target: Mention, topic: tuple[int, int] | None) -> list[str]:
    """What is seen of a subject together with an object."""
    words = sentence.words
    first, second = (subject, target) if subject.first < target.first else (target, subject)
    order = "<" if subject.first < target.first else ">"
    gap = second.first - first.last
    near = [
        w.text.casefold()
        for w in (
            words[max(first.last, second.first - 5) : second.first]
            if order == "<"
            else words[first.last : min(second.first, first.last + 5)]
        )
    ]
    found = [f"order{order}", f"gap{order}{min(gap, 20) // 3}", f"sk:{subject.kind}", f"kk:{subject.kind}:{target.kind}", f"ss:{subject.source}",
             f"first:{subject.first == 0}", f"b{order}:{'_'.join(near)}"]  # fmt: skip
    found += [f"b{order}:{w}" for w in dict.fromkeys(near)]
    if topic is not None:
        found += [
            f"topic:{subject.first < topic[1] and topic[0] < subject.last}",
            f"exact:{(subject.first, subject.last) == topic}",
        ]
    return found + (_path_features(sentence, subject, target) if sentence.parsed else [])


def _head(sentence: Sentence, mention: Mention) -> int:
    words = sentence.words
    for i in range(mention.last - 1, mention.first - 1, -1):
        if not mention.first <= words[i].head < mention.last or words[i].head == i:
            return i
    return mention.last - 1


def _chain(sentence: Sentence, i: int) -> list[int]:
    chain = [i]
    while sentence.words[chain[-1]].head != chain[-1] and len(chain) < 40:
        chain.append(sentence.words[chain[-1]].head)
    return chain


def _path_features(sentence: Sentence, subject: Mention, target: Mention) -> list[str]:
    words = sentence.words
    up, down = _chain(sentence, _head(sentence, subject)), _chain(sentence, _head(sentence, target))
    place = {node: k for k, node in enumerate(down)}
    meet = next((k for k, node in enumerate(up) if node in place), -1)
    if meet < 0:
        return ["path:none"]
    rise, fall = up[:meet], down[: place[up[meet]]][::-1]
    top = words[up[meet]].lemma
    deps = "".join(f"^{words[i].dep}" for i in rise) + f"[{top}]" + "".join(f"v{words[i].dep}" for i in fall)
    lemmas = [words[i].lemma for i in (*rise[1:], up[meet], *fall[:-1])]
    bare = "".join(f"^{words[i].dep}" for i in rise) + "|" + "".join(f"v{words[i].dep}" for i in fall)
    tail = (
        "".join(f"v{words[i].dep}:{words[i].lemma}" for i in fall[:-1][-2:]) + f"v{words[fall[-1]].dep}"
        if fall
        else "self"
    )
    return [f"path:{deps}" if len(rise) + len(fall) <= 7 else "path:long", f"bare:{bare}" if len(rise) + len(fall) <= 7 else "bare:long",
            f"tail:{tail}", f"top:{top}", *(f"pl:{w}" for w in dict.fromkeys(lemmas))]  # fmt: skip


def _subjects(sentence: Sentence, mentions: Sequence[Mention], topic: tuple[int, int] | None) -> list[Mention]:
    named = [
        m for m in mentions if m.source in ("topic", "title", "name", "quoted") and m.kind not in ("date", "number")
    ]
    if topic is not None:
        named += [m for m in mentions if (m.first, m.last) == topic and m not in named]
    if not named:
        named = [m for m in mentions if m.source == "phrase" and m.kind not in ("date", "number")]
    return sorted(named, key=lambda m: (m.source != "topic", m.first, -m.last))[:8]


@dataclass
class _Read:
    sentence: Sentence
    mentions: list[Mention]
    topic: tuple[int, int] | None
    subjects: list[Mention]

    def object_rows(self, counts: Callable[[Mention], Mapping[str, int]]) -> list[list[int]]:
        """The hashed features of every mention as an object, beside the words that the sentence is about."""
        about = next(
            (m for m in self.subjects if (m.first, m.last) == self.topic), self.subjects[0] if self.subjects else None
        )
        made = []
        for o in self.mentions:
            features = object_features(self.sentence, o, counts(o), self.topic)
            if about is not None and (o.last <= about.first or about.last <= o.first):
                features += pair_features(self.sentence, about, o, self.topic)
            made.append([_hash(f) for f in features])
        return made

    def subject_rows(self, o: Mention, relation: str) -> tuple[list[Mention], list[list[int]]]:
        """The mentions that may be the subject of a relation to an object, and their hashed features."""
        others = [s for s in self.subjects if o.last <= s.first or s.last <= o.first]
        rows = []
        for s in others:
            features = [*pair_features(self.sentence, s, o, self.topic), f"exact-words:{s.last - s.first > 1}"]
            rows.append([_hash(f) for f in (*features, *(f"{relation}&{f}" for f in features))])
        return others, rows


def _read(parser: Parser, texts: Sequence[str], table: Any) -> list[list[_Read]]:
    made = []
    for sentences in parser.parse(texts):
        rows = []
        for sentence in sentences:
            mentions, topic = find_mentions(sentence, table, fine=True)[:80], topic_span(sentence)
            rows.append(_Read(sentence, mentions, topic, _subjects(sentence, mentions, topic)))
        made.append(rows)
    return made


def _fit(
    matrix: Any, labels: NDArray[np.int64], weight: NDArray[np.float64], c: float
) -> tuple[NDArray[np.float32], float]:
    """A logistic regression on the columns that occur at least twice; the others weigh nothing."""
    from sklearn.linear_model import LogisticRegression

    used = np.flatnonzero(np.bincount(matrix.indices, minlength=WIDTH) >= 2)
    model = LogisticRegression(C=c, solver="liblinear", max_iter=200, random_state=0)
    model.fit(matrix[:, used], labels, sample_weight=weight)
    made = np.zeros(WIDTH, np.float32)
    made[used] = model.coef_[0]
    return made, float(model.intercept_[0])


def _best_threshold(left_out: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]]) -> float:
    """Half the threshold with the best F1 over all relations; 0.1 when nothing was left out.

    Half, because sentences state more than their lists say: what counts as wrong there is often right.
    """
    if not left_out:
        return 0.1
    scores, truth = np.concatenate([s for s, _ in left_out]), np.concatenate([t for _, t in left_out])
    best = max(
        (2 * int(truth[scores >= t].sum()) / max(1, int((scores >= t).sum()) + int(truth.sum())), -t)
        for t in np.arange(0.04, 0.62, 0.02)
    )
    return float(round(-best[1] / 2, 3))


def _matrix(rows: Sequence[Sequence[int]]) -> Any:
    from scipy.sparse import csr_matrix

    pointers = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(r) for r in rows], out=pointers[1:])
    columns = np.fromiter((c for r in rows for c in r), np.int32, int(pointers[-1]))
    made = csr_matrix((np.ones(len(columns), np.float32), columns, pointers), shape=(len(rows), WIDTH))
    made.sum_duplicates()
    made.data[:] = 1.0
    return made


def train(examples: Sequence[Example], parser: Parser, *, c: float = 1.0, other_weight: float = 0.15, folds: int = 3,
          kinds: Mapping[str, str] | None = None) -> Extractor:  # fmt: skip
    """Trains one logistic regression per relation.

    Args:
        c: inverse strength of the regularisation. other_weight: of pairs from sentences of other relations.
        folds: parts that are left out in turn to find the threshold; 0: it is 0.1.
        kinds: relation -> kind of its objects, for the gazetteer.
    """
    relations = tuple(sorted({r for e in examples for _, r, _ in e.triples}))
    known: dict[tuple[str, str], set[str]] = {}
    objects: dict[str, dict[str, int]] = {}
    names: list[tuple[str, str]] = []
    for e in examples:
        for sub, r, obj in e.triples:
            known.setdefault((plain(sub), plain(obj)), set()).add(r)
            for variant in _variants(obj):
                row = objects.setdefault(variant.casefold(), {})
                row[r] = row.get(r, 0) + 1
                names.append((variant, (kinds or {}).get(r, "")))
    table = gazetteer((n, k) for n, k in names if len(n) > 3)
    for by_words in table.values():  # the words of the text are kept, not the spelling of the list
        for key in by_words:
            by_words[key] = ("", by_words[key][1])
    rows: list[list[int]] = []
    labels: list[frozenset[str]] = []
    origin: list[frozenset[str]] = []
    numbers: list[int] = []
    subject_rows: list[list[int]] = []
    subject_labels: list[int] = []
    shown: Counter[tuple[str, str]] = Counter()
    for number, (example, sentences) in enumerate(
        zip(examples, _read(parser, [e.text for e in examples], table), strict=True)
    ):
        own = frozenset(r for _, r, _ in example.triples)
        by_object: dict[str, list[tuple[str, str, str]]] = {}
        for triple in example.triples:
            for variant in _variants(triple[2]):
                by_object.setdefault(plain(variant), []).append(triple)

        def counts(o: Mention, own: frozenset[str] = own, by_object: Any = by_object) -> dict[str, int]:
            found = dict(objects.get(o.label.casefold(), {}))
            for r in own if plain(o.label) in by_object else ():  # an example must not know itself
                found[r] = found.get(r, 0) - 1
            return {r: n for r, n in found.items() if n > 0}

        for read in sentences:
            rows += read.object_rows(counts)
            for o in read.mentions:
                surface = plain(o.label)
                held = {t[1] for t in by_object.get(surface, ())}
                held |= {r for s in read.subjects for r in known.get((plain(s.label), surface), ())}
                labels.append(frozenset(held))
                origin.append(own)
                numbers.append(number)
                for triple in by_object.get(surface, ()):
                    if plain(triple[2]) != surface:
                        shown[o.label.casefold(), triple[2]] += 1
                    right = _standing_for(read, triple[0])
                    others, features = read.subject_rows(o, triple[1])
                    subject_rows += features
                    subject_labels += [int((s.first, s.last) in right) for s in others]
    matrix = _matrix(rows)
    weights = np.zeros((len(relations) + 1, WIDTH), np.float32)
    bias = np.full(len(relations) + 1, -9.0, np.float32)
    related = np.array([bool(held) for held in labels])
    sentence_of = np.array(numbers, np.int64)
    left_out: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    for k, relation in enumerate(relations):
        positive = np.array([relation in held for held in labels])
        inside = np.array([relation in own for own in origin])
        if not positive.any():
            continue
        weight = np.where(positive, 2.0, np.where(inside | related, 1.0, other_weight))
        truth = positive.astype(np.int64)
        weights[k], bias[k] = _fit(matrix, truth, weight, c)
        for fold in range(folds if positive.sum() >= 3 * folds else 0):
            out = (sentence_of % folds == fold) & inside
            if truth[out].any():
                w, b = _fit(
                    matrix[sentence_of % folds != fold],
                    truth[sentence_of % folds != fold],
                    weight[sentence_of % folds != fold],
                    c,
                )
                left_out.append((1.0 / (1.0 + np.exp(-(matrix[out] @ w + b))), truth[out]))
    threshold = _best_threshold(left_out)
    if 0 < sum(subject_labels) < len(subject_labels):
        weights[-1], bias[-1] = _fit(_matrix(subject_rows), np.array(subject_labels), np.ones(len(subject_labels)), c)
    best: dict[str, tuple[int, str]] = {}
    for (surface_text, label), count in sorted(shown.items()):
        best[surface_text] = max(best.get(surface_text, (0, "")), (count, label))
    return Extractor(
        relations, weights, bias, objects, table, {k: v for k, (n, v) in best.items() if n >= 2}, threshold
    )


def _standing_for(read: _Read, subject: str) -> set[tuple[int, int]]:
    """The mentions of a sentence that stand for a subject: those that are it, else those that share most of its words, else what
    the sentence is about."""
    subjects = read.subjects
    exact = {(s.first, s.last) for s in subjects if plain(s.label) in [plain(v) for v in _variants(subject)]}
    if exact:
        return exact
    wanted = set(re.findall(r"\w+", subject.casefold()))
    shared = [
        (len(wanted & (mine := set(re.findall(r"\w+", s.label.casefold())))) / max(1, len(wanted | mine)), s)
        for s in subjects
    ]
    most = max((n for n, _ in shared), default=0.0)
    if most >= 0.4:
        return {(s.first, s.last) for n, s in shared if n == most}
    return {read.topic} if read.topic is not None else {(s.first, s.last) for s in subjects[:1]}


def _variants(label: str) -> list[str]:
    """A label as texts write it: without what stands in brackets, without a last word that says its class."""
    bare = re.sub(r"\s*\([^)]*\)\s*\Z", "", label).strip() or label
    found = [bare]
    words = bare.split()
    if len(words) > 1 and words[-1].casefold() in (
        "film",
        "music",
        "novel",
        "fiction",
        "literature",
        "language",
        "party",
        "people",
        "game",
    ):
        found.append(" ".join(words[:-1]))
    day = re.fullmatch(r"\d\d [A-Z][a-z]+ (\d{4})", bare)
    if day:
        found += [day[1], bare.lstrip("0"), re.sub(r"0?(\d+) ([A-Z][a-z]+) (\d{4})", r"\2 \1, \3", bare)]
    return found


@dataclass(frozen=True)
class Relation:
    """A relation found in a sentence, with its probability."""

    subject: Mention
    name: str
    object: Mention
    probability: float
    label: str


def extract(
    extractor: Extractor, parser: Parser, texts: Sequence[str], *, threshold: float = 0.5
) -> list[list[tuple[Sentence, list[Relation]]]]:
    """Per text and sentence, the relations whose probability reaches the threshold: for each object and relation its likeliest subject."""
    made = []
    for sentences in _read(parser, texts, extractor.table):
        out: list[tuple[Sentence, list[Relation]]] = []
        for read in sentences:
            out.append((read.sentence, _of_sentence(extractor, read, threshold)))
        made.append(out)
    return made


def _of_sentence(extractor: Extractor, read: _Read, threshold: float) -> list[Relation]:
    if not read.mentions or not read.subjects:
        return []
    rows = read.object_rows(lambda o: extractor.objects.get(o.label.casefold(), {}))
    scores = _matrix(rows) @ extractor.weights[:-1].T + extractor.bias[:-1]
    probabilities = 1.0 / (1.0 + np.exp(-np.asarray(scores, np.float64)))
    chosen: list[Relation] = []
    for k, name in enumerate(extractor.relations):
        kept: list[tuple[int, int]] = []
        for i in sorted(
            np.flatnonzero(probabilities[:, k] >= threshold).tolist(), key=lambda i: (-probabilities[i, k], i)
        ):
            o = read.mentions[i]
            if any(a < o.last and o.first < b for a, b in kept):
                continue  # another cut of the same words is likelier
            kept.append((o.first, o.last))
            others, features = read.subject_rows(o, name)
            if not others:
                continue
            best = int(np.argmax(_matrix(features) @ extractor.weights[-1]))
            chosen.append(
                Relation(
                    others[best], name, o, float(probabilities[i, k]), extractor.shown.get(o.label.casefold(), o.label)
                )
            )
    return chosen


def examples_of(rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Examples from rows with ``sent`` (or ``text``) and ``triples`` ([{sub, rel, obj}]), or one triple as sub_label, rel_label, obj_label."""
    made = []
    for row in rows:
        text = str(row.get("sent") or row.get("text") or "")
        if row.get("triples"):
            triples = tuple((str(t["sub"]), str(t["rel"]).strip(), str(t["obj"])) for t in row["triples"])
        elif "rel_label" in row:
            triples = ((str(row["sub_label"]), str(row["rel_label"]).strip(), str(row["obj_label"])),)
        else:
            triples = (
                ((str(row["subject"]), str(row["relation"]).strip(), str(row["object"])),) if "relation" in row else ()
            )
        if text and triples:
            made.append(Example(text, triples))
    return made
