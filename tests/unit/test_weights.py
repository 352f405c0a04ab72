"""Reading and writing weight files, against the reference library and by hand."""

import gc
import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interfuse.core.errors import InterfuseError
from interfuse.data.weight_writer import MemoryWriter, WeightWriter, plan_shards
from interfuse.data.weights import Weights

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.bool]


def random_state(seed=0):
    rng = torch.Generator().manual_seed(seed)
    state = {f"layer.{i}.weight": torch.randn(37, 11 + i, generator=rng).to(t) for i, t in enumerate(FLOATS)}
    for i, dtype in enumerate(INTEGERS):
        state[f"count.{i}"] = torch.randint(0, 2 if dtype == torch.bool else 100, (5, i + 1), generator=rng).to(dtype)
    state["float8"] = torch.randn(9, generator=rng).to(torch.float8_e4m3fn)
    state["scalar"] = torch.tensor(3.5)
    state["empty"] = torch.empty(0, 4)
    return state


def same_bits(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    )


def write_all(folder, state, **options):
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in state.items()}
    with WeightWriter(folder, layout, **options) as writer:
        for name in reversed(state):
            writer.write(name, 0, state[name].reshape(-1))
    return writer


@pytest.mark.parametrize("backend", ["file", "memory"])
def test_every_type_reads_back(tmp_path, backend):
    state = random_state()
    if backend == "file":
        save_file(state, tmp_path / "model.safetensors")
        weights = Weights.open(tmp_path)
    else:
        weights = Weights.from_state_dict(state)
    with weights:
        assert sorted(weights) == sorted(state)
        for name, expected in state.items():
            info = weights.info(name)
            assert (info.dtype, info.shape, info.numel) == (expected.dtype, tuple(expected.shape), expected.numel())
            assert same_bits(weights.tensor(name), expected)
            assert same_bits(weights.tensor(name, copy=True), expected)
            flat = expected.reshape(-1).to(torch.float32)
            assert weights.read(name).equal(flat)
            third = expected.numel() // 3
            assert weights.read(name, third, 2 * third).equal(flat[third : 2 * third])


def test_read_fills_the_given_buffer_only(tmp_path):
    save_file({"a": torch.arange(300_000).to(torch.bfloat16)}, tmp_path / "a.safetensors")
    buffer = torch.full((10,), -1.0)
    with Weights.open(tmp_path / "a.safetensors") as weights:
        out = weights.read("a", 100, 104, buffer[:4])
        assert out.data_ptr() == buffer.data_ptr()
        assert buffer.tolist() == [100, 101, 102, 103] + [-1] * 6
        assert weights.read("a").equal(torch.arange(300_000).to(torch.bfloat16).float())  # more than one piece
        for bad in (torch.empty(5), torch.empty(4, dtype=torch.float64), torch.empty(4, 2)[:, 0]):
            with pytest.raises(InterfuseError) as caught:
                weights.read("a", 0, 4, bad)
            assert caught.value.code == "input.shape"
        for start, stop in ((-1, 2), (3, 2), (0, 300_001)):
            with pytest.raises(InterfuseError) as caught:
                weights.read("a", start, stop)
            assert caught.value.code == "input.shape"


def test_view_shares_the_file_and_never_changes_it(tmp_path):
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    weights = Weights.open(tmp_path)
    view = weights.tensor("a")
    assert view.data_ptr() == weights.tensor("a").data_ptr()
    view.add_(1)
    weights.close()
    assert view.sum() == 1000  # outlives the weights
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(InterfuseError) as caught:
        weights.read("a")
    assert caught.value.code == "input.missing"


