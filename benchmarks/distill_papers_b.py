"""Five published distillations: the experiment of each card on scikit-learn's digits and DisWOT's 64 students. Scaled-down.

Seeds, choice of settings and comparisons as in ``distill_papers_a.py``.

    python benchmarks/distill_papers_b.py [SLUG ...]
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from distill_papers_a import (
    CNN,
    FIRST,
    SETTINGS,
    SHIFTS,
    Images,
    Seed,
    Study,
    accuracy,
    last_row,
    logits,
    mlp,
    rates,
    run,
    same,
    shift_suite,
    table,
)
from record import RESULTS
from scipy import ndimage, stats
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_sample_images
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.svm import SVC
from token_nets import Tokens
from torch import nn

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import Source, load_room, prepare
from interfuse.data.models import Model, build, open_model
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table
from interfuse.kit.architecture_scores import (
    cka_score,
    kd_score,
    nwot_score,
    probe,
    relation_score,
    semantic_score,
    synflow_score,
)
from interfuse.kit.calibration import brier, calibration
from interfuse.kit.complementary import complement, transferred
from interfuse.kit.feature_losses import linear_cka
from interfuse.kit.taps import Taps

SHARED = Path(os.environ.get("INTERFUSE_SHARED_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
DISWOT_DATA = SHARED / "diswot-s1"


class Fitted(nn.Module):
    """A scikit-learn classifier as a teacher: log-probabilities as logits, without gradient."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.estimator.predict_proba(x.detach().flatten(1).numpy())
        full = np.full((len(p), 10), 1e-6)
        full[:, self.estimator.classes_.astype(int)] += p
        return torch.from_numpy(np.log(full / full.sum(axis=1, keepdims=True))).float()


FAMILIES: dict[str, tuple[Callable[..., nn.Module], tuple[Any, ...], tuple[Any, ...]]] = {
    "cnn": (CNN, (32, 64), (8, 16)), "vit": (Tokens, (48, False), (24, False)), "mixer": (Tokens, (48, True), (24, True)),
}  # fmt: skip


# -- OFA-KD ----------------------------------------------------------------------------------------------------------


#: who teaches whom: every family once on either side, and the other way round
PAIRS = (("mixer", "cnn"), ("cnn", "vit"), ("vit", "mixer"))
OTHER_PAIRS = tuple((student, teacher) for teacher, student in PAIRS)
OFA: dict[str, Any] = {"epochs": 40, "batch_size": 64}
OFA_CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}), "kd": ("kd", {"alpha": 0.5, "tau": 4.0}), "fitnets": ("fitnets", {}), "rkd": ("rkd", {}), "dist": ("dist", {}),
    "dkd": ("dkd", {}), "no exits": ("ofa-kd", {"w_ofa": 0}), "ofa": ("ofa-kd", {}), "ofa 1.5": ("ofa-kd", {"eps": 1.5})}  # fmt: skip


def ofa(seed: Seed) -> dict[str, float]:
    """Teachers of three families trained on 900 images, which stands for pretraining; students of the other families learn from 300
    of them in three unlike pairs, and from boosted trees."""
    x, y = seed.x, seed.y
    data, everything, test = table(x[:300], y[:300]), table(x[:900], y[:900]), seed.judged(900, 1100)
    teachers = _teachers(seed, everything)
    scores: dict[str, list[float]] = {name: [] for name in OFA_CONDITIONS}
    found = {f"teacher {n}": accuracy(m, *test) for n, m in teachers.items()}
    alone: dict[str, Model] = {}
    early, late = [], []
    for teacher, student in PAIRS:
        for name in OFA_CONDITIONS:
            made = _student(seed, name, student, teachers[teacher], data)
            scores[name].append(accuracy(made, *test))
            found[f"{name}: {teacher} -> {student}"] = scores[name][-1]
            if name == "none":
                alone[student] = made
            if name == "ofa":
                row = last_row(made)
                early.append(row["raw/right_1"])
                late.append(row["raw/right_2"])
    found |= {name: statistics.mean(values) for name, values in scores.items()}
    if seed.tuning:
        return found
    found |= {
        "training accuracy of exit 1": statistics.mean(early),
        "training accuracy of exit 2": statistics.mean(late),
    }
    trees = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(x[:900].reshape(900, -1), y[:900])
    found["teacher trees"] = float((trees.predict(test[0].reshape(len(test[1]), -1)) == test[1]).mean())
    for name in ("kd", "ofa"):
        method, given = OFA_CONDITIONS[name]
        made = seed.train(method, seed.net(CNN, 8, 16), data, name=name, teacher=[Fitted(trees)], **OFA, **given)
        found[f"{name}: trees -> cnn"] = accuracy(made, *test)
    found["cka of cnn and cnn"] = _cka(teachers["cnn"], alone["cnn"], x[900:1156], "stages.1", "stages.1")
    found["cka of cnn and vit"] = _cka(teachers["cnn"], alone["vit"], x[900:1156], "stages.1", "blocks.1")
    return found


