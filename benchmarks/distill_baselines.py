"""The classical distillations at their published defaults on 300 digits, and what their steps cost. Scaled-down: not the papers' data.

Five seeds, each with a teacher, initial weights and an order of its own; one split, so every method answers the same test items.
Every method, and training the teachers, chooses its learning rate on two other seeds and 240 images that are neither trained on nor
tested on: it tries :data:`RATES`, then further ones beyond the best until that has a neighbour on either side (``held`` lists all it tried). Accuracy, and the paired difference to training on labels alone and to ``kd``: its interval speaks of
other seeds and other test items, ``p`` is adjusted for the number of methods (Holm), ``seeds_above`` counts seeds. Time: a step of
the method against a plain student step plus the teacher's prediction, taken in turn (``--accuracy`` keeps the times that are
recorded). ``dml`` gets no trained teacher but a fresh peer of the teacher's architecture.

    python benchmarks/distill_baselines.py [--accuracy]

"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_rates import best, untried
from record import RESULTS, save, summary

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import Source, apply, load_room, prepare
from interfuse.data.models import Model
from interfuse.data.tables import open_table
from interfuse.distill.room import _hooks, _step, start
from interfuse.kit.encode import forward, predict
from interfuse.kit.resample import compare_runs
from interfuse.kit.stats import holm

METHODS = ("kd", "fitnets", "at", "sp", "rkd", "crd", "dkd", "dist", "logit-standardisation", "dml", "reviewkd")
SEEDS, PAIRS = 5, 40
#: whose accuracy is measured; steps are timed with every student
LEARNERS = ("convnext",)
DIGITS = {"data": "sklearn:digits", "split": {"train": 300 / 1797, "held": 240 / 1797, "test": 1257 / 1797}}
TRAIN, HELD, TEST = ({"from": DIGITS, "take": name} for name in ("train", "held", "test"))
SETTINGS: dict[str, Any] = {"epochs": 30, "batch_size": 64}
RATES, TUNING = (0.003, 0.01, 0.03), (100, 101)
TEACHER = {"model_type": "resnet", "num_channels": 1, "embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1],
           "layer_type": "basic", "downsample_in_first_stage": False, "num_labels": 10}  # fmt: skip
STUDENTS = {
    "convnext": {"model_type": "convnext", "num_channels": 1, "patch_size": 2, "num_stages": 2, "hidden_sizes": [16, 32],
                 "depths": [1, 1], "image_size": 8, "num_labels": 10},
    "vit": {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10},
}  # fmt: skip


def teachers_of(slug: str, teacher: Model) -> dict[str, Any]:
    if slug == "none":
        return {}
    return {"teacher": {"config": TEACHER} if slug == "dml" else teacher}


def right(model: Model, test: Any) -> np.ndarray:
    """1 where the model's answer is the label, float64 [items]."""
    return np.asarray(predict(model, test, Ctx(device="cpu")).argmax(axis=1) == test.labels(), dtype=np.float64)


def teacher_of(seed: int, rate: float, folder: Path) -> Model:
    made: Model = apply("distill/none", student={"config": TEACHER}, data=TRAIN, **SETTINGS, lr=rate, out=folder / f"teacher-{seed}-{rate}",
                        ctx=Ctx(seed=1000 + seed, device="cpu"))  # fmt: skip
    return made


def trained(slug: str, student: dict[str, Any], teacher: Model, seed: int, rate: float, folder: Path) -> Model:
    made: Model = apply(f"distill/{slug}", **teachers_of(slug, teacher), student={"config": student}, data=TRAIN, **SETTINGS, lr=rate,
                        out=folder / f"{slug}-{seed}-{rate}", ctx=Ctx(seed=seed, device="cpu"))  # fmt: skip
    return made


def chosen(make: Any, held: Any) -> tuple[float, dict[str, float]]:
    """The learning rate whose models ``make(seed, rate)`` are right most often on the held images of the tuning seeds, inside what was tried."""
    found: dict[float, float] = {}
    rates: list[float] = list(RATES)
    while rates:
        rate = rates.pop(0)
        found[rate] = float(np.mean([right(make(seed, rate), held).mean() for seed in TUNING]))
        if not rates and (further := untried(found)) is not None:
            rates.append(further)
    return best(found), {str(rate): share for rate, share in found.items()}


