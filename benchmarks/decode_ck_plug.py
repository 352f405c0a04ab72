"""CK-PLUG on a real small model: contexts that contradict what it knows, and the knob between them.

``table``: facts of ``lre-relations`` that the model completes rightly without a context get a context that states another object of the
same relation. Measured over ``alpha``: how often the reply holds the context's answer (ConR), the model's own (ParR), and the memory's
share MR = ParR / (ParR + ConR). Beside it plain reading of the context, auto, the gate left out, CAD and AdaCAD. ``mixed``: known and
unknown facts, each with a true context, one that contradicts it and one on something else; measured is how often the reply holds the true
answer. Five seeds draw the contradictions (and, in ``mixed``, facts) anew; intervals are over facts, paired.

    INTERFUSE_SHARED_DATA=... python benchmarks/decode_ck_plug.py [table] [mixed]
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_models import smollm2
from record import part, shared
from scipy.stats import page_trend_test, spearmanr
from seeds import each_seed

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import apply
from interfuse.decode.engine import Streams, Text
from interfuse.decode.fused import FusedLM
from interfuse.decode.room import Combined, Step
from interfuse.decode.streams import Tape
from interfuse.kit.resample import paired_bootstrap

DATA = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
RELATIONS = ("country_capital_city", "country_language", "country_currency", "country_largest_city", "company_hq", "city_in_country",
             "landmark_in_country", "food_from_country", "product_by_company", "person_plays_pro_sport")  # fmt: skip
SETTINGS: dict[str, Any] = {
    "model": "SmolLM2-135M-Instruct, float32",
    "relations": list(RELATIONS),
    "tokens": 6,
    "known facts": 200,
}
MIXED_SETTINGS = {**SETTINGS, "known and unknown facts, each, per seed": 20}
ALPHAS = [round(0.1 * i, 1) for i in range(11)]
DRAWS = 4000
Variant = Callable[[Step], Combined]


def plain(text: str) -> str:
    """A text for comparing: lower case, letters and digits only."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def candidates(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Facts in random order, each with objects that contradict it."""
    rows = []
    for name in RELATIONS:
        relation = json.loads((DATA / "lre-relations" / "factual" / f"{name}.json").read_text())
        samples = relation["samples"]
        objects = sorted({s["object"] for s in samples})
        for sample in samples:
            others = [o for o in objects if plain(o) not in plain(sample["object"]) and plain(sample["object"]) not in plain(o)
                      and plain(o) not in plain(sample["subject"])]  # fmt: skip
            if not others or plain(sample["object"]) in plain(sample["subject"]):
                continue
            statement = relation["prompt_templates"][0].format(sample["subject"])
            question = relation["prompt_templates"][-1].format(sample["subject"])
            rows.append(
                {
                    "relation": name,
                    "question": question,
                    "statement": statement,
                    "memory": sample["object"],
                    "others": others,
                }
            )
    return [rows[i] for i in rng.permutation(len(rows))]


def variant(slug: str, **params: Any) -> Variant:
    """A combiner under these parameters."""
    method = load(slug, room="decode")
    method.check(params)
    return lambda step: method.target(step, **params)


def words(lm: FusedLM, ids: Sequence[int]) -> str:
    return lm.engine.spell(ids).split("\n")[0]


def alone(lm: FusedLM, questions: Sequence[str]) -> list[str]:
    """Greedy continuations by the model itself."""
    engine, found = lm.engine, list[str]()
    rows = [engine.tokenizer(q)["input_ids"] for q in questions]
    for start in range(0, len(rows), 48):
        block = rows[start : start + 48]
        tape, written = Tape(engine.weights[0]), [list[int]() for _ in block]
        logits = tape.start(block)
        for number in range(SETTINGS["tokens"]):
            tokens = logits.argmax(dim=1)
            for text, token in zip(written, tokens.tolist(), strict=True):
                text.append(token)
            if number + 1 < SETTINGS["tokens"]:
                logits = tape.feed(tokens[:, None])
        for text in written:
            end = next((i for i, token in enumerate(text) if token in engine.ends), len(text))
            found.append(words(lm, text[:end]))
    return found


