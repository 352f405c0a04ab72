"""Critics: small classifiers that say how likely a harvested statement is true, and where to cut.

A critic learns from judged texts (and numbers beside them, such as log-probabilities) by logistic regression over hashed words,
letter sequences, and pairs of words wherever they stand (a head and a tail seldom stand side by side); its scores are calibrated on judgements held back. The threshold is set by the recall one wants to keep
(West et al. 2022), and the table of thresholds says what each costs.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import read_text

Floats = NDArray[np.float64]
WORDS, LETTERS, PAIRS = 2**14, 2**14, 2**15
#: words of a text whose pairs are looked at
MOST_PAIRED = 30
RECALLS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Cut:
    """A threshold and what it does on judged statements: keep those with ``p > threshold``.

    Attributes:
        recall: share of the true ones kept. precision: share of true ones among the kept (1 when nothing is kept).
        kept: their count.
    """

    threshold: float
    recall: float
    precision: float
    kept: int


def _judged(p: ArrayLike, valid: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    scores, truth = np.asarray(p, dtype=np.float64), np.asarray(valid, dtype=bool)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise InterfuseError("input.shape", f"{scores.shape} scores for {truth.shape} judgements")
    if not np.isfinite(scores).all():
        raise InterfuseError("input.nan", "a score is not a number")
    if truth.all() or not truth.any():
        raise InterfuseError("input.empty", "the judgements hold only one of true and false", fix="Judge some of both.")
    return scores, truth


def cuts(p: ArrayLike, valid: ArrayLike) -> list[Cut]:
    """Every cut that makes a difference, from keeping all to keeping none.

    Args:
        p: scores [N], higher is more likely true. valid: judgements [N].

    Raises:
        InterfuseError: ``input.shape``, ``input.nan``, or ``input.empty`` when only one class was judged.
    """
    scores, truth = _judged(p, valid)
    lowest = np.nextafter(scores.min(), -np.inf)
    rows = []
    for threshold in [float(lowest), *(float(v) for v in np.unique(scores))]:
        kept = scores > threshold
        true = int((kept & truth).sum())
        rows.append(
            Cut(threshold, true / int(truth.sum()), true / int(kept.sum()) if kept.any() else 1.0, int(kept.sum()))
        )
    return rows


def cut_at_recall(p: ArrayLike, valid: ArrayLike, recall: float) -> Cut:
    """The lowest threshold whose recall is no more than ``recall``: the cut of a filter that expects to keep that share.

    Raises:
        InterfuseError: as :func:`cuts`; ``param.value`` for a recall outside (0, 1].
    """
    if not 0 < recall <= 1:
        raise InterfuseError("param.value", f"a recall lies in (0, 1], not {recall:g}")
    return next(c for c in cuts(p, valid) if c.recall <= recall + 1e-12)


def precision_at_recall(p: ArrayLike, valid: ArrayLike, recall: float) -> float:
    """The best precision of a cut that keeps at least that share of the true ones."""
    return max(c.precision for c in cuts(p, valid) if c.recall >= recall - 1e-12 and c.kept)


@dataclass(frozen=True)
class Critic:
    """A trained critic: weights over hashed texts and numbers, and a calibration of its score.

    Attributes:
        weights: [words + letters + pairs + numbers]. bias. means, scales: of the numbers. slope, offset: probability =
            ``sigmoid(slope * score + offset)``. trained, held: judgements learned from and held back. base_rate: of true ones.
    """

    weights: Floats
    bias: float
    means: Floats
    scales: Floats
    slope: float = 1.0
    offset: float = 0.0
    trained: int = 0
    held: int = 0
    base_rate: float = 0.5

    def __call__(self, texts: Sequence[str], numbers: ArrayLike | None = None) -> Floats:
        """The probability that each text is true, [N].

        Args:
            numbers: [N, F], the features it was trained with.

        Raises:
            InterfuseError: ``input.shape`` when the numbers are not those it knows, ``input.nan``.
        """
        if not len(texts):
            return np.zeros(0)
        score = features(texts, self._numbers(numbers, len(texts))) @ self.weights + self.bias
        value: Floats = 1 / (1 + np.exp(-np.clip(self.slope * np.asarray(score).ravel() + self.offset, -500, 500)))
        return value

    def _numbers(self, numbers: ArrayLike | None, count: int) -> Floats:
        table = np.zeros((count, 0)) if numbers is None else np.asarray(numbers, dtype=np.float64).reshape(count, -1)
        if table.shape[1] != len(self.means):
            raise InterfuseError(
                "input.shape", f"the critic knows {len(self.means)} numbers, {table.shape[1]} are given"
            )
        if not np.isfinite(table).all():
            raise InterfuseError("input.nan", "a number beside a text is not finite")
        return (table - self.means) / self.scales

    def save(self, path: Path) -> None:
        """Writes it as one safetensors file."""
        from safetensors.numpy import save

        from interfuse.core.safe import write_atomic

        facts = {"bias": self.bias, "slope": self.slope, "offset": self.offset, "trained": self.trained, "held": self.held,
                 "base_rate": self.base_rate}  # fmt: skip
        write_atomic(path, save({"weights": self.weights, "means": self.means, "scales": self.scales},
                                {"critic": json.dumps(facts, sort_keys=True)}))  # fmt: skip

    @staticmethod
    def load(path: Path) -> Critic:
        """Reads what :meth:`save` wrote.

        Raises:
            InterfuseError: ``input.missing`` or ``input.format``.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise InterfuseError("input.missing", "there is no such critic", where=str(path))
        try:
            with safe_open(path, "numpy") as file:
                facts = json.loads(file.metadata()["critic"])
                weights, means, scales = (
                    np.asarray(file.get_tensor(n), dtype=np.float64) for n in ("weights", "means", "scales")
                )
            return Critic(weights, means=means, scales=scales, **facts)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InterfuseError("input.format", f"not a critic: {error}", where=str(path)) from error


