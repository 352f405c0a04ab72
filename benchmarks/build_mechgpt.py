"""Two of MechGPT's promises: what the filters of question and answer pairs are worth, and a graph's paths against passages found by words.

    python benchmarks/build_mechgpt.py [filters] [paths] [MODEL_FOLDER ...]

``filters``: a scripted teacher writes pairs on sixty new facts, of which three in ten are bad in one of three ways; a tiny model that knows how
questions are put learns them unfiltered, filtered as ``build mechgpt`` does by default, and filtered with ``supported: 1``, for the same number of
steps, five seeds. ``paths``: for questions over two links of a made text, does the answer stand in the statements on the graph's paths,
and in two passages, or two sentences, that BM25 finds, by the question's words or again by those of the best one? Models
that are named go on writing after each question with what was found before it, and are right when the first goods they name are those.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build_students import PLACES, SEEDS, STUFFS, compared, exact, fresh, tokenizer, trained
from record import part, save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.chunks import split
from interfuse.data.corpus import open_corpus
from interfuse.data.graph import Graph
from interfuse.data.lm import Prompt, Reply, open_lm, words_of
from interfuse.kit.stats import wilson_interval

# ------------------------------------------------------------------------------------------------ filters

#: how a bad answer is bad
BAD = ("one word is wrong", "leans on the passage", "says nothing of it")
SHARE = 0.3


class Teacher:
    """A language model that knows what to ask of every sentence, and answers some questions badly.

    Args:
        pairs: a sentence of the text -> question, answer.
    """

    name = "scripted teacher"

    def __init__(self, pairs: dict[str, tuple[str, str]]) -> None:
        self.pairs = pairs

    def fingerprint(self) -> str:
        return json.dumps(self.pairs)

    def generate(self, prompts: Sequence[Prompt], *, n: int = 1, **_: Any) -> list[list[Reply]]:
        """Every sentence of the passage that it knows, asked about."""
        said = []
        for text in map(words_of, prompts):
            known = [f"Question: {q}\nAnswer: {a}" for s, (q, a) in self.pairs.items() if s in text]
            said.append([Reply("\n".join(known), 1, 1, "stop")] * n)
        return said

    def score(self, pairs: Sequence[tuple[str, str]], **_: Any) -> list[Any]:
        raise NotImplementedError("it is never asked to score")


def filters(seed: int) -> dict[str, float]:
    """Exact answers to new facts in another wording, after pairs of a teacher who is good, or partly bad and filtered or not."""
    rng = np.random.default_rng(seed)
    old, new = [f"Ob{i}" for i in range(120)], [f"Nu{i}" for i in range(30)]
    where = {n: f"Town{int(rng.integers(PLACES))}" for n in [*old, *new]}
    made = {n: f"stuff{int(rng.integers(STUFFS))}" for n in [*old, *new]}

    def facts(n: str, town: str, stuff: str) -> list[tuple[str, str]]:
        return [(f"Where is {n} located?", f"{n} is located in {town}."), (f"What does {n} contain?", f"{n} contains {stuff} and water.")]  # fmt: skip

    def others(n: str) -> list[tuple[str, str]]:
        return [(f"In which town is {n} ?", where[n]), (f"Of which stuff is {n} made ?", made[n])]

    good = [pair for n in new for pair in facts(n, where[n], made[n])]
    faults: dict[str, str] = {}  # question -> how its answer is bad
    teacher: dict[str, tuple[str, str]] = {}
    spoilt = dict.fromkeys(rng.permutation(len(good))[: round(SHARE * len(good))].tolist())
    for i, (question, answer) in enumerate(good):
        said = answer
        if i in spoilt:
            n = new[i // 2]
            fault = faults[question] = BAD[list(spoilt).index(i) % len(BAD)]
            town = f"Town{(int(where[n][4:]) + 1 + int(rng.integers(PLACES - 1))) % PLACES}"
            stuff = f"stuff{(int(made[n][5:]) + 1 + int(rng.integers(STUFFS - 1))) % STUFFS}"
            said = {BAD[0]: facts(n, town, stuff)[i % 2][1], BAD[1]: f"As shown above, the passage says it of {n}.",
                    BAD[2]: "Nobody has ever looked at such a thing."}[fault]  # fmt: skip
        teacher[answer] = (question, said)

    def plain(text: str) -> str:
        return re.sub(r"([?.,])", r" \1", text)

    prose = {n: [a for _, a in facts(n, where[n], made[n])] for n in [*old, *new]}
    background = [("", t) for n in old for t in prose[n]] + [
        (q, a) for n in old for q, a in [*((plain(q), plain(a)) for q, a in facts(n, where[n], made[n])), *others(n)]
    ]
    words = " ".join([*(q + " " + a for q, a in background), *(plain(q + " " + a) for q, a in teacher.values()), *new])
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folder = tokenizer(root / "tok", [*re.findall(r"\w+|[^\w\s]", words), *(f"Town{i}" for i in range(PLACES)), *(f"stuff{i}" for i in range(STUFFS))])  # fmt: skip
        base, tok = fresh(folder, 64, seed)
        trained(base, tok, background, 900, seed)
        state = {k: v.clone() for k, v in base.state_dict().items()}
        (root / "docs").mkdir()
        (root / "docs" / "new.txt").write_text("\n\n".join(" ".join(prose[n]) for n in new))
        found: dict[str, float] = {}
        arms: dict[str, list[tuple[str, str]]] = {"none": [], "good teacher": [(plain(q), plain(a)) for q, a in good]}
        for arm, given in (("off", {"filters": False}), ("on", {}), ("on, all words supported", {"supported": 1.0})):
            apply("build/mechgpt", documents=str(root / "docs"), lm=Teacher(teacher), pairs=6, triples=0, passage=40, held_share=0.0,
                  out=root / arm, seed=seed, **given)  # fmt: skip
            chats = [json.loads(line)["messages"] for line in (root / arm / "qa-train.jsonl").read_text().splitlines()]
            kept = Counter(faults.get(q["content"], "good") for q, _ in chats)
            found |= {f"{arm}: pairs kept, {kind}": kept[kind] for kind in ("good", *BAD)}
            arms[arm] = [(plain(q["content"]), plain(a["content"])) for q, a in chats]
        for arm, texts in arms.items():
            base.load_state_dict(state)
            if texts:
                pick = np.random.default_rng(seed).permutation(len(background))[:60]
                trained(base, tok, [*texts, *[background[int(i)] for i in pick]], 200, seed, lr=1e-3)
            base.eval()
            for kind, names in (("new facts", new), ("old facts", old)):
                found[f"{arm}: {kind}, other wording"] = exact(base, tok, [x for n in names for x in others(n)])
            found[f"{arm}: new facts, wording of the pairs"] = exact(base, tok, [(plain(q), plain(a)) for q, a in good])
    return found


# ------------------------------------------------------------------------------------------------ paths

#: things and towns, each of which is asked about; questions of a seed that models answer, in so many tokens; texts that BM25 gives
THINGS, ANSWERED, TOKENS, BEST = 60, 20, 12, 2
#: ways of finding texts: by the question's words, or by those and the best text's
BY_WORDS = ("passages", "passages asked twice", "sentences", "sentences asked twice")
GOODS = ["amber", "barley", "bricks", "cheese", "clocks", "copper", "glass", "honey", "lace", "leather", "marble", "paper", "pepper", "pottery", "rope", "salt",
         "silk", "silver", "slate", "soap", "sugar", "tea", "tin", "wine"]  # fmt: skip
_FIRST, _LAST = ("bal", "cor", "dun", "fel", "gar", "hol", "lin", "mor", "nar", "pel", "ros", "tam"), ("by", "den", "field", "mouth", "ton", "wick")  # fmt: skip
_THING = ("ax", "eph", "ilion", "oss", "ulet", "yr")
_SHARED = ("Old", "New", "Long", "High", "Red", "Bridge", "Tower", "Abbey", "Castle", "Mill")


def index_of(texts: Sequence[str]) -> Callable[[str, int], list[int]]:
    """The places of the texts that BM25 puts first for a query."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)

    def best(query: str, count: int) -> list[int]:
        words = bm25s.tokenize([query], stopwords="en", show_progress=False)
        return [int(i) for i in index.retrieve(words, k=count, show_progress=False)[0][0]]

    return best