def answers(lm: FusedLM, prompts: Sequence[Any], variants: Mapping[str, Variant]) -> tuple[dict[str, list[str]], dict[str, float]]:  # fmt: skip
    """Greedy replies under every variant, and the share of tokens at which each stepped in.

    Variants that have written the same so far are read once, so that many of them cost little more than one.
    """
    engine, steps = lm.engine, SETTINGS["tokens"]
    encoded = engine.encode(prompts)
    written = {name: [list[int]() for _ in prompts] for name in variants}
    stepped: dict[str, list[float]] = {name: [] for name in variants}
    for start in range(0, len(prompts), 24):
        here = range(start, min(start + 24, len(prompts)))
        streams = Streams(engine, [[rows[i] for i in here] for rows in encoded])
        logits = streams.start()
        places = {(name, i): i - start for name in variants for i in here}  # which row a variant's text is
        for number in range(steps):
            found: dict[tuple[int, int], int] = {}  # row and token -> row of the next step
            following: dict[tuple[str, int], int] = {}
            for name, combine in variants.items():
                mine = [i for i in here if (name, i) in places]
                if not mine:
                    continue
                at = torch.tensor([places[name, i] for i in mine])
                made = combine(Step(model=logits[0][at], plain=logits[1][at], number=number))
                stepped[name] += made.trace.get("intervened", torch.zeros(0)).tolist()
                for i, row, token in zip(mine, at.tolist(), made.scores.argmax(dim=1).tolist(), strict=True):
                    if token not in engine.ends:
                        written[name][i].append(token)
                        following[name, i] = found.setdefault((row, token), len(found))
            if not found or number + 1 == steps:
                break
            places = following
            streams.select(torch.tensor([row for row, _ in found]))
            tokens = torch.tensor([token for _, token in found])
            logits = streams.push(tokens, [Text(0, 0, 0)] * len(found))
    return (
        {name: [words(lm, ids) for ids in texts] for name, texts in written.items()},
        {name: float(np.mean(v)) for name, v in stepped.items() if v},
    )


def opened() -> FusedLM:
    lm: FusedLM = apply("decode/ck-plug", model=str(smollm2()), templates="none", rows=24)
    return lm


def told(lm: FusedLM) -> dict[str, list[dict[str, Any]]]:
    """The first facts that the model knows, and those it was asked in vain until then."""

    def ask() -> dict[str, list[dict[str, Any]]]:
        pool, found = candidates(Ctx(seed=0).rng("facts")), {"known": list[Any](), "unknown": list[Any]()}
        for start in range(0, len(pool), 48):
            block = pool[start : start + 48]
            for row, reply in zip(block, alone(lm, [r["question"] for r in block]), strict=True):
                found["known" if plain(row["memory"]) in plain(reply) else "unknown"].append(row)
            if len(found["known"]) >= SETTINGS["known facts"]:
                break
        found["known"] = found["known"][: SETTINGS["known facts"]]
        print({k: len(v) for k, v in found.items()}, flush=True)
        return found

    found: dict[str, list[dict[str, Any]]] = part("ck-plug-facts", "facts", ask)
    return found


def holds(replies: Sequence[str], wanted: Sequence[str]) -> str:
    """One digit per reply: whether it holds what is wanted."""
    return "".join(str(int(plain(w) in plain(t))) for t, w in zip(replies, wanted, strict=True))


# ------------------------------------------------------------------------------------------------ contexts that contradict


VARIANTS: dict[str, Variant] = {
    "plain": variant("ck-plug", gate="never"), "auto": variant("ck-plug", alpha="auto"),
    **{f"alpha {a}": variant("ck-plug", alpha=a) for a in ALPHAS},
    **{f"no gate, alpha {a}": variant("ck-plug", alpha=a, gate="always") for a in (0.0, 1.0)},
    **{f"relative gate, alpha {a}": variant("ck-plug", alpha=a, gate="relative") for a in (0.0, 1.0)},
    "cad": variant("cad"), "adacad": variant("adacad"),
}  # fmt: skip


