"""Merges that look at models at work: statistics against plain PyTorch, kept and gone on with, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file, save_file

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.models import Model, open_model
from interfuse.data.tables import from_dataset, open_table
from interfuse.kit import passes
from interfuse.kit.collectors import Grams, SquaredGradients
from interfuse.kit.parameter_names import names_in_files
from interfuse.merge.calibrate import open_examples
from interfuse.merge.recipes import merge_recipe
from tests import tiny_texts
from tests.conformance.cases import CASES
from tests.conformance.checks import find_oracle
from tests.conformance.fixtures import MERGED, checkpoint
from tests.conformance.scenes.merge_calibration import probe, tables
from tests.tiny_models import adapter, tiny

SLUGS = {"fisher": 3, "regmean": 3, "rcp": 2, "aim": 1, "sens": 3, "acm": 1}
CASE = {c.slug: c for c in CASES if c.slug in SLUGS}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("calibration")


def scene(shared, slug, kind="reader", step=0.05, **changes):
    """Folders and examples as the battery's, for either architecture; ``step``: how far fine-tunes are from the base."""
    path = shared / (f"merge-{kind}" if step == 0.05 else f"merge-{kind}-{step}")
    given = {k: v for k, v in CASE[slug].given.items() if k not in ("models", "base", "calibration", "labels")}
    count = CASE[slug].given.get("models", 3)
    found = {"models": [checkpoint(path, kind, f"variant-{i}", step=step) for i in range(count)], **given}
    if CASE[slug].given.get("base", True):
        found["base"] = checkpoint(path, kind, "base")
    found["calibration"] = tables(kind, path, SLUGS[slug])
    return {**found, "ctx": Ctx(cache=shared / "cache"), **changes}


def made(slug, out, **given):
    return load_file(getattr(interfuse.merge, slug)(out=out, **given).path / "model.safetensors")


def merge_of(slug):
    from interfuse.core.method import load, read_params

    return {n: p.default for n, p in read_params(load(f"merge/{slug}").target).items()}


@pytest.mark.parametrize(
    ("slug", "kind", "step"),
    [
        *((s, "reader", 0.05) for s in SLUGS),
        *((s, "vit", 0.05) for s in ("regmean", "aim", "sens", "acm", "rcp")),
        *((s, "reader", 1e-5) for s in SLUGS),
    ],
)
def test_float64_passes_match_the_oracle_to_the_sixth_digit(shared, slug, kind, step, tmp_path):
    """Also on images, whose tensors have other names in files than in modules; and for changes of a hundred-thousandth, to the last
    digit of the weights, with statistics of their own."""
    extra = {"domain_text": "full"} if (slug, kind) == ("rcp", "vit") else {}
    given = scene(shared, slug, kind, step, ctx=Ctx(cache=shared / "cache64", dtype="float64"), **extra)
    ours = made(slug, tmp_path / "out", **given)
    own = {k: given.get(k, v) for k, v in merge_of(slug).items()}
    arrays = [{n: t.double().numpy() for n, t in load_file(f"{f}/model.safetensors").items()} for f in given["models"]]
    under = (
        {n: t.double().numpy() for n, t in load_file(f"{given['base']}/model.safetensors").items()}
        if "base" in given
        else None
    )
    said = find_oracle("merge", CASE[slug].oracle)(arrays, under, probe=probe(given, kind, MERGED[kind][2]), **own)
    assert set(said) == set(ours)
    for name, value in ours.items():
        if slug == "rcp" and name.endswith("key.bias"):
            # the softmax does not see a key's bias: its gradient is 0 but for rounding, whose sign is another on every machine
            taken = arrays[0][name] + arrays[1][name] - under[name]
            assert np.minimum(abs(value.numpy() - taken), abs(value.numpy() - arrays[0][name])).max() < 1e-6
            continue
        small = {"rtol": 2e-7, "atol": 2e-9} if step < 1e-4 else {"rtol": 1e-6, "atol": 1e-7}
        np.testing.assert_allclose(value.double().numpy(), said[name], **small, err_msg=name)