def paths(lms: dict[str, Any], shared: bool, seed: int) -> list[dict[str, Any]]:
    """What is found for every question by paths and by BM25, and what models answer given it; names of things share words, or do not."""
    rng = np.random.default_rng(seed)
    names = [f"{a}{b}".capitalize() for a in _FIRST for b in _LAST]
    towns = [names[int(i)] for i in rng.permutation(len(names))[:THINGS]]
    things = [f"{a}{b}".capitalize() for a in _FIRST[:10] for b in _THING]
    if shared:
        things = [f"The {_SHARED[i % 5]} {_SHARED[5 + i // 5 % 5]} of Saint {t}" for i, t in enumerate(things)]
    seat = {t: towns[int(i)] for t, i in zip(things, rng.permutation(THINGS), strict=True)}
    makes = {t: GOODS[int(rng.integers(len(GOODS)))] for t in towns}
    said = [*(f"{t} is located in {seat[t]}." for t in things), *(f"{t} produces {makes[t]} and beer." for t in towns)]
    text = [said[int(i)] for i in rng.permutation(len(said))]
    rows: list[dict[str, Any]] = []
    asked: list[tuple[dict[str, Any], str, str, str]] = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "docs").mkdir()
        (root / "docs" / "all.txt").write_text("\n\n".join(" ".join(text[i : i + 3]) for i in range(0, len(text), 3)))
        apply("build/mechgpt", documents=str(root / "docs"), passage=40, out=root / "g", seed=seed)
        graph = Graph.open(root / "g")
        lines = [(graph.label(s.subject), graph.label(s.predicate), graph.label(s.object)) for s in graph
                 if ":relation:" in s.predicate and isinstance(s.object, str)]  # fmt: skip
        corpus = open_corpus(Source(str(root / "docs")), Ctx())
        passages = [c.text for d in corpus.documents() for c in split(d, 40)]
    found_by = [(kind, texts, index_of(texts)) for kind, texts in (("passages", passages), ("sentences", text))]
    for number, i in enumerate(rng.permutation(THINGS)):
        thing = things[int(i)]
        right = makes[seat[thing]]
        question = f"What does the town produce in which {thing.replace('The ', 'the ')} is located?"
        near = [t for t in lines if t[0].casefold() in question.casefold()]
        far = [t for n in near for t in lines if t[0].casefold() == n[2].casefold()]
        found = {"paths": ". ".join(" ".join(t) for t in dict.fromkeys([*near, *far])), "nothing": ""}
        for kind, texts, best in found_by:
            once = best(question, BEST)
            again = best(f"{question} {texts[once[0]]}", BEST + 1)
            found[kind] = " ".join(texts[i] for i in once)
            found[f"{kind} asked twice"] = " ".join(texts[i] for i in list(dict.fromkeys([once[0], *again]))[:BEST])
        row: dict[str, Any] = {"question": question}
        for way, context in found.items():
            row[f"{way}: answer there"] = right in re.findall(r"\w+", context)
            row[f"{way}: words"] = len(context.split())
            if number < ANSWERED and way != "sentences":  # none of which ever holds the answer
                prompt = (f"{context}\n" if context else "") + f"Question: {question}\nAnswer: It produces"
                asked.append((row, way, prompt, right))
        rows.append(row)
    for name, lm in lms.items():
        replies = lm.generate([prompt for _, _, prompt, _ in asked], max_tokens=TOKENS, stop=("\n",))
        for (row, way, _, right), [reply] in zip(asked, replies, strict=True):
            goods = [w for w in re.findall(r"\w+", reply.text.casefold()) if w in GOODS]
            row[f"{way}: answered by {name}"] = goods[:1] == [right]
    return rows


