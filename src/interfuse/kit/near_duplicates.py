"""Texts that say nearly the same: shared word sequences, clusters, and a choice of one per cluster."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interfuse.core.errors import InterfuseError

#: most texts that are compared with one another at once (a dense matrix of distances is made)
MOST_AT_ONCE = 20_000


def plain_key(text: str) -> str:
    """Letters and digits in lower case with single spaces: equal for texts that differ in case, marks and spacing."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def shingles(text: str, size: int = 3) -> frozenset[str]:
    """All sequences of ``size`` words of a text (the whole of a shorter one)."""
    words = plain_key(text).split()
    return frozenset(" ".join(words[i : i + size]) for i in range(max(len(words) - size + 1, 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared over all; 1 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def distinct(texts: Sequence[str], *, threshold: float = 0.8, size: int = 3) -> list[int]:
    """The places of texts that are not near duplicates of an earlier kept one (Jaccard similarity of shingles >= threshold).

    Only texts that share a shingle are compared, so the cost grows with what they share, not with the square of their count.
    """
    kept: list[int] = []
    sets: list[frozenset[str]] = []
    where: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        mine = shingles(text, size)
        shared: dict[int, int] = {}
        for piece in sorted(mine):
            for k in where.get(piece, ()):
                shared[k] = shared.get(k, 0) + 1
        if any(n / (len(mine) + len(sets[k]) - n) >= threshold for k, n in shared.items()):
            continue
        for piece in sorted(mine):
            where.setdefault(piece, []).append(len(kept))
        kept.append(i)
        sets.append(mine)
    return kept


def vectors(texts: Sequence[str]) -> Any:
    """TF-IDF of words and letter sequences, rows of unit length: a sparse matrix, for texts without an embedding model."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True)
    return normalize(hstack([words.fit_transform(texts), letters.fit_transform(texts)]))


def clusters(texts: Sequence[str], *, distance: float = 0.5, embeddings: ArrayLike | None = None) -> NDArray[np.int64]:
    """A cluster number per text, [N], numbered by first appearance: average linkage of cosine distances, cut at ``distance``.

    Args:
        embeddings: vectors [N, D] to be used instead of TF-IDF.

    Raises:
        InterfuseError: ``input.shape``, ``input.nan``, or ``input.limit`` for more than 20,000 texts.
    """
    count = len(texts)
    if count > MOST_AT_ONCE:
        raise InterfuseError(
            "input.limit", f"{count} texts are too many to be compared all with all", fix="Cluster in parts."
        )
    if count < 2:
        return np.zeros(count, np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if embeddings is None:
        table = vectors(texts)
        close = np.asarray((table @ table.T).todense(), dtype=np.float64)
    else:
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or len(rows) != count:
            raise InterfuseError("input.shape", f"{rows.shape} vectors for {count} texts")
        if not np.isfinite(rows).all():
            raise InterfuseError("input.nan", "an embedding is not finite")
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        close = rows @ rows.T
    apart = np.clip(1 - (close + close.T) / 2, 0, 2)
    np.fill_diagonal(apart, 0)
    found = fcluster(linkage(squareform(apart, checks=False), "average"), distance, "distance")
    names: dict[int, int] = {}
    return np.array([names.setdefault(int(c), len(names)) for c in found], dtype=np.int64)


def best_of_each(labels: Sequence[int] | NDArray[np.int64], scores: ArrayLike) -> list[int]:
    """The place of the highest score of every cluster, in the order of the clusters; the first of equals."""
    values, best = np.asarray(scores, dtype=np.float64), {}  # type: tuple[NDArray[np.float64], dict[int, int]]
    for i, label in enumerate(labels):
        if int(label) not in best or values[i] > values[best[int(label)]]:
            best[int(label)] = i
    return [best[k] for k in sorted(best)]


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence of two word sequences."""
    row = [0] * (len(second) + 1)
    for a in first:
        before = 0
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], before + 1 if a == b else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 of two texts' words."""
    a, b = plain_key(candidate).split(), plain_key(reference).split()
    if not a or not b:
        return 0.0
    common = longest_common(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0
