"""Families of small classifiers for studies of merging: one net, ten digits, tasks that show the digits changed.

Every task keeps the labels (the digit) and changes the picture, so all tasks share one output format. The base learns the digits
as they are: briefly (a weak base) or long (a strong one). Experts and the multitask model are fine-tuned from it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import load
from interfuse.data.models import Model
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, from_dataset
from interfuse.merge.study import Family, Score, Study, Task

Pictures = NDArray[np.float32]
MAKE = ("sizes", "bases", "expert_epochs", "lr")
LOOKED = 100  # pictures of each task that experts are looked at with

#: task -> from pictures [n, 8, 8] in 0..1 to changed ones
CHANGES: dict[str, Callable[[Pictures], Pictures]] = {
    "plain": lambda x: x,
    "mirrored": lambda x: x[:, :, ::-1],
    "flipped": lambda x: x[:, ::-1],
    "turned": lambda x: np.rot90(x, 1, (1, 2)),
    "turned-back": lambda x: np.rot90(x, 3, (1, 2)),
    "upside-down": lambda x: np.rot90(x, 2, (1, 2)),
    "negative": lambda x: 1 - x,
    "rolled": lambda x: np.roll(x, 3, 2),
    "sunk": lambda x: np.roll(x, 3, 1),
    "interleaved": lambda x: np.concatenate([x[:, :, ::2], x[:, :, 1::2]], 2),
    "halves": lambda x: np.concatenate([x[:, 4:], x[:, :4]], 1),
    "transposed": lambda x: x.transpose(0, 2, 1),
    "dimmed": lambda x: 0.4 * x,
    "shifted": lambda x: np.roll(x, 1, 2),
    "thick": lambda x: np.maximum(x, np.roll(x, 1, 1)),
    "mirrored-negative": lambda x: 1 - x[:, :, ::-1],
}


@functools.cache
def _digits() -> dict[str, tuple[Pictures, NDArray[np.int64]]]:
    """The 1,797 digits in four parts: base, experts, choose, test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = Ctx(seed=0).rng("study digits").permutation(len(bunch.target))
    cuts = np.cumsum([0, 600, 500, 297, 400])
    images = (bunch.images / 16).astype(np.float32)
    return {name: (images[order[a:b]], bunch.target[order[a:b]].astype(np.int64))
            for name, a, b in zip(("base", "experts", "choose", "test"), cuts, cuts[1:], strict=False)}  # fmt: skip


def examples(task: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [n, 64] and digits [n] of a part (base, experts, choose, test), changed as the task does."""
    images, labels = _digits()[part]
    return torch.from_numpy(np.ascontiguousarray(CHANGES[task](images)).reshape(len(images), -1)), torch.from_numpy(
        labels
    )


def tasks(study: Study) -> dict[str, Task]:
    """The study's tasks.

    Raises:
        InterfuseError: ``recipe.key`` for a task that is not one of :data:`CHANGES`, or an unknown key under ``make``.
    """
    for key in study.make or ():
        if key not in MAKE:
            raise InterfuseError("recipe.key", f"'make' has no key {key!r}", where=str(study.path), fix=did_you_mean(str(key), MAKE))  # fmt: skip
    for name in (*study.held_in, *study.held_out):
        if name not in CHANGES:
            raise InterfuseError("recipe.key", f"there is no task {name!r}", where=str(study.path), fix=did_you_mean(name, CHANGES))  # fmt: skip
    looks = any("calibrate" in load(slug, room="merge").traits for slug, _ in study.methods.values())
    return {
        n: Task(n, _score(n, "choose"), _score(n, "test"), _looked(n) if looks and n in study.held_in else None)
        for n in (*study.held_in, *study.held_out)
    }


def _looked(task: str) -> Table:
    """What an expert is looked at with: the first pictures it was trained on."""
    from datasets import Dataset

    x, y = examples(task, "experts")
    table = from_dataset(
        Dataset.from_dict({"features": x[:LOOKED].tolist(), "label": y[:LOOKED].tolist()}), f"{task}: calibrate"
    )
    return dataclasses.replace(table, codes=y[:LOOKED].numpy(), classes=tuple(map(str, range(10))))


def _score(task: str, part: str) -> Score:
    def score(model: Model) -> NDArray[np.float64]:
        assert model.module is not None, "these models are in memory"
        x, y = examples(task, part)
        with torch.inference_mode():
            return np.asarray((model.module(x).argmax(1) == y).numpy(), dtype=np.float64)

    return score


def weights_of_net(width: int) -> int:
    """How many weights a net of this width has."""
    return (64 + 1) * width + (width + 1) * width + (width + 1) * 10


def make_family(study: Study, size: str, quality: str, seed: int) -> Family:
    """A base of a size trained for so many epochs, an expert per task and a multitask model, all of one seed.

    Initial weights depend on size and seed, not on the quality: a strong base is the weak one trained on.
    """
    make: Mapping[str, Any] = study.make or {}
    width, epochs = int(make["sizes"][size]), int(make["bases"][quality])
    tune, lr = int(make.get("expert_epochs", 30)), float(make.get("lr", 3e-3))
    ctx = Ctx(seed=seed)
    with seeded(ctx.seed_for(f"study {size}")):
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    x, y = examples("plain", "base")
    _train(net, x, y, epochs, lr, ctx.rng(f"base {size}"))

    def tuned(label: str, names: list[str]) -> Model:
        copy = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        copy.load_state_dict(net.state_dict())
        pairs = [examples(n, "experts") for n in names]
        # as many steps for many tasks as for one: a model trained on all of them sees as many examples as all experts together
        _train(copy, torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]), tune, lr, ctx.rng(f"{label} {size} {quality}"))  # fmt: skip
        return Model(label, None, {"num_labels": 10}, "module", module=copy.eval())

    with seeded(0):  # the copies' own initial weights are overwritten
        experts = {n: tuned(n, [n]) for n in study.held_in}
        many = tuned("multitask", list(study.held_in))
    base = Model("base", None, {"num_labels": 10}, "module", module=net.eval())
    return Family(f"{size} {quality}", size, quality, seed, base, experts, many)


def _train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, lr: float, rng: np.random.Generator) -> None:
    """AdamW with a cosine schedule, batches of 50."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01, fused=True)
    steps, done = epochs * -(-len(x) // 50), 0
    net.train()
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(x)))
        for start in range(0, len(x), 50):
            rows = order[start : start + 50]
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + np.cos(np.pi * done / steps))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            torch.autograd.backward(loss)
            optimizer.step()
            done += 1
    net.eval()
