"""Symbolic distillation of facts from a small real language model: precision of what is kept as the critic's cut tightens.

    INTERFUSE_SHARED_DATA=... python benchmarks/build_symbolic_kd.py [HEADS PER RELATION]

The teacher writes tails for heads of LRE relations; gold facts judge them. Heads are dealt into five folds: for each fold the critic learns from the
judged triples of the other four and chooses its cut there, so that every triple is judged by a critic that never saw its head. Beside the critic
stands a filter without training, how often the teacher wrote the same tail, and plain prompting: the greedy tail alone, kept by its
log-probability. Intervals of gains are drawn over heads, those of shares are Wilson's. Diversity is the share of distinct tails of a relation
in what is kept; the tails are of a word or two, too short for overlaps of phrases. What is written for one relation is kept: a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from build_bertnet import right
from real_models import smollm2
from record import part, save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import open_lm
from interfuse.kit.commonsense import Relation, request
from interfuse.kit.critics import cut_at_recall, held_out, train_critic
from interfuse.kit.stats import wilson_interval

PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
RELATIONS = {
    "antonym": ("linguistic/adj_antonym", "is the opposite of"), "superclass": ("commonsense/object_superclass", "is a kind of"),
    "made by": ("factual/product_by_company", "is made by the company"), "past tense": ("linguistic/verb_past_tense", "has the past tense"),
    "landmark": ("factual/landmark_in_country", "is in the country of"), "sport": ("factual/person_plays_pro_sport", "plays professional"),
}  # fmt: skip
SHOTS, FOLDS, RECALLS, DRAWS = 4, 5, (0.9, 0.8, 0.7, 0.6, 0.5, 0.3), 1000
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)


def main(most: int = 40) -> None:
    model = smollm2()
    if not (PLACE / "lre-relations").is_dir() or model is None:
        print("skipped: the LRE relations or the model are not here")
        return
    lm: Any = open_lm(Source(str(model), "SmolLM2-135M-Instruct"), Ctx(dtype="bfloat16"))
    judged: list[dict[str, Any]] = []
    logs: dict[tuple[str, str], tuple[str, float]] = {}
    for name in RELATIONS:
        judged += part("build-symbolic-kd", f"{name} {most}", partial(written, lm, name, most))
        mine = [r for r in judged if r["relation"] == name]
        again = part(
            "build-symbolic-kd",
            f"{name} {most}, likelihoods",
            partial(likelihoods, lm, name, [r for r in mine if r["greedy"]]),
        )
        logs |= {(name, head): (tail, value) for head, tail, value in again}
        print(name, len(mine), np.mean([r["valid"] for r in mine]), flush=True)
    triples = [r for r in judged if not r["greedy"]]
    alone = [r for r in judged if r["greedy"]]
    truth = np.array([bool(r["valid"]) for r in triples])
    heads = [f"{r['relation']} {r['head']}" for r in triples]
    scores = {"critic": folded(triples, heads), "agreement": agreed(triples, heads)}
    table: dict[str, Any] = {}
    for name, by_fold in scores.items():
        table[name] = []
        for recall in RECALLS:
            kept = np.zeros(len(triples), bool)
            for own, p, bar in by_fold:
                kept[own] = p > bar[recall]
            table[name].append({"recall aimed at": recall, **against(truth, kept, heads), **distinct(triples, kept)})
    save("build-symbolic-kd", {
        "model": "SmolLM2-135M-Instruct (4-bit weights, computed in bfloat16)", "relations": {n: {"triples": sum(r["relation"] == n for r in triples),
            "share valid": float(np.mean([r["valid"] for r in triples if r["relation"] == n])),
            "share valid, weighted by how often": float(np.average([r["valid"] for r in triples if r["relation"] == n],
                                                                   weights=[r["times"] for r in triples if r["relation"] == n])),
            "greedy tail right": float(np.mean([r["valid"] for r in alone if r["relation"] == n]))} for n in RELATIONS},
        "triples": len(triples), "heads": len(set(heads)), "share valid": float(truth.mean()),
        "every triple": {**share(int(truth.sum()), len(truth)), **distinct(triples, np.ones(len(triples), bool))},
        "greedy tails": {"n": len(alone), **share(sum(r["valid"] for r in alone), len(alone)), **distinct(alone, np.ones(len(alone), bool)),
                         "the likeliest": likeliest(alone, logs)}, "filters": table,
        "examples": [[r["head"], r["relation"], r["tail"], r["valid"]] for r in triples[:: max(len(triples) // 12, 1)]]})  # fmt: skip
    print(json.dumps(table, indent=1))


def share(good: int, n: int) -> dict[str, float]:
    interval = wilson_interval(good, n)
    return {"right": interval.estimate, "low": interval.low, "high": interval.high}


def distinct(rows: list[dict[str, Any]], kept: Any) -> dict[str, float]:
    """How much of what is kept are different tails of a relation."""
    chosen = [(r["relation"], r["tail"].lower()) for r, k in zip(rows, kept, strict=True) if k]
    return {"distinct tails": len(set(chosen)) / len(chosen)} if chosen else {}


def likeliest(alone: list[dict[str, Any]], logs: dict[tuple[str, str], tuple[str, float]]) -> list[dict[str, Any]]:
    """The greedy tails as they are kept by log-probability: right ones, and the share of all right greedy ones (recall)."""
    assert all(logs[r["relation"], r["head"]][0] == r["tail"] for r in alone), "other greedy tails than those judged"
    order = sorted(alone, key=lambda r: -logs[r["relation"], r["head"]][1])
    right = sum(r["valid"] for r in alone)
    rows = []
    for part_kept in SHARES:
        own = order[: round(part_kept * len(order))]
        good = sum(r["valid"] for r in own)
        rows.append(
            {
                "kept": len(own),
                **share(good, len(own)),
                "recall": good / max(right, 1),
                **distinct(own, np.ones(len(own), bool)),
            }
        )
    return rows


def likelihoods(lm: Any, name: str, alone: list[dict[str, Any]]) -> list[tuple[str, str, float]]:
    """Head, greedy tail and the tail's mean log-probability per token after the same examples."""
    gold, heads = facts_of(name)
    relation = Relation(name, RELATIONS[name][1], tuple((h, gold[h][0]) for h in heads[:SHOTS]))
    asked = [(request(relation, r["head"], Ctx().rng(f"asked {name}"), SHOTS), f" {r['tail']}.") for r in alone]
    return [(r["head"], r["tail"], s.logprob / max(s.tokens, 1)) for r, s in zip(alone, lm.score(asked), strict=True)]


