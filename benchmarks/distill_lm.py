"""Fusing language models by training, and federated clients: the experiments of the cards ``fusechat``, ``infigfusion``, ``knfu``.

``real``: Gemma-3-270M is a source for SmolLM2-135M (other vocabulary), on short claims with explanations (CREAK), of which it trains its
last ten layers; held-out loss and accuracy against SFT on the same texts. ``terms``: the terms of InfiGFusion one by one, on few texts of that
kind; five seeds. ``tiny``: three tiny models with tokenizers and skills of their own are fused into a pivot, pairwise and merged, or at once;
five seeds. ``digits`` and ``texts``: KnFu and its baselines under Dirichlet splits; five seeds. ``speed``: ratios of one run. Everything is
scaled-down; seeds share splits between conditions, and comparisons are paired.

    python benchmarks/distill_lm.py [real] [terms] [tiny] [digits] [texts] [speed] [SEED ...]
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from record import RESULTS, save
from seeds import each_seed

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.models import Model, build, open_model
from interfuse.data.tables import from_dataset
from interfuse.kit.encode import Encoder, forward
from interfuse.kit.resample import paired_bootstrap, sign_flip

PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def compared(baseline: Sequence[float], candidate: Sequence[float], what: str = "seeds") -> dict[str, Any]:
    """The mean paired difference, candidate minus baseline, with a 95 % bootstrap interval and a sign-flip p."""
    rng = np.random.Generator(np.random.Philox(7))
    if len(baseline) < 2:
        return {"difference": float(np.mean(np.subtract(candidate, baseline))), "n": len(baseline), "of": what}
    found = paired_bootstrap(baseline, candidate, rng)
    out = {"difference": found.estimate, "low": found.low, "high": found.high, "n": found.n, "of": what}
    return out | ({"p": sign_flip(baseline, candidate, rng).p} if len(baseline) <= 30 else {})


def judged(model: Model, table: Dataset, choices: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Per row: nats per byte of the response, whether every token of it is the most likely one, and whether the right one of
    ``choices`` (responses that begin with it) is likelier than the others."""
    ctx = Ctx()
    module = build(model, ctx).eval()
    losses, whole, right = [], [], []
    encoder = Encoder(model, from_dataset(table, "held out"), 512)
    rows = encoder.token_rows
    tokenizer = encoder.tokenizer
    first = [tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in choices]
    assert len(set(first)) == len(first), "the choices begin with different tokens"
    with torch.inference_mode():
        order = sorted(range(len(rows)), key=lambda r: len(rows.readings[r]))
        for start in range(0, len(order), 8):
            part = order[start : start + 8]
            batch = rows.batch(part)
            logs = forward(module, model, batch).float().log_softmax(-1)
            for line, row in enumerate(part):
                at = torch.from_numpy(rows.counted[row])
                following = batch["input_ids"][line, at + 1]
                said = logs[line, at]
                size = len(table[row]["response"].encode())
                losses.append(-float(said.gather(1, following[:, None]).sum()) / size)
                whole.append(bool((said.argmax(-1) == following).all()))
                if choices:
                    best = int(said[0, torch.tensor(first)].argmax())
                    right.append(table[row]["response"].startswith(choices[best]))
        back = np.argsort(np.array(order))
    found = {"loss": np.array(losses)[back], "exact": np.array(whole, dtype=float)[back]}
    return found | ({"accuracy": np.array(right, dtype=float)[back]} if choices else {})


# ------------------------------------------------------------------------------------------------ two real models


LAST = 10  # layers of SmolLM2's thirty that are trained
REAL: dict[str, Any] = {"texts": 1000, "held out": 400, "longest": 130, "layers trained": LAST, "epochs": 1, "batch_size": 8, "lr": 1e-4, "weight_decay": 0.0,
                        "warmup": 0.1, "max_length": 96, "dtype": "bfloat16"}  # fmt: skip
CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("sft", {}), "FuseChat": ("fusechat", {"lm_weight": 0.9, "top_k": 10}), "InfiGFusion": ("infigfusion", {"top_k": 10}),
}  # fmt: skip


#: InfiGFusion's terms one by one, on few texts of other seeds
TERMS = {**REAL, "texts": 120, "held out": 120}
ONE_BY_ONE: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("sft", {}), "ULD alone": ("infigfusion", {"top_k": 10, "gld": 0.0}), "graph alone": ("infigfusion", {"top_k": 10, "uld": 0.0}),
    "graph alone, pulling as much as the cross entropy": ("infigfusion", {"top_k": 10, "uld": 0.0, "gld_share": 1.0}),
    "both": ("infigfusion", {"top_k": 10}),
}  # fmt: skip


def claims(name: str) -> list[dict[str, str]]:
    """CREAK's claims with verdict and explanation, those that are short."""
    rows = [json.loads(line) for line in (PLACE / "creak" / name).read_text().splitlines()]
    made = [
        {
            "prompt": f"{r['sentence']}\nTrue or false?",
            "response": f" {r['label'].capitalize()}. {r['explanation'].strip()}",
        }
        for r in rows
    ]
    return [r for r in made if len(r["prompt"] + r["response"]) <= REAL["longest"]]


