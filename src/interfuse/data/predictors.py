"""Teachers that are no networks: stored predictions, and scikit-learn estimators. Both behave as modules that give logits.

A table of stored predictions has a column ``id`` (the identifiers of the examples' table) and a column ``logits`` or ``probs``
with one list of numbers per row, one number per class in the order of the table's classes. Any system can write it: a large
model elsewhere, an endpoint with log-probabilities, an ensemble of clients. A language model that is asked here and now is
:mod:`interfuse.data.asked`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError

if TYPE_CHECKING:
    from interfuse.data.tables import Table

#: the least probability a stored or estimated probability is taken for
LEAST = 1e-12
FORMS = ("logits", "probs")


class StoredPredictions(torch.nn.Module):
    """Logits by example. ``forward`` takes rows of the table of predictions (int64 [B]) and gives float32 [B, K].

    ``form`` says what was stored: of ``probs`` the logits are logarithms, known up to a constant per example.
    """

    logits: torch.Tensor

    def __init__(self, ids: Sequence[str], logits: NDArray[np.float32], form: str = "logits") -> None:
        super().__init__()
        self.form = form
        self.register_buffer("logits", torch.from_numpy(logits))
        self.rows = {name: row for row, name in enumerate(ids)}
        digest = hashlib.sha256("\n".join(ids).encode()).digest()
        self.register_buffer("content", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.logits[rows]

    def locate(self, table: Table, where: str) -> NDArray[np.int64]:
        """The rows of a table's examples; errors as :meth:`find`."""
        return self.find(table.ids(), where)

    def find(self, ids: Sequence[str], where: str) -> NDArray[np.int64]:
        """The rows of examples.

        Raises:
            InterfuseError: ``input.missing`` naming the first example without a prediction.
        """
        lost = [i for i in ids if i not in self.rows]
        if lost:
            raise InterfuseError("input.missing", f"{len(lost)} examples have no stored prediction, the first is id {lost[0]!r}", where=where,
                                 fix="Store predictions for these very examples, with the ids of their table.")  # fmt: skip
        return np.array([self.rows[i] for i in ids], dtype=np.int64)


class Estimator(torch.nn.Module):
    """A fitted scikit-learn classifier. ``forward`` takes float32 [B, ...], flattens it, and gives log-probabilities [B, K]."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator
        self.register_buffer("content", torch.from_numpy(_probe(estimator)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probabilities = self.estimator.predict_proba(x.detach().flatten(1).cpu().numpy())
        return torch.log(torch.from_numpy(np.asarray(probabilities, dtype=np.float32)).clamp(min=LEAST)).to(x.device)


def _probe(estimator: Any) -> NDArray[np.float32]:
    """What the estimator says about 256 fixed inputs: stands for its content, so that another fit has another fingerprint."""
    width = getattr(estimator, "n_features_in_", None)
    if width is None:
        raise InterfuseError(
            "input.type", "the estimator is not fitted", where=type(estimator).__name__, fix="Call its fit first."
        )
    inputs = np.random.Generator(np.random.Philox(0)).random((256, int(width)), dtype=np.float32)
    return np.asarray(estimator.predict_proba(inputs), dtype=np.float32)


def speaks_probabilities(module: torch.nn.Module | None) -> bool:
    """Whether a teacher gives probabilities, whose logarithms are logits only up to a constant per example."""
    return isinstance(module, Estimator) or (isinstance(module, StoredPredictions) and module.form == "probs")


def read_predictions(path: Path) -> StoredPredictions:
    """Reads a table of stored predictions (parquet, JSONL or Arrow).

    Raises:
        InterfuseError: ``input.missing``, ``input.shape``, ``input.nan``, ``input.duplicate`` or ``input.format``, naming the row.
    """
    from interfuse.data.tables import read_file

    table = read_file(path)
    form = next((f for f in FORMS if f in table.column_names), None)
    if form is None or "id" not in table.column_names:
        raise InterfuseError("input.missing", "stored predictions have the columns id, and logits or probs", where=str(path),
                             fix="Columns found: " + ", ".join(table.column_names))  # fmt: skip
    ids = [str(i) for i in table.with_format(None)["id"]]
    rows = list(table.with_format(None)[form])
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            raise InterfuseError("input.shape", f"{form} of unequal length", where=f"{path}: row {number}")
    values = np.array(rows, dtype=np.float32).reshape(len(rows), -1)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise InterfuseError("input.nan", f"{form} holds NaN or infinity", where=f"{path}: row {bad[0][0]}")
    if len(set(ids)) != len(ids):
        raise InterfuseError("input.duplicate", "an id occurs twice", where=str(path))
    if not len(ids):
        raise InterfuseError("input.empty", "there are no stored predictions", where=str(path))
    if form == "probs":
        if (values < 0).any():
            raise InterfuseError("input.format", "a probability is negative", where=str(path))
        values = np.log(np.maximum(values, np.float32(LEAST)))
    return StoredPredictions(ids, values, form)
