"""Distilling language models: what is learnt, teachers of other tokens, stored predictions, graphs on logits, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import apply, load_room, prepare
from interfuse.data.models import Model
from interfuse.distill import room as engine
from interfuse.distill.token_targets import targets_of
from interfuse.kit import graph_logits as gl
from interfuse.kit import token_cache
from interfuse.kit.losses import forward_kl, js, log_probs, reverse_kl, uld
from interfuse.kit.sparse_losses import chunked_rows, sparse_cross_entropy, sparse_divergence, sparse_uld
from interfuse.kit.token_rows import put_into_words, tokenise
from tests import tiny_texts
from tests.conformance.workspace import quiet_threads
from tests.tiny_tokenizers import TEXT, tokenizer

TALK = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with quiet_threads():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lm")


def lm(folder: Path, scheme: str, seed: int = 0, dtype: torch.dtype = torch.float32, size: int = 320) -> Model:
    """A tiny Llama that reads with one of the tiny tokenizers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tok = tokenizer(scheme, size)
    place = folder / f"{scheme}-{size}"
    if not place.is_dir():
        tok.save_pretrained(place)
    fields = {
        **tiny_texts.LLAMA,
        "vocab_size": len(tok),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).to(dtype)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(8.0)  # a fresh model's predictions are all alike
    return Model(f"{scheme}-{seed}", None, fields, "causal-lm", module=module, tokenizer=place)


def texts(count: int = 5) -> Dataset:
    return Dataset.from_dict({"text": TEXT[:count]})


def pairs() -> Dataset:
    return Dataset.from_dict(
        {"prompt": ["The cat ", "One plus ", "She "], "response": ["sees a bird", "two", "sings and swims"]}
    )


def started(method: str, ctx: Ctx | None = None, **given: Any) -> tuple[Any, Any]:
    call = prepare(load_room("distill"), load("distill/" + method), given, ctx or Ctx(seed=3))
    hooks = engine._hooks(call)
    return engine.start(call, hooks), hooks


def losses_of(method: str, rows: int = 3, **given: Any) -> dict[str, torch.Tensor]:
    run, hooks = started(method, **given)
    run.student.eval()
    batch = hooks.batch(run, engine.make_batch(run, np.arange(rows)))
    return {k: engine._masked(v, batch) for k, v in hooks.terms(run, hooks.views(run, batch)).items()}


def refused(code: str, **given: Any) -> InterfuseError:
    with pytest.raises(InterfuseError) as caught:
        apply(**given)
    assert caught.value.code == code, caught.value
    return caught.value


# -- what is learnt --------------------------------------------------------------------------------------------------


def test_only_the_response_is_learnt_and_its_end(folder: Path) -> None:
    run, _ = started("sft", student=lm(folder, "bytes"), data=pairs())
    rows = run.encoder.token_rows
    for reading, learnt, prompt, response in zip(
        rows.readings, rows.learnt, pairs()["prompt"], pairs()["response"], strict=True
    ):
        surfaces = b"".join(rows.lex.surfaces[i] for i in reading.ids[learnt])
        assert surfaces.replace(b"</s>", b"").endswith(response.encode())
        assert reading.ids[-1] == rows.lex.roles["eos"]
        assert learnt[-1]
        assert sum(len(rows.lex.surfaces[i]) for i in reading.ids[~learnt]) <= len(prompt.encode())


def test_loss_is_the_models_own_loss(folder: Path) -> None:
    student = lm(folder, "bytes")
    found = losses_of("sft", student=student, data=texts())["ce"]
    tok = tokenizer("bytes")
    for row, text in enumerate(TEXT[:3]):
        ids = torch.tensor([tok(text)["input_ids"]])
        with torch.no_grad():
            own = student.module(input_ids=ids, labels=ids).loss  # type: ignore[misc]
        assert float(found[row].detach().sum()) / (ids.shape[1] - 1) == pytest.approx(float(own), rel=1e-5)


def test_conversations_are_put_into_words_by_the_students_template(folder: Path) -> None:
    from transformers import AutoTokenizer

    place = folder / "talking"
    tok = AutoTokenizer.from_pretrained(lm(folder, "bytes").tokenizer)
    tok.chat_template = TALK
    tok.save_pretrained(place)
    talk = [
        {"role": "user", "content": "The cat"},
        {"role": "assistant", "content": "sees"},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "plus two"},
    ]
    student = lm(folder, "bytes")
    student = Model(student.name, None, student.config, student.task, module=student.module, tokenizer=place)
    run, _ = started(
        "fusechat", student=student, teacher=[lm(folder, "marker", 1)], data=Dataset.from_dict({"messages": [talk]})
    )
    words = run.encoder.token_rows.words[0]
    assert [words.text[a:b] for a, b in words.spans] == ["sees\n", "plus two\n"]
    assert run.teacher_encoders[0].token_rows.words[0] is words
    rows = run.teacher_encoders[0].token_rows
    assert b"sees\n" in b"".join(rows.lex.surfaces[i] for i in rows.readings[0].ids[rows.learnt[0]])