def _teachers(seed: Seed, data: Table) -> dict[str, Model]:
    return {n: seed.train("none", seed.net(make, *big), data, **OFA, lr=0.01) for n, (make, big, _) in FAMILIES.items()}


def _student(seed: Seed, name: str, family: str, teacher: Model, data: Table, **more: Any) -> Model:
    (method, given), (make, _, small) = OFA_CONDITIONS.get(name, ("ofa-kd", {})), FAMILIES[family]
    taught = {} if name == "none" else {"teacher": [teacher]}
    return seed.train(method, seed.net(make, *small), data, name=name, **taught, **OFA, **given, **more)


def ofa_exits(seed: Seed) -> dict[str, float]:
    """As for OFA-KD's card, in its three unlike pairs: both exits, the exit after the last stage alone, and both with an exponent of 2."""
    x, y = seed.x, seed.y
    data, test = table(x[:300], y[:300]), seed.judged(900, 1100)
    teachers = _teachers(seed, table(x[:900], y[:900]))
    scores: dict[str, list[float]] = {}
    for teacher, student in PAIRS:
        last = {"stages": ["stages.1" if student == "cnn" else "blocks.1"]}
        for name, more in (("ofa", {}), ("last exit", last), ("eps 2", {"eps": 2.0})):
            made = _student(seed, name, student, teachers[teacher], data, **more)
            scores.setdefault(name, []).append(accuracy(made, *test))
    return {name: statistics.mean(values) for name, values in scores.items()}


#: what the other pairs are trained with: the rates that did best on validation images in the first three pairs (``distill-ofa-kd.json``)
OFA_RATES = {"none": 0.01, "kd": 0.03, "rkd": 0.03, "ofa": 0.03}


def ofa_pairs(seed: Seed) -> dict[str, float]:
    """As for OFA-KD's card, in the three unlike pairs that are left (CNN to mixer, ViT to CNN, mixer to ViT) and in three pairs of one
    family: teachers trained on 900 images, students on 300 of them, at the rates chosen in the first three pairs."""
    x, y = seed.x, seed.y
    data, test = table(x[:300], y[:300]), seed.judged(900, 1100)
    seed.chosen = {name: {"lr": rate} for name, rate in OFA_RATES.items()}
    teachers = _teachers(seed, table(x[:900], y[:900]))
    found = {f"teacher {n}": accuracy(m, *test) for n, m in teachers.items()}
    alone = {n: accuracy(_student(seed, "none", n, teachers[n], data), *test) for n in FAMILIES}
    for kind, pairs in (("unlike", OTHER_PAIRS), ("one family", tuple((n, n) for n in FAMILIES))):
        for name in OFA_RATES if kind == "unlike" else ("none", "kd", "ofa"):
            for teacher, student in pairs:
                made = (
                    alone[student]
                    if name == "none"
                    else accuracy(_student(seed, name, student, teachers[teacher], data), *test)
                )
                found[f"{name}: {teacher} -> {student}"] = made
            found[f"{name}, {kind}"] = statistics.mean(found[f"{name}: {t} -> {s}"] for t, s in pairs)
    return found


def _cka(one: Model, other: Model, x: Images, first: str, second: str) -> float:
    seen = []
    for model, layer in ((one, first), (other, second)):
        module = build(model, Ctx()).eval()
        with Taps(module, [layer]) as taps, torch.no_grad():
            module(torch.from_numpy(x[:, None]))
            seen.append(taps.features[layer].double())
    return float(linear_cka(seen[0], seen[1]))


# -- BD-KD -----------------------------------------------------------------------------------------------------------


BD: dict[str, Any] = {"epochs": 40, "batch_size": 32}


def bd(seed: Seed) -> dict[str, float]:
    """300 images with 10 % wrong labels; an MLP 256-256 as teacher, 12 as student, trained together; the rest tests."""
    x, y, rng = seed.x, seed.y, seed.rng
    noisy = y[:300].copy()
    for row in rng.choice(300, 30, replace=False):
        noisy[row] = (noisy[row] + rng.integers(1, 10)) % 10
    data, test = table(x[:300], noisy), seed.judged(300, 600)
    big, small = (256, 256), (12,)
    teacher = seed.train("none", seed.net(mlp, *big), data, **BD, lr=0.01)
    conditions: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("none", {}), "kd": ("kd", {"teacher": [teacher], "alpha": 0.5}), "dml": ("dml", {"teacher": [seed.net(mlp, *big)]}),
        "kdcl": ("kdcl", {"teacher": [seed.net(mlp, *big)]})}  # fmt: skip
    rules = {"bd-kd": "balance", **{r: r for r in ("flipped", "fixed", "forward", "reverse")}}
    conditions |= {n: ("bd-kd", {"teacher": [seed.net(mlp, *big)], "rule": rule}) for n, rule in rules.items()}
    found = {"accuracy teacher none": accuracy(teacher, *test)}
    for name, (method, given) in conditions.items():
        made = seed.train(method, seed.net(mlp, *small), data, name=name, **BD, **given)
        z = logits(made, test[0])
        said = calibration(z, test[1])
        p = torch.from_numpy(z).double().softmax(1).numpy()
        found |= {f"accuracy {name}": said.accuracy, f"nll {name}": said.nll, f"ece {name}": said.ece, f"brier {name}": brier(p, test[1])}  # fmt: skip
        if method == "bd-kd":
            assert made.path is not None
            with_teacher = open_model(Source(seed.net(mlp, *big)), Ctx())
            trained = Model("teacher", made.path / "teacher-0", {}, "module", with_teacher.module)
            found[f"accuracy teacher {name}"] = accuracy(trained, *test)
            found[f"share less certain {name}"] = last_row(made)["raw/less_certain_0"]
    return found


