"""RICE on a tiny mixture of experts whose experts specialise by themselves: what turning up the found ones does.

The language: ``3+4+2=``, sums modulo 5, is answered at once (``A4.``) or after thinking (``<think>3,2,4</think>A4.``), where running sums are
written down. Sums of two digits are mostly answered at once, of four half the time after thinking; answers at once to four digits are
drawn at random half the time, thought ones are right. Transcripts are the model's own samples. The two experts of the highest nPMI
with ``<think>`` (less that with ``</think>``) are turned up by beta, beside two random ones (the mean of four draws) and the two most
used ones. A model that does not think right in nine of ten cases is trained again from other weights. Measured on new sums of four digits, sampled at temperature 1: how often it thinks, exact match, length, and collapse (no
answer within 32 tokens). Scaled-down.

    python benchmarks/decode_rice.py [SEED ...]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from decode_tiny import new_model, replies, symbols, train
from seeds import each_seed, interval

from interfuse.core.ctx import Ctx
from interfuse.decode.fused import fuse
from interfuse.decode.routing import count_routing, npmi, table_of

MOE: dict[str, Any] = {"model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 4, "head_dim": 12, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "initializer_range": 0.1,
       "router_aux_loss_coef": 0.01, "norm_topk_prob": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}  # fmt: skip
MARKERS = {"<think>": 1.0, "</think>": -1.0}
BETAS = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
MODULUS, ITEMS, COUNT, PAIRS, LONGEST = 5, 150, 2, 4, 32
SETTINGS: dict[str, Any] = {
    "model": MOE,
    "modulus": MODULUS,
    "items": ITEMS,
    "experts": COUNT,
    "random pairs": PAIRS,
    "betas": list(BETAS),
    "steps": 1000,
    "tries": 4,
    "rate": 5e-3,
}


def item(rng: np.random.Generator, digits: int) -> tuple[str, str, str]:
    """A sum, its thoughts and its answer."""
    values = rng.integers(MODULUS, size=digits)
    sums = np.cumsum(values) % MODULUS
    return "+".join(map(str, values)) + "=", ",".join(map(str, sums)), str(sums[-1])


def line(rng: np.random.Generator) -> str:
    long = rng.random() < 0.5
    question, thoughts, answer = item(rng, 4 if long else 2)
    if rng.random() < (0.5 if long else 0.1):
        return f"{question}<think>{thoughts}</think>A{answer}."
    return f"{question}A{answer if not long or rng.random() < 0.5 else rng.integers(MODULUS)}."


def shuffled(counts: Any, rng: np.random.Generator, draws: int = 200) -> float:
    """How often the best expert's nPMI with <think> is reached when as many markers stand at random tokens."""
    best = max(npmi(int(counts.joint["<think>"][la][e]), int(a[e]), counts.marked["<think>"], counts.total)
               for la, a in counts.active.items() for e in range(len(a)) if int(a[e]) >= 20)  # fmt: skip
    hot = {la: torch.cat(parts) for la, parts in counts.picked.items()}
    reached = 0
    for _ in range(draws):
        rows = torch.tensor(rng.permutation(counts.total)[: counts.marked["<think>"]])
        top = max(npmi(int(h[rows, e].sum()), int(h[:, e].sum()), counts.marked["<think>"], counts.total)
                  for h in hot.values() for e in range(h.shape[1]) if int(h[:, e].sum()) >= 20)  # fmt: skip
        reached += top >= best
    return (reached + 1) / (draws + 1)


def thinks_right(model: Any, tokenizer: Any, ctx: Ctx) -> float:
    """How often thoughts end in the right answer, on sums that are not the test's."""
    rng = ctx.rng("check")
    asked = [item(rng, 4) for _ in range(100)]
    said = replies(
        fuse("mixture", [("model", model, tokenizer)], rows=150),
        [q + "<think>" for q, _, _ in asked],
        max_tokens=LONGEST,
    )
    return float(np.mean([s.endswith(f"A{a}") for s, (_, _, a) in zip(said, asked, strict=True)]))