def test_refusals_before_work(folder: Path, tmp_path: Path) -> None:
    student = lm(folder, "bytes")
    given = {"method_name": "distill/sft", "student": student, "out": tmp_path / "o"}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    error = refused("input.missing", **given, data=Dataset.from_dict({"messages": [talk]}))
    assert "chat template" in error.what
    empty = Dataset.from_dict({"prompt": ["a b", "c d"], "response": ["x", ""]})
    refused("input.missing", **given, data=empty)
    late = Dataset.from_dict({"prompt": ["The cat sees a small red bird"], "response": ["home"]})
    error = refused("input.empty", **given, data=late, max_length=3)
    assert "max_length" in error.fix
    clash = {**given, "method_name": "distill/lm-kd", "data": texts()}
    error = refused("input.vocabulary", **clash, teacher=[lm(folder, "marker")])
    assert "vocabulary: prefix" in error.fix
    refused(
        "param.value",
        **{**given, "method_name": "distill/fusechat"},
        data=texts(),
        teacher=[student],
        teacher_cache="off",
    )
    bert = {"config": tiny_texts.BERT, "task": "text-classification", "tokenizer": str(student.tokenizer)}
    refused(
        "input.type", **{**given, "student": bert}, data=Dataset.from_dict({"text": TEXT[:4], "label": list("abab")})
    )
    assert not (tmp_path / "o").exists()


def test_texts_longer_than_a_model_reads_are_refused(folder: Path, tmp_path: Path) -> None:
    """Whether it is the student or a teacher; rows that ``max_length`` cuts are fine."""
    long = Dataset.from_dict({"text": [" ".join(TEXT[:2])] * 2})
    student, teacher = lm(folder, "bytes"), lm(folder, "bytes", 1)
    narrow = replace(teacher, name="narrow", config={**teacher.config, "max_position_embeddings": 16})
    for given in ({"student": student, "teacher": [narrow]}, {"student": narrow, "teacher": [teacher]}):
        error = refused("input.limit", method_name="distill/lm-kd", data=long, out=tmp_path / "o", **given)
        assert "narrow" in str(error.where)
        assert "max_length: 16" in error.fix
    started("lm-kd", student=student, teacher=[narrow], data=long, max_length=16)
    gpt = {"model_type": "gpt2", "vocab_size": 400, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    given = {"config": gpt, "task": "causal-lm", "tokenizer": str(student.tokenizer)}
    refused("input.limit", method_name="distill/sft", student=given, data=long, out=tmp_path / "o")


@pytest.mark.parametrize("method", ["lm-kd", "uld", "fusechat", "infigfusion"])
def test_a_teacher_without_numbers_is_named(method: str, folder: Path, tmp_path: Path) -> None:
    teacher = lm(folder, "bytes", 1)
    assert teacher.module is not None
    with torch.no_grad():
        teacher.module.get_output_embeddings().weight[:, 0] = torch.nan
    given = {"student": lm(folder, "bytes"), "teacher": [replace(teacher, name="silent")], "data": texts()}
    error = refused("input.nan", method_name=f"distill/{method}", out=tmp_path / "o", **given)
    assert str(error.where).startswith("silent")
    assert not (tmp_path / "o").exists()


def test_positions_without_a_number_do_not_count(folder: Path) -> None:
    teacher, lines = lm(folder, "bytes", 1), list[str]()
    assert teacher.module is not None
    ids = [tokenizer("bytes")(text)["input_ids"] for text in TEXT[:5]]
    token = next(t for t in ids[4] if t not in ids[0] + ids[1])  # the first rows are tried before work
    with torch.no_grad():
        teacher.module.get_input_embeddings().weight[token] = torch.nan
    run, _ = started(
        "lm-kd", Ctx(seed=3, log=lines.append), student=lm(folder, "bytes"), teacher=[teacher], data=texts()
    )
    (about,) = run.facts["teacher caches"]
    assert 0 < about["positions without a number"] < about["positions"]
    assert int((~run.held["targets"][0].valid).sum()) == about["positions without a number"]
    assert any("which do not count" in line for line in lines)


def test_a_template_that_rewrites_history_is_refused(folder: Path) -> None:
    tok = mock.Mock(chat_template="x")
    tok.apply_chat_template = lambda part, tokenize, add_generation_prompt=False: f"{len(part)} turns"
    from interfuse.data.tables import from_dataset

    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    table = from_dataset(Dataset.from_dict({"messages": [talk]}), "t")
    with pytest.raises(InterfuseError, match=r"needs\.capability"):
        put_into_words(table, tok)
    silent = from_dataset(Dataset.from_dict({"messages": [talk[:1]]}), "t")
    with pytest.raises(InterfuseError, match=r"input\.empty"):
        put_into_words(silent, tok)


# -- the same gradient, however a batch is cut -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "lm-kd", "uld", "fusechat"])
def test_gradient_does_not_depend_on_accumulation(method: str, folder: Path) -> None:
    given: dict[str, Any] = {"student": lm(folder, "bytes", 0, torch.float64), "data": texts(5), "clip": 0, "epochs": 1}
    if method != "sft":
        given["teacher"] = [lm(folder, "bytes" if method == "lm-kd" else "marker", 1)]

    def gradients(cut: list[int]) -> dict[str, torch.Tensor]:
        run, hooks = started(method, **given)
        engine._step(run, hooks, np.array_split(np.arange(5), np.cumsum(cut)[:-1]), {})
        return {n: p.grad.clone() for n, p in run.student.named_parameters() if p.grad is not None}

    whole, parts = gradients([5]), gradients([2, 1, 2])
    scale = max(float(g.abs().max()) for g in whole.values())
    assert scale > 0
    for name, value in parts.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-6 * scale)


