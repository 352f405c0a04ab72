"""Tiny language models that read words, for the room that fuses them while decoding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests import tiny_texts
from tests.conformance.cases import Case
from tests.conformance.fixtures import Bad, Scene, room

MIXTURE = {"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
ASKED = [
    {"question": "the cat sees a", "context": "one red bird sings there"},
    {"question": "blue fish", "context": ""},
]


def speaker(path: Path, name: str, **changes: Any) -> str:
    """The folder of a Llama of two layers with a tokenizer of words; its weights depend on its name alone."""
    import transformers

    folder = path / name
    if not folder.is_dir():
        tokenizer = tiny_texts.tokenizer(path / "tokenizer")
        with torch.random.fork_rng():
            torch.manual_seed(sum(name.encode()))
            config = transformers.AutoConfig.for_model(**{**tiny_texts.LLAMA, "initializer_range": 0.3, **changes})
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for file in sorted(tokenizer.iterdir()):
            shutil.copyfile(file, folder / file.name)
    return str(folder)


def classifier(path: Path) -> str:
    """A model that writes nothing."""
    import transformers

    folder = path / "classifier"
    if not folder.is_dir():
        config = transformers.AutoConfig.for_model(**tiny_texts.BERT)
        with torch.random.fork_rng():
            transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def stranger(path: Path) -> str:
    """A model whose ids mean other words."""
    folder = path / "stranger"
    if not folder.is_dir():
        speaker(path, "stranger")
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace('"cat"', '"@"').replace('"dog"', '"cat"').replace('"@"', '"dog"'))
    return str(folder)


@room("decode")
def decode(case: Case, shared: Path) -> Scene:
    """``base``: whether the base is given. ``experts``: how many."""
    from interfuse.core.method import load

    path, given = shared / "decode", dict(case.given)
    traits = load(case.method).traits
    needs_base, least = traits.get("base", "none") == "required", traits.get("experts", (0, 0))[0]
    inputs: dict[str, Any] = {
        "model": speaker(path, "large", hidden_size=24, num_attention_heads=3, num_key_value_heads=1)
    }
    if given.pop("base", needs_base):
        inputs["base"] = speaker(path, "small")
    if count := given.pop("experts", least):
        inputs["experts"] = [speaker(path, f"expert-{i}") for i in range(count)]
    mixture = bool(traits.get("transcripts"))
    if mixture:
        inputs = {"model": speaker(path, "mixture", **MIXTURE), "transcripts": transcripts(path)}
    given = {**inputs, **given}

    def in_memory() -> dict[str, Any]:
        held = {
            name: [_held(f) for f in v] if isinstance(v, list) else _held(v)
            for name, v in inputs.items()
            if name != "transcripts"
        }
        texts = {}
        if mixture:
            lines = Path(inputs["transcripts"]).read_text().splitlines()
            texts = {"transcripts": {"texts": [json.loads(line)["text"] for line in lines]}}
        return {**given, **held, **texts}

    wrong = [Bad("a model that writes no text", {"model": classifier(path)}, ("input.type",)),
             Bad("a model without a tokenizer", {"model": _bare(path)}, ("input.missing",))]  # fmt: skip
    if least:
        strange = {"experts": [stranger(path)], "vocabulary": "same"}
        wrong.append(Bad("an expert of other words", strange, ("input.vocabulary",)))
    missing = [
        Bad("no model", {"model": None}, ("param.missing",)),
        Bad("a folder that is not there", {"model": str(path / "gone")}, ("input.missing",)),
    ]
    missing += [Bad("no base", {"base": None}, ("param.missing",))] if needs_base else []
    missing += [Bad("no experts", {"experts": None}, ("param.missing",))] if least else []
    bad = {
        "refuses_wrong_shape": wrong,
        "refuses_empty": [Bad("no models", {"model": []}, ("param.missing",))],
        "one_row": [Bad("one text at once", {"rows": 1}, (), or_works=True)],
        "refuses_missing_input": missing,
    }
    unread = "weights are not read when the description is written; a NaN is met and named while decoding"
    if mixture:
        wrong[1:] = [Bad("a dense model", {"model": speaker(path, "small")}, ("needs.capability",)),
                     Bad("a profile of another model", {"profile": {"model": "0" * 64, "chosen": [[0, 0]]}}, ("input.type",))]  # fmt: skip
        missing.append(Bad("no transcripts", {"transcripts": None}, ("param.missing",)))
        missing.append(Bad("a marker that never occurs", {"markers": {"[EOS]": 1.0}}, ("input.missing",)))
        bad["refuses_empty"].append(
            Bad("a file of no transcripts", {"transcripts": transcripts(path, "empty")}, ("input.empty",))
        )
        bad["one_row"] = [
            Bad("one transcript", {"transcripts": transcripts(path, "one")}, ("input.limit",), or_works=True)
        ]
        bad["refuses_nan"] = [Bad("NaN in a tensor", {"model": _spoilt(path)}, ("input.nan",))]
    return Scene(
        given,
        in_memory,
        path,
        answers,
        bad,
        compare=lambda oracle: (
            associated(case, given, oracle)
            if mixture
            else judged(case, given, oracle)
            if traits.get("spans")
            else compared(case, given, oracle)
        ),
        tolerance=2e-4,
        not_applicable={
            "resume_equals_one_go": "a description is written in one go",
            "dtype_kept": "the folder names its models and holds no tensors",
            **({} if mixture else {"refuses_nan": unread}),
            "refuses_duplicates": "the same model may be several streams; that is an identity of the methods",
        },
    )


def transcripts(path: Path, change: str = "") -> str:
    """A JSONL file of texts of words."""
    file = path / f"transcripts{'-' + change if change else ''}.jsonl"
    if not file.is_file():
        path.mkdir(parents=True, exist_ok=True)
        texts = tiny_texts.sentences(40)[0]
        texts = texts[: {"empty": 0, "one": 1}.get(change, 40)] if change != "one" else ["the cat sings and runs here"]
        file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(file)


def _spoilt(path: Path) -> str:
    """The mixture with a NaN in it."""
    from safetensors.torch import load_file, save_file

    folder = path / "spoilt"
    if not folder.is_dir():
        shutil.copytree(speaker(path, "mixture", **MIXTURE), folder)
        held = load_file(folder / "model.safetensors")
        held["model.norm.weight"][3] = float("nan")
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _bare(path: Path) -> str:
    """A language model with no tokenizer beside it."""
    folder = path / "bare"
    if not folder.is_dir():
        shutil.copytree(speaker(path, "large", hidden_size=24, num_attention_heads=3, num_key_value_heads=1), folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).unlink(missing_ok=True)
    return str(folder)


def _held(folder: str) -> Any:
    """The model in memory, with its tokenizer's folder."""
    from transformers import AutoModelForCausalLM

    from interfuse.data.models import Model

    module = AutoModelForCausalLM.from_pretrained(folder).train()
    return Model(Path(folder).name, None, module.config.to_dict(), "causal-lm", module=module, tokenizer=Path(folder))


