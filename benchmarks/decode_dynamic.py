"""Dynamic logits fusion on tiny models: does a small expert that learned a task's form give a larger model, which knows more, that form?

A large and a small model learn the same language: facts about names (``abc is de.``), reversed strings (``rev abcd is dcba.``) and
sentences. Copies of the small one are then fine-tuned to answer in another form: ``?abc:de.`` on half of the facts, ``!abcd:dcba.`` on
strings. Measured is exact match in the new form on the other half of the facts and on new strings. The ceiling is the large model
fine-tuned on the same examples. Scaled-down: 120 thousand and 20 thousand parameters.

    python benchmarks/decode_dynamic.py [SEED ...]
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

import numpy as np
import torch
from decode_tiny import new_model, replies, symbols, train
from record import save

from interfuse.core.ctx import Ctx
from interfuse.decode.fused import fuse

LETTERS = "abcdefghijklmnopqrst"
LARGE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
SMALL = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
FACTS, STEPS, TUNE = 120, 1000, 150
NOUNS, VERBS = ["mond", "lief", "traa", "kost"], ["sees", "has", "finds"]


def word(rng: np.random.Generator, length: int) -> str:
    return "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=length))


def experiment(seed: int) -> dict[str, Any]:
    """Everything of one seed: models, fine-tunings, and the figures of every condition."""
    ctx = Ctx(seed=seed)
    rng = ctx.rng("facts")
    facts: dict[str, str] = {}
    while len(facts) < FACTS:
        facts.setdefault(word(rng, 3), word(rng, 2))
    names = list(facts)
    tokenizer = symbols([*LETTERS, "u", "v", " ", ":", "?", "!", "."])

    def language(r: np.random.Generator) -> str:
        kind = r.random()
        if kind < 0.5:
            name = names[r.integers(len(names))]
            return f"{name} is {facts[name]}."
        if kind < 0.9:
            text = word(r, 4)
            return f"rev {text} is {text[::-1]}."
        return f"{NOUNS[r.integers(4)]} {VERBS[r.integers(3)]} {NOUNS[r.integers(4)]}."

    def task_a(r: np.random.Generator) -> str:
        name = names[r.integers(FACTS // 2)]
        return f"?{name}:{facts[name]}."

    def task_b(r: np.random.Generator) -> str:
        text = word(r, 4)
        return f"!{text}:{text[::-1]}."

    began = time.perf_counter()
    large, small = new_model(seed, tokenizer, **LARGE), new_model(seed + 1000, tokenizer, **SMALL)
    losses = {"large": train(large, tokenizer, language, ctx.rng("large"), steps=STEPS, lr=3e-3),
              "small": train(small, tokenizer, language, ctx.rng("small"), steps=STEPS, lr=3e-3)}  # fmt: skip
    tuned: dict[str, Any] = {}
    for name, model, lr in (("expert", small, 2e-3), ("ceiling", large, 1e-3)):
        for task, lines in (("A", task_a), ("B", task_b)):
            tuned[f"{name} {task}"] = copy.deepcopy(model)
            train(tuned[f"{name} {task}"], tokenizer, lines, ctx.rng(f"{name} {task}"), steps=TUNE, lr=lr)
    fresh = ctx.rng("test")
    strings = list(dict.fromkeys(word(fresh, 4) for _ in range(100)))
    items = {"A": [(f"?{n}:", facts[n]) for n in names[FACTS // 2 :]], "B": [(f"!{s}:", s[::-1]) for s in strings]}

    def match(streams: list[tuple[str, Any]], method: str, task: str, trace: Any = None, **params: Any) -> float:
        engine = fuse(method, [(role, m, tokenizer) for role, m in streams], rows=128, **params)
        said = replies(engine, [p for p, _ in items[task]], max_tokens=6, trace=trace)
        return float(np.mean([s == a for s, (_, a) in zip(said, items[task], strict=True)]))

    table: dict[str, dict[str, float]] = {}
    chosen: dict[str, dict[str, float]] = {}
    strengths: dict[str, float] = {}
    for task in ("A", "B"):
        own, both = tuned[f"expert {task}"], [("expert", tuned["expert A"]), ("expert", tuned["expert B"])]
        pair = [("model", large), ("base", small), ("expert", own)]
        steps: list[Any] = []
        row = {
            "large": match([("model", large)], "mixture", task),
            "expert": match([("model", own)], "mixture", task),
            **{f"fixed {a}": match(pair, "proxy-tuning", task, alpha=a) for a in (0.5, 1.0, 1.5)},
            "dynamic": match(pair, "dynamic-logits-fusion", task),
            "dynamic, both experts": match(
                [("model", large), ("base", small), *both], "dynamic-logits-fusion", task, steps.append
            ),
            "fixed 1.0, both experts": match([("model", large), ("base", small), *both], "static-arithmetic", task),
            "ceiling": match([("model", tuned[f"ceiling {task}"])], "mixture", task),
        }
        active = [s for s in steps if s["expert"] > 0]
        chosen[task] = {"right expert": float(np.mean([s["expert"] == "AB".index(task) + 1 for s in active])) if active else 0.0,
                        "active": len(active) / len(steps)}  # fmt: skip
        strengths[task] = float(np.mean([s["alpha"] for s in steps]))
        for name, value in row.items():
            table.setdefault(name, {})[task] = value
    for row in table.values():
        row["mean"] = (row["A"] + row["B"]) / 2
    kept = knows(large, tokenizer, names[FACTS // 2 :], facts), knows(small, tokenizer, names[FACTS // 2 :], facts)
    print(
        seed,
        {k: round(v["mean"], 3) for k, v in table.items()},
        chosen,
        kept,
        losses,
        round(time.perf_counter() - began),
        "s",
        flush=True,
    )
    return {
        "seed": seed,
        "table": table,
        "chosen": chosen,
        "alpha": strengths,
        "facts known": {"large": kept[0], "small": kept[1]},
        "losses": losses,
    }


def knows(model: Any, tokenizer: Any, names: list[str], facts: dict[str, str]) -> float:
    """The share of facts that a model completes in the form it learned them in."""
    said = replies(fuse("mixture", [("model", model, tokenizer)], rows=128), [f"{n} is " for n in names], max_tokens=6)
    return float(np.mean([s == facts[n] for s, n in zip(said, names, strict=True)]))


def interval(values: list[float], rng: np.random.Generator) -> dict[str, Any]:
    """Mean with a 95 % bootstrap interval over seeds."""
    v = np.array(values)
    means = v[rng.integers(len(v), size=(5000, len(v)))].mean(axis=1)
    return {
        "mean": float(v.mean()),
        "interval": [float(x) for x in np.quantile(means, (0.025, 0.975))],
        "values": [float(x) for x in v],
    }


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
    conditions = {
        name: {t: interval([r["table"][name][t] for r in runs], rng) for t in ("A", "B", "mean")}
        for name in runs[0]["table"]
    }

    def paired(one: str, other: str) -> dict[str, Any]:
        return interval([r["table"][one]["mean"] - r["table"][other]["mean"] for r in runs], rng)

    gap = [
        (r["table"]["dynamic"]["mean"] - r["table"]["large"]["mean"])
        / max(r["table"]["ceiling"]["mean"] - r["table"]["large"]["mean"], 1e-9)
        for r in runs
    ]
    best = [max(r["table"][f"fixed {a}"]["mean"] for a in (0.5, 1.0, 1.5)) for r in runs]
    save("decode-dynamic", {
        "what": "tiny models, scaled-down; exact match in the new form", "large": LARGE, "small": SMALL, "facts": FACTS, "seeds": [r["seed"] for r in runs],
        "conditions": conditions, "share of the gap closed": interval(gap, rng),
        "dynamic - fixed 0.5": paired("dynamic", "fixed 0.5"), "dynamic - fixed 1.0": paired("dynamic", "fixed 1.0"),
        "dynamic - fixed 1.5": paired("dynamic", "fixed 1.5"), "dynamic - expert": paired("dynamic", "expert"),
        "dynamic - best fixed of the seed": interval([r["table"]["dynamic"]["mean"] - b for r, b in zip(runs, best, strict=True)], rng),
        "both experts, dynamic - fixed 1.0": paired("dynamic, both experts", "fixed 1.0, both experts"),
        "right expert": {t: interval([r["chosen"][t]["right expert"] for r in runs], rng) for t in ("A", "B")},
        "runs": runs, "seconds": seconds,
    })  # fmt: skip


if __name__ == "__main__":
    main()