# -- a model distilled into itself -------------------------------------------------------------------------------------


def test_a_model_distilled_into_itself_has_loss_zero(folder: Path) -> None:
    student = lm(folder, "bytes")
    given = {"student": student, "teacher": [student], "data": texts()}
    for name in ("forward-kl", "reverse-kl", "js", "skewed-forward-kl", "skewed-reverse-kl", "alpha-beta", "tvd"):
        live = losses_of("lm-kd", **given, divergence=name, teacher_cache="off")["kd"]
        assert float(live.detach().abs().max()) < 2e-6, name
        kept = losses_of("lm-kd", **given, divergence=name, top_k=8)["kd"]
        assert float(kept.detach().abs().max()) < 2e-3, name  # probabilities are kept in half precision
    assert float(losses_of("uld", **given, top_k=8)["uld"].abs().max()) < 2e-3
    assert float(losses_of("fusechat", **given, loss="kl", top_k=8)["fusion"].abs().max()) < 1e-5
    graph = losses_of("infigfusion", **given, gld=1.0, top_k=8)
    other = losses_of("infigfusion", **{**given, "teacher": [lm(folder, "marker", 4)]}, gld=1.0, top_k=8)
    assert float(graph["gld"].max()) < 1e-4 * float(other["gld"].max())
    assert float(graph["uld"].max()) < 2e-3 < float(other["uld"].max())


# -- stored predictions ------------------------------------------------------------------------------------------------


