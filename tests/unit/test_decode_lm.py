"""The fused model as a language model: its folder, its processor for ``model.generate``, other vocabularies, traces, the endpoint."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import LM, open_lm
from interfuse.decode.engine import Options
from interfuse.decode.export import export_steering
from interfuse.decode.fused import FusedLM, fuse
from interfuse.decode.processor import StreamLogitsProcessor
from interfuse.decode.room import Combined, Step
from interfuse.decode.streams import Tape, Weights
from interfuse.decode.texts import TextStreams
from interfuse.decode.trace import Trace, explain, tokens_svg
from interfuse.decode.vocabularies import (
    Projection,
    fit_vocabularies,
    onto_main,
    read_tokens,
    surfaces,
    widen_logits,
)
from tests import tiny_texts
from tests.conformance.scenes.decode import ASKED, MIXTURE, speaker, stranger, transcripts

CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decode")


@pytest.fixture(scope="module")
def large(place: Path) -> str:
    """The main model, with a chat template."""
    folder = speaker(place, "large")
    (Path(folder) / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.fixture(scope="module")
def plug(place: Path, large: str) -> FusedLM:
    lm = interfuse.decode.ck_plug(large, alpha=0.2, out=place / "plug")
    assert isinstance(lm, FusedLM)
    return lm


def byte_level(folder: Path, size: int, texts: list[str]) -> Path:
    """The folder of a byte-level BPE tokenizer trained on texts."""
    from tokenizers import ByteLevelBPETokenizer

    core = ByteLevelBPETokenizer()
    core.train_from_iterator(
        texts, vocab_size=size, min_frequency=1, special_tokens=["<pad>", "<end>"], show_progress=False
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_vocabularies(place: Path) -> list[str]:
    """Two models that read bytes by different merges."""
    texts = tiny_texts.sentences(60)[0] + ["naïve café — “quoted” words: 東京 ☃ and more"]
    made = []
    for name, size in (("fine", 270), ("coarse", 400)):
        folder = byte_level(place / name, size, texts)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(len(made))
            config = {
                **tiny_texts.LLAMA,
                "vocab_size": len(tokenizer),
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": None,
                "max_position_embeddings": 256,
            }
            transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).save_pretrained(
                folder
            )
        made.append(str(folder))
    return made


# ------------------------------------------------------------------------------------------------ the folder


def test_it_is_a_language_model(plug: FusedLM, large: str, place: Path) -> None:
    """Other rooms open the folder as they open any model; parameters can change without loading anew; the base rate is plain reading."""
    opened = open_lm(Source(str(plug.path)), Ctx())
    assert isinstance(opened, LM)
    assert [r[0].text for r in opened.generate(ASKED, max_tokens=5)] == [
        r[0].text for r in plug.generate(ASKED, max_tokens=5)
    ]
    other = plug.with_params(alpha=0.9)
    assert other.loaded is not None
    assert other._streams is plug._streams, "nothing is loaded again"
    assert len({plug.fingerprint(), other.fingerprint(), opened.fingerprint()}) >= 2
    plain = plug.with_params(gate="never").generate(["the cat sees"], max_tokens=6)[0][0]
    local = open_lm(Source(large), Ctx())
    alone = local.generate(["the cat sees"], max_tokens=6)[0][0]
    assert (plain.text, plain.tokens, plain.finish, plain.prompt_tokens) == (
        alone.text,
        alone.tokens,
        alone.finish,
        alone.prompt_tokens,
    )
    pairs = [("the cat ", "sees a dog"), ("one ", "small bird sits")]
    for ours, theirs in zip(plug.with_params(gate="never").score(pairs), local.score(pairs), strict=True):
        assert ours.token_logprobs == pytest.approx(theirs.token_logprobs, abs=1e-5)
    with pytest.raises(InterfuseError, match="alpha"):
        plug.with_params(alpha=2.0)
    assert plug.generate(ASKED, max_tokens=3, n=2)[0][0] == plug.generate(ASKED, max_tokens=3)[0][0]


def test_contexts_in_every_form(plug: FusedLM) -> None:
    """A table, messages with a context, and the parts written by hand are the same prompt."""
    question, context = ASKED[0]["question"], ASKED[0]["context"]
    table = plug.generate([{"question": question, "context": context}], max_tokens=6)[0][0]
    messages = [{"role": "context", "content": context}, {"role": "user", "content": question}]
    assert plug.generate([messages], max_tokens=6)[0][0] == table
    encoded = plug.engine.encode([messages])
    words = plug.engine.tokenizer.decode(encoded[0][0]), plug.engine.tokenizer.decode(encoded[1][0])
    assert context in words[0]
    assert context not in words[1]
    assert words[0].endswith(question)
    assert words[1].endswith(question)


def test_sources_that_moved_or_changed(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(speaker(place, "moving"), tmp_path / "model")
    lm = interfuse.decode.cad(str(model), out=tmp_path / "out" / "cad")
    kept = interfuse.decode.cad(str(model), out=tmp_path / "out" / "kept", embed=True)
    said = lm.generate(ASKED, max_tokens=4)
    shutil.move(tmp_path, place / "elsewhere")
    again = FusedLM("cad", place / "elsewhere" / "out" / "cad")
    assert again.generate(ASKED, max_tokens=4) == said, "the folder may move together with its sources"
    file = place / "elsewhere" / "model" / "model.safetensors"
    held = load_file(file)
    held["model.norm.weight"] += 1
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(InterfuseError, match="not the one") as caught:
        FusedLM("cad", again.path).generate(ASKED)
    assert caught.value.code == "artifact.damaged"
    shutil.rmtree(place / "elsewhere" / "model")
    with pytest.raises(InterfuseError) as caught:
        FusedLM("cad", again.path).generate(ASKED)
    assert caught.value.code == "input.missing"
    assert "stream model" in str(caught.value)
    assert FusedLM("kept", place / "elsewhere" / "out" / "kept").generate(ASKED, max_tokens=4) == said
    assert kept.name == "cad"


def test_in_a_recipe(place: Path, tmp_path: Path) -> None:
    """A merge's result is an expert, the fused model a step's result; done steps are not made again, and the folder opens."""
    for name in ("small", "expert"):
        speaker(place, name)
    (place / "fused.yaml").write_text(
        "interfuse: 1\nsources: {large: large, small: small, tuned: expert}\nsteps:\n"
        "  merged: {use: merge/linear, models: [tuned, small], weight: [0.7, 0.3]}\n"
        "  fused: {use: decode/dynamic-logits-fusion, model: large, base: small, experts: [merged]}\n"
    )
    speaker(place, "large")
    done = interfuse.run(str(place / "fused.yaml"), out=tmp_path / "run")
    folder = next(p.parent for p in (tmp_path / "run").rglob("fused-lm.json"))
    assert done
    lm = open_lm(Source(str(folder)), Ctx())
    assert lm.generate(["the cat"], max_tokens=3)[0][0].tokens > 0
    stamp = (folder / "fused-lm.json").stat().st_mtime_ns
    interfuse.run(str(place / "fused.yaml"), out=tmp_path / "run")
    assert (folder / "fused-lm.json").stat().st_mtime_ns == stamp


def test_steered_and_exported(place: Path, tmp_path: Path) -> None:
    """The exported checkpoint answers, without hooks, like the steered model; a profile is taken up again."""
    folder = speaker(place, "mixture", **MIXTURE)
    given = {"markers": {"sings": 1.0, "runs": -0.5}, "min_count": 5, "beta": 6.0}
    lm = interfuse.decode.rice(folder, transcripts=transcripts(place), out=tmp_path / "rice", **given)
    again = interfuse.decode.rice(folder, profile=str(tmp_path / "rice"), out=tmp_path / "again", **given)
    assert (tmp_path / "rice" / "facts.json").read_bytes() == (tmp_path / "again" / "facts.json").read_bytes()
    result = CliRunner().invoke(_app(), ["decode", "rice-export", str(lm.path), "-o", str(tmp_path / "steered")])
    assert result.exit_code == 0, result.output
    steered = open_lm(Source(str(tmp_path / "steered")), Ctx())
    plain = open_lm(Source(folder), Ctx())
    pairs = [("the cat ", "sees a dog and a bird"), ("one small bird ", "sings here")]
    for ours, theirs, before in zip(lm.score(pairs), steered.score(pairs), plain.score(pairs), strict=True):
        assert ours.token_logprobs == pytest.approx(theirs.token_logprobs, abs=1e-4)
        assert ours.token_logprobs != pytest.approx(before.token_logprobs, abs=1e-3)
    assert again.generate(["the cat"], max_tokens=4) == lm.generate(["the cat"], max_tokens=4)
    with pytest.raises(InterfuseError, match="only rice"):
        export_steering(interfuse.decode.mixture(folder), tmp_path / "no")


def test_what_rice_refuses_and_warns_of(place: Path, tmp_path: Path) -> None:
    folder, lines = speaker(place, "mixture", **MIXTURE), list[str]()
    given: dict[str, Any] = {"model": folder, "transcripts": transcripts(place), "min_count": 5}
    for changed, code in (
        ({"markers": {"nowhere": 1.0}}, "input.missing"),
        ({"markers": {}}, "param.value"),
        ({"markers": {"sings": 1.0}, "min_count": 10**6}, "input.limit"),
        ({"model": speaker(place, "large"), "markers": {"sings": 1.0}}, "needs.capability"),
    ):
        with pytest.raises(InterfuseError) as caught:
            apply("decode/rice", out=tmp_path / "no", **{**given, **changed})
        assert caught.value.code == code, caught.value
    assert not (tmp_path / "no").exists()
    few = {"texts": ["the cat sings", "the dog runs", "a bird sees the cat"] * 4}
    markers = {"dog runs": 1.0, "sings": 1.0}
    ctx = Ctx(log=lines.append)
    apply("decode/rice", model=folder, transcripts=few, markers=markers, min_count=1, out=tmp_path / "few", ctx=ctx)
    assert any("'dog runs' is several tokens" in line for line in lines), lines
    assert any("occurs 4 times: its nPMI is unstable" in line for line in lines), lines


def test_a_grid_without_zero_is_told(place: Path, large: str, tmp_path: Path) -> None:
    streams = {"model": large, "base": speaker(place, "small"), "experts": [speaker(place, "expert")]}
    for alphas, told in (([0.5, 1.0], True), ([0.0, 1.0], False)):
        lines: list[str] = []
        apply(
            "decode/dynamic-logits-fusion",
            **streams,
            alphas=alphas,
            out=tmp_path / str(told),
            ctx=Ctx(log=lines.append),
        )
        assert any("no expert can stay silent" in line for line in lines) is told


# ------------------------------------------------------------------------------------------------ inside model.generate


def loaded(folder: str) -> tuple[Any, Any]:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(
        folder
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_processor_in_generate(place: Path, large: str, beams: int) -> None:
    """Greedy: what our own loop writes. Beams: the same as without a processor, while
    the base's cache follows the rows that are reordered."""
    (model, tokenizer), (base, _), (expert, _) = (
        loaded(large),
        loaded(speaker(place, "small")),
        loaded(speaker(place, "expert")),
    )
    prompts = ["the cat sees a", "one bird"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]  # without the end that the tokenizer adds
    streams = [("model", model, tokenizer), ("base", base, tokenizer), ("expert", expert, tokenizer)]
    if beams == 1:
        made = fuse("dynamic-logits-fusion", streams)
        wanted = {e.source.prompt: e.source.ids for e in made.run(prompts, Options(max_tokens=7)) if e.done}
        processor: Any = StreamLogitsProcessor(made)
    else:
        made, seen = fuse("proxy-tuning", streams), list[list[int]]()
        plain = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=7, num_beams=beams, do_sample=False, pad_token_id=0
        )
        wanted = {r: [t for t in plain[r, ids.shape[1] :].tolist() if t not in (0, 2)] for r in range(2)}

        def combine(step: Step) -> Combined:
            for r, held in enumerate(seen):
                torch.testing.assert_close(
                    step.need_base()[r], base(input_ids=torch.tensor([held])).logits[0, -1], atol=1e-4, rtol=1e-3
                )
            return Combined(step.model)

        made.combine, inner = combine, StreamLogitsProcessor(made)

        def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen[:] = [row[next(i for i, t in enumerate(row) if t != 0) :] for row in input_ids.tolist()]
            return inner(input_ids, scores)

    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=7, num_beams=beams, do_sample=False, pad_token_id=0,
                         logits_processor=transformers.LogitsProcessorList([processor]))  # fmt: skip
    for r in range(2):
        assert [t for t in out[r, ids.shape[1] :].tolist() if t not in (0, 2)] == [t for t in wanted[r] if t != 0]


