"""The index: folders are the registry, packages of others join by entry point, nothing is imported."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from interfuse.core import index
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import apply
from tests.toy_rooms import Toy

CARD = "---\ntitle: Theirs\nstatus: sketch\ntakes: a\nmakes: b\n---\nTheirs.\n"


REAL = index.entries


@pytest.fixture
def fresh_index() -> Iterator[None]:
    REAL.cache_clear()
    yield
    REAL.cache_clear()


def outsider(folder: Path, package: str = "their_methods", room: str = "tie", slug: str = "their_way") -> Path:
    """A package of other people on disk, with the metadata an installer would have written."""
    (folder / package / room).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / room / f"{slug}.py").write_text(
        "from interfuse.core.method import method\n\n\n@method()\ndef their_way(x, core, *, ctx, depth: int = 2):\n    return x * depth\n"
    )
    (folder / package / room / f"{slug}.md").write_text(CARD)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{index.GROUP}]\n{package} = {package}\n")
    return folder


def test_methods_of_other_packages_join(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_index: None
) -> None:
    monkeypatch.setattr(index, "entries", REAL)
    assert "tie/their-way" not in index.entries()
    REAL.cache_clear()
    monkeypatch.syspath_prepend(str(outsider(tmp_path)))
    entry = index.entries()["tie/their-way"]
    assert (entry.module, entry.kind, entry.card.title) == ("their_methods.tie.their_way", "method", "Theirs")
    assert "their_methods.tie.their_way" not in sys.modules  # listed, not imported
    loaded = load("tie/their-way")
    assert list(loaded.params) == ["depth"]
    assert loaded.check({}) == {"depth": 2}
    made = apply("tie/their-way", strands=["red.txt"], out="out", depth=3)
    assert made.read() == b"red strand" * 3
    for name in [n for n in sys.modules if n.startswith("their_methods")]:
        del sys.modules[name]


def test_two_packages_with_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_index: None) -> None:
    monkeypatch.setattr(index, "rooms", lambda: ("tie",))
    for package in ("their_methods", "other_methods"):
        monkeypatch.syspath_prepend(str(outsider(tmp_path / package, package)))
    with pytest.raises(InterfuseError, match="defined twice") as caught:
        index.entries()
    assert caught.value.code == "input.duplicate"


@pytest.mark.parametrize("value", ["not_there_at_all", "not.there.at.all", "json"])
def test_a_broken_package_warns_and_closes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_index: None, value: str
) -> None:
    outsider(tmp_path)
    (tmp_path / "their_methods-1.0.dist-info" / "entry_points.txt").write_text(f"[{index.GROUP}]\nx = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if value == "json":  # a package, but without methods
        assert index.entries()
        return
    with pytest.warns(UserWarning, match="cannot be found"):
        assert index.entries()


def test_a_method_of_ours_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them() -> dict[str, index.Entry]:
        raise AssertionError("every card was looked at")

    known = REAL()
    monkeypatch.setattr(index, "entries", all_of_them)
    for entry in known.values():
        if entry.kind == "method":
            assert index.own(entry.room, entry.slug) == entry
    assert index.find("merge/dare_ties") == index.find("dare-ties", room="merge") == known["merge/dare-ties"]
    for room, slug in (
        ("merge", "kd"),
        ("merge", "../distill/kd"),
        ("merge", "Linear"),
        ("core", "linear"),
        ("merge", ""),
    ):
        assert index.own(room, slug) is None


def test_nobody_takes_the_place_of_a_method_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_index: None
) -> None:
    monkeypatch.syspath_prepend(str(outsider(tmp_path, room="merge", slug="slerp")))
    assert index.find("merge/slerp").module == "interfuse.merge.slerp"
    with pytest.raises(InterfuseError, match="merge/slerp is defined twice") as caught:
        index.entries()
    assert caught.value.code == "input.duplicate"


def test_find_by_id_slug_and_underscore(toy: Toy) -> None:
    assert index.find("tie/braid").id == index.find("braid").id == index.find("braid", room="tie").id == "tie/braid"
    (toy.rooms / "tie" / "two_words.md").write_text(CARD)
    assert index.find("two_words").id == index.find("tie/two_words").id == "tie/two-words"


@pytest.mark.parametrize(
    "name, room, says",
    [
        ("brade", "", "Did you mean braid"),
        ("tie/brad", "", "Did you mean tie/braid"),
        ("scale", "tie", "the room 'tie' has no method"),
        ("weigh/scale", "tie", "the room 'tie' has no method"),  # a full id does not leave the room
        ("", "", "Known: braid, scale, splice"),
    ],
)
def test_unknown_names(toy: Toy, name: str, room: str, says: str) -> None:
    with pytest.raises(InterfuseError, match=says) as caught:
        index.find(name, room=room)
    assert caught.value.code == "method.unknown"


def test_a_slug_in_two_rooms_is_not_guessed(toy: Toy) -> None:
    (toy.rooms / "weigh" / "braid.md").write_text(CARD)
    with pytest.raises(InterfuseError, match="It is in tie/braid and weigh/braid"):
        index.find("braid")
    assert index.find("braid", room="weigh").id == "weigh/braid"


def test_a_row_uses_the_rooms_words_unless_the_card_has_its_own(toy: Toy) -> None:
    row = index.find("tie/braid").row()
    assert (row["takes"], row["makes"], row["kind"], row["status"]) == ("strands", "a rope", "method", "sketch")
    (toy.rooms / "tie" / "own.md").write_text(CARD)
    assert index.find("tie/own").row()["takes"] == "a"


def test_card_without_code(toy: Toy) -> None:
    (toy.rooms / "tie" / "ghost.md").write_text(CARD)
    with pytest.raises(InterfuseError, match="no code beside it") as caught:
        index.load_module(index.find("tie/ghost"))
    assert caught.value.code == "method.card"


def test_missing_package_is_named(toy: Toy) -> None:
    toy.change("tie/braid", "import hashlib\n", "import hashlib\nimport no_such_package.deep\n")
    with pytest.raises(InterfuseError, match="no_such_package") as caught:
        index.load_module(index.find("tie/braid"))
    assert caught.value.code == "needs.package"


def test_our_own_missing_module_is_not_blamed_on_a_package(toy: Toy) -> None:
    toy.change("tie/braid", "import hashlib\n", "import hashlib\nimport interfuse.core.no_such_module\n")
    with pytest.raises(ModuleNotFoundError):
        index.load_module(index.find("tie/braid"))


def test_real_index_is_complete_and_ordered() -> None:
    """Every entry's card can be read; ids are unique by construction and rooms come in the order of the work."""
    rows = [entry.row() for entry in index.entries().values()]
    assert all(row["title"] and row["status"] for row in rows)
    known = [r for r in dict.fromkeys(row["id"].split("/")[0] for row in rows) if r in index.rooms()]
    assert known == [room for room in index.rooms() if room in known]


def test_listing_imports_no_method_and_no_torch() -> None:
    code = textwrap.dedent("""
        import sys
        from interfuse.core import index
        rows = [e.row() for e in index.entries().values()]
        heavy = {"torch", "transformers", "datasets", "httpx", "requests", "openai"} & set(sys.modules)
        methods = {e.module for e in index.entries().values() if e.kind == "method"} & set(sys.modules)
        print(sorted(heavy), sorted(methods))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