@pytest.mark.parametrize("slug", [s for s in SLUGS if s != "rcp"])
def test_the_order_of_models_changes_no_bit(shared, slug, tmp_path):
    given = scene(shared, slug)
    one = made(slug, tmp_path / "one", **given)
    turned = dict(
        given,
        models=given["models"][::-1],
        calibration=given["calibration"][::-1] if SLUGS[slug] > 1 else given["calibration"],
    )
    turned |= {k: v[::-1] for k, v in given.items() if k == "weight" and isinstance(v, list)}
    two = made(slug, tmp_path / "two", **turned)
    assert all(one[n].equal(two[n]) for n in one)


def test_statistics_are_kept_and_reused(shared, tmp_path, monkeypatch):
    given = scene(shared, "fisher", ctx=Ctx(cache=tmp_path / "cache"), weight=1.0)
    first = made("fisher", tmp_path / "one", **given)
    folders = sorted((tmp_path / "cache" / "statistics").glob("*/about.json"))
    assert len(folders) == 3
    about = json.loads(folders[0].read_text())["about"]
    assert about["kind"] == "squared gradients"
    assert about["examples"]

    def never(*_, **__):
        raise AssertionError("the model was run again")

    monkeypatch.setattr(passes, "_forward", never)
    second = made("fisher", tmp_path / "two", **given)
    assert all(first[n].equal(second[n]) for n in first)
    other = made("fisher", tmp_path / "three", **{**given, "floor": 1e-3})  # another merge of the same statistics
    assert any(not first[n].equal(other[n]) for n in first)
    with pytest.raises(AssertionError, match="run again"):  # other examples, other statistics
        made("fisher", tmp_path / "four", **{**given, "calibration_length": 3})
    monkeypatch.undo()
    (folders[0].parent / "00000.safetensors").write_bytes(b"torn")
    with pytest.raises(InterfuseError) as caught:
        made("fisher", tmp_path / "five", **given)
    assert caught.value.code == "artifact.damaged"


@pytest.mark.parametrize("slug", ["fisher", "regmean", "rcp", "aim"])
def test_little_memory_takes_more_passes_and_gives_the_same_bits(shared, slug, tmp_path, monkeypatch):
    given = scene(shared, slug, reuse_statistics=False)
    wide = made(slug, tmp_path / "wide", **given)
    runs = []
    real = passes.run_pass
    monkeypatch.setattr("interfuse.merge.calibrate.run_pass", lambda *a, **k: runs.append(1) or real(*a, **k))
    budgets = []

    def narrow(sizes, budget):
        budgets.append(budget)
        return passes.within(sizes, max(sizes.values()) + 1)

    monkeypatch.setattr("interfuse.merge.calibrate.within", narrow)
    slow = made(slug, tmp_path / "narrow", **given)
    assert len(runs) > 2 * len(budgets)
    assert all(wide[n].equal(slow[n]) for n in wide)


def test_groups_fit_into_the_budget():
    sizes = {"a": 5, "b": 4, "c": 1, "d": 20, "e": 1}
    assert passes.within(sizes, 10) == [["a", "b", "c"], ["d"], ["e"]]
    assert passes.within(sizes, 100) == [list(sizes)]
    assert passes.within({}, 10) == []