def test_processor_refuses(place: Path, large: str) -> None:
    model, tokenizer = loaded(large)
    with pytest.raises(InterfuseError) as caught:
        StreamLogitsProcessor(fuse("ck-plug", [("model", model, tokenizer)]))
    assert caught.value.code == "needs.capability"
    made = fuse("ck-plug", [("model", model, tokenizer)], templates="none")
    processor = StreamLogitsProcessor(made, ASKED[:1])
    ids = torch.tensor([made.encode(ASKED[:1])[0][0]])
    out = model.generate(
        input_ids=ids,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        logits_processor=transformers.LogitsProcessorList([processor]),
    )
    wanted = next(e.source.ids for e in made.run(ASKED[:1], Options(max_tokens=6)) if e.done)
    assert [t for t in out[0, ids.shape[1] :].tolist() if t != 2] == wanted
    with pytest.raises(InterfuseError, match="new processor"):
        model.generate(
            input_ids=ids,
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
            logits_processor=transformers.LogitsProcessorList([processor]),
        )


# ------------------------------------------------------------------------------------------------ other vocabularies


def test_vocabularies_are_told_apart(place: Path, two_vocabularies: list[str]) -> None:
    from interfuse.data.models import open_model
    from interfuse.decode.room import DecodeSettings

    def tokens(folder: str) -> Any:
        return read_tokens(open_model(Source(folder), Ctx()))

    same, other = tokens(speaker(place, "small")), tokens(stranger(place))
    main = tokens(speaker(place, "large"))
    assert fit_vocabularies([("model", main), ("expert", same)], DecodeSettings()) == ["same", "same"]
    with pytest.raises(InterfuseError, match="other tokens: 11 is 'cat'") as caught:
        fit_vocabularies([("model", main), ("expert", other)], DecodeSettings(vocabulary="same"))
    assert caught.value.code == "input.vocabulary"
    assert fit_vocabularies([("model", main), ("expert", other)], DecodeSettings()) == ["same", "union"]
    fine, coarse = map(tokens, two_vocabularies)
    assert fit_vocabularies(
        [("model", fine), ("base", coarse), ("expert", coarse)], DecodeSettings(vocabulary="map")
    ) == ["same", "map", "map"]
    with pytest.raises(InterfuseError, match="expert and the base"):
        fit_vocabularies([("model", fine), ("base", coarse), ("expert", fine)], DecodeSettings())
    wide = widen_logits(torch.zeros(1, 3), 5)
    assert wide.tolist() == [[0.0, 0.0, 0.0, -float("inf"), -float("inf")]]
    assert widen_logits(torch.zeros(1, 7), 5).shape == (1, 5)