def test_stored_distributions_are_the_models(folder: Path) -> None:
    student = lm(folder, "bytes")
    run, _ = started("lm-kd", student=student, teacher=[lm(folder, "bytes", 1)], data=texts())
    rows = run.encoder.token_rows
    said = token_cache.token_said(
        run.teacher_models[0], run.teachers[0], rows, run.ctx, k=6, folder=None, device=run.device
    )
    for row in range(len(rows)):
        ids = torch.from_numpy(rows.readings[row].ids)[None]
        with torch.no_grad():
            logs = run.teachers[0](ids).logits[0, :-1].log_softmax(-1)
        a, b = rows.offsets[row], rows.offsets[row + 1]
        torch.testing.assert_close(said.logp[a:b].float(), logs.topk(6).values, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(said.gold[a:b], logs.gather(1, ids[0, 1:, None])[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            said.tail[a:b].exp() + logs.topk(6).values.exp().sum(-1), torch.ones(b - a), rtol=1e-4, atol=1e-4
        )
    assert said.mean_loss(rows)[0] == pytest.approx(-float(said.gold[: rows.offsets[1]].mean()))
    whole = token_cache.token_said(
        run.teacher_models[0], run.teachers[0], rows, run.ctx, k=48, folder=None, device=run.device
    )
    assert whole.bytes_per_token <= 300


def test_caches_are_shared_resumed_and_refused_when_they_are_of_others(folder: Path, tmp_path: Path) -> None:
    given = {
        "student": lm(folder, "bytes"),
        "teacher": [lm(folder, "bytes", 1)],
        "data": texts(),
        "teacher_cache": "disk",
    }
    lines: list[str] = []
    ctx = Ctx(seed=3, cache=tmp_path, log=lines.append)
    with mock.patch.object(token_cache, "SHARD", 2):
        asked = mock.Mock(side_effect=token_cache._ask)
        with mock.patch.object(token_cache, "_ask", asked):
            started("lm-kd", ctx, **given)
            assert asked.call_count == 3
            (place,) = (tmp_path / "teachers").iterdir()
            files = sorted(place.iterdir())
            files[1].unlink()  # the process was killed before the second part was written
            started("uld", ctx, **given)
            assert asked.call_count == 4
            assert any("resuming" in line for line in lines)
            started("lm-kd", ctx, **{**given, "data": Dataset.from_dict({"text": ["The cat sees", "One plus two"]})})
            assert len(list((tmp_path / "teachers").iterdir())) == 2, "other texts are another cache"
        whole = files[0].read_bytes()
        files[0].write_bytes(files[2].read_bytes())
        with pytest.raises(InterfuseError, match=r"artifact\.damaged"):
            started("lm-kd", ctx, **given)
        other = next(p for p in (tmp_path / "teachers").iterdir() if p != place)
        files[0].write_bytes(next(other.iterdir()).read_bytes())
        with pytest.raises(InterfuseError, match=r"of another model, tokenizer or other texts"):
            started("lm-kd", ctx, **given)
        files[0].write_bytes(whole[:100])
        with pytest.raises(InterfuseError, match=r"artifact\.damaged"):
            started("lm-kd", ctx, **given)


# -- losses on kept tokens -----------------------------------------------------------------------------------------------


def kept(teacher: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logs = log_probs(teacher)
    top = logs.topk(k, dim=-1)
    return top.indices, top.values, (1 - top.values.exp().sum(-1)).clamp_min(0).log()


def test_kept_tokens_bound_the_whole_divergence_from_below() -> None:
    g = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(4, 5, 30, generator=g, dtype=torch.float64) for _ in range(2))
    for divergence in (forward_kl, reverse_kl, js):
        whole = divergence(s, t)
        before = torch.zeros(4, 5, dtype=torch.float64)
        for k in (1, 5, 20):
            part = sparse_divergence(divergence, s, *kept(t, k))
            assert (part >= before - 1e-9).all()
            assert (part <= whole + 1e-9).all()
            before = part
        torch.testing.assert_close(sparse_divergence(divergence, s, *kept(t, 30)), whole)
    full = uld(s, t)
    assert (sparse_uld(s, *kept(t, 5)[1:]) <= full + 1e-9).all()
    torch.testing.assert_close(sparse_uld(s, kept(t, 30)[1], torch.full((4, 5), -torch.inf).double()), full)
    with pytest.raises(InterfuseError, match=r"param\.value"):
        sparse_divergence(forward_kl, s, *kept(t, 5), tau=2.0)


def test_blocks_of_positions_change_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    s, t = (torch.randn(3, 4, 11, generator=g, dtype=torch.float64) for _ in range(2))
    s.requires_grad_()
    mask = torch.rand(3, 4, generator=g) > 0.3
    ids, logp, _ = kept(t, 4)
    for size in (1, 3, 100):
        plain = -(logp.softmax(-1) * s.log_softmax(-1).gather(-1, ids)).sum(-1).masked_fill(~mask, 0)
        ours = chunked_rows(
            lambda z, i, lp: z.logsumexp(-1) - (lp.softmax(-1) * z.gather(-1, i)).sum(-1),
            s,
            ids,
            logp,
            mask=mask,
            positions=size,
        )
        torch.testing.assert_close(ours, plain)
        weight = torch.rand(3, 4, generator=g, dtype=torch.float64)
        one, two = (torch.autograd.grad((v * weight).sum(), s)[0] for v in (ours, plain))
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(sparse_cross_entropy(s, ids, logp, mask=mask), plain)
    with pytest.raises(InterfuseError, match=r"input\.shape"):
        chunked_rows(forward_kl, s, t[:2])


# -- other vocabularies ----------------------------------------------------------------------------------------------------


def test_a_source_of_the_same_tokens_gives_its_own_distributions(folder: Path) -> None:
    run, _ = started("fusechat", student=lm(folder, "bytes"), teacher=[lm(folder, "bytes", 1)], data=texts(), top_k=6)
    own = run.held["targets"][1]
    rows = run.encoder.token_rows
    said = token_cache.token_said(
        run.teacher_models[0], run.teachers[0], rows, run.ctx, k=6, folder=None, device=run.device
    )
    assert torch.equal(own.ids, said.ids.long())
    assert torch.equal(own.logp, said.logp.float())
    assert bool(own.valid.all())


def test_a_source_of_other_tokens_is_put_into_the_pivots(folder: Path) -> None:
    shares = {}
    for policy in ("exact", "counted", "counted-reference", "prefix", "edit"):
        run, _ = started("fusechat", student=lm(folder, "bytes"), teacher=[lm(folder, "marker", 1)], data=texts(20), top_k=6, vocabulary=policy)  # fmt: skip
        target = run.held["targets"][1]
        assert int(target.ids.max()) < run.outputs
        there = target.logp > -np.inf
        assert bool(there.any(-1).all()), "where a source says nothing, the text itself is the target"
        for ids, on in zip(target.ids[:50], there[:50], strict=True):
            assert len(set(ids[on].tolist())) == int(on.sum()), "no token twice"
        total = torch.where(there, target.logp.exp(), 0).sum(-1) + target.tail.exp()
        assert torch.allclose(total[target.valid], torch.ones(int(target.valid.sum())), atol=2e-3)
        shares[policy] = run.facts["teachers"][0]["map"]["placed share"]
    assert shares["exact"] <= shares["counted"] <= shares["edit"]
    assert shares["exact"] < shares["counted"], "partners by counts place more tokens than equal ones alone"


def test_the_better_of_pivot_and_source_is_the_target(folder: Path) -> None:
    from interfuse.distill.fusechat import choose

    run, hooks = started("fusechat", student=lm(folder, "bytes"), teacher=[lm(folder, "bytes", 1), lm(folder, "bytes", 2)], data=texts(), top_k=6)  # fmt: skip
    pivot, *sources = run.held["targets"]
    winner = choose(pivot, sources, "min-ce")
    losses = np.stack([pivot.loss, *(s.loss for s in sources)])
    assert (winner == losses.argmin(0)).all()
    assert set(choose(pivot, sources, "source").tolist()) <= {1, 2}
    assert (choose(pivot, [pivot, pivot], "min-ce") == 0).all(), "a tie goes to the pivot"
    batch = hooks.batch(run, engine.make_batch(run, np.arange(5)))
    said = batch.extra["said"][0]
    for row in range(5):
        where = run.encoder.token_rows.offsets[row]
        assert torch.equal(said["ids"][row, 0], run.held["targets"][winner[row]].ids[where])
    broken = sources[0].loss.copy()
    broken[1] = np.nan
    lost = choose(replace(pivot, loss=np.full(5, np.nan)), [replace(sources[0], loss=broken)], "min-ce")
    assert lost.tolist() == [1, -1, 1, 1, 1], "a text without any loss is left out"


def test_a_padded_vocabulary_is_no_target(folder: Path) -> None:
    student = lm(folder, "bytes")
    from transformers import AutoConfig, AutoModelForCausalLM

    wide = {**student.config, "vocab_size": student.labels + 9}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**wide))
        with torch.no_grad():
            module.lm_head.weight.mul_(30)
    teacher = Model("wide", None, wide, "causal-lm", module=module, tokenizer=student.tokenizer)
    run, _ = started("fusechat", student=student, teacher=[teacher], data=texts(), top_k=20)
    target = run.held["targets"][1]
    assert int(target.ids.max()) < student.labels
    assert bool((target.logp == -np.inf).any())