# -- Fantastic Gains -------------------------------------------------------------------------------------------------

GAINS: dict[str, Any] = {"epochs": 10, "batch_size": 64, "optimizer": "sgd"}
GAINS_RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "dp": ("fantastic-gains", {}), "dp, unsupervised": ("fantastic-gains", {"partition": "unsupervised"}), "kl": ("fantastic-gains", {"partition": "teacher"}),
    "xe-kl": ("fantastic-gains", {"partition": "teacher", "alpha": 0.5}),
    "xe-kl + mcl": ("fantastic-gains", {"partition": "flip-t", "alpha": 0.68, "slow": 0.99, "slow_every": 2}),
    "crd": ("crd", {"schedule": "constant", "warmup": 0.0})}  # fmt: skip
#: neural models, which can be students, and the others
NETWORKS: dict[str, tuple[Any, ...]] = {"mlp": (mlp, 16), "wide mlp": (mlp, 64), "cnn": (CNN, 8, 16), "vit": (Tokens, 24, False)}  # fmt: skip
OTHERS = ("forest", "svm")


def zoo(seed: Seed) -> dict[str, Model]:
    """Six models, each trained on 60 % of 600 images with class weights of its own."""
    x, y, rng = seed.x, seed.y, seed.rng
    pool: dict[str, Model] = {}
    for name in (*NETWORKS, *OTHERS):
        skew = rng.uniform(0.15, 1.0, 10)[y[:600]]
        rows = rng.choice(600, 360, replace=False, p=skew / skew.sum())
        if name in OTHERS:
            kind = (
                RandomForestClassifier(50, random_state=0)
                if name == "forest"
                else CalibratedClassifierCV(SVC(), ensemble=False)
            )
            pool[name] = open_model(Source(Fitted(kind.fit(x[rows].reshape(360, -1), y[rows]))), Ctx())
        else:
            pool[name] = seed.train("none", seed.net(*NETWORKS[name]), table(x[rows], y[rows]), epochs=30)
    return pool


def gains(seed: Seed) -> dict[str, float]:
    """Six models of digits, each with classes it knows best; 20 ordered pairs a seed with four kinds of students, 500 other images to
    transfer; then three teachers at once for every student. Contrastive distillation has the 12 pairs whose teacher has features."""
    transfer, test = table(seed.x[600:1100], seed.y[600:1100]), seed.judged(1100, 1300)
    pool = zoo(seed)
    said = {name: logits(m, test[0]).argmax(1) for name, m in pool.items()}
    right = {name: float((z == test[1]).mean()) for name, z in said.items()}
    deltas: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    rho: list[float] = []

    def note(what: str, delta: float) -> None:
        deltas.setdefault(what, []).append(delta)

    for student, teacher in itertools.product(NETWORKS, pool):
        if student == teacher:
            continue
        rho.append(complement(said[student], said[teacher], test[1], 10).rho_pos)
        for name, (method, given) in GAINS_RULES.items():
            if method == "crd" and teacher in OTHERS:
                continue
            made = seed.train(method, build(pool[student], Ctx()), transfer, name=name, teacher=[pool[teacher]],
                              **{**GAINS, **given})  # fmt: skip
            row = transferred(said[student], logits(made, test[0]).argmax(1), said[teacher], test[1])
            note(name, row.delta)
            losses.setdefault(name, []).append(row.loss)
            if teacher not in OTHERS:
                note(f"{name}, teachers with features", row.delta)
            if right[teacher] < right[student]:
                note(f"{name}, weaker teacher", row.delta)
            if name == "dp":
                note(f"dp, {student} learns", row.delta)
    for student in NETWORKS if not seed.tuning else ():
        teachers = [name for name in pool if name != student][-3:]  # a network, the forest and the SVM
        for strategy in ("parallel", "sequential", "soup"):
            made = seed.train("fantastic-gains", build(pool[student], Ctx()), transfer, name="dp", teacher=[pool[t] for t in teachers],
                              **{**GAINS, "strategy": strategy, "epochs": 30})  # fmt: skip
            note(f"three teachers, {strategy}", accuracy(made, *test) - right[student])
        for teacher in teachers:
            made = seed.train("fantastic-gains", build(pool[student], Ctx()), transfer, name="dp", teacher=[pool[teacher]], **{**GAINS, "epochs": 30})  # fmt: skip
            note("one of three teachers, as long", accuracy(made, *test) - right[student])
    found = {f"accuracy {name}": value for name, value in right.items()}
    found |= {"pairs": float(len(rho)), "least rho_pos": min(rho), "mean rho_pos": statistics.mean(rho)}
    found |= {f"success {name}": statistics.mean(float(d > 0) for d in values) for name, values in deltas.items()}
    found |= {f"delta {name}": statistics.mean(values) for name, values in deltas.items()}
    return found | {f"loss {name}": statistics.mean(values) for name, values in losses.items()}