def features(texts: Sequence[str], numbers: Floats) -> Any:
    """Hashed words (one and two), letter sequences (three to four) and pairs of words of each text, and its numbers: sparse."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(
        n_features=WORDS, ngram_range=(1, 2), alternate_sign=False, norm="l2", token_pattern=r"(?u)\b\w+\b"
    )
    letters = HashingVectorizer(
        n_features=LETTERS, analyzer="char_wb", ngram_range=(3, 4), alternate_sign=False, norm="l2"
    )
    pairs = HashingVectorizer(n_features=PAIRS, analyzer=paired, alternate_sign=False, norm="l2")
    return hstack(
        [words.transform(texts), letters.transform(texts), pairs.transform(texts), csr_matrix(numbers)]
    ).tocsr()


def paired(text: str) -> list[str]:
    """Every two words of a text's first thirty, in their order: ``first|second``."""
    words = re.findall(r"\w+", text.lower())[:MOST_PAIRED]
    return [f"{a}|{b}" for a, b in itertools.combinations(words, 2)]


def train_critic(
    texts: Sequence[str], valid: ArrayLike, numbers: ArrayLike | None = None, *, groups: Sequence[str] | None = None,
    held_share: float = 0.2, strength: float = 1.0, rng: np.random.Generator, least: int = 100,
) -> Critic:  # fmt: skip
    """A critic from judged texts.

    Args:
        valid: judgements [N]. numbers: features beside the texts [N, F].
        groups: texts of one group (one head, one rule) are held back together, so that nothing leaks into the calibration.
        held_share: share of the groups held back for calibration. strength: inverse strength of the penalty (C).
        least: fewer judgements than this are refused.

    Raises:
        InterfuseError: ``input.shape``; ``input.empty`` for too few judgements or a single class; ``input.nan``.
    """
    from sklearn.linear_model import LogisticRegression

    truth = np.asarray(valid, dtype=bool)
    table = (
        np.zeros((len(texts), 0)) if numbers is None else np.asarray(numbers, dtype=np.float64).reshape(len(texts), -1)
    )
    if len(truth) != len(texts) or (groups is not None and len(groups) != len(texts)):
        raise InterfuseError("input.shape", f"{len(texts)} texts, {len(truth)} judgements")
    if len(texts) < least:
        raise InterfuseError(
            "input.empty", f"{len(texts)} judgements, a critic needs {least}", fix="Judge more statements."
        )
    _judged(np.zeros(len(truth)), truth)
    if not np.isfinite(table).all():
        raise InterfuseError("input.nan", "a number beside a text is not finite")
    held = held_out(groups if groups is not None else [str(i) for i in range(len(texts))], held_share, rng)
    if truth[~held].all() or not truth[~held].any():
        held = np.zeros(len(texts), bool)
    means = table[~held].mean(0) if table.size else np.zeros(table.shape[1])
    scales = table[~held].std(0) if table.size else np.ones(table.shape[1])
    scales = np.where(scales > 1e-12, scales, 1.0)
    x = features(texts, (table - means) / scales)
    model = LogisticRegression(C=strength, max_iter=1000).fit(x[~held], truth[~held])
    weights, bias, slope, offset = model.coef_[0].astype(np.float64), float(model.intercept_[0]), 1.0, 0.0
    if held.sum() >= 20 and truth[held].any() and not truth[held].all():
        score = np.asarray(x[held] @ weights + bias).reshape(-1, 1)
        platt = LogisticRegression(C=1e3, max_iter=1000).fit(score, truth[held])
        if platt.coef_[0, 0] > 0:
            slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    return Critic(weights, bias, means, scales, slope, offset, int((~held).sum()), int(held.sum()), float(truth.mean()))


def held_out(groups: Sequence[str], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask [N] of the rows whose group is held back: ``share`` of the groups, drawn."""
    names = list(dict.fromkeys(groups))
    drawn = rng.permutation(len(names))[: round(share * len(names))]
    chosen = {names[int(i)] for i in drawn}
    return np.array([g in chosen for g in groups], dtype=bool)


def judgements(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV or JSONL file of judged statements.

    Raises:
        InterfuseError: ``input.missing``, ``input.format`` naming the line.
    """
    import csv
    import io

    if not path.is_file():
        raise InterfuseError("input.missing", "there is no such file of judgements", where=str(path))
    text = read_text(path)
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                rows.append({k: str(v) for k, v in json.loads(line).items()})
            except (ValueError, AttributeError) as error:
                raise InterfuseError("input.format", "a line is not a JSON object", where=f"{path}:{number}") from error
        return rows
    return [dict(row) for row in csv.DictReader(io.StringIO(text))]
