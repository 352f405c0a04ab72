"""Dynamic logits fusion on tiny models: do small experts that learned a task's form give a larger model, which knows more, that form?

A large and a small model learn the same language, the small one for fewer steps: where people live (``AB in peru.``), whether that is
what was said (``say oman:AB in peru or oman: no.``), sums and differences (``12+7=19.``) and what a story asks for (``tom has 12 pens
and gets 7 more:12+7.``). Copies of the small one are then fine-tuned in two tasks in the style of GSM8K and of CREAK: word problems,
``tom has 12 pens and gets 7 more, how many?`` answered by ``12+7=19;19.``, and claims, ``claim oman:AB in `` answered by ``peru or oman:
no;false.``, on claims about half of the people. Measured is whether the number after ``;`` is right on word problems whose numbers were
not in the fine-tuning (a quarter, drawn at random), and whether fact, comparison and verdict are right on claims about the other half
of the people. The ceiling is the large model fine-tuned on the same examples. GSM8K and CREAK themselves are beyond models of this
size, and the real models here share no vocabulary with a larger one. Scaled-down; settings were chosen on another seed.

    python benchmarks/decode_dynamic.py [SEED ...]
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from decode_tiny import new_model, replies, symbols, train
from seeds import each_seed, interval

from interfuse.core.ctx import Ctx
from interfuse.decode.fused import fuse

LETTERS = "ABCDEFGHIJKLMNOPQRST"
PLACES = ["peru", "oman", "iran", "mali", "cuba", "laos", "chad", "fiji"]
PEOPLE, THINGS = ["tom", "ann", "bob", "eve"], ["pens", "figs", "cups", "hats"]
WORDS = [
    " in ",
    " has ",
    " and ",
    "gets ",
    "loses ",
    " more",
    ", how many?",
    "claim ",
    "say ",
    "true",
    "false",
    " or ",
    ": yes",
    ": no",
]
FIELDS = {"initializer_range": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
LARGE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SETTINGS: dict[str, Any] = {
    "large": LARGE,
    "small": SMALL,
    "people": 240,
    "steps": [1500, 800],
    "rate": 5e-3,
    "tune": 200,
    "tuning rates": [2e-3, 2e-3],
    "items": 150,
}
FIXED = (0.5, 1.0, 1.5)
TASKS = ("word problems", "claims")


class Language:
    """The facts of one seed, and lines of every kind."""

    def __init__(self, ctx: Ctx) -> None:
        rng, self.facts = ctx.rng("facts"), dict[str, str]()
        while len(self.facts) < SETTINGS["people"]:
            self.facts.setdefault(
                "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=2)), PLACES[rng.integers(len(PLACES))]
            )
        self.names = list(self.facts)
        self.apart = ctx.rng("apart").random((21, 21, 2)) < 0.25
        self.half = len(self.names) // 2
        self.tokenizer = symbols([*LETTERS, *map(str, range(41)), *"+-=;:?,. ", *PLACES, *PEOPLE, *THINGS, *WORDS])

    def held(self, a: int, b: int, sign: str) -> bool:
        """Whether word problems with these numbers are never fine-tuned on: a quarter of all, drawn at random."""
        return bool(self.apart[a, b, int(sign == "-")])

    def claim(self, rng: np.random.Generator, names: list[str]) -> tuple[str, str, bool]:
        name = names[rng.integers(len(names))]
        true = bool(rng.random() < 0.5)
        others = [p for p in PLACES if p != self.facts[name]]
        return name, self.facts[name] if true else others[rng.integers(len(others))], true

    def pretraining(self, rng: np.random.Generator) -> str:
        kind = rng.random()
        if kind < 0.25:
            name = self.names[rng.integers(len(self.names))]
            return f"{name} in {self.facts[name]}."
        if kind < 0.45:
            name, place, true = self.claim(rng, self.names)
            return f"say {place}:{name} in {self.facts[name]} or {place}{': yes' if true else ': no'}."
        a, b, sign = numbers(rng)
        if kind < 0.7:
            return f"{a}{sign}{b}={a + b if sign == '+' else a - b}."
        return f"{story(rng, a, b, sign)}:{a}{sign}{b}."

    def problems(self, rng: np.random.Generator) -> str:
        while self.held(*(found := numbers(rng))):
            pass
        return "".join(problem(rng, *found))

    def claims(self, rng: np.random.Generator) -> str:
        name, place, true = self.claim(rng, self.names[: self.half])
        return f"claim {place}:{name} in {self.facts[name]} or {place}{': yes;true' if true else ': no;false'}."

    def items(self, task: str, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Prompts and right ends of answers: numbers that are held out, people that are held out, each once true and once false."""
        if task == "claims":
            out = []
            for name in self.names[self.half :]:
                fact = self.facts[name]
                other = [p for p in PLACES if p != fact][rng.integers(len(PLACES) - 1)]
                out += [
                    (f"claim {p}:{name} in ", f"{fact} or {p}{': yes;true' if p == fact else ': no;false'}")
                    for p in (fact, other)
                ]
            return out
        found: dict[str, str] = {}
        while len(found) < SETTINGS["items"]:
            if self.held(*(drawn := numbers(rng))):
                prompt, answer = problem(rng, *drawn)
                found[prompt] = ";" + answer[:-1].split(";")[1]
        return list(found.items())