def accuracies(
    student: dict[str, Any], teachers: dict[int, Model], held: Any, test: Any, folder: Path
) -> dict[str, Any]:
    scores: dict[str, np.ndarray] = {}
    rates: dict[str, dict[str, Any]] = {}
    for slug in ("none", *METHODS):
        rate, tried = chosen(lambda seed, rate, slug=slug: trained(slug, student, teachers[seed], seed, rate, folder), held)  # fmt: skip
        rates[slug] = {"lr": rate, "held": tried}
        scores[slug] = np.stack(
            [right(trained(slug, student, teachers[seed], seed, rate, folder), test) for seed in range(SEEDS)]
        )
        print(f"{slug:22} lr {rate}  {scores[slug].mean():.4f}", flush=True)
    table: dict[str, Any] = {}
    for slug, mine in scores.items():
        means = mine.mean(axis=1)
        table[slug] = {"accuracy": float(means.mean()), "sd": float(means.std(ddof=1)), "seeds": means.tolist(), **rates[slug]}  # fmt: skip
    for base in ("none", "kd"):
        found = {slug: compare_runs(scores[base], mine) for slug, mine in scores.items() if slug != base}
        adjusted = holm([f.p for f in found.values()]).tolist()
        for (slug, f), p in zip(found.items(), adjusted, strict=True):
            above = int((scores[slug].mean(axis=1) > scores[base].mean(axis=1)).sum())
            table[slug][f"minus_{base}"] = {"difference": f.delta.estimate, "low": f.delta.low, "high": f.delta.high, "p": p, "seeds_above": above}  # fmt: skip
    return table


def overheads(student: dict[str, Any], teacher: Model) -> dict[str, Any]:
    """Time of a step over that of a student step and a teacher's prediction, pair by pair."""
    found = {}
    for slug in METHODS:
        runs = {}
        for name in (slug, "none"):
            given = {**teachers_of(name, teacher), "student": {"config": student}, "data": TRAIN, **SETTINGS, "lr": 0.01, "teacher_cache": "off"}  # fmt: skip
            call = prepare(load_room("distill"), load(f"distill/{name}"), given, Ctx(device="cpu"))
            hooks = _hooks(call)
            runs[name] = (start(call, hooks), hooks)
            runs[name][0].steps = 10_000
        module, model, encoder = _teacher(runs[slug][0], teacher)
        mine, plain = [], []
        rng = np.random.default_rng(0)
        for pair in range(PAIRS + 5):
            positions = rng.permutation(len(runs["none"][0].data))[: SETTINGS["batch_size"]]
            times = {}
            for name in (slug, "none") if pair % 2 else ("none", slug):
                began = time.perf_counter()
                _step(*runs[name], [positions], {})
                if name == "none":
                    with torch.no_grad():
                        forward(module, model, encoder.encode(positions))
                times[name] = time.perf_counter() - began
            if pair >= 5:
                mine.append(times[slug])
                plain.append(times["none"])
        ratios = [a / b for a, b in zip(mine, plain, strict=True)]
        found[slug] = {"step_ms": 1e3 * statistics.median(mine), "student_and_teacher_ms": 1e3 * statistics.median(plain),
                       "ratio": summary(ratios)}  # fmt: skip
    return found


def _teacher(state: Any, teacher: Model) -> tuple[Any, Model, Any]:
    from interfuse.data.models import build
    from interfuse.kit.encode import Encoder

    return build(teacher, Ctx(device="cpu")).eval(), teacher, Encoder(teacher, state.data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    began = time.perf_counter()
    held, test = open_table(Source(HELD), Ctx()), open_table(Source(TEST), Ctx())
    figures: dict[str, Any] = {
        "what": "classical distillations at published defaults, 300 digits (scaled-down; not the papers' data)",
        "threads": 1, "settings": {**SETTINGS, "optimizer": "adamw", "seeds": SEEDS, "train": 300, "test": len(test)},
        "teacher": TEACHER, "students": STUDENTS, "rates": RATES,
        "intervals": "95 %, for other seeds and other test items; p adjusted for the methods compared (Holm)",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rate, tried = chosen(lambda seed, rate: teacher_of(seed, rate, folder), held)
        teachers = {seed: teacher_of(seed, rate, folder / "kept") for seed in (*range(SEEDS), *TUNING)}
        means = [float(right(teachers[seed], test).mean()) for seed in range(SEEDS)]
        figures["teachers"] = {"accuracy": statistics.mean(means), "sd": statistics.stdev(means), "seeds": means, "lr": rate, "held": tried}  # fmt: skip
        figures["accuracy"] = {
            name: accuracies(STUDENTS[name], teachers, held, test, folder / name) for name in LEARNERS
        }
        if "--accuracy" in sys.argv:
            before = json.loads((RESULTS / "distill-baselines.json").read_text())
            figures |= {"step_time": before["step_time"], "note": before["note"]}
        else:
            figures["step_time"] = {name: overheads(student, teachers[0]) for name, student in STUDENTS.items()}
    figures["load"] = os.getloadavg()[0]
    figures["minutes"] = (time.perf_counter() - began) / 60
    print(save("distill-baselines", figures))
    print(f"teachers {figures['teachers']['accuracy']:.4f}")
    for name in LEARNERS:
        for slug, row in figures["accuracy"][name].items():
            text = f"{name:9} {slug:22} {row['accuracy']:.4f} sd {row['sd']:.4f}"
            for base in ("none", "kd"):
                if f"minus_{base}" in row:
                    d = row[f"minus_{base}"]
                    text += f"  minus {base} {d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] p {d['p']:.3f} {d['seeds_above']}/5"
            print(text)
    for name in STUDENTS:
        for slug, row in figures["step_time"][name].items():
            print(f"{name:9} {slug:22} step {row['step_ms']:.1f} ms, ratio {row['ratio']['median']:.2f}")
