"""Merges that look at models at work, as users ask for them: in a mergekit file, with a tokenizer of the merge's own, priced before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load, read_params
from interfuse.core.rooms import prepare
from interfuse.data.formats.mergekit import read_mergekit
from interfuse.data.formats.mergekit_methods import METHODS, OURS
from interfuse.kit import passes
from interfuse.merge.inspect import lint
from interfuse.merge.looks import looking
from interfuse.merge.recipes import merge_recipe
from interfuse.merge.room import ROOM
from interfuse.merge.schedule import widen
from tests import tiny_texts
from tests.tiny_models import WORDS_X, WORDS_Y, tiny, words

LOOKING = [n for n, how in OURS.items() if how.tables]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``base``, ``x`` and ``y`` of one tiny Llama with a tokenizer each, and tables ``x.jsonl``, ``y.jsonl``."""
    folder = tmp_path_factory.mktemp("calibrated")
    for name, variant in (("base", "base"), ("x", "x"), ("y", "y")):
        tiny_texts.tokenizer(tiny(folder, "llama", variant).rename(folder / name))
    texts = {
        "x": [
            "the red cat sits",
            "a small dog sees the large bird here",
            "one fish swims",
            "the cat likes a blue bird",
        ],
        "y": ["a bird sings and the dog runs there", "the green fish sees one cat", "a dog sits here"],
    }
    for name, lines in texts.items():
        rows = [t.split() for t in lines]
        found = [json.dumps({"prompt": " ".join(r[:2]) + " ", "response": " ".join(r[2:])}) for r in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(found) + "\n")
    return folder


@pytest.fixture(autouse=True)
def beside(place, monkeypatch):
    monkeypatch.chdir(place)


def state(folder):
    return load_file(folder / "model.safetensors")


def recipe(tmp_path, text):
    (tmp_path / "r.yml").write_text(text)
    return tmp_path / "r.yml"


def ran(tmp_path, text, name="out"):
    merge_recipe(recipe(tmp_path, text), tmp_path / name, ctx=Ctx(cache=tmp_path.parent / "cache"))
    return state(tmp_path / name)


def called(tmp_path, slug, name="python", **given):
    made = getattr(interfuse.merge, slug.replace("-", "_"))(
        out=tmp_path / name, ctx=Ctx(cache=tmp_path.parent / "cache"), **given
    )
    return state(made.path)


def same(one, two):
    return set(one) == set(two) and all(one[n].equal(two[n]) for n in one)


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", OURS)
def test_files_name_every_parameter_of_our_methods(name):
    how, method = OURS[name], load(f"merge/{OURS[name].slug}")
    params = read_params(method.target)
    assert {v for v in how.names.values() if v} == set(params)
    numbers = {n for n, p in params.items() if widen(p) is not p}
    assert set(params) - numbers <= set(how.plain)
    assert set(how.per_model) == set(method.traits.get("per_model", ("weight",))) & set(params)
    wanted = {"required": ("required",), "none": ("source",), "optional": ("optional", "source")}
    assert how.base in wanted[method.traits.get("base", "optional")]
    assert how.tables == (method.traits.get("tables", -1) if "calibrate" in method.traits else 0)
    assert ("looks" in method.traits) == ("calibrate" in method.traits)


def test_every_method_of_the_room_has_a_spelling():
    from interfuse.core import index

    ours = {e.slug for e in index.entries().values() if e.room == "merge" and e.kind == "method"}
    assert ours == {how.slug for how in [*METHODS.values(), *OURS.values()]}


@pytest.mark.parametrize("name", LOOKING)
def test_a_file_gives_what_the_call_gives(name, tmp_path):
    how = OURS[name]
    tables = ["x.jsonl"] if how.tables == 1 else ["x.jsonl", "y.jsonl"]
    own = {"sens": {"temperature": 0.5}, "rcp": {"domain_text": "full"}, "regmean": {"gram": "mean"}}.get(name, {})
    text = f"merge_method: {name}\n" + ("base_model: base\n" if how.base == "required" else "")
    text += "models:\n- model: x\n- model: y\n"
    text += f"calibration: {tables[0] if how.tables == 1 else json.dumps(tables)}\n"
    text += f"parameters: {json.dumps(own)}\n"
    base = {"base": "base"} if how.base == "required" else {}
    assert same(ran(tmp_path, text), called(tmp_path, how.slug, models=["x", "y"], calibration=tables, **own, **base))


