"""What a build will ask at most, told before it asks, against what it asked."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import apply, load_room, prepare
from interfuse.data.corpus import Document
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.data.lm import LM, Reply, Scored
from interfuse.data.loaders.layout import Limits
from interfuse.data.loaders.process import Reader
from interfuse.data.loaders.reading import read
from interfuse.data.loaders.sizes import PAGE, text_size
from tests import documents as made
from tests import tiny_world as world
from tests.scripted_panel import ScriptedPanel
from tests.unit.test_build_documents import Scripted, born
from tests.unit.test_build_harvest import RULE, Cook, Lister, Teacher


class Far(EndpointLM):
    """An endpoint whose server is a script; it counts its calls."""

    def __init__(self, script: LM, api: str = "chat") -> None:
        super().__init__("http://localhost:9/v1", "m", api=api)
        self.script, self.calls = script, 0

    def each(self, prompts: Any, **options: Any) -> Iterator[list[Reply]]:
        for prompt in prompts:
            self.calls += 1
            yield self.script.generate([prompt], **options)[0]

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        if self.api == "chat":
            return super().score(pairs)
        self.calls += len(pairs)
        return self.script.score(pairs)


def folder(place: Path) -> str:
    """Twenty small files, one with many short sections, one with paragraphs beyond one chunk, one with nothing but a table."""
    place.mkdir()
    for i in range(17):
        (place / f"{i:02}.txt").write_text(f"Person{i} Berg was born in Oslo.")
    (place / "sections.md").write_text(
        "".join(f"# Part {i}\n\nSomebody{i} Berg was born in Oslo.\n\n" for i in range(9))
    )
    (place / "long.txt").write_text(
        "\n\n".join(
            f"Longname{i} Berg was born in Oslo. " + "".join(f"It rained on day {30 * i + k}. " for k in range(30))
            for i in range(12)
        )
    )
    (place / "table.csv").write_bytes(
        made.delimited([["City", "Population"], ["Oslo", "709037"], ["Bergen", "291940"]])
    )
    return str(place)


def triples(prompt: str) -> str:
    name = re.search(r"\w+ Berg(?= was born)", prompt)
    return json.dumps({"statements": [{"subject": name.group() if name else "Berg", "relation": "used for", "object": "Oslo", "quote": "Berg was born in Oslo"}]})  # fmt: skip


class Writer(Scripted):
    """Another event, or another wish, at every asking."""

    def generate(self, prompts: Any, *, n: int = 1, **options: Any) -> list[list[Reply]]:
        self.prompts += prompts
        return [
            [Reply(f"PersonX bakes {7 * len(self.prompts) + i} cakes", 9, 9, "stop", -1.0) for i in range(n)]
            for _ in prompts
        ]


SCHEMA = {"xWant": {"phrase": "as a result, PersonX wants", "examples": [["PersonX eats", "to drink"], ["PersonX runs", "to rest"]]},
          "xNeed": {"phrase": "but before, PersonX needed", "examples": [["PersonX eats", "to cook"], ["PersonX runs", "shoes"]]}}  # fmt: skip
BAD = Scripted(lambda prompt: "I cannot do that.")
#: method, who answers, parameters, how many times the calls made the estimate may be
CASES: dict[str, tuple[str, Any, dict[str, Any], float]] = {
    "lm-extract": ("lm-extract", Scripted(born), {}, 2),
    "lm-extract, no usable reply": ("lm-extract", BAD, {"tries": 3}, 1),
    "lm-extract, tables too": ("lm-extract", BAD, {"tables": False}, 1),
    "docs2kg": ("docs2kg", BAD, {"parser": "rules"}, 1),
    "kag": ("kag", Scripted(born), {"parser": "rules"}, 3),
    "graphusion": ("graphusion", Scripted(triples), {"concepts": 40, "topics": 1}, 3),
    "mechgpt": ("mechgpt", Teacher(), {"passage": 40, "topics": ["collagen", "beam"]}, 1),
    "mechgpt, pairs alone": ("mechgpt", Teacher(), {"passage": 40, "triples": 0}, 1),
    "hydra": ("hydra", ScriptedPanel(), {"domain": "towns and composers", "tries": 2}, 6),
    "hydra, own questions": ("hydra", ScriptedPanel(), {"questions": ["Who was born where?"] * 5, "tries": 2}, 3),
    "link-longtail": ("link-longtail", Cook(), {"rules": [RULE], "beam": 4, "ask": 2, "retries": 0}, 8),
    "link-longtail, scores": ("link-longtail", Cook(), {"rules": [RULE], "beam": 4, "ask": 2, "retries": 0}, 8),
    "link-longtail, lines": ("link-longtail", Lister(), {"rules": [RULE], "beam": 4, "ask": 2, "style": "lines"}, 10),
    "symbolic-kd": ("symbolic-kd", Writer(born), {"relations": SCHEMA, "heads": ["PersonX eats", "PersonX runs"], "new_heads": 12}, 2),
    "astro-kg": ("astro-kg", Scripted(lambda prompt: "1. dark matter\n2. halo mass"), {"least_papers": 1, "most_share": 1.0, "draws": 0, "null": False}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_no_build_asks_more_than_was_told(tmp_path: Path, name: str) -> None:
    method, script, params, factor = CASES[name]
    lm = Far(script, "completions" if "scores" in name or "lines" in name else "chat")
    given = {"lm": lm, **params}
    if method == "astro-kg":
        rows = [
            {"id": f"p{i}", "year": 2000 + i // 4, "references": f"p{i - 1}", "text": f"Dark matter, case {i}."}
            for i in range(12)
        ]
        given["table"] = world.parquet(tmp_path / "p.parquet", rows)
    elif method not in ("link-longtail", "symbolic-kd"):
        given["documents"] = folder(tmp_path / "in")
    room = load_room("build")
    told = room.estimate(prepare(room, load(f"build/{method}"), given, Ctx())).calls
    apply(f"build/{method}", out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache"), **given)
    assert lm.calls <= told <= factor * lm.calls


def test_names_of_tables_are_aligned_and_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t.csv").write_text("City,Population\nNew Oslo,709037\nOld Oslo,291940\n")
    lm, room = Far(BAD), load_room("build")
    given = {"documents": str(tmp_path / "in"), "lm": lm, "parser": "rules"}
    told = room.estimate(prepare(room, load("build/kag"), given, Ctx())).calls
    apply("build/kag", out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache"), **given)
    assert 0 < lm.calls <= told


def test_a_model_here_costs_no_call_of_an_endpoint(tmp_path: Path) -> None:
    room = load_room("build")
    given = {"documents": folder(tmp_path / "in"), "lm": Scripted(born)}
    assert room.estimate(prepare(room, load("build/lm-extract"), given, Ctx())).calls == 0


def test_of_many_documents_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"documents": folder(tmp_path / "in"), "lm": Far(Scripted(born))}
    room = load_room("build")
    call = prepare(room, load("build/lm-extract"), given, Ctx())
    whole = room.estimate(call).calls
    for most in (5000, 2000, 1):
        monkeypatch.setattr("interfuse.build.asking.COUNTED", most)
        assert 2 * 19 <= room.estimate(call).calls <= 5 * whole


def told(place: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[int, int]:
    """Calls that a build is said to make when nothing is read for the estimate, and that it makes."""
    monkeypatch.setattr("interfuse.build.asking.COUNTED", 1)
    lm, room = Far(Scripted(born)), load_room("build")
    given = {"documents": {"documents": str(place), **more}, "lm": lm, "tries": 1, "chunk_tokens": 40, "link": False}
    calls = room.estimate(prepare(room, load("build/lm-extract"), given, Ctx())).calls
    apply("build/lm-extract", out=place.parent / "g", ctx=Ctx(cache=place.parent / "cache"), **given)
    return calls, lm.calls


def test_pictures_in_a_pdf_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    texts = [f"Person{i} Berg was born in Oslo. " + "It rained for a long time on that day. " * 4 for i in range(25)]
    body = made.pdf("Notes", texts)
    start = body.index(b"\n") + 1
    picture = b"%" + bytes(range(128, 256)) * 8000 + b"\n"  # a megabyte that is no text
    (tmp_path / "in" / "a.pdf").write_bytes(body[:start] + picture + body[start:])
    calls, asked = told(tmp_path / "in", monkeypatch)
    assert asked <= calls <= 3 * asked


def test_what_is_packed_is_told_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    text = "\n\n".join(
        f"Person{i} Berg was born in Oslo. " + "It rained for a long time on that day. " * 4 for i in range(20)
    )
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("one.txt", text)
        packed.writestr("two.md", text.replace("Oslo", "Lund"))
    with tarfile.open(tmp_path / "in" / "b.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("three.txt")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.replace("Oslo", "Rome").encode()))
    (tmp_path / "in" / "c.docx").write_bytes(made.docx("Notes", text.replace("Oslo", "Bonn").split("\n\n")))
    assert (tmp_path / "in" / "a.zip").stat().st_size * 8 < 2 * len(text)
    calls, asked = told(tmp_path / "in", monkeypatch)
    assert asked <= calls <= 5 * asked


def test_text_of_office_files_is_told_within_half_of_it() -> None:
    """The tags of these are seven to ten times as long as their text; a workbook names the same texts again and again."""
    said = [f"Person{i} Berg was born in Oslo. It rained for a long time on that day." for i in range(40)]
    rows = [
        ["Person", "City", "Year"],
        *([f"Person{i} Berg", ("Oslo", "Bergen")[i % 2], str(1900 + i)] for i in range(40)),
    ]
    numbers = [rows[0], *([a, b, int(c)] for a, b, c in rows[1:])]
    files = {
        "a.docx": made.docx("Notes", said, rows), "b.pptx": made.pptx([(f"Slide {i}", [s, "More to come"]) for i, s in enumerate(said)]),
        "c.xlsx": made.xlsx({"People": numbers}), "d.xlsx": made.xlsx({"More": [["Kind", "Place"], *(["a rather long text that is shared", i] for i in range(400))]}),
    }  # fmt: skip
    for name, body in files.items():
        (found,) = read(name, body, Limits())
        assert isinstance(found, Document)
        documents, characters = text_size(name, body, Limits())
        assert documents == 1
        assert len(found.text) / 1.5 < characters < 1.5 * len(found.text), (name, characters, len(found.text))


def test_long_parts_of_office_files_are_told_by_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["Person", "Notes"], *([f"Person{i} Berg", f"Born in Oslo as number {i}."] for i in range(500))]
    body = made.xlsx({"People": rows, "Again": rows})
    whole = text_size("a.xlsx", body, Limits())[1]
    for name, count in (("PART", 4000), ("PARTS", 9000)):
        monkeypatch.setattr(f"interfuse.data.loaders.sizes.{name}", count)
        assert whole / 1.5 < text_size("a.xlsx", body, Limits())[1] < 1.5 * whole
    began = time.process_time()
    for junk in (b"<c " * 300_000, b'<c t="s" ' * 100_000, b" " * 900_000, b"<f" * 400_000):
        out = io.BytesIO(body)
        with zipfile.ZipFile(out, "a") as opened:
            opened.writestr("xl/worksheets/other.xml", junk)
        monkeypatch.setattr("interfuse.data.loaders.sizes.PART", 1_000_000)
        monkeypatch.setattr("interfuse.data.loaders.sizes.PARTS", 8_000_000)
        text_size("a.xlsx", out.getvalue(), Limits())
    assert time.process_time() - began < 5


def test_docling_is_not_run_for_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pdf").write_bytes(made.pdf("Notes", ["Ada Berg was born in Oslo."]))
    (tmp_path / "in" / "b.docx").write_bytes(made.docx("Notes", ["Bo Berg was born in Oslo."]))
    given = {
        "documents": {"documents": str(tmp_path / "in"), "reader": "docling"},
        "lm": Far(Scripted(born)),
        "tries": 1,
    }
    room = load_room("build")
    asked: list[tuple[str, str]] = []

    class Watched(Reader):
        def _rows(self, name: str, path: Path, *, size: bool = False) -> list[dict[str, Any]]:
            asked.append((name, self.reader if not size else "size"))
            return super()._rows(name, path, size=size)

    monkeypatch.setattr("interfuse.data.loaders.process.Reader", Watched)
    calls = room.estimate(prepare(room, load("build/lm-extract"), given, Ctx())).calls
    assert asked == [("a.pdf", "size"), ("b.docx", "size"), ("b.docx", "light")]
    assert calls == 1 + PAGE // (4 * 400) + 1  # a page without a known text may have so much