def test_a_map_is_needed_and_then_used(folder: Path, tmp_path: Path) -> None:
    given = {"student": lm(folder, "bytes"), "teacher": [lm(folder, "marker", 1)], "data": texts()}
    run, _ = started("lm-kd", Ctx(seed=1, cache=tmp_path), **given, vocabulary="prefix")
    report = run.facts["teachers"][0]
    assert 0.2 < report["positions with a target"] <= 1
    assert report["map"]["placed share"] > 0.5
    assert run.held["targets"][0].valid.float().mean() == pytest.approx(report["positions with a target"], abs=1e-4)
    edits, _ = started("lm-kd", Ctx(seed=1, cache=tmp_path), **given, vocabulary="prefix", align="edits")
    assert edits.facts["teachers"][0]["positions with a target"] > 0
    assert targets_of(run, -1, k=4).report["same tokens"]


# -- graphs on logits ------------------------------------------------------------------------------------------------------


def rows_of(*rows: list[float]) -> gl.Kept:
    z = torch.tensor(rows, dtype=torch.float64)
    return gl.Kept(torch.arange(z.shape[1]).expand(len(z), -1), z)


def test_worked_graphs() -> None:
    student, a, b = rows_of([2, 1, 0], [0, 1, 1]), rows_of([1, 2, 0], [1, 0, 1]), rows_of([1, 2, 0], [0, 0, 2])
    raw = {"scale": "raw", "nodes": "all"}
    torch.testing.assert_close(
        gl.node_features(student, 3, **raw), torch.tensor([1, 5 / 6, 1 / 3], dtype=torch.float64)
    )
    assert float(gl.gld_loss(student, a, 3, 3, **raw)) == pytest.approx(0, abs=1e-15)
    assert float(gl.gld_loss(student, b, 3, 3, **raw)) == pytest.approx(0.018519, abs=1e-6)