def one_table(seed: int) -> dict[str, Any]:
    lm = opened()
    rng, facts = Ctx(seed=seed).rng("contradictions"), told(lm)["known"]
    others = [str(r["others"][int(rng.integers(len(r["others"])))]) for r in facts]
    prompts = [
        {"question": r["question"], "context": f"{r['statement']} {o}."} for r, o in zip(facts, others, strict=True)
    ]
    replies, stepped = answers(lm, prompts, VARIANTS)
    memory = [r["memory"] for r in facts]
    row = {n: {"context": holds(t, others), "memory": holds(t, memory)} for n, t in replies.items()}
    print(seed, {n: round(float(_share(*(_bits(v[k]).mean() for k in ("memory", "context")))), 3) for n, v in row.items()}, flush=True)  # fmt: skip
    return {"seed": seed, "facts": len(facts), "stepped in": stepped, "each fact": row}


def _bits(digits: str) -> np.ndarray:
    return np.array(list(digits), dtype=float)


def _share(memory: Any, context: Any) -> Any:
    return memory / np.maximum(memory + context, 1e-9)


def _interval(values: np.ndarray) -> list[float]:
    return [float(x) for x in np.quantile(values, (0.025, 0.975))]


def write_table(runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    """Facts are what is drawn again for intervals; a fact counts by its mean over the seeds."""
    count = runs[0]["facts"]
    draws = rng.integers(count, size=(DRAWS, count))

    def every(name: str, what: str) -> np.ndarray:
        """[seeds, facts]"""
        return np.array([_bits(r["each fact"][name][what]) for r in runs])

    memory, context = ({n: every(n, k) for n in VARIANTS} for k in ("memory", "context"))
    hit = {n: np.maximum(memory[n], context[n]) for n in VARIANTS}
    drawn = {
        n: _share(memory[n].mean(axis=0)[draws].mean(axis=1), context[n].mean(axis=0)[draws].mean(axis=1))
        for n in VARIANTS
    }
    share = {n: float(_share(memory[n].mean(), context[n].mean())) for n in VARIANTS}
    seeds = {n: [float(_share(m.mean(), c.mean())) for m, c in zip(memory[n], context[n], strict=True)] for n in VARIANTS}  # fmt: skip

    def differs(one: str, base: str) -> dict[str, Any]:
        per = [a - b for a, b in zip(seeds[one], seeds[base], strict=True)]
        return {"MR": share[one] - share[base], "interval": _interval(drawn[one] - drawn[base]), "per seed": per}

    def rate(values: np.ndarray) -> dict[str, Any]:
        return {"mean": float(values.mean()), "interval": _interval(values.mean(axis=0)[draws].mean(axis=1))}

    names = [f"alpha {a}" for a in ALPHAS]
    lean = np.stack([(memory[n] - context[n]).mean(axis=0) for n in names], axis=1)  # [facts, alphas]
    trend = page_trend_test(lean, method="asymptotic")
    return {
        "what": "MR is the memory's share of the answers, memory / (memory + context); intervals over facts, each drawn with all its seeds",
        "facts": count,
        "conditions": {n: {"MR": share[n], "MR interval": _interval(drawn[n]), "MR per seed": seeds[n], "ConR": rate(context[n]),
                           "ParR": rate(memory[n]), "hit rate": rate(hit[n]),
                           "tokens where it stepped in": float(np.mean([r["stepped in"].get(n, 0.0) for r in runs]))} for n in VARIANTS},
        "over alpha": {
            "spearman of MR, per seed": [float(spearmanr(ALPHAS, [seeds[n][s] for n in names]).statistic) for s in range(len(runs))],
            "Page's trend over facts, memory less context": {"L": float(trend.statistic), "p": float(trend.pvalue)},
            "steps": {f"{a} to {b}": differs(f"alpha {b}", f"alpha {a}") for a, b in itertools.pairwise(ALPHAS)},
            "ends": differs("alpha 1.0", "alpha 0.0"),
        },
        "against plain": {n: differs(n, "plain") for n in ("alpha 0.0", "alpha 1.0", "auto", "cad", "adacad")},
        "hit rate at alpha 0, with the gate less without it": paired(hit["no gate, alpha 0.0"], hit["alpha 0.0"], rng),
        "context answers at alpha 0, with the gate less without it": paired(context["no gate, alpha 0.0"], context["alpha 0.0"], rng),
    }  # fmt: skip


def paired(base: np.ndarray, one: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """The mean difference of two conditions [seeds, facts], with an interval over facts."""
    found = paired_bootstrap(base.mean(axis=0), one.mean(axis=0), rng)
    return {"difference": found.estimate, "interval": [found.low, found.high], "per seed": [float(x) for x in (one - base).mean(axis=1)]}  # fmt: skip


# ------------------------------------------------------------------------------------------------ mixed contexts


MIXED = {n: VARIANTS[n] for n in ("plain", "auto", "alpha 0.0", "alpha 1.0", "cad", "adacad")} | {
    "memory alone": VARIANTS["no gate, alpha 1.0"]
}
CONTEXTS = ("true", "contradicts", "elsewhere")


def one_mixed(seed: int) -> dict[str, Any]:
    """Every seed asks other facts; all three contexts of a fact are read."""
    lm, size = opened(), MIXED_SETTINGS["known and unknown facts, each, per seed"]
    facts, rng = told(lm), Ctx(seed=seed).rng("mixed")
    rows, prompts = list[Any](), list[Any]()
    for kind in ("known", "unknown"):
        rows += facts[kind][size * seed : size * (seed + 1)]
    for r in rows:
        far = [f for f in facts["known"] + facts["unknown"] if f["relation"] != r["relation"] and plain(r["memory"]) not in plain(f["statement"] + " " + f["memory"])]  # fmt: skip
        other, elsewhere = r["others"][int(rng.integers(len(r["others"])))], far[int(rng.integers(len(far)))]
        for said in (f"{r['statement']} {r['memory']}.", f"{r['statement']} {other}.", f"{elsewhere['statement']} {elsewhere['memory']}."):  # fmt: skip
            prompts.append({"question": r["question"], "context": said})
    replies, _ = answers(lm, prompts, MIXED)
    wanted = [r["memory"] for r in rows for _ in CONTEXTS]
    right = {n: holds(t, wanted) for n, t in replies.items()}
    print(seed, {n: round(float(_bits(v).mean()), 3) for n, v in right.items()}, flush=True)
    return {"seed": seed, "facts": len(rows), "right": right}


def write_mixed(runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    size = MIXED_SETTINGS["known and unknown facts, each, per seed"]

    def every(name: str) -> np.ndarray:
        """[seeds, known or unknown, facts, contexts]"""
        return np.array([_bits(r["right"][name]).reshape(2, size, len(CONTEXTS)) for r in runs])

    table = {n: every(n) for n in MIXED}

    def cut(values: np.ndarray, label: str) -> np.ndarray:
        """Per fact, the mean over contexts, of the part of the table that is meant."""
        kind, _, context = label.partition(", ")
        kinds = [0, 1] if kind == "all" else [("known", "unknown").index(kind)]
        contexts = list(range(len(CONTEXTS))) if not context else [CONTEXTS.index(context)]
        found: np.ndarray = values[:, kinds][..., contexts].mean(axis=-1).reshape(-1)
        return found

    labels = ["all", *(f"all, {c}" for c in CONTEXTS), *(f"{k}, {c}" for k in ("known", "unknown") for c in CONTEXTS)]
    pairs = [("auto", b) for b in MIXED if b != "auto"] + [("alpha 0.0", "plain"), ("alpha 1.0", "plain"), ("cad", "plain")]  # fmt: skip
    compared: dict[str, Any] = {}
    for one, base in pairs:
        rows = compared[f"{one} against {base}"] = {}
        for label in labels:
            found = paired_bootstrap(cut(table[base], label), cut(table[one], label), rng)
            rows[label] = {"difference": found.estimate, "interval": [found.low, found.high]}
        rows["all, per seed"] = [float(x) for x in (table[one] - table[base]).mean(axis=(1, 2, 3))]
    return {
        "what": "share of replies that hold the true answer; as many facts that the model knows as ones it does not, each with three contexts; intervals over facts",
        "facts": len(runs) * 2 * size,
        "right": {n: {label: float(cut(v, label).mean()) for label in labels} for n, v in table.items()},
        "comparisons": compared,
    }  # fmt: skip


if __name__ == "__main__":
    parts = {
        "table": ("decode-ck-plug", SETTINGS, one_table, write_table),
        "mixed": ("decode-ck-plug-mixed", MIXED_SETTINGS, one_mixed, write_mixed),
    }
    shared("lre-relations")
    for name in sys.argv[1:] or list(parts):
        file, settings, experiment, figures = parts[name]
        each_seed(file, settings, experiment, figures, (0, 1, 2, 3, 4))
