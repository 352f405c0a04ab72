"""Documents for the build room: a handful of files about cities and composers, with what a method needs beside them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sklearn.linear_model  # noqa: F401  (importing it sets variables of the environment, once)
from numpy.typing import NDArray

from tests import documents as made
from tests.conformance.cases import Case
from tests.conformance.fixtures import Bad, Killed, Scene
from tests.scripted_writer import Scripted, record

TEXTS = [
    "Oslo is the capital of Norway. It was founded by Harald Hardrada.",
    "Edvard Grieg, a Norwegian composer, was born in Bergen. He wrote music for Peer Gynt.",
    "The World Health Organization (WHO) is an agency of the United Nations. WHO was founded in 1948.",
]
TABLE = [["City", "Country", "Population"], ["Oslo", "Norway", "709037"], ["Stockholm", "Sweden", "975551"]]


def folder_of(path: Path) -> Path:
    """A folder of mixed files."""
    folder = path / "documents"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("\n\n".join(TEXTS[:2]))
        (folder / "b.html").write_bytes(made.html("Agencies", TEXTS[2:], TABLE))
        (folder / "c.csv").write_bytes(made.delimited(TABLE))
        (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    return folder


def sentences_table(path: Path) -> str:
    """Sentences with triples, enough to learn two relations from."""
    file = path / "sentences.jsonl"
    if not file.is_file():
        names = [
            "Ann Berg",
            "Bo Dahl",
            "Carl Ek",
            "Dora Falk",
            "Erik Holm",
            "Fia Lind",
            "Gus Moe",
            "Hana Nord",
            "Ivar Ost",
            "Jon Roe",
        ]
        towns = ["Oslo", "Bergen", "Turku", "Malmo", "Aarhus", "Odense", "Lund", "Tromso", "Espoo", "Vaasa"]
        rows = [{"text": f"{n}, a composer, was born in {t} and lived there.", "triples": [{"sub": n, "rel": "place of birth", "obj": t}]}
                for n, t in zip(names, towns, strict=True)]  # fmt: skip
        rows += [{"text": f"The hall of {t} was founded by {n} long ago.", "triples": [{"sub": t, "rel": "founded by", "obj": n}]}
                 for n, t in zip(names, towns, strict=True)]  # fmt: skip
        file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def numbers(folder: Path) -> Mapping[str, NDArray[Any]]:
    """Every number of the graph's statements, as pandas' reader gives them."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "statements.parquet")
    return {name: np.asarray(table.column(name).to_numpy(zero_copy_only=False)) for name in table.column_names if str(table.schema.field(name).type) in ("double", "float")}  # fmt: skip


@contextlib.contextmanager
def killed_before_saving() -> Iterator[None]:
    """The engine dies when all is read and nothing is saved."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with mock.patch("interfuse.data.graph_columns.Columns.save", die):
        yield


#: what a model says of the texts
SAID = {
    "Oslo is the capital": {
        "subject": "Oslo",
        "relation": "capital of",
        "object": "Norway",
        "quote": "Oslo is the capital of Norway",
    },
    "Grieg": {"subject": "Edvard Grieg", "relation": "born in", "object": "Bergen", "quote": "was born in Bergen"},
    "World Health": {
        "subject": "World Health Organization",
        "relation": "agency of",
        "object": "United Nations",
        "quote": "an agency of the United Nations",
    },
}


def recorded(path: Path, folder: Path) -> str:
    """Replies for every chunk of a folder's prose."""
    from interfuse.build.asking import prompt_of
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.chunks import split
    from interfuse.data.corpus import open_corpus

    file = path / "replies.jsonl"
    if not file.is_file():
        lines = []
        for document in open_corpus(Source(str(folder)), Ctx()).documents():
            for chunk in split(document, 400):
                if not any(chunk.columns):
                    rows = [row for key, row in SAID.items() if key in chunk.text]
                    lines.append(
                        json.dumps(
                            {
                                "prompt": prompt_of(chunk, None),
                                "replies": ["Here you are: " + json.dumps({"statements": rows})],
                            }
                        )
                    )
        one = open_corpus(Source({"a.txt": TEXTS[0]}), Ctx())
        lines += [
            json.dumps({"prompt": prompt_of(c, None), "replies": ['{"statements": []}']})
            for d in one.documents()
            for c in split(d, 400)
        ]
        file.write_text("\n".join(lines))
    return f"replies:{file}"