def with_frozen_start(folder: Path) -> Model:
    """A language model of which the last layers alone are trained; embeddings and the layers before them stay as they are."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    for layer in module.model.layers[-LAST:]:
        layer.requires_grad_(True)
    module.model.norm.requires_grad_(True)
    return replace(open_model(Source(module, name="SmolLM2-135M-Instruct"), Ctx()), tokenizer=folder)


def real(seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
    """SmolLM2 is the pivot, Gemma the source: one pass over the same texts for every condition, other texts for every seed."""
    each_seed("distill_lm_real", REAL, partial(one_real, REAL, CONDITIONS), partial(write_real, CONDITIONS), seeds)


def terms(seeds: Sequence[int] = (10, 11, 12, 13, 14)) -> None:
    """Which term of InfiGFusion does what, on the real pair."""
    each_seed("distill_lm_terms", TERMS, partial(one_real, TERMS, ONE_BY_ONE), partial(write_real, ONE_BY_ONE), seeds)


def one_real(given: dict[str, Any], conditions: dict[str, tuple[str, dict[str, Any]]], seed: int) -> dict[str, Any]:
    from real_models import gemma, smollm2

    pool = claims("train.jsonl")
    picked = np.random.Generator(np.random.Philox(3000 + seed)).permutation(len(pool))[: given["texts"]]
    table, test = (
        Dataset.from_list([pool[i] for i in picked]),
        Dataset.from_list(claims("dev.jsonl")[: given["held out"]]),
    )
    student, choices = with_frozen_start(smollm2()), (" True", " False")
    settings = {k: given[k] for k in ("epochs", "batch_size", "lr", "weight_decay", "warmup", "max_length")}
    ctx = Ctx(
        seed=seed, dtype=given["dtype"], cache=Path(tempfile.gettempdir()) / "interfuse-distill-lm"
    )  # what was asked is kept
    found: dict[str, dict[str, np.ndarray]] = {}
    facts, seconds = {}, {}
    if seed == 0:
        found |= {
            "pivot": judged(student, test, choices),
            "source": judged(open_model(Source(str(gemma())), ctx), test, choices),
        }
    for label, (method, more) in conditions.items():
        with tempfile.TemporaryDirectory(prefix="interfuse-lm-") as name:
            began, out = time.perf_counter(), Path(name) / method
            taught = {} if method == "sft" else {"teacher": [str(gemma())]}
            apply(
                "distill/" + method,
                out=out,
                ctx=ctx,
                student=student,
                data=table,
                teacher_cache="disk",
                **settings,
                **more,
                **taught,
            )
            seconds[label] = time.perf_counter() - began
            facts[label] = slim(json.loads((out / "interfuse.json").read_text())["facts"])
            found[label] = judged(open_model(Source(str(out)), ctx), test, choices)
        print(
            seed,
            label,
            {k: round(float(found[label][k].mean()), 4) for k in ("loss", "accuracy")},
            round(seconds[label]),
            "s",
            flush=True,
        )
    return {
        "seed": seed, "seconds of training": seconds, "facts": facts,
        "found": {c: {k: float(f[k].mean()) for k in ("loss", "accuracy")} for c, f in found.items()},
        "each text": {c: {"loss": " ".join(f"{x:.4f}" for x in f["loss"]), "right": "".join(str(int(x)) for x in f["accuracy"])}
                      for c, f in found.items()},
    }  # fmt: skip


def write_real(conditions: dict[str, Any], runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    def each(label: str, what: str) -> np.ndarray:
        """[seeds, texts]"""
        texts = [r["each text"][label][what] for r in runs]
        return np.array([[float(x) for x in (t.split() if what == "loss" else t)] for t in texts])

    against: dict[str, Any] = {}
    for label in (c for c in conditions if c != "SFT"):
        against[label] = {}
        for what in ("loss", "right"):
            one, base = each(label, what), each("SFT", what)
            against[label][what] = {
                "over held-out texts, mean of the seeds": compared(
                    base.mean(axis=0), one.mean(axis=0), "held-out texts"
                ),
                "over seeds, mean of the texts": compared(base.mean(axis=1), one.mean(axis=1)),
                "per seed": [float(x) for x in (one - base).mean(axis=1)],
            }
    return {
        "what": "SmolLM2-135M-Instruct learns short CREAK claims with explanations, its last layers alone; Gemma-3-270M is the source; loss in nats "
                "per byte of the held-out responses, accuracy of True against False",
        "mean": {c: {k: float(np.mean([r["found"][c][k] for r in runs if c in r["found"]])) for k in ("loss", "accuracy")}
                 for c in ("pivot", "source", *conditions) if any(c in r["found"] for r in runs)},
        "against SFT": against,
    }  # fmt: skip


def slim(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v
        for k, v in facts.items()
        if k in ("fusion", "teachers", "teacher caches", "weight of the graph term", "last_epoch")
    }


# ------------------------------------------------------------------------------------------------ tiny models

LETTERS = "abcdefghij"


def skill(name: str, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Prompts and answers: ``copy``, ``sort`` and ``reverse`` of six letters, or ``add``: a sum of two numbers below 30."""
    rows = []
    for _ in range(count):
        if name == "add":
            a, b = rng.integers(30, size=2)
            rows.append((f"add {a} {b} =", f" {a + b}"))
        else:
            word = "".join(rng.choice(list(LETTERS), size=6))
            answer = {"copy": word, "sort": "".join(sorted(word)), "reverse": word[::-1]}[name]
            rows.append((f"{name} {word} =", f" {answer}"))
    return rows


SKILLS = ("sort", "reverse", "add")
#: rows and passes of the pivot, of each source, and of the fusion
TINY: dict[str, Any] = {
    "pivot": [300, 12],
    "source": [4000, 10],
    "fusion": [300, 8],
    "lm weight": 0.9,
    "held out": 150,
    "rates": [3e-3, 1e-3],
    "graph term": "auto, a tenth of the pull on the logits",
}


