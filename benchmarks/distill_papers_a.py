"""Six published distillations: the experiment of each card on scikit-learn's digits. Scaled-down: small networks, few images.

Every seed has a split, initial weights and an order of its own, which all conditions of a seed share. A comparison is the mean of
the seeds' paired differences with a 95 % bootstrap interval over seeds and a sign-flip p. Settings are chosen with equal care: on
two seeds that are not reported, every condition tries the same learning rates (and its own options, where it has some), then further rates
beyond its best (of TGeo-KD's outer step as well) until that has a neighbour on either side, and keeps what does best on validation images, which are neither trained on nor
tested on there. Seeds split the same 1,797 images anew.

    python benchmarks/distill_papers_a.py [SLUG ...]
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from learning_rates import untried
from record import save
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score
from token_nets import Tokens
from torch import nn

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import Source, apply, load_room, prepare
from interfuse.data.images import distort
from interfuse.data.models import Model, build
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table
from interfuse.kit.calibration import calibration, fit_temperature
from interfuse.kit.feature_losses import linear_cka
from interfuse.kit.nets import as_map, as_tokens
from interfuse.kit.resample import paired_bootstrap, sign_flip
from interfuse.kit.taps import Taps, classifier_name

SETTINGS: dict[str, Any] = {"epochs": 40, "batch_size": 64, "lr": 0.03}
#: learning rates every condition tries first, and the seeds on which it chooses
RATES = (0.01, 0.03)
#: settings whose grid grows: learning rates, of the student and of TGeo-KD's outer step
GROW = ("lr", "outer_lr")
TUNING = (100, 101)
#: the first seed that is reported
FIRST = 200
Images = np.ndarray[Any, np.dtype[np.float32]]
Options = Sequence[Mapping[str, Any]]
Conditions = Mapping[str, tuple[str, dict[str, Any]]]


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
    """One seed of an experiment: a generator, a folder, and the digits in this seed's random order.

    ``chosen`` holds settings by condition; with ``tuning`` conditions are judged on validation images.
    """

    number: int
    folder: Path
    chosen: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    tuning: bool = False
    made: int = 0
    #: what was trained while settings are chosen, by everything that decides it: a turn trains anew only what it changes
    kept: dict[str, Model] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.number)
        bunch = load_digits()
        order = self.rng.permutation(len(bunch.target))
        self.x = (bunch.images[order] / 16).astype(np.float32)
        self.y = bunch.target[order]

    def judged(self, begin: int, middle: int) -> tuple[Images, Any]:
        """Images and labels that conditions are judged on: validation [begin, middle) when tuning, else the rest, the test images."""
        rows = slice(begin, middle) if self.tuning else slice(middle, None)
        return self.x[rows], self.y[rows]

    def net(self, make: Callable[..., nn.Module], *sizes: int) -> nn.Module:
        with seeded(self.number):
            return make(*sizes)

    def train(self, method: str, student: nn.Module, data: Table, *, name: str = "", **given: Any) -> Model:
        """Trains; a condition's ``name`` brings the settings chosen for it."""
        self.made += 1
        settings = {**SETTINGS, **given, **self.chosen.get(name, {})}
        plain = {k: v for k, v in sorted(settings.items()) if isinstance(v, int | float | str)}
        key = f"{self.number}/{self.made}/{method}/{plain}"  # the place in the experiment stands for teachers and data
        if self.tuning and key in self.kept:
            return self.kept[key]
        made: Model = apply(f"distill/{method}", student=student, data=data, **settings, out=self.folder / f"{self.number}-{self.made}",
                            ctx=Ctx(seed=self.number, device="cpu"))  # fmt: skip
        if self.tuning:
            self.kept[key] = made
        return made


