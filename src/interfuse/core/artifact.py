"""Artifacts: an ordinary folder its own ecosystem can open, plus ``interfuse.json``.

The manifest names every file with size and SHA-256, how it was made, from what, and its own digest. Saving is atomic:
a folder is written beside its place, synced and renamed, so that a reader finds the old artifact or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import (
    canonical_json,
    contained,
    file_sha256,
    fingerprint,
    read_text,
    sync_folder,
    writing_errors,
)

MANIFEST = "interfuse.json"
FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """An opened artifact.

    Attributes:
        path: its folder.
        manifest: what ``interfuse.json`` says: ``kind``, ``method``, ``params``, ``inputs``, ``seed``, ``key``, ``facts``,
            ``environment``, ``files``, ``digest``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])


def open_artifact(path: Path | str) -> Artifact:
    """Opens an artifact: reads and checks its manifest and that every file is there at its size (no hashing).

    Raises:
        InterfuseError: ``input.missing`` when the folder is not an artifact, ``artifact.damaged`` when it is torn.
    """
    path = Path(path)
    _wait_for(path)
    file = path / MANIFEST
    if not file.is_file():
        raise InterfuseError(
            "input.missing",
            f"the folder has no {MANIFEST}",
            where=str(path),
            fix="Name a folder that Interfuse has written.",
        )
    text = read_text(file, limit=2**28)
    try:
        manifest = json.loads(text)
        digest = manifest.pop("digest")
        whole = fingerprint(manifest) == digest
        manifest["digest"] = digest
        whole = whole and canonical_json(manifest) == text.encode() and manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InterfuseError("artifact.damaged", "the manifest cannot be read", where=str(file)) from error
    if not whole:
        raise InterfuseError("artifact.damaged", "the manifest does not match its own digest", where=str(file))
    for name, row in manifest["files"].items():
        target = contained(path, name)
        if not target.is_file() or target.stat().st_size != row["bytes"]:
            raise InterfuseError("artifact.damaged", f"{name} is missing or not {row['bytes']} bytes", where=str(path))
    return Artifact(path, manifest)


def verify(path: Path | str) -> Artifact:
    """Opens an artifact and checks every byte of it, and that nothing was added.

    Raises:
        InterfuseError: as :func:`open_artifact`, or ``artifact.damaged`` naming each file that differs.
    """
    artifact = open_artifact(path)
    files = artifact.manifest["files"]
    bad = [
        f"{name} has other bytes"
        for name, row in sorted(files.items())
        if file_sha256(artifact.path / name) != row["sha256"]
    ]
    bad += [f"{name} is not in the manifest" for name in _walk(artifact.path) if name not in files and name != MANIFEST]
    if bad:
        raise InterfuseError("artifact.damaged", "; ".join(bad[:20]), where=str(artifact.path))
    return artifact


def save_artifact(
    path: Path | str,
    write: Callable[[Path], Mapping[str, Any] | None],
    manifest: Mapping[str, Any],
    *,
    force: bool = False,
) -> Artifact:
    """Writes an artifact atomically.

    Args:
        path: where it shall be. It must be free, empty, or (with ``force``) an artifact, which is then replaced.
        write: fills the folder it is given, and may return facts to put into the manifest.
        manifest: ``kind`` and whatever else describes the work; it must not hold times or absolute paths, so that the
            same work gives the same bytes.
        force: replace what is there, even if it is not ours.

    Raises:
        InterfuseError: ``output.exists``, ``output.busy``, ``output.space`` or ``output.write``; what was there is untouched.
    """
    path = Path(path)
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path):
        _recover(path)
        refuse_taken(path, force=force)
        _sweep(path)
        with writing_errors(path):
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            with writing_errors(path):
                temporary.chmod(0o755)
                facts = write(temporary)
                body = {"format": FORMAT, **manifest, "facts": dict(facts or {}), "files": _files(temporary)}
                body["digest"] = fingerprint(body)
                (temporary / MANIFEST).write_bytes(canonical_json(body))
                _sync_tree(temporary)
                _replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return Artifact(path, body)


def refuse_taken(path: Path, *, force: bool = False) -> None:
    """Raises ``output.exists`` when ``path`` holds something and overwriting was not asked for."""
    if force or not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    ours = (path / MANIFEST).is_file()
    what = "an artifact is there already" if ours else "something that Interfuse did not write is there"
    raise InterfuseError(
        "output.exists", what, where=str(path), fix="Choose another place with -o, or add --force to replace it."
    )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the right to write at ``path``; it ends with the process, even a killed one.

    Raises:
        InterfuseError: ``output.busy`` when another process holds it.
    """
    from filelock import FileLock, Timeout

    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = FileLock(path.parent / f".{path.name}.lock")
        try:
            guard.acquire(timeout=0)
        except Timeout as error:
            raise InterfuseError(
                "output.busy",
                "another process is writing here",
                where=str(path),
                fix="Wait for it to end, or choose another place with -o.",
            ) from error
    try:
        yield
    finally:
        guard.release()


def environment() -> dict[str, str]:
    """Versions that decide the bytes of a result: Python, system, and the libraries that compute."""
    import importlib.metadata
    import platform

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in ("interfuse", "torch", "transformers", "accelerate", "numpy", "safetensors"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _walk(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
            for name in _walk(folder) if name != MANIFEST}  # fmt: skip


def _sync_tree(folder: Path) -> None:
    for name in _walk(folder):
        handle = os.open(folder / name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for sub in sorted(p for p in folder.rglob("*") if p.is_dir()):
        sync_folder(sub)
    sync_folder(folder)


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _replace(new: Path, path: Path) -> None:
    """Puts ``new`` at ``path``. Between its two renames the old artifact stands at a known name, from which
    :func:`_recover` brings it back."""
    aside = _aside(path)
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if path.exists():
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(path, aside)
    os.rename(new, path)
    sync_folder(path.parent)
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.unlink()


def _recover(path: Path) -> None:
    aside = _aside(path)
    if aside.exists() and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # another process may have been quicker
            os.rename(aside, path)


def _wait_for(path: Path) -> None:
    """A reader that finds nothing but the old artifact aside: either a writer is between its two renames, which takes an
    instant, or one was killed there, and then the lock is free."""
    for _ in range(200):
        if path.exists() or not _aside(path).exists():
            return
        try:
            with lock(path):
                _recover(path)
        except InterfuseError:
            time.sleep(0.05)


def _sweep(path: Path) -> None:
    """Removes what a killed process left half-written; the lock is held, so nobody is writing it."""
    for left in path.parent.glob(f".{path.name}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    if path.exists() and _aside(path).exists():
        shutil.rmtree(_aside(path), ignore_errors=True)
