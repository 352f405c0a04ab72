"""Six published distillations: the experiment of each card on scikit-learn's digits. Scaled-down: small networks, few images.

Every seed has a split, initial weights and an order of its own; all conditions of a seed share them and the settings. A
comparison is the mean of the seeds' paired differences with a 95 % bootstrap interval over seeds and a sign-flip p.
Learning rate and outer learning rate were chosen on seeds 100 and 101, by the test images of those seeds; the seeds reported are
others, of the same images split anew.

    python benchmarks/distill_papers_a.py [SLUG ...]
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from record import save, summary
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score
from torch import nn

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import Source, apply, load_room, prepare
from interfuse.data.models import Model, build
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table
from interfuse.kit.calibration import calibration, fit_temperature
from interfuse.kit.feature_losses import linear_cka
from interfuse.kit.nets import as_map, as_tokens
from interfuse.kit.resample import paired_bootstrap, sign_flip
from interfuse.kit.taps import Taps, classifier_name

SETTINGS: dict[str, Any] = {"epochs": 40, "batch_size": 64, "lr": 0.03}
Images = np.ndarray[Any, np.dtype[np.float32]]


class CNN(nn.Module):
    """Two 3x3 convolutions, the second with stride 2, a mean over the 4 x 4 places, a linear layer."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([
            nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
            nn.Sequential(nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(second), nn.ReLU()),
        ])  # fmt: skip
        self.head = nn.Linear(second, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        found: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return found


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in zip((64, *widths), widths, strict=False):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


@dataclasses.dataclass
class Seed:
    """One seed of an experiment: a generator, a folder, and the digits in this seed's random order."""

    number: int
    folder: Path
    made: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.number)
        bunch = load_digits()
        order = self.rng.permutation(len(bunch.target))
        self.x = (bunch.images[order] / 16).astype(np.float32)
        self.y = bunch.target[order]

    def net(self, make: Callable[..., nn.Module], *sizes: int) -> nn.Module:
        with seeded(self.number):
            return make(*sizes)

    def train(self, method: str, student: nn.Module, data: Table, **given: Any) -> Model:
        self.made += 1
        return apply(f"distill/{method}", student=student, data=data, **{**SETTINGS, **given}, out=self.folder / f"{self.number}-{self.made}",
                     ctx=Ctx(seed=self.number, device="cpu"))  # fmt: skip


def table(x: Images, y: Any = None) -> Table:
    rows = {"image": x.tolist()} | ({"label": [int(v) for v in y]} if y is not None else {})
    return open_table(Source(Dataset.from_dict(rows)), Ctx())


def logits(model: Model, x: Images) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.no_grad():
        found: np.ndarray[Any, np.dtype[np.float32]] = build(model, Ctx()).eval()(torch.from_numpy(x[:, None])).numpy()
    return found


def accuracy(model: Model, x: Images, y: Any) -> float:
    return float((logits(model, x).argmax(1) == y).mean())


def last_row(model: Model) -> dict[str, float]:
    assert model.path is not None
    with (model.path / "training.csv").open() as file:
        return {k: float(v) for k, v in list(csv.DictReader(file))[-1].items()}


# -- TGeo-KD ---------------------------------------------------------------------------------------------------------

OUTER: dict[str, Any] = {"outer_lr": 0.01}