@pytest.mark.parametrize("slug", ["fisher", "regmean", "rcp"])
@pytest.mark.parametrize("dies_at", [2, 5])
def test_a_killed_pass_goes_on(shared, slug, dies_at, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    given = scene(shared, slug, ctx=Ctx(cache=tmp_path / "cache"), calibration_batch=1)
    whole = made(slug, tmp_path / "whole", **{**given, "ctx": Ctx(cache=tmp_path / "other")})
    monkeypatch.setattr(passes, "_SAVE_SECONDS", -1.0)  # totals are written after every batch
    real, seen = passes._forward, []

    def die(*a, **k):
        seen.append(1)
        if len(seen) == dies_at:
            raise Killed
        return real(*a, **k)

    monkeypatch.setattr(passes, "_forward", die)
    with pytest.raises(Killed):
        made(slug, tmp_path / "out", **given)
    before = len(seen)
    resumed = made(slug, tmp_path / "out", **given)
    assert all(whole[n].equal(resumed[n]) for n in whole)
    again = []
    monkeypatch.setattr(passes, "_forward", lambda *a, **k: again.append(1) or real(*a, **k))
    made(slug, tmp_path / "third", **{**given, "ctx": Ctx(cache=tmp_path / "third cache")})
    assert before + len(seen) - before <= len(again) + 2  # no example was looked at twice, but the one it died at


def test_batches_hold_no_padding_and_change_nothing(shared):
    folder = checkpoint(shared / "merge-reader", "reader", "variant-0")
    table = open_table(Source(tables("reader", shared / "merge-reader", 1)[0]), Ctx())
    loaded = passes.load(open_model(Source(folder), Ctx()), Ctx())
    linear = list(loaded.linear)
    sizes = {n: loaded.module.get_submodule(n).in_features for n in linear}
    seen = []
    for batch_size in (1, 3):
        collector = Grams(sizes)
        passes.run_pass([loaded], table, collector, Ctx(), batch_size=batch_size)
        seen.append(collector.result())
    for name in seen[0]:
        torch.testing.assert_close(seen[0][name], seen[1][name], rtol=1e-5, atol=1e-6)
    for rows, batch in passes.examples(loaded, table, part="full", max_length=512, batch_size=3):
        assert bool(batch["attention_mask"].all())
        assert len(rows) == len(batch["input_ids"])


def test_models_are_left_as_they_are(shared):
    folder = checkpoint(shared / "merge-reader", "reader", "variant-0")
    module = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    model = Model(
        "m",
        None,
        module.config.to_dict(),
        "causal-lm",
        module=module,
        tokenizer=tiny_texts.tokenizer(shared / "tokens"),
    )
    before = {n: p.clone() for n, p in module.named_parameters()}
    loaded = passes.load(model, Ctx())
    shapes = {n: tuple(p.shape) for n, p in loaded.parameters.items()}
    table = open_table(Source(tables("reader", shared / "merge-reader", 1)[0]), Ctx())
    passes.run_pass([loaded], table, SquaredGradients(shapes), Ctx())
    assert module.training
    assert all(p.requires_grad and p.grad is None and p.equal(before[n]) for n, p in module.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.module.modules())


def test_matrices_stored_the_other_way_round(tmp_path):
    """GPT-2 keeps [in, out]: its RegMean fits what its layers give."""
    folders = [tiny(tmp_path, "gpt2", n) for n in ("base", "x", "y")]
    for f in folders:
        tiny_texts.tokenizer(f)
    Dataset.from_dict({"text": tiny_texts.sentences(6)[0]}).to_parquet(tmp_path / "t.parquet")
    common = {"calibration": str(tmp_path / "t.parquet"), "reuse_statistics": False}
    ours = made("regmean", tmp_path / "r", models=[str(f) for f in folders[1:]], reduce=1.0, **common)
    modules = [transformers.AutoModelForCausalLM.from_pretrained(f).eval() for f in folders[1:]]
    inputs = []
    for m in modules:
        seen = []
        handle = m.transformer.h[1].mlp.c_fc.register_forward_hook(
            lambda _, a, __, seen=seen: seen.append(a[0].double().reshape(-1, a[0].shape[-1]))
        )
        tokens = transformers.AutoTokenizer.from_pretrained(folders[0])
        with torch.no_grad():
            for text in tiny_texts.sentences(6)[0]:
                m(input_ids=tokens(text, return_tensors="pt")["input_ids"])
        handle.remove()
        inputs.append(torch.cat(seen))
    weights = [m.transformer.h[1].mlp.c_fc.weight.double() for m in modules]
    left = sum(x.T @ x for x in inputs)
    right = sum(x.T @ x @ w for x, w in zip(inputs, weights, strict=True))
    fitted = torch.linalg.solve(left, right).detach()
    torch.testing.assert_close(ours["transformer.h.1.mlp.c_fc.weight"].double(), fitted, rtol=1e-4, atol=1e-4)
    relaxed = made("aim", tmp_path / "a", models=[str(folders[1])], base=str(folders[0]), **common)
    base, x = (load_file(f / "model.safetensors") for f in folders[:2])
    name = "transformer.h.1.mlp.c_fc.weight"
    rows = ((relaxed[name] - base[name]) / (x[name] - base[name])).double()
    torch.testing.assert_close(
        rows, rows.mean(1, keepdim=True).expand_as(rows), rtol=1e-3, atol=1e-3
    )  # one factor per input
    assert float(rows.min()) == pytest.approx(0.4, abs=1e-3)
    torch.testing.assert_close(relaxed["transformer.wte.weight"], x["transformer.wte.weight"])


def test_tied_embeddings_count_once(tmp_path):
    folders = [tiny(tmp_path, "qwen2", n) for n in ("base", "x", "y")]
    place = tiny_texts.tokenizer(tmp_path / "tokens")
    Dataset.from_dict({"text": tiny_texts.sentences(5)[0]}).to_parquet(tmp_path / "t.parquet")
    model = open_model(Source(str(folders[1])), Ctx())
    loaded = passes.load(model, Ctx(dtype="float64"))
    names = names_in_files(model, loaded.module, list(load_file(folders[1] / "model.safetensors")))
    assert "lm_head.weight" not in names
    sources = [{"model": str(f), "tokenizer": str(place)} for f in folders[1:]]
    ours = made("fisher", tmp_path / "out", models=sources, calibration=str(tmp_path / "t.parquet"),
                ctx=Ctx(dtype="float64", cache=tmp_path / "cache"))  # fmt: skip
    kept = [passes.Kept(f.parent) for f in (tmp_path / "cache" / "statistics").glob("*/about.json")]
    assert len(kept) == 2
    module = transformers.AutoModelForCausalLM.from_pretrained(folders[1]).double().eval()
    tokens = transformers.AutoTokenizer.from_pretrained(place)
    total = 0.0
    for text in tiny_texts.sentences(5)[0]:
        ids = tokens(text, return_tensors="pt")["input_ids"]
        logits = module(input_ids=ids).logits[0, :-1]
        (g,) = torch.autograd.grad(
            torch.nn.functional.cross_entropy(logits, ids[0, 1:]), [module.model.embed_tokens.weight]
        )
        total = total + g.square() / 5
    found = [k.tensor("model.embed_tokens.weight") for k in kept]
    assert any(torch.allclose(f.double(), total, rtol=1e-5, atol=1e-12) for f in found)
    assert "lm_head.weight" not in ours


def test_an_adapter_may_be_the_domain_model(tmp_path):
    """Only adapted tensors can change, and where they do they change by the adapter's own delta."""
    base = tiny(tmp_path, "llama")
    reasoning = tiny(tmp_path, "llama", "x")
    for f in (base, reasoning):
        tiny_texts.tokenizer(f)
    state = adapter(base, tmp_path / "adapter", r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    Dataset.from_dict({"text": tiny_texts.sentences(6)[0]}).to_parquet(tmp_path / "t.parquet")
    table = str(tmp_path / "t.parquet")
    ours = made("rcp", tmp_path / "out", models=[str(reasoning), f"{base}+{tmp_path / 'adapter'}"], base=str(base), calibration=[table, table],
                domain_text="full", reuse_statistics=False)  # fmt: skip
    under, own = load_file(base / "model.safetensors"), load_file(reasoning / "model.safetensors")
    for name, value in ours.items():
        delta = state[name] - under[name]
        moved = (value - own[name]).abs() > 1e-7
        assert bool(moved.any()) == ("q_proj" in name or "down_proj" in name), name
        torch.testing.assert_close(value[moved], (own[name] + delta)[moved], rtol=1e-5, atol=1e-6)


def test_a_second_stage_relaxes_the_first(shared, tmp_path):
    """AIM on a TIES that is never written gives what two runs with a folder between them give."""
    given = scene(shared, "aim")
    first = interfuse.merge.ties(given["models"], base=given["base"], density=0.5, out=tmp_path / "ties")
    shared_ctx = {"base": given["base"], "calibration": given["calibration"], "ctx": given["ctx"]}
    apart = made("aim", tmp_path / "apart", models=[first.path], **shared_ctx)
    from interfuse.core.method import load
    from interfuse.core.rooms import prepare
    from interfuse.merge.room import ROOM
    from interfuse.merge.unwritten import Unwritten

    call = prepare(ROOM, load("merge/ties"), {"models": given["models"], "base": given["base"], "density": 0.5}, Ctx())
    inner = Model("inner", None, first.config, "causal-lm", computed=Unwritten(call))
    together = made("aim", tmp_path / "together", models=[inner], **shared_ctx)
    for name in apart:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-6, atol=1e-7)
    # and a calibrated merge may itself be the inner one
    call = prepare(
        ROOM,
        load("merge/aim"),
        {"models": [first.path], "base": given["base"], "calibration": given["calibration"]},
        given["ctx"],
    )
    inner = Model("inner", None, first.config, "causal-lm", computed=Unwritten(call))
    scaled = made("linear", tmp_path / "linear", models=[inner, inner])
    for name in apart:
        torch.testing.assert_close(scaled[name], apart[name], rtol=1e-6, atol=1e-7)
    assert torch.is_grad_enabled()


def test_the_manifest_says_what_was_found(shared, tmp_path):
    given = scene(shared, "rcp")
    lines = []
    path = interfuse.merge.rcp(
        out=tmp_path / "out", **{**given, "ctx": Ctx(cache=shared / "cache", log=lines.append)}
    ).path
    facts = json.loads((path / "interfuse.json").read_text())["facts"]["calibration"]
    held, ours = load_file(f"{given['models'][0]}/model.safetensors"), load_file(path / "model.safetensors")
    moved = sum(int((ours[n] != held[n]).sum()) for n in held)
    assert facts["accepted"] == pytest.approx(moved / sum(t.numel() for t in held.values()), abs=1e-3)
    assert set(facts["accepted by layer"]) == {
        "model.layers.0",
        "model.layers.1",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert facts["weights without any gradient"] >= 16  # rows of words that no example holds
    assert any("rcp:" in line and "score 0" in line for line in lines)
    kept = interfuse.merge.rcp(out=tmp_path / "kept", **{**given, "zero_is": "keep"}).path
    less = json.loads((kept / "interfuse.json").read_text())["facts"]["calibration"]
    assert less["accepted"] < facts["accepted"]
    interfuse.merge.sens(out=tmp_path / "sens", **scene(shared, "sens"))
    shares = json.loads((tmp_path / "sens" / "interfuse.json").read_text())["facts"]["calibration"]["shares"]
    assert all(sum(v) == pytest.approx(1) for v in shares.values())


def test_a_share_to_accept_finds_its_penalty(shared, tmp_path):
    given = scene(shared, "rcp")
    facts = {}
    for share in (0.5, 0.2):
        path = interfuse.merge.rcp(out=tmp_path / f"{share}", **{**given, "accept": share}).path
        facts[share] = json.loads((path / "interfuse.json").read_text())["facts"]["calibration"]
        curve = dict(facts[share]["accepted by penalty"])
        assert list(curve.values()) == sorted(curve.values(), reverse=True)
        found = facts[share]["penalty"]
        assert facts[share]["accepted"] == pytest.approx(curve[found])
        assert curve[found] <= share
        assert all(v > share for k, v in curve.items() if k < found)
        by_hand = interfuse.merge.rcp(out=tmp_path / f"hand {share}", **{**given, "penalty": found}).path
        assert (by_hand / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    assert facts[0.2]["penalty"] > facts[0.5]["penalty"]


def test_question_alone_or_all_of_it(shared, tmp_path):
    given = scene(shared, "rcp")
    asked = made("rcp", tmp_path / "asked", **given)
    whole = made("rcp", tmp_path / "whole", **{**given, "domain_text": "full"})
    assert any(not asked[n].equal(whole[n]) for n in asked)


def test_lines_of_a_text_file_are_examples(shared, tmp_path):
    (tmp_path / "t.txt").write_text("the cat runs\n\na red dog\n")
    table = open_examples(Source(str(tmp_path / "t.txt")), Ctx())
    assert passes.texts_of(table, "full") == ["the cat runs", "a red dog"]
    again = open_examples(Source(str(tmp_path / "t.txt")), Ctx())
    assert table.fingerprint() == again.fingerprint()
    given = scene(shared, "aim")
    made("aim", tmp_path / "out", **{**given, "calibration": str(tmp_path / "t.txt")})
    for text, code in (("\n \n", "input.empty"), (None, "input.missing")):
        if text is not None:
            (tmp_path / "u.txt").write_text(text)
        else:
            (tmp_path / "u.txt").unlink()
        with pytest.raises(InterfuseError) as caught:
            open_examples(Source(str(tmp_path / "u.txt")), Ctx())
        assert caught.value.code == code


def refused(slug, given, tmp_path, code, says):
    with pytest.raises(InterfuseError) as caught:
        getattr(interfuse.merge, slug)(out=tmp_path / "no", **given)
    assert caught.value.code == code, caught.value
    assert says in str(caught.value), caught.value
    assert not (tmp_path / "no").exists()


def test_what_is_refused(shared, tmp_path):
    fresh = {"reuse_statistics": False}
    given = scene(shared, "rcp", **fresh)
    three = scene(shared, "sens", **fresh)
    refused("rcp", {**given, "calibration": given["calibration"][:1]}, tmp_path, "param.value", "2")
    refused("sens", {**three, "calibration": three["calibration"][:2]}, tmp_path, "param.value", "one for each")
    refused("rcp", {**given, "models": three["models"]}, tmp_path, "param.value", "2 models")
    refused("rcp", {**given, "penalty": -1.0}, tmp_path, "param.value", "penalty")
    refused(
        "ties",
        {"models": given["models"], "base": given["base"], "calibration": given["calibration"]},
        tmp_path,
        "param.unknown",
        "calibration",
    )
    refused(
        "sens",
        {**three, "calibration_length": 2},
        tmp_path,
        "input.limit",
        "cut off",
    )
    refused(
        "fisher",
        {"models": three["models"], "calibration": three["calibration"], "labels": "model", **fresh},
        tmp_path,
        "param.value",
        "classifier",
    )
    texts = from_dataset(Dataset.from_dict({"text": ["the cat", "the dog"]}), "plain")
    refused("rcp", {**given, "calibration": [texts, texts]}, tmp_path, "input.missing", "full")
    hollow = from_dataset(Dataset.from_dict({"prompt": ["the cat", ""], "response": ["runs", "sits"]}), "hollow")
    refused("rcp", {**given, "calibration": [hollow, hollow]}, tmp_path, "input.missing", "row 1")
    images = tables("vit", shared / "merge-vit", 1)
    refused("aim", {**scene(shared, "aim", **fresh), "calibration": images}, tmp_path, "input.type", "image")
    pictures = scene(shared, "aim", "vit", **fresh)
    refused(
        "aim",
        {**pictures, "calibration": tables("reader", shared / "merge-reader", 1)},
        tmp_path,
        "input.type",
        "texts",
    )
    unlabelled = from_dataset(Dataset.from_parquet(images[0]).select_columns(["image"]), "unlabelled")
    refused(
        "sens", {**scene(shared, "sens", "vit", **fresh), "calibration": unlabelled}, tmp_path, "input.missing", "label"
    )


def test_models_that_cannot_be_calibrated(shared, tmp_path):
    folder = tmp_path / "quantised"
    tiny(tmp_path, "llama", "x").rename(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    table = from_dataset(Dataset.from_dict({"text": ["the cat", "the dog"]}), "plain")
    refused(
        "fisher",
        {"models": [str(folder), str(folder)], "calibration": table},
        tmp_path,
        "needs.capability",
        "quantised",
    )
    bert = tiny(tmp_path, "bertmlm", "x")
    tiny_texts.tokenizer(bert)
    refused("fisher", {"models": [str(bert), str(tiny(tmp_path, "bertmlm", "y"))], "calibration": table, "reuse_statistics": False}, tmp_path,
            "needs.capability", "masked-lm")  # fmt: skip
    bare = tiny(tmp_path, "llama", "y")
    refused(
        "fisher",
        {"models": [str(bare)], "calibration": table, "reuse_statistics": False},
        tmp_path,
        "input.missing",
        "tokenizer",
    )


def test_the_example_without_a_number_is_named(shared, tmp_path):
    """A row of the embedding is no number: the example with that word is named, and no other."""
    source = checkpoint(shared / "merge-reader", "reader", "variant-0")
    folder = tmp_path / "loud"
    folder.mkdir()
    for f in Path(source).iterdir():
        shutil.copyfile(f, folder / f.name)
    state = load_file(folder / "model.safetensors")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    state["model.embed_tokens.weight"][tokens.convert_tokens_to_ids("bird")] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    table = from_dataset(Dataset.from_dict({"text": ["the cat runs", "the bird sings", "a red dog"]}), "three")
    given = {"models": [str(folder)], "calibration": table, "reuse_statistics": False}
    with pytest.raises(InterfuseError) as caught:
        interfuse.merge.fisher(out=tmp_path / "no", **given)
    assert caught.value.code == "input.nan"
    assert "three: row 1" in caught.value.where


def test_calibration_in_a_file_of_a_method_that_looks_at_nothing(tmp_path):
    (tmp_path / "r.yml").write_text("merge_method: linear\nmodels: [{model: a}]\ncalibration: x.jsonl\n")
    with pytest.raises(InterfuseError) as caught:
        merge_recipe(tmp_path / "r.yml", tmp_path / "out")
    assert caught.value.code == "recipe.key"
