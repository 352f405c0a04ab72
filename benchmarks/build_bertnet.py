"""What a small real language model knows, harvested with BertNet and by plain prompting, against packaged gold facts.

    INTERFUSE_SHARED_DATA=... python benchmarks/build_bertnet.py [FACTS PER RELATION]

Relations of the LRE collection (capital, currency, language, largest city, antonym). Four facts of each are the seeds; the subjects of
the others are given, and the object is asked for. Every system says a confidence, so that the accuracy of what is kept can be followed while
the filter tightens. Skips, and says so, when the data or the model is not there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from real_models import smollm2
from record import save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import open_lm
from interfuse.data.statements import relation_id
from interfuse.kit.near_duplicates import plain_key
from interfuse.kit.stats import compare_outcomes, score_interval, wilson_interval

#: the folder of data: named by INTERFUSE_SHARED_DATA, or ``shared/data`` beside the repository
PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

RELATIONS: dict[str, tuple[str, list[str]]] = {
    "capital": ("factual/country_capital_city", ["The capital city of <ENT0> is <ENT1>", "The capital of <ENT0> is <ENT1>",
                                                 "<ENT0> has its capital in <ENT1>"]),
    "currency": ("factual/country_currency", ["The official currency of <ENT0> is the <ENT1>", "<ENT0> has a currency called the <ENT1>",
                                              "In <ENT0>, one pays with the <ENT1>"]),
    "language": ("factual/country_language", ["People in <ENT0> speak <ENT1>", "The language used in <ENT0> is <ENT1>",
                                              "In <ENT0>, the primary language is <ENT1>"]),
    "largest city": ("factual/country_largest_city", ["The largest city in <ENT0> is <ENT1>", "The biggest city in <ENT0> is <ENT1>",
                                                      "In <ENT0>, most people live in <ENT1>"]),
    "antonym": ("linguistic/adj_antonym", ["The opposite of <ENT0> is <ENT1>", "If something is not <ENT0>, it is <ENT1>",
                                           "The words <ENT0> and <ENT1> are antonyms"]),
}  # fmt: skip
SHARES = (1.0, 0.75, 0.5, 0.25)


def right(answer: str, gold: str) -> bool:
    """The gold words at the beginning of the answer, or the answer as the beginning of the gold words."""
    a, g = plain_key(answer).split(), plain_key(gold).split()
    return bool(a) and (a[: len(g)] == g or (len(a) < len(g) and g[: len(a)] == a))


def prompted(lm: Any, prompts: list[str], answers: int = 8) -> list[tuple[str, float]]:
    """Greedy answers up to the first mark, and their mean log-probability per token."""
    replies = [r[0].text for r in lm.generate(prompts, max_tokens=answers, stop=("\n", ".", ","))]
    texts = [(" " + t.strip()) if t.strip() else " nothing" for t in replies]
    return [
        (t.strip(), s.logprob / s.tokens)
        for t, s in zip(texts, lm.score(list(zip(prompts, texts, strict=True))), strict=True)
    ]


def harvested(lm: Any, spec: dict[str, Any], subjects: list[str], **params: Any) -> dict[str, tuple[str, float]]:
    """Subject -> (best object, score) of the method itself."""
    with tempfile.TemporaryDirectory() as place:
        graph = apply("build/bertnet", lm=lm, out=Path(place) / "g", relations={"r": spec}, subjects=subjects, most=len(subjects),
                      max_word_repeat=3, objects=1, **params)  # fmt: skip
        return {graph.label(s.subject).lower(): (graph.label(str(s.object)), float(s.evidence[0].score or 0.0))
                for s in graph.statements(p=relation_id("r"))}  # fmt: skip


def curve(rows: list[tuple[bool, float]]) -> list[dict[str, Any]]:
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


def main(most: int = 20) -> None:
    folder = PLACE / "lre-relations"
    model = smollm2()
    if not folder.is_dir() or model is None:
        print("skipped: the LRE relations or the model are not here")
        return
    ctx = Ctx()
    lm = open_lm(Source(str(model), "SmolLM2-135M-Instruct"), ctx)
    rows: dict[str, list[tuple[bool, float]]] = {}
    facts: dict[str, Any] = {}
    examples: dict[str, Any] = {}
    for name, (file, prompts) in RELATIONS.items():
        samples = json.loads((folder / f"{file}.json").read_text())["samples"]
        gold: dict[str, list[str]] = {}
        for s in samples:
            gold.setdefault(s["subject"], []).append(s["object"])
        order = [list(gold)[int(i)] for i in ctx.rng(f"seeds {name}").permutation(len(gold))]
        seeds, asked = order[:4], order[4 : 4 + most]
        spec = {"prompts": prompts, "seeds": [[s, gold[s][0]] for s in seeds]}
        start = prompts[0].replace("<ENT1>", "").strip()
        shown = "\n".join(prompts[0].replace("<ENT0>", s).replace("<ENT1>", gold[s][0]) + "." for s in seeds) + "\n"
        systems: dict[str, dict[str, tuple[str, float]]] = {}
        took = {}
        for system in ("one prompt, no example", "one prompt, four examples", "search only", "BertNet"):
            began = time.perf_counter()
            if system.startswith("one prompt"):
                lead = shown if "four" in system else ""
                made = prompted(lm, [lead + start.replace("<ENT0>", s) for s in asked])
                systems[system] = {s.lower(): a for s, a in zip(asked, made, strict=True)}
            else:
                systems[system] = harvested(lm, spec, asked, rescore=system != "search only")
            took[system] = time.perf_counter() - began
        for system, answers in systems.items():
            found = [
                (
                    s.lower() in answers and any(right(answers[s.lower()][0], g) for g in gold[s]),
                    answers.get(s.lower(), ("", -99.0))[1],
                )
                for s in asked
            ]
            mean, spread = np.mean([v for _, v in found]), np.std([v for _, v in found]) or 1.0
            rows.setdefault(system, []).extend((ok, (v - mean) / spread) for ok, v in found)
            facts.setdefault(name, {"n": len(asked)})[system] = sum(ok for ok, _ in found) / len(found)
        facts[name]["seconds"] = took
        examples[name] = {
            system: [[s, answers.get(s.lower(), ("", 0))[0], gold[s][0]] for s in asked[:5]]
            for system, answers in systems.items()
        }
        print(name, json.dumps(facts[name]), flush=True)
        write(rows, facts, examples)


def write(rows: dict[str, list[tuple[bool, float]]], facts: dict[str, Any], examples: dict[str, Any]) -> None:
    """The results so far."""
    full = [ok for ok, _ in rows["BertNet"]]
    pairs = {}
    for system, found in rows.items():
        if system != "BertNet":
            change = compare_outcomes([ok for ok, _ in found], full)
            interval = score_interval(change.gained, change.lost, len(full))
            pairs[f"BertNet minus {system}"] = {
                "n": len(full),
                "difference": (change.gained - change.lost) / len(full),
                "low": interval.low,
                "high": interval.high,
            }
    save("build-bertnet", {"model": "SmolLM2-135M-Instruct (4-bit weights as bfloat16)", "data": "LRE relations", "relations": facts,
                           "accuracy as the filter tightens": {s: curve(r) for s, r in rows.items()}, "paired": pairs, "examples": examples})  # fmt: skip


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