def tgeo(seed: Seed) -> dict[str, float]:
    """400 + 40 outliers to train on, 200 for validation; the teacher learned 20 % wrong labels among the classes 3, 5
    and 8. A sample's alpha is its mean over the epochs."""
    import pyarrow.parquet

    x, y, rng = seed.x, seed.y, seed.rng
    wrong = y[:400].copy()
    confused = np.flatnonzero(np.isin(wrong, (3, 5, 8)))
    for row in rng.choice(confused, round(0.2 * len(confused)), replace=False):
        wrong[row] = rng.choice([c for c in (3, 5, 8) if c != wrong[row]])
    noise = rng.random((40, 8, 8)).astype(np.float32)
    train_x, train_y = np.concatenate([x[:400], noise]), np.concatenate([y[:400], rng.integers(0, 10, 40)])
    data, held, test = table(train_x, train_y), table(x[400:600], y[400:600]), (x[600:], y[600:])
    teacher = seed.train("none", seed.net(CNN, 16, 32), table(x[:400], wrong))
    found = {"teacher": accuracy(teacher, *test)}
    validated = {}
    for alpha in (0.0, 0.1, 0.5, 0.9):
        made = seed.train("tgeo-kd", seed.net(mlp, 16, 10), data, teacher=[teacher], fixed_alpha=alpha)
        found[f"alpha {alpha}"], validated[alpha] = accuracy(made, *test), accuracy(made, x[400:600], y[400:600])
    found["best fixed alpha"] = found[f"alpha {max(validated, key=lambda a: validated[a])}"]
    made = seed.train("tgeo-kd", seed.net(mlp, 16, 10), data, teacher=[teacher], validation=held, **OUTER)
    rows = pyarrow.parquet.read_table(made.path / "fusion_ratio.parquet").to_pandas()  # type: ignore[operator]
    mean = rows.groupby("sample_id").agg({"alpha": "mean", "teacher_correct": "first"})
    ids, right = mean.index.astype(int).to_numpy(), mean.teacher_correct.to_numpy()
    real, alpha = ids < 400, mean.alpha.to_numpy()
    return found | {
        "tgeo-kd": accuracy(made, *test),
        "auroc of low alpha for a wrong teacher": float(roc_auc_score(~right, -alpha)),
        "auroc, real images only": float(roc_auc_score(~right[real], -alpha[real])) if (~right[real]).any() else 0.5,
        "alpha, teacher right": float(alpha[right].mean()), "alpha, teacher wrong": float(alpha[~right].mean()),
        "alpha, real images": float(alpha[real].mean()), "alpha, noise images": float(alpha[~real].mean()),
    }  # fmt: skip


# -- MIX-KD ----------------------------------------------------------------------------------------------------------


def mixkd(seed: Seed) -> dict[str, float]:
    """300 to train on, 300 to set temperatures, the rest to test: teachers with and without mixup, three kinds of student."""
    x, y = seed.x, seed.y
    data, held, test = table(x[:300], y[:300]), (x[300:600], y[300:600]), (x[600:], y[600:])
    plain = seed.train("none", seed.net(CNN, 16, 32), data)
    teachers = {"plain": plain, "mixup": seed.train("mix-kd", seed.net(CNN, 16, 32), data, teacher=[plain], alpha=0, gamma=1, fraction=1,
                                                    rescale="temperature")}  # fmt: skip
    students = {"kd": ("kd", {"alpha": 0.9, "tau": 4}), "full mixup": ("mix-kd", {"fraction": 1, "rescale": "temperature", "tau": 4}),
                "half mixup, std": ("mix-kd", {"fraction": 0.5})}  # fmt: skip
    found = {"none": accuracy(seed.train("none", seed.net(mlp, 24, 10), data), *test)}
    for name, teacher in teachers.items():
        z = torch.from_numpy(logits(teacher, test[0])).log_softmax(1)
        found |= {
            f"teacher {name}": accuracy(teacher, *test),
            f"entropy of teacher {name}": float(-(z.exp() * z).sum(1).mean()),
        }
        for kind, (method, given) in students.items():
            made = seed.train(method, seed.net(mlp, 24, 10), data, teacher=[teacher], **given)
            z_test, z_held = logits(made, test[0]), logits(made, held[0])
            scale = fit_temperature(z_held, held[1])
            found |= {f"{name} -> {kind}": float((z_test.argmax(1) == test[1]).mean()),
                      f"ECE {name} -> {kind}": calibration(z_test, test[1]).ece,
                      f"ECE after scaling {name} -> {kind}": calibration(z_test / scale, test[1]).ece}  # fmt: skip
    return found


# -- TRG -------------------------------------------------------------------------------------------------------------


