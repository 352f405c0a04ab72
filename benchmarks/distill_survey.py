"""The survey's ways to distil one language model into a smaller one that reads the same tokens, against fine-tuning on the same prompts.

A tiny teacher has learned to sort, to reverse and to add from many examples; the student has seen few. All conditions go on from the same
student, over the same prompts and for as many passes: the given answers (``sft``), the teacher's answers (``seqkd``), the teacher's
distributions on the given answers (``lm-kd`` under four divergences, ``uld``), and on the student's own (``gkd``). Measured on new
prompts: answers right in every letter, and nats per byte of the right answer. Scaled-down.

    python benchmarks/distill_survey.py [SEED ...]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_lm import SKILLS, compared, judged, llama, reader, skill, tables
from seeds import each_seed

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.models import open_model

SETTINGS: dict[str, Any] = {
    "teacher": [4000, 10],
    "student": [300, 12],
    "distilled": [300, 8],
    "held out": 150,
    "rates": [3e-3, 1e-3],
    "widths": [96, 48],
}
CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "seqkd": ("seqkd", {"max_new_tokens": 10}),
    **{f"lm-kd, {d}": ("lm-kd", {"divergence": d}) for d in ("forward-kl", "reverse-kl", "js", "tvd")},
    "uld": ("uld", {}),
    **{f"gkd, {share:g} on policy": ("gkd", {"on_policy": share, "max_new_tokens": 10}) for share in (0.0, 0.5, 1.0)},
}


def experiment(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="interfuse-survey-") as name:
        return one_seed(seed, Path(name))


def one_seed(seed: int, folder: Path) -> dict[str, Any]:
    rng, ctx = np.random.Generator(np.random.Philox(5000 + seed)), Ctx(seed=seed, cache=folder / "cache")
    common: dict[str, Any] = {"ctx": ctx, "batch_size": 64, "max_length": 48}
    held = {s: tables(skill(s, rng, SETTINGS["held out"])) for s in SKILLS}
    seen = {p for t in held.values() for p in t["prompt"]}

    def fresh(count: int) -> Any:
        return tables([row for s in SKILLS for row in skill(s, rng, count) if row[0] not in seen])

    reads = reader(folder / "reads", 0, seed)
    (many, passes), (few, long), (given, short) = (SETTINGS[k] for k in ("teacher", "student", "distilled"))
    wide, narrow = SETTINGS["widths"]
    fast, slow = SETTINGS["rates"]
    made: dict[str, Any] = {}
    for name, width, count, epochs in (("teacher", wide, many, passes), ("student", narrow, few, long)):
        made[name] = apply("distill/sft", student=llama(reads, width), data=fresh(count), epochs=epochs, lr=fast, out=folder / name, **common)  # fmt: skip
    data = fresh(given)
    for number, (label, (method, more)) in enumerate(CONDITIONS.items()):
        teacher = {} if method == "sft" else {"teacher": [str(made["teacher"].path)]}
        made[label] = apply("distill/" + method, student=str(made["student"].path), data=data, epochs=short, lr=slow, out=folder / f"made-{number}", **common,
                            **teacher, **more)  # fmt: skip
    scores: dict[str, dict[str, float]] = {}
    for label, model in made.items():
        found = {
            s: judged(open_model(Source({"model": str(model.path), "tokenizer": str(reads)}), ctx), held[s])
            for s in SKILLS
        }
        scores[label] = {f"{s} exact": float(f["exact"].mean()) for s, f in found.items()}
        scores[label] |= {m: float(np.mean([f[m].mean() for f in found.values()])) for m in ("exact", "loss")}
    print(seed, {k: [round(v["exact"], 3), round(v["loss"], 3)] for k, v in scores.items()}, flush=True)
    return {"seed": seed, "scores": scores}


def figures(runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    def every(label: str, what: str) -> list[float]:
        return [r["scores"][label][what] for r in runs]

    labels = list(runs[0]["scores"])
    pairs = [(c, "sft") for c in labels if c not in ("teacher", "sft")]
    pairs += [("gkd, 1 on policy", c) for c in ("gkd, 0 on policy", "seqkd", "lm-kd, forward-kl")] + [
        ("gkd, 0.5 on policy", "gkd, 0 on policy")
    ]
    return {
        "what": "2-layer models of width 96 (teacher) and 48 (student), same tokens: share of answers right in every token, mean of three skills, and nats per byte",
        "mean": {k: {m: float(np.mean(every(k, m))) for m in runs[0]["scores"][k]} for k in labels},
        "comparisons": {f"{a} against {b}": {m: compared(every(b, m), every(a, m)) for m in ("exact", "loss")} for a, b in pairs} if len(runs) > 1 else {},
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    each_seed("distill-survey", SETTINGS, experiment, figures)
