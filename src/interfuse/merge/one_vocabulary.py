"""A model as it is with the vocabulary of the merge: for looking at it at work when the merge has a tokenizer of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interfuse.core.rooms import Call
from interfuse.core.safe import fingerprint, jsonable
from interfuse.data.models import Model, copy_tokenizer, tokenizer_folder
from interfuse.data.overlay import Overlay, Tensors
from interfuse.data.tokenizer_union import write_tokenizer
from interfuse.data.vocabulary import Alignment
from interfuse.merge.prepare import Prepared, everyone, leading


@dataclass(frozen=True)
class _Realigned:
    """The tensors of a model with its rows in the order of the merge, which stay open elsewhere."""

    tensors: Tensors
    key: str

    def open(self) -> Overlay:
        """The tensors."""
        return Overlay(None, {n: (self.tensors.source(n), self.tensors[n].code) for n in self.tensors})

    def fingerprint(self) -> str:
        """Of the model and of everything its rows may come from."""
        return self.key


def in_one_vocabulary(call: Call, plan: Prepared, index: int, tokens: Path) -> Model:
    """A model (or, after the models, the base) as it reads and writes the tokens of the merge.

    Its embedding and output rows are those that are merged: rows it lacks are filled as the merge fills them.

    Args:
        tokens: folder of the merge's tokenizer, see :func:`write_tokens`.
    """
    assert plan.alignment is not None, "asked for only with a tokenizer"
    model = everyone(call)[index]
    about = {
        "models": [m.fingerprint() for m in everyone(call)],
        "rows": plan.alignment.rows,
        "ids": fingerprint(dict(plan.alignment.ids)),
        "tokens": jsonable(call.params["tokens"]),
        "index": index,
    }
    config = _renumbered(model.config, plan.alignment, index)
    return dataclasses.replace(model, path=None, module=None, config=config, tokenizer=tokens, key="",
                               computed=_Realigned(plan.weights[index], fingerprint(about)))  # fmt: skip


def write_tokens(call: Call, plan: Prepared, folder: Path) -> Path:
    """Writes the tokenizer of the merge into a folder."""
    import shutil

    assert plan.alignment is not None, "asked for only with a tokenizer"
    wanted = call.inputs["tokenizer"]
    source = wanted.path or tokenizer_folder(leading(call))
    assert source is not None, "what cannot be read has been refused"
    folder.mkdir(parents=True, exist_ok=True)
    if plan.merged is not None:
        write_tokenizer(folder, source, plan.merged, plan.alignment.ids)
    else:
        copy_tokenizer(source, folder, shutil.copyfile)
    return folder


def _renumbered(config: Mapping[str, Any], alignment: Alignment, index: int) -> dict[str, Any]:
    """A configuration with the size of the merge's vocabulary, its special ids moved to where their tokens are now."""

    def moved(table: Mapping[str, Any]) -> dict[str, Any]:
        new = dict(table)
        if table.get("vocab_size") is not None:
            new["vocab_size"] = alignment.rows
        for key, value in table.items():
            if key.endswith("_token_id") and type(value) is int:
                at = np.flatnonzero(alignment.maps[index] == value)
                new[key] = int(at[0]) if len(at) else None
        return new

    made = moved(config)
    if isinstance(config.get("text_config"), Mapping):
        made["text_config"] = moved(config["text_config"])
    return made
