"""The harvesting methods once more: slow, obvious, one token, one paper, one binding at a time."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def normalised(start: Array, visits: Array, mass: Array) -> Array:
    """Concept relevance [A, B] as the chance of ``b`` given that a walk is somewhere: row by row, dense."""
    used = [float(sum(mass[p] * column[p] for p in range(len(mass)))) for column in start.T]
    rows = [
        column @ visits / u if u > 0 else np.zeros(visits.shape[1]) for column, u in zip(start.T, used, strict=True)
    ]
    return np.array(rows)


def lift(r: Array, shares: Array) -> Array:
    """``L(a -> b) = R(a -> b) / (N_b / N)`` of a normalised relevance: 1 where ``b`` is met no more often than by chance."""
    return np.divide(r, shares[None, :], out=np.zeros_like(r), where=shares[None, :] > 0)


def _model(folder: str, masked: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    return kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _fill(prompt: str, entities: Sequence[str]) -> list[tuple[str, int]]:
    """Words of the sentence with the entity they belong to, -1 for the prompt's own."""
    body = prompt.strip().rstrip(" .") + " ."
    words: list[tuple[str, int]] = []
    for piece in body.split():
        slot = re.fullmatch(r"<ENT(\d)>", piece)
        words += [(w, int(slot[1])) for w in entities[int(slot[1])].split()] if slot else [(piece, -1)]
    return words


def _tuple_score(module: Any, tokenizer: Any, prompt: str, entities: Sequence[str]) -> float:
    """``f(p, h)``: first words hidden, revealed entity by entity (one token is one word here)."""
    import torch

    words = _fill(prompt, entities)
    places = [next(i for i, (_, e) in enumerate(words) if e == k) for k in range(len(entities))]
    ids = [tokenizer(w)["input_ids"][0] for w, _ in words]
    logs = []
    for k, place in enumerate(places):
        row = list(ids)
        for later in places[k:]:
            row[later] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = module(input_ids=torch.tensor([row])).logits[0, place].double().numpy()
        logs.append(logits[ids[place]] - math.log(sum(math.exp(v) for v in logits)))
    return (sum(logs) / len(logs) + sum(logs) / len(entities) + min(logs)) / 3


def tuples(
    folder: str, relations: Mapping[str, Any], rows: Sequence[tuple[str, str, str]], temperature: float
) -> dict[str, Array]:
    """Weights of every prompt, and every found tuple's score under them."""
    module, tokenizer = _model(folder, True)
    weights: dict[str, list[float]] = {}
    for name, spec in relations.items():
        raw = []
        for prompt in spec["prompts"]:
            right = [_tuple_score(module, tokenizer, prompt, s) for s in spec["seeds"]]
            wrong = []
            for a, b in itertools.permutations(spec["seeds"], 2):
                for place in range(len(a)):
                    if a[place] != b[place]:
                        wrong.append(_tuple_score(module, tokenizer, prompt, [*a[:place], b[place], *a[place + 1 :]]))
            raw.append((sum(right) / len(right) - 0.5 * sum(wrong) / len(wrong)) / temperature)
        shares = [math.exp(v) / sum(math.exp(u) for u in raw) for v in raw]
        shares = [0.0 if s < 0.05 else s for s in shares]
        weights[name] = [s / sum(shares) for s in shares]
    scores = []
    for name, *entities in rows:
        scores.append(
            sum(
                w * _tuple_score(module, tokenizer, p, entities)
                for p, w in zip(relations[name]["prompts"], weights[name], strict=True)
            )
        )
    return {"scores": np.array(scores), "weights": np.array([w for part in weights.values() for w in part])}


