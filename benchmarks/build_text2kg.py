"""Text2KGBench (tekgen half): extraction without a language model, ten ontologies, against naive baselines.

Run: ``python -m benchmarks.build_text2kg [ONTOLOGY ...]``; INTERFUSE_SHARED_DATA names the folder with ``text2kgbench-tekgen``.
Figures are the benchmark's own: per sentence precision, recall and F1 over triples in lower case without blanks and underscores, averaged
over sentences that have gold triples or predictions; ontology conformance is the share of triples whose relation is the ontology's.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import save
from interfuse.kit.distant import Example, _of_sentence, _read, examples_of, train
from interfuse.kit.language import Parser, Sentence, open_parser
from interfuse.kit.mentions import find_mentions
from interfuse.kit.open_relations import open_relations
from tests.shared_data import PLACE

Triple = tuple[str, str, str]
DATA = PLACE / "text2kgbench-tekgen"
#: the method's usual probability from which a relation is given
THRESHOLD = 0.1
#: sentences of an ontology's test set that are measured at most (a fixed sample)
MOST = 150


def normal(text: str) -> str:
    return re.sub(r"(_|\s+)", "", text).lower()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def as_written(label: str, relation: str) -> str:
    """A year as the benchmark writes dates."""
    year = re.fullmatch(r"\d{4}", label)
    return f"01 January {label}" if year and re.search(r"date|inception|time", relation) else label


def scored(predicted: list[list[Triple]], rows: list[dict[str, Any]], relations: set[str]) -> dict[str, Any]:
    """Macro figures with 95 % bootstrap intervals over sentences, micro figures, conformance."""
    per: list[tuple[float, float, float]] = []
    right = given = wanted = conform = 0
    for triples, row in zip(predicted, rows, strict=True):
        ours = {tuple(map(normal, t)) for t in triples}
        gold = {(normal(t["sub"]), normal(t["rel"]), normal(t["obj"])) for t in row["triples"]}
        conform += sum(t[1] in relations for t in ours)
        given, wanted, right = given + len(ours), wanted + len(gold), right + len(ours & gold)
        if gold:
            p, r = (len(ours & gold) / len(ours) if ours else 0.0), len(ours & gold) / len(gold)
            per.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    values = np.array(per)
    rng = np.random.Generator(np.random.Philox(7))
    draws = np.stack([values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(1000)])
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    micro_p, micro_r = right / max(given, 1), right / max(wanted, 1)
    return {
        "sentences": len(per), **{n: {"value": values[:, i].mean(), "low": low[i], "high": high[i]} for i, n in enumerate(("precision", "recall", "f1"))},
        "micro": {"precision": micro_p, "recall": micro_r, "f1": 2 * micro_p * micro_r / max(micro_p + micro_r, 1e-9)},
        "predicted": given, "gold": wanted, "conformance": conform / max(given, 1),
    }  # fmt: skip


def naive(parsed: list[list[Sentence]], examples: list[Example], relations: list[str]) -> list[list[Triple]]:
    """Named entities and noun chunks: the first is the subject, each other one an object; the relation is the one whose words are in
    the sentence, else the commonest in training for objects of that kind of name."""
    common = Counter(r for e in examples for _, r, _ in e.triples)
    usual = {"date": next((r for r, _ in common.most_common() if re.search(r"date|inception|time", r)), "")}
    fallback = common.most_common(1)[0][0]
    made = []
    for sentences in parsed:
        out: list[Triple] = []
        for s in sentences:
            mentions = [m for m in find_mentions(s) if m.source in ("name", "phrase")]
            low = " ".join(w.lemma.casefold() for w in s.words)
            named = [r for r in relations if all(w in low for w in r.casefold().split())]
            for m in mentions[1:]:
                relation = named[0] if named else usual.get(m.kind) or fallback
                out.append((mentions[0].label, relation, as_written(m.label, relation)))
        made.append(out)
    return made


def open_triples(parsed: list[list[Sentence]], words: dict[str, tuple[str, ...]]) -> list[list[Triple]]:
    """The rules of ``build offline`` with the ontology's names and paraphrases."""
    made = []
    for sentences in parsed:
        out: list[Triple] = []
        for s in sentences:
            for f in open_relations(s, find_mentions(s)):
                out += [(f.subject.label, r, as_written(f.object.label, r)) for r in words.get(f.predicate, ())]
        made.append(out)
    return made


def words_of(relations: list[str]) -> dict[str, tuple[str, ...]]:
    from interfuse.build.reading import PARAPHRASES

    found: dict[str, list[str]] = {}
    for r in relations:
        for word in (r.casefold(), *PARAPHRASES.get(r.casefold().strip(), ())):
            found.setdefault(word, []).append(r)
            found.setdefault(f"{word} of", []).append(r)
    return {k: tuple(v) for k, v in found.items()}


