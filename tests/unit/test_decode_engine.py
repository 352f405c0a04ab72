"""The loop of the decode room: what holds for every method, on tiny random models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from interfuse.core import index
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.decode.engine import Engine, Options, Text
from interfuse.decode.fused import fuse
from interfuse.decode.room import Step
from interfuse.decode.streams import Tape, Weights
from interfuse.decode.trace import SCHEMA, Trace
from tests import tiny_texts

IDS = [e.id for e in index.entries().values() if e.kind == "method" and e.room == "decode"]
#: methods of tokens; those of spans have a loop of their own
METHODS = sorted(i.split("/")[1] for i in IDS if not load(i).traits.get("spans"))
FACTS = {"chosen": [[0, 1], [1, 0]]}
PROMPTS = ["the cat sees a", "one bird", "blue fish swims here and there the dog"]
ASKED = [
    {"question": q, "context": c}
    for q, c in zip(PROMPTS, ("red dog runs", "", "the large green bird sings not"), strict=True)
]
KINDS: dict[str, dict[str, Any]] = {
    "llama": tiny_texts.LLAMA,
    "gpt2": {"model_type": "gpt2", "vocab_size": tiny_texts.VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
             "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2},
    "qwen3_moe": {**tiny_texts.LLAMA, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
}  # fmt: skip


def module(kind: str, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(**{**KINDS[kind], "initializer_range": 0.3})
        return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_texts.tokenizer(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: module(kind, 3) for kind in KINDS} | {
        "base": module("llama", 4),
        "one": module("llama", 5),
        "two": module("llama", 6),
    }


def engine(slug: str, models: dict[str, Any], tokenizer: Any, main: Any = None, **params: Any) -> Engine:
    """An engine of a method over as many streams as it needs."""
    traits = load(slug, room="decode").traits
    first = main if main is not None else models["qwen3_moe" if traits.get("steer") else "llama"]
    streams = [("model", first, tokenizer)]
    streams += [("base", models["base"], tokenizer)] if traits.get("base") == "required" else []
    names = ["one", "two"][: max(traits.get("experts", (0, 0))[0], int(slug == "mixture") * 2)]
    streams += [("expert", models[name], tokenizer) for name in names]
    return fuse(slug, streams, facts=FACTS, **params)


def texts(made: Engine, prompts: Sequence[Any], options: Options) -> list[Text]:
    found = {(e.source.prompt, e.source.sample): e.source for e in made.run(prompts, options) if e.done}
    return [found[key] for key in sorted(found)]


# ------------------------------------------------------------------------------------------------ identities with transformers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_one_stream_is_generate(kind: str, temperature: float, models: dict[str, Any], tokenizer: Any) -> None:
    """Token for token, greedy and sampled with the same generator, also with top-k, top-p and a repetition penalty."""
    made = engine("mixture", models, tokenizer)
    made = fuse("mixture", [("model", models[kind], tokenizer)])
    for prompt in PROMPTS:
        ids = torch.tensor([made.encode([prompt])[0][0]])
        for extra in ({}, {"top_k": 7, "top_p": 0.8, "repetition_penalty": 1.4}):
            with torch.random.fork_rng():
                torch.manual_seed(11)
                sampling = (
                    {"do_sample": True, "temperature": temperature, "top_k": 0, **extra}
                    if temperature
                    else {"do_sample": False}
                )
                if not temperature and extra:
                    sampling["repetition_penalty"] = extra["repetition_penalty"]
                out = models[kind].generate(input_ids=ids, max_new_tokens=12, pad_token_id=0, **sampling)
            wanted = [t for t in out[0, ids.shape[1] :].tolist() if t != 2]
            options = Options(
                max_tokens=12, temperature=temperature, generator=torch.Generator().manual_seed(11), **extra
            )
            assert texts(made, [prompt], options)[0].ids == wanted


def test_a_left_padded_batch_is_generate(models: dict[str, Any], tokenizer: Any) -> None:
    for kind in KINDS:
        made = fuse("mixture", [("model", models[kind], tokenizer)])
        rows = made.encode(PROMPTS)[0]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        out = (
            models[kind]
            .generate(input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)[:, width:]
            .tolist()
        )
        wanted = [row[: row.index(2)] if 2 in row else row for row in out]
        assert [t.ids for t in texts(made, PROMPTS, Options(max_tokens=10))] == wanted


# ------------------------------------------------------------------------------------------------ every method


@pytest.mark.parametrize("slug", METHODS)
def test_batch_is_single_and_score_is_generation(slug: str, models: dict[str, Any], tokenizer: Any) -> None:
    """A text does not depend on the batch, on the cache or on what is computed once; scoring it again gives its probability."""
    made = engine(slug, models, tokenizer)
    together = texts(made, ASKED, Options(max_tokens=8))
    sampled = texts(made, ASKED, Options(max_tokens=8, temperature=1.0, seed=5, n=2))
    for i, asked in enumerate(ASKED):
        alone = texts(made, [asked], Options(max_tokens=8))[0]
        assert alone.ids == together[i].ids
        assert alone.logprob == pytest.approx(together[i].logprob, abs=1e-4)
        assert [t.ids for t in texts(made, [asked], Options(max_tokens=8, temperature=1.0, seed=5, n=2))] == [
            t.ids for t in sampled[2 * i : 2 * i + 2]
        ]
        wanted = alone.ids + [2] * (alone.finish == "stop")
        encoded = [[rows[0]] for rows in made.encode([asked])]
        assert sum(made.score(encoded, [wanted])[0]) == pytest.approx(alone.logprob, abs=1e-4)
        with made.steer():
            forced = made._force(encoded, wanted)
        assert sum(forced) == pytest.approx(alone.logprob, abs=1e-4)


@pytest.mark.parametrize("slug", METHODS)
def test_constants_change_nothing(slug: str) -> None:
    """Adding a number to all logits of a model is no change of its distribution."""
    rng, method = Ctx(seed=2).rng("shift"), load(slug, room="decode")
    draw = lambda: torch.tensor(rng.normal(0, 2, (5, 40)), dtype=torch.float32)  # noqa: E731
    own = {
        n: p.default
        for n, p in method.params.items()
        if n not in ("vocabulary", "union_k", "templates", "with_context", "embed", "prefill", "rows")
    }
    streams = [draw() for _ in range(5)]
    evidence = torch.tensor(rng.normal(-2, 1, (5, 3)), dtype=torch.float32)

    def scores(shifts: Sequence[float]) -> torch.Tensor:
        model, base, one, two, plain = (x + s for x, s in zip(streams, shifts, strict=True))
        experts = [one, two][: method.traits.get("experts", (0, 0))[1]]
        return method.target(Step(model, base, experts, plain, evidence), **own).scores.log_softmax(dim=1)

    torch.testing.assert_close(scores([0] * 5), scores([3.0, -2.0, 5.0, 0.5, -4.0]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("slug", METHODS)
def test_excluded_tokens_stay_excluded(slug: str) -> None:
    """-inf of the main model stays; where every stream excludes a token nothing becomes NaN."""
    rng, method = Ctx(seed=3).rng("excluded"), load(slug, room="decode")
    own = {
        n: p.default
        for n, p in method.params.items()
        if n not in ("vocabulary", "union_k", "templates", "with_context", "embed", "prefill", "rows")
    }
    streams = [torch.tensor(rng.normal(0, 3, (3, 30)), dtype=torch.float32) for _ in range(5)]
    for x in streams:
        x[:, 25:] = -math.inf
    streams[2][:, 4] = -math.inf  # one expert alone
    model, base, one, two, plain = streams
    experts = [one, two][: method.traits.get("experts", (0, 0))[1]]
    made = method.target(Step(model, base, experts, plain, torch.zeros(3, 3)), **own)
    probs = made.scores.softmax(dim=1)
    assert torch.isfinite(probs).all()
    assert float(probs[:, 25:].sum()) == 0
    assert all(torch.isfinite(v.float()).all() for v in made.trace.values())


@pytest.mark.parametrize("slug", METHODS)
def test_trace_has_its_schema(slug: str, models: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    made, trace = engine(slug, models, tokenizer), Trace(method=f"decode/{slug}")
    done = texts(made, ASKED, Options(max_tokens=4, trace=trace))
    table = pq.read_table(trace.save(tmp_path / "run.parquet"))
    for name, kind in SCHEMA.items():
        assert table.schema.field(name).type == kind
    assert {f"top {v.name}" for v in made.voices} <= set(table.column_names)
    assert table.num_rows == sum(len(t.ids) + (t.finish == "stop") for t in done)
    assert sum(table["logprob"].to_pylist()) == pytest.approx(sum(t.logprob for t in done), abs=1e-4)


@pytest.mark.parametrize("slug", METHODS)
def test_a_stream_that_gives_nan_is_named(slug: str, models: dict[str, Any], tokenizer: Any) -> None:
    made = engine(slug, models, tokenizer)
    last = made.voices[-1]
    broken, calls = made.weights[last.weights].module, list[int]()
    made.__dict__["ends"] = frozenset()

    def spoil(mod: Any, args: Any, out: Any) -> Any:
        calls.extend([1] * (out.past_key_values is not None))
        if len(calls) > 2:  # after the prompt, and one token
            out.logits = out.logits * float("nan")
        return out

    handle = broken.register_forward_hook(spoil)
    try:
        with pytest.raises(InterfuseError, match=r"step 2") as caught:
            texts(made, ["the cat"], Options(max_tokens=6))
    finally:
        handle.remove()
    assert caught.value.code == "input.nan"
    assert caught.value.where in [v.name for v in made.voices if v.weights == last.weights]


@pytest.mark.parametrize("slug", METHODS)
def test_models_are_left_as_they_were(slug: str, models: dict[str, Any], tokenizer: Any) -> None:
    """No hook stays, after a run, an abandoned run and an error."""
    made = engine(slug, models, tokenizer)

    def count() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for w in made.weights for m in w.module.modules())

    texts(made, ASKED, Options(max_tokens=3))
    stream = made.run(ASKED, Options(max_tokens=3))
    next(stream)
    assert count() == 0, "hooks stand while nothing is computed"
    assert torch.is_grad_enabled()
    stream.close()
    combine, made.combine = made.combine, lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        texts(made, ASKED, Options(max_tokens=3))
    made.combine = combine
    assert count() == 0


# ------------------------------------------------------------------------------------------------ ends, limits, prefixes


def test_seeds(models: dict[str, Any], tokenizer: Any) -> None:
    made = engine("mixture", models, tokenizer)

    def run(seed: int) -> list[list[int]]:
        return [
            t.ids for t in texts(made, ["the cat", "the cat"], Options(max_tokens=8, temperature=1.0, seed=seed, n=3))
        ]

    first = run(1)
    assert first == run(1)
    assert first != run(2)
    assert len({tuple(ids) for ids in first}) > 3, (
        "samples of one prompt, and the same prompt twice, are samples of their own"
    )


def test_end_tokens_and_stop_strings(models: dict[str, Any], tokenizer: Any) -> None:
    """A text ends at any stream's end token, and at a stop string that lies across tokens."""
    made = engine("mixture", models, tokenizer)
    whole = texts(made, PROMPTS[:1], Options(max_tokens=12))[0]
    words = made.words(whole)
    stop = words[2:][: len(words) // 2][-5:]
    assert " " in stop, "the stop string lies across words"
    done = texts(made, PROMPTS[:1], Options(max_tokens=12, stop=(stop,)))[0]
    assert made.words(done, (stop,)) == words[: words.find(stop)]
    assert done.finish == "stop"
    assert len(done.ids) < len(whole.ids)
    models["one"].generation_config.eos_token_id = [2, whole.ids[3]]
    try:
        ended = texts(engine("mixture", models, tokenizer), PROMPTS[:1], Options(max_tokens=12))[0]
    finally:
        models["one"].generation_config.eos_token_id = 2
    assert ended.ids == whole.ids[: whole.ids.index(whole.ids[3])]
    assert ended.finish == "stop"


def test_a_shared_beginning_is_computed_once(models: dict[str, Any], tokenizer: Any) -> None:
    start = "the small red bird sees a large blue fish and the dog likes not one green cat "
    prompts = [start + end for end in ("runs", "sits here", "sings and swims", "runs")]
    for kind in KINDS:
        made = fuse("mixture", [("model", models[kind], tokenizer)])
        rows = made.encode(prompts)[0]
        shared, apart = Tape(made.weights[0]), Tape(made.weights[0])
        torch.testing.assert_close(shared.start(rows), apart.start(rows, share=False), atol=1e-4, rtol=1e-4)
        assert shared.counts.computed < 0.5 * apart.counts.computed == 0.5 * shared.counts.asked
        step = torch.tensor([[5], [6], [7], [8]])
        torch.testing.assert_close(shared.feed(step), apart.feed(step), atol=1e-4, rtol=1e-4)
        small = Tape(made.weights[0], chunk=3)
        torch.testing.assert_close(small.start(rows), apart.start(rows, share=False), atol=1e-4, rtol=1e-4)


def test_few_rows_are_quick_and_the_model_is_left_alone(models: dict[str, Any]) -> None:
    """Two to six rows are multiplied in another order: the same logits, and nothing stays on the model."""
    from interfuse.decode.streams import few_rows

    for kind in KINDS:
        weights, ids = Weights.of(models[kind], kind), torch.arange(3, 12).view(3, 3)
        with torch.no_grad():
            for rows in (ids[:1, :2], ids[:2, :1], ids[:2], ids[:3, :1]):
                plain = models[kind](input_ids=rows).logits
                with few_rows(weights, rows.numel()):
                    torch.testing.assert_close(models[kind](input_ids=rows).logits, plain, atol=1e-5, rtol=1e-4)
                with pytest.raises(RuntimeError, match="stop"), few_rows(weights, 2):
                    raise RuntimeError("stop")
        assert not any("forward" in vars(m) for m in models[kind].modules())
    assert len(Weights.of(models["llama"], "x").thin) == 15


def test_what_is_refused(models: dict[str, Any], tokenizer: Any) -> None:
    made = engine("ck-plug", models, tokenizer)

    def code(prompts: Any, **options: Any) -> str:
        with pytest.raises(InterfuseError) as caught:
            texts(made, prompts, Options(**options))
        return caught.value.code

    state = transformers.AutoConfig.for_model("mamba", vocab_size=26, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(InterfuseError, match="no cache"):
        fuse("mixture", [("model", transformers.AutoModelForCausalLM.from_config(state), tokenizer)])
    assert code([""]) == "input.empty"
    assert code([[]]) == "input.empty"
    assert code([3]) == "input.type"
    assert code([{"question": "the cat"}]) == "input.missing", "no context for a method that compares with one"
    assert code([[{"role": "user", "content": "the cat"}]]) == "needs.capability", "no chat template"
    assert code(["the cat"], max_tokens=80) == "input.limit"
    assert code(["the " * 70], max_tokens=1) == "input.limit"
    for name, value in (
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("n", 0),
        ("repetition_penalty", 0.0),
    ):
        assert code(["the cat"], **{name: value}) == "param.value"
    for slug, params in (("ck-plug", {"alpha": 1.5}), ("dynamic-logits-fusion", {"alphas": []}), ("dynamic-logits-fusion", {"alphas": [0.2, -1]}),
                         ("mixture", {"weights": [1.0, -1.0]}), ("dynamic-logits-fusion", {"limits": [-1.0]})):  # fmt: skip
        with pytest.raises(InterfuseError) as caught:
            engine(slug, models, tokenizer, **params)
        assert caught.value.code == "param.value"
    assert engine("ck-plug", models, tokenizer, alpha=1.5, extrapolate=True)
    for slug, params in (
        ("mixture", {"weights": [1.0, 2.0]}),
        ("static-arithmetic", {"alpha": [1.0, 2.0]}),
        ("dynamic-logits-fusion", {"limits": [1.0, 1.0]}),
    ):
        with pytest.raises(InterfuseError, match="for"):
            texts(engine(slug, models, tokenizer, **params), ["the cat"], Options(max_tokens=1))


def test_memory_is_known_before(models: dict[str, Any], tokenizer: Any) -> None:
    made = engine("ck-plug", models, tokenizer)
    tape = Tape(Weights.of(models["llama"], "x"))
    tape.start([[5, 6, 7], [8, 9, 10]])
    held = sum(layer.keys.numel() + layer.values.numel() for layer in tape.cache.layers) * 4
    assert made.cache_bytes(tokens=3, rows=1) == held, "two prompts of one model take two rows"
