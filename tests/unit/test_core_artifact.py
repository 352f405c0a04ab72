"""Artifacts: saved at once or not at all, opened and verified, and never over what is not ours."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interfuse.core import artifact
from interfuse.core.artifact import MANIFEST, environment, lock, open_artifact, save_artifact, verify
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import canonical_json, fingerprint

HEAD = {"kind": "rope", "method": "tie/braid", "params": {"turns": 3}, "key": "k"}


def fill(text: str = "one") -> Any:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "é b.bin").write_bytes(bytes(range(256)))
        (folder / "empty").write_bytes(b"")
        return {"length": len(text)}

    return write


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def code_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InterfuseError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def test_save_open_verify(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    saved = save_artifact(path, fill(), HEAD)
    opened = open_artifact(path)
    assert opened == verify(str(path)) == saved
    assert (opened.kind, opened.manifest["facts"], opened.manifest["key"]) == ("rope", {"length": 3}, "k")
    assert sorted(opened.manifest["files"]) == ["a.txt", "empty", "sub/é b.bin"]
    assert opened.digest == fingerprint({k: v for k, v in opened.manifest.items() if k != "digest"})
    assert names(path.parent) == [".out.lock", "out"]
    assert (path.stat().st_mode & 0o777) == 0o755


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    save_artifact(tmp_path / "x", fill(), HEAD)
    save_artifact(tmp_path / "y", fill(), dict(reversed(HEAD.items())))
    assert (tmp_path / "x" / MANIFEST).read_bytes() == (tmp_path / "y" / MANIFEST).read_bytes()


def test_facts_and_parameters_of_any_kind_are_kept(tmp_path: Path) -> None:
    """After hours of work a NaN in the facts must not lose the result."""
    facts = {"loss": float("nan"), "count": np.int64(3), "rows": (1, 2), "where": Path("x"), "bad": "\ud800"}
    saved = save_artifact(tmp_path / "x", lambda folder: facts, {**HEAD, "params": {"limit": float("inf")}})
    assert saved == verify(tmp_path / "x")
    assert saved.manifest["facts"] == {"loss": "nan", "count": 3, "rows": [1, 2], "where": "x", "bad": "?"}
    assert saved.manifest["params"] == {"limit": "inf"}


def test_taken_places(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    save_artifact(path, fill("one"), HEAD)  # an empty folder is free
    with pytest.raises(InterfuseError, match="an artifact is there already") as caught:
        save_artifact(path, fill("two"), HEAD)
    assert caught.value.code == "output.exists"
    assert "--force" in caught.value.fix
    assert (verify(path).path / "a.txt").read_text() == "one"
    save_artifact(path, fill("two"), HEAD, force=True)
    assert (verify(path).path / "a.txt").read_text() == "two"
    assert names(tmp_path) == [".out.lock", "out"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_foreign_things_need_force(tmp_path: Path, what: str) -> None:
    path = tmp_path / "out"
    if what == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    with pytest.raises(InterfuseError, match="did not write"):
        save_artifact(path, fill(), HEAD)
    assert names(tmp_path) == [".out.lock", "out"]
    save_artifact(path, fill(), HEAD, force=True)
    verify(path)
    assert names(tmp_path) == [".out.lock", "out"]


def test_not_even_force_removes_the_home_or_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home" / "me", tmp_path / "work" / "here"
    home.mkdir(parents=True)
    work.mkdir(parents=True)
    (home / "letter").write_text("dear")
    (work / "notes").write_text("x")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    for place in (home, home.parent, work, work.parent, Path("."), Path("..")):
        with pytest.raises(InterfuseError, match="never replaced"):
            save_artifact(place, fill(), HEAD, force=True)
    assert (home / "letter").exists()
    assert (work / "notes").exists()
    save_artifact("out", fill(), HEAD)
    verify("out")


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk" / "real")
    for text in ("one", "two", "three"):
        save_artifact(link, fill(text), HEAD, force=True)
        assert link.is_symlink()
        assert (verify(link).path / "a.txt").read_text() == text
    assert names(tmp_path / "disk") == [".real.lock", "real"]
    assert names(tmp_path) == ["disk", "out"]


def test_an_error_of_the_method_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        save_artifact(tmp_path / "out", fail, HEAD)
    assert names(tmp_path) == [".out.lock"]
    save_artifact(tmp_path / "out", fill(), HEAD)
    with pytest.raises(RuntimeError):
        save_artifact(tmp_path / "out", fail, HEAD, force=True)
    verify(tmp_path / "out")
    assert names(tmp_path) == [".out.lock", "out"]


@pytest.mark.parametrize("odd", ["link", "folder link", "pipe", "colon", "device", "newline", "half"])
def test_only_plain_files_become_an_artifact(tmp_path: Path, odd: str) -> None:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text("a")
        if odd == "link":
            (folder / "b").symlink_to("/etc/hostname")
        elif odd == "folder link":
            (folder / "b").symlink_to("/etc")
        elif odd == "pipe":
            os.mkfifo(folder / "b")
        else:
            name = {"colon": b"a:b", "device": b"nul.txt", "newline": b"a\nb", "half": b"a\xff"}[odd]
            (folder / os.fsdecode(name)).write_text("x")

    assert code_of(save_artifact, tmp_path / "out", write, HEAD) in ("output.write", "unsafe.path")
    assert names(tmp_path) == [".out.lock"]


def test_lock(tmp_path: Path) -> None:
    with lock(tmp_path / "out"):
        assert code_of(save_artifact, tmp_path / "out", fill(), HEAD) == "output.busy"
        (tmp_path / "link").symlink_to(tmp_path / "out")
        assert code_of(save_artifact, tmp_path / "link", fill(), HEAD) == "output.busy"
        save_artifact(tmp_path / "other", fill(), HEAD)
    save_artifact(tmp_path / "out", fill(), HEAD)


def forge(path: Path, **changes: Any) -> None:
    """Changes a manifest and makes its digest right again, as an attacker would."""
    body = json.loads((path / MANIFEST).read_text())
    body.pop("digest")
    body.update(changes)
    body = {k: v for k, v in body.items() if v != "drop"}
    body["digest"] = fingerprint(body)
    (path / MANIFEST).write_bytes(canonical_json(body))


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"files": {"../a.txt": {"bytes": 3, "digest": "x"}}}, "unsafe.path"),
        ({"files": {"/etc/passwd": {"bytes": 3, "digest": "x"}}}, "unsafe.path"),
        ({"files": {"a.txt": {"bytes": 3}}}, "artifact.damaged"),
        ({"files": {"a.txt": {"bytes": "many", "digest": "x"}}}, "artifact.damaged"),
        ({"files": {"a.txt": None}}, "artifact.damaged"),
        ({"files": ["a.txt"]}, "artifact.damaged"),
        ({"files": "drop"}, "artifact.damaged"),
        ({"kind": "drop"}, "artifact.damaged"),
        ({"kind": 5}, "artifact.damaged"),
        ({"format": "drop"}, "artifact.damaged"),
        ({"format": 99}, "artifact.damaged"),
    ],
)
def test_forged_manifests(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    save_artifact(tmp_path / "out", fill(), HEAD)
    forge(tmp_path / "out", **changes)
    assert code_of(open_artifact, tmp_path / "out") == code
    assert code_of(verify, tmp_path / "out") == code


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"5",
        b"null",
        b'"x"',
        b"{}",
        b"{",
        b"\xff\xfe",
        b'{"digest": NaN}',
        b"[" * 100_000,
        b'{"digest": 1' + b"1" * 9999 + b"}",
    ],
)
def test_manifests_that_are_none(tmp_path: Path, text: bytes) -> None:
    save_artifact(tmp_path / "out", fill(), HEAD)
    (tmp_path / "out" / MANIFEST).write_bytes(text)
    assert code_of(open_artifact, tmp_path / "out") == "artifact.damaged"


@pytest.mark.parametrize("before, after", [(b"\xef\xbb\xbf", b""), (b"", b"\n"), (b" ", b"")])
def test_a_manifest_has_one_byte_form(tmp_path: Path, before: bytes, after: bytes) -> None:
    save_artifact(tmp_path / "out", fill(), HEAD)
    file = tmp_path / "out" / MANIFEST
    file.write_bytes(before + file.read_bytes() + after)
    assert code_of(open_artifact, tmp_path / "out") == "artifact.damaged"


def test_what_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for place in ("folder", "file", "none", "file/below", "x" * 300):
        assert code_of(open_artifact, tmp_path / place) == "input.missing"
    assert code_of(open_artifact, "a\0b") == "unsafe.path"
    assert names(tmp_path) == ["file", "folder"]  # looking writes nothing


def test_verify_names_every_difference(tmp_path: Path) -> None:
    path = tmp_path / "out"
    save_artifact(path, fill("one"), HEAD)
    (path / "a.txt").write_text("two")
    (path / "new").write_text("x")
    open_artifact(path)  # sizes fit
    with pytest.raises(InterfuseError, match=r"a\.txt has other bytes; new is not in the manifest"):
        verify(path)


def test_versions_are_those_of_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata as metadata

    monkeypatch.setattr(artifact, "_versions", artifact._versions.__wrapped__)
    names = {p.metadata["Name"].lower(): p.version for p in metadata.distributions()}
    said = environment()
    libraries = ("interfuse", "torch", "transformers", "accelerate", "numpy", "safetensors")
    assert {n: v for n, v in said.items() if n in libraries} == {n: names[n] for n in libraries if n in names}
    assert {"python", "system", "interfuse", "numpy"} <= set(said)

    # packages whose metadata is not in a folder of that kind, and packages that are not there
    monkeypatch.setattr(artifact, "_installed", dict)
    monkeypatch.setattr(metadata, "version", lambda name: f"{name} as the metadata says")
    monkeypatch.setattr(artifact.importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    said = artifact._versions()
    assert "torch" not in said
    assert said["numpy"] == "numpy as the metadata says"