def random_kept(seed: int, positions: int, size: int, k: int) -> tuple[gl.Kept, torch.Tensor]:
    z = 2 * torch.randn(positions, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gl.keep(z, k), z


@pytest.mark.parametrize("scale", ["standardise", "raw"])
@pytest.mark.parametrize("nodes", ["active", "all"])
def test_features_are_the_row_means_of_the_graph(scale: Any, nodes: Any) -> None:
    found, _ = random_kept(0, 7, 40, 5)
    values = gl.scaled(found.values, scale)
    z = torch.zeros(7, 40, dtype=torch.float64).scatter(1, found.ids, values)
    graph = z.T @ z / 7
    if nodes == "active":
        on = torch.zeros(40, dtype=torch.bool).index_fill(0, found.ids.flatten(), True)
        graph = graph[on][:, on]
    torch.testing.assert_close(gl.node_features(found, 40, scale=scale, nodes=nodes), graph.mean(1))


def test_graph_distance_does_not_know_names_shifts_or_scales() -> None:
    (a, z), (b, _) = random_kept(1, 9, 30, 6), random_kept(2, 11, 50, 6)
    base = float(gl.gld_loss(a, b, 30, 50))
    assert base > 1e-4
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    assert float(gl.gld_loss(gl.keep(z[:, order], 6), b, 30, 50)) == pytest.approx(base, rel=1e-9)
    assert float(gl.gld_loss(gl.keep(3 * z + 5, 6), b, 30, 50)) == pytest.approx(base, rel=1e-9)
    assert float(gl.gld_loss(a, a, 30, 30)) == 0
    assert float(gl.gld_loss(a, b, 30, 50, mismatch="pad")) > 0


def test_transport_between_sets_of_different_size_is_exact() -> None:
    g = torch.Generator().manual_seed(0)
    for n, m in ((3, 5), (4, 8), (1, 6), (7, 7)):
        a, b = (torch.randn(size, generator=g, dtype=torch.float64) for size in (n, m))
        fine = (a.sort().values.repeat_interleave(m) - b.sort().values.repeat_interleave(n)).abs()
        assert float(gl.sorted_distance(a, b)) == pytest.approx(float(fine.square().mean()))
        assert float(gl.sorted_distance(a, b, power=1)) == pytest.approx(float(fine.mean()))


def test_gradient_of_the_graph_distance() -> None:
    (_, z), (b, _) = random_kept(4, 4, 7, 3), random_kept(5, 6, 9, 3)
    z = z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gl.gld_loss(gl.keep(x, 3), b, 7, 9), (z,))
    (grad,) = torch.autograd.grad(gl.gld_loss(gl.keep(z, 3), b, 7, 9), z)
    assert float(grad.abs().max()) > 1e-3 * float(gl.gld_loss(gl.keep(z, 3), b, 7, 9).detach())


def test_order_of_graph_distances_follows_exact_gromov_wasserstein() -> None:
    ot = pytest.importorskip("ot")
    from scipy.stats import spearmanr

    ours, exact = [], []
    (base, z) = random_kept(0, 40, 6, 6)
    for seed, step in enumerate(np.linspace(0, 2.5, 9)):
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
        other = z + step * noise
        ours.append(float(gl.gld_loss(base, gl.keep(other, 6), 6, 6, scale="raw", nodes="all")))
        graphs = [(x.T @ x / len(x)).numpy() for x in (z, other)]
        p = np.full(6, 1 / 6)
        exact.append(min(ot.gromov.gromov_wasserstein2(*graphs, p, p, "square_loss", G0=start) for start in (np.outer(p, p), np.eye(6) / 6)))  # fmt: skip
    assert spearmanr(ours, exact).statistic > 0.7


def test_graph_refusals() -> None:
    (a, z), _ = random_kept(0, 5, 12, 4), None
    for k in (0, 13):
        with pytest.raises(InterfuseError, match=r"param\.value"):
            gl.keep(z, k)
    with pytest.raises(InterfuseError, match=r"input\.empty"):
        gl.keep(z, 3, torch.zeros(5, dtype=torch.bool))
    with pytest.raises(InterfuseError, match=r"input\.nan"):
        gl.keep(z.masked_fill(z > 1, torch.nan), 3)
    with pytest.raises(InterfuseError, match=r"input\.limit"):
        gl.gld_loss(a, a, 12, 12, budget=1000)