def shares(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the questions with Wilson intervals, and paired differences of paths and passages with bootstrap intervals."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {"questions": len(rows)}
    kinds = [k.removeprefix("paths: ") for k in rows[0] if k.startswith("paths: ") and "words" not in k]
    for way in ("paths", *BY_WORDS, "nothing"):
        made[f"{way}: words"] = float(np.mean([r[f"{way}: words"] for r in rows]))
        for what in kinds:
            own = [r[f"{way}: {what}"] for r in rows if f"{way}: {what}" in r]
            if not own:
                continue
            one = wilson_interval(sum(own), len(own))
            made[f"{way}: {what}"] = {"value": sum(own) / len(own), "n": len(own), "low": one.low, "high": one.high}
    for way, what in itertools.product((*BY_WORDS, "nothing"), kinds):
        change = np.array(
            [float(r[f"paths: {what}"]) - float(r[f"{way}: {what}"]) for r in rows if f"{way}: {what}" in r]
        )
        if not len(change):
            continue
        draws = change[rng.integers(len(change), size=(5000, len(change)))].mean(axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        made[f"paths minus {way}: {what}"] = {"value": float(change.mean()), "low": float(low), "high": float(high)}
    return made


def main(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    if not words or "filters" in words:
        rows = []
        for seed in SEEDS:
            rows.append(part("build-mechgpt-filters", f"seed {seed}", partial(filters, seed)))
            print(json.dumps(rows[-1]), flush=True)
        asked = ("new facts, other wording", "new facts, wording of the pairs", "old facts, other wording")
        pairs = [(f"{a}: {k}", f"{b}: {k}") for k in asked for a, b in (("on", "off"), ("on, all words supported", "off"), ("good teacher", "off"))]  # fmt: skip
        save("build-mechgpt-filters", {
            "what": f"sixty new facts, a teacher of whom {SHARE:.0%} of the pairs are bad, a third each: {', '.join(BAD)}",
            "seeds": rows, "means": {k: float(np.mean([r[k] for r in rows])) for k in rows[0]},
            "paired": {f"{a} minus {b}": compared(rows, a, b) for a, b in pairs},
        })  # fmt: skip
    if not words or "paths" in words:
        lms: dict[str, Any] = {
            Path(w).name: open_lm(Source(w), Ctx(dtype="bfloat16")) for w in words if Path(w).is_dir()
        }
        told: dict[str, Any] = {
            "models": list(lms),
            "answered of each seed": ANSWERED,
            "tokens": TOKENS,
            "found by words": BEST,
        }
        for world in ("names of own words", "names that share words"):
            rows = []
            for seed in SEEDS:
                own = part("build-mechgpt-paths", f"{world} {seed}", partial(paths, {}, "share" in world, seed))
                for name, lm in lms.items():
                    more = partial(paths, {name: lm}, "share" in world, seed)
                    own = [a | b for a, b in zip(own, part(f"build-mechgpt-paths-{name}", f"{world} {seed}", more), strict=True)]  # fmt: skip
                rows += own
                told[world] = {"example": rows[0], **shares(rows)}
                save("build-mechgpt-paths", told)
            print(world, {k: v["value"] for k, v in shares(rows).items() if isinstance(v, dict)}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