def written(lm: Any, name: str, most: int) -> list[dict[str, Any]]:
    """The teacher's triples of one relation, sampled and greedy, judged by the gold facts."""
    gold, _ = facts_of(name)
    return [{k: row[k] for k in ("head", "relation", "tail", "times")}
            | {"valid": int(any(right(row["tail"], g) for g in gold[row["head"]])), "greedy": greedy}
            for greedy in (False, True) for row in corpus(lm, name, most, greedy=greedy)]  # fmt: skip


def facts_of(name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Head -> tails of a relation of the LRE collection, and the heads in the order in which they are drawn."""
    samples = json.loads((PLACE / "lre-relations" / f"{RELATIONS[name][0]}.json").read_text())["samples"]
    gold: dict[str, list[str]] = {}
    for s in samples:
        gold.setdefault(s["subject"], []).append(s["object"])
    return gold, [list(gold)[int(i)] for i in Ctx().rng(f"heads {name}").permutation(len(gold))]


def corpus(lm: Any, name: str, most: int, *, greedy: bool) -> list[dict[str, Any]]:
    """The rows of the teacher's corpus of one relation."""
    gold, heads = facts_of(name)
    schema = {name: {"phrase": RELATIONS[name][1], "examples": [[h, gold[h][0]] for h in heads[:SHOTS]]}}
    with tempfile.TemporaryDirectory() as place:
        apply("build/symbolic-kd", lm=lm, relations=schema, heads=heads[SHOTS : SHOTS + most], tails=1 if greedy else 5, shots=SHOTS, top_p=0.9,
              temperature=0.0 if greedy else 1.0, max_tokens=8, recall=1.0, out=Path(place) / "g")  # fmt: skip
        return [json.loads(line) for line in (Path(place) / "g" / "corpus.jsonl").read_text().splitlines()]


def dealt(heads: list[str], fold: int) -> Any:
    """Which rows belong to a fold: whole heads."""
    names = list(dict.fromkeys(heads))
    place = {names[int(i)]: n % FOLDS for n, i in enumerate(Ctx().rng("folds").permutation(len(names)))}
    return np.array([place[h] == fold for h in heads])


def bars(p: Any, valid: list[bool]) -> dict[float, float]:
    return {recall: cut_at_recall(p, valid, recall).threshold for recall in RECALLS}


def folded(rows: list[dict[str, Any]], heads: list[str]) -> list[tuple[Any, Any, dict[float, float]]]:
    """For each fold: its rows, the critic's probability of each, and the cuts, which were chosen on other heads."""
    from interfuse.build.symbolic_kd import views

    relations = {name: Relation(name, phrase, ()) for name, (_, phrase) in RELATIONS.items()}

    def triples(chosen: list[dict[str, Any]]) -> list[tuple[Relation, str, str]]:
        return [(relations[r["relation"]], r["head"], r["tail"]) for r in chosen]

    made = []
    for fold in range(FOLDS):
        ctx, own = Ctx(seed=fold), dealt(heads, fold)
        learn = [(r, h) for r, h, o in zip(rows, heads, own, strict=True) if not o]
        cut = held_out([h for _, h in learn], 0.3, ctx.rng("cut"))
        inner, outer = ([x for x, c in zip(learn, cut, strict=True) if c == side] for side in (False, True))
        critic = train_critic([f"{r['head']} {relations[r['relation']].phrase} {r['tail']}" for r, _ in inner], [r["valid"] for r, _ in inner],
                              groups=[h for _, h in inner], rng=ctx.rng("critic"))  # fmt: skip
        seen = views(critic, triples([r for r, _ in outer]), ctx.rng("views"))
        p = views(critic, triples([r for r, o in zip(rows, own, strict=True) if o]), ctx.rng("views"))
        made.append((own, p, bars(seen, [bool(r["valid"]) for r, _ in outer])))
    return made


def agreed(rows: list[dict[str, Any]], heads: list[str]) -> list[tuple[Any, Any, dict[float, float]]]:
    """The same with the count of equal tails as the score."""
    made = []
    for fold in range(FOLDS):
        own = dealt(heads, fold)
        times, valid = np.array([float(r["times"]) for r in rows]), [bool(r["valid"]) for r in rows]
        made.append((own, times[own], bars(times[~own], [v for v, o in zip(valid, own, strict=True) if not o])))
    return made


def against(truth: Any, kept: Any, heads: list[str]) -> dict[str, Any]:
    """Precision and recall of what is kept, and what precision is gained over keeping all, with an interval over heads."""
    if not kept.any():
        return {"kept": 0}
    names = {h: i for i, h in enumerate(dict.fromkeys(heads))}
    counts = np.zeros((len(names), 4))
    for h, t, k in zip(heads, truth, kept, strict=True):
        counts[names[h]] += (1, t, k, t and k)

    def gain(total: Any) -> float:
        return float(total[3] / max(total[2], 1) - total[1] / max(total[0], 1))

    rng = Ctx().rng("draws")
    drawn = [gain(counts[rng.integers(0, len(names), len(names))].sum(0)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    total = counts.sum(0)
    own = wilson_interval(int(total[3]), int(total[2]))
    return {"kept": int(total[2]), "precision": own.estimate, "precision low": own.low, "precision high": own.high, "recall": float(total[3] / max(total[1], 1)),
            "gain": gain(total), "low": float(low), "high": float(high)}  # fmt: skip


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
