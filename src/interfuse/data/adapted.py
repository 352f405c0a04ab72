"""Models whose tensors are in no folder of their own: a base with a LoRA adapter on it, a state dict, and any opened as a module."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import canonical_json, file_sha256, fingerprint, jsonable
from interfuse.data.lora import CONFIG, MODEL, apply_adapter, open_adapter, read_adapter_config
from interfuse.data.models import (
    TASKS,
    Model,
    folder_digest,
    locate,
    quiet,
    read_config,
    read_processor,
    state_digest,
    task_of,
)
from interfuse.data.overlay import Computed, Overlay, whole
from interfuse.data.vocabulary import EMBEDDING
from interfuse.data.weights import Weights


@dataclass(frozen=True)
class AdaptedModel:
    """A base and the LoRA adapter on it, as :class:`~interfuse.data.overlay.Computed` tensors."""

    base: Path
    adapter: Path

    def open(self) -> Overlay:
        """The base's tensors, the adapter's changes added while they are read."""
        return apply_adapter(Weights.open(self.base), open_adapter(self.adapter))

    def fingerprint(self) -> str:
        """Of the base's and the adapter's bytes."""
        return fingerprint([folder_digest(self.base), *_digests(self.adapter)])


@dataclass(frozen=True)
class AdaptedResult:
    """Tensors that are computed, and the LoRA adapter on them, as :class:`~interfuse.data.overlay.Computed` tensors."""

    base: Computed
    adapter: Path

    def open(self) -> Overlay:
        """The tensors, the adapter's changes added while they are computed."""
        return apply_adapter(self.base.open(), open_adapter(self.adapter))

    def fingerprint(self) -> str:
        """Of what is computed and of the adapter's bytes."""
        return fingerprint([self.base.fingerprint(), *_digests(self.adapter)])


def _digests(adapter: Path) -> list[str]:
    return [file_sha256(f) for f in (adapter / CONFIG, adapter / MODEL) if f.is_file()]


def adapted_model(
    base: Path | None, adapter: Path, name: str, task: str | None, tokenizer: Path | None, folder: Path
) -> Model:
    """A model with an adapter; without a base the one its ``adapter_config.json`` names. Nothing but settings is read.

    Raises:
        InterfuseError: ``input.missing`` when there is no adapter or its base is not found, ``needs.capability``.
    """
    _refuse_none(adapter)
    stated = read_adapter_config(adapter).get("base_model_name_or_path")
    if base is None:
        try:
            base = locate(str(stated), folder)
        except InterfuseError as error:
            raise InterfuseError("input.missing", f"the adapter's base {stated!r} is not there", where=str(adapter),
                                 fix="Name it: BASE+ADAPTER.") from error  # fmt: skip
    config = _grown(read_config(base), adapter)
    own = tokenizer or next((f for f in (adapter, base) if (f / "tokenizer_config.json").is_file()), None)
    return Model(name, None, config, task or task_of(config, base), tokenizer=own, processor=read_processor(base),
                 computed=AdaptedModel(base, adapter))  # fmt: skip


def adapted_result(model: Model, adapter: Path, name: str) -> Model:
    """A model whose tensors are computed, with an adapter on it. Nothing but settings is read.

    Raises:
        InterfuseError: ``input.missing`` when there is no adapter, ``needs.capability`` when it is none of LoRA.
    """
    assert model.computed is not None, "asked for only then"
    _refuse_none(adapter)
    read_adapter_config(adapter)
    own = adapter if (adapter / "tokenizer_config.json").is_file() else model.tokenizer
    return dataclasses.replace(model, name=name, config=_grown(dict(model.config), adapter), tokenizer=own,
                               computed=AdaptedResult(model.computed, adapter), key="")  # fmt: skip


def _refuse_none(adapter: Path) -> None:
    if not (adapter / CONFIG).is_file():
        raise InterfuseError("input.missing", f"the folder has no {CONFIG}", where=str(adapter),
                             fix="The part after + is a LoRA adapter as peft saves it.")  # fmt: skip


@dataclass(frozen=True)
class HeldTensors:
    """A state dict: named tensors in memory, and nothing that says how they are used."""

    state: Mapping[str, torch.Tensor]

    def open(self) -> Overlay:
        """The tensors themselves, shared."""
        return Overlay(Weights.from_state_dict(self.state), {})

    def fingerprint(self) -> str:
        """Of names, types, shapes and bytes."""
        return state_digest("state dict", self.state)


def held_model(state: Mapping[Any, Any], name: str) -> Model:
    """A state dict as a model that can be merged, and not run.

    Raises:
        InterfuseError: ``input.type`` when a name is no text or a value no tensor (or NumPy array) with numbers.
    """
    wrong = next((key for key in state if not isinstance(key, str)), None)
    if wrong is not None:
        raise InterfuseError("input.type", f"a state dict has names, not {wrong!r}", where=name)
    tensors = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in state.items()}
    Weights.from_state_dict(tensors)  # refuses what is no dense tensor
    return Model(name or "state dict", None, {}, "module", computed=HeldTensors(tensors))


def _grown(config: dict[str, Any], adapter: Path) -> dict[str, Any]:
    """The base's configuration, with the rows of an embedding that the adapter replaces by one of another size."""
    if "vocab_size" not in config or not (adapter / MODEL).is_file():
        return config
    with Weights.open(adapter / MODEL) as weights:
        names = [
            n
            for n in weights
            if ".lora_" not in n and EMBEDDING.search(n.replace(".modules_to_save", "").replace(".base_layer", ""))
        ]
        rows = [weights[n].shape[0] for n in names]
    return {**config, "vocab_size": rows[0]} if rows else config


def in_memory(model: Model) -> torch.nn.Module:
    """A module whose numbers are those of the model's computed tensors, by way of a folder that is removed again."""
    import safetensors.torch
    import transformers

    assert model.computed is not None, "asked for only then"
    if model.task not in TASKS:
        raise InterfuseError("input.type", "a state dict says no architecture: there is no module to make of it", where=model.name,
                             fix="Give the module itself, or a model folder.")  # fmt: skip
    with model.computed.open() as tensors, tempfile.TemporaryDirectory() as place:
        state = {name: whole(tensors.source(name)).to(tensors[name].dtype) for name in tensors}
        safetensors.torch.save_file(state, Path(place) / "model.safetensors", metadata={"format": "pt"})
        (Path(place) / "config.json").write_bytes(canonical_json(json.loads(json.dumps(jsonable(model.config)))))
        with quiet():
            module: torch.nn.Module = getattr(transformers, TASKS[model.task][0]).from_pretrained(
                place, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
    return module
