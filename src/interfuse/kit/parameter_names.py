"""Which parameter of a module a tensor of its files is: usually of the same name, but not in every architecture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from interfuse.core.errors import InterfuseError
from interfuse.data.models import TASKS, Model, make_config, quiet
from interfuse.data.seeding import seeded
from interfuse.data.weights import Weights


def names_in_files(model: Model, module: nn.Module, stored: Sequence[str]) -> dict[str, str]:
    """Tensor in the files -> parameter of the module (as ``named_parameters`` calls it, tied ones by their first name).

    Where ``transformers`` renames tensors while it loads them, the names are found by writing a model of the same configuration
    in which every parameter holds a number of its own. Tensors that are no parameters (buffers) are left out.

    Raises:
        InterfuseError: ``needs.capability`` when a tensor is only a piece of a parameter.
    """
    first = {id(p): name for name, p in module.named_parameters()}
    mine = {name: first[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    buffers = dict(module.named_buffers())
    if all(name in mine or name in buffers for name in stored) or model.task not in TASKS:
        return {name: mine[name] for name in stored if name in mine}
    import transformers

    with seeded(0):  # initial weights are drawn, and overwritten
        skeleton = getattr(transformers, TASKS[model.task][0]).from_config(make_config(model))
    numbered = [name for name, _ in skeleton.named_parameters()]
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        for number, (_, parameter) in enumerate(skeleton.named_parameters()):
            parameter.fill_(number + 1)
        with quiet():
            skeleton.save_pretrained(place)
        found: dict[str, str] = {}
        with Weights.open(Path(place)) as written:
            for name in stored:
                if name not in written:
                    continue
                tensor = written.tensor(name)
                value = round(float(tensor.reshape(-1)[0])) if tensor.numel() and tensor.is_floating_point() else 0
                if not 1 <= value <= len(numbered):
                    continue
                owner = numbered[value - 1]
                if owner in mine and tensor.shape == module.get_parameter(owner).shape:
                    found[name] = mine[owner]
                elif owner in mine and tensor.ndim > 1:
                    raise InterfuseError("needs.capability", f"the tensor {name} is a piece of the parameter {owner}, so what calibration "
                                         "finds cannot be attributed to it", where=json.dumps(model.name))  # fmt: skip
    return found
