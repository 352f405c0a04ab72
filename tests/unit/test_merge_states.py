"""State dicts as models: merged as folders are, and refused where a model must run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.models import build, open_model
from tests.tiny_models import tiny


def states(folder, *names):
    places = [tiny(folder, "llama", name) for name in names]
    return places, [load_file(place / "model.safetensors") for place in places]


def test_state_dicts_merge_as_their_folders_do(tmp_path):
    folders, (base, x, y) = states(tmp_path, "base", "x", "y")
    before = {n: t.clone() for n, t in x.items()}
    expected = load_file(
        interfuse.merge.ties(folders[1:], base=folders[0], density=0.4, out=tmp_path / "one").path / "model.safetensors"
    )
    arrays = {n: t.numpy() for n, t in y.items()}
    made = interfuse.merge.ties([x, arrays], base=base, density=0.4, out=tmp_path / "two")
    got = load_file(made.path / "model.safetensors")
    assert all(got[n].equal(t) for n, t in expected.items())
    assert not (made.path / "config.json").exists()
    assert all(x[n].equal(t) for n, t in before.items())
    mixed = interfuse.merge.ties([x, y], base=folders[0], density=0.4, out=tmp_path / "three")
    assert (mixed.path / "config.json").is_file()  # the base's, as always
    got = load_file(mixed.path / "model.safetensors")
    assert all(got[n].equal(t) for n, t in expected.items())
    interfuse.verify(mixed.path)


def test_the_content_of_a_state_dict_is_its_fingerprint():
    one = open_model(Source({"w": torch.ones(2)}), Ctx()).fingerprint()
    assert one == open_model(Source({"w": np.ones(2, dtype=np.float32)}), Ctx()).fingerprint()
    assert one != open_model(Source({"w": torch.zeros(2)}), Ctx()).fingerprint()
    assert one != open_model(Source({"v": torch.ones(2)}), Ctx()).fingerprint()


@pytest.mark.parametrize(
    "state", [{"w": torch.ones(2), "v": "words"}, {3: torch.ones(2)}, {"w": torch.ones(2, device="meta")}]
)
def test_what_is_no_state_dict_is_refused(state, tmp_path):
    with pytest.raises(InterfuseError) as caught:
        interfuse.merge.linear([state, state], out=tmp_path / "out")
    assert caught.value.code == "input.type"


def test_a_state_dict_cannot_run(tmp_path):
    model = open_model(Source({"w": torch.ones(2)}), Ctx())
    with pytest.raises(InterfuseError, match="no architecture") as caught:
        build(model, Ctx())
    assert caught.value.code == "input.type"
    with pytest.raises(InterfuseError):
        interfuse.merge.linear([{"w": torch.ones(2)}, {"w": torch.ones(3)}], out=tmp_path / "out")
