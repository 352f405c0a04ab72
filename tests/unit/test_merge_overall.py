"""TIES with one cut for a model's whole task vector: the engine's pass over all tensors at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import load_room, prepare
from interfuse.data.overlay import whole
from interfuse.merge.room import Whole
from interfuse.merge.unwritten import Unwritten
from tests.oracles.merge_methods_oracle import ties_merge
from tests.tiny_models import tiny

OWN = {"density": [0.2, 0.6], "weight": [1.0, 2.0], "trim_scope": "model"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, and two models of which one has changed its upper layers much more than its lower ones."""
    folder = tmp_path_factory.mktemp("overall")
    places = [tiny(folder, "llama", name) for name in ("base", "x", "y")]
    base, state = (load_file(place / "model.safetensors") for place in places[:2])
    for name in state:
        if "layers.3" in name:
            state[name] = base[name] + 7 * (state[name] - base[name])
        if "layers.0" in name:  # equal magnitudes over several tensors
            state[name] = base[name] + 0.25 * (state[name] - base[name]).sign()
    from safetensors.torch import save_file

    save_file(state, places[1] / "model.safetensors", metadata={"format": "pt"})
    return [str(place) for place in places]


def arrays(folder):
    return {name: t.double().numpy() for name, t in load_file(f"{folder}/model.safetensors").items()}


@pytest.mark.parametrize("density", [[0.2, 0.6], [0.001, 0.999], [0.9, 1.0]])
def test_the_cut_of_the_whole_vector_is_that_of_the_oracle(density, models, tmp_path):
    base, *sources = models
    own = {**OWN, "density": density}
    made = interfuse.merge.ties(sources, base=base, out=tmp_path / "out", workers=1, **own)
    said = ties_merge([arrays(s) for s in sources], arrays(base), scale=1.0, normalize=True, **own)
    for name, tensor in arrays(made.path).items():
        np.testing.assert_allclose(tensor, said[name], rtol=1e-6, atol=1e-6, err_msg=name)
    per_tensor = interfuse.merge.ties(sources, base=base, density=density, weight=OWN["weight"], out=tmp_path / "other")
    assert (per_tensor.path / "model.safetensors").read_bytes() != (made.path / "model.safetensors").read_bytes()


def test_neither_threads_nor_the_order_of_models_change_a_bit(models, tmp_path):
    base, x, y = models
    one = interfuse.merge.ties([x, y], base=base, out=tmp_path / "one", workers=1, **OWN)
    other = interfuse.merge.ties(
        [y, x], base=base, density=[0.6, 0.2], weight=[2.0, 1.0], trim_scope="model", out=tmp_path / "b", workers=3
    )
    assert (one.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()
    call = prepare(load_room("merge"), load("merge/ties"), {"models": [x, y], "base": base, **OWN}, Ctx())
    with Unwritten(call).open() as tensors:
        for name, tensor in load_file(one.path / "model.safetensors").items():
            assert whole(tensors.source(name)).equal(tensor), name


def test_one_cut_has_one_density(models, tmp_path):
    base, *sources = models
    with pytest.raises(InterfuseError, match="differs from tensor to tensor") as caught:
        interfuse.merge.ties(
            sources, base=base, trim_scope="model", density={"gradient": [0.2, 0.4]}, out=tmp_path / "out"
        )
    assert caught.value.code == "param.value"
    assert not (tmp_path / "out").exists()
    with pytest.raises(InterfuseError):  # before any work
        prepare(
            load_room("merge"),
            load("merge/ties"),
            {"models": sources, "base": base, "trim_scope": "model", "density": {"gradient": [0.2, 0.4]}},
            Ctx(),
        )


class Read:
    """A tensor of numbers made by place, which remembers how many were read at a time."""

    def __init__(self, size, seed):
        self.shape, self.seed, self.most, self.times = (size,), seed, 0, 0

    def read(self, start, stop, out=None):
        self.most = max(self.most, stop - start)
        self.times += start == 0
        values = torch.arange(start, stop, dtype=torch.float64).mul(self.seed).sin().float()
        return values if out is None else out.copy_(values)


def test_the_pass_holds_pieces_and_reads_each_model_a_fixed_number_of_times():
    method = load("merge/ties")
    own = {n: p.default for n, p in method.params.items()} | {"trim_scope": "model", "density": 0.3}
    flats = [[Read(700_001, 0.37 * (t + 1)), Read(700_001, 1.13 * (t + 1))] for t in range(3)]
    zero = Read(700_001, 0.0)
    wholes = [
        Whole(f"t{t}", (700_001,), pair, zero, 0, ["a", "b"], [(0, "t"), (1, "t")]) for t, pair in enumerate(flats)
    ]
    cuts = method.traits["overall"](wholes, [own] * 3, 2)
    for model in (0, 1):
        kept = sum(
            int(cut[model].mask(pair[model].read(0, 700_001), 0).sum()) for pair, cut in zip(flats, cuts, strict=True)
        )
        assert kept == int(0.3 * 3 * 700_001)
    fresh = [[Read(700_001, 0.37 * (t + 1))] for t in range(3)]
    method.traits["overall"](
        [Whole(f"t{t}", (700_001,), pair, zero, 0, ["a"], [(0, "t")]) for t, pair in enumerate(fresh)], [own] * 3, 1
    )
    assert all(flat.most <= 1 << 18 and flat.times <= 3 for (flat,) in fresh)


def test_a_plan_tells_that_sources_are_read_more_often(models):
    base, *sources = models
    room = load_room("merge")

    def read(**own):
        call = prepare(room, load("merge/ties"), {"models": sources, "base": base, **own}, Ctx())
        return room.estimate(call).bytes_read

    assert read(trim_scope="model") == 2 * read()
