"""Text2KGBench (tekgen half): extraction with and without a language model, ten ontologies, against a naive baseline.

Run: ``python -m benchmarks.build_text2kg``; INTERFUSE_SHARED_DATA names the folder with ``text2kgbench-tekgen``. With ``--into FOLDER NAME
[MODEL [SYSTEM ...]]`` one ontology's part is kept in a folder, and what a language model finds in some of its sentences is added
(``benchmarks/real_models.py`` makes small ones); ``--from FOLDER`` puts the parts together.
Figures are the benchmark's own: per sentence precision, recall and F1 over triples in lower case without blanks and underscores, averaged
over sentences that have gold triples or predictions; ontology conformance is the share of triples whose relation is the ontology's.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import interfuse
from benchmarks.record import save, shared
from interfuse.core.ctx import Ctx
from interfuse.data.graph import Graph
from interfuse.data.graph_files import read_documents
from interfuse.data.ontology import read_ontology
from interfuse.data.statements import Literal
from interfuse.kit.distant import Example, examples_of
from interfuse.kit.language import Parser, Sentence, open_parser
from interfuse.kit.mentions import MONTHS, find_mentions, iso_date
from tests.shared_data import PLACE

Triple = tuple[str, str, str]
DATA = PLACE / "text2kgbench-tekgen"
#: systems that ask a language model: method, what it is given, and sentences of an ontology's test set that it reads (the first
#: ones of a fixed order)
ASKED: dict[str, tuple[str, dict[str, Any], int]] = {
    "language model": ("lm_extract", {"max_tokens": 120, "tries": 1, "examples": 2}, 10),
    "language model, no examples": ("lm_extract", {"max_tokens": 120, "tries": 1}, 10),
    "hydra, repair": ("hydra", {"tries": 3, "contracts": "repair"}, 1),
    "hydra, drop": ("hydra", {"tries": 3, "contracts": "drop"}, 1),
}
#: sentences of an ontology's test set that are measured at most (a fixed sample)
MOST = 150


def normal(text: str) -> str:
    return re.sub(r"(_|\s+)", "", text).lower()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def as_written(label: str, relation: str) -> str:
    """A date as the benchmark writes dates: the first day where only a year or a month is said."""
    date = iso_date(label) if re.search(r"date|inception|time", relation) else ""
    if not date:
        return label
    year, month, day = [*date.split("-"), "01", "01"][:3]
    return f"{day} {MONTHS[int(month) - 1]} {year}"


def one_by_one(predicted: list[list[Triple]], rows: list[dict[str, Any]]) -> np.ndarray:
    """Precision, recall and F1 of every sentence with gold triples, [N, 3]."""
    per: list[tuple[float, float, float]] = []
    for triples, row in zip(predicted, rows, strict=True):
        ours = {tuple(map(normal, t)) for t in triples}
        gold = {(normal(t["sub"]), normal(t["rel"]), normal(t["obj"])) for t in row["triples"]}
        if gold:
            p, r = (len(ours & gold) / len(ours) if ours else 0.0), len(ours & gold) / len(gold)
            per.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    return np.array(per)


def drawn(values: np.ndarray) -> np.ndarray:
    """95 % bootstrap interval of the mean over the first axis, [2, ...]."""
    rng = np.random.Generator(np.random.Philox(7))
    draws = np.stack([values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(1000)])
    return np.asarray(np.percentile(draws, [2.5, 97.5], axis=0))


def difference(one: list[list[Triple]], other: list[list[Triple]], rows: list[dict[str, Any]]) -> dict[str, float]:
    """How much larger the F1 of one system is than another's on the same sentences."""
    change = one_by_one(one, rows)[:, 2] - one_by_one(other, rows)[:, 2]
    low, high = drawn(change)
    return {"value": float(change.mean()), "low": float(low), "high": float(high)}