def gains_self(seed: Seed) -> dict[str, float]:
    """Self-distillation, the baseline that learns from a frozen copy of the student alone, beside the recorded pairs: the same models, images
    and seeds. No teacher speaks in it, so it is trained once for each of the four students, and stands for that student's five pairs."""
    transfer, test = table(seed.x[600:1100], seed.y[600:1100]), seed.judged(1100, 1300)
    pool = zoo(seed)
    deltas = []
    for student in NETWORKS:
        made = seed.train("fantastic-gains", build(pool[student], Ctx()), transfer, name="self", teacher=[pool["forest"]],
                          **GAINS, partition="self")  # fmt: skip
        deltas.append(accuracy(made, *test) - accuracy(pool[student], *test))
    found = {"delta self": statistics.mean(deltas), "success self": statistics.mean(float(d > 0) for d in deltas)}
    if seed.tuning:
        return found
    recorded = json.loads((RESULTS / "distill-fantastic-gains.json").read_text())
    row = recorded["rows"][recorded["seeds"].index(seed.number)]
    apart = {name: accuracy(pool[name], *test) - row[f"accuracy {name}"] for name in NETWORKS}
    assert all(abs(d) < 0.01 for d in apart.values()), f"not the recorded models: {apart}"
    return found | {name: row[name] for name in ("delta dp", "success dp", "delta kl", "success kl")}


# -- HARD ------------------------------------------------------------------------------------------------------------

HARD: dict[str, Any] = {"augmentor_lr": 0.05, "start": 0.3, "shift": 0.2, "rotate": 30.0, "scale": 0.3, "shear": 10.0}


def hard(seed: Seed) -> dict[str, float]:
    """A CNN trained with shifts of 1 pixel and rotations of 20 degrees teaches an MLP on 400 images without labels."""
    x, y, rng = seed.x, seed.y, seed.rng
    moved = [x[:500]] + [np.stack([_jitter(image, rng) for image in x[:500]]) for _ in range(3)]
    teacher = seed.train("none", seed.net(CNN, 32, 64), table(np.concatenate(moved), np.tile(y[:500], 4)), epochs=15)
    judged, labels = seed.judged(900, 1100)
    data, suite = table(x[500:900]), shift_suite(judged, rng)
    plain = {"tau": 4.0}
    conditions: dict[str, tuple[str, dict[str, Any]]] = {
        "kd": ("kd", {**plain, "alpha": 1.0}),
        "random affine": ("hard", {**HARD, "lambda_s": 0, "lambda_t": 0, "start": 0.6}),
        "noise": ("hard", {**HARD, "augmentor": "noise", "noise": 0.3}),
        "hard": ("hard", HARD), "hard, no constraint": ("hard", {**HARD, "constraint": "none"}),
        "mix": ("hard", {**HARD, "augmentor": "mix"}), "vae": ("hard", {**HARD, "augmentor": "vae"}),
    }  # fmt: skip
    found = {
        f"teacher {group}": statistics.mean(accuracy(teacher, images, labels) for images in several)
        for group, several in suite.items()
    }
    for name, (method, given) in conditions.items():
        made = seed.train(method, seed.net(mlp, 64), data, name=name, teacher=[teacher], epochs=40, **given)
        for group, several in suite.items():
            found[f"{name} {group}"] = statistics.mean(accuracy(made, images, labels) for images in several)
        found[f"{name} out of domain"] = statistics.mean(found[f"{name} {g}"] for g in suite if g != "clean")
        p, q = (
            torch.from_numpy(logits(made, images)).log_softmax(1) for images in (suite["clean"][0], suite["shift"][0])
        )
        found[f"{name} inconsistency"] = float((p.exp() * (p - q)).sum(1).mean())
    if seed.tuning:
        return found
    for name in ("kd", "random affine", "hard"):
        method, given = conditions[name]
        given = {
            **given,
            **seed.chosen.get(name, {}),
            "teacher": [teacher],
            "epochs": 40,
            "student": seed.net(mlp, 64),
            "data": data,
        }
        groups = {group: several for group, several in suite.items() if group != "clean"}
        curve = learning_curve(method, given, seed, groups, labels)
        found |= {f"{name} out of domain after {epoch} epochs": value for epoch, value in curve.items()}
        found[f"{name} out of domain over training"] = statistics.mean(curve.values())
    return found | toy(seed)


#: after these epochs the student is looked at while it learns
LOOKS = (2, 4, 6, 8, 10, 15, 20, 25, 30, 35, 40)