#: what a model says of concepts: (words that a text must hold, subject, relation, object)
CONCEPTS = [
    ("Oslo is the capital", "Oslo", "Part-of", "Norway"), ("Grieg", "Edvard Grieg", "Conjunction", "Peer Gynt"), ("Bergen", "Bergen", "Part-of", "Norwegian"),
    ("agency of the", "World Health Organization", "Part-of", "United Nations"), ("agency of the", "World Health Organization", "Used-for", "United Nations"),
]  # fmt: skip


def fused(path: Path, given: Mapping[str, Any], *documents: Any) -> str:
    """What a model says to Graphusion of some documents: candidate triplets, then two lists fused, recorded once."""
    import interfuse

    file = path / "fused.jsonl"

    def play(words: str, number: int) -> str:
        shown = words.split("<document")[-1]
        rows = [{"subject": s, "relation": r, "object": o, "quote": q} for q, s, r, o in CONCEPTS if q in shown]
        if "fuse two lists" in words:  # the second relation of one pair is settled, and something new is added
            rows = [r for r in rows if r["relation"] != "Used-for"] + [
                {"subject": "Oslo", "relation": "Conjunction", "object": "Harald Hardrada"}
            ]
        return "Of course! " + json.dumps({"statements": rows})

    if not file.is_file():
        player = Scripted(play)
        for i, each in enumerate(documents):
            interfuse.build.graphusion(
                each, lm=player, out=path / f"fused-{i}", ctx=interfuse.Ctx(cache=path / f"fused-cache-{i}"), **given
            )
        return record(file, player)
    return f"replies:{file}"


#: slug -> what an oracle is compared with
COMPARED: dict[str, Callable[[Mapping[str, Any], Callable[..., Any]], list[tuple[str, Any, Any]]]] = {}


def compared(slug: str) -> Callable[[Any], Any]:
    """Marks the function that sets a method's arithmetic beside its oracle."""

    def mark(function: Any) -> Any:
        COMPARED[slug] = function
        return function

    return mark