def numbers(rng: np.random.Generator) -> tuple[int, int, str]:
    """Two numbers from 2 to 20 and a sign; nothing is negative."""
    a, b = (int(x) for x in rng.integers(2, 21, size=2))
    return (max(a, b), min(a, b), "-") if rng.random() < 0.5 else (a, b, "+")


def story(rng: np.random.Generator, a: int, b: int, sign: str) -> str:
    """What somebody has, gets or loses."""
    return (
        f"{PEOPLE[rng.integers(4)]} has {a} {THINGS[rng.integers(4)]} and {'gets' if sign == '+' else 'loses'} {b} more"
    )


def problem(rng: np.random.Generator, a: int, b: int, sign: str) -> tuple[str, str]:
    """A word problem and its answer with the working."""
    result = a + b if sign == "+" else a - b
    return f"{story(rng, a, b, sign)}, how many?", f"{a}{sign}{b}={result};{result}."


def experiment(seed: int) -> dict[str, Any]:
    """Everything of one seed: models, fine-tunings, and the figures of every condition."""
    ctx = Ctx(seed=seed)
    language = Language(ctx)
    tokenizer = language.tokenizer
    large, small = new_model(seed, tokenizer, **FIELDS, **LARGE), new_model(seed + 1000, tokenizer, **FIELDS, **SMALL)
    losses = {
        n: train(m, tokenizer, language.pretraining, ctx.rng(n), steps=steps, lr=SETTINGS["rate"])
        for n, m, steps in zip(("large", "small"), (large, small), SETTINGS["steps"], strict=True)
    }
    lines = {"word problems": language.problems, "claims": language.claims}
    tuned: dict[str, Any] = {}
    for name, model, lr in (
        ("expert", small, SETTINGS["tuning rates"][0]),
        ("ceiling", large, SETTINGS["tuning rates"][1]),
    ):
        for task in TASKS:
            tuned[f"{name} {task}"] = copy.deepcopy(model)
            train(
                tuned[f"{name} {task}"], tokenizer, lines[task], ctx.rng(f"tune {task}"), steps=SETTINGS["tune"], lr=lr
            )
    items = {task: language.items(task, ctx.rng("test " + task)) for task in TASKS}

    def match(streams: list[tuple[str, Any]], method: str, task: str, trace: Any = None, **params: Any) -> float:
        engine = fuse(method, [(role, m, tokenizer) for role, m in streams], rows=160, **params)
        said = replies(engine, [p for p, _ in items[task]], max_tokens=10, trace=trace)
        return float(np.mean([s.endswith(a) for s, (_, a) in zip(said, items[task], strict=True)]))

    table: dict[str, dict[str, float]] = {}
    chosen: dict[str, dict[str, float]] = {}
    pair, all_three = [("model", large), ("base", small)], [("expert", tuned[f"expert {task}"]) for task in TASKS]
    for number, task in enumerate(TASKS, 1):
        one = [*pair, ("expert", tuned[f"expert {task}"])]
        both = [*pair, *all_three]
        alone: list[Any] = []
        together: list[Any] = []
        row = {
            "large": match([("model", large)], "mixture", task),
            "small": match([("model", small)], "mixture", task),
            "expert": match([("model", tuned[f"expert {task}"])], "mixture", task),
            **{f"fixed {a}": match(one, "proxy-tuning", task, alpha=a) for a in FIXED},
            "dynamic": match(one, "dynamic-logits-fusion", task, alone.append),
            "dynamic, both experts": match(both, "dynamic-logits-fusion", task, together.append),
            "fixed 1.0, both experts": match(both, "static-arithmetic", task),
            "ceiling": match([("model", tuned[f"ceiling {task}"])], "mixture", task),
        }
        active = [s for s in together if s["expert"] > 0]
        chosen[task] = {
            "right expert": float(np.mean([s["expert"] == number for s in active])) if active else 0.0,
            "tokens with an expert": len(active) / len(together),
            "alpha": float(np.mean([s["alpha"] for s in alone])),
        }
        for name, value in row.items():
            table.setdefault(name, {})[task] = value
    for row in table.values():
        row["mean"] = float(np.mean([row[t] for t in TASKS]))
    known = {name: knows(model, language, ctx.rng("known")) for name, model in (("large", large), ("small", small))}
    print(seed, {k: [round(x, 3) for x in v.values()] for k, v in table.items()}, chosen, known, losses, flush=True)
    return {"seed": seed, "table": table, "steps": chosen, "known": known, "losses": losses}


