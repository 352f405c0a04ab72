"""Steering written into weights: scaling an expert's output is the same as scaling its routing weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interfuse.core.artifact import environment, save_artifact
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import read_text
from interfuse.data.models import build, save, tokenizer_folder
from interfuse.decode.fused import FACTS, FusedLM, open_stream, read_description
from interfuse.decode.steering import scale_experts


def export_steering(lm: FusedLM, out: Path, *, force: bool = False) -> Mapping[str, Any]:
    """A model folder whose chosen experts' output projections (and biases) are multiplied by ``beta``: it needs no hooks, so any runtime
    that knows the architecture runs it. Spans and strengths per request cannot be expressed in weights.

    Raises:
        InterfuseError: ``input.type`` when the fused model is not of the method rice, ``needs.capability`` under renormalise.
    """
    if lm.method.id != "decode/rice":
        raise InterfuseError(
            "input.type",
            f"the model is made by {lm.method.id}: only rice can be written into weights",
            where=str(lm.path),
        )
    if lm.params["renormalise"]:
        raise InterfuseError("needs.capability", "renormalised weights depend on the token and cannot be written into weights",
                             fix="Make it without renormalise.")  # fmt: skip
    facts = json.loads(read_text(lm.path / FACTS))
    chosen = [(int(layer), int(expert)) for layer, expert in facts["chosen"]]
    row = read_description(lm.path)["streams"][0]
    model = open_stream(row, lm.path, lm.ctx)
    beta = float(lm.params["beta"])

    def write(folder: Path) -> Mapping[str, Any]:
        module = build(model, lm.ctx).eval()
        scale_experts(module, chosen, beta)
        save(module, folder, tokenizer_from=tokenizer_folder(model))
        return {"experts": len(chosen), "beta": beta, "chosen": [list(c) for c in chosen]}

    manifest = {"kind": "model", "method": lm.method.id, "version": lm.method.version(), "params": {"beta": beta}, "key": "",
                "inputs": [{"model": {"name": model.name, "fingerprint": model.fingerprint()}}], "seeds": [], "environment": environment()}  # fmt: skip
    made = save_artifact(out, write, manifest, force=force)
    return {"path": str(out), **made.manifest["facts"]}