def learning_curve(
    slug: str, given: dict[str, Any], seed: Seed, groups: dict[str, list[Images]], labels: Any
) -> dict[int, float]:
    """Mean accuracy over groups of moved images after some epochs of a training."""
    engine = importlib.import_module("interfuse.distill.room")
    chosen = load(f"distill/{slug}")
    found: dict[int, float] = {}

    @dataclasses.dataclass(frozen=True)
    class Watched(chosen.target):  # type: ignore[misc,name-defined]
        def on_epoch_end(self, run: Any) -> None:
            super().on_epoch_end(run)
            if run.epoch in LOOKS:
                student = run.student.eval()
                with torch.no_grad():
                    means = [statistics.mean(float((student(torch.from_numpy(x[:, None])).argmax(1).numpy() == labels).mean()) for x in several)
                             for several in groups.values()]  # fmt: skip
                found[run.epoch] = statistics.mean(means)

    own = {f.name for f in dataclasses.fields(chosen.target)}
    settings = {**SETTINGS, **given}
    call = prepare(load_room("distill"), chosen, settings, Ctx(seed=seed.number, device="cpu"))
    hooks = Watched(**{k: v for k, v in settings.items() if k in own})
    engine.train(engine.start(call, hooks), hooks)
    return found


def _jitter(image: Images, rng: np.random.Generator) -> Images:
    turned = ndimage.rotate(image, rng.uniform(-20, 20), reshape=False, order=1)
    return np.asarray(ndimage.shift(turned, rng.integers(-1, 2, 2), order=1), dtype=np.float32)


class Cosine(nn.Module):
    """The teacher of the toy: known everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(x)


def toy(seed: Seed) -> dict[str, float]:
    """cos on [-pi, pi] taught to an MLP 64-64; squared error on [-4 pi, 4 pi]."""
    x = seed.rng.uniform(-math.pi, math.pi, (400, 1))
    data = open_table(Source(Dataset.from_dict({"features": x.tolist()})), Ctx())
    inside = torch.linspace(-4 * math.pi, 4 * math.pi, 801)[:, None]
    found = {}
    for name, given in (("kd", {"start": 0.0, "augmentor_lr": 1e-12}), ("hard", {"start": 0.3, "augmentor_lr": 0.05})):
        with seeded(seed.number):
            net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        made = seed.train("hard", net, data, teacher=[Cosine()], augmentor="noise", noise=3.5 * math.pi, distance="mse",
                          epochs=60, student_steps=20, lambda_t=0.5, **given)  # fmt: skip
        with torch.no_grad():
            found[f"toy {name}"] = float((build(made, Ctx()).eval()(inside) - torch.cos(inside)).square().mean())
    return found


# -- DisWOT ----------------------------------------------------------------------------------------------------------


class _Basic(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.relu = nn.ReLU()
        same = stride == 1 and inner == outer
        self.short = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        found: torch.Tensor = self.relu(y + self.short(x))
        return found


class CifarResNet(nn.Module):
    """Three stages of basic blocks for 32 x 32 pictures: 16, 32 and 64 channels, or others after the stem's."""

    def __init__(
        self, depths: tuple[int, ...], classes: int = 100, widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Basic(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i and j == 0 else 1) for j in range(n)))
            for i, n in enumerate(depths)
        )  # fmt: skip
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        found: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return found


