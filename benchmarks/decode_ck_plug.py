"""CK-PLUG on a real small model: contexts that contradict what it knows, and the knob between them.

Facts of ``lre-relations`` that the model completes rightly without a context get a context that states another object of the same
relation. Measured over ``alpha``: how often the reply holds the context's answer (ConR), the model's own (ParR), and the memory's share
MR = ParR / (ParR + ConR), with bootstrap intervals over the facts. Beside it plain reading of the context, auto, the gate left out,
CAD and AdaCAD.

    INTERFUSE_SHARED_DATA=... python benchmarks/decode_ck_plug.py [MODEL [FACTS]]
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from real_models import smollm2
from record import save
from scipy.stats import spearmanr

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import apply
from interfuse.decode.fused import FusedLM

DATA = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
RELATIONS = ("country_capital_city", "country_language", "country_currency", "country_largest_city", "company_hq", "city_in_country",
             "landmark_in_country", "food_from_country", "product_by_company", "person_plays_pro_sport")  # fmt: skip
TOKENS = 6


def plain(text: str) -> str:
    """A text for comparing: lower case, letters and digits only."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def candidates(rng: np.random.Generator) -> list[dict[str, str]]:
    """Facts with the statement that contradicts each."""
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
            other = others[int(rng.integers(len(others)))]
            statement = relation["prompt_templates"][0].format(sample["subject"])
            question = relation["prompt_templates"][-1].format(sample["subject"])
            rows.append(
                {
                    "relation": name,
                    "question": question,
                    "context": f"{statement} {other}.",
                    "memory": sample["object"],
                    "other": other,
                }
            )
    return [rows[i] for i in rng.permutation(len(rows))]


def rates(rows: list[dict[str, str]], replies: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """ConR, ParR, MR and hit rate with 95 % bootstrap intervals over the facts."""
    con = np.array([plain(r["other"]) in plain(t) for r, t in zip(rows, replies, strict=True)], dtype=float)
    par = np.array([plain(r["memory"]) in plain(t) for r, t in zip(rows, replies, strict=True)], dtype=float)
    draws = rng.integers(len(rows), size=(2000, len(rows)))
    c, p = con[draws].mean(axis=1), par[draws].mean(axis=1)
    mr = p / np.maximum(p + c, 1e-9)
    interval = lambda v: [float(x) for x in np.quantile(v, (0.025, 0.975))]  # noqa: E731
    either = np.maximum(con, par)
    return {
        "ConR": float(con.mean()), "ConR interval": interval(c), "ParR": float(par.mean()), "ParR interval": interval(p),
        "MR": float(par.mean() / max(par.mean() + con.mean(), 1e-9)), "MR interval": interval(mr),
        "hit rate": float(either.mean()), "hit rate interval": interval(either[draws].mean(axis=1)),
    }  # fmt: skip


def ask(lm: FusedLM, prompts: list[Any], trace: Any = None) -> list[str]:
    return [r[0].text.split("\n")[0] for r in lm.generate(prompts, max_tokens=TOKENS, trace=trace)]


def main() -> None:
    folder, wanted = (
        str(sys.argv[1] if len(sys.argv) > 1 else smollm2()),
        int(sys.argv[2]) if len(sys.argv) > 2 else 200,
    )
    rng, began = Ctx(seed=0).rng("facts"), time.perf_counter()
    settings = {"templates": "none", "rows": 24}
    lm: FusedLM = apply("decode/ck-plug", model=folder, **settings)
    known, tried = list[dict[str, str]](), 0
    pool = candidates(rng)
    while len(known) < wanted and tried < len(pool):
        part = pool[tried : tried + 48]
        tried += len(part)
        replies = ask(lm.with_params(gate="never"), [r["question"] for r in part])
        known += [{**r, "said": t} for r, t in zip(part, replies, strict=True) if plain(r["memory"]) in plain(t)]
    known = known[:wanted]
    print(len(known), "of", tried, "known", round(time.perf_counter() - began), "s", flush=True)
    prompts = [{"question": r["question"], "context": r["context"]} for r in known]
    alphas = [round(0.1 * i, 1) for i in range(11)]
    conditions: dict[str, FusedLM] = {"plain": lm.with_params(gate="never"), "auto": lm.with_params(alpha="auto")}
    conditions |= {f"alpha {a}": lm.with_params(alpha=a) for a in alphas}
    conditions |= {f"no gate, alpha {a}": lm.with_params(alpha=a, gate="always") for a in (0.0, 1.0)}
    conditions |= {f"relative gate, alpha {a}": lm.with_params(alpha=a, gate="relative") for a in (0.0, 1.0)}
    for name in ("cad", "adacad"):
        conditions[name] = apply(f"decode/{name}", model=folder, **settings)
    table: dict[str, Any] = {}
    for name, fused in conditions.items():
        steps: list[Any] = []
        replies = ask(fused, prompts, steps.append if name.startswith("alpha") else None)
        table[name] = rates(known, replies, Ctx(seed=0).rng("bootstrap"))
        if steps:
            table[name]["tokens where it stepped in"] = float(np.mean([s["intervened"] for s in steps]))
        row = table[name]
        print(
            f"{name:28} MR {row['MR']:.3f} {row['MR interval']} ConR {row['ConR']:.3f} ParR {row['ParR']:.3f} hit {row['hit rate']:.3f}",
            flush=True,
        )
    mr = [table[f"alpha {a}"]["MR"] for a in alphas]
    save("decode-ck-plug", {
        "model": "SmolLM2-135M-Instruct, float32", "facts": len(known), "tried": tried, "relations": list(RELATIONS), "tokens": TOKENS,
        "spearman of MR over alpha": float(spearmanr(alphas, mr).statistic),
        "steps that rise": int(sum(b >= a for a, b in itertools.pairwise(mr))), "steps": len(mr) - 1,
        "conditions": table, "seconds": time.perf_counter() - began,
    })  # fmt: skip


if __name__ == "__main__":
    main()
