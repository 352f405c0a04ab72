"""Cards: front matter checked field by field, with the line."""

from pathlib import Path

import pytest

from interfuse.core.card import read_card
from interfuse.core.errors import InterfuseError

FULL = """\
---
title: Born again
status: checked
paper: https://example.org/1
year: 2020
authors: A. Author and B. Author
takes: a model
makes: a model
version: 3
experimental: true
claims:
  - what: accuracy rises
    paper: "+1.0"
    ours: "+0.4 (0.1 to 0.7)"
    shown: no
departs: [no warm-up]
---

The idea.

---
When not to use it.
"""


def card(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.md"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_full_card(tmp_path: Path, newline: str) -> None:
    found = read_card(card(tmp_path, FULL.replace("\n", newline)))
    assert (found.title, found.status, found.year, found.version) == ("Born again", "checked", 2020, 3)
    assert found.experimental is True
    assert found.claims[0].ours == "+0.4 (0.1 to 0.7)"
    assert found.claims[0].shown == "no"  # a word, not false
    assert found.departs == ("no warm-up",)
    assert found.body == "The idea.\n\n---\nWhen not to use it.\n"


def test_smallest_card_and_its_citation(tmp_path: Path) -> None:
    found = read_card(card(tmp_path, "---\ntitle: T\nstatus: sketch\n---"))
    assert (found.version, found.claims, found.body, found.bibtex("t")) == (1, (), "\n", "")


def test_bibtex(tmp_path: Path) -> None:
    text = read_card(card(tmp_path, FULL)).bibtex("born20")
    assert text.startswith("@misc{born20,")
    assert "author = {A. Author and B. Author}" in text
    assert "year = {2020}" in text
    many = FULL.replace("A. Author and B. Author", "Ada B. Lovelace, Emmy Noether, and 17 others")
    assert "author = {Ada B. Lovelace and Emmy Noether and others}" in read_card(card(tmp_path, many)).bibtex("x")


@pytest.mark.parametrize(
    "old, new, line, says",
    [
        ("title: Born again\n", "", None, "'title' is missing"),
        ("status: checked", "status: done", 3, "is not one of sketch, checked, reproduced"),
        ("year: 2020", "year: soon", 5, "wrong type"),
        ("year: 2020", "year: true", 5, "wrong type"),
        ("version: 3", "version: three", 9, "wrong type"),
        ("experimental: true", "experimental: 1", 10, "wrong type"),
        ("takes: a model", "take: a model", 7, "Did you mean takes"),
        ("title: Born again", "title: [Born]", 2, "wrong type"),
        ('    paper: "+1.0"\n', "", 11, "what and paper are required"),
        ("    shown: no", "    shown: perhaps", 11, "yes, no, partly, open"),
        ("    ours:", "    hours:", 11, "a claim has the fields"),
        ("[no warm-up]", "[{we use: x}]", 16, "a list of sentences"),
        ("departs: [", "departs: !!python/tuple [", 16, "tags"),
        ("year: 2020", "title: again", 5, "occurs twice"),
        ("year: 2020", "year: [2020", None, "not valid YAML"),
    ],
)
def test_refusals_name_the_line(tmp_path: Path, old: str, new: str, line: int | None, says: str) -> None:
    assert FULL.count(old) == 1
    path = card(tmp_path, FULL.replace(old, new))
    with pytest.raises(InterfuseError, match=says) as caught:
        read_card(path)
    assert caught.value.code == "method.card"
    assert caught.value.where.startswith(str(path))
    if line is not None:
        assert caught.value.where == f"{path}:{line}"


@pytest.mark.parametrize("text", ["", "title: T\n", "---\ntitle: T\nstatus: sketch\n", "---\n- a\n---\n", "---\n---\n"])
def test_no_front_matter(tmp_path: Path, text: str) -> None:
    with pytest.raises(InterfuseError) as caught:
        read_card(card(tmp_path, text))
    assert caught.value.code == "method.card"