def photo_crops(count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops 32 x 32 of two photographs; the class is the picture and one of its 5 x 10 regions."""
    images, labels = [], []
    for _ in range(count):
        number = int(rng.integers(2))
        photo = load_sample_images().images[number]
        row, column = int(rng.integers(5)), int(rng.integers(10))
        height, width = photo.shape[0] // 5, photo.shape[1] // 10
        top, left = row * height + int(rng.integers(height - 32)), column * width + int(rng.integers(width - 32))
        crop = photo[top : top + 32, left : left + 32].astype(np.float32) / 255
        images.append((crop - crop.mean((0, 1))) / (crop.std((0, 1)) + 1e-3))
        labels.append(50 * number + 10 * row + column)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def diswot(seed: Seed) -> dict[str, float]:
    """64 untrained CIFAR ResNets scored beside a 9-9-9 teacher on 64 photo crops; tau and Spearman's rank correlation with their published distilled accuracies."""
    truth = dict(line.split() for line in (DISWOT_DATA / "s1-gt-kd.txt").read_text().splitlines() if line.strip())
    x, y = photo_crops(64, seed.rng)
    ones = torch.ones(1, 3, 32, 32, dtype=torch.float64)
    with seeded(seed.number):
        teacher = probe(CifarResNet((9, 9, 9)), lambda m: m(x), y)
    rows: dict[str, list[float]] = {}
    for key in truth:
        with seeded(seed.number):
            net = CifarResNet(tuple(int(c) for c in key))
        seen = probe(net, lambda m: m(x), y)
        row = {"semantic": semantic_score(teacher.gradient, seen.gradient), "relation": relation_score(teacher.features, seen.features),
               "kd": kd_score(teacher, seen), "cka": cka_score(teacher, seen), "gradient norm": seen.gradient_norm,
               "nwot": nwot_score(net, lambda m: m(x[:16])) or 0.0, "synflow": synflow_score(net, lambda m: m(ones)),
               "parameters": float(sum(p.numel() for p in net.parameters())), "depth": float(sum(int(c) for c in key))}  # fmt: skip
        row["diswot"] = row["semantic"] + row["relation"]
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    real = [float(v) for v in truth.values()]
    sizes = np.array(rows["parameters"])
    found = {}
    for name, values in rows.items():
        found |= {f"tau {name}": float(stats.kendalltau(values, real).statistic), f"spearman {name}": float(stats.spearmanr(values, real).statistic)}  # fmt: skip
        near = [
            (i, j)
            for i, j in itertools.combinations(range(64), 2)
            if max(sizes[i], sizes[j]) <= 1.2 * min(sizes[i], sizes[j])
        ]
        signs = [np.sign(values[i] - values[j]) * np.sign(real[i] - real[j]) for i, j in near]
        found[f"tau within 20 % of size {name}"] = float(np.mean(signs))
    return found | {"pairs within 20 % of size": float(len(near))}


def scatter(number: int = FIRST) -> Path:
    """Score at initialisation against published distilled accuracy of the 64 students, one seed: a picture and its numbers as CSV."""
    from interfuse.kit import training_plots

    truth = dict(line.split() for line in (DISWOT_DATA / "s1-gt-kd.txt").read_text().splitlines() if line.strip())
    x, y = photo_crops(64, np.random.default_rng(number))
    with seeded(number):
        teacher = probe(CifarResNet((9, 9, 9)), lambda m: m(x), y)
    rows = []
    for key, accuracy_ in truth.items():
        with seeded(number):
            net = CifarResNet(tuple(int(c) for c in key))
        seen = probe(net, lambda m: m(x), y)
        semantic, relation = (
            semantic_score(teacher.gradient, seen.gradient),
            relation_score(teacher.features, seen.features),
        )
        rows.append(
            [key, semantic + relation, semantic, relation, sum(p.numel() for p in net.parameters()), float(accuracy_)]
        )
    best = max(rows, key=lambda row: row[1])
    points = [
        (f"{row[0]}" if row is best else "", "result" if row is best else "reference", row[1], row[5]) for row in rows
    ]
    tau = float(stats.kendalltau([r[1] for r in rows], [r[5] for r in rows]).statistic)
    picture = training_plots.scatter("diswot", f"Score before training against accuracy after distillation, Kendall's tau {tau:.2f}", points,
                                     axes=("score at initialisation", "distilled accuracy on CIFAR-100 (%)"))  # fmt: skip
    place = RESULTS / "distill-diswot-scatter"
    with place.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["depths", "score", "semantic", "relation", "parameters", "distilled_accuracy"])
        writer.writerows([r[0], *(f"{v:.6g}" for v in r[1:])] for r in rows)
    place.with_suffix(".svg").write_text(picture.svg + "\n")
    return place.with_suffix(".svg")


class Plain(nn.Module):
    """A stem, ``depth`` convolutions of ``width`` channels (the first with stride 2), a mean, a linear layer."""

    def __init__(self, width: int, depth: int, kernel: int) -> None:
        super().__init__()
        wide = [1, width, *[width] * depth]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, kernel, 2 if k == 1 else 1, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for k, (a, b) in enumerate(itertools.pairwise(wide))
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        found: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return found


def own_space(seed: Seed) -> dict[str, float]:
    """18 convolutional students (4, 8, 16 channels; 1 to 3 deep; kernels of 3 and 5) distilled from one CNN on 300 digits, and scored
    untrained on 64 of them; tau with their accuracies on the rest, averaged over three initialisations of the scores."""
    x, y = seed.x, seed.y
    data, test = table(x[:300], y[:300]), (x[600:], y[600:])
    teacher = seed.train("none", seed.net(CNN, 32, 64), data)
    images, labels = torch.from_numpy(x[:64, None]), torch.from_numpy(y[:64])
    rows: dict[str, list[float]] = {}
    for sizes in itertools.product((4, 8, 16), (1, 2, 3), (3, 5)):
        made = seed.train("kd", seed.net(Plain, *sizes), data, teacher=[teacher], alpha=0.9, tau=4.0, epochs=20)
        seen: dict[str, list[float]] = {}
        for number in range(3):
            with seeded(1000 * seed.number + number):
                big, net = CNN(32, 64), Plain(*sizes)
            one, other = (probe(m, lambda m: m(images), labels) for m in (big, net))
            row = {"semantic": semantic_score(one.gradient, other.gradient, relation="class"), "relation": relation_score(one.features, other.features),
                   "kd": kd_score(one, other), "cka": cka_score(one, other), "gradient norm": other.gradient_norm,
                   "nwot": nwot_score(net, lambda m: m(images[:16])) or 0.0}  # fmt: skip
            for key, value in {**row, "diswot": row["semantic"] + row["relation"]}.items():
                seen.setdefault(key, []).append(value)
        net = Plain(*sizes)
        figures = {**{k: statistics.mean(v) for k, v in seen.items()}, "accuracy": accuracy(made, *test),
                   "parameters": float(sum(p.numel() for p in net.parameters())), "depth": float(sizes[1])}  # fmt: skip
        for key, value in figures.items():
            rows.setdefault(key, []).append(value)
    real = rows.pop("accuracy")
    kinds = (("tau", stats.kendalltau), ("spearman", stats.spearmanr))
    return {f"{name} {key}": float(of(values, real).statistic) for name, of in kinds for key, values in rows.items()} | {
        "least accuracy": min(real), "best accuracy": max(real), "accuracy of the chosen": real[int(np.argmax(rows["diswot"]))],
        "mean accuracy": statistics.mean(real)}  # fmt: skip