def knows(model: Any, language: Language, rng: np.random.Generator) -> dict[str, float]:
    """What a model knows in the form it learned it in: facts of the people who are asked about, sums, comparisons, what a story asks for."""
    engine = fuse("mixture", [("model", model, language.tokenizer)], rows=160)
    asked: dict[str, list[tuple[str, str]]] = {
        "facts": [(f"{n} in ", language.facts[n]) for n in language.names[language.half :]],
        "comparisons": [
            (f"say {p}:{n} in ", f"{f} or {p}{': yes' if p == f else ': no'}")
            for n, f in list(language.facts.items())[: language.half]
            for p in (f, PLACES[int(rng.integers(len(PLACES)))])
        ],
    }
    drawn = [numbers(rng) for _ in range(100)]
    asked["sums"] = [(f"{a}{s}{b}=", str(a + b if s == "+" else a - b)) for a, b, s in drawn]
    asked["stories"] = [(story(rng, a, b, s) + ":", f"{a}{s}{b}") for a, b, s in drawn]
    found = {}
    for kind, items in asked.items():
        said = replies(engine, [p for p, _ in items], max_tokens=4)
        found[kind] = float(np.mean([s == a for s, (_, a) in zip(said, items, strict=True)]))
    return found


def figures(runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    """Means, shares of the gap and paired differences over the seeds so far."""
    tables = [r["table"] for r in runs]

    def paired(one: str, other: str) -> dict[str, Any]:
        return {t: interval([x[one][t] - x[other][t] for x in tables], rng) for t in (*TASKS, "mean")}

    def gap(name: str) -> dict[str, Any]:
        """Of the sums over seeds, which no seed with a small gap can blow up; the interval draws seeds."""
        gained = np.array([[x[name][t] - x["large"][t] for t in (*TASKS, "mean")] for x in tables])
        whole = np.array([[x["ceiling"][t] - x["large"][t] for t in (*TASKS, "mean")] for x in tables])
        draws = rng.integers(len(tables), size=(5000, len(tables)))
        shares = gained[draws].sum(axis=1) / np.maximum(whole[draws].sum(axis=1), 1e-9)
        low, high = np.quantile(shares, (0.025, 0.975), axis=0)
        now = gained.sum(axis=0) / np.maximum(whole.sum(axis=0), 1e-9)
        return {
            t: {"share": float(now[i]), "interval": [float(low[i]), float(high[i])]}
            for i, t in enumerate((*TASKS, "mean"))
        }

    best = max((f"fixed {a}" for a in FIXED), key=lambda n: float(np.mean([x[n]["mean"] for x in tables])))
    each = [max(x[f"fixed {a}"]["mean"] for a in FIXED) for x in tables]
    return {
        "what": "tiny models, scaled-down: right answers in word problems (as in GSM8K) and claims (as in CREAK)",
        "conditions": {n: {t: interval([x[n][t] for x in tables], rng) for t in (*TASKS, "mean")} for n in tables[0]},
        "share of the gap closed": {n: gap(n) for n in ("dynamic", "dynamic, both experts", *(f"fixed {a}" for a in FIXED))},
        **{f"dynamic - fixed {a}": paired("dynamic", f"fixed {a}") for a in FIXED},
        "best fixed strength over all seeds": best,
        "dynamic - best fixed of the seed": interval([x["dynamic"]["mean"] - b for x, b in zip(tables, each, strict=True)], rng),
        "dynamic - expert": paired("dynamic", "expert"), "dynamic - large": paired("dynamic", "large"),
        "dynamic - ceiling": paired("dynamic", "ceiling"),
        "both experts, dynamic - fixed 1.0": paired("dynamic, both experts", "fixed 1.0, both experts"),
        "both experts - the right one alone": paired("dynamic, both experts", "dynamic"),
        "steps": {t: {k: interval([r["steps"][t][k] for r in runs], rng) for k in runs[0]["steps"][t]} for t in TASKS},
        "known": {m: {k: interval([r["known"][m][k] for r in runs], rng) for k in runs[0]["known"][m]} for m in ("large", "small")},
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    each_seed("decode-dynamic", SETTINGS, experiment, figures)
