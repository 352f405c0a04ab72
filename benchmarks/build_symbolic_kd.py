"""Symbolic distillation of facts from a small real language model: precision of what is kept as the critic's cut tightens.

    INTERFUSE_SHARED_DATA=... python benchmarks/build_symbolic_kd.py [HEADS PER RELATION]

The teacher writes tails for heads of LRE relations; gold facts judge them. The critic learns from the judged triples of one half of the
heads, the other half is measured. Beside the critic stands a filter without training: how often the teacher wrote the same tail.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from build_bertnet import right
from real_models import smollm2
from record import save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import open_lm
from interfuse.kit.critics import cut_at_recall
from interfuse.kit.stats import wilson_interval

PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
RELATIONS = {
    "antonym": ("linguistic/adj_antonym", "is the opposite of"), "superclass": ("commonsense/object_superclass", "is a kind of"),
    "made by": ("factual/product_by_company", "is made by the company"), "past tense": ("linguistic/verb_past_tense", "has the past tense"),
}  # fmt: skip
SHOTS = 4


def main(most: int = 50) -> None:
    folder = PLACE / "lre-relations"
    if not folder.is_dir():
        print("skipped: the LRE relations are not here")
        return
    ctx = Ctx()
    lm: Any = open_lm(Source(str(smollm2()), "SmolLM2-135M-Instruct"), ctx)
    judged: list[dict[str, Any]] = []
    for name, (file, phrase) in RELATIONS.items():
        samples = json.loads((folder / f"{file}.json").read_text())["samples"]
        gold: dict[str, list[str]] = {}
        for s in samples:
            gold.setdefault(s["subject"], []).append(s["object"])
        heads = [list(gold)[int(i)] for i in ctx.rng(f"heads {name}").permutation(len(gold))]
        schema = {name: {"phrase": phrase, "examples": [[h, gold[h][0]] for h in heads[:SHOTS]]}}
        with tempfile.TemporaryDirectory() as place:
            apply("build/symbolic-kd", lm=lm, relations=schema, heads=heads[SHOTS : SHOTS + most], tails=5, shots=SHOTS, top_p=0.9, max_tokens=8, recall=1.0,
                  out=Path(place) / "g")  # fmt: skip
            for line in (Path(place) / "g" / "corpus.jsonl").read_text().splitlines():
                row = json.loads(line)
                judged.append({**row, "valid": int(any(right(row["tail"], g) for g in gold[row["head"]]))})
        print(name, np.mean([r["valid"] for r in judged if r["relation"] == name]), flush=True)
    runs = [measured(judged, seed) for seed in range(5)]
    table = {}
    for filtered in ("critic", "agreement"):
        table[filtered] = []
        for i, recall in enumerate(runs[0][filtered]):
            kept = sum(r[filtered][i]["kept"] for r in runs)
            good = sum(r[filtered][i]["valid"] for r in runs)
            gains = np.array([r[filtered][i]["precision"] - r["share valid"] for r in runs])
            spread = gains.std(ddof=1) / np.sqrt(len(gains)) * 2.776  # Student's t, 4 degrees of freedom
            table[filtered].append({"recall aimed at": recall["recall aimed at"], "kept": kept / len(runs), "precision": good / max(kept, 1),
                                    "recall": float(np.mean([r[filtered][i]["recall"] for r in runs])), "gain": float(gains.mean()),
                                    "low": float(gains.mean() - spread), "high": float(gains.mean() + spread)})  # fmt: skip
    whole = wilson_interval(sum(r["valid"] for r in judged), len(judged))
    save("build-symbolic-kd", {"model": "SmolLM2-135M-Instruct (4-bit weights as bfloat16)", "triples": len(judged), "splits": len(runs),
                               "share valid": {"value": whole.estimate, "low": whole.low, "high": whole.high}, "filters": table,
                               "examples": [[r["head"], r["relation"], r["tail"], r["valid"]] for r in judged[:: max(len(judged) // 12, 1)]]})  # fmt: skip
    print(json.dumps(table, indent=1))


def measured(judged: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """One split of the heads: the critic learns and chooses its cuts on one half, the other is measured."""
    from interfuse.build.symbolic_kd import views
    from interfuse.kit.commonsense import Relation
    from interfuse.kit.critics import held_out, train_critic

    ctx = Ctx(seed=seed)
    test = held_out([r["head"] for r in judged], 0.5, ctx.rng("test"))
    learn, rest = (
        [r for r, t in zip(judged, test, strict=True) if not t],
        [r for r, t in zip(judged, test, strict=True) if t],
    )
    cut = held_out([r["head"] for r in learn], 0.3, ctx.rng("cut"))
    relations = {name: Relation(name, phrase, ()) for name, (_, phrase) in RELATIONS.items()}
    inner = [r for r, c in zip(learn, cut, strict=True) if not c]
    outer = [r for r, c in zip(learn, cut, strict=True) if c]
    critic = train_critic([f"{r['head']} {relations[r['relation']].phrase} {r['tail']}" for r in inner], [r["valid"] for r in inner],
                          groups=[r["head"] for r in inner], rng=ctx.rng("critic"))  # fmt: skip

    def p(rows: list[dict[str, Any]]) -> Any:
        return views(critic, [(relations[r["relation"]], r["head"], r["tail"]) for r in rows], ctx.rng("views"))

    made: dict[str, Any] = {"share valid": float(np.mean([r["valid"] for r in rest]))}
    for name, score in (("critic", p), ("agreement", lambda rows: np.array([float(r["times"]) for r in rows]))):
        made[name] = []
        for recall in (0.9, 0.8, 0.7, 0.6, 0.5, 0.3):
            bar = cut_at_recall(score(outer), [r["valid"] for r in outer], recall).threshold
            kept = [r for r, s in zip(rest, score(rest), strict=True) if s > bar]
            good = sum(r["valid"] for r in kept)
            made[name].append({"recall aimed at": recall, "kept": len(kept), "valid": good, "precision": good / max(len(kept), 1),
                               "recall": good / max(sum(r["valid"] for r in rest), 1)})  # fmt: skip
    return made


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