def learnt(extractor: Any, read: Any) -> list[list[Triple]]:
    """What the trained extractor finds in sentences that were parsed already."""
    found = [[x for r in one for x in _of_sentence(extractor, r, THRESHOLD)] for one in read]
    return [[(x.subject.label, x.name, as_written(x.label, x.name)) for x in one] for one in found]


def part(name: str, parser: Parser) -> dict[str, Any]:
    """One ontology: what every system predicts for its sentences, and the seconds of processor time."""
    relations = sorted(
        {r["label"].strip() for r in json.loads((DATA / f"ontologies/{name}_ontology.json").read_text())["relations"]}
    )
    test, unseen = (
        rows_of(DATA / f"{kind}ground_truth/ont_{name}_{kind}ground_truth.jsonl") for kind in ("", "unseen_")
    )
    rng = np.random.Generator(np.random.Philox(5))
    test = [test[i] for i in sorted(rng.permutation(len(test))[:MOST].tolist())]
    examples = examples_of(rows_of(DATA / f"train/ont_{name}_train.jsonl"))
    began = time.process_time()
    extractor = train(examples, parser, folds=0)
    trained = time.process_time() - began
    began = time.process_time()
    read = _read(parser, [r["sent"] for r in test], extractor.table)
    ours = learnt(extractor, read)
    seconds = time.process_time() - began
    parsed = [[r.sentence for r in one] for one in read]
    systems = {
        "learnt": ours,
        "rules": open_triples(parsed, words_of(relations)),
        "naive": naive(parsed, examples, relations),
    }
    return {
        "name": name, "relations": relations, "test": test, "unseen": unseen, "train sentences": len(examples), "trained": trained, "seconds": seconds,
        "tokens": sum(len(s.words) for one in parsed for s in one), "systems": systems, "parser": parser.name,
        "checked": (DATA / f"manually_verified/selected_ont_{name}.txt").read_text().split(),
        "learnt unseen": learnt(extractor, _read(parser, [r["sent"] for r in unseen], extractor.table)),
    }  # fmt: skip


def main() -> None:
    """Without arguments all ontologies; ``--into FOLDER NAME`` keeps one part, ``--from FOLDER`` puts parts together."""
    names = sorted(
        (f.name.replace("_ontology.json", "") for f in (DATA / "ontologies").glob("*.json")),
        key=lambda n: int(n.split("_")[0]),
    )
    words = sys.argv[1:]
    if words[:1] == ["--from"]:
        parts = [json.loads((Path(words[1]) / f"{n}.json").read_text()) for n in names]
    else:
        parser = open_parser("auto")
        list(parser.parse(["A sentence to start with."]))
        if words[:1] == ["--into"]:
            (Path(words[1]) / f"{words[2]}.json").write_text(json.dumps(part(words[2], parser)))
            return
        parts = [part(n, parser) for n in names]
    pooled: dict[str, tuple[list[Any], list[Any]]] = {}
    tables: dict[str, Any] = {}
    allowed: set[str] = set()
    for p in parts:
        known = {normal(r) for r in p["relations"]}
        allowed |= known
        row: dict[str, Any] = {"train sentences": p["train sentences"], "threshold": THRESHOLD}
        for system, predicted in p["systems"].items():
            row[system] = scored(predicted, p["test"], known)
            for key in ("all", "hand-checked"):
                both = pooled.setdefault(f"{system}, {key}", ([], []))
                keep = [i for i, r in enumerate(p["test"]) if key == "all" or r["id"] in p["checked"]]
                both[0].extend(predicted[i] for i in keep)
                both[1].extend(p["test"][i] for i in keep)
        both = pooled.setdefault("learnt, unseen", ([], []))
        both[0].extend(p["learnt unseen"])
        both[1].extend(p["unseen"])
        tables[p["name"]] = row
        print(p["name"], {s: round(row[s]["f1"]["value"], 3) for s in p["systems"]}, flush=True)
    overall = {key: scored(p, r, allowed) for key, (p, r) in pooled.items()}
    save("build_text2kg", {
        "what": f"Text2KGBench tekgen, at most {MOST} test sentences of each ontology, macro over sentences with gold triples; year-only dates are "
        "written as the benchmark writes them",
        "parser": parts[0]["parser"], "overall": overall, "ontologies": tables, "train seconds of processor time": sum(p["trained"] for p in parts),
        "tokens": sum(p["tokens"] for p in parts),
        "tokens per second of processor time, parsing and extraction": sum(p["tokens"] for p in parts) / sum(p["seconds"] for p in parts),
    })  # fmt: skip
    for key, row in overall.items():
        print(
            key,
            {k: round(row[k]["value"], 3) for k in ("precision", "recall", "f1")},
            "conformance",
            round(row["conformance"], 3),
        )


if __name__ == "__main__":
    main()
