"""A small table of bars, two small networks and a trained teacher, for tests of distillation methods."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from datasets import Dataset
from torch import Tensor, nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Source, apply, load_room, prepare
from interfuse.data.models import Model
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table
from interfuse.distill.hooks import Batch, Views

engine = importlib.import_module("interfuse.distill.room")
CLASSES = 4


class CNN(nn.Module):
    """Two convolutions, a mean over 4 x 4 places, a linear layer."""

    def __init__(self, first: int = 4, second: int = 8) -> None:
        super().__init__()
        self.stages = nn.ModuleList([
            nn.Sequential(nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU()),
            nn.Sequential(nn.Conv2d(first, second, 3, stride=2, padding=1), nn.ReLU()),
        ])  # fmt: skip
        self.head = nn.Linear(second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        found: Tensor = self.head(x.mean(dim=(2, 3)))
        return found


class TwoLayers(nn.Module):
    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, hidden), nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.first(x.flatten(1))))
        return found


def made(kind: type[nn.Module], seed: int = 0, *sizes: int) -> nn.Module:
    with seeded(seed):
        return kind(*sizes)


@pytest.fixture(scope="module")
def data() -> Table:
    """48 blurred bars in four directions, with labels and ids."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(CLASSES), 12)
    x = np.zeros((48, 8, 8), dtype=np.float32)
    for i, c in enumerate(labels):
        at = rng.integers(1, 7)
        x[i] = {0: np.eye(8), 1: np.eye(8)[::-1], 2: np.eye(8)[[at] * 8], 3: np.eye(8)[[at] * 8].T}[int(c)]
    x += 0.1 * rng.random(x.shape, dtype=np.float32)
    rows = {"image": x.tolist(), "label": labels.tolist(), "id": [f"r{i}" for i in range(48)]}
    return open_table(Source(Dataset.from_dict(rows), name="bars"), Ctx())


@pytest.fixture(scope="module")
def teacher(data: Table, tmp_path_factory: pytest.TempPathFactory) -> Model:
    place = tmp_path_factory.mktemp("teacher") / "t"
    return apply("distill/none", student=made(CNN), data=data, epochs=8, lr=0.02, batch_size=16, out=place)


def started(slug: str, data: Any, teacher: Any, student: Any = None, **given: Any) -> tuple[Any, Any]:
    """The engine's run and the method's hooks, ready to train."""
    student = made(CNN, 1) if student is None else student
    inputs = {"student": student, "data": data, "teacher": [teacher]}
    call = prepare(
        load_room("distill"), load(f"distill/{slug}"), {**inputs, "batch_size": 16, "epochs": 2, **given}, Ctx()
    )
    hooks = engine._hooks(call)
    run = engine.start(call, hooks)
    hooks.scan(run)
    return run, hooks


def trained(slug: str, data: Any, teacher: Any, out: Path, student: Any = None, **given: Any) -> Model:
    student = made(CNN, 1) if student is None else student
    inputs = {"student": student, "data": data} | ({"teacher": [teacher]} if teacher is not None else {})
    return apply(f"distill/{slug}", **{**inputs, "batch_size": 16, "epochs": 2, **given}, out=out)


def weights(model: Model) -> dict[str, Tensor]:
    assert model.path is not None
    return safetensors.torch.load_file(model.path / "model.safetensors")


def log_of(model: Model) -> list[dict[str, float]]:
    assert model.path is not None
    with (model.path / "training.csv").open() as file:
        return [{k: float(v) for k, v in r.items()} for r in csv.DictReader(file)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


def refused(code: str, *args: Any, **given: Any) -> str:
    with pytest.raises(InterfuseError) as caught:
        trained(*args, **given)
    assert caught.value.code == code, caught.value
    return str(caught.value)


def fixed_views(batch: Batch, student: Tensor, teacher: Tensor, **features: Any) -> Views:
    return Views(batch, student, [teacher], features.get("ours", {}), [features.get("theirs", {})])


def batch_of(labels: list[int], soft: Tensor | None = None) -> Batch:
    return Batch(np.arange(len(labels)), {}, [], torch.tensor(labels), soft)