@pytest.mark.parametrize("name", [n for n, how in OURS.items() if not how.tables])
def test_our_other_methods_may_be_named_too(name, tmp_path):
    how = OURS[name]
    base = {"base": "base"} if how.base == "required" else {}
    spelled = name.replace("_", "-") if name == "iso_c" else name
    text = f"merge_method: {spelled}\n" + ("base_model: base\n" if base else "") + "models: [{model: x}, {model: y}]\n"
    own = {"lore": {"steps": 2, "svd": "gram"}, "varm": {"granularity": "element"}}.get(name, {})
    text += f"parameters: {json.dumps(own)}\n"
    assert same(ran(tmp_path, text), called(tmp_path, how.slug, models=["x", "y"], **own, **base))


def test_examples_may_stand_with_the_models_and_roles_may_come_in_any_order(tmp_path):
    direct = called(
        tmp_path,
        "rcp",
        models=["x", "y"],
        base="base",
        calibration=["x.jsonl", "y.jsonl"],
        penalty=30.0,
        calibration_length=7,
    )
    head = "merge_method: rcp\nbase_model: base\nparameters: {lambda: 30}\n"
    named = (
        head
        + "models: [{model: y, role: domain}, {model: x, role: prior}]\ncalibration: {prior: x.jsonl, domain: y.jsonl, max_length: 7}\n"
    )
    assert same(ran(tmp_path, named, "named"), direct)
    each = (
        head
        + "models: [{model: y, role: domain, calibration: y.jsonl}, {model: x, role: prior, calibration: x.jsonl}]\ncalibration: {max_length: 7}\n"
    )
    assert same(ran(tmp_path, each, "each"), direct)
    # a table of keys, beside the file and not in the working folder; and a list
    (tmp_path / "there.jsonl").write_text(Path("x.jsonl").read_text())
    other = (
        head
        + "models: [{model: x}, {model: y}]\ncalibration:\n  examples:\n  - {data: there.jsonl, columns: {prompt: prompt, response: response}}\n  - y.jsonl\n  max_length: 7\n"
    )
    assert same(ran(tmp_path, other, "other"), direct)
    # one table for the model that has none of its own
    stage = read_mergekit(
        recipe(
            tmp_path,
            "merge_method: fisher\nmodels: [{model: x, calibration: x.jsonl}, {model: y}]\ncalibration: y.jsonl\n",
        )
    )[0]
    assert [spec for spec, _ in stage.calibration] == ["x.jsonl", "y.jsonl"]


def test_a_merge_of_the_same_file_may_be_relaxed(tmp_path):
    text = "name: t\nmerge_method: ties\nbase_model: base\nmodels:\n- {model: x, parameters: {weight: 1, density: 0.5}}\n- {model: y, parameters: {weight: 1, density: 0.5}}\n---\n"
    text += "merge_method: aim\nbase_model: base\nmodels: [{model: t}]\ncalibration: x.jsonl\nparameters: {keep: [{filter: mlp, value: 0.2}, {value: 0.5}]}\n"
    ties = called(tmp_path, "ties", "ties", models=["x", "y"], base="base", density=0.5)
    assert ties
    apart = called(tmp_path, "aim", "apart", models=[str(tmp_path / "ties")], base="base", calibration="x.jsonl",
                   keep=[{"filter": "mlp", "value": 0.2}, {"value": 0.5}])  # fmt: skip
    made = ran(tmp_path, text)
    for n in apart:
        torch.testing.assert_close(made[n], apart[n], rtol=1e-6, atol=1e-7)
    # and the calibrated merge may come first
    text = "name: f\nmerge_method: fisher\nmodels: [{model: x, calibration: x.jsonl}, {model: y, calibration: y.jsonl}]\n---\nmerge_method: linear\nmodels: [{model: f, parameters: {weight: 2}}, {model: x, parameters: {weight: 1}}]\n"
    made, fisher, x = ran(tmp_path, text, "two"), called(tmp_path, "fisher", "f", models=["x", "y"], calibration=["x.jsonl", "y.jsonl"]), load_file("x/model.safetensors")  # fmt: skip
    for n in made:
        torch.testing.assert_close(made[n], (2 * fisher[n] + x[n]) / 3, rtol=1e-6, atol=1e-6)


