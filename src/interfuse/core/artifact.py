"""Artifacts: an ordinary folder its own ecosystem can open, plus ``interfuse.json``.

The manifest names every file with size and digest, how it was made, from what, and its own digest. Saving is atomic:
a folder is written beside its place, synced and renamed, so that a reader finds the old artifact or the new one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import sys
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
    file_digest,
    fingerprint,
    jsonable,
    read_bytes,
    sweep,
    sync_folder,
    writing_errors,
    written_digest,
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
    return _steadily(Path(path), _open)


def _open(path: Path) -> Artifact:
    file = path / MANIFEST
    if not os.path.isfile(file):
        raise InterfuseError(
            "input.missing",
            f"the folder has no {MANIFEST}",
            where=str(path),
            fix="Name a folder that Interfuse has written.",
        )
    try:
        data = read_bytes(file, limit=2**28)
        manifest = json.loads(data.decode())
        digest = manifest.pop("digest")
        whole = fingerprint(manifest) == digest
        manifest["digest"] = digest
        whole = whole and canonical_json(manifest) == data and isinstance(manifest["kind"], str)
        version = manifest["format"]
        sizes = {str(name): int(row["bytes"]) for name, row in manifest["files"].items() if row["digest"]}
    except (InterfuseError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InterfuseError("artifact.damaged", "the manifest cannot be read", where=str(file)) from error
    if not whole:
        raise InterfuseError("artifact.damaged", "the manifest does not match its own digest", where=str(file))
    if version != FORMAT:
        raise InterfuseError("artifact.damaged", f"the manifest is of format {version!r}, not {FORMAT}",
                             where=str(file), fix="Another version of Interfuse wrote it.")  # fmt: skip
    for name, size in sizes.items():
        target = contained(path, name)
        if not target.is_file() or target.stat().st_size != size:
            raise InterfuseError("artifact.damaged", f"{name} is missing or not {size} bytes", where=str(path))
    return Artifact(path, manifest)


def verify(path: Any) -> Artifact:
    """Opens an artifact (its folder, or what a method gave back) and checks every byte of it, and that nothing was added.

    Raises:
        InterfuseError: as :func:`open_artifact`, or ``artifact.damaged`` naming each file that differs.
    """
    return _steadily(Path(getattr(path, "path", path)), _verify)


def _verify(path: Path) -> Artifact:
    artifact = _open(path)
    files = artifact.manifest["files"]
    bad = []
    for name, row in sorted(files.items()):
        try:
            if file_digest(path / name, str(row["digest"]).partition(":")[0]) != row["digest"]:
                bad.append(f"{name} has other bytes")
        except OSError as error:
            bad.append(f"{name} cannot be read ({error.strerror})")
    bad += [f"{name} is not in the manifest" for name in _walk(path) if name not in files and name != MANIFEST]
    if bad:
        raise InterfuseError("artifact.damaged", "; ".join(bad[:20]), where=str(path))
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
        write: fills the folder it is given with plain files and folders, and may return facts to put into the manifest.
        manifest: ``kind`` and whatever else describes the work; it must not hold times or absolute paths, so that the
            same work gives the same bytes.
        force: replace what is there, even if it is not ours (but never a folder that holds the working or home folder).

    Raises:
        InterfuseError: ``output.exists``, ``output.busy``, ``output.space`` or ``output.write``; what was there is untouched.
    """
    path, place = Path(path), _real(Path(path))
    with lock(place), writing_errors(path):
        _recover(place)
        refuse_taken(path, force=force)
        _sweep(place)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.tmp-", dir=place.parent))
        try:
            temporary.chmod(0o755)
            facts = jsonable(dict(write(temporary) or {}))
            body = {"format": FORMAT, **jsonable(manifest), "facts": facts, "files": _files(temporary)}
            body["digest"] = fingerprint(body)
            (temporary / MANIFEST).write_bytes(canonical_json(body))
            _sync_tree(temporary)
            _replace(temporary, place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return Artifact(path, body)


def refuse_taken(path: Path, *, force: bool = False) -> None:
    """Raises ``output.exists`` when ``path`` holds something and overwriting was not asked for."""
    with writing_errors(path):
        free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        if free:
            return
        dear = [Path(os.path.realpath(place)) for place in (os.getcwd(), os.path.expanduser("~"))]
    if any(place.is_relative_to(_real(path)) for place in dear):
        raise InterfuseError(
            "output.exists", "the folder holds the working or home folder and is never replaced", where=str(path),
            fix="Choose another place with -o.",
        )  # fmt: skip
    if force:
        return
    ours = (path / MANIFEST).is_file()
    what = "an artifact is there already" if ours else "something that Interfuse did not write is there"
    raise InterfuseError(
        "output.exists",
        what,
        where=str(path),
        fix="Choose another place with -o, or add --force to replace it (in Python: out=, force=True).",
    )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the right to write at ``path``; it ends with the process, even a killed one.

    Raises:
        InterfuseError: ``output.busy`` when another process holds it.
    """
    from filelock import FileLock, Timeout

    with writing_errors(path):
        place = _real(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        guard = FileLock(place.parent / f".{place.name}.lock")
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
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    import platform

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    installed = _installed()
    for name in ("interfuse", "torch", "transformers", "accelerate", "numpy", "safetensors"):
        if name in installed:
            found[name] = installed[name]
        elif importlib.util.find_spec(name) is not None:  # installed in another way
            import importlib.metadata as metadata

            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
    return found


def _installed() -> dict[str, str]:
    """Packages and their versions as the names of their folders of metadata say: reading the metadata takes a hundred times as long."""
    found: dict[str, str] = {}
    for place in sys.path:
        with contextlib.suppress(OSError):
            for name in sorted(n for n in os.listdir(place or ".") if n.endswith(".dist-info")):
                package, _, version = name.removesuffix(".dist-info").partition("-")
                found.setdefault(package.lower(), version)
    return found


def _walk(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name in _walk(folder):
        file = contained(folder, name)
        if file.is_symlink() or not file.is_file() or not name.isprintable():
            raise InterfuseError("output.write", f"an artifact holds plain files only, not {name!r}")
        if name != MANIFEST:
            rows[name] = {"bytes": file.stat().st_size, "digest": written_digest(file)}
    return rows


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


def _real(path: Path) -> Path:
    """The place behind links and dots: what is renamed and locked."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise InterfuseError("unsafe.path", "the name holds a NUL", where=repr(str(path))) from error


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when another folder takes the place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _steadily(path: Path, look: Callable[[Path], Artifact]) -> Artifact:
    """What ``look`` finds at ``path``; if the artifact is replaced meanwhile, it looks again."""
    for _ in range(1000):
        place = _real(path)
        _wait_for(place)
        before = _stamp(place)
        try:
            found = look(path)
        except (InterfuseError, OSError) as error:
            if before != _stamp(place) or (before is None and os.path.exists(_aside(place))):
                continue  # it was about something that is not there any more
            if isinstance(error, InterfuseError):
                raise
            raise InterfuseError("artifact.damaged", f"cannot be read: {error.strerror}", where=str(path)) from error
        if before == _stamp(place):
            return found
    raise InterfuseError("output.busy", "the artifact is replaced again and again", where=str(path))


def _replace(new: Path, path: Path) -> None:
    """Puts ``new`` at ``path``. Between its two renames the old artifact stands at a known name, from which
    :func:`_recover` brings it back."""
    aside = _aside(path)
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if path.exists():
        os.rename(path, aside)  # _sweep has made this name free
    try:
        os.rename(new, path)
        sync_folder(path.parent)
    except BaseException:
        if not new.exists():
            os.rename(path, new)
        _recover(path)
        raise
    _sweep(path)


def _recover(path: Path) -> None:
    aside = _aside(path)
    if aside.exists() and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # another process may have been quicker
            os.rename(aside, path)


def _wait_for(path: Path) -> None:
    """A reader that finds nothing but the old artifact aside: either a writer is between its two renames, which takes an
    instant, or one was killed there, and then the lock is free."""
    for _ in range(200):
        if os.path.exists(path) or not os.path.exists(_aside(path)):  # False also for a name too long
            return
        try:
            with lock(path):
                _recover(path)
        except InterfuseError:
            time.sleep(0.05)


def _sweep(path: Path) -> None:
    """Removes the old artifact and what a killed process left half-written; the lock is held, so nobody is writing it."""
    aside = _aside(path)
    if path.exists() and os.path.lexists(aside):
        with contextlib.suppress(OSError):  # it loses its name first: what stands there is always whole
            os.rename(aside, path.parent / f".{path.name}.tmp-old-{time.time_ns()}")
    sweep(path)
