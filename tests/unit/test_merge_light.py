"""Merges that are sums of models start without ``torch``, and large files are read for their digest once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interfuse.data import digests

SUMS = {
    "linear": ["--weight", "[0.3, 0.7]"],
    "task-arithmetic": ["--base", "base", "--scale", "0.5"],
    "slerp": ["--t", "0.3"],
    "multislerp": [],
    "karcher": ["--base", "base"],
    "geometric-median": [],
    "model-stock": ["--base", "base"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Stored types that are read without ``torch``, and a counter, which is copied."""
    folder = tmp_path_factory.mktemp("light")
    for seed, name in enumerate(("base", "a", "b")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
        numbers = torch.randn(3000, generator=torch.Generator().manual_seed(seed))
        state = {"w": numbers.bfloat16(), "h": numbers.half(), "f": numbers, "count": torch.arange(3)}
        save_file(state, folder / name / "model.safetensors")
    return folder


def without(heavy, words, folder):
    """Runs a command that must not load these packages."""
    program = (
        f"import sys; from interfuse.cli.main import app\ntry: app.main({words!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"assert not set({heavy!r}) & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)


@pytest.mark.parametrize("slug", SUMS)
def test_a_sum_of_models_never_loads_torch(slug, models):
    without(["torch", "transformers"], ["merge", slug, "a", "b", *SUMS[slug], "-o", f"out-{slug}", "-q"], models)
    made, one, two = (load_file(models / n / "model.safetensors") for n in (f"out-{slug}", "a", "b"))
    assert {n: t.dtype for n, t in made.items()} == {n: t.dtype for n, t in one.items()}
    assert made["count"].equal(one["count"])
    if slug == "linear":
        for name in "whf":
            exact = 0.3 * one[name].double() + 0.7 * two[name].double()
            assert (made[name].double() - exact).abs().max() <= torch.finfo(made[name].dtype).eps * exact.abs().max()


@pytest.mark.parametrize("words", [["ties", "a", "b", "--base", "base", "-o", "out-ties", "-q"], ["diff", "a", "b"]])
def test_looking_at_weights_alone_loads_no_transformers(words, models):
    without(["transformers"], ["merge", *words], models)


@pytest.mark.parametrize("code", ["bfloat16", "float16"])
def test_rounding_without_torch_is_that_of_torch(code, models, tmp_path):
    """Halves between two neighbours go to the even one, and the smallest numbers keep their digits."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = np.arange(0x3F800000, 0x3F800000 + 2**16 * 64, 2**15, dtype=np.uint32)
    numbers = np.concatenate([bits, ties, ties + 1]).view(np.float32)
    numbers = numbers[np.isfinite(numbers) & (np.abs(numbers) < 6e4)]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
        save_file({"w": torch.from_numpy(numbers)}, tmp_path / name / "model.safetensors")
    words = ["merge", "linear", "x", "y", "--out-dtype", code, "-o", "out", "-q"]
    subprocess.run([sys.executable, "-m", "interfuse", *words], cwd=tmp_path, check=True)
    made = load_file(tmp_path / "out" / "model.safetensors")["w"]
    mean = (torch.from_numpy(numbers) + torch.from_numpy(numbers)) * 0.5
    assert made.equal(mean.to(getattr(torch, code)))


def test_digests_of_large_files_at_rest_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "NOTES", tmp_path / "notes")
    monkeypatch.setattr(digests, "_LARGE", 1)
    read: list[Path] = []
    real = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path, kind: read.append(path) or real(path, kind))

    def fresh(path):
        digests._known.clear()  # as in another process
        return digests.weight_digest(path)

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = fresh(file)
    assert fresh(file) == first
    assert len(read) == 2  # written a moment ago: not at rest
    monkeypatch.setattr(digests, "_SETTLED", 0)
    assert [fresh(file), fresh(file)] == [first, first]
    assert len(read) == 3
    stat = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time: the time of change still tells
    assert fresh(file) != first
    for note in (tmp_path / "notes").iterdir():
        note.write_text("torn")
    assert fresh(file) == real(file, "xxh3")