def answers(folder: Path) -> dict[str, NDArray[Any]]:
    """What the fused model writes and how it scores, opened as any other room opens a language model."""
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.lm import LM, open_lm

    lm = open_lm(Source(str(folder)), Ctx())
    assert isinstance(lm, LM)
    replies = [r[0] for r in lm.generate(ASKED, max_tokens=5)]
    counts = np.array([[r.prompt_tokens, r.tokens] for r in replies])
    if vars(lm).get("spans") is not None:  # texts are fused: there is no distribution to score with
        return {"counts": counts, "letters": np.array([len(r.text) for r in replies])}
    scored = lm.score([("the cat", "sees a dog"), ("one", "small bird")])
    return {
        "counts": counts,
        "written": np.array([r.logprob for r in replies]),
        "scored": np.array([v for s in scored for v in s.token_logprobs]),
    }


def steps(case: Case, given: Mapping[str, Any]) -> list[Any]:
    """Steps as a method sees them: random logits, sharp and flat, some tokens excluded by all, as many streams as the case has."""
    from interfuse.core.ctx import Ctx
    from interfuse.core.method import load
    from interfuse.decode.room import Step

    rng, traits, made = Ctx(seed=5).rng("oracle"), load(case.method).traits, []
    for scale in (0.5, 2.0, 5.0):
        draw = lambda scale=scale: torch.tensor(rng.normal(0, scale, (4, 29)), dtype=torch.float32)  # noqa: E731
        made.append(Step(
            draw(), draw() if "base" in given else None, [draw() for _ in given.get("experts") or ()],
            draw() if traits.get("context") else None,
            torch.tensor(rng.normal(-2, 1, (4, 1 + len(given.get("experts") or ()))), dtype=torch.float32), len(made),
        ))  # fmt: skip
    return made