def trg(seed: Seed) -> dict[str, float]:
    """Class c keeps round(100 * 0.02^(c/9)) training images, the test set is balanced; 128 tokens per batch of 64."""
    x, y = seed.x, seed.y
    rows = np.concatenate([np.flatnonzero(y == c)[: round(100 * 0.02 ** (c / 9))] for c in range(10)])
    rest = np.concatenate([np.flatnonzero(y == c)[100:174] for c in range(10)])
    data, test = table(x[rows], y[rows]), (x[rest], y[rest])
    teacher = seed.train("none", seed.net(CNN, 32, 64), data)
    few = {"tokens": 128}
    off = {**few, "inner": 0, "local": 0, "contrast": 0}
    conditions = {"none": ("none", {}), "kd": ("trg", off), "rkd": ("rkd", {}),
                  "kd+inner": ("trg", {**off, "inner": 1}), "kd+local": ("trg", {**off, "local": 1}),
                  "kd+global": ("trg", {**off, "contrast": 0.1}), "trg": ("trg", few)}  # fmt: skip
    found = {}
    for name, (method, given) in conditions.items():
        teachers = {} if method == "none" else {"teacher": [teacher]}
        made = seed.train(method, seed.net(CNN, 8, 16), data, **teachers, **given)
        said = logits(made, test[0]).argmax(1)
        found[name] = float((said == test[1]).mean())
        found[f"rare recall {name}"] = float(np.mean([(said[test[1] == c] == c).mean() for c in (6, 7, 8, 9)]))
        found[f"cka {name}"] = token_cka(teacher, made, test[0])
    return found | {"teacher": accuracy(teacher, *test)}


def token_cka(teacher: Model, student: Model, x: Images) -> float:
    """Linear CKA between the two networks' tokens of the last stage, over all places of the first 200 images."""
    tokens = []
    for model in (teacher, student):
        module = build(model, Ctx()).eval()
        with Taps(module, ["stages.1"]) as taps, torch.no_grad():
            module(torch.from_numpy(x[:200, None]))
            tokens.append(as_tokens(as_map(taps.features["stages.1"])).flatten(0, 1))
    return float(linear_cka(tokens[1].double(), tokens[0].double()))


# -- KD3 -------------------------------------------------------------------------------------------------------------


def pool_of(seed: Seed, digits: Images, size: int) -> tuple[Images, np.ndarray[Any, np.dtype[np.bool_]]]:
    """30 % changed digits, 40 % patches of two photographs, 20 % drawn letters, 10 % noise; and which are digits."""
    from PIL import Image, ImageDraw, ImageFont

    rng, parts = seed.rng, []
    for i in range(round(0.3 * size)):
        image = digits[rng.integers(len(digits))]
        kind = i % 3
        if kind == 0:
            image = ndimage.rotate(image, rng.uniform(-25, 25), reshape=False, order=1)
        elif kind == 1:
            image = ndimage.gaussian_filter(image, 0.6)
        else:
            image = 0.5 + (image - 0.5) * 0.6
        parts.append(image.clip(0, 1))
    photos = [p.mean(axis=2) / 255 for p in load_sample_images().images]
    for _ in range(round(0.4 * size)):
        photo, side = photos[rng.integers(2)], int(rng.integers(8, 65))
        top, left = (int(rng.integers(0, n - side)) for n in photo.shape)
        parts.append(ndimage.zoom(photo[top : top + side, left : left + side], 8 / side, order=1)[:8, :8])
    font = ImageFont.load_default()
    for _ in range(round(0.2 * size)):
        sheet = Image.new("L", (12, 14))
        ImageDraw.Draw(sheet).text((2, 1), chr(int(rng.integers(65, 91))), fill=255, font=font)
        parts.append(np.asarray(sheet.resize((8, 8), Image.Resampling.BILINEAR)) / 255)
    parts += list(rng.random((size - len(parts), 8, 8)))
    return np.stack(parts).astype(np.float32), np.arange(size) < round(0.3 * size)


