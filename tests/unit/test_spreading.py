"""Two workers of ray give the graph of one process, and spend from one budget."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import interfuse
from interfuse.build.asking import prompt_of
from interfuse.build.spreading import BYTES, FILES, pieces
from interfuse.core.ctx import Budget, Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.chunks import split
from interfuse.data.corpus import File, open_corpus


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip(
        "ray", reason="ray is not installed (pip install 'interfuse[scale]'); the engine is then refused, see below"
    )
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100_000_000
    )
    yield
    ray.shutdown()


def folder_of(path: Path) -> Path:
    path.mkdir()
    for i in range(12):
        (path / f"{i:02}.txt").write_text(f"Person{i} Berg was born in Oslo. Town{i} is a city in Norway.")
    (path / "a.csv").write_text("City,Population\nOslo,709037\n")
    (path / "torn.pdf").write_bytes(b"%PDF-1.4 garbage")
    (path / "twice.txt").write_bytes((path / "03.txt").read_bytes())
    return path


def facts_of(graph: Path) -> dict[str, Any]:
    return dict(json.loads((graph / "interfuse.json").read_text())["facts"])


def test_the_same_graph_and_one_budget(two_workers: None, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in")
    said: list[str] = []
    one = interfuse.build.offline(str(folder), out=tmp_path / "one", parser="rules", ctx=Ctx(cache=tmp_path / "c1"))
    two = interfuse.build.offline(
        str(folder),
        out=tmp_path / "two",
        parser="rules",
        engine="ray",
        workers=2,
        ctx=Ctx(cache=tmp_path / "c2", log=said.append),
    )
    assert two.digest() == one.digest()
    assert facts_of(tmp_path / "two") == facts_of(tmp_path / "one")  # what was skipped and counted too
    assert "13 chunks were read by workers" in said
    # a model that is paid for: the budget ends the work, what was paid is kept, and the rest is asked by one process
    chunks = [
        c for d in open_corpus(Source(str(folder)), Ctx()).documents() for c in split(d, 400) if not any(c.columns)
    ]
    (tmp_path / "replies.jsonl").write_text(
        "\n".join(json.dumps({"prompt": prompt_of(c, None), "replies": ['{"statements": []}']}) for c in chunks)
    )
    model = f"replies:{tmp_path / 'replies.jsonl'}"
    with pytest.raises(InterfuseError, match=r"budget\.spent"):
        interfuse.build.lm_extract(str(folder), lm=model, out=tmp_path / "g", engine="ray", workers=2,
                                   ctx=Ctx(cache=tmp_path / "c3", budget=Budget(calls=5)))  # fmt: skip
    rest = Budget(calls=12)
    interfuse.build.lm_extract(
        str(folder), lm=model, out=tmp_path / "g", engine="ray", workers=2, ctx=Ctx(cache=tmp_path / "c3", budget=rest)
    )
    assert rest.spent["calls"] <= 12


@pytest.mark.parametrize("method", ["docs2kg", "kag", "lm-extract"])
def test_other_methods_give_the_same_graph(two_workers: None, tmp_path: Path, method: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"Person{i} Berg was born in Oslo. Town{i} is a city in Norway.")
    (folder / "a.csv").write_text("City,Population\nOslo,709037\n")
    given: dict[str, Any] = {"parser": "rules"}
    if method == "lm-extract":
        lines = []
        for i, document in enumerate(
            d for d in open_corpus(Source(str(folder)), Ctx()).documents() if d.name.endswith(".txt")
        ):
            said = {
                "statements": [
                    {
                        "subject": f"Person{i} Berg",
                        "relation": "born in",
                        "object": "Oslo",
                        "quote": f"Person{i} Berg was born in Oslo",
                    }
                ]
            }
            lines += [
                json.dumps({"prompt": prompt_of(c, None), "replies": [json.dumps(said)]}) for c in split(document, 400)
            ]
        (tmp_path / "replies.jsonl").write_text("\n".join(lines))
        given = {"lm": f"replies:{tmp_path / 'replies.jsonl'}"}
    made = {}
    for engine, more in (("local", {}), ("ray", {"workers": 2})):
        graph = interfuse.apply(f"build/{method}", documents=str(folder), out=tmp_path / engine, engine=engine, ctx=Ctx(cache=tmp_path / f"c {engine}"),
                                **given, **more)  # fmt: skip
        facts = facts_of(tmp_path / engine)
        made[engine] = graph.digest(), len(graph), {k: v for k, v in facts.items() if k != "method"}, facts["method"]
    assert made["ray"] == made["local"]
    assert made["ray"][1] > 10


def test_methods_that_look_at_everything_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InterfuseError, match=r"param\.value"):
        interfuse.build.graphusion({"a.txt": "Oslo is the capital of Norway."}, out=tmp_path / "g", engine="ray")


def test_without_ray_the_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InterfuseError, match=r"needs\.package"):
        interfuse.build.offline(
            {"a.txt": "Oslo is the capital of Norway."}, out=tmp_path / "g", engine="ray", ctx=Ctx(cache=tmp_path / "c")
        )


def test_pieces_hold_every_file_once_and_in_order() -> None:
    files = [File(f"{i}", "", size) for i, size in enumerate([1] * 200 + [BYTES, BYTES + 5, 3])]
    made = pieces(files)
    assert [f for piece in made for f in piece] == files
    assert all(len(p) <= FILES for p in made)
    assert all(len(p) == 1 or sum(f.size for f in p) <= BYTES for p in made)