@compared("docs2kg")
def _sections(given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    from interfuse.build.docs2kg import sections

    rng = np.random.default_rng(5)
    cases = [
        [1, 2, 0, 2, 0, 1],
        [0, 0],
        [3, 1, 0, 2, 3, 0, 0, 2, 0],
        *(rng.integers(0, 5, 30).tolist() for _ in range(20)),
    ]
    return [(f"levels {case}", sections(case), oracle(case)) for case in cases]


@compared("graphusion")
def _relations(given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    from interfuse.kit.triple_fusion import Claim, settle

    rng = np.random.default_rng(6)
    names, relations = "abcdef", ["Used-for", "Part-of", "Compare"]
    claims = [("x", "Used-for", "y", 0.9), ("x", "Used-for", "y", 0.6), ("x", "Evaluate-for", "y", 0.8)]
    claims += [(str(names[i]), relations[k], str(names[j]), float(c)) for i, j, k, c in zip(*rng.integers(0, 6, (2, 120)), rng.integers(0, 3, 120), rng.integers(1, 100, 120) / 100, strict=True) if i != j]  # fmt: skip
    settled = settle([Claim(*c) for c in claims], symmetric=["Compare"], delta=0.5)
    stay = [*settled.kept, *settled.contested]
    said = oracle(claims, ["Compare"], 0.5)
    pairs = []
    for pair, kept in said.items():
        ours = sorted(f"{h} {r} {t}" for h, r, t in stay if tuple(sorted((h, t))) == pair)
        pairs.append((str(pair), len(ours), len(kept)))
        assert ours == kept, (pair, ours, kept)
    return pairs


@compared("kag")
def _shares(given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    from interfuse.kit.graph_walks import personalised_pagerank

    rng = np.random.default_rng(7)
    edges = [tuple(map(int, e)) for e in rng.integers(0, 11, (25, 2)) if e[0] != e[1]]
    path = ([(0, 1), (1, 2), (2, 3)], [1.0, 0, 0, 0])
    return [("a path", personalised_pagerank(4, *path, damping=0.1), oracle(4, *path, 0.1)),
            *((f"damping {d}", personalised_pagerank(12, edges, [1.0, 2.0] + [0.0] * 10, damping=d), oracle(12, edges, [1.0, 2.0] + [0.0] * 10, d)) for d in (0.1, 0.85))]  # fmt: skip


@compared("offline")
def _facts(given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    from interfuse.kit.language import open_parser
    from interfuse.kit.mentions import find_mentions
    from interfuse.kit.open_relations import open_relations

    rng = np.random.default_rng(8)
    people = ["Anna Keller", "Bo Larsen", "Carla Moreno", "David Stone", "Eva Novak"]
    places = ["Oslo", "Norway", "Vienna", "Austria", "Madrid", "Spain"]
    text = ""
    for _ in range(12):
        a, b = rng.permutation(people)[:2]
        x, y = rng.permutation(places)[:2]
        text += [f"{x} is the capital of {y}. ", f"{a} was born in {x}. ", f"{a} was not born in {y}. ", f"{x} was founded by {a} and {b}. "][int(rng.integers(4))]  # fmt: skip
    parser = open_parser("auto")
    ours = sorted(
        {
            (f.subject.label, f.predicate, f.object.label)
            for s in next(iter(parser.parse([text])))
            for f in open_relations(s, find_mentions(s))
            if f.predicate != "is a"
        }
    )  # fmt: skip  (classes aside)
    said = sorted(set(oracle(text)))
    assert ours == said, (text, ours, said)
    return [("facts", len(ours), len(said))]


@compared("distant-supervision")
def _regression(given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    from interfuse.kit.distant import WIDTH, _fit, _matrix

    rng = np.random.default_rng(9)
    pairs: list[tuple[str, Any, Any]] = []
    for c in (0.3, 1.0, 4.0):
        sets = [sorted(rng.permutation(8)[: int(rng.integers(1, 5))].tolist()) for _ in range(60)]
        labels = np.array([int(0 in s and 3 not in s) ^ int(rng.random() < 0.1) for s in sets])
        weight = np.where(labels == 1, 2.0, rng.choice([1.0, 0.15], 60))
        dense = np.hstack([np.array([[float(i in s) for i in range(8)] for s in sets]), np.ones((60, 1))])
        exact, least = oracle(dense, labels, weight, c)
        found, bias = _fit(_matrix(sets), labels, weight, c)
        ours = np.append(found[:8].astype(np.float64), bias)
        signs = 2.0 * labels - 1
        cost = float(ours @ ours / 2 + c * np.sum(weight * np.log1p(np.exp(-signs * (dense @ ours)))))
        pairs += [(f"cost at c={c}", round(cost / least, 3), 1.0), (f"weights beyond the features at c={c}", float(np.abs(found[8:WIDTH]).sum()), 0.0)]  # fmt: skip
        pairs.append((f"decisions at c={c}", (dense @ ours > 0).astype(float), (dense @ exact > 0).astype(float)))
    return pairs


@compared("lm-extract")
def _grounds(given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    from interfuse.build.asking import grounded
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.chunks import split
    from interfuse.data.corpus import open_corpus

    rng = np.random.default_rng(10)
    text = "Oslo is the capital of Norway. Edvard Grieg was born in Bergen. Vienna lies on the Danube."
    chunk = next(c for d in open_corpus(Source({"a.txt": text}), Ctx()).documents() for c in split(d, 400))
    names, quotes = ["Oslo", "Norway", "Edvard Grieg", "Bergen", "Vienna", "Danube", "Atlantis"], ["capital  of Norway", "was born\nin Bergen", "lies on the Danube", "", "a quotation that nobody wrote down"]  # fmt: skip
    rows = [{"subject": str(names[int(i)]), "relation": "r", "object": str(names[int(j)]), "quote": quotes[int(q)], "subject_type": "", "object_type": ""}
            for i, j, q in zip(rng.integers(0, 7, 80), rng.integers(0, 7, 80), rng.integers(0, 5, 80), strict=True)]  # fmt: skip
    made = [grounded(chunk, row, 1.0, None) for row in rows]
    ours = sorted((m.subject, m.predicate, str(m.object), m.start, m.end, m.confidence) for m in made if not isinstance(m, str))  # fmt: skip
    said = oracle(chunk.text, rows)
    assert ours == said, (ours, said)
    return [("kept", len(ours), len(said)), ("places", [m[3] for m in ours], [m[3] for m in said])]


def documents(case: Case, path: Path) -> Scene:
    """A folder of documents; ``table=True``: sentences with triples too."""
    given = dict(case.given)
    place = path / "build"
    folder = folder_of(place)
    if given.pop("table", False):
        given["table"] = {"data": sentences_table(place)}
    given = {"documents": str(folder), **given}
    if given.get("lm") == "extract":
        given["lm"] = recorded(place, folder)
    empty, one = place / "empty", place / "one"
    empty.mkdir(exist_ok=True)
    one.mkdir(exist_ok=True)
    (one / "a.txt").write_text(TEXTS[0])
    if given.get("lm") == "fused":
        rest = {k: v for k, v in given.items() if k not in ("documents", "lm")}
        given["lm"] = fused(place, rest, str(folder), {"a.txt": "\n\n".join(TEXTS[:2])}, str(one))

    def in_memory() -> dict[str, Any]:
        return {**given, "documents": {"a.txt": "\n\n".join(TEXTS[:2])}}

    bad = {
        "refuses_empty": [Bad("an empty folder", {"documents": str(empty)}, ("input.empty",))],
        "one_row": [Bad("one document", {"documents": str(one)}, ("input.empty",), or_works=True)],
        "refuses_missing_input": [Bad("no documents", {"documents": None}, ("param.missing",)),
                                  Bad("a folder that is not there", {"documents": str(place / "no")}, ("input.missing",))],
    }  # fmt: skip
    compare = COMPARED.get(case.slug)
    return Scene(
        given, in_memory, place, numbers, bad, killed_before_saving,
        (lambda oracle: compare(given, oracle)) if compare is not None else None,
        dtype="float64",
        not_applicable={
            "refuses_wrong_shape": "documents of any size and shape are read",
            "refuses_nan": "documents are words, and words are never NaN",
            "refuses_duplicates": "a document that comes twice is read once and counted",
            **({} if compare is not None else {"matches_oracle": "patterns of sentences have no closed form to compare with"}),
        },
    )  # fmt: skip


def rows_file(path: Path, change: str = "") -> str:
    """A table of people."""
    file = path / f"people-{change or 'whole'}.csv"
    lines = ["Ada,Acme,1815", "Bob,,1900", "Cyd,Acme,", "Ada,Beta,1815"]
    lines = {"empty": [], "one": lines[:1]}.get(change, lines)
    path.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["name,employer,born", *lines]) + "\n")
    return str(file)


def mapped(case: Case, path: Path) -> Scene:
    """A table with a key column."""
    place = path / "build-rows"
    given = {"table": {"data": rows_file(place)}, **case.given}

    def in_memory() -> dict[str, Any]:
        from datasets import Dataset

        return {**given, "table": Dataset.from_csv(rows_file(place), keep_in_memory=True)}

    def compare(oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        import tempfile

        from interfuse.core.rooms import apply
        from interfuse.data.statements import Literal

        with tempfile.TemporaryDirectory() as folder:
            graph = apply(case.method, out=Path(folder) / "out", seed=7, **given)
            facts = sorted((graph.label(s.subject), s.predicate.rsplit(":", 1)[-1], s.object.value if isinstance(s.object, Literal) else graph.label(s.object))
                           for s in graph if "relation:" in s.predicate)  # fmt: skip
        said = oracle(rows_file(place), case.given["key"], case.given["columns"])
        assert facts == said, (facts, said)
        return [("facts", len(facts), len(said))]

    bad = {
        "refuses_empty": [Bad("a table of no rows", {"table": {"data": rows_file(place, "empty")}}, ("input.empty", "input.format", "input.missing"))],
        "one_row": [Bad("a table of one row", {"table": {"data": rows_file(place, "one")}}, ("input.empty",), or_works=True)],
        "refuses_missing_input": [Bad("no table", {"table": None}, ("param.missing",)), Bad("a column that is not there", {"key": "no"}, ("input.missing",))],
        "refuses_wrong_shape": [Bad("a mapping of a column that is not there", {"columns": {"no": "x"}}, ("input.missing",))],
    }  # fmt: skip
    return Scene(
        given, in_memory, place, numbers, bad, None, compare, dtype="float64",
        not_applicable={"refuses_nan": "an empty cell is how a table says nothing", "refuses_duplicates": "a key may have several rows, as joins give them"},
    )  # fmt: skip


FURNISHED = {"documents": documents, "rows": mapped}