def test_unaligned_tensor_is_copied(tmp_path):
    header = {"b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header["a"] = {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}
    raw = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(
        len(raw).to_bytes(8, "little") + raw + b"\7" + np.array([1.5, -2], "<f4").tobytes()
    )
    with Weights.open(tmp_path / "x.safetensors") as weights:
        assert list(weights) == ["b", "a"]
        assert weights.tensor("a").tolist() == weights.read("a").tolist() == [1.5, -2]


def test_names_come_in_file_order(tmp_path):
    state = {name: torch.zeros(3) for name in ("z", "a", "m", "b")}
    write_all(tmp_path, state)
    with Weights.open(tmp_path) as weights:
        assert list(weights) == ["z", "a", "m", "b"]
        assert weights.nbytes == 48


def test_unknown_name_suggests(tmp_path):
    weights = Weights.from_state_dict({"layer.weight": torch.zeros(2)})
    assert "layer.wieght" not in weights
    with pytest.raises(InterfuseError, match=r"layer\.weight") as caught:
        weights.tensor("layer.wieght")
    assert caught.value.code == "input.missing"


def test_sha256_is_the_files(tmp_path):
    state = random_state()
    write_all(tmp_path, state, max_shard_bytes=2000)
    with Weights.open(tmp_path) as weights:
        sums = weights.sha256()
        assert len(sums) > 1
        assert sums == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in weights.files}
    a = Weights.from_state_dict({"a": torch.zeros(2)}).sha256()
    assert a == Weights.from_state_dict({"a": torch.zeros(2)}).sha256()
    assert a != Weights.from_state_dict({"a": torch.zeros(1, 2)}).sha256()


def test_state_dict_is_shared_and_strided_tensors_work():
    base = torch.arange(12.0).view(3, 4)
    weights = Weights.from_state_dict({"plain": base, "turned": base.t()})
    assert weights.tensor("plain").data_ptr() == base.data_ptr()
    assert weights.read("turned").tolist() == base.t().reshape(-1).tolist()
    for bad in (3, torch.empty(2, device="meta"), torch.eye(3).to_sparse()):
        with pytest.raises(InterfuseError) as caught:
            Weights.from_state_dict({"bad": bad})
        assert caught.value.code == "input.type"
    with pytest.raises(InterfuseError) as caught:
        Weights.from_state_dict({"c": torch.zeros(2, dtype=torch.complex64)}).read("c")
    assert caught.value.code == "input.type"


@pytest.mark.parametrize("limit", [10**9, 2000, 1])
def test_written_files_load_in_the_reference_library(tmp_path, limit):
    state = random_state()
    writer = write_all(tmp_path, state, max_shard_bytes=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    loaded = {}
    for file in files:
        loaded |= load_file(file)
    assert sorted(loaded) == sorted(state)
    assert all(same_bits(loaded[name], state[name]) for name in state)
    if limit == 10**9:
        assert [file.name for file in files] == ["model.safetensors"]
        assert not (tmp_path / "model.safetensors.index.json").exists()
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in state.values())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for shard in writer.shards:
        assert json.loads(shard.header[8:])["__metadata__"] == {"format": "pt"}
    with Weights.open(tmp_path) as weights:
        assert all(same_bits(weights.tensor(name), state[name]) for name in state)


def test_written_model_loads_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    state = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    config.save_pretrained(tmp_path)
    write_all(tmp_path, state, max_shard_bytes=20_000)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_shards_respect_the_limit_and_alignment():
    layout = {f"t{i}": (FLOATS[i % 4], (7, i)) for i in range(30)}
    for limit in (1, 500, 10**6):
        shards = plan_shards(layout, limit)
        assert sorted(name for shard in shards for name in shard.offsets) == sorted(layout)
        for shard in shards:
            numbers = shard.size - len(shard.header)
            assert numbers <= limit or len([n for n in shard.offsets if math.prod(layout[n][1])]) == 1
            assert all(at % layout[name][0].itemsize == 0 for name, at in shard.offsets.items())
    for bad, code in (({}, "input.empty"), ({"c": (torch.complex128, (1,))}, "input.type")):
        with pytest.raises(InterfuseError) as caught:
            plan_shards(bad)
        assert caught.value.code == code


def test_writer_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(InterfuseError) as caught, WeightWriter(tmp_path, {"a": (torch.float32, (4,))}) as writer:
        writer.write("a", 0, torch.zeros(4, dtype=torch.float16))
    assert caught.value.code == "input.type"
    with pytest.raises(InterfuseError) as caught, WeightWriter(tmp_path, {"a": (torch.float32, (4,))}) as writer:
        writer.write("a", 2, torch.zeros(3))
    assert caught.value.code == "input.shape"
    with pytest.raises(InterfuseError) as caught, WeightWriter(tmp_path, {"a": (torch.float32, (4,))}) as writer:
        writer.write("a", 0, torch.zeros(3))
    assert caught.value.code == "run.failed"
    assert list(tmp_path.iterdir()) == []