def bindings(
    triples: Sequence[tuple[str, str, str]], rows: Sequence[Mapping[str, Any]], beam: int, keep: float
) -> dict[str, Array]:
    """Every way to fill the rule of dishes from the graph, head and tail by the logarithm of counts, step by step."""
    part = [(a, b) for a, r, b in triples if r == "is-part-of"]
    served = [(a, b) for a, r, b in triples if r == "is-served-in"]
    counts = {
        x: sum((a == x) + (b == x) for a, b in part + served) for x in {v for pair in part + served for v in pair}
    }

    def score(values: Sequence[str]) -> float:
        return float(np.mean([math.log(counts[v]) for v in values]))

    def step(front: list[tuple[str, ...]], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
        return [(*b, y) for b in front for y in dict.fromkeys(y for x, y in pairs if x == b[-1])]

    sizes = {}
    for side in ("head", "tail"):
        front = [(a,) for a in sorted({a for a, _ in part})][:beam]
        for pairs in (part, served):
            grown = sorted(step(front, pairs), key=lambda b: score(b) if side == "tail" else -score(b))
            front = grown[: min(beam, math.ceil(keep * len(grown)))]
        sizes[side] = sorted(front)
        lowest_in = [score(b) for b in front]
        ours = sorted(score([r["values"][k] for k in "ABC"]) for r in rows if r["set"] == side)
        assert ours == sorted(lowest_in), f"the {side} holds other bindings"
    return {"scores": np.array([score([r["values"][k] for k in "ABC"]) for r in rows]), "confidence": np.ones(len(rows)),
            "head": np.array([len(sizes["head"])]), "tail": np.array([len(sizes["tail"])])}  # fmt: skip


def comparisons(folder: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Each continuation's log-probability token by token without any cache, its three clauses in their order, and the votes."""
    import torch

    module, tokenizer = _model(folder, False)
    logprobs, meets = [], []
    for row in rows:
        prompt = f"compared to {_plural(row['first'])}, {_plural(row['second'])}"
        said = row["text"].split(",", 1)[1].strip().split(" ", 1)[1].rstrip(".")
        ids = tokenizer(prompt)["input_ids"]
        tokens = [tokenizer(w)["input_ids"][0] for w in said.split()]
        ends = [tokenizer(".")["input_ids"][0], *tokenizer.all_special_ids]
        total = 0.0
        for i, token in enumerate([*tokens, -1]):
            with torch.no_grad():
                logits = module(input_ids=torch.tensor([ids + tokens[:i]])).logits[0, -1].double().numpy()
            norm = math.log(sum(math.exp(v) for v in logits))
            total += logits[token] - norm if token >= 0 else math.log(sum(math.exp(logits[e] - norm) for e in ends))
        logprobs.append(total / (len(tokens) + 1) ** 0.1)
        words = said.split()
        first = next(i for i, w in enumerate(words) if w in ("are", "can", "have", "need", "would", "may"))
        second = next(
            i
            for i, w in enumerate(words)
            if i > first and w in ("typically", "often", "always", "generally", "normally")
        )
        third = next(
            i
            for i, w in enumerate(words)
            if i > second and w in ("heavier", "lighter", "bigger", "smaller", "more", "less")
        )
        meets.append(float(first < second < third and "than" not in words))
    supporters, opponents = [], []
    for row in rows:
        group = [r for r in rows if (r["first"], r["second"]) == (row["first"], row["second"])]
        same = sum(r["cluster size"] for r in group if (r["comparative"], _stem(r)) == (row["comparative"], _stem(row)))
        contrary = {"heavier": "lighter", "lighter": "heavier"}.get(row["comparative"])
        supporters.append(same)
        opponents.append(
            sum(r["cluster size"] for r in group if r["comparative"] == contrary and _stem(r) == _stem(row))
        )
    return {
        "logprob": np.array(logprobs),
        "meets": np.array(meets),
        "for": np.array(supporters),
        "against": np.array(opponents),
    }


def _plural(noun: str) -> str:
    return noun + "s"


def _stem(row: Mapping[str, Any]) -> str:
    return " ".join(
        re.sub(r"(es|s)$", "", w) for w in row["property"].split() if w not in ("the", "a", "an", "in", "to")
    )


def triples(critic: Path, rows: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], threshold: float, corpus: Sequence[Mapping[str, Any]]) -> dict[str, Array]:  # fmt: skip
    """Each triple's probability from the critic's file, feature by feature; what is above the bar goes on; train is the larger part."""
    import json

    from safetensors import safe_open
    from sklearn.utils import murmurhash3_32

    with safe_open(critic, "numpy") as file:
        weights, facts = file.get_tensor("weights"), json.loads(file.metadata()["critic"])
    half = 2**14

    def bag(pieces: Sequence[str], size: int) -> dict[int, float]:
        found: dict[int, float] = {}
        for piece in pieces:
            place = abs(murmurhash3_32(piece, seed=0)) % size
            found[place] = found.get(place, 0.0) + 1
        norm = math.sqrt(sum(v * v for v in found.values())) or 1.0
        return {k: v / norm for k, v in found.items()}

    def probability(text: str) -> float:
        words = re.findall(r"\b\w+\b", text.lower())
        pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
        letters = []
        for word in re.split(r"\s+", text.lower()):
            padded = f" {word} "
            for n in (3, 4):
                if len(padded) <= n:
                    letters.append(padded)
                    break
                letters += [padded[i : i + n] for i in range(len(padded) - n + 1)]
        score = sum(weights[k] * v for k, v in bag(words + pairs, half).items())
        score += sum(weights[half + k] * v for k, v in bag(letters, half).items()) + facts["bias"]
        apart = [f"{words[i]}|{words[j]}" for i in range(len(words)) for j in range(i + 1, len(words))]
        score += sum(weights[2 * half + k] * v for k, v in bag(apart, 2 * half).items())
        return 1 / (1 + math.exp(-(facts["slope"] * score + facts["offset"])))

    p = [probability(f"{r['head']} {schema[r['relation']]['phrase']} {r['tail']}") for r in rows]
    passed = [r for r in corpus if r["p_valid"] > threshold]
    return {
        "p": np.array(p),
        "kept": np.array([len(passed)]),
        "train": np.array([sum(r["split"] == "train" for r in passed)]),
    }


def passages(texts: Mapping[str, str], rows: Sequence[Mapping[str, Any]], topics: Sequence[str], triples: Sequence[tuple[str, str, str]]) -> dict[str, Array]:  # fmt: skip
    """Where each answer stands in its text; how many sentences state each triple; breadth-first search between the topics."""
    spans = []
    for row in rows:
        text = texts[row["name"]]
        start = text.index(row["answer"].rstrip("."))
        spans += [
            start,
            start + len(row["answer"].rstrip(".")) + (text[start:].find(".") == len(row["answer"].rstrip("."))),
        ]
    stated = {("collagen", "is a", "protein"): 2}  # "Collagen is a protein", and "Collagens" is the same name
    sure = [1 - 0.5 ** stated.get((a.lower(), r, b.lower()), 1) for a, r, b in triples]
    nodes = {n for a, _, b in triples for n in (a, b)}
    near: dict[str, set[str]] = {n: set() for n in nodes}
    for a, _, b in triples:
        near[a].add(b)
        near[b].add(a)
    front, steps, seen = {topics[0]}, 1, {topics[0]}
    goal = next(n for n in nodes if n.lower() == topics[1].lower())
    while goal not in front:
        front = {m for n in front for m in near[n]} - seen
        seen |= front
        steps += 1
    return {
        "spans": np.array(spans),
        "confidence": np.array(sure),
        "nodes": np.array([len(nodes)]),
        "path": np.array([steps]),
    }


def papers(rows: Sequence[Mapping[str, Any]], links: Sequence[tuple[str, str, str]], domains: Mapping[str, Sequence[str]], count: int, decay: float, steps: int) -> dict[str, Array]:  # fmt: skip
    """Dense powers of the citation matrix, one window at a time."""
    names = sorted({c for r in rows for c in r["concepts"]})
    m = np.array([[float(c in r["concepts"]) for c in names] for r in rows])
    place = {r["id"]: i for i, r in enumerate(rows)}
    relevance, lift, force = {}, {}, []
    for k, first in enumerate(range(0, len(rows) - count + 1, count)):
        members = list(range(first, first + count))
        years = [rows[i]["year"] for i in members]
        window, last = f"{min(years)}-{max(years)} ({k + 1})", max(years)
        alive = [float(r["year"] <= last) for r in rows]
        a = np.zeros((len(rows), len(rows)))
        for i, r in enumerate(rows):
            for ref in r["references"]:
                if alive[i] and alive[place[ref]]:
                    a[i, place[ref]] = a[place[ref], i] = 1
        w = np.array([row / row.sum() if row.sum() else row for row in a])
        carried = m * np.array(alive)[:, None]
        visits = sum((1 - decay) * decay**n * np.linalg.matrix_power(w, n) @ carried for n in range(1, steps + 1))
        mass = sum((1 - decay) * decay**n * np.linalg.matrix_power(w, n).sum(axis=1) for n in range(1, steps + 1))
        r = np.zeros((len(names), len(names)))
        up = np.zeros_like(r)
        for x in range(len(names)):
            own = [i for i in members if m[i, x]]
            if own:
                r[x] = np.mean([visits[i] for i in own], axis=0)
                share = carried.sum(axis=0) / sum(alive)
                up[x] = sum(visits[i] for i in own) / sum(mass[i] for i in own) / share
        relevance[window], s_up = r, np.sqrt(up * up.T)
        lift[window] = s_up
        s, here = np.sqrt(r * r.T), m[members].sum(axis=0) > 0
        groups = {
            d: [i for i, n in enumerate(names) if here[i] and n in [c.rstrip("s") for c in own]]
            for d, own in domains.items()
        }
        cross = [s[i, j] for i in groups["technique"] for j in groups["science"]]
        inner = [s[i, j] for i in groups["science"] for j in groups["science"] if i != j]
        force.append((float(np.mean(cross)), float(np.mean(inner))))
    at = {n: i for i, n in enumerate(names)}
    return {"relevance": np.array([relevance[t][at[x], at[y]] for x, y, t in links]), "lift": np.array([lift[t][at[x], at[y]] for x, y, t in links]),
            "cross": np.array([c for c, _ in force]), "inner": np.array([i for _, i in force])}  # fmt: skip