def test_layers_of_slices_have_their_own_sources_statistics(tmp_path):
    """All layers as two slices are the merge without slices; layers stacked the other way round are its layers."""
    head = "merge_method: fisher\nslices:\n"
    rows = [
        "- sources: [{{model: x, layer_range: [{0}, {1}]}}, {{model: y, layer_range: [{0}, {1}]}}]\n".format(a, a + 2)
        for a in (0, 2)
    ]
    plain = called(tmp_path, "fisher", models=["x", "y"], calibration=["x.jsonl", "y.jsonl"])
    assert same(ran(tmp_path, head + rows[0] + rows[1] + "calibration: [x.jsonl, y.jsonl]\n"), plain)
    turned = ran(tmp_path, head + rows[1] + rows[0] + "calibration: [x.jsonl, y.jsonl]\n", "turned")
    for n, value in turned.items():
        layer = next((int(p) for p in n.split(".") if p.isdigit()), None)
        assert value.equal(plain[n if layer is None else n.replace(f".{layer}.", f".{(layer + 2) % 4}.")]), n


@pytest.mark.parametrize("slug", ["aim", "sens", "acm", "regmean"])
def test_stacked_layers_keep_their_coefficients(slug, tmp_path):
    tables = ["x.jsonl"] if slug == "aim" else ["x.jsonl", "y.jsonl"]
    given = {"models": ["x", "y"], "calibration": tables, **({} if slug == "regmean" else {"base": "base"}), **({"temperature": 0.05} if slug == "sens" else {})}  # fmt: skip
    plain = called(tmp_path, slug, **given)
    slices = [{"sources": [{"model": 0, "layers": [a, a + 2]}, {"model": 1, "layers": [a, a + 2]}]} for a in (2, 0)]
    for n, value in called(tmp_path, slug, "stacked", **given, slices=slices).items():
        layer = next((int(p) for p in n.split(".") if p.isdigit()), None)
        torch.testing.assert_close(
            value, plain[n if layer is None else n.replace(f".{layer}.", f".{(layer + 2) % 4}.")]
        )


def test_votes_compare_a_layer_with_itself(tmp_path):
    slices = [{"sources": [{"model": 0, "layers": [0, 2]}, {"model": 1, "layers": [2, 4]}]}]
    with pytest.raises(InterfuseError) as caught:
        called(tmp_path, "rcp", models=["x", "y"], base="base", calibration=["x.jsonl", "y.jsonl"], slices=slices)
    assert (caught.value.code, "different layers" in caught.value.what) == ("param.value", True)