def test_error_after_completion_leaves_the_files(tmp_path):
    writer = WeightWriter(tmp_path, dict.fromkeys("ab", (torch.float32, (1,))))
    writer.write("a", 0, torch.ones(1))
    writer.write("b", 0, torch.ones(1))
    assert [path.name for path in writer.close()] == ["model.safetensors"]
    writer.abort()
    assert list(Weights.open(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("stale", ["model.safetensors.index.json", "model-00001-of-00009.safetensors"])
def test_stale_weights_beside_the_output(tmp_path, stale):
    (tmp_path / stale).write_text("old")
    with pytest.raises(InterfuseError) as caught:
        write_all(tmp_path, {"a": torch.ones(4)})
    assert caught.value.code == "output.exists"
    assert [path.name for path in tmp_path.iterdir()] == [stale]
    write_all(tmp_path, {"a": torch.ones(4)}, resumable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_writer_leaves_existing_files_alone(tmp_path):
    state = {"a": torch.ones(4)}
    write_all(tmp_path, state)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(InterfuseError) as caught:
        write_all(tmp_path, state)
    assert caught.value.code == "output.exists"
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_unfinished_file_is_refused_by_readers(tmp_path):
    writer = WeightWriter(tmp_path, {"a": (torch.float32, (4,))}, resumable=True)
    writer.write("a", 0, torch.ones(4))
    os.fsync(next(iter(writer._fds.values())))
    with pytest.raises(InterfuseError) as caught:
        Weights.open(tmp_path)
    assert caught.value.code == "input.format"
    with pytest.raises(Exception, match="eader"):
        load_file(tmp_path / "model.safetensors")
    writer.close()
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [1] * 4


def test_memory_writer():
    writer = MemoryWriter({"a": (torch.bfloat16, (2, 3))})
    writer.write("a", 3, torch.ones(3, dtype=torch.bfloat16))
    writer.write("a", 0, torch.zeros(3, dtype=torch.bfloat16))
    assert writer.state["a"].tolist() == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(InterfuseError):
        writer.write("a", 4, torch.ones(3, dtype=torch.bfloat16))


def test_hub_cache_links_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/0123"))
    with Weights.open(snapshot) as weights:
        assert weights.read("a").tolist() == [1, 1]


def test_index_rules(tmp_path):
    save_file({"a": torch.ones(1), "both": torch.ones(1)}, tmp_path / "s1.safetensors")
    save_file({"both": torch.zeros(1), "unlisted": torch.ones(1)}, tmp_path / "s2.safetensors")
    index = tmp_path / "model.safetensors.index.json"

    def write(weight_map):
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    write({"a": "s1.safetensors", "both": "s2.safetensors"})
    with Weights.open(tmp_path) as weights:
        assert sorted(weights) == ["a", "both", "unlisted"]
        assert weights.read("both").item() == 0
    write({"a": "s1.safetensors", "unlisted": "s2.safetensors"})
    with pytest.raises(InterfuseError) as caught:
        Weights.open(tmp_path)
    assert caught.value.code == "input.duplicate"
    write({"a": "s2.safetensors", "both": "s1.safetensors"})
    with pytest.raises(InterfuseError) as caught:
        Weights.open(tmp_path)
    assert caught.value.code == "input.format"
    index.unlink()
    with pytest.raises(InterfuseError, match="index") as caught:
        Weights.open(tmp_path)
    assert caught.value.code == "input.missing"


def test_the_collector_runs_again_after_headers_were_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 4)
    assert gc.isenabled()
    Weights.open(tmp_path / "model.safetensors").close()
    assert gc.isenabled()
    with pytest.raises(InterfuseError, match=r"input\.format"):
        Weights.open(tmp_path / "damaged.safetensors")
    assert gc.isenabled()
    gc.disable()
    try:
        Weights.open(tmp_path / "model.safetensors").close()
        assert not gc.isenabled()
    finally:
        gc.enable()