def test_surfaces_are_what_decoding_gives(two_vocabularies: list[str], place: Path) -> None:
    for folder in two_vocabularies:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        known = surfaces(tokenizer)
        for text in ("the cat — naïve 東京", " sings and"):
            assert (
                b"".join(known[i] or b"" for i in tokenizer(text, add_special_tokens=False)["input_ids"])
                == text.encode()
            )


def test_a_projection_keeps_what_it_can(two_vocabularies: list[str]) -> None:
    """Of a vocabulary onto itself nothing changes; of another the mass of tokens that start alike is put together."""
    fine, coarse = (transformers.AutoTokenizer.from_pretrained(f) for f in two_vocabularies)
    draw = Ctx(seed=4).rng("logits")
    for kind in ("map", "union"):
        own = Projection.between(fine, fine, kind, len(fine), k=len(fine))
        logits = torch.tensor(draw.normal(0, 2, (3, len(fine))), dtype=torch.float32)
        logits[:, 0] = -30  # padding is no token: about it the stream says nothing
        found, matched = onto_main([logits, logits], [None, own], [None, None], len(fine))
        torch.testing.assert_close(found[1].softmax(dim=1), logits.softmax(dim=1), atol=1e-5, rtol=1e-3)
        assert float(matched[1].min()) > 0.999
    across = Projection.between(fine, coarse, "map", len(fine))
    theirs, main = (
        torch.tensor(draw.normal(0, 2, (2, len(coarse))), dtype=torch.float32),
        torch.tensor(draw.normal(0, 2, (2, len(fine))), dtype=torch.float32),
    )
    put = across.mapped(theirs, main).exp()
    torch.testing.assert_close(put.sum(dim=1), torch.ones(2), atol=1e-4, rtol=0)
    place, probs = surfaces(fine).index(b" s"), theirs.softmax(dim=1)
    forward = across.forward.tolist()
    assert float(probs[0, [u for u, v in enumerate(forward) if v == place]].sum()) * float(put[0].sum()) > 0
    assert forward[1] == 1, "ends are matched to each other"
    assert across.coverage() > 0.9


