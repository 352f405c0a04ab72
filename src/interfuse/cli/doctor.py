"""``doctor``: what is installed here, and what might go wrong."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from interfuse.cli.options import cache_folder
from interfuse.cli.output import as_json, emit, say, size, table
from interfuse.core import index
from interfuse.core.errors import InterfuseError
from interfuse.kit.verbs import json_option, quiet_option

FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "INTERFUSE_CACHE",
         "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONHASHSEED", "NO_COLOR", "CI")  # fmt: skip


def _doctor() -> None:
    """Tell what is installed, how much machine there is, and what might go wrong."""
    warnings: list[str] = []
    problems: list[str] = []
    facts = {
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "packages": _packages(warnings, problems),
        "machine": _machine(warnings),
        "devices": _devices(warnings, problems),
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "offline": bool(os.environ.get("HF_HUB_OFFLINE")),
        "methods": _methods(problems),
        "warnings": warnings,
        "problems": problems,
    }
    if as_json():
        emit(facts)
    else:
        _print(facts)
    if problems:
        click.get_current_context().exit(1)


def _print(facts: dict[str, Any]) -> None:
    say(f"python {facts['python']['version']} ({facts['python']['platform']}) at {facts['python']['executable']}")
    machine = facts["machine"]
    memory = [
        f"{size(machine[k])} {k.split('_')[1]}" for k in ("memory_total", "memory_free") if machine[k] is not None
    ]
    say(f"machine: {machine['cpus']} of {machine['cpus_present']} cores; memory {', '.join(memory) or 'unknown'}; "
        f"disk {size(machine['disk_free'])} free here, {size(machine['cache_free'])} for {machine['cache']}")  # fmt: skip
    say("devices: " + ", ".join(facts["devices"]))
    say("hub: " + ("offline (HF_HUB_OFFLINE)" if facts["offline"] else "online"))
    for name, value in facts["flags"].items():
        say(f"  {name}={value}")
    say(f"methods, recipes, maps: {facts['methods']}")
    table(["package", "version", "needs", "state", "extra"],
          [[p["name"], p["version"] or "-", p["needs"], p["state"], ", ".join(_narrow(p["extras"]))]
           for p in facts["packages"]])  # fmt: skip
    for line in facts["problems"]:
        say(f"problem: {line}")
    for line in facts["warnings"]:
        say(f"warning: {line}")
    if not facts["problems"] and not facts["warnings"]:
        say("nothing to complain about")


def _extras(text: str) -> list[str]:
    """The extras that a requirement belongs to, from its marker."""
    return re.findall(r"extra == ['\"]([\w-]+)['\"]", text.partition(";")[2])


def _narrow(extras: list[str]) -> list[str]:
    """Extras without those of the development, which hold all others, where there are such."""
    return [e for e in extras if e not in ("dev", "test")] or extras


def extra_of(module: str) -> str:
    """The extra of Interfuse that brings a module, such as ``documents`` for ``docx``; empty when none does."""
    name = module.partition(".")[0].replace("_", "-")
    rows = [(re.split(r"[^\w.-]", text)[0], _extras(text)) for text in importlib.metadata.requires("interfuse") or []]
    found = [e for package, extras in rows for e in extras if name in (package, package.removeprefix("python-"))]
    return min(_narrow(found), default="")


def _packages(warnings: list[str], problems: list[str]) -> list[dict[str, Any]]:
    """The packages Interfuse asks for, as its own metadata names them, with what is installed."""
    from packaging.requirements import Requirement

    rows: dict[str, dict[str, Any]] = {}
    for text in importlib.metadata.requires("interfuse") or []:
        need = Requirement(text)
        extra = need.marker is not None and not need.marker.evaluate({"extra": ""})
        if need.name in rows:
            rows[need.name]["extras"] += _extras(text)
        if need.name == "interfuse" or need.name in rows:
            continue
        try:
            found: str | None = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        fits = found is not None and need.specifier.contains(found, prereleases=True)
        state = "ok" if fits else "not installed" if found is None else "wrong version"
        rows[need.name] = {"name": need.name, "version": found, "needs": str(need.specifier), "optional": extra,
                           "extras": _extras(text), "state": state}  # fmt: skip
        if not extra and not fits:
            problems.append(f"{need.name}{need.specifier} is needed, {found or 'nothing'} is installed")
        elif found is not None and not fits:
            warnings.append(f"{need.name} {found} is installed, {need.specifier} is wanted")
    return sorted(rows.values(), key=lambda r: (r["optional"], r["name"]))


def _machine(warnings: list[str]) -> dict[str, Any]:
    present = os.cpu_count() or 1
    cpus = _cores(present)
    total, free = _memory()
    cache = cache_folder()
    there = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    disk, cache_free = shutil.disk_usage(Path.cwd()).free, shutil.disk_usage(there).free
    if cpus < present and "OMP_NUM_THREADS" not in os.environ:
        warnings.append(
            f"only {cpus:g} of {present} cores may be used; OMP_NUM_THREADS={max(1, int(cpus))} avoids idle threads"
        )
    if free is not None and free < 2 * 10**9:
        warnings.append(f"only {size(free)} of memory are free")
    for name, room in (("here", disk), (f"for {cache}", cache_free)):
        if room < 5 * 10**9:
            warnings.append(f"only {size(room)} of disk are free {name}")
    if not os.access(there, os.W_OK):
        warnings.append(f"the cache cannot be written: {cache}")
    return {"cpus": cpus, "cpus_present": present, "memory_total": total, "memory_free": free, "disk_free": disk,
            "cache": str(cache), "cache_free": cache_free}  # fmt: skip


def _cores(present: int) -> float:
    """The cores this process may use: affinity and, on Linux, the control group's quota."""
    cores = float(len(os.sched_getaffinity(0))) if sys.platform == "linux" else float(present)
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores


def _memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all and free, within the control group's limit; None where the system does not say."""
    total = free = None
    with contextlib.suppress(OSError, ValueError):
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        total = min(total, limit) if total is not None else limit
        free = min(free, limit - used) if free is not None else limit - used
    if total is None and sys.platform != "win32":
        with contextlib.suppress(OSError, ValueError):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, free


def _devices(warnings: list[str], problems: list[str]) -> list[str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be loaded: {error}")
        return []
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} {torch.cuda.get_device_name(i)} ({size(torch.cuda.get_device_properties(i).total_memory)})"
                  for i in range(torch.cuda.device_count())]  # fmt: skip
    elif torch.version.cuda:
        warnings.append(f"torch is built for CUDA {torch.version.cuda}, but no such device can be used")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _methods(problems: list[str]) -> int:
    """Reads every card; a broken one is a problem."""
    try:
        table_of = index.entries()
    except InterfuseError as error:
        problems.append(str(error))
        return 0
    for entry in table_of.values():
        try:
            entry.row()
        except InterfuseError as error:
            problems.append(str(error))
    return len(table_of)


COMMANDS = {
    "doctor": click.Command(
        "doctor", callback=_doctor, help=_doctor.__doc__, params=[json_option(), quiet_option()],
        epilog="\b\nExample:\n  interfuse doctor",
    ),
}  # fmt: skip
