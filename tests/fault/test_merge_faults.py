"""Whole merges met with bad input and bad luck: refused before work with names and remedies, or finished to the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import interfuse
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from tests.conformance.cases import CASES
from tests.tiny_models import WORDS_X, adapter, tiny, words


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return {name: tiny(folder, "llama", name) for name in ("base", "x", "y")}


def copy_of(model, place, change=None):
    """A copy of a model folder whose tensors ``change`` may alter in place."""
    shutil.copytree(model, place)
    if change is not None:
        state = load_file(place / "model.safetensors")
        change(state)
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    return place


def refused(tmp_path, code, method="ties", **given):
    """The words of the refusal; nothing may be left at or beside the output."""
    out = tmp_path / "refused" / "out"
    out.parent.mkdir(exist_ok=True)
    with pytest.raises(InterfuseError) as caught:
        getattr(interfuse.merge, method)(out=out, **given)
    assert caught.value.code == code, caught.value
    assert [p.name for p in out.parent.iterdir() if not p.name.endswith(".lock")] == []
    return str(caught.value)


def test_the_first_mismatches_are_listed_with_a_remedy(models, tmp_path):
    def widen(state):
        for name in list(state):
            if "mlp.up_proj" in name or "mlp.gate_proj" in name:
                state[name] = torch.zeros(32, state[name].shape[1])
            if "layers.3" in name and "q_proj" in name:
                del state[name]
        state["model.extra.weight"] = torch.zeros(3)

    odd = copy_of(models["y"], tmp_path / "odd", widen)
    said = refused(tmp_path, "input.shape", models=[models["x"], odd], base=models["base"])
    assert "model.layers.0.mlp.gate_proj.weight: [24, 16] in" in said
    assert "[32, 16] in odd" in said
    assert len([line for line in said.splitlines() if line.startswith("  model.")]) == 8  # a line each
    assert "\n  and 1 more" in said
    assert "one base" in said
    lone = copy_of(models["y"], tmp_path / "lone", lambda s: s.pop("model.norm.weight"))
    assert "model.norm.weight: missing in lone" in refused(
        tmp_path, "input.shape", models=[models["x"], lone], base=models["base"]
    )
    more = copy_of(models["y"], tmp_path / "more", lambda s: s.update({"model.extra.weight": torch.zeros(3)}))
    assert "model.extra.weight: only in more" in refused(
        tmp_path, "input.shape", models=[models["x"], more], base=models["base"]
    )
    gpt = tiny(tmp_path, "gpt2", "x")
    said = refused(tmp_path, "input.shape", models=[models["x"], gpt], base=models["base"])
    assert "architectures differ: gpt2 and llama" in said or "architectures differ: llama and gpt2" in said
    assert "distillation" in said
    rows = said.splitlines()[1:9]
    assert (
        rows[0].startswith("  lm_head.weight: [29, 16] in ")
        or rows[0].startswith("  transformer.")
        or rows[0].startswith("  model.")
    )
    assert {"missing in" in row for row in rows} == {True}
    assert {row.split(".")[0] for row in rows} >= {"  model", "  transformer"}  # of both in turn
    assert "more [" in said.splitlines()[9]


#: methods that look at nothing but weights, and do something with them
PLAIN = [
    c.slug
    for c in CASES
    if c.room == "merge" and "calibrate" not in load(f"merge/{c.slug}").traits and c.slug != "passthrough"
]


@pytest.mark.parametrize(("method", "value"), [*((m, float("nan")) for m in PLAIN), *((m, float("inf")) for m in (
    "linear", "ties", "task-arithmetic", "tsv", "della", "slerp", "sce", "model-stock"))])  # fmt: skip
def test_a_number_that_is_none_is_named_by_its_tensor(models, method, value, tmp_path):
    def spoil(state):
        state["model.layers.2.mlp.down_proj.weight"][3, 5] = value

    bad = copy_of(models["y"], tmp_path / "bad", spoil)
    base = (
        {}
        if load(f"merge/{method}").traits.get("base", "optional") == "none" or method == "linear"
        else {"base": models["base"]}
    )
    said = refused(tmp_path, "input.nan", method.replace("-", "_"), models=[models["x"], bad], **base)
    assert "model.layers.2.mlp.down_proj.weight" in said
    assert "bad holds NaN or infinity" in said


def test_every_model_that_holds_what_is_no_number_is_named(models, tmp_path):
    bad = [
        copy_of(models[n], tmp_path / f"bad-{n}", lambda s: s["model.norm.weight"].fill_(float("inf")))
        for n in ("base", "y")
    ]
    said = refused(tmp_path, "input.nan", models=[models["x"], bad[1]], base=bad[0])
    assert "bad-y and bad-base hold NaN or infinity" in said
    said = refused(tmp_path, "input.nan", models=[models["x"], bad[1]], base=models["base"], trim_scope="model")
    assert "bad-y holds NaN or infinity" in said
    assert "model.norm.weight" in said
    halves = refused(
        tmp_path,
        "input.nan",
        "task_arithmetic",
        models=[models["x"]],
        base=models["base"],
        scale=1e38,
        out_dtype="float16",
    )
    assert "the result is NaN, infinite or too large" in halves  # no model is to blame


def test_missing_bases_numbers_out_of_range_and_rules_that_fit_nothing(models, tmp_path):
    pair = [models["x"], models["y"]]
    assert "--base" in refused(tmp_path, "param.missing", models=pair)
    assert "density" in refused(tmp_path, "param.value", models=pair, base=models["base"], density=1.5)
    said = refused(
        tmp_path, "param.value", models=pair, base=models["base"], density=[{"filter": "self_atn", "value": 0.5}]
    )
    assert "self_attn" in said
    assert "input.missing" in refused(
        tmp_path, "input.missing", models=[models["x"], tmp_path / "nowhere"], base=models["base"]
    )


def header_of(text, length=None):
    raw = text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


ATTACKS = {
    "a header longer than the file": header_of("{}", 1 << 40),
    "a header that is no JSON": header_of("{" * 100),
    "no header": b"\0" * 4,
    "tensors that overlap": header_of(json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                                                   "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})) + b"\0" * 12,
    "a tensor beyond the end": header_of(json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})) + b"\0" * 8,
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_damaged_and_hostile_files_never_start_a_merge(models, attack, tmp_path):
    bad = copy_of(models["y"], tmp_path / "bad")
    (bad / "model.safetensors").write_bytes(ATTACKS[attack])
    refused(tmp_path, "input.format", models=[models["x"], bad], base=models["base"])


def test_torn_shards_and_pickles_never_start_a_merge(models, tmp_path):
    state = load_file(models["y"] / "model.safetensors")
    bad = copy_of(models["y"], tmp_path / "bad")
    (bad / "model.safetensors").unlink()
    names = sorted(state)
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for shard, part in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({n: state[n] for n in part}, bad / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: shards[i % 2] for i, n in enumerate(names)}}
    (bad / "model.safetensors.index.json").write_text(json.dumps(index))
    sound = interfuse.merge.ties([models["x"], bad], base=models["base"], out=tmp_path / "sound").path
    whole = interfuse.merge.ties([models["x"], models["y"]], base=models["base"], out=tmp_path / "whole").path
    assert (sound / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    raw = (bad / shards[1]).read_bytes()
    for length in (len(raw) - 1, len(raw) // 2, 4):
        (bad / shards[1]).write_bytes(raw[:length])
        assert shards[1] in refused(tmp_path, "input.format", models=[models["x"], bad], base=models["base"])
    (bad / shards[1]).unlink()
    assert shards[1] in refused(tmp_path, "input.missing", models=[models["x"], bad], base=models["base"])
    for file in bad.glob("*.safetensors*"):
        file.unlink()
    (bad / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    said = refused(tmp_path, "unsafe.pickle", models=[models["x"], bad], base=models["base"])
    assert "weights_only=True" in said


def test_an_adapter_for_another_base_is_refused(models, tmp_path):
    other = tiny(tmp_path, "llama", "wide", hidden_size=32)
    adapter(other, tmp_path / "adapter", r=2, lora_alpha=4, target_modules=["q_proj"])
    said = refused(
        tmp_path, "input.shape", models=[models["x"], f"{models['base']}+{tmp_path / 'adapter'}"], base=models["base"]
    )
    assert "q_proj" in said


def test_a_disk_too_small_is_told_before_any_number_is_computed(models, tmp_path, monkeypatch):
    from interfuse.kit import streaming

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(streaming._Hand, "compute", lambda *_: pytest.fail("a number was computed"))
    said = refused(tmp_path, "output.space", models=[models["x"], models["y"]], base=models["base"])
    assert "the disk has 1,000" in said


KILLED = """
import os, signal, sys, threading
import torch
import interfuse
from interfuse.data import weight_writer
from interfuse.merge import room, ties  # everything is imported before the first fork
import interfuse.merge.finish, transformers