def kd3(seed: Seed) -> dict[str, float]:
    """The teacher's half of the digits is withheld; the pool of 1000 is unlabelled, its digits come from a third quarter."""
    x, y, quarter = seed.x, seed.y, len(seed.y) // 4
    own, test = (x[: 2 * quarter], y[: 2 * quarter]), (x[3 * quarter :], y[3 * quarter :])
    images, digit = pool_of(seed, x[2 * quarter : 3 * quarter], 1000)
    teacher = seed.train("none", seed.net(CNN, 32, 64), table(*own))
    pool = table(images)
    z = torch.from_numpy(logits(teacher, images)).softmax(1).max(1).values.numpy()
    sure = table(images[np.argsort(-z)[:300]])
    short = {"epochs": 15}
    conditions = {"kd on the pool": ("kd", pool, {"alpha": 1.0}), "kd on the surest": ("kd", sure, {"alpha": 1.0, "epochs": 50}),
                  "kd on the teacher's data": ("kd", table(own[0]), {"alpha": 1.0, "epochs": 17}), "kd3": ("kd3", pool, {}),
                  "kd3, own classifier": ("kd3", pool, {"classifier": "own"}), "kd3, no selection": ("kd3", pool, {"selection": "none"}),
                  "kd3, no contrast": ("kd3", pool, {"contrast": 0})}  # fmt: skip
    found = {"teacher": accuracy(teacher, *test), "share of digits in the pool": float(digit.mean())}
    for name, (method, data, given) in conditions.items():
        made = seed.train(method, seed.net(CNN, 8, 16), data, teacher=[teacher], **{**short, **given})
        found[name] = accuracy(made, *test)
        if name == "kd3":
            found |= kept_by(made, images, digit)
    return found


