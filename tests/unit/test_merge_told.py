"""What methods compute of every tensor is told: in merge.json, by ``explain``, and the same after a stop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

import interfuse
from interfuse.cli.main import app
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.models import open_model
from interfuse.merge.inspect import explain_all
from interfuse.merge.licences import licence_of
from interfuse.merge.recipes import merge_recipe
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


def test_explain_adds_the_tensors_of_a_layer_up(models, tmp_path):
    base, x, y, z = models
    made = interfuse.merge.varm([x, y, z], base=base, out=tmp_path / "out")
    found = explain_all(made.path, models=[x, y, z], base=base)
    assert [row["part"] for row in found["layers"]] == [
        "lm_head.weight", "model.embed_tokens.weight", *(f"model.layers.{i}" for i in range(4)), "model.norm.weight"]  # fmt: skip
    under, *others = (load_file(f"{m}/model.safetensors") for m in (base, x, y, z, made.path))
    for row, inside in (
        (found["layers"][3], "layers.1."),
        (found["whole"], ""),
    ):
        changes = [
            np.concatenate([(s[n].double() - under[n].double()).flatten() for n in under if inside in n])
            for s in others
        ]
        result, changes = changes[-1], changes[:-1]
        assert row["norms"] == pytest.approx([np.linalg.norm(c) for c in changes], rel=1e-5)
        assert row["norm of the result"] == pytest.approx(np.linalg.norm(result), rel=1e-5)
        assert row["cosines"][2][0] == pytest.approx(
            changes[0] @ changes[2] / np.linalg.norm(changes[0]) / np.linalg.norm(changes[2]), abs=1e-6
        )
        assert row["kept"] == pytest.approx([result @ c / (c @ c) for c in changes], abs=1e-5)
        stack = np.sign(np.stack(changes))
        assert row["sign conflicts"] == pytest.approx(np.mean((stack.max(0) > 0) & (stack.min(0) < 0)), abs=1e-3)
        assert row["tensors"] == sum(inside in n for n in under)
        told = [v["weights"] for n, v in report(made.path)["told"].items() if inside in n]
        assert row["told"]["weights"] == pytest.approx(np.mean(told, axis=0).tolist(), rel=1e-6)
    said = CliRunner().invoke(
        app, ["merge", "explain", str(made.path), "--model", x, "--model", y, "--model", z, "--base", base]
    )
    assert said.exit_code == 0, said.output
    assert len(said.stdout.splitlines()) == 2 + 7 + 1 + 1
    assert "conflicts: elements at which sources differ in sign" in said.stdout
    assert "mean weights" in said.stdout
    without = CliRunner().invoke(app, ["merge", "explain", str(made.path)])
    assert "name the sources" in without.stdout
    one = CliRunner().invoke(app, ["merge", "explain", str(made.path), "model.norm.weight"])
    assert "computed weights: 0." in one.stdout
    with pytest.raises(InterfuseError, match="the merge has more"):
        explain_all(made.path, models=[x, y], base=base)


def card(folder, licence, extra=""):
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n{extra}tags: [x]\n---\n# A model\n")


@pytest.mark.parametrize(
    ("licences", "front", "said"),
    [
        (("mit", "mit"), "license: mit", ""),
        (("mit", "apache-2.0"), "", "the most restrictive is apache-2.0"),
        (("apache-2.0", "cc-by-nc-4.0"), "", "the most restrictive is cc-by-nc-4.0"),
        (("gpl-3.0", "cc-by-nc-4.0"), "", "cannot be told"),
        (("mit", "llama3"), "", "cannot be told"),
        (("llama3", "llama3"), "", ""),
        (("mit", None), "", "No licence is stated by the card of: b."),
        (("[mit, 'x y|<b>']", "mit"), "", "mit or x-y-b-"),
        ((None, None), "", ""),
    ],
)
def test_licences_of_the_sources_stand_in_the_card(licences, front, said, tmp_path):
    folders = []
    for name, licence in zip("ab", licences, strict=True):
        folders.append(tiny(tmp_path, "llama", name).rename(tmp_path / name))
        if licence == "llama3":
            card(folders[-1], "other", "license_name: llama3\n")
        elif licence:
            card(folders[-1], licence)
    made = interfuse.merge.linear([str(f) for f in folders], out=tmp_path / "out")
    text = (made.path / "README.md").read_text()
    head = text.split("---")[1]
    assert ("license" in head) == bool(front)
    assert front in head
    assert said in text
    assert (
        ("differ" in text)
        == ("differ" in " ".join(report(made.path)["remarks"]))
        == (len(dict.fromkeys(filter(None, licences))) > 1)
    )
    assert f"| model | b | {licences[1] or 'not stated'} |" in text


def test_a_card_nobody_can_read_states_nothing(tmp_path):
    place = tiny(tmp_path, "llama")
    model = open_model(Source(str(place)), Ctx())
    for text in (
        "---\nlicense: [\n---\n",
        "---\n- a\n---\n",
        "license: mit\n",
        "---\nlicense: {a: b}\n---\n",
        "---\nlicense: 3\n---\n",
    ):
        (place / "README.md").write_text(text)
        assert licence_of(model) == ""


def test_licences_below_a_merge_that_is_not_written_are_told(tmp_path):
    for name, licence in (("a", "mit"), ("b", "mit"), ("c", "apache-2.0")):
        card(tiny(tmp_path, "llama", name), licence)
    places = {name: str(next(tmp_path.glob(f"*{name}"))) for name in "abc"}
    (tmp_path / "two.yml").write_text(
        f"name: early\nmerge_method: linear\nmodels:\n- {{model: {places['a']}, parameters: {{weight: 1}}}}\n- {{model: {places['b']}, parameters: {{weight: 1}}}}\n"
        f"---\nmerge_method: linear\nmodels:\n- {{model: early, parameters: {{weight: 1}}}}\n- {{model: {places['c']}, parameters: {{weight: 1}}}}\n"
    )
    made = merge_recipe(tmp_path / "two.yml", tmp_path / "out")
    (said,) = (r for r in report(made.path)["remarks"] if "licence" in r.lower())
    assert "differ (mit, apache-2.0); the most restrictive is apache-2.0" in said


def test_pictures_that_the_models_read_in_unlike_ways_are_told(models, tmp_path):
    import shutil

    about = {"image_processor_type": "ViTImageProcessor", "do_normalize": True, "image_mean": [0.5], "image_std": [0.5]}
    changes = {
        "same": {"image_processor_type": "ViTImageProcessorFast"},
        "other": {"image_mean": [0.45]},
        "first": {},
        "none": None,
    }
    for name, change in changes.items():
        shutil.copytree(models[1] if name == "first" else models[2], tmp_path / name)
        if change is not None:
            (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(about | change))
    first = str(tmp_path / "first")
    said = {name: report(interfuse.merge.linear([first, str(tmp_path / name)], out=tmp_path / f"out-{name}").path)["remarks"] for name in ("same", "other", "none")}  # fmt: skip
    assert said["same"] == []
    assert said["other"] == [
        "first and other prepare pictures in unlike ways: image_mean is [0.5] and [0.45]. The result goes by first."
    ]
    assert said["none"] == [
        "first prepares pictures with a preprocessor_config.json, none has none. The result goes by first."
    ]
    (tmp_path / "recipe.yml").write_text(
        f"merge_method: linear\nmodels: [{{model: {first}, parameters: {{weight: 1}}}}, {{model: {tmp_path / 'other'}, parameters: {{weight: 1}}}}]\n"
    )
    done = CliRunner().invoke(app, ["merge", "lint", str(tmp_path / "recipe.yml")])
    assert "unlike ways: image_mean" in done.output
