"""What methods compute of every tensor is told: in merge.json, by ``explain``, and the same after a stop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

import interfuse
from interfuse.merge.told import Told, as_given
from tests.conformance.fixtures import Killed, _killed_after_some_tensors
from tests.tiny_models import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    return [str(tiny(folder, "llama", name)) for name in ("base", "x", "y", "z")]


def report(folder):
    return json.loads((folder / "merge.json").read_text())


def energies(models):
    base, *others = (load_file(f"{m}/model.safetensors") for m in models)
    return {n: [float((o[n].double() - base[n].double()).square().sum()) for o in others] for n in base}


def test_weights_of_each_tensor_are_told_in_the_order_of_the_models(models, tmp_path):
    base, x, y, _ = models
    shares = {n: np.array(e[:2]) / sum(e[:2]) for n, e in energies(models).items()}
    for name, order, turn in (("there", [x, y], 1), ("back", [y, x], -1)):
        made = interfuse.merge.varm(order, base=base, out=tmp_path / name)
        told = report(made.path)["told"]
        assert list(told) == list(report(made.path)["tensors"])
        for tensor, share in shares.items():
            assert told[tensor]["weights"] == pytest.approx(share[::turn].tolist(), rel=1e-6)
    element = interfuse.merge.varm([x, y], base=base, granularity="element", out=tmp_path / "element")
    assert not any(report(element.path)["told"].values())


def test_what_methods_tell_is_what_they_used(models, tmp_path):
    base, x, y, z = models
    states = [load_file(f"{m}/model.safetensors") for m in models]
    given = {"sce": {"select_topk": 1.0}, "model_stock": {}, "geometric_median": None, "karcher": None, "slerp": None}
    for method, params in given.items():
        inputs = [x, y] if method == "slerp" else [x, y, z]
        bases = {} if params is None else {"base": base}
        made = interfuse.merge.__getattr__(method)(inputs, **bases, **(params or {}), out=tmp_path / method)
        out = load_file(made.path / "model.safetensors")
        for tensor, told in report(made.path)["told"].items():
            under, *others = (s[tensor].double() for s in states)
            if method == "model_stock":
                expected = told["t"] * sum(others) / 3 + (1 - told["t"]) * under
            elif method == "sce":  # minority signs are erased, so the weights are compared themselves
                energy = np.array([float((o - under).square().sum()) for o in others])
                assert told["weights"] == pytest.approx((energy / energy.sum()).tolist(), rel=1e-6)
                continue
            else:
                expected = sum(w * o for w, o in zip(told["weights"], others, strict=False))
            np.testing.assert_allclose(out[tensor].double().numpy(), expected.numpy(), atol=1e-6)


def test_a_stopped_merge_tells_the_same(models, tmp_path):
    base, *sources = models
    whole = interfuse.merge.varm(sources, base=base, out=tmp_path / "whole")
    with pytest.raises(Killed), _killed_after_some_tensors():
        interfuse.merge.varm(sources, base=base, out=tmp_path / "out")
    (told,) = tmp_path.glob(".scratch-out-*/journal.jsonl.told")
    assert len(told.read_text().splitlines()) >= 3
    told.write_text(
        told.read_text()[:30]
    )  # the machine itself went down: the journal got to the disk, this file did not
    resumed = interfuse.merge.varm(sources, base=base, out=tmp_path / "out")
    assert (resumed.path / "merge.json").read_bytes() == (whole.path / "merge.json").read_bytes()
    assert (resumed.path / "interfuse.json").read_bytes() == (whole.path / "interfuse.json").read_bytes()


def test_lines_of_tensors_that_are_not_done_are_forgotten(tmp_path):
    path = tmp_path / "told"
    with Told(path, ()) as told:
        told("a", {"t": 0.5})
        told("b", as_given({"weights": (0.1, 0.9)}, [1, 0]))
    with Told(path, {"b": ""}) as again:
        assert again.found == {"b": {"weights": [0.9, 0.1]}}
    assert path.read_text() == '["b", {"weights": [0.9, 0.1]}]\n'