def test_graphs_of_a_real_vocabulary_stay_small() -> None:
    """No tensor of the size of the graph, nor of the logits, is made beside the logits themselves."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple) else (out,):
                if isinstance(value, torch.Tensor):
                    self.seen = max(self.seen, value.numel() * value.element_size())
            return out

    g = torch.Generator().manual_seed(0)
    ours = gl.Kept(torch.randint(49_152, (512, 10), generator=g), torch.rand(512, 10, generator=g))
    theirs = gl.Kept(torch.randint(262_144, (400, 10), generator=g), torch.rand(400, 10, generator=g))
    with Largest() as watch:
        gl.gld_loss(ours, theirs, 49_152, 262_144)
    assert 0 < watch.seen <= gl.memory_of(ours, 49_152, "active") < 2**22


def test_facts_of_a_fusion_are_in_its_manifest(folder: Path, tmp_path: Path) -> None:
    given = {
        "student": lm(folder, "bytes"),
        "teacher": [lm(folder, "marker", 1)],
        "data": pairs(),
        "epochs": 1,
        "batch_size": 2,
    }
    apply("distill/fusechat", **given, out=tmp_path / "f")
    report = json.loads((tmp_path / "f" / "interfuse.json").read_text())["facts"]
    assert sum(report["fusion"]["texts won"].values()) == 3
    assert report["teachers"][0]["map"]["policy"] == "counted"
    apply("distill/infigfusion", **given, out=tmp_path / "g")
    report = json.loads((tmp_path / "g" / "interfuse.json").read_text())["facts"]
    assert report["weight of the graph term"] > 0


def test_rows_are_cut_and_keep_their_ends() -> None:
    from interfuse.data.tables import from_dataset

    tok = tokenizer("bytes")
    words = put_into_words(from_dataset(pairs(), "p"), tok)
    whole, cut = tokenise(words, tok, 99, "p"), tokenise(words, tok, 8, "p")
    assert all((a.ids[:8] == b.ids).all() for a, b in zip(whole.readings, cut.readings, strict=True))
    assert whole.digest != cut.digest
    batch = whole.batch([0, 2])
    assert batch["input_ids"].shape == batch["learnt"].shape
    assert int(batch["attention_mask"].sum()) == len(whole.readings[0]) + len(whole.readings[2])


# -- answers that models write ---------------------------------------------------------------------------------------------


def test_the_teachers_answers_are_learnt_and_asked_once(folder: Path, tmp_path: Path) -> None:
    ctx = Ctx(seed=3, cache=tmp_path)
    given = {
        "student": lm(folder, "bytes"),
        "teacher": [lm(folder, "marker", 1)],
        "data": pairs(),
        "max_new_tokens": 6,
        "temperature": 1.0,
    }
    run, hooks = started("seqkd", ctx, **given)
    words = [w.text for w in run.held["rows"].words]
    assert all(
        w.startswith(p) and len(w) > len(p)
        for w, p in zip(words, [pairs()["prompt"][r] for r in run.held["known"]], strict=True)
    )
    batch = hooks.batch(run, engine.make_batch(run, np.arange(1)))
    learnt = batch.labels[0][batch.labels[0] != -100]
    assert run.encoder.tokenizer.decode(learnt).replace("</s>", "") in words[0]
    with mock.patch("interfuse.data.local_lm.LocalLM.generate", side_effect=AssertionError("asked twice")):
        again, _ = started("seqkd", ctx, **given)
    assert [w.text for w in again.held["rows"].words] == words
    with pytest.raises(InterfuseError, match=r"input\.missing"):
        started("seqkd", ctx, **{**given, "data": texts()})


def test_a_teacher_elsewhere_is_priced_before_it_is_asked(folder: Path, tmp_path: Path) -> None:
    replies = [{"prompt": p, "replies": [r]} for p, r in zip(pairs()["prompt"], [" sees", "", " sings"], strict=True)]
    (tmp_path / "said.jsonl").write_text("\n".join(json.dumps(r) for r in replies))
    given = {"student": lm(folder, "bytes"), "data": pairs(), "served": f"replies:{tmp_path / 'said.jsonl'}"}
    run, hooks = started("seqkd", Ctx(seed=3, cache=tmp_path), **given)
    assert [w.text for w in run.held["rows"].words] == ["The cat  sees", "She  sings"]
    assert run.facts["answers"]["empty"] == 1
    assert hooks.select(run, np.arange(3)).tolist() == [0, 2]
    served = {"endpoint": "http://localhost:9/v1", "model": "m"}
    call = prepare(load_room("distill"), load("distill/seqkd"), {**given, "served": served}, Ctx())
    assert load_room("distill").estimate(call).calls == 3
    with pytest.raises(InterfuseError, match=r"param\.value"):
        started("seqkd", **given, teacher=[lm(folder, "marker")])


def test_a_ranking_prefers_what_the_teacher_finds_likelier(folder: Path, tmp_path: Path) -> None:
    from interfuse.data.local_lm import LocalLM

    teacher = lm(folder, "marker", 1)
    given = {
        "student": lm(folder, "bytes"),
        "teacher": [teacher],
        "data": pairs(),
        "max_new_tokens": 6,
        "candidates": 3,
    }
    run, hooks = started("dpo", Ctx(seed=3, cache=tmp_path), **given)
    rows = run.held["rows"]
    judge = LocalLM(teacher)
    for row, number in run.held["known"].items():
        prompt = pairs()["prompt"][row]
        answers = [w.text[len(prompt) :] for w in rows.words[3 * number : 3 * number + 3]]
        means = [s.logprob / s.tokens for s in judge.score([(prompt, a) for a in answers])]
        assert means == sorted(means, reverse=True)
    run.student.eval()
    order = hooks.select(run, np.arange(3))
    views = hooks.views(run, hooks.batch(run, engine.make_batch(run, order)))
    start = hooks.terms(run, views)["dpo"]
    torch.testing.assert_close(
        start, torch.full_like(start, np.log(2)), rtol=1e-4, atol=1e-4
    )  # the student is the reference
    for objective in ("rrhf", "pro"):
        run2, hooks2 = started("dpo", Ctx(seed=3, cache=tmp_path), **given, objective=objective)
        found = hooks2.terms(run2, hooks2.views(run2, hooks2.batch(run2, engine.make_batch(run2, order))))
        assert all(bool(torch.isfinite(v).all()) and float(v.min()) >= 0 for v in found.values())


def test_the_student_writes_and_the_teacher_judges(folder: Path) -> None:
    given = {"student": lm(folder, "bytes"), "teacher": [lm(folder, "bytes", 1)], "max_new_tokens": 5}
    run, hooks = started("gkd", **given, data=pairs(), on_policy=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = hooks.batch(run, engine.make_batch(run, np.arange(3)))
    assert batch.extra["on policy"]
    tok = run.encoder.tokenizer
    for line, row in enumerate(range(3)):
        rows = run.encoder.token_rows
        begin = int(rows.learnt[row].argmax())
        assert (batch.student["input_ids"][line, :begin].numpy() == rows.readings[row].ids[:begin]).all()
        learnt = batch.labels[line] != -100
        assert 1 <= int(learnt.sum()) <= 5
        assert int(learnt[: begin - 1].sum()) == 0
    assert torch.equal(batch.teachers[0]["input_ids"], batch.student["input_ids"])
    ends = batch.student["input_ids"] == tok.eos_token_id
    assert int(ends.sum(1).max()) <= 1
    off, hooks0 = started("gkd", **given, data=texts(), on_policy=0.0)
    batch = engine.make_batch(off, np.arange(2))
    assert hooks0.batch(off, batch) is batch
    own = losses_of("gkd", student=given["student"], teacher=[given["student"]], data=texts(), on_policy=0.0)["kd"]
    assert float(own.abs().max()) < 2e-6


@pytest.mark.slow
def test_the_loss_of_preferences_is_that_of_trl(folder: Path, tmp_path: Path) -> None:
    """The same pairs through ``trl.DPOTrainer``; the student has moved away from its reference."""
    trl = pytest.importorskip("trl")
    from transformers import AutoTokenizer

    from interfuse.distill.dpo import DPO
    from interfuse.distill.hooks import Batch, Views
    from interfuse.kit.encode import forward, targets
    from interfuse.kit.token_rows import Words

    student, reference = lm(folder, "bytes"), lm(folder, "bytes")
    assert student.module is not None
    assert reference.module is not None
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    rows = {"prompt": ["The cat", "One plus"], "chosen": [" sees a bird", " two"], "rejected": [" runs", " is three"]}
    tok = AutoTokenizer.from_pretrained(student.tokenizer)
    config = trl.DPOConfig(output_dir=str(tmp_path), beta=0.1, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False, disable_dropout=True)  # fmt: skip
    trainer = trl.DPOTrainer(model=student.module, ref_model=reference.module, args=config, train_dataset=Dataset.from_dict(rows), processing_class=tok)  # fmt: skip
    theirs = trainer.compute_loss(student.module, next(iter(trainer.get_train_dataloader())))
    words = [
        Words(p + a, ((len(p), len(p + a)),), True)
        for p, *answers in zip(rows["prompt"], rows["chosen"], rows["rejected"], strict=True)
        for a in answers
    ]
    batch = tokenise(words, tok, 64, "pairs").batch(range(4))
    labels = targets(student, None, batch)
    assert labels is not None
    with torch.no_grad():
        ref = -torch.nn.functional.cross_entropy(
            forward(reference.module, reference, batch).transpose(1, 2), labels, reduction="none"
        ).sum(-1)
        found = forward(student.module, student, batch)
    views = Views(Batch(np.arange(2), batch, [], None, extra={"words": labels, "reference": ref}), found, [])
    ours = DPO(beta=0.1).terms(mock.Mock(), views)["dpo"].mean()
    assert abs(float(ours) - np.log(2)) > 0.1
    assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-4)


@pytest.mark.slow
def test_both_loops_learn_the_same_from_preferences(folder: Path, tmp_path: Path) -> None:
    """Full batches at a constant rate: the room's loop and trl's trainer take the same steps."""
    pytest.importorskip("trl")
    from safetensors.torch import load_file

    from interfuse.core.rooms import apply

    rows = Dataset.from_dict({"prompt": ["The cat", "One plus", "She"], "chosen": [" sees a bird", " two", " sings"], "rejected": [" runs", " is three", " runs"]})  # fmt: skip
    given = {"data": rows, "epochs": 3, "batch_size": 4, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "schedule": "constant",
             "warmup": 0.0}  # fmt: skip
    found = {}
    for loop in ("own", "trl"):
        apply("distill/dpo", student=lm(folder, "bytes"), loop=loop, out=tmp_path / loop, **given)
        found[loop] = load_file(tmp_path / loop / "model.safetensors")
    module = lm(folder, "bytes").module
    assert module is not None
    start = module.state_dict()
    moved = max(float((found["own"][n] - start[n]).abs().max()) for n in found["own"])
    apart = max(float((found["own"][n] - found["trl"][n]).abs().max()) for n in found["own"])
    assert moved > 1e-3
    assert apart < 1e-3 * moved