# -- comparisons -----------------------------------------------------------------------------------------------------

EXPERIMENTS: dict[str, Study] = {
    "ofa-kd": Study(ofa, 6, same(*OFA_CONDITIONS), (
        *((f"accuracy over three unlike pairs: OFA against {what}", name, "ofa") for name, what in (
            ("none", "labels alone"), ("kd", "KD"), ("fitnets", "FitNets"), ("rkd", "RKD"), ("dist", "DIST"), ("dkd", "DKD"))),
        ("accuracy: KD against labels alone", "none", "kd"),
        ("accuracy: FitNets against KD", "kd", "fitnets"), ("accuracy: exits against none", "no exits", "ofa"),
        ("accuracy: eps 1.5 against 1", "ofa", "ofa 1.5"),
        ("training accuracy of exits: second against first", "training accuracy of exit 1", "training accuracy of exit 2"),
        ("accuracy, trees teach a CNN: OFA against labels alone", "none: mixer -> cnn", "ofa: trees -> cnn"),
        ("accuracy, trees teach a CNN: OFA against KD", "kd: trees -> cnn", "ofa: trees -> cnn"),
        ("CKA of trained nets: CNN and CNN against CNN and ViT", "cka of cnn and vit", "cka of cnn and cnn"),
    )),
    "ofa-kd-exits": Study(ofa_exits, 5, same("ofa", "last exit", "eps 2"), (
        ("accuracy over three unlike pairs: both exits against the last alone", "last exit", "ofa"),
        ("accuracy over three unlike pairs: eps 2 against 1", "ofa", "eps 2"),
    )),
    "ofa-kd-pairs": Study(ofa_pairs, 5, {}, (
        *((f"accuracy over the three other unlike pairs: OFA against {what}", f"{name}, unlike", "ofa, unlike") for name, what in (
            ("none", "labels alone"), ("kd", "KD"), ("rkd", "RKD"))),
        ("accuracy over three pairs of one family: OFA against labels alone", "none, one family", "ofa, one family"),
        ("accuracy over three pairs of one family: OFA against KD", "kd, one family", "ofa, one family"),
        *((f"accuracy, {teacher} to {student}: OFA against {what}", f"{name}: {teacher} -> {student}", f"ofa: {teacher} -> {student}")
          for teacher, student in (*OTHER_PAIRS, *((n, n) for n in FAMILIES)) for name, what in (("none", "labels alone"), ("kd", "KD"))),
    )),
    "bd-kd": Study(bd, 10, {n: f"accuracy {n}" for n in ("none", "kd", "dml", "kdcl", "bd-kd", "flipped", "fixed", "forward", "reverse")}, (
        *((f"{what}: BD-KD against {name}", f"{what} {base}", f"{what} bd-kd") for what in ("accuracy", "ece", "nll", "brier")
          for base, name in (("none", "labels alone"), ("kd", "offline KD"), ("dml", "DML"), ("kdcl", "KDCL"))),
        *((f"{what}: balance against {rule}", f"{what} {rule}", f"{what} bd-kd") for what in ("accuracy", "ece", "nll")
          for rule in ("flipped", "fixed", "forward", "reverse")),
        ("accuracy of the teacher: online against alone", "accuracy teacher none", "accuracy teacher bd-kd"),
    ), {"bd-kd": rates(delta=(2.0, 4.0))}),
    "fantastic-gains": Study(gains, 6, {n: f"delta {n}" for n in GAINS_RULES}, (
        ("success rate: DP against KL-Dist", "success kl", "success dp"), ("success rate: DP against XE-KL", "success xe-kl", "success dp"),
        ("success rate: DP against XE-KL + MCL", "success xe-kl + mcl", "success dp"),
        ("success rate, teachers with features: DP against CRD", "success crd", "success dp, teachers with features"),
        ("success rate: unsupervised DP against KL-Dist", "success kl", "success dp, unsupervised"),
        ("success rate: supervised against unsupervised DP", "success dp, unsupervised", "success dp"),
        ("change of accuracy: DP against KL-Dist", "delta kl", "delta dp"), ("change of accuracy: DP against XE-KL", "delta xe-kl", "delta dp"),
        ("change of accuracy: DP against XE-KL + MCL", "delta xe-kl + mcl", "delta dp"),
        ("change of accuracy, teachers with features: DP against CRD", "delta crd", "delta dp, teachers with features"),
        ("knowledge loss: DP against KL-Dist", "loss kl", "loss dp"), ("knowledge loss: DP against XE-KL + MCL", "loss xe-kl + mcl", "loss dp"),
        ("change of accuracy by DP", "0", "delta dp"),
        ("change of accuracy by DP, weaker teachers", "0", "delta dp, weaker teacher"),
        ("change of accuracy by KL-Dist, weaker teachers", "0", "delta kl, weaker teacher"),
        ("change of accuracy by DP: MLP of 64 units against one of 16", "delta dp, mlp learns", "delta dp, wide mlp learns"),
        *((f"change of accuracy: three teachers, {strategy}, against one for as long", "delta one of three teachers, as long", f"delta three teachers, {strategy}")
          for strategy in ("parallel", "sequential", "soup")),
        ("change of accuracy, three teachers: sequential against parallel", "delta three teachers, parallel", "delta three teachers, sequential"),
    ), {n: [{"lr": rate} for rate in (0.003, 0.01, 0.03)] for n in GAINS_RULES}),
    "fantastic-gains-self": Study(gains_self, 6, {"self": "delta self"}, (
        ("success rate: DP against self-distillation", "success self", "success dp"),
        ("change of accuracy: DP against self-distillation", "delta self", "delta dp"),
        ("change of accuracy: KL-Dist against self-distillation", "delta self", "delta kl"),
        ("change of accuracy by self-distillation", "0", "delta self"),
    ), {"self": [{"lr": rate} for rate in (0.003, 0.01, 0.03)]}),
    "hard": Study(hard, 10, {n: f"{n} clean" for n in ("kd", "random affine", "noise", "hard", "hard, no constraint", "mix", "vae")}, (
        *((f"accuracy, {group}: HARD against {name}", f"{base} {group}", f"hard {group}") for group in ("clean", *SHIFTS, "out of domain")
          for base, name in (("kd", "KD"), ("random affine", "random affine"))),
        ("accuracy, out of domain: HARD against adversarial noise", "noise out of domain", "hard out of domain"),
        ("accuracy, out of domain: teacher invariance against none", "hard, no constraint out of domain", "hard out of domain"),
        ("accuracy, out of domain: HARD-Mix against KD", "kd out of domain", "mix out of domain"),
        ("accuracy, out of domain: HARD-VAE against KD", "kd out of domain", "vae out of domain"),
        *((f"accuracy, out of domain, mean over {len(LOOKS)} looks while it learns: HARD against {name}", f"{name} out of domain over training", "hard out of domain over training")
          for name in ("kd", "random affine")),
        *((f"accuracy, out of domain, after {epoch} epochs: HARD against random affine", f"random affine out of domain after {epoch} epochs", f"hard out of domain after {epoch} epochs")
          for epoch in (4, 10, 20)),
        ("KL between the student's answers to an image and to its shift", "kd inconsistency", "hard inconsistency"),
        ("toy: squared error beyond the data, HARD against KD", "toy kd", "toy hard"),
    ), {"hard": rates(lambda_t=(0.5, 2.0))}),
    "diswot-own": Study(own_space, 5, {}, (
        *((f"tau: DisWOT against {name}", f"tau {name}", "tau diswot") for name in ("semantic", "relation", "kd", "cka", "nwot", "gradient norm", "depth", "parameters")),
        ("tau of DisWOT against 0", "0", "tau diswot"),
        ("accuracy of the student DisWOT chooses against the mean student", "mean accuracy", "accuracy of the chosen"),
    )),
    "diswot": Study(diswot, 5, {}, (
        *((f"tau: DisWOT against {name}", f"tau {name}", "tau diswot") for name in ("relation", "kd", "cka", "nwot", "synflow", "gradient norm", "depth", "parameters")),
        ("tau of DisWOT against 0", "0", "tau diswot"),
        *((f"Spearman: DisWOT against {name}", f"spearman {name}", "spearman diswot") for name in ("cka", "nwot", "synflow", "gradient norm", "parameters")),
        ("Spearman of DisWOT against 0", "0", "spearman diswot"),
        ("tau within 20 % of size: DisWOT against parameters", "tau within 20 % of size parameters", "tau within 20 % of size diswot"),
        ("tau within 20 % of size: DisWOT against NWOT", "tau within 20 % of size nwot", "tau within 20 % of size diswot"),
        ("tau within 20 % of size of DisWOT against 0", "0", "tau within 20 % of size diswot"),
    ), data="64 ResNets on CIFAR-100 (published accuracies)"),
}  # fmt: skip


def main(slugs: list[str]) -> None:
    torch.set_num_threads(1)
    for slug in slugs or list(EXPERIMENTS):
        if slug == "diswot" and not DISWOT_DATA.is_dir():
            print("diswot: the table of published accuracies is not there; skipped")
            continue
        run(slug, EXPERIMENTS[slug])
        if slug == "diswot":
            print(scatter())


if __name__ == "__main__":
    main(sys.argv[1:])
