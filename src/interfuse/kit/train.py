"""What every training loop here shares: settings, optimiser, schedule, and checkpoints without pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import sync_folder, writing_errors


@dataclass(frozen=True)
class TrainSettings:
    """How to train, common to every method that trains."""

    epochs: Annotated[int, Field(ge=1, description="passes over the data")] = 20
    batch_size: Annotated[int, Field(ge=1, description="examples per forward pass")] = 64
    accumulate: Annotated[int, Field(ge=1, description="forward passes per optimiser step")] = 1
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 1e-3
    optimizer: Annotated[Literal["adamw", "sgd"], Field(description="AdamW, or SGD with Nesterov momentum 0.9")] = (
        "adamw"
    )
    weight_decay: Annotated[float, Field(ge=0, description="decoupled (AdamW) or L2 (SGD) weight decay")] = 0.01
    schedule: Annotated[Literal["cosine", "linear", "constant"], Field(description="learning rate after warm-up")] = (
        "cosine"
    )
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps with rising learning rate")] = 0.05
    clip: Annotated[float, Field(ge=0, description="largest gradient norm; 0 is no clipping")] = 1.0
    max_length: Annotated[int, Field(ge=2, description="longest text, in tokens")] = 512


def make_optimizer(groups: Iterable[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of the settings over parameter groups ``{"params": [...], "lr_scale": 1.0}``."""
    prepared = [
        {"params": g["params"], "lr": settings.lr * g.get("lr_scale", 1.0), "lr_scale": g.get("lr_scale", 1.0)}
        for g in groups
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            prepared, lr=settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(prepared, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def lr_factor(step: int, total: int, settings: TrainSettings) -> float:
    """The share of the peak learning rate at a step (from 0) of ``total``."""
    warm = math.ceil(settings.warmup * total)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant" or total <= warm:
        return 1.0
    done = (step - warm) / (total - warm)
    return 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1.0 - done


def set_lr(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int, total: int) -> None:
    """Sets the learning rate of every group for a step."""
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * group["lr_scale"] * lr_factor(step, total, settings)


def save_state(path: Path, modules: Mapping[str, torch.nn.Module], optimizers: Mapping[str, torch.optim.Optimizer],
               tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:  # fmt: skip
    """Writes the whole state of a training to one safetensors file, atomically.

    Args:
        tensors: further state of a method. facts: JSON values (epoch, step, ...).
    """
    flat: dict[str, torch.Tensor] = {f"tensor/{k}": v for k, v in tensors.items()}
    plain: dict[str, Any] = {"facts": dict(facts), "optimizers": {}}
    for name, module in modules.items():
        flat.update({f"module/{name}/{k}": v for k, v in module.state_dict().items()})
    for name, optimizer in optimizers.items():
        rest: dict[str, dict[str, Any]] = {}
        for number, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    flat[f"optimizer/{name}/{number}/{key}"] = value
                else:
                    rest.setdefault(str(number), {})[key] = value
        plain["optimizers"][name] = rest
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in flat.items()}
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        safetensors.torch.save_file(flat, temporary, metadata={"state": json.dumps(plain)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


def load_state(path: Path, modules: Mapping[str, torch.nn.Module],
               optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:  # fmt: skip
    """Restores modules and optimisers from :func:`save_state`; returns its facts and tensors, or None when there is no file.

    Raises:
        InterfuseError: ``artifact.damaged`` when the file is torn.
    """
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["state"])
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InterfuseError(
            "artifact.damaged", "the checkpoint cannot be read", where=str(path), fix="Delete it to start again."
        ) from error
    for name, module in modules.items():
        prefix = f"module/{name}/"
        module.load_state_dict({k[len(prefix) :]: v for k, v in flat.items() if k.startswith(prefix)})
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Any]] = {int(n): dict(v) for n, v in plain["optimizers"][name].items()}
        prefix = f"optimizer/{name}/"
        for key, value in flat.items():
            if key.startswith(prefix):
                number, part = key[len(prefix) :].split("/", 1)
                state.setdefault(int(number), {})[part] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return plain["facts"], {k[7:]: v for k, v in flat.items() if k.startswith("tensor/")}