def scored(predicted: list[list[Triple]], rows: list[dict[str, Any]], relations: set[str]) -> dict[str, Any]:
    """Macro figures with 95 % bootstrap intervals over sentences, micro figures, conformance."""
    right = given = wanted = conform = 0
    for triples, row in zip(predicted, rows, strict=True):
        ours = {tuple(map(normal, t)) for t in triples}
        gold = {(normal(t["sub"]), normal(t["rel"]), normal(t["obj"])) for t in row["triples"]}
        conform += sum(t[1] in relations for t in ours)
        given, wanted, right = given + len(ours), wanted + len(gold), right + len(ours & gold)
    values = one_by_one(predicted, rows)
    low, high = drawn(values)
    micro_p, micro_r = right / max(given, 1), right / max(wanted, 1)
    return {
        "sentences": len(values), **{n: {"value": values[:, i].mean(), "low": low[i], "high": high[i]} for i, n in enumerate(("precision", "recall", "f1"))},
        "micro": {"precision": micro_p, "recall": micro_r, "f1": 2 * micro_p * micro_r / max(micro_p + micro_r, 1e-9)},
        "predicted": given, "right": right, "gold": wanted, "conformance": conform / max(given, 1),
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


def as_triples(folder: Path, graph: Graph) -> dict[str, list[Triple]]:
    """Name of a document -> the triples that its sentences gave, as the benchmark writes them."""
    texts, ontology = read_documents(folder), read_ontology(folder / "ontology.ttl")
    found: dict[str, list[Triple]] = {}
    for s in graph:
        if s.predicate in ontology.properties or ":relation:" in s.predicate:
            relation = (
                ontology.label(s.predicate)
                if s.predicate in ontology.properties
                else s.predicate.rsplit(":", 1)[-1].replace("-", " ")
            )
            target = s.object.value if isinstance(s.object, Literal) else graph.label(s.object)
            for name in dict.fromkeys(texts[e.document][0] for e in s.evidence):
                found.setdefault(name, []).append((graph.label(s.subject), relation, as_written(target, relation)))
    return found


def built(method: str, name: str, rows: list[dict[str, Any]], cache: Path | None = None, **given: Any) -> tuple[list[list[Triple]], float, Any]:  # fmt: skip
    """What ``interfuse build METHOD`` finds with the ontology in documents of one sentence each, processor seconds, and its report."""
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        documents = {f"{i:05}.txt": r["sent"] for i, r in enumerate(rows)}
        graph = getattr(interfuse.build, method)(
            documents, ontology=str(DATA / f"ontologies/{name}_ontology.json"), out=Path(place) / "g", link=False,
            ctx=Ctx(cache=cache or Path(place) / "cache"), **{"contracts": "off", **given},
        )  # fmt: skip
        seconds = time.process_time() - began
        found = as_triples(Path(place) / "g", graph)
        report = json.loads((Path(place) / "g" / "interfuse.json").read_text())
    return [found.get(f"{i:05}.txt", []) for i in range(len(rows))], seconds, report


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
    train = DATA / f"train/ont_{name}_train.jsonl"
    parsed = list(parser.parse([r["sent"] for r in test]))
    systems: dict[str, Any] = {"naive": naive(parsed, examples_of(rows_of(train)), relations)}
    extra: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for label, method, given in (("offline", "offline", {}), ("learnt", "distant_supervision", {"table": str(train)})):
        found, seconds[label], _ = built(method, name, test + unseen, **given)
        systems[label], extra[label] = found[: len(test)], found[len(test) :]
    return {
        "name": name, "relations": relations, "test": test, "unseen": unseen, "train sentences": len(rows_of(train)), "seconds": seconds,
        "tokens": sum(len(s.words) for one in parsed for s in one), "systems": systems, "extra": extra, "parser": parser.name,
        "checked": (DATA / f"manually_verified/selected_ont_{name}.txt").read_text().split()
    }  # fmt: skip


def counts_of(report: Any) -> dict[str, float]:
    """The counts that a build's manifest holds, wherever they stand in it."""
    if not isinstance(report, dict):
        return {}
    own = {k: v for k, v in report.get("counts", {}).items() if isinstance(v, int | float)}
    return own or next((c for c in map(counts_of, report.values()) if c), {})


def with_model(made: dict[str, Any], lm: str, systems: list[str], cache: Path) -> None:
    """Adds what a language model finds in some of a part's sentences."""
    rng = np.random.Generator(np.random.Philox(6))
    order = rng.permutation(len(made["test"])).tolist()
    made["lm"] = Path(lm).name
    for system in systems or list(ASKED)[:1]:
        method, given, count = ASKED[system]
        few = sorted(order[:count])
        found, seconds, report = built(method, made["name"], [made["test"][i] for i in few], cache, lm=lm, **given)
        made["seconds"][system] = seconds
        made["extra"][system] = dict(zip(map(str, few), found, strict=True))
        made.setdefault("counts", {})[system] = counts_of(report)
        print(made["name"], system, len(few), f"{seconds:.0f} s", sum(map(len, found)), flush=True)


def main() -> None:
    """Without arguments all ontologies; ``--into FOLDER NAME [MODEL]`` keeps one part, ``--from FOLDER`` puts parts together."""
    shared("text2kgbench-tekgen")
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
            file = Path(words[1]) / f"{words[2]}.json"
            made = json.loads(file.read_text()) if file.exists() else part(words[2], parser)
            if words[3:]:
                with_model(made, words[3], words[4:], Path(words[1]) / "cache")
            file.write_text(json.dumps(made))
            return
        parts = [part(n, parser) for n in names]
    pooled: dict[str, tuple[list[Any], list[Any]]] = {}
    tables: dict[str, Any] = {}
    allowed: set[str] = set()
    counts: dict[str, Counter[str]] = {}

    def pool(key: str, predicted: list[Any], rows: list[Any]) -> None:
        both = pooled.setdefault(key, ([], []))
        both[0].extend(predicted)
        both[1].extend(rows)

    for p in parts:
        known = {normal(r) for r in p["relations"]}
        allowed |= known
        row: dict[str, Any] = {"train sentences": p["train sentences"]}
        for system, predicted in p["systems"].items():
            row[system] = scored(predicted, p["test"], known)
            for key in ("all", "hand-checked"):
                keep = [i for i, r in enumerate(p["test"]) if key == "all" or r["id"] in p["checked"]]
                pool(f"{system}, {key}", [predicted[i] for i in keep], [p["test"][i] for i in keep])
        for system in ("offline", "learnt"):
            pool(f"{system}, unseen", p["extra"][system], p["unseen"])
        for asked in ASKED:
            few = p["extra"].get(asked, {})
            for system in (asked, *p["systems"]) if few else ():
                pool(f"{system}, sentences of {asked}", list(few.values()) if system == asked else
                     [p["systems"][system][int(i)] for i in few], [p["test"][int(i)] for i in few])  # fmt: skip
            for what, count in p.get("counts", {}).get(asked, {}).items():
                counts.setdefault(asked, Counter())[what] += count
        tables[p["name"]] = row
        print(p["name"], {s: round(float(row[s]["f1"]["value"]), 3) for s in p["systems"]}, flush=True)
    overall = {key: scored(p, r, allowed) for key, (p, r) in pooled.items()}
    apart = {
        f"{asked} minus {other}": difference(pooled[f"{asked}, sentences of {asked}"][0], *pooled[f"{other}, sentences of {asked}"])
        for asked in ASKED for other in parts[0]["systems"] if f"{asked}, sentences of {asked}" in pooled
    }  # fmt: skip
    save("build_text2kg", {
        "what": f"Text2KGBench tekgen, at most {MOST} test sentences of each ontology, macro over sentences with gold triples; a date of which only "
        "year or month is said is written as the benchmark writes it; every system but the naive one is the method as users call it, "
        "offline with the ontology alone, learnt with its training sentences",
        "parser": parts[0]["parser"], "language model": next((p["lm"] for p in parts if p.get("lm")), ""), "overall": overall, "F1 apart": apart,
        "what became of replies": {k: dict(sorted(c.items())) for k, c in counts.items()}, "asked": {k: [m, g] for k, (m, g, _) in ASKED.items() if k in counts},
        "ontologies": tables,
        "tokens of the test sentences": sum(p["tokens"] for p in parts),
        "processor seconds": {k: sum(p["seconds"].get(k, 0.0) for p in parts) for k in ("offline", "learnt", *counts)},
    })  # fmt: skip
    for key, row in overall.items():
        print(
            key,
            row["sentences"],
            {k: round(float(row[k]["value"]), 3) for k in ("precision", "recall", "f1")},
            "conformance",
            round(row["conformance"], 3),
        )


if __name__ == "__main__":
    main()