def kept_by(model: Model, images: Images, digit: Any) -> dict[str, float]:
    """What the log says of the selection, and the share of digits among what the last epoch kept."""
    assert model.path is not None
    with (model.path / "selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]
    thresholds = np.array([float(last[f"threshold_{c}"]) for c in range(10)])
    z = torch.from_numpy(logits(model, images)).softmax(1).numpy()  # the student decides alone in the second half
    kept = z.max(1) > thresholds[z.argmax(1)]
    return {"share kept in the last epoch": float(last["kept"]) / len(images), "classes among the kept": float(sum(float(last[f"kept_{c}"]) > 0 for c in range(10))),
            "share of digits among the kept": float(digit[kept].mean()) if kept.any() else 0.0}  # fmt: skip


# -- DHKD ------------------------------------------------------------------------------------------------------------


def dhkd(seed: Seed) -> dict[str, float]:
    """400 images of which 10 % have a wrong label, for teacher and student alike."""
    x, y, rng = seed.x, seed.y, seed.rng
    noisy = y[:400].copy()
    for row in rng.choice(400, 40, replace=False):
        noisy[row] = (noisy[row] + rng.integers(1, 10)) % 10
    data, test = table(x[:400], noisy), (x[400:], y[400:])
    teacher = seed.train("none", seed.net(CNN, 32, 64), data, epochs=15)
    found = {
        "teacher": accuracy(teacher, *test),
        "none": accuracy(seed.train("none", seed.net(mlp, 16, 10), data), *test),
    }
    single = {"head": "main", "align": "none"}
    conditions = {"kd": ("kd", {"alpha": 0.9, "tau": 4}), "binary kl alone": ("dhkd", {**single, "aux_loss": "bkl", "ce": 1e-9}),
                  "one head, both": ("dhkd", {**single, "aux_loss": "bkl"}), "linear head": ("dhkd", {"head": "linear", "align": "none"}),
                  "mlp head": ("dhkd", {"align": "none"}), "dhkd": ("dhkd", {})}  # fmt: skip
    for name, (method, given) in conditions.items():
        made = seed.train(method, seed.net(mlp, 16, 10), data, teacher=[teacher], **given)
        found[name] = accuracy(made, *test)
    return found | gradient_cosines(seed, teacher, data)


def gradient_cosines(seed: Seed, teacher: Model, data: Table) -> dict[str, float]:
    """Mean cosine of the two losses' gradients on one head, on the classifier and on the rest, every tenth step."""
    import importlib

    engine = importlib.import_module("interfuse.distill.room")
    chosen = load("distill/dhkd")
    seen: dict[str, list[float]] = {"classifier": [], "backbone": []}

    @dataclasses.dataclass(frozen=True)
    class Watched(chosen.target):  # type: ignore[misc,name-defined]
        def backward(self, run: Any, loss: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> None:
            if run.step % 10 == 0:
                head = {id(p) for p in run.student.get_submodule(classifier_name(run.student)).parameters()}
                params = list(run.student.parameters())
                both = [torch.autograd.grad(parts[k], params, retain_graph=True) for k in ("ce", "aux")]
                for part, inside in (("classifier", True), ("backbone", False)):
                    a, b = (
                        torch.cat(
                            [g.flatten() for g, p in zip(grads, params, strict=True) if (id(p) in head) == inside]
                        )
                        for grads in both
                    )
                    seen[part].append(float(torch.cosine_similarity(a, b, dim=0)))
            super().backward(run, loss, parts)

    given = {"student": seed.net(mlp, 16, 10), "data": data, "teacher": [teacher], **SETTINGS}
    call = prepare(load_room("distill"), chosen, given, Ctx(seed=seed.number, device="cpu"))
    hooks = Watched(head="main", align="none", aux_loss="bkl")
    engine.train(engine.start(call, hooks), hooks)
    return {f"cosine on the {part}": statistics.mean(values) for part, values in seen.items()} | {
        f"opposed on the {part}": statistics.mean(float(v < 0) for v in values) for part, values in seen.items()
    }


# -- ND-KD -----------------------------------------------------------------------------------------------------------


def ndkd(seed: Seed) -> dict[str, float]:
    """400 images; a teacher with 64 features, students with 16 (projected) and 64; four bases with and without ND."""
    x, y = seed.x, seed.y
    data, test = table(x[:400], y[:400]), (x[400:], y[400:])
    teacher = seed.train("none", seed.net(CNN, 32, 64), data)
    found = {"teacher": accuracy(teacher, *test)}
    for width in (16, 64):
        for base in ("none", "kd", "dkd", "dist"):
            for nd in (0.0, 1.0):
                name = f"{width}: {base}{'++' if nd else ''}"
                made = seed.train(
                    "nd-kd",
                    seed.net(CNN, 4, width),
                    data,
                    teacher=[teacher],
                    base=base,
                    nd=nd,
                    warmup_epochs=20,
                    epochs=25,
                )
                row = last_row(made)
                found |= {
                    name: accuracy(made, *test),
                    f"norm {name}": row["raw/norm"],
                    f"cosine {name}": row["raw/cosine"],
                }
    for what in ("norm", "cosine"):  # without a projection, which the base alone would not train
        for mark in ("", "++"):
            found[f"{what} 64{mark}"] = statistics.mean(
                found[f"{what} 64: {b}{mark}"] for b in ("none", "kd", "dkd", "dist")
            )
    for mark in ("", "++"):
        rows = [found[f"{w}: {b}{mark}"] for w in (16, 64) for b in ("none", "kd", "dkd", "dist")]
        found[f"all bases{mark}"] = statistics.mean(rows)
    return found


# -- comparisons -----------------------------------------------------------------------------------------------------

Pairs = tuple[tuple[str, str, str], ...]
#: slug -> experiment, seeds, (what, baseline, candidate)
EXPERIMENTS: dict[str, tuple[Callable[[Seed], dict[str, float]], int, Pairs]] = {
    "tgeo-kd": (tgeo, 8, (
        ("accuracy: learned alpha against labels alone", "alpha 0.0", "tgeo-kd"),
        ("accuracy: learned alpha against KD at 0.9", "alpha 0.9", "tgeo-kd"),
        ("accuracy: learned alpha against the best fixed one", "best fixed alpha", "tgeo-kd"),
        ("alpha: teacher right against wrong", "alpha, teacher wrong", "alpha, teacher right"),
        ("alpha: real images against noise", "alpha, noise images", "alpha, real images"),
        ("AUROC of low alpha for a wrong teacher, against 0.5", "0.5", "auroc of low alpha for a wrong teacher"),
        ("the same on real images", "0.5", "auroc, real images only"),
    )),
    "mix-kd": (mixkd, 6, (
        ("entropy of the mixup teacher against the plain one", "entropy of teacher plain", "entropy of teacher mixup"),
        ("accuracy at tau 4, KD: mixup teacher against plain", "plain -> kd", "mixup -> kd"),
        ("accuracy at tau 4, full mixup: mixup teacher against plain", "plain -> full mixup", "mixup -> full mixup"),
        ("accuracy: full mixup against KD, plain teacher", "plain -> kd", "plain -> full mixup"),
        ("accuracy: half mixup and std against KD, plain teacher", "plain -> kd", "plain -> half mixup, std"),
        ("ECE: full mixup against KD, plain teacher", "ECE plain -> kd", "ECE plain -> full mixup"),
        ("ECE after scaling: full mixup against KD", "ECE after scaling plain -> kd", "ECE after scaling plain -> full mixup"),
        ("ECE after scaling: half mixup and std against KD", "ECE after scaling plain -> kd", "ECE after scaling plain -> half mixup, std"),
        ("accuracy: KD against labels alone", "none", "plain -> kd"),
    )),
    "trg": (trg, 6, (
        ("accuracy: TRG against labels alone", "none", "trg"), ("accuracy: TRG against KD", "kd", "trg"),
        ("accuracy: TRG against RKD", "rkd", "trg"), ("rare recall: TRG against KD", "rare recall kd", "rare recall trg"),
        ("rare recall: TRG against RKD", "rare recall rkd", "rare recall trg"), ("token CKA: TRG against KD", "cka kd", "cka trg"),
        ("accuracy: KD + inner against KD", "kd", "kd+inner"), ("accuracy: KD + local against KD", "kd", "kd+local"),
        ("accuracy: KD + global against KD", "kd", "kd+global"), ("accuracy: TRG student against its teacher", "teacher", "trg"),
    )),
    "kd3": (kd3, 5, (
        ("accuracy: KD3 against KD on the pool", "kd on the pool", "kd3"),
        ("accuracy: KD3 against KD on the surest images", "kd on the surest", "kd3"),
        ("accuracy: KD3 against KD on the teacher's data", "kd on the teacher's data", "kd3"),
        ("accuracy: shared classifier", "kd3, own classifier", "kd3"),
        ("accuracy: selection", "kd3, no selection", "kd3"), ("accuracy: contrast", "kd3, no contrast", "kd3"),
        ("share of digits: kept against pool", "share of digits in the pool", "share of digits among the kept"),
    )),
    "dhkd": (dhkd, 8, (
        ("accuracy: DHKD against labels alone", "none", "dhkd"), ("accuracy: DHKD against KD", "kd", "dhkd"),
        ("accuracy: DHKD against one head with both losses", "one head, both", "dhkd"),
        ("accuracy: one head with both against labels alone", "none", "one head, both"),
        ("accuracy: one head with both against BinaryKL alone", "binary kl alone", "one head, both"),
        ("accuracy: mlp head against linear head", "linear head", "mlp head"), ("accuracy: alignment", "mlp head", "dhkd"),
        ("cosine of the two gradients: classifier against backbone", "cosine on the backbone", "cosine on the classifier"),
    )),
    "nd-kd": (ndkd, 5, (
        ("accuracy: with ND, mean over four bases and two students", "all bases", "all bases++"),
        ("accuracy: KD++ against KD, 16 features", "16: kd", "16: kd++"), ("accuracy: KD++ against KD, 64 features", "64: kd", "64: kd++"),
        ("feature length with ND, 64 features", "norm 64", "norm 64++"), ("cosine to the class mean with ND, 64 features", "cosine 64", "cosine 64++"),
    )),
}  # fmt: skip


def compare(rows: list[dict[str, float]], pairs: Pairs, slug: str) -> list[dict[str, Any]]:
    found = []
    for what, baseline, candidate in pairs:
        a = [0.5 if baseline == "0.5" else r[baseline] for r in rows]
        b = [r[candidate] for r in rows]
        interval = paired_bootstrap(a, b, Ctx().rng(f"{slug}/{what}"))
        flip = sign_flip(a, b, Ctx().rng(f"{slug}/{what}/flip"))
        found.append({"what": what, "baseline": statistics.mean(a), "candidate": statistics.mean(b), "difference": interval.estimate,
                      "low": interval.low, "high": interval.high, "p": flip.p, "seeds_above": sum(v > u for u, v in zip(a, b, strict=True))})  # fmt: skip
    return found


def steps() -> dict[str, Any]:
    """Time of one step over that of a plain student step and the teacher's prediction, taken in turn; medians of 40 pairs."""
    import importlib

    engine = importlib.import_module("interfuse.distill.room")
    extra: dict[str, dict[str, Any]] = {
        "dhkd, align none": {"align": "none"},
        "tgeo-kd, outer_every 10": {"outer_every": 10},
    }
    found = {}
    with tempfile.TemporaryDirectory() as place:
        seed = Seed(0, Path(place))
        data = table(seed.x[:440], seed.y[:440])
        teacher = seed.train("none", seed.net(CNN, 64, 128), data)
        x = torch.from_numpy(seed.x[:64, None])
        module = build(teacher, Ctx()).eval()
        for name in (
            "kd",
            "nd-kd",
            "mix-kd",
            "dhkd, align none",
            "dhkd",
            "trg",
            "kd3",
            "tgeo-kd, outer_every 10",
            "tgeo-kd",
        ):
            runs = {}
            for key in (name, "none"):
                slug = key.split(",")[0]
                given = {
                    "student": seed.net(CNN, 32, 64),
                    "data": data,
                    **SETTINGS,
                    "teacher_cache": "off",
                    **extra.get(key, {}),
                }
                given |= {} if key == "none" else {"teacher": [teacher]}
                call = prepare(load_room("distill"), load(f"distill/{slug}"), given, Ctx(device="cpu"))
                hooks = engine._hooks(call)
                runs[key] = (engine.start(call, hooks), hooks)
                hooks.scan(runs[key][0])
                runs[key][0].steps = 10_000
            times: dict[str, list[float]] = {name: [], "none": []}
            for pair in range(45):
                for key in (name, "none") if pair % 2 else ("none", name):
                    rows = (
                        hooks.select(runs[name][0], seed.rng.permutation(440))[:64]
                        if "tgeo" in name
                        else seed.rng.permutation(440)[:64]
                    )
                    began = time.perf_counter()
                    engine._step(*runs[key], [rows], {})
                    if key == "none":
                        with torch.no_grad():
                            module(x)
                    times[key].append(time.perf_counter() - began)
            ratios = [a / b for a, b in zip(times[name][5:], times["none"][5:], strict=True)]
            found[name] = {"step_ms": 1e3 * statistics.median(times[name][5:]), "plain_ms": 1e3 * statistics.median(times["none"][5:]),
                           "ratio": summary(ratios)}  # fmt: skip
            print(f"{name}: {found[name]['ratio']['median']:.2f} x")
    return found


def main(slugs: list[str]) -> None:
    torch.set_num_threads(1)
    for slug in slugs or [*EXPERIMENTS, "steps"]:
        if slug == "steps":
            what = "a step of 64 digits, CNN 64-128 teaching CNN 32-64, against a plain student step and the teacher's prediction"
            save("distill-papers-a-steps", {"what": what, "threads": 1, "methods": steps()})
            continue
        experiment, count, pairs = EXPERIMENTS[slug]
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            rows = [experiment(Seed(number, Path(place))) for number in range(count)]
        seconds = time.perf_counter() - began
        doc = " ".join((experiment.__doc__ or "").split())
        figures = {"method": slug, "data": "scikit-learn digits (scaled-down)", "experiment": doc, "n": count, "seeds": list(range(count)),
                   "settings": {**SETTINGS, **(OUTER if slug == "tgeo-kd" else {}), "optimizer": "adamw", "threads": 1},
                   "seconds": seconds, "comparisons": compare(rows, pairs, slug), "rows": rows}  # fmt: skip
        save(f"distill-{slug}", figures)
        print(f"{slug}: {seconds:.0f} s")
        for c in figures["comparisons"]:
            print(
                f"  {c['what']}: {c['baseline']:.4f} -> {c['candidate']:.4f}, {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}], p {c['p']:.3f}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