def compared(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Probabilities of the next token and the trace, beside the oracle's, for every text of every step."""
    from interfuse.core.method import load, read_params

    method, pairs = load(case.method), []
    own = {name: given.get(name, param.default) for name, param in read_params(method.target).items()}
    for step in steps(case, given):
        ours = method.target(step, **own)
        probs = ours.scores.double().softmax(dim=1)
        for row in range(len(probs)):
            seen = {
                "model": step.model[row].double().tolist(),
                "base": None if step.base is None else step.base[row].double().tolist(),
                "experts": [e[row].double().tolist() for e in step.experts],
                "plain": None if step.plain is None else step.plain[row].double().tolist(),
                "evidence": step.evidence[row].double().tolist(),
            }
            said = oracle(seen, **own)
            assert set(said) == {"probs", *ours.trace}, (
                f"the oracle says {sorted(said)}, the trace {sorted(ours.trace)}"
            )
            pairs += [(f"step {step.number} text {row}: {name}", probs[row] if name == "probs" else ours.trace[name][row], value)
                      for name, value in said.items()]  # fmt: skip
    return pairs


def judged(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """The mean judgement of every stretch, and how many judgements were left out, beside the oracle's."""
    from interfuse.core.method import load, read_params
    from interfuse.decode.room import Spans

    method, rng, pairs = load(case.method), np.random.default_rng(3), []
    own = {name: given.get(name, param.default) for name, param in read_params(method.target).items()}
    for models, outlier, weights in (
        (2, 1.5, "equal"),
        (5, 1.5, "equal"),
        (5, 0.8, [1.0, 0.0, 2.0, 0.5, 0.5]),
        (4, None, "equal"),
    ):
        scores = rng.normal(-0.5, 0.4, (4, models))
        changed = {**own, "outlier": outlier, "weights": weights}
        ours = method.target(Spans(torch.tensor(scores), [0, 1, 1, 0]), **changed)
        means, lost = oracle(scores.tolist(), **changed)
        label = f"{models} models, outlier {outlier}"
        pairs += [(f"{label}: means", ours.scores[0], means), (f"{label}: left out", ours.trace["left out"], [lost])]
    return pairs


def associated(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """The table of the steering profile beside the oracle's, which gets the words of every transcript and the experts that the model's
    own router logits select at each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from interfuse.core.ctx import Ctx
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room, prepare

    call = prepare(load_room("decode"), load(case.method), given, Ctx(seed=7))
    facts = call.method.traits["fit"](call)
    module = AutoModelForCausalLM.from_pretrained(given["model"]).eval()
    tokenizer, seen = AutoTokenizer.from_pretrained(given["model"]), []
    for text in call.inputs["transcripts"].texts:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            routes = module(input_ids=torch.tensor([ids]), output_router_logits=True).router_logits
        top = [layer.topk(MIXTURE["num_experts_per_tok"], dim=-1).indices.tolist() for layer in routes]
        seen.append({"words": tokenizer.convert_ids_to_tokens(ids), "experts": top})
    said = oracle(
        seen, MIXTURE["num_experts"], **{n: call.params[n] for n in ("markers", "count", "min_count", "skip_first")}
    )
    ours = {f"layer {row['layer']} expert {row['expert']}": row["score"] for row in facts["table"]}
    assert set(ours) == set(said["scores"])
    pairs = [(name, value, said["scores"][name]) for name, value in ours.items()]
    return [*pairs, ("chosen", facts["chosen"], said["chosen"])]