def choose(
    experiment: Callable[[Seed], dict[str, float]],
    metrics: Mapping[str, str],
    options: Mapping[str, Options],
    folder: Path,
) -> tuple[dict[str, Mapping[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The option of every condition that does best on the validation images of the tuning seeds, and how all it tried did.

    When a condition has tried its options, learning rates beyond the best one follow, until that lies inside what was tried.

    Args:
        metrics: condition -> the figure that decides. options: condition -> what it tries first; the learning rates when left out.
    """
    firsts: Options = [{"lr": rate} for rate in RATES]
    found = {name: [dict(o) for o in options.get(name, firsts)] for name in metrics}
    scores: dict[str, list[float]] = {name: [] for name in metrics}
    kept: dict[str, Model] = {}
    turn = 0
    while any(turn < len(several) for several in found.values()):
        chosen = {name: several[min(turn, len(several) - 1)] for name, several in found.items()}
        rows = [
            experiment(Seed(number, folder / f"tuning-{turn}", chosen, tuning=True, kept=kept)) for number in TUNING
        ]
        turn += 1
        for name, several in found.items():
            if turn <= len(several):
                scores[name].append(statistics.mean(row[metrics[name]] for row in rows))
            if turn == len(several):
                several.extend(beyond(several, scores[name]))
    best = {name: several[favourite(scores[name])] for name, several in found.items()}
    return dict(best), {
        name: [{**o, "score": s} for o, s in zip(several, scores[name], strict=True)] for name, several in found.items()
    }


def beyond(several: Options, scores: Sequence[float]) -> list[dict[str, Any]]:
    """The next option to try after all of these: the best one with a neighbouring rate; none when its rates lie inside what was tried."""
    chief = several[favourite(scores)]
    for key in (k for k in GROW if k in chief):
        line = {o[key]: s for o, s in zip(several, scores, strict=True) if {**o, key: 0} == {**chief, key: 0}}
        if (further := untried(line)) is not None:
            return [{**chief, key: further}]
    return []


def favourite(scores: Sequence[float]) -> int:
    """Place of the highest score, the first of equals."""
    return max(range(len(scores)), key=lambda i: scores[i])


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


#: what the fusion network sees in the paper's ablation, of the edges M-S, G-S, T-S, T-G and M-G: student S, teacher T, label G, class mean M
EDGES = {"edges SG, TG": (1, 3), "edges SG, TG, ST": (1, 2, 3), "all edges": (0, 1, 2, 3, 4)}


@contextlib.contextmanager
def seeing(edges: Sequence[int]) -> Iterator[None]:
    """The fusion network of TGeo-KD sees only these edges: the others are zero, which is as if they were not there."""
    module = importlib.import_module("interfuse.distill.tgeo_kd")
    whole = module.geometry

    def some(*args: Any, **kwargs: Any) -> torch.Tensor:
        parts = whole(*args, **kwargs).chunk(5, dim=-1)
        return torch.cat([p if i in edges else torch.zeros_like(p) for i, p in enumerate(parts)], dim=-1)

    with mock.patch.object(module, "geometry", some):
        yield


def tgeo(seed: Seed) -> dict[str, float]:
    """400 + 40 outliers to train on, 200 for the outer loss; the teacher learned 20 % wrong labels among the classes 3, 5
    and 8. A sample's alpha is its mean over the epochs."""
    import pyarrow.parquet

    x, y, rng = seed.x, seed.y, seed.rng
    wrong = y[:400].copy()
    confused = np.flatnonzero(np.isin(wrong, (3, 5, 8)))
    for row in rng.choice(confused, round(0.2 * len(confused)), replace=False):
        wrong[row] = rng.choice([c for c in (3, 5, 8) if c != wrong[row]])
    noise = rng.random((40, 8, 8)).astype(np.float32)
    train_x, train_y = np.concatenate([x[:400], noise]), np.concatenate([y[:400], rng.integers(0, 10, 40)])
    data, held, test = table(train_x, train_y), table(x[400:600], y[400:600]), seed.judged(600, 800)
    teacher = seed.train("none", seed.net(CNN, 16, 32), table(x[:400], wrong))
    found = {"teacher": accuracy(teacher, *test)}
    validated = {}
    for alpha in (0.0, 0.1, 0.5, 0.9):
        name = f"alpha {alpha}"
        made = seed.train("tgeo-kd", seed.net(mlp, 16, 10), data, name=name, teacher=[teacher], fixed_alpha=alpha)
        found[name], validated[name] = accuracy(made, *test), accuracy(made, x[400:600], y[400:600])
    found["best fixed alpha"] = found[max(validated, key=lambda name: validated[name])]
    for ratio, name in (("anneal", "ANL-KD"), ("margin", "ADA-KD"), ("losses", "WLS-KD"), ("sample", "RW-KD")):
        more = {"validation": held} if ratio == "sample" else {}
        made = seed.train("tgeo-kd", seed.net(mlp, 16, 10), data, name=name, teacher=[teacher], ratio=ratio, **more)
        found[name] = accuracy(made, *test)
    for name, edges in EDGES.items():
        with seeing(edges):
            made = seed.train(
                "tgeo-kd", seed.net(mlp, 16, 10), data, name=name, teacher=[teacher], validation=held, features="edges"
            )
        found[name] = accuracy(made, *test)
    made = seed.train("tgeo-kd", seed.net(mlp, 16, 10), data, name="tgeo-kd", teacher=[teacher], validation=held)
    rows = pyarrow.parquet.read_table(made.path / "fusion_ratio.parquet").to_pandas()  # type: ignore[operator]
    mean = rows.groupby("sample_id").agg({"alpha": "mean", "teacher_correct": "first"})
    ids, right = mean.index.astype(int).to_numpy(), mean.teacher_correct.to_numpy()
    real, alphas = ids < 400, mean.alpha.to_numpy()
    return found | {
        "tgeo-kd": accuracy(made, *test),
        "auroc of low alpha for a wrong teacher": float(roc_auc_score(~right, -alphas)),
        "auroc, real images only": float(roc_auc_score(~right[real], -alphas[real])) if (~right[real]).any() else 0.5,
        "alpha, teacher right": float(alphas[right].mean()), "alpha, teacher wrong": float(alphas[~right].mean()),
        "alpha, real images": float(alphas[real].mean()), "alpha, noise images": float(alphas[~real].mean()),
    }  # fmt: skip


# -- MIX-KD ----------------------------------------------------------------------------------------------------------


def mixkd(seed: Seed) -> dict[str, float]:
    """300 to train on, 300 to set temperatures, the rest to test: teachers with and without mixup, three kinds of student,
    and KD at five temperatures from either teacher."""
    x, y = seed.x, seed.y
    data, held, test = table(x[:300], y[:300]), (x[300:600], y[300:600]), seed.judged(300, 600)
    plain = seed.train("none", seed.net(CNN, 16, 32), data)
    teachers = {"plain": plain, "mixup": seed.train("mix-kd", seed.net(CNN, 16, 32), data, teacher=[plain], alpha=0, gamma=1, fraction=1,
                                                    rescale="temperature")}  # fmt: skip
    students = {"kd": ("kd", {"alpha": 0.9, "tau": 4}), "full mixup": ("mix-kd", {"fraction": 1, "rescale": "temperature", "tau": 4}),
                "half mixup, std": ("mix-kd", {"fraction": 0.5})}  # fmt: skip
    found = {"none": accuracy(seed.train("none", seed.net(mlp, 24, 10), data, name="none"), *test)}
    for name, teacher in teachers.items():
        z = torch.from_numpy(logits(teacher, test[0])).log_softmax(1)
        found |= {
            f"teacher {name}": accuracy(teacher, *test),
            f"entropy of teacher {name}": float(-(z.exp() * z).sum(1).mean()),
            f"dispersion of teacher {name}": dispersion(teacher, *test),
        }
        for tau in (1.0, 2.0, 8.0, 16.0) if not seed.tuning else ():
            made = seed.train("kd", seed.net(mlp, 24, 10), data, name="kd", teacher=[teacher], alpha=0.9, tau=tau)
            found[f"{name} -> kd, tau {tau:g}"] = accuracy(made, *test)
        for kind, (method, given) in students.items():
            made = seed.train(method, seed.net(mlp, 24, 10), data, name=kind, teacher=[teacher], **given)
            z_test, z_held = logits(made, test[0]), logits(made, held[0])
            scale = fit_temperature(z_held, held[1])
            found |= {f"{name} -> {kind}": float((z_test.argmax(1) == test[1]).mean()),
                      f"ECE {name} -> {kind}": calibration(z_test, test[1]).ece,
                      f"ECE after scaling {name} -> {kind}": calibration(z_test / scale, test[1]).ece}  # fmt: skip
    return found


def dispersion(model: Model, x: Images, y: Any) -> float:
    """Variance of the features before the classifier within classes over the variance of the classes' means."""
    module = build(model, Ctx()).eval()
    with Taps(module, ["penultimate"]) as taps, torch.no_grad():
        module(torch.from_numpy(x[:, None]))
        features = taps.features["penultimate"].double().numpy()
    means = np.stack([features[y == c].mean(axis=0) for c in range(10)])
    within = float(((features - means[y]) ** 2).sum(axis=1).mean())
    return within / float(((means - features.mean(axis=0)) ** 2).sum(axis=1).mean())


# -- TRG -------------------------------------------------------------------------------------------------------------


TRG_OFF: dict[str, Any] = {"tokens": 128, "inner": 0, "local": 0, "contrast": 0}
TRG_CONDITIONS: Conditions = {
    "none": ("none", {}), "kd": ("trg", TRG_OFF), "rkd": ("rkd", {}), "kd+inner": ("trg", {**TRG_OFF, "inner": 1}),
    "kd+local": ("trg", {**TRG_OFF, "local": 1}), "kd+global": ("trg", {**TRG_OFF, "contrast": 0.1}), "trg": ("trg", {"tokens": 128})}  # fmt: skip
VIT_CONDITIONS = ("none", "kd", "rkd", "trg")


def trg(seed: Seed) -> dict[str, float]:
    """Class c keeps round(100 * 0.02^(c/9)) training images, the test set is balanced; 128 tokens per batch of 64."""
    return long_tailed(seed, tuple(TRG_CONDITIONS), lambda: seed.net(CNN, 8, 16), "stages.1")


def trg_vit(seed: Seed) -> dict[str, float]:
    """As for TRG's card, and the student is a ViT of two blocks: class c keeps round(100 * 0.02^(c/9)) training images, the test set is
    balanced; a CNN teaches, 128 tokens per batch of 64."""
    return long_tailed(seed, VIT_CONDITIONS, lambda: seed.net(Tokens, 24, False), "blocks.1")


#: batch sizes, with epochs that make about 200 steps of 280 images each; two tokens an image
BATCHES = {16: 11, 64: 40, 256: 100}
BATCH_CONDITIONS: Conditions = {
    f"{name} {size}": ("trg", {**given, "tokens": 2 * size, "batch_size": size, "epochs": epochs})
    for size, epochs in BATCHES.items() for name, given in (("kd", TRG_OFF), ("trg", {}))}  # fmt: skip


def trg_batches(seed: Seed) -> dict[str, float]:
    """As for TRG's card, in batches of 16, 64 and 256 images (of 280) with two tokens an image and about 200 steps each: TRG and KD."""
    found = long_tailed(
        seed, tuple(BATCH_CONDITIONS), lambda: seed.net(CNN, 8, 16), "stages.1", conditions=BATCH_CONDITIONS
    )
    return found | {f"gain {size}": found[f"trg {size}"] - found[f"kd {size}"] for size in BATCHES}


def long_tailed(
    seed: Seed,
    names: Sequence[str],
    student: Callable[[], nn.Module],
    layer: str,
    *,
    conditions: Conditions = TRG_CONDITIONS,
) -> dict[str, float]:
    """Accuracy, recall of the four rarest classes and likeness of tokens of some conditions on a long-tailed set of digits."""
    x, y = seed.x, seed.y
    rows = np.concatenate([np.flatnonzero(y == c)[: round(100 * 0.02 ** (c / 9))] for c in range(10)])
    part = slice(100, 130) if seed.tuning else slice(130, 174)
    rest = np.concatenate([np.flatnonzero(y == c)[part] for c in range(10)])
    data, test = table(x[rows], y[rows]), (x[rest], y[rest])
    teacher = seed.train("none", seed.net(CNN, 32, 64), data)
    found = {}
    for name in names:
        method, given = conditions[name]
        teachers = {} if method == "none" else {"teacher": [teacher]}
        made = seed.train(method, student(), data, name=name, **teachers, **given)
        said = logits(made, test[0]).argmax(1)
        found[name] = float((said == test[1]).mean())
        found[f"rare recall {name}"] = float(np.mean([(said[test[1] == c] == c).mean() for c in (6, 7, 8, 9)]))
        found[f"cka {name}"] = token_cka(teacher, made, test[0], layer)
    return found | {"teacher": accuracy(teacher, *test)}


def token_cka(teacher: Model, student: Model, x: Images, layer: str) -> float:
    """Linear CKA between the teacher's tokens of its last stage and those of a layer of the student, over all places of the first 200 images."""
    tokens = []
    for model, name in ((teacher, "stages.1"), (student, layer)):
        module = build(model, Ctx()).eval()
        with Taps(module, [name]) as taps, torch.no_grad():
            module(torch.from_numpy(x[:200, None]))
            tokens.append(as_tokens(as_map(taps.features[name])).flatten(0, 1))
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
    own, test = (x[: 2 * quarter], y[: 2 * quarter]), seed.judged(3 * quarter, 3 * quarter + 150)
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
        made = seed.train(method, seed.net(CNN, 8, 16), data, name=name, teacher=[teacher], **{**short, **given})
        found[name] = accuracy(made, *test)
        if name in ("kd3", "kd on the pool"):
            for group, several in shift_suite(test[0], np.random.default_rng(seed.number)).items():
                found[f"{name} {group}"] = statistics.mean(accuracy(made, moved, test[1]) for moved in several)
            found[f"{name} out of domain"] = statistics.mean(
                v for k, v in found.items() if k.startswith(f"{name} ") and k[len(name) + 1 :] in SHIFTS
            )
        if name == "kd3":
            found |= kept_by(made, images, digit)
    return found


#: what the shift suite holds beside clean images
SHIFTS = ("shift", "rotation", "noise", "blur", "contrast", "stroke", "ink box")


def shift_suite(x: Images, rng: np.random.Generator) -> dict[str, list[Images]]:
    """The room's shift suite: clean, 1 pixel in 8 directions, 15 and 25 degrees, noise, blur, contrast, strokes, ink box."""

    def every(*steps: tuple[str, float]) -> Images:
        return np.stack([distort(image[None], steps, rng)[0] for image in x])

    directions = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    return {"clean": [x], "shift": [np.asarray(ndimage.shift(x, (0, i, j), order=1), dtype=np.float32) for i, j in directions],
            "rotation": [every(("rotate", a)) for a in (15, 25, -15, -25)], "noise": [every(("noise", a)) for a in (0.1, 0.2)],
            "blur": [every(("blur", 0.7))], "contrast": [every(("contrast", 0.6))],
            "stroke": [every(("thicken", 2)), every(("thin", 2))], "ink box": [every(("ink-box", 0.5))]}  # fmt: skip


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
    data, test = table(x[:400], noisy), seed.judged(400, 700)
    teacher = seed.train("none", seed.net(CNN, 32, 64), data, epochs=15)
    found = {
        "teacher": accuracy(teacher, *test),
        "none": accuracy(seed.train("none", seed.net(mlp, 16, 10), data, name="none"), *test),
    }
    single = {"head": "main", "align": "none"}
    conditions = {"kd": ("kd", {"alpha": 0.9, "tau": 4}), "binary kl alone": ("dhkd", {**single, "aux_loss": "bkl", "ce": 1e-9}),
                  "one head, both": ("dhkd", {**single, "aux_loss": "bkl"}), "linear head": ("dhkd", {"head": "linear", "align": "none"}),
                  "mlp head": ("dhkd", {"align": "none"}), "dhkd": ("dhkd", {"align": "backbone"}),
                  "dhkd, features": ("dhkd", {"align": "features"})}  # fmt: skip
    for name, (method, given) in conditions.items():
        made = seed.train(method, seed.net(mlp, 16, 10), data, name=name, teacher=[teacher], **given)
        found[name] = accuracy(made, *test)
    return found if seed.tuning else found | gradient_cosines(seed, teacher, data)


def gradient_cosines(seed: Seed, teacher: Model, data: Table) -> dict[str, float]:
    """Mean cosine of the two losses' gradients on one head, on the classifier and on the rest, every tenth step."""
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
    data, test = table(x[:400], y[:400]), seed.judged(400, 700)
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
                    name=name,
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
    for wide in (16, 256) if not seed.tuning else ():
        other = seed.train("none", seed.net(CNN, 32, wide), data)
        found[f"teacher {wide}"] = accuracy(other, *test)
        for mark, nd in (("", 0.0), ("++", 1.0)):
            made = seed.train(
                "nd-kd",
                seed.net(CNN, 4, 16),
                data,
                name=f"16: kd{mark}",
                teacher=[other],
                nd=nd,
                warmup_epochs=20,
                epochs=25,
            )
            found[f"teacher {wide}: kd{mark}"] = accuracy(made, *test)
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


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment, how many seeds it takes, what its conditions choose from, and what is compared (what, baseline, candidate)."""

    experiment: Callable[[Seed], dict[str, float]]
    seeds: int
    metrics: Mapping[str, str]
    pairs: Pairs
    options: Mapping[str, Options] = dataclasses.field(default_factory=dict)
    data: str = "scikit-learn digits (scaled-down)"


def same(*names: str) -> dict[str, str]:
    """Conditions judged by the figure of their own name."""
    return {name: name for name in names}


def rates(**more: Sequence[Any]) -> Options:
    """Every learning rate with every value of further settings."""
    found: list[dict[str, Any]] = [{"lr": rate} for rate in RATES]
    for key, values in more.items():
        found = [{**row, key: value} for row in found for value in values]
    return found


EXPERIMENTS: dict[str, Study] = {
    "tgeo-kd": Study(tgeo, 10, same("alpha 0.0", "alpha 0.1", "alpha 0.5", "alpha 0.9", "ANL-KD", "ADA-KD", "WLS-KD", "RW-KD", *EDGES, "tgeo-kd"), (
        ("accuracy: learned alpha against labels alone", "alpha 0.0", "tgeo-kd"),
        ("accuracy: learned alpha against KD at 0.9", "alpha 0.9", "tgeo-kd"),
        ("accuracy: learned alpha against the best fixed one", "best fixed alpha", "tgeo-kd"),
        *((f"accuracy: learned alpha against {name}", name, "tgeo-kd") for name in ("ANL-KD", "ADA-KD", "WLS-KD", "RW-KD")),
        ("accuracy: edges SG, TG and ST against SG and TG", "edges SG, TG", "edges SG, TG, ST"),
        ("accuracy: all edges against SG, TG and ST", "edges SG, TG, ST", "all edges"),
        ("accuracy: edges SG and TG against KD at 0.9", "alpha 0.9", "edges SG, TG"),
        ("accuracy: all edges against edges SG and TG", "edges SG, TG", "all edges"),
        ("accuracy: corners and edges against all edges", "all edges", "tgeo-kd"),
        ("alpha: teacher right against wrong", "alpha, teacher wrong", "alpha, teacher right"),
        ("alpha: real images against noise", "alpha, noise images", "alpha, real images"),
        ("AUROC of low alpha for a wrong teacher, against 0.5", "0.5", "auroc of low alpha for a wrong teacher"),
        ("the same on real images", "0.5", "auroc, real images only"),
    ), {**{name: rates(outer_lr=(0.001, 0.01)) for name in (*EDGES, "tgeo-kd")}, "RW-KD": rates(outer_lr=(0.01, 0.1))}),
    "mix-kd": Study(mixkd, 10, {"none": "none", "kd": "plain -> kd", "full mixup": "plain -> full mixup", "half mixup, std": "plain -> half mixup, std"}, (
        ("entropy of the mixup teacher against the plain one", "entropy of teacher plain", "entropy of teacher mixup"),
        ("dispersion of features: mixup teacher against plain", "dispersion of teacher plain", "dispersion of teacher mixup"),
        *((f"accuracy at tau {tau}, KD: mixup teacher against plain", f"plain -> kd{end}", f"mixup -> kd{end}")
          for tau, end in ((1, ", tau 1"), (2, ", tau 2"), (4, ""), (8, ", tau 8"), (16, ", tau 16"))),
        ("accuracy at tau 4, full mixup: mixup teacher against plain", "plain -> full mixup", "mixup -> full mixup"),
        ("accuracy: full mixup against KD, plain teacher", "plain -> kd", "plain -> full mixup"),
        ("accuracy: half mixup and std against KD, plain teacher", "plain -> kd", "plain -> half mixup, std"),
        ("accuracy: half mixup and std against full mixup, plain teacher", "plain -> full mixup", "plain -> half mixup, std"),
        ("ECE: full mixup against KD, plain teacher", "ECE plain -> kd", "ECE plain -> full mixup"),
        ("ECE after scaling: full mixup against KD", "ECE after scaling plain -> kd", "ECE after scaling plain -> full mixup"),
        ("ECE after scaling: half mixup and std against KD", "ECE after scaling plain -> kd", "ECE after scaling plain -> half mixup, std"),
        ("accuracy: KD against labels alone", "none", "plain -> kd"),
    )),
    "trg": Study(trg, 10, same(*TRG_CONDITIONS), (
        ("accuracy: TRG against labels alone", "none", "trg"), ("accuracy: TRG against KD", "kd", "trg"),
        ("accuracy: TRG against RKD", "rkd", "trg"), ("rare recall: TRG against KD", "rare recall kd", "rare recall trg"),
        ("rare recall: TRG against RKD", "rare recall rkd", "rare recall trg"), ("token CKA: TRG against KD", "cka kd", "cka trg"),
        ("accuracy: KD + inner against KD", "kd", "kd+inner"), ("accuracy: KD + local against KD", "kd", "kd+local"),
        ("accuracy: KD + global against KD", "kd", "kd+global"), ("accuracy: TRG student against its teacher", "teacher", "trg"),
    )),
    "trg-vit": Study(trg_vit, 8, same(*VIT_CONDITIONS), (
        ("accuracy: TRG against labels alone", "none", "trg"), ("accuracy: TRG against KD", "kd", "trg"), ("accuracy: TRG against RKD", "rkd", "trg"),
        ("accuracy: KD against labels alone", "none", "kd"), ("rare recall: TRG against KD", "rare recall kd", "rare recall trg"),
        ("rare recall: TRG against RKD", "rare recall rkd", "rare recall trg"), ("token CKA: TRG against KD", "cka kd", "cka trg"),
        ("accuracy: TRG student against its teacher", "teacher", "trg"),
    )),
    "trg-batches": Study(trg_batches, 8, same(*BATCH_CONDITIONS), (
        *((f"accuracy in batches of {size}: TRG against KD", f"kd {size}", f"trg {size}") for size in BATCHES),
        *((f"rare recall in batches of {size}: TRG against KD", f"rare recall kd {size}", f"rare recall trg {size}") for size in BATCHES),
        ("accuracy: TRG in batches of 64 against 16", "trg 16", "trg 64"), ("accuracy: TRG in batches of 256 against 64", "trg 64", "trg 256"),
        ("accuracy: TRG in batches of 256 against 16", "trg 16", "trg 256"), ("gain over KD: batches of 256 against 16", "gain 16", "gain 256"),
        ("gain over KD: batches of 256 against 64", "gain 64", "gain 256"),
    )),
    "kd3": Study(kd3, 8, same("kd on the pool", "kd on the surest", "kd on the teacher's data", "kd3", "kd3, own classifier", "kd3, no selection", "kd3, no contrast"), (
        ("accuracy: KD3 against KD on the pool", "kd on the pool", "kd3"),
        ("accuracy: KD3 against KD on the surest images", "kd on the surest", "kd3"),
        ("accuracy: KD3 against KD on the teacher's data", "kd on the teacher's data", "kd3"),
        ("accuracy: shared classifier", "kd3, own classifier", "kd3"),
        ("accuracy: selection", "kd3, no selection", "kd3"), ("accuracy: contrast", "kd3, no contrast", "kd3"),
        ("share of digits: kept against pool", "share of digits in the pool", "share of digits among the kept"),
        *((f"accuracy, {group}: KD3 against KD on the pool", f"kd on the pool {group}", f"kd3 {group}") for group in (*SHIFTS, "out of domain")),
    )),
    "dhkd": Study(dhkd, 10, same("none", "kd", "binary kl alone", "one head, both", "linear head", "mlp head", "dhkd", "dhkd, features"), (
        ("accuracy: DHKD against labels alone", "none", "dhkd"), ("accuracy: DHKD against KD", "kd", "dhkd"),
        ("accuracy: DHKD against BinaryKL alone", "binary kl alone", "dhkd"),
        ("accuracy: DHKD against one head with both losses", "one head, both", "dhkd"),
        ("accuracy: one head with both against labels alone", "none", "one head, both"),
        ("accuracy: one head with both against BinaryKL alone", "binary kl alone", "one head, both"),
        ("accuracy: mlp head against linear head", "linear head", "mlp head"), ("accuracy: alignment", "mlp head", "dhkd"),
        *((f"accuracy: aligned at the features against {what}", name, "dhkd, features") for what, name in (
            ("aligned on the backbone", "dhkd"), ("labels alone", "none"), ("KD", "kd"), ("one head with both losses", "one head, both"), ("no alignment", "mlp head"))),
        ("cosine of the two gradients: classifier against backbone", "cosine on the backbone", "cosine on the classifier"),
    )),
    "nd-kd": Study(ndkd, 10, same(*(f"{w}: {b}{m}" for w in (16, 64) for b in ("none", "kd", "dkd", "dist") for m in ("", "++"))), (
        ("accuracy: with ND, mean over four bases and two students", "all bases", "all bases++"),
        *((f"accuracy: {base}++ against {base}, {w} features", f"{w}: {base}", f"{w}: {base}++") for w in (16, 64) for base in ("none", "kd", "dkd", "dist")),
        ("accuracy: KD++ against KD, teacher of 16 features", "teacher 16: kd", "teacher 16: kd++"),
        ("accuracy: KD++ against KD, teacher of 256 features", "teacher 256: kd", "teacher 256: kd++"),
        ("feature length with ND, 64 features", "norm 64", "norm 64++"), ("cosine to the class mean with ND, 64 features", "cosine 64", "cosine 64++"),
    ), {f"{w}: {b}++": rates(nd=(1.0, 0.3, 3.0)) for w in (16, 64) for b in ("none", "kd", "dkd", "dist")}),
}  # fmt: skip


def compare(rows: list[dict[str, float]], pairs: Pairs, slug: str) -> list[dict[str, Any]]:
    found = []
    for what, baseline, candidate in pairs:
        a = [float(baseline) if baseline in ("0", "0.5") else r[baseline] for r in rows]
        b = [r[candidate] for r in rows]
        interval = paired_bootstrap(a, b, Ctx().rng(f"{slug}/{what}"))
        flip = sign_flip(a, b, Ctx().rng(f"{slug}/{what}/flip"))
        found.append({"what": what, "baseline": statistics.mean(a), "candidate": statistics.mean(b), "difference": interval.estimate,
                      "low": interval.low, "high": interval.high, "p": flip.p, "seeds_above": sum(v > u for u, v in zip(a, b, strict=True))})  # fmt: skip
    return found


def run(slug: str, study: Study) -> None:
    """Chooses settings, runs all seeds, writes ``results/distill-SLUG.json`` and prints the comparisons.

    Every finished seed is kept in the temporary folder, so that a study that was killed goes on.
    """
    numbers = list(range(FIRST, FIRST + study.seeds))
    progress = Path(tempfile.gettempdir()) / f"interfuse-distill-{slug}.json"
    doc = " ".join((study.experiment.__doc__ or "").split())
    what = {"experiment": doc, "options": str(study.options), "metrics": str(study.metrics)}
    state: dict[str, Any] = json.loads(progress.read_text()) if progress.is_file() else {}
    if state.get("what") != what:
        state = {"what": what, "rows": [], "seconds": 0.0}

    def keep(began: float) -> float:
        now = time.process_time()
        state["seconds"] += now - began
        progress.write_text(json.dumps(state))
        return now

    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        if "scores" not in state:
            state["chosen"], state["scores"] = (
                choose(study.experiment, study.metrics, study.options, Path(place)) if study.metrics else ({}, {})
            )
            began = keep(began)
        chosen, scores, rows = state["chosen"], state["scores"], state["rows"]
        for number in numbers[len(rows) :]:
            rows.append(study.experiment(Seed(number, Path(place) / str(number), chosen)))
            began = keep(began)
            print(f"{slug}: seed {number}, {state['seconds']:.0f} s", flush=True)
    rows, seconds = rows[: study.seeds], state["seconds"]
    tuned = {"seeds": list(TUNING), "by": "mean on validation images", "chosen": chosen, "scores": scores}
    figures = {"method": slug, "data": study.data, "experiment": doc, "n": study.seeds, "seeds": numbers, "settings": {**SETTINGS, "optimizer": "adamw", "threads": 1},
               "tuning": tuned, "processor_seconds": seconds, "comparisons": compare(rows, study.pairs, slug), "rows": rows}  # fmt: skip
    save(f"distill-{slug}", figures)
    progress.unlink()
    print(f"{slug}: {seconds:.0f} s; {chosen}")
    for c in figures["comparisons"]:
        print(f"  {c['what']}: {c['baseline']:.4f} -> {c['candidate']:.4f}, {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}], "
              f"p {c['p']:.3f}, {c['seeds_above']} of {study.seeds} above", flush=True)  # fmt: skip


def main(slugs: list[str]) -> None:
    torch.set_num_threads(1)
    for slug in slugs or list(EXPERIMENTS):
        run(slug, EXPERIMENTS[slug])


if __name__ == "__main__":
    main(sys.argv[1:])