def tables(rows: Sequence[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict({"prompt": [p for p, _ in rows], "response": [r for _, r in rows]})


def reader(folder: Path, merges: int, seed: int) -> Path:
    """A byte-level tokenizer with so many merges, trained on texts of its own: vocabularies differ in size and content."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = np.random.Generator(np.random.Philox(seed))
    corpus = [p + r for name in ("copy", *SKILLS) for p, r in skill(name, rng, 400)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    alphabet = sorted({c for text in corpus for c in text.replace(" ", "Ġ")})
    special = ["<pad>", "<s>", "</s>"]
    core.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=len(alphabet) + 3 + merges, special_tokens=special, initial_alphabet=alphabet))  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def llama(tokenizer: Path, width: int = 64, layers: int = 2) -> dict[str, Any]:
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(tokenizer))
    config = {
        "model_type": "llama", "vocab_size": size, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    return {"config": config, "task": "causal-lm", "tokenizer": str(tokenizer)}


def tiny(seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
    """Specialists of other vocabularies into one pivot that knows a little of everything."""
    each_seed("distill_lm_tiny", TINY, one_tiny, write_tiny, seeds)


def one_tiny(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="interfuse-tiny-") as name:
        return tiny_in(seed, Path(name))


def tiny_in(seed: int, folder: Path) -> dict[str, Any]:
    scores: dict[str, dict[str, float]] = {}
    coverage: list[dict[str, Any]] = []
    rng = np.random.Generator(np.random.Philox(1000 + seed))
    ctx = Ctx(seed=seed, cache=folder / "cache")
    common: dict[str, Any] = {
        "ctx": ctx,
        "batch_size": 64,
        "lr": TINY["rates"][0],
        "max_length": 48,
        "teacher_cache": "disk",
    }
    held = {s: tables(skill(s, rng, TINY["held out"])) for s in SKILLS}
    seen = {p for t in held.values() for p in t["prompt"]}

    def fresh(name: str, count: int) -> list[tuple[str, str]]:
        return [row for row in skill(name, rng, count) if row[0] not in seen]

    pivot_reads = reader(folder / "pivot-reads", 0, seed)
    mix = [row for s in SKILLS for row in fresh(s, TINY["pivot"][0])]
    pivot = apply(
        "distill/sft",
        student=llama(pivot_reads),
        data=tables(mix),
        epochs=TINY["pivot"][1],
        out=folder / "pivot",
        **common,
    )
    sources = []
    for number, s in enumerate(SKILLS):
        start = llama(reader(folder / f"reads-{s}", 12 + 10 * number, seed + number + 1), 96)
        rows = fresh(s, TINY["source"][0])
        sources.append(
            apply(
                "distill/sft",
                student=start,
                data=tables(rows),
                epochs=TINY["source"][1],
                out=folder / f"source-{s}",
                **common,
            )
        )
    transfer = tables([row for s in SKILLS for row in fresh(s, TINY["fusion"][0])])
    train = {
        **common,
        "lr": TINY["rates"][1],
        "epochs": TINY["fusion"][1],
        "student": str(pivot.path),
        "data": transfer,
    }
    folders = [str(s.path) for s in sources]
    fuse = {"lm_weight": TINY["lm weight"], "top_k": 10}
    made: dict[str, Any] = {"pivot": pivot}
    made["SFT"] = apply("distill/sft", out=folder / "sft", **train)
    made["at once"] = apply("distill/fusechat", teacher=folders, out=folder / "once", **train, **fuse)
    targets = []
    for s, path in zip(SKILLS, folders, strict=True):
        made[f"target {s}"] = apply("distill/fusechat", teacher=[path], out=folder / f"target-{s}", **train, **fuse)
        targets.append(str(made[f"target {s}"].path))
        facts = json.loads((folder / f"target-{s}" / "interfuse.json").read_text())["facts"]
        coverage.append(
            {
                "skill": s,
                **facts["fusion"]["texts won"],
                "map": facts["teachers"][0]["map"]["matched share"],
            }
        )
    for label, policy in (("target sort, exact map", "exact"), ("target sort, warped", "counted")):
        more = {"vocabulary": policy, "align": "edits" if "warped" in label else "bytes"}
        made[label] = apply(
            "distill/fusechat", teacher=[folders[0]], out=folder / label.replace(" ", "-"), **train, **fuse, **more
        )
    made["InfiGFusion at once"] = apply("distill/infigfusion", teacher=folders, out=folder / "graph", **train)
    made["ULD only"] = apply("distill/infigfusion", teacher=folders, gld=0.0, out=folder / "uldonly", **train)
    made["GLD only"] = apply("distill/infigfusion", teacher=folders, uld=0.0, out=folder / "gldonly", **train)
    base = str(pivot.path)
    merges: dict[str, tuple[str, dict[str, Any]]] = {
        "SCE": ("sce", {"select_topk": 1.0}), "SCE 0.1": ("sce", {"select_topk": 0.1}), "VaRM": ("varm", {}), "linear": ("linear", {}),
        "task arithmetic": ("task-arithmetic", {"scale": 1 / 3}), "TIES": ("ties", {"density": 0.5}),
        "DARE": ("dare-linear", {"density": 0.5, "weight": 1 / 3}),
    }  # fmt: skip
    for label, (method, more) in merges.items():
        given = {"models": targets, **({} if method == "linear" else {"base": base})}
        made[f"merged, {label}"] = apply(
            "merge/" + method, out=folder / f"m-{method}-{len(made)}", ctx=ctx, **given, **more
        )
    for label, model in made.items():
        row = {}
        for s in SKILLS:
            found = judged(open_model(Source({"model": str(model.path), "tokenizer": str(pivot_reads)}), ctx), held[s])
            row |= {f"{s} exact": float(found["exact"].mean()), f"{s} loss": float(found["loss"].mean())}
        row["exact"] = float(np.mean([row[f"{s} exact"] for s in SKILLS]))
        row["loss"] = float(np.mean([row[f"{s} loss"] for s in SKILLS]))
        scores[label] = row
    own = {s: judged(open_model(Source(path), ctx), held[s])["exact"] for s, path in zip(SKILLS, folders, strict=True)}
    scores["source on its own skill"] = {f"{s} exact": float(x.mean()) for s, x in own.items()}
    print(
        seed,
        {
            k: [round(v.get(m, 0.0), 3) for m in ("exact", *(f"{s} exact" for s in SKILLS), "loss")]
            for k, v in scores.items()
        },
        flush=True,
    )
    return {"seed": seed, "scores": scores, "coverage": coverage}


def write_tiny(runs: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    scores = {label: [r["scores"][label] for r in runs] for label in runs[0]["scores"]}

    def every(label: str, what: str = "exact") -> list[float]:
        return [row[what] for row in scores[label]]

    pairs: list[tuple[str, str, str]] = [
        ("merged, SCE", "SFT", "fuse then merge against SFT"), ("merged, SCE", "at once", "fuse then merge against fuse at once"),
        ("at once", "SFT", "fuse at once against SFT"), ("merged, SCE", "merged, linear", "SCE against linear"),
        ("merged, SCE", "merged, VaRM", "SCE against VaRM"), ("merged, SCE", "merged, TIES", "SCE against TIES"),
        ("merged, SCE", "merged, DARE", "SCE against DARE"), ("merged, SCE", "merged, task arithmetic", "SCE against task arithmetic"),
        ("target sort", "target sort, exact map", "counted map against exact map"), ("target sort", "SFT", "one source against SFT"),
        ("InfiGFusion at once", "SFT", "InfiGFusion against SFT"), ("InfiGFusion at once", "ULD only", "with the graph term against ULD alone"),
        ("GLD only", "SFT", "the graph term alone against SFT"),
    ]  # fmt: skip
    comparisons: dict[str, Any] = {}
    if len(runs) > 1:
        best = [max(scores[f"target {s}"][n]["exact"] for s in SKILLS) for n in range(len(runs))]
        comparisons = {what: {m: compared(every(b, m), every(a, m)) for m in ("exact", "loss")} for a, b, what in pairs}
        comparisons["fuse then merge against the best target"] = {"exact": compared(best, every("merged, SCE"))}
        for s in SKILLS:
            key = f"{s} exact"
            comparisons[f"with the graph term against SFT, {s}"] = {
                "exact": compared(every("SFT", key), every("InfiGFusion at once", key))
            }
            comparisons[f"fuse then merge against SFT, {s}"] = {
                "exact": compared(every("SFT", key), every("merged, SCE", key))
            }
    return {
        "what": "2-layer models of width 64 (pivot) and 96 (sources, byte-level BPE of other sizes): share of answers right in every token, "
                "mean of three skills, and nats per byte",
        "mean": {k: {m: float(np.mean([r[m] for r in rows])) for m in rows[0]} for k, rows in scores.items()},
        "per seed, exact": {k: every(k) for k, rows in scores.items() if "exact" in rows[0]},
        "comparisons": comparisons,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ clients


class Perceptron(torch.nn.Module):
    """64 pixels, 48 units, ten classes; every seed starts from weights of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x)
        return found


def one_fleet(method: str, folder: Path, **given: Any) -> tuple[float, float]:
    """ALMA and the mean accuracy on all clients' tests after the last round."""
    out = folder / "fleet"
    apply("distill/knfu", aggregate=method, out=out, force=True, **given)
    facts = json.loads((out / "interfuse.json").read_text())["facts"]
    return facts["alma"], facts["accuracy on all clients' tests"]


def fleets(name: str, what: str, cells: dict[str, dict[str, Any]], methods: Sequence[str], given: Callable[[int], dict[str, Any]], seeds: Sequence[int]) -> None:  # fmt: skip
    """Every cell x method x seed that ``results/<name>.json`` does not hold yet; the file is written after each method of a cell."""
    file = RESULTS / f"{name}.json"
    found: dict[str, dict[str, list[float]]] = {}
    if file.is_file():
        found = {cell: row["per seed"] for cell, row in json.loads(file.read_text())["cells"].items()}
    for cell, settings in cells.items():
        for method in methods:
            known = found.setdefault(cell, {}).setdefault(method, [])
            for seed in seeds[len(known) :]:
                with tempfile.TemporaryDirectory(prefix="interfuse-fleet-") as place:
                    alma, every = one_fleet(method, Path(place), seed=seed, **given(seed), **settings)
                known.append(alma)
                found[cell].setdefault(f"{method}, all tests", []).append(every)
            write_fleet(name, what, found)
        print(cell, {m: round(float(np.mean(v)), 3) for m, v in found[cell].items()}, flush=True)


def digits(seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
    """Clients on scikit-learn's digits: concentration x private size x who teaches."""
    cells: dict[str, dict[str, Any]] = {
        f"alpha {alpha:g}, {size} private": {"dirichlet": alpha, "private": size, "held": held, "clients": 10}
        for alpha in (0.1, 1.0, 10.0) for size, held in ((20, 0.5), (120, 1 / 7))
    }  # fmt: skip
    cells |= {
        f"alpha {alpha:g}, 240 private, five clients": {"dirichlet": alpha, "private": 240, "held": 1 / 7, "clients": 5}
        for alpha in (0.05, 0.1)
    }

    def given(seed: int) -> dict[str, Any]:
        return {"student": Perceptron(seed), "data": {"data": "sklearn:digits"}, "epochs": 10, "local_epochs": 5, "tune_epochs": 2, "lr": 3e-3,
                "schedule": "constant", "warmup": 0.0}  # fmt: skip

    what = "scikit-learn's digits, ten clients where nothing else is said (MLP of 48 units), 5 rounds of 5 local and 2 tuning epochs; ALMA"
    fleets("distill_knfu_digits", what, cells, ("local", "fedmd", "knfu", "fedavg", "feddf"), given, seeds)


def texts(seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
    """Five clients with tokenizers of their own on seven intents of banking77: only predictions travel."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with (PLACE / "banking77" / "train.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = sorted({r["category"] for r in rows})[:7]
    rows = [r for r in rows if r["category"] in names]
    table = Dataset.from_dict({"text": [r["text"] for r in rows], "label": [r["category"] for r in rows]})
    with tempfile.TemporaryDirectory(prefix="interfuse-texts-") as name:
        folder, readers = Path(name), []
        for number, size in enumerate((300, 500, 800)):
            core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
            core.train_from_iterator(
                table["text"], trainers.WordPieceTrainer(vocab_size=size, special_tokens=["[PAD]", "[UNK]", "[CLS]"])
            )
            place = folder / f"reader-{number}"
            PreTrainedTokenizerFast(
                tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
            ).save_pretrained(place)
            bert = {"model_type": "bert", "vocab_size": core.get_vocab_size(), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "num_labels": len(names)}  # fmt: skip
            readers.append({"config": bert, "task": "text-classification", "tokenizer": str(place)})
        cells = {f"alpha {alpha:g}": {"dirichlet": alpha} for alpha in (0.1, 1.0, 10.0)}

        def given(seed: int) -> dict[str, Any]:
            return {"student": readers[0], "teacher": readers[1:], "data": table, "clients": 6, "private": 60, "held": 0.25, "epochs": 6,
                    "local_epochs": 5, "tune_epochs": 2, "lr": 3e-3, "batch_size": 32, "schedule": "constant", "warmup": 0.0, "max_length": 48}  # fmt: skip

        what = "seven intents of banking77, six clients with three tokenizers (BERT of one layer, width 32), 3 rounds; ALMA"
        fleets("distill_knfu_texts", what, cells, ("local", "fedmd", "knfu"), given, seeds)


def write_fleet(name: str, what: str, found: dict[str, dict[str, list[float]]]) -> None:
    cells = {}
    for cell, by in found.items():
        pairs = [(a, b) for a, b in ((b, "knfu") for b in ("local", "fedmd", "fedavg", "feddf")) if a in by and b in by]
        cells[cell] = {
            "mean": {m: float(np.mean(v)) for m, v in by.items()},
            "per seed": by,
            "knfu against": {a: compared(by[a], by[b]) for a, b in pairs},
        }
    save(name, {"what": what, "seeds": max(len(v) for by in found.values() for v in by.values()), "cells": cells})


# ------------------------------------------------------------------------------------------------ speed


def timed(work: Callable[[], Any], times: int = 7) -> float:
    work()
    out = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        out.append(time.perf_counter() - began)
    return float(np.median(out))


def speed() -> None:
    """Ratios of one run: the cached step and the graph term against a plain step of SmolLM2; alignment of real texts."""
    from real_models import gemma, smollm2
    from transformers import AutoTokenizer

    from interfuse.kit.graph_logits import Kept, gld_loss
    from interfuse.kit.lexicon import lexicon
    from interfuse.kit.sparse_losses import sparse_cross_entropy, token_cross_entropy
    from interfuse.kit.token_align import align, align_by_edits, read
    from interfuse.kit.token_map import vocabulary_map

    torch.set_num_threads(1)
    ctx = Ctx()
    module = build(open_model(Source(str(smollm2())), ctx), ctx, train=True)
    g = torch.Generator().manual_seed(0)
    length, k, vocabulary = 512, 10, 49_152
    ids = torch.randint(vocabulary, (1, length), generator=g)
    labels = ids[:, 1:]
    kept = torch.randint(vocabulary, (1, length - 1, k), generator=g)
    logp = torch.rand(1, length - 1, k, generator=g).log_softmax(-1)
    theirs = Kept(torch.randint(262_144, (450, k), generator=g), 20 * torch.rand(450, k, generator=g))
    mask = torch.ones_like(labels, dtype=torch.bool)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)

    def step(kind: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = module(input_ids=ids).logits[:, :-1]
        loss = token_cross_entropy(logits, labels).mean()
        if kind == "cached":
            loss = 0.9 * loss + 0.1 * sparse_cross_entropy(logits, kept, logp, mask=mask).mean()
        if kind == "torch":
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()

    rows: dict[str, list[float]] = {"plain": [], "cached": [], "torch": []}
    for kind in rows:
        step(kind)
    for _ in range(5):  # turn by turn, so that a slower machine is slower for all
        for kind, out in rows.items():
            began = time.perf_counter()
            step(kind)
            out.append(time.perf_counter() - began)
    seconds = {kind: float(np.median(v)) for kind, v in rows.items()}
    logits = torch.randn(1, length - 1, vocabulary, generator=g, requires_grad=True)

    def graph() -> None:
        top = logits.topk(k, dim=-1)
        value = gld_loss(Kept(top.indices.flatten(0, 1), top.values.flatten(0, 1)), theirs, vocabulary, 262_144)
        value.backward()
        logits.grad = None

    seconds["graph term, forward and backward"] = timed(graph)
    a, b = AutoTokenizer.from_pretrained(smollm2()), AutoTokenizer.from_pretrained(gemma())
    la, lb = lexicon(a), lexicon(b)
    lines = [json.loads(row) for row in (PLACE / "creak" / "train.jsonl").read_text().splitlines()[:3000]]
    words = [
        " ".join(r["sentence"] + " " + r["explanation"] for r in lines[i : i + 6]) for i in range(0, len(lines), 6)
    ]
    mine, other = read(a, la, words), read(b, lb, words)
    tokens = sum(len(r) for r in mine)
    pairs = list(zip(mine, other, strict=True))
    whole = timed(lambda: [align(x, y) for x, y in zip(read(a, la, words), read(b, lb, words), strict=True)], 3)
    spans = timed(lambda: [align(x, y) for x, y in pairs], 3)
    warped = timed(lambda: [align_by_edits(x.ids, y.ids, la, lb) for x, y in pairs[:40]], 3)
    short = sum(len(x) for x, _ in pairs[:40])
    mapping = timed(lambda: vocabulary_map(lb, la), 1)
    report = [align(x, y).report() for x, y in pairs]
    save("distill_lm_speed", {
        "what": "SmolLM2-135M, one text of 512 tokens, float32, one thread; alignment of SmolLM2's tokens with Gemma's on CREAK texts",
        "seconds": seconds,
        "cached step / plain step": seconds["cached"] / seconds["plain"],
        "plain step / torch's own loss": seconds["plain"] / seconds["torch"],
        "graph term / plain step": seconds["graph term, forward and backward"] / seconds["plain"],
        "tokens": tokens,
        "tokens per second, aligned by bytes": tokens / spans,
        "tokens per second, read by both tokenizers and aligned": tokens / whole,
        "tokens per second, warped": short / warped,
        "seconds for the map of 262,144 to 49,152 tokens": mapping,
        "positions that agree": float(np.mean([r["synchronous"] for r in report])),
        "one to one": float(np.mean([r["one to one"] for r in report])),
    })  # fmt: skip
    print({k: round(v, 4) for k, v in seconds.items()}, tokens / spans, tokens / whole, short / warped)


if __name__ == "__main__":
    parts: dict[str, Callable[..., None]] = {
        "digits": digits,
        "texts": texts,
        "tiny": tiny,
        "speed": speed,
        "real": real,
        "terms": terms,
    }
    numbers = {"seeds": [int(w) for w in sys.argv[1:] if w.isdigit()]} if any(w.isdigit() for w in sys.argv) else {}
    read = {"texts": "banking77", "speed": "creak", "real": "creak", "terms": "creak"}
    for word in [w for w in sys.argv[1:] if not w.isdigit()] or list(parts):
        if word in read and not (PLACE / read[word]).is_dir():
            print(f"{word} skipped: {read[word]} is not here (INTERFUSE_SHARED_DATA names the folder that holds it)")
        else:
            parts[word](**numbers)
