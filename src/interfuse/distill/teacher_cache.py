"""Teachers' predictions on disk, shared by every training with the same teacher on the same examples."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint, write_atomic
from interfuse.data.models import Model
from interfuse.data.tables import Table
from interfuse.kit.encode import Encoder, predict


def stored(
    model: Model, module: torch.nn.Module, data: Table, encoder: Encoder, ctx: Ctx, *, disk: bool
) -> torch.Tensor:
    """A teacher's logits for every row, float32 [N, K]: predicted, or read from ``<cache>/teachers`` when ``disk``.

    A file's name and header hold the digest of teacher, examples, text length and number type; a file whose header says
    something else than its name is refused.

    Raises:
        InterfuseError: ``artifact.damaged`` when a cache file is not what its name says.
    """
    if not disk:
        return torch.from_numpy(predict(model, data, ctx, module=module, encoder=encoder))
    about = {
        "teacher": model.fingerprint(),
        "examples": data.fingerprint(),
        "rows": len(data),
        "max_length": encoder.max_length,
        "dtype": ctx.dtype,
    }
    key = fingerprint(about)
    path = Path(ctx.cache).expanduser() / "teachers" / f"{key[:32]}.safetensors"
    if path.is_file():
        return _read(path, key, len(data))
    logits = torch.from_numpy(predict(model, data, ctx, module=module, encoder=encoder))
    header = {"key": key, "about": json.dumps(about, sort_keys=True)}
    write_atomic(path, safetensors.torch.save({"logits": logits.contiguous()}, metadata=header))
    return logits


def _read(path: Path, key: str, rows: int) -> torch.Tensor:
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            same = (file.metadata() or {}).get("key") == key
            logits: torch.Tensor = file.get_tensor("logits")
    except (safetensors.SafetensorError, OSError) as error:
        raise InterfuseError(
            "artifact.damaged",
            "the teacher cache cannot be read",
            where=str(path),
            fix="Delete the file; it is made again.",
        ) from error
    if not same or len(logits) != rows:
        raise InterfuseError("artifact.damaged", "the teacher cache is of another teacher or other examples", where=str(path),
                             fix="Delete the file; it is made again.")  # fmt: skip
    return logits