HEAD = "merge_method: fisher\nmodels:\n- model: x\n- model: y\n"
RCP = "merge_method: rcp\nbase_model: base\nmodels:\n- {model: x}\n- {model: y}\n"
BAD = {
    "nothing to look at": (HEAD, 1, "recipe.key", "needs examples"),
    "a method that looks at none": (HEAD.replace("fisher", "linear") + "calibration: x.jsonl\n", 5, "recipe.key", "looks at no examples"),
    "a file that is not there": (HEAD + "calibration: z.jsonl\n", 5, "input.missing", "z.jsonl"),
    "its key": (HEAD + "calibration:\n  example: x.jsonl\n", 6, "recipe.key", "Did you mean examples"),
    "length": (HEAD + "calibration: {examples: x.jsonl, max_length: 1}\n", 1, "param.value", "calibration_length"),
    "no file": (HEAD + "calibration: 3\n", 5, "recipe.key", "examples are a file"),
    "three tables": (HEAD + "calibration: [x.jsonl, y.jsonl, x.jsonl]\n", 5, "recipe.key", "1 or 2 tables"),
    "one model without": (HEAD.replace("- model: x\n", "- model: x\n  calibration: x.jsonl\n"), 5, "recipe.key", "has no examples"),
    "shared by all": ("merge_method: aim\nbase_model: base\nmodels:\n- model: x\n  calibration: x.jsonl\n", 5, "recipe.key", "one table of examples"),
    "one of two": (RCP + "calibration: x.jsonl\n", 6, "recipe.key", "2 tables"),
    "half of the roles": (RCP + "calibration: {prior: x.jsonl}\n", 6, "recipe.key", "needs prior and domain"),
    "roles twice": (RCP.replace("x}", "x, role: prior}").replace("y}", "y, role: prior}") + "calibration: [x.jsonl, y.jsonl]\n", 3, "recipe.key", "each role"),
    "role of another method": (HEAD.replace("- model: x", "- {model: x, role: prior}") + "calibration: x.jsonl\n", 3, "recipe.key", "role"),
    "words": (HEAD + "calibration: x.jsonl\nparameters: {labels: dta}\n", 6, "param.value", "labels"),
    "by layer": (HEAD.replace("fisher", "sens\nbase_model: base") + "calibration: x.jsonl\nparameters: {temperature: [1, 2]}\n", 7, "recipe.key", "one value for the whole"),
    "of a model": ("merge_method: fisher\nmodels:\n- {model: x, parameters: {floor: 0.1}}\ncalibration: x.jsonl\n", 3, "recipe.key", "all models together"),
    "columns": (HEAD + "calibration: {data: x.jsonl, columns: {text: nowhere}}\n", 5, "input.missing", "nowhere"),
    "a stage": ("name: a\n" + HEAD + "---\nmerge_method: linear\nmodels: [{model: a}]\n", 2, "recipe.key", "needs examples"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_refused_with_their_line(case, tmp_path):
    text, line, code, says = BAD[case]
    with pytest.raises(InterfuseError) as caught:
        merge_recipe(recipe(tmp_path, text), tmp_path / "out")
    assert caught.value.code == code, caught.value
    assert says in str(caught.value), caught.value
    assert f"r.yml:{line}" in caught.value.where, caught.value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("slug", "given"), [
    ("sens", {"temperature": {"gradient": [1.0, 2.0]}}), ("rcp", {"accept": {"gradient": [0.1, 0.2]}}),
    ("fisher", {"slices": [{"sources": [{"model": 0}, {"model": 1}], "parameters": {"labels": "data"}}]}),
])  # fmt: skip
def test_what_is_needed_before_the_first_tensor_is_one_value(slug, given, tmp_path):
    base = {} if slug == "fisher" else {"base": "base"}
    with pytest.raises(InterfuseError) as caught:
        called(
            tmp_path,
            slug,
            models=["x", "y"],
            calibration=["x.jsonl", "y.jsonl"],
            reuse_statistics=False,
            **given,
            **base,
        )
    assert (caught.value.code, "whole merge" in caught.value.what) == ("param.value", True), caught.value


# ------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize(("slug", "models", "given", "expected"), [
    ("fisher", ["x"], {}, {"x": 1}), ("fisher", ["x", "x"], {}, {"x": 1}), ("fisher", ["base", "base"], {}, {"base": 1}),
    ("regmean", ["x"], {}, {"x": 1}), ("regmean", ["x", "x"], {}, {"x": 1}),
    ("aim", ["x"], {"keep": 1.0}, {"x": 1}), ("aim", ["base", "base"], {}, {"base": 1}),
    ("sens", ["x"], {}, {"x": 1}), ("sens", ["x", "x"], {"scale": 0.5}, {"x": 1}), ("sens", ["base", "base"], {}, {"base": 1}),
    ("acm", ["base", "base"], {}, {"base": 1}),
    ("rcp", ["x", "base"], {}, {"x": 1}),  # a domain model that learned nothing
    ("rcp", ["x", "y"], {"penalty": 1e300, "fisher": "g2", "zero_is": "keep"}, {"x": 1}),  # a price beyond everything
    ("rcp", ["base", "base"], {}, {"base": 1}),
])  # fmt: skip
def test_single_equal_and_unchanged_models(slug, models, given, expected, tmp_path):
    tables = ["x.jsonl"] * (1 if slug == "aim" or len(models) == 1 else 2)
    base = {} if slug in ("fisher", "regmean") else {"base": "base"}
    made = called(tmp_path, slug, models=models, calibration=tables, **given, **base)
    (wanted,) = expected
    wanted = load_file(f"{wanted}/model.safetensors")
    for n, value in made.items():
        torch.testing.assert_close(value, wanted[n], rtol=1e-6, atol=1e-7, msg=n)