def test_texts_are_read_as_if_anew(two_vocabularies: list[str]) -> None:
    """After every main token the stream's logits are those of reading prompt and text at once; unfinished characters wait."""
    fine, coarse = (transformers.AutoTokenizer.from_pretrained(f) for f in two_vocabularies)
    weights = Weights.of(transformers.AutoModelForCausalLM.from_pretrained(two_vocabularies[1]).eval(), "coarse")
    prompt = coarse("the cat", add_special_tokens=False)["input_ids"]
    for chosen in (" sings and 東京 naïve sees the dog", " the the small"):
        stream = TextStreams(weights, coarse, surfaces(fine), Tape(weights).counts, 64)
        stream.start([prompt])
        made = fine(chosen, add_special_tokens=False)["input_ids"]
        waited = False
        for n in range(1, len(made) + 1):
            logits = stream.push([made[:n]])
            waited |= bool(stream.silent()[0])
            text = fine.decode(made[:n]).rstrip("\ufffd")
            whole = [*prompt, *stream.tokens(text)]
            torch.testing.assert_close(logits, Tape(weights).start([whole]), atol=1e-4, rtol=1e-3)
        assert waited == ("東" in chosen)


@pytest.mark.parametrize("kind", ["map", "union"])
def test_models_of_two_vocabularies_write_together(two_vocabularies: list[str], kind: str, tmp_path: Path) -> None:
    fine, coarse = two_vocabularies
    lm = interfuse.decode.mixture(fine, experts=[coarse], vocabulary=kind, out=tmp_path / kind)
    prompts = ["the small cat", "one bird sings — naïve"]
    trace = Trace(method="decode/mixture")
    together = lm.generate(prompts, max_tokens=8, trace=trace)
    assert together == [lm.generate([p], max_tokens=8)[0] for p in prompts] or _near(
        together, [lm.generate([p], max_tokens=8)[0] for p in prompts]
    )
    assert all(0 < r["matched expert 1"] <= 1.0001 for r in trace.rows)
    whole = together[0][0].text
    stop = whole[2:5]  # it begins and ends within words
    ended = lm.generate(prompts[:1], max_tokens=8, stop=(stop,))[0][0]
    assert (ended.text, ended.finish) == (whole[: whole.find(stop)], "stop")
    alone = lm.with_params(weights=[1.0, 0.0]).generate(prompts, max_tokens=8)
    assert [r[0].text for r in alone] == [
        r[0].text for r in open_lm(Source(fine), Ctx()).generate(prompts, max_tokens=8)
    ]
    scored = lm.score([("the small cat", " sees")])[0]
    assert all(s <= 0 for s in scored.token_logprobs)
    with pytest.raises(InterfuseError) as caught:
        interfuse.decode.mixture(fine, experts=[coarse], vocabulary="same")
    assert caught.value.code == "input.vocabulary"
    with pytest.raises(InterfuseError, match="texts of their own"):
        StreamLogitsProcessor(lm.engine)