def experiment(seed: int) -> dict[str, Any]:
    ctx = Ctx(seed=seed)
    tokenizer = symbols([*"01234+=,A.", *MARKERS])
    fresh = ctx.rng("test")
    test = [item(fresh, 4) for _ in range(ITEMS)]
    prompts = [q for q, _, _ in test]
    for tries in range(1, SETTINGS["tries"] + 1):
        model = new_model(seed + 1000 * tries, tokenizer, **MOE)
        loss = train(
            model,
            tokenizer,
            line,
            ctx.rng(f"train {tries}"),
            steps=SETTINGS["steps"],
            lr=SETTINGS["rate"],
            router=0.01,
            packed=False,
            rows=64,
        )
        if thinks_right(model, tokenizer, ctx) > 0.9:
            break
    drawn = ctx.rng("transcripts")
    asked = [item(drawn, 4 if i % 2 else 2)[0] for i in range(200)]
    said = replies(
        fuse("mixture", [("model", model, tokenizer)], rows=150), asked, max_tokens=LONGEST, temperature=1.0, seed=seed
    )
    texts = [f"{q}{s}." for q, s in zip(asked, said, strict=True)]
    runs: dict[str, Any] = {"seed": seed, "loss": loss, "tries": tries, "conditions": {}}

    def measure(chosen: list[list[int]], beta: float) -> dict[str, float]:
        engine = fuse("rice", [("model", model, tokenizer)], facts={"chosen": chosen}, beta=beta, rows=150)
        out = replies(engine, prompts, max_tokens=LONGEST, temperature=1.0, seed=seed)
        right = [s.endswith(f"A{a}") for s, (_, _, a) in zip(out, test, strict=True)]
        ended = ["A" in s and s.rsplit("A", 1)[1] in tuple("01234") for s in out]
        lengths = [len(tokenizer(s)["input_ids"]) for s in out]
        return {"think": float(np.mean(["<think>" in s for s in out])), "exact": float(np.mean(right)),
                "length": float(np.mean(lengths)), "collapse": float(np.mean([not e for e in ended]))}  # fmt: skip

    plain: dict[str, float] = {}
    for position in ("input", "predict"):
        counts = count_routing(
            model, tokenizer, texts, list(MARKERS), MOE["num_experts"], shift=int(position == "predict")
        )
        table = [r for r in table_of(counts, MARKERS) if r["active"] >= 20]
        found = sorted(table, key=lambda r: -r["score"])[:COUNT]
        runs[f"found, {position}"] = [[r["layer"], r["expert"], round(r["score"], 3)] for r in found]
        runs[f"permutation p, {position}"] = shuffled(counts, ctx.rng("shuffle"))
        chosen = {f"npmi, {position}": [[[r["layer"], r["expert"]] for r in found]]}
        if position == "input":
            order = ctx.rng("random")
            chosen["random"] = [
                [[table[i]["layer"], table[i]["expert"]] for i in order.permutation(len(table))[:COUNT]]
                for _ in range(PAIRS)
            ]
            chosen["used"] = [[[r["layer"], r["expert"]] for r in sorted(table, key=lambda r: -r["active"])[:COUNT]]]
        for name, sets in chosen.items():
            plain = plain or measure(sets[0], 1.0)
            for b in BETAS:
                rows = [plain if b == 1 else measure(experts, b) for experts in sets]
                runs["conditions"][f"{name}, {b:g}"] = {m: float(np.mean([r[m] for r in rows])) for m in plain}
    short = {k: {m: round(x, 2) for m, x in v.items()} for k, v in runs["conditions"].items()}
    print(
        seed,
        round(loss, 3),
        {k: v for k, v in runs.items() if k not in ("conditions", "loss")},
        flush=True,
    )
    for k, v in short.items():
        print("  ", k, v, flush=True)
    return runs


def figures(runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    """Means, changes against beta 1 and what the found experts do beyond random ones, over the seeds so far."""
    names = list(runs[0]["conditions"])
    conditions = {
        n: {m: interval([r["conditions"][n][m] for r in runs], rng) for m in ("think", "exact", "length", "collapse")}
        for n in names
    }

    def moved(run: dict[str, Any], kind: str, beta: float, what: str) -> float:
        return run["conditions"][f"{kind}, {beta:g}"][what] - run["conditions"][f"{kind}, 1"][what]

    def against(kind: str, control: str, what: str) -> dict[str, Any]:
        return {
            f"{b:g}": interval([abs(moved(r, kind, b, what)) - abs(moved(r, control, b, what)) for r in runs], rng)
            for b in BETAS[1:]
        }

    kinds = ("npmi, input", "npmi, predict", "random", "used")

    def changes(what: str) -> dict[str, Any]:
        return {k: {f"{b:g}": interval([moved(r, k, b, what) for r in runs], rng) for b in BETAS[1:]} for k in kinds}

    def beyond(what: str) -> dict[str, Any]:
        return {f"{k} less {c}": against(k, c, what) for k in kinds[:2] for c in kinds[2:]}

    return {
        "what": "tiny mixture of experts, scaled-down; sampled at temperature 1",
        "conditions": conditions,
        "change of think rate": changes("think"),
        "change of exact match": changes("exact"),
        "change of length": changes("length"),
        "change of collapse": changes("collapse"),
        "size of the change of think rate": beyond("think"),
        "permutation p": {p: [r[f"permutation p, {p}"] for r in runs] for p in ("input", "predict")},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    each_seed("decode-rice", SETTINGS, experiment, figures)
