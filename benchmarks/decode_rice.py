"""RICE on a tiny mixture of experts whose experts specialise by themselves: what turning up the found ones does.

The language: ``3+5+2=`` is answered at once (``A0.``) or after thinking (``<think>3,8,0</think>A0.``), where running sums are written down.
Sums of two digits are mostly answered at once, of four half the time after thinking; answers at once to four digits are wrong half the
time, thought ones right. Transcripts are the model's own samples. The two experts of the highest nPMI with ``<think>`` (less that with
``</think>``) are turned up by beta, beside two random and the two most used ones. Measured on new sums of four digits, sampled at
temperature 1: how often it thinks, exact match, length, and collapse (no answer within 32 tokens). Scaled-down.

    python benchmarks/decode_rice.py [SEED ...]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from decode_dynamic import interval
from decode_tiny import new_model, replies, symbols, train
from record import save

from interfuse.core.ctx import Ctx
from interfuse.decode.fused import fuse
from interfuse.decode.routing import count_routing, npmi, table_of

MOE = {"model_type": "qwen3_moe", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 4, "head_dim": 12, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
       "router_aux_loss_coef": 0.01, "norm_topk_prob": True}  # fmt: skip
MARKERS = {"<think>": 1.0, "</think>": -1.0}
BETAS = (1.0, 2.0, 4.0, 8.0, 64.0)
STEPS, ITEMS, COUNT, LONGEST = 1000, 150, 2, 32


def item(rng: np.random.Generator, digits: int) -> tuple[str, str, str]:
    """A sum, its thoughts and its answer."""
    values = rng.integers(10, size=digits)
    sums = np.cumsum(values) % 10
    return "+".join(map(str, values)) + "=", ",".join(map(str, sums)), str(sums[-1])


def line(rng: np.random.Generator) -> str:
    long = rng.random() < 0.5
    question, thoughts, answer = item(rng, 4 if long else 2)
    if rng.random() < (0.5 if long else 0.1):
        return f"{question}<think>{thoughts}</think>A{answer}."
    return f"{question}A{answer if not long or rng.random() < 0.5 else rng.integers(10)}."


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


def experiment(seed: int) -> dict[str, Any]:
    ctx, began = Ctx(seed=seed), time.perf_counter()
    tokenizer = symbols([*"0123456789+=,A.", *MARKERS])
    model = new_model(seed, tokenizer, **MOE)
    loss = train(model, tokenizer, line, ctx.rng("train"), steps=STEPS, lr=3e-3, router=0.01)
    fresh = ctx.rng("test")
    test = [item(fresh, 4) for _ in range(ITEMS)]
    prompts = [q for q, _, _ in test]
    drawn = ctx.rng("transcripts")
    asked = [item(drawn, 4 if i % 2 else 2)[0] for i in range(200)]
    said = replies(
        fuse("mixture", [("model", model, tokenizer)], rows=150), asked, max_tokens=LONGEST, temperature=1.0, seed=seed
    )
    texts = [f"{q}{s}." for q, s in zip(asked, said, strict=True)]
    runs: dict[str, Any] = {"seed": seed, "loss": loss, "conditions": {}}

    def measure(chosen: list[list[int]], beta: float) -> dict[str, float]:
        engine = fuse("rice", [("model", model, tokenizer)], facts={"chosen": chosen}, beta=beta, rows=150)
        out = replies(engine, prompts, max_tokens=LONGEST, temperature=1.0, seed=seed)
        right = [s.endswith(f"A{a}") for s, (_, _, a) in zip(out, test, strict=True)]
        ended = ["A" in s and s.rsplit("A", 1)[1] in tuple("0123456789") for s in out]
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
        chosen = {f"npmi, {position}": [[r["layer"], r["expert"]] for r in found]}
        if position == "input":
            chosen["random"] = [
                [table[i]["layer"], table[i]["expert"]] for i in ctx.rng("random").permutation(len(table))[:COUNT]
            ]
            chosen["used"] = [[r["layer"], r["expert"]] for r in sorted(table, key=lambda r: -r["active"])[:COUNT]]
        for name, experts in chosen.items():
            plain = plain or measure(experts, 1.0)
            runs["conditions"] |= {f"{name}, {b:g}": plain if b == 1 else measure(experts, b) for b in BETAS}
    short = {k: {m: round(x, 2) for m, x in v.items()} for k, v in runs["conditions"].items()}
    print(
        seed,
        round(loss, 3),
        {k: v for k, v in runs.items() if k not in ("conditions", "loss")},
        round(time.perf_counter() - began),
        "s",
        flush=True,
    )
    for k, v in short.items():
        print("  ", k, v, flush=True)
    return runs


def main() -> None:
    torch.set_num_threads(1)
    seeds = [int(s) for s in sys.argv[1:]] or [0, 1, 2, 3, 4]
    began = time.perf_counter()
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        runs.append(experiment(seed))
        write(runs, time.perf_counter() - began)  # what is there is kept if it is stopped


def write(runs: list[dict[str, Any]], seconds: float) -> None:
    """The figures of the seeds so far."""
    rng = Ctx(seed=0).rng("bootstrap")
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

    save("decode-rice", {
        "what": "tiny mixture of experts, scaled-down; sampled at temperature 1", "model": MOE, "items": ITEMS, "seeds": [r["seed"] for r in runs],
        "conditions": conditions,
        "change of think rate": {k: {f"{b:g}": interval([moved(r, k, b, "think") for r in runs], rng) for b in BETAS[1:]}
                                 for k in ("npmi, input", "npmi, predict", "random", "used")},
        "change of exact match": {k: {f"{b:g}": interval([moved(r, k, b, "exact") for r in runs], rng) for b in BETAS[1:]}
                                  for k in ("npmi, input", "npmi, predict", "random", "used")},
        "size of the change of think rate, npmi less random": {k: against(k, "random", "think") for k in ("npmi, input", "npmi, predict")},
        "permutation p": {p: [r[f"permutation p, {p}"] for r in runs] for p in ("input", "predict")},
        "runs": runs, "seconds": seconds,
    })  # fmt: skip


if __name__ == "__main__":
    main()