# ------------------------------------------------------------------------------------------------ a tokenizer of the merge's own


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """A base and a model that read WORDS_X and a model that reads WORDS_Y; texts that both vocabularies know a part of."""
    folder = tmp_path_factory.mktemp("readers")
    found = {n: str(words(folder / n, n, v)) for n, v in (("base", WORDS_X), ("x", WORDS_X), ("y", WORDS_Y)) if (folder / n).mkdir() is None}  # fmt: skip
    texts = {
        "x": ["the small cat sees a red bird", "a dog sees the cat"],
        "y": ["the blue fish swims here", "a small bird swims", "a cat here"],
    }
    for name, lines in texts.items():
        rows = [
            json.dumps({"prompt": t.rsplit(" ", 2)[0], "response": " " + " ".join(t.rsplit(" ", 2)[1:])}) for t in lines
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        found[f"of {name}"] = str(folder / f"{name}.jsonl")
    return found


@pytest.fixture(scope="module")
def brought():
    """Folders of models brought to one vocabulary, by tokenizer."""
    return {}


@pytest.mark.parametrize(
    ("slug", "tokens"), [*((OURS[n].slug, "union") for n in LOOKING), ("fisher", "base"), ("rcp", "path")]
)
def test_statistics_are_those_of_the_models_in_the_merges_vocabulary(
    slug, tokens, readers, brought, tmp_path, tmp_path_factory
):
    """As bringing the models to one vocabulary first, then merging them as they are."""
    x, y, base = readers["x"], readers["y"], readers["base"]
    word = y if tokens == "path" else tokens
    ctx = Ctx(cache=tmp_path / "cache", dtype="float64")
    if tokens not in brought:
        place = tmp_path_factory.mktemp(f"brought-{tokens}")
        for name, weight in (("x", [1.0, 0.0]), ("y", [0.0, 1.0]), ("base", [0.0, 0.0])):
            interfuse.merge.task_arithmetic([x, y], base=base, weight=weight, tokenizer=word, out=place / name)
        brought[tokens] = {name: str(place / name) for name in ("x", "y", "base")}
    alone = brought[tokens]
    own = {"sens": {"temperature": 0.1}, "rcp": {"domain_text": "full", "penalty": 10.0}}.get(slug, {})
    tables = [readers["of x"]] if slug == "aim" else [readers["of x"], readers["of y"]]
    merge = getattr(interfuse.merge, slug)
    direct = merge([x, y], base=base, calibration=tables, tokenizer=word, ctx=ctx, out=tmp_path / "direct", **own).path
    apart = merge(
        [alone["x"], alone["y"]], base=alone["base"], calibration=tables, ctx=ctx, out=tmp_path / "apart", **own
    ).path
    one, two = state(direct), state(apart)
    assert set(one) == set(two)
    moved = 0
    for n in one:
        # votes near 0 may tip over: the models brought over first are rounded once more
        close = torch.isclose(one[n], two[n], rtol=1e-4, atol=1e-5)
        assert float(close.float().mean()) > (0.98 if slug == "rcp" else 0.9999), n
        moved += int((one[n] != state(Path(alone["base"]))[n]).sum())
    assert moved
    assert (direct / "tokenizer.json").read_bytes() == (apart / "tokenizer.json").read_bytes()
    rows = json.loads((direct / "merge.json").read_text())["tokenizer"]["rows"]
    assert rows == one["model.embed_tokens.weight"].shape[0] == {"union": 15, "base": 11, "path": 12}[tokens]


def test_special_tokens_keep_their_meaning(readers, tmp_path):
    """A pad token elsewhere: the row that has no gradient moves with it."""
    from interfuse.merge.calibrate import Calibration
    from interfuse.merge.prepare import prepared

    given = {
        "models": [readers["y"], readers["x"]],
        "calibration": [readers["of y"], readers["of x"]],
        "tokenizer": readers["x"],
    }
    call = prepare(ROOM, load("merge/fisher"), given, Ctx())
    with prepared(call) as plan:
        calibration = Calibration(call, plan, tmp_path, 1 << 30)
        model = calibration.model(0)
        held = plan.alignment.ids
        assert model.config["vocab_size"] == 11
        assert model.config["pad_token_id"] == held["[PAD]"]
        loaded = calibration.loaded(0)
        known = loaded.tokenizer("the cat")["input_ids"]
        assert known == [held["the"], held["cat"]]
        theirs = load_file(f"{readers['y']}/model.safetensors")["model.embed_tokens.weight"]
        mine = loaded.module.get_input_embeddings().weight
        torch.testing.assert_close(mine[known[0]], theirs[3 + WORDS_Y.index("the")])
        assert model.fingerprint() != calibration.model(1).fingerprint()
        calibration.close()


# ------------------------------------------------------------------------------------------------ what it costs


@pytest.mark.parametrize("slug", [OURS[n].slug for n in LOOKING])
def test_the_tokens_told_before_are_those_that_are_read(slug, tmp_path, monkeypatch):
    tables = ["x.jsonl"] if slug == "aim" else ["x.jsonl", "y.jsonl"]
    given = {
        "models": ["x", "y"],
        "base": "base",
        "calibration": tables,
        "reuse_statistics": False,
        "calibration_length": 7,
    }
    if slug == "rcp":
        given["accept"] = 0.3
    told = ROOM.estimate(prepare(ROOM, load(f"merge/{slug}"), given, Ctx()))
    plain = ROOM.estimate(prepare(ROOM, load("merge/ties"), {"models": ["x", "y"], "base": "base"}, Ctx()))
    seen, real = [], passes._forward
    probed, look = [], passes.look

    def count(loaded, batch, *rest):
        seen.append(batch["input_ids"].numel())
        return real(loaded, batch, *rest)

    def probe(loaded, batch, *rest):
        probed.append(batch["input_ids"].numel())
        return look(loaded, batch, *rest)

    monkeypatch.setattr(passes, "_forward", count)
    monkeypatch.setattr("interfuse.merge.calibrate.look", probe)
    called(tmp_path, slug, **given)
    assert told.tokens == sum(seen) - sum(probed)
    size = (tmp_path.cwd() / "x" / "model.safetensors").stat().st_size
    assert told.memory >= 0.9 * size  # a model in float32 at least
    assert told.bytes_read > plain.bytes_read / (2 if slug in ("regmean", "rcp", "fisher", "sens", "acm") else 1)
    assert told.bytes_written >= plain.bytes_written
    if slug in ("fisher", "rcp", "regmean"):  # statistics are files
        kept = told.bytes_written - plain.bytes_written
        assert kept > 0
        narrow = ROOM.estimate(prepare(ROOM, load(f"merge/{slug}"), {**given, "max_memory": 1e-5}, Ctx()))
        assert narrow.tokens > 2 * told.tokens
        assert narrow.memory < told.memory


def test_a_merge_that_looks_at_nothing_costs_no_tokens():
    call = prepare(ROOM, load("merge/ties"), {"models": ["x", "y"], "base": "base"}, Ctx())
    assert looking(call).tokens == 0


def test_linting_tells_what_calibration_costs(tmp_path):
    found = lint(recipe(tmp_path, HEAD + "calibration: [x.jsonl, y.jsonl]\n"))
    texts = [json.loads(line) for n in ("x", "y") for line in Path(f"{n}.jsonl").read_text().splitlines()]
    assert found["cost"]["tokens"] == sum(len((r["prompt"] + r["response"]).split()) + 1 for r in texts)
    from interfuse.merge.verbs import _lines

    assert any(f"calibration: {found['cost']['tokens']:,} tokens through models" in line for line in _lines(found))