def test_bytes_are_exact(two_vocabularies: list[str], tmp_path: Path) -> None:
    """The probability of a text, byte by byte, is the sum over all its spellings in tokens; two models of any vocabularies mix."""
    import math

    fine, coarse = two_vocabularies
    module, tokenizer = loaded(coarse)
    known = surfaces(tokenizer)
    able = torch.tensor([i for i, s in enumerate(known) if s] + [1])

    def spellings(rest: bytes) -> Iterator[list[int]]:
        if not rest:
            yield []
        for i, surface in enumerate(known):
            if surface and rest.startswith(surface):
                yield from ([i, *more] for more in spellings(rest[len(surface) :]))

    lm = interfuse.decode.mixture(coarse, vocabulary="bytes", out=tmp_path / "alone")
    text, total = " sees d", 0.0
    prompt = lm.engine.encode(["the cat"])[0][0]
    found = list(spellings(text.encode()))
    assert len(found) > 3
    for ids in found:
        with torch.no_grad():
            logits = module(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :].double()
        logs = logits - logits[:, able].logsumexp(dim=1, keepdim=True)
        total += math.exp(sum(float(logs[k, t]) for k, t in enumerate(ids)))
    # the mass of all that goes on from the text, not only of what ends there
    whole = lm.score([("the cat", text)])[0]
    assert whole.tokens == len(text)
    ends = sum(float(v) for v in lm.engine.score([[prompt]], [[*text.encode(), 256]])[0])
    with_end = 0.0
    for ids in found:
        with torch.no_grad():
            logits = module(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :].double()
        logs = logits - logits[:, able].logsumexp(dim=1, keepdim=True)
        with_end += math.exp(sum(float(logs[k, t]) for k, t in enumerate([*ids, 1])))
    assert ends == pytest.approx(math.log(with_end), abs=1e-4)
    assert whole.logprob >= math.log(total) - 1e-6, "tokens that go past the text count too"
    both = interfuse.decode.mixture(fine, experts=[coarse], vocabulary="bytes", out=tmp_path / "both")
    made = both.generate(["the cat", "one bird"], max_tokens=6)
    assert [m[0] for m in made] == [both.generate([p], max_tokens=6)[0][0] for p in ("the cat", "one bird")]
    parts = [
        x.score([("the cat", text)])[0].token_logprobs for x in (lm, interfuse.decode.mixture(fine, vocabulary="bytes"))
    ]
    mixed = both.score([("the cat", text)])[0].token_logprobs
    assert mixed == pytest.approx(
        [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in zip(*parts, strict=True)], abs=1e-4
    )
    with pytest.raises(InterfuseError, match="bytes are drawn"):
        both.generate(["the cat"], repetition_penalty=1.2)