for line in sys.stdin:  # one merge per line, in a child of this process, which itself starts no threads
    base, x, y, out, limit = line.split()
    child = os.fork()
    if child == 0:
        left, lock = int(limit), threading.Lock()
        workers, memory = (2, 2.0) if left >= 0 else (1, 0.002)  # it goes on with less than it began with
        real = weight_writer._write_at

        def write(fd, view, offset):
            global left
            with lock:
                if 0 <= left < len(view):
                    real(fd, view[:left], offset)
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= len(view) if left >= 0 else 0
            real(fd, view, offset)

        weight_writer._write_at = write
        code = 1
        try:
            interfuse.merge.dare_ties([x, y], base=base, density=0.5, out=out, workers=workers, max_memory=memory)
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")
def test_a_kill_at_any_byte_is_made_good(models, tmp_path):
    """The process dies while it writes byte n of the weights; the next run, with fewer threads and less memory, ends with
    the bytes of an undisturbed one."""
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as process:

        def merge(out, limit=-1):
            process.stdin.write(" ".join(map(str, (models["base"], models["x"], models["y"], out, limit))) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        assert merge(tmp_path / "whole" / "out") == 0
        expected = digests(tmp_path / "whole" / "out")
        size = (tmp_path / "whole" / "out" / "model.safetensors").stat().st_size
        places = [0, 1, 7, 8, 9, 1000, 4000, *range(5000, size, size // 9), size - 2, size - 1]
        killed = 0
        for place in places:
            out = tmp_path / f"killed-{place}" / "out"
            out.parent.mkdir()
            status = merge(out, place)
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL)
            assert out.exists() == (status == 0)
            if status:
                assert merge(out) == 0
            assert digests(out) == expected, place
            assert [p.name for p in out.parent.iterdir() if not p.name.endswith(".lock")] == ["out"]
        assert killed >= len(places) - 3
        process.stdin.close()


KILLED_AT_A_CALL = """
import builtins, io, os, pathlib, signal, sys, threading
import torch
import interfuse
from interfuse.merge import room, sce  # everything is imported before the first fork
import interfuse.merge.finish, transformers

for line in sys.stdin:
    base, x, y, out, limit = line.split()
    child = os.fork()
    if child == 0:
        seen, lock = 0, threading.Lock()

        def counted(real, after=False):
            def call(*args, **rest):
                global seen
                if after and not set("wax+") & set(rest.get("mode") or (args[1] if len(args) > 1 else "r")):
                    return real(*args, **rest)
                result = real(*args, **rest) if after else None
                with lock:
                    seen += 1
                    if seen == int(limit):
                        os.kill(os.getpid(), signal.SIGKILL)
                return result if after else real(*args, **rest)

            return call

        for name in ("replace", "rename", "unlink", "remove", "fsync", "mkdir", "rmdir", "truncate", "ftruncate", "write", "pwrite", "link"):
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = io.open = counted(open, after=True)  # the file is there, and empty or torn
        code = 1
        try:
            interfuse.merge.sce([x, y], base=base, select_topk=0.5, out=out, workers=1, max_shard=3e-6, chat_template="chatml")
            if limit == "0":
                pathlib.Path(out).with_name("calls").write_text(str(seen))
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")
def test_a_kill_at_any_step_is_made_good(tmp_path):
    """The process dies just before it renames, removes, flushes or writes something, or just after it has opened a file to write:
    weights in several shards, configuration, tokenizer, card, and the folder's way to its place. The next run ends with the bytes of
    an undisturbed one."""
    names = [words(tmp_path, name, WORDS_X) for name in ("base", "x", "y")]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    with subprocess.Popen([sys.executable, "-c", KILLED_AT_A_CALL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:  # fmt: skip

        def merge(out, limit=-1):
            process.stdin.write(" ".join(map(str, (*names, out, limit))) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        whole = tmp_path / "whole" / "out"
        assert merge(whole, 0) == 0
        expected, calls = digests(whole), int((tmp_path / "whole" / "calls").read_text())
        assert len([n for n in expected if n.endswith(".safetensors")]) >= 4
        assert {"config.json", "tokenizer.json", "README.md", "merge.json", "model.safetensors.index.json"} <= set(
            expected
        )
        places = [
            *range(1, calls - 60, (calls - 60) // 4),
            *range(calls - 60, calls + 1, 4),
        ]  # what comes after the weights more often
        for place in places:
            out = tmp_path / f"killed-{place}" / "out"
            out.parent.mkdir()
            status = merge(out, place)
            assert status == -signal.SIGKILL, place
            if not out.exists():  # else it was in its place already, whole
                assert merge(out) == 0, place
                assert [p.name for p in out.parent.iterdir() if not p.name.endswith(".lock")] == ["out"], place
            assert digests(out) == expected, place
        process.stdin.close()


def test_a_result_in_several_files_loads(models, tmp_path):
    """Shards of at most max_shard with their index, opened by transformers, with the numbers of a single file."""
    from transformers import AutoModelForCausalLM

    pair = [models["x"], models["y"]]
    made = interfuse.merge.linear(pair, out=tmp_path / "shards", max_shard=6e-6).path
    one = interfuse.merge.linear(pair, out=tmp_path / "one").path
    files = sorted(made.glob("*.safetensors"))
    assert len(files) >= 4
    assert max(sum(t.nbytes for t in load_file(f).values()) for f in files) <= 6000
    index = json.loads((made / "model.safetensors.index.json").read_text())
    state = {n: t for f in files for n, t in load_file(f).items()}
    assert set(index["weight_map"]) == set(state)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    module, said = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    single = load_file(one / "model.safetensors")
    assert set(single) == set(state)
    for name, tensor in module.state_dict().items():
        assert tensor.equal(single[name]), name
