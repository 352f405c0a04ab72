"""Files that want to harm: each is skipped with a code and counted, and never stops the others."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.corpus import Skipped, open_corpus
from interfuse.data.loaders.layout import Limits
from interfuse.data.loaders.reading import read
from tests import documents as made

LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY a{i} "{"&a;" * 9}">' for i in range(9))
    + "]><x>&a8;</x>"
)


def zipped(files: dict[str, bytes], **changes: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made_zip:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = changes.get("attributes", 0) << 16
            made_zip.writestr(info, body)
    return out.getvalue()


def tarred(kind: bytes, name: str, target: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info, io.BytesIO(b""))
    return out.getvalue()


def nested(depth: int) -> bytes:
    body = zipped({"a.txt": b"words"})
    for _ in range(depth):
        body = zipped({"a.zip": body})
    return body


def laughing_word() -> bytes:
    source = zipfile.ZipFile(io.BytesIO(made.docx("T", ["words"])))
    return zipped({n: LAUGHS.encode() if n == "word/document.xml" else source.read(n) for n in source.namelist()})


def looping_pdf() -> bytes:
    return made.pdf("Loop", ["words"]).replace(b"/Kids [6 0 R]", b"/Kids [2 0 R]")


def encrypted_pdf() -> bytes:
    body = b"<< /Filter /Standard /V 1 /R 2 /O (" + b"o" * 32 + b") /U (" + b"u" * 32 + b") /P -4 >>"
    plain = made.Pdf("Secret")
    plain.text(60, 700, "hidden words")
    raw = plain.bytes([body])
    return raw.replace(b"/Root 1 0 R", b"/Root 1 0 R /Encrypt 7 0 R /ID [(aaaaaaaaaaaaaaaa) (aaaaaaaaaaaaaaaa)]")


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "swells.zip": (lambda: zipped({"a.txt": b"0" * 30_000_000}), "input.limit"),
    "many.zip": (lambda: zipped({f"{i}.txt": b"" for i in range(10_001)}), "input.limit"),
    "climbs.zip": (lambda: zipped({"../../a.txt": b"words"}), "unsafe.path"),
    "absolute.zip": (lambda: zipped({"/etc/a.txt": b"words"}), "unsafe.path"),
    "link.zip": (lambda: zipped({"a.txt": b"/etc/passwd"}, attributes=0o120777), "unsafe.path"),
    "nested.zip": (lambda: nested(5), "input.limit"),
    "torn.zip": (lambda: zipped({"a.txt": b"words" * 1000})[:-40], "input.format"),
    "link.tar.gz": (lambda: tarred(tarfile.SYMTYPE, "a", "/etc/passwd"), "unsafe.path"),
    "device.tar.gz": (lambda: tarred(tarfile.CHRTYPE, "a"), "unsafe.path"),
    "climbs.tar.gz": (lambda: tarred(tarfile.REGTYPE, "../a"), "unsafe.path"),
    "laughs.docx": (laughing_word, "input.format"),
    "torn.docx": (lambda: made.docx("T", ["words"])[:3000], "input.format"),
    "old.doc": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "input.format"),
    "secret.xlsx": (
        lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le") + b"\0" * 600,
        "input.format",
    ),
    "loop.pdf": (looping_pdf, "input"),
    "torn.pdf": (lambda: b"%PDF-1.4\n" + b"garbage" * 50, "input.format"),
    "secret.pdf": (encrypted_pdf, "input.format"),
    "scan.pdf": (lambda: made.Pdf("Scan").bytes(), "input.empty"),
    "empty.txt": (lambda: b"", "input.empty"),
    "blank.txt": (lambda: b" \n\t\r\n \xe2\x80\x8b", "input.empty"),
    "binary.txt": (lambda: bytes(range(256)) * 40, "input.format"),
    "picture.pdf": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "input.format"),
    "svg.html": (lambda: LAUGHS.encode(), "input"),
    "no-text.html": (lambda: b"<html><script>alert(1)</script></html>", "input.empty"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_each_is_skipped_with_a_code(name: str) -> None:
    build, code = HOSTILE[name]
    found = list(read(name, build(), Limits()))
    assert found
    assert all(isinstance(f, Skipped) for f in found) or name == "svg.html"
    for item in found:
        if isinstance(item, Skipped):
            assert item.code.startswith(code), item
        else:
            assert len(item.text) < 2000  # entities were not expanded


def test_one_bad_file_never_stops_a_folder(tmp_path: Path) -> None:
    for name, (build, _) in HOSTILE.items():
        (tmp_path / name).write_bytes(build())
    (tmp_path / "good.txt").write_text("Oslo is the capital of Norway.")
    (tmp_path / "good.pdf").write_bytes(made.pdf("Good", ["Bergen is a city."]))
    corpus = open_corpus(Source(str(tmp_path)), Ctx())
    names = [d.name for d in corpus.documents()]
    assert {"good.txt", "good.pdf"} <= set(names)
    told = {s.name.split("!/")[0].split("#")[0] for s in corpus.skipped}
    assert set(HOSTILE) - told <= {"svg.html"}


def test_a_file_that_takes_too_long_or_too_much_memory_is_ended(tmp_path: Path) -> None:
    from interfuse.data.loaders.process import Reader

    (tmp_path / "a.html").write_bytes(b"<p>words</p>" * 400_000)
    (tmp_path / "b.html").write_bytes(b"<p>fine</p>")
    slow = Reader(Limits(seconds=-4.99))
    try:
        (found,) = slow.read("a.html", tmp_path / "a.html")
        assert isinstance(found, Skipped)
        assert "seconds" in found.why
    finally:
        slow.close()
    tight = Reader(Limits(memory=40 * 2**20))
    try:
        (found,) = tight.read("a.html", tmp_path / "a.html")
        assert isinstance(found, Skipped)
        assert found.code in ("input.limit", "input.format")
        (fine,) = tight.read("b.html", tmp_path / "b.html")
        assert not isinstance(fine, Skipped)
    finally:
        tight.close()


def test_answers_are_waited_for_without_select_which_knows_no_pipes_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import select
    import threading

    from interfuse.data.loaders.process import Reader

    def sockets_only(*_: Any) -> Any:
        raise OSError(10038, "an operation was attempted on something that is not a socket")

    monkeypatch.setattr(select, "select", sockets_only)
    (tmp_path / "a.txt").write_text("Oslo is the capital of Norway.")
    (tmp_path / "b.txt").write_text("Bergen lies in Norway. " * 50_000)  # more than a pipe holds
    before, reader = threading.active_count(), Reader(Limits())
    try:
        for name, least in (("a.txt", 1), ("b.txt", 1_000_000)):
            (found,) = reader.read(name, tmp_path / name)
            assert not isinstance(found, Skipped)
            assert len(found.text) >= least
        assert reader._process is not None
        reader._process.kill()
        reader._process.wait()
        (found,) = reader.read("a.txt", tmp_path / "a.txt")  # by another process
        assert not isinstance(found, Skipped)
    finally:
        reader.close()
    assert threading.active_count() == before


def test_half_an_answer_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interfuse.data.loaders import process

    monkeypatch.setattr(sys, "executable", str(tmp_path / "reader"))
    (tmp_path / "reader").write_text("#!/bin/sh\nread job\nprintf '[{'\n")
    (tmp_path / "reader").chmod(0o755)
    reader = process.Reader(Limits())
    try:
        (found,) = reader.read("a.txt", tmp_path / "a.txt")
    finally:
        reader.close()
    assert isinstance(found, Skipped)
    assert "its reader ended" in found.why


@pytest.mark.parametrize(
    "body", [b"<div>" * 200_000 + b"words", b"<b>" * 100_000 + b"words", b"<table><tr><td>" * 5_000 + b"words"]
)
def test_deep_pages_take_linear_time(body: bytes) -> None:
    start = time.process_time()
    found = list(read("a.html", body, Limits()))
    assert found
    assert time.process_time() - start < 5


def test_long_lines_and_strange_texts() -> None:
    long = b"word " * 400_000
    start = time.process_time()
    (found,) = read("a.txt", long, Limits())
    assert not isinstance(found, Skipped)
    assert time.process_time() - start < 5
    for words in (
        "e\u0301tude \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
        "a\x00b",
        "\ud83d\ude00 smile".encode("utf-16", "surrogatepass").decode("utf-16"),
    ):
        (kept,) = read("a.txt", words.encode(), Limits())
        assert not isinstance(kept, Skipped)
        assert "\x00" not in kept.text


def test_what_a_corpus_is_refused_for(tmp_path: Path) -> None:
    cases = {
        "input.missing": str(tmp_path / "no"),
        "input.empty": str(tmp_path),
        "input.type": 7,
        "param.unknown": {"documents": str(tmp_path), "incldue": []},
    }
    for code, spec in cases.items():
        with pytest.raises(InterfuseError) as caught:
            open_corpus(Source(spec), Ctx())
        assert caught.value.code == code
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").write_text("words")
    with pytest.raises(InterfuseError, match="more than 1 files"):
        open_corpus(Source({"documents": str(tmp_path), "max_files": 1}), Ctx())
    corpus = open_corpus(Source(str(tmp_path)), Ctx())
    assert len(list(corpus.documents())) == 1
    assert [s.code for s in corpus.skipped] == ["input.duplicate"]


DOCLING = {
    "base_models": "class DocumentStream:\n    def __init__(self, name, stream):\n        self.name, self.stream = name, stream\n",
    "document_converter": """