def _near(a: Any, b: Any) -> bool:
    return all(x[0].text == y[0].text and abs(x[0].logprob - y[0].logprob) < 1e-3 for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------ traces and verbs


def _app() -> Any:
    from interfuse.cli.main import app

    return app


def test_empty_replies_of_a_model_for_chat_are_told_with_what_to_do() -> None:
    from types import SimpleNamespace as Space

    from interfuse.decode.verbs import _empty

    none, some = [[Space(text="")]], [[Space(text="Paris")]]
    chat, plain = (Space(engine=Space(tokenizer=Space(chat_template=t))) for t in ("{{ messages }}", None))
    assert "1 of 1 replies are empty" in _empty(chat, ["Where?"], none)
    assert '"messages"' in _empty(chat, ["Where?"], none)
    assert _empty(chat, ["Where?"], some) == _empty(plain, ["Where?"], none) == ""
    assert _empty(chat, [{"question": "Where?"}], none) == ""  # asked as a chat already
    assert _empty(Space(engine=Space()), ["Where?"], none) == ""  # texts fused span by span


def test_generate_and_explain_verbs(plug: FusedLM, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(a) + "\n" for a in ASKED))
    run, out = tmp_path / "run.parquet", tmp_path / "replies.jsonl"
    words = [
        "decode",
        "generate",
        str(plug.path),
        "--prompts",
        str(asked),
        "-o",
        str(out),
        "--trace",
        str(run),
        "--set",
        "alpha=0.7",
        "--max-tokens",
        "6",
        "--json",
    ]
    result = CliRunner().invoke(_app(), words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = plug.with_params(alpha=0.7).generate(ASKED, max_tokens=6)
    assert [r["replies"] for r in rows] == [[w[0].text] for w in wanted]
    assert json.loads(result.stdout)["tokens"] > 0
    page = CliRunner().invoke(_app(), ["decode", "explain", str(run), "--by", "alpha"])
    assert page.exit_code == 0, page.output
    text = run.with_suffix(".html").read_text()
    assert text.count("<rect") >= sum(len(r["replies"][0].split()) for r in rows)
    assert "intervened" in text
    assert "<script" not in text
    for wrong, code in ((["--by", "alpah"], 2), ([], 3)):
        file = run if wrong else out
        assert CliRunner().invoke(_app(), ["decode", "explain", str(file), *wrong]).exit_code == code
    for given, code in (("alpha", 2), ("alpha=2", 2), ("alhpa=0.5", 2)):
        assert CliRunner().invoke(_app(), [*words[:5], "--set", given]).exit_code == code
    bad = tmp_path / "bad.jsonl"
    for content, code in (("", 3), ("{\n", 3), ('{"x": 1}\n', 3), ('{"question": "the cat"}\n', 3)):
        bad.write_text(content)
        assert (
            CliRunner().invoke(_app(), ["decode", "generate", str(plug.path), "--prompts", str(bad)]).exit_code == code
        )


def test_a_page_escapes_what_it_shows(tmp_path: Path) -> None:
    row = {
        "prompt": 0,
        "sample": 0,
        "step": 0,
        "token_id": 1,
        "token": '<img src=x onerror="a()">\x1b[31m',
        "logprob": -1.0,
        "entropy": 0.5,
        "alpha": 0.2,
    }
    trace = Trace(method="<b>")
    trace(row)
    trace({**row, "step": 1, "alpha": 0.9})
    page = explain(trace.save(tmp_path / "t.parquet"))
    assert "<img" not in page
    assert "\x1b" not in page
    assert 'fill-opacity="0.660"' in page, "the highest value is the darkest"
    assert "<b>" not in tokens_svg([{**row, "token": "<b>"}], "alpha", 0, 1)
    with pytest.raises(InterfuseError, match="no token"):
        Trace().table()


# ------------------------------------------------------------------------------------------------ the endpoint


@pytest.fixture(scope="module")
def client(plug: FusedLM) -> Iterator[Any]:
    """The unmodified ``openai`` client, talking over a socket to the endpoint."""
    import openai
    import uvicorn

    from interfuse.decode.serve import make_app

    server = uvicorn.Server(uvicorn.Config(make_app(plug), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        time.sleep(0.05)
    assert server.started, "the endpoint did not come up"
    port = server.servers[0].sockets[0].getsockname()[1]
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    server.should_exit = True
    thread.join(10)


MESSAGES: list[Any] = [{"role": "user", "content": ASKED[0]["question"]}]


def test_the_openai_client(client: Any, plug: FusedLM) -> None:
    """Whole, streamed, several, by text, and under other parameters of the combiner: always what the model writes itself."""
    assert [m.id for m in client.models.list()] == ["ck-plug"]
    extra = {"context": ASKED[0]["context"]}
    prompt = [{"role": "context", "content": extra["context"]}, *MESSAGES]
    seen = set()
    for alpha in (0.0, 1.0):
        wanted = plug.with_params(alpha=alpha).generate([prompt], max_tokens=8)[0][0]
        whole = client.chat.completions.create(
            model="ck-plug", messages=MESSAGES, max_tokens=8, temperature=0, extra_body={**extra, "alpha": alpha}
        )
        assert (whole.choices[0].message.content, whole.usage.completion_tokens) == (wanted.text, wanted.tokens)
        assert whole.choices[0].finish_reason == wanted.finish
        stream = client.chat.completions.create(model="ck-plug", messages=MESSAGES, max_tokens=8, temperature=0, stream=True,
                                                stream_options={"include_usage": True}, extra_body={**extra, "alpha": alpha})  # fmt: skip
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted.text
        assert chunks[-1].usage.completion_tokens == wanted.tokens
        assert len(chunks) > 3, "it came in pieces"
        seen.add(wanted.text)
    assert len(seen) == 2, "the parameter is heeded"
    texts = client.completions.create(model="ck-plug", prompt="the cat", max_tokens=6, temperature=1, n=3, seed=4)
    drawn = plug.generate(["the cat"], max_tokens=6, temperature=1.0, n=3, seed=4)[0]
    assert [c.text for c in texts.choices] == [r.text for r in drawn]
    first = drawn[0].text.split()[1]
    ended = client.completions.create(
        model="ck-plug", prompt="the cat", max_tokens=6, temperature=1, seed=4, stop=[first], stream=True
    )
    assert "".join(c.choices[0].text for c in ended) == drawn[0].text[: drawn[0].text.find(first)]


def test_what_the_endpoint_refuses(client: Any, plug: FusedLM) -> None:
    import httpx
    import openai

    for extra, code in (
        ({"alpah": 0.2}, "param.unknown"),
        ({"alpha": 3}, "param.value"),
        ({"tools": [{"type": "function"}]}, "needs.capability"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="x", messages=MESSAGES, extra_body=extra)
        assert caught.value.body["code"] == code
    with pytest.raises(openai.BadRequestError, match="64"):
        client.chat.completions.create(model="x", messages=MESSAGES, max_tokens=500)
    base = str(client.base_url)
    assert httpx.get(base + "models", headers={"Host": "evil.example"}).status_code == 400
    for body in (
        b"{",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": [{"role": "user"}]}',
        b'{"prompt": "the", "temperature": "hot"}',
        b"x" * (2**21 + 1),
    ):
        answer = httpx.post(base + "chat/completions", content=body)
        assert answer.status_code == 400, body[:40]
        assert answer.json()["error"]["code"]
    result = CliRunner().invoke(_app(), ["decode", "serve", str(plug.path), "--host", "0.0.0.0"])
    assert result.exit_code == 3, "an open address needs a key"


def test_serve_verb(plug: FusedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command opens the folder, takes changed parameters, and hands the application to the server at its address."""
    import uvicorn
    from starlette.testclient import TestClient

    run: list[tuple[Any, str, int]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, host, port, **rest: run.append((app, host, port)))
    words = ["decode", "serve", str(plug.path), "--port", "8123", "--set", "alpha=0.9"]
    result = CliRunner().invoke(_app(), words)
    assert result.exit_code == 0, result.output
    ((app, host, port),) = run
    assert (host, port) == ("127.0.0.1", 8123)
    assert f"http://{host}:{port}/v1" in result.stderr
    body = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0, "context": ASKED[0]["context"]}
    said = TestClient(app, base_url=f"http://{host}:{port}").post("/v1/chat/completions", json=body).json()
    prompt = [{"role": "context", "content": ASKED[0]["context"]}, *MESSAGES]
    wanted = plug.with_params(alpha=0.9).generate([prompt], max_tokens=8)[0][0].text
    assert said["choices"][0]["message"]["content"] == wanted


def test_the_endpoint_asks_for_its_key(plug: FusedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    from interfuse.decode.serve import make_app

    with pytest.raises(InterfuseError, match="not set"):
        make_app(plug, key_env="NO_SUCH_KEY")
    monkeypatch.setenv("SOME_KEY", "secret")
    web = TestClient(make_app(plug, key_env="SOME_KEY"))
    body = {"prompt": "the cat", "max_tokens": 2}
    assert web.post("/v1/completions", json=body).status_code == 401
    assert web.post("/v1/completions", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_model_as_it_is_is_told_how_to_generate(tmp_path: Path) -> None:
    from interfuse.cli.main import app

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "asked.txt").write_text("the cat")
    found = CliRunner().invoke(app, ["decode", "generate", str(tmp_path), "--prompts", str(tmp_path / "asked.txt")])
    assert found.exit_code == 3
    assert "interfuse decode mixture" in found.stderr