import os
from pathlib import Path
class Document:
    pages = {1: None, 2: None}
    def export_to_markdown(self, page_no=None):
        return {1: "# Title\\n\\nOslo is the capital of Norway.", 2: "Bergen lies in Norway."}[page_no]
class DocumentConverter:
    def __init__(self):
        self.models = bytearray(2**30)  # reserved, not touched
        with Path(os.environ["HF_HOME"], "made").open("a") as file:
            file.write("x")
    def convert(self, source):
        assert source.stream.read(5) == b"%PDF-"
        return type("Made", (), {"document": Document()})()
""",
}


def test_docling_reads_page_by_page_with_one_converter_and_room_for_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in: the library's models are not here."""
    if importlib.util.find_spec("docling") is not None:
        pytest.skip("docling is installed here")
    for name, text in DOCLING.items():
        place = tmp_path / "stub" / "docling" / ("datamodel" if name == "base_models" else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "stub"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.pdf").write_bytes(made.pdf(name, ["words that docling would look at"]))
    corpus = open_corpus(Source({"documents": str(tmp_path / "in"), "reader": "docling"}), Ctx())
    read = list(corpus.documents())
    assert not corpus.skipped
    assert [[(e.kind, e.page, d.of(e)) for e in d.elements] for d in read] == 2 * [
        [("heading", 1, "Title"), ("paragraph", 1, "Oslo is the capital of Norway."), ("paragraph", 2, "Bergen lies in Norway.")]
    ]  # fmt: skip
    assert (tmp_path / "made").read_text() == "x"
    small = open_corpus(Source({"documents": str(tmp_path / "in"), "reader": "docling", "max_memory": 2**29}), Ctx())
    assert list(small.documents()) == []
    assert [s.code for s in small.skipped] == ["input.limit", "input.limit"]


def test_models_of_docling_that_are_missing_are_told_and_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("docling") is not None:
        pytest.skip("docling is installed here")
    from interfuse.data.loaders.process import Reader

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, text in {
        "datamodel/base_models": DOCLING["base_models"],
        "document_converter": "import os\n\n\nclass DocumentConverter:\n    def convert(self, source):\n"
        "        raise FileNotFoundError('no weights, offline ' + os.environ.get('HF_HUB_OFFLINE', '0'))\n",
    }.items():
        place = tmp_path / "stub" / "docling" / f"{name}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "stub"), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "a.pdf").write_bytes(made.pdf("T", ["words"]))
    reader = Reader(Limits(memory=8 * 2**30), "docling")
    try:
        (found,) = reader.read("a.pdf", tmp_path / "a.pdf")
    finally:
        reader.close()
    assert isinstance(found, Skipped)
    for part in ("no weights, offline 1", "docling-tools models download", "DOCLING_ARTIFACTS_PATH"):
        assert part in found.why


def test_docling_itself_reads_word_and_slides(tmp_path: Path) -> None:
    """Where it is installed; these two formats need no models."""
    pytest.importorskip("docling", reason="docling is not installed")
    told = ["Oslo is the capital of Norway."]
    (tmp_path / "a.docx").write_bytes(made.docx("Norway", told, [["City", "Country"], ["Graz", "Austria"]]))
    (tmp_path / "b.pptx").write_bytes(made.pptx([("Iron", ["Iron is a metal."]), ("Copper", ["Copper is a metal."])]))
    corpus = open_corpus(Source({"documents": str(tmp_path), "reader": "docling"}), Ctx())
    word, slides = corpus.documents()
    assert not corpus.skipped
    cells = [("cell", text) for text in ("City", "Country", "Graz", "Austria")]
    found = [(e.kind, word.of(e)) for e in word.elements if e.kind not in ("table", "row")]
    assert found == [("heading", "Norway"), ("paragraph", told[0]), *cells]
    assert [(e.page, slides.of(e)) for e in slides.elements] == [
        (1, "Iron"), (1, "Iron is a metal."), (2, "Copper"), (2, "Copper is a metal.")
    ]  # fmt: skip


def test_a_reader_that_is_not_installed_is_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("docling") is not None:
        pytest.skip("docling is installed here")
    (tmp_path / "a.pdf").write_bytes(made.pdf("T", ["words"]))
    corpus = open_corpus(Source({"documents": str(tmp_path), "reader": "docling"}), Ctx())
    assert list(corpus.documents()) == []
    assert [s.code for s in corpus.skipped] == ["needs.package"]
    with pytest.raises(InterfuseError, match="light or docling"):
        open_corpus(Source({"documents": str(tmp_path), "reader": "magic"}), Ctx())
