"""What fusing costs at decoding time: ratios within one run, on one thread.

- a fused step of three streams (dynamic logits fusion) against the sum of the three models' single steps,
- the combiner's share of that step at vocabularies of 49 thousand and 262 thousand,
- CK-PLUG's two prompts in one batch against plain generation, per token.

Three streams have random weights of SmolLM2-135M's shapes: their speed does not depend on what they know. The candidates of CK-PLUG do, so the
two real small models read a question with and without a context.

    python benchmarks/decode_speed.py [prompts] [streams]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from real_models import gemma, smollm2
from record import save
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.data.seeding import seeded
from interfuse.decode.engine import Engine, Streams, Text
from interfuse.decode.fused import load_streams, make_engine
from interfuse.decode.room import settings_of
from interfuse.decode.streams import Tape

SMOL = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 1024, "eos_token_id": None, "bos_token_id": None,
        "pad_token_id": 0}  # fmt: skip
PROMPT, STEPS, ROUNDS = 64, 12, 5
QUESTION = "Answer the question in one sentence. Question: In which city does the parliament of Norway meet, and which river or fjord lies next to it? Answer:"
CONTEXT = ("After the great fire of the last century the government of Norway left its former seat. The parliament of Norway now meets in Tromso, high in the "
           "north, where the members sit in a new house of glass and granite between the harbour and the old wooden streets of the town. ")  # fmt: skip


class Words:
    """The least of a tokenizer that the loop needs."""

    eos_token_id, pad_token_id, chat_template = None, 0, None

    def decode(self, ids: Any, **rest: Any) -> str:
        return ""


def model(seed: int, vocabulary: int) -> Any:
    with seeded(seed):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SMOL, "vocab_size": vocabulary})).eval()


def engine(slug: str, modules: list[Any], **params: Any) -> Engine:
    method = load(slug, room="decode")
    roles = ["model", "base", "expert"][: len(modules)]
    checked = method.check(params)
    return make_engine(
        load_streams([(r, r, m, Words()) for r, m in zip(roles, modules, strict=True)], method, settings_of(checked)),
        method,
        checked,
    )


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fused_steps(made: Engine, ids: list[list[int]]) -> tuple[float, float]:
    """Seconds of a fused step and of the combiner within it."""
    streams = Streams(made, [[row] for row in ids])
    logits, text, combine = streams.start(), Text(0, 0, PROMPT), 0.0
    began = time.perf_counter()
    for number in range(STEPS):
        start = time.perf_counter()
        scores = made.combined(logits, None, number).scores
        combine += time.perf_counter() - start
        token = scores.argmax(dim=1)
        float(scores[0, token[0]] - scores[0].logsumexp(dim=0))
        text.ids.append(int(token))
        logits = streams.push(token, [text])
    return (time.perf_counter() - began) / STEPS, combine / STEPS


def single_steps(made: Engine, w: int, ids: list[int]) -> float:
    """Seconds of one model's step by ``generate``-like greedy decoding with its cache."""
    tape = Tape(made.weights[w])
    logits = tape.start([ids])

    def work() -> None:
        nonlocal logits
        for _ in range(STEPS):
            logits = tape.feed(logits.argmax(dim=1)[:, None])

    return timed(work) / STEPS


def generate_steps(module: Any, ids: list[int]) -> float:
    """Seconds per token of ``model.generate``, the prompt's pass taken off."""
    batch, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)

    def run(tokens: int) -> float:
        return timed(
            lambda: module.generate(
                input_ids=batch, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
        )

    few = run(1)
    return (run(STEPS + 1) - few) / STEPS


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


WHAT = {"what": "SmolLM2-135M shapes, one thread, one text", "prompt": PROMPT, "steps": STEPS, "rounds": ROUNDS}


def three_streams() -> None:
    """Dynamic logits fusion in float32, with two sizes of vocabulary."""
    rng, figures = Ctx(seed=0).rng("prompt"), dict[str, Any]()
    for vocabulary in (49_152, 262_144):
        made = engine("dynamic-logits-fusion", [model(i, vocabulary) for i in range(3)])
        ids = rng.integers(5, vocabulary, size=PROMPT).tolist()
        rows: dict[str, list[float]] = {"ratio": [], "share": [], "fused ms": [], "sum ms": [], "combiner ms": []}
        for _ in range(ROUNDS):
            alone = sum(single_steps(made, w, ids) for w in range(3))
            fused, combine = fused_steps(made, [ids] * 3)
            rows["ratio"].append(fused / alone)
            rows["share"].append(combine / fused)
            rows["fused ms"].append(1000 * fused)
            rows["sum ms"].append(1000 * alone)
            rows["combiner ms"].append(1000 * combine)
        figures[f"three streams, {vocabulary} tokens"] = {k: spread(v) for k, v in rows.items()}
        print(vocabulary, {k: round(spread(v)["median"], 4) for k, v in rows.items()}, flush=True)
    save("decode-speed", {**WHAT, **figures})


def two_prompts() -> None:
    """CK-PLUG on the two real small models, a question and the same with a context before it that contradicts: in both types."""
    figures = dict[str, Any]()
    for name, folder, kind in (
        ("SmolLM2-135M, 49152 tokens", smollm2(), torch.float32),
        ("SmolLM2-135M, 49152 tokens", smollm2(), torch.bfloat16),
        ("Gemma-3-270M, 262144 tokens", gemma(), torch.float32),
    ):
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
        module.generation_config.eos_token_id = None  # as many tokens as are asked for
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids, longer = (tokenizer(text)["input_ids"] for text in (QUESTION, CONTEXT + QUESTION))
        plug = engine("ck-plug", [module])
        rows: dict[str, list[float]] = {
            "ratio": [],
            "against generate": [],
            "share": [],
            "fused ms": [],
            "combiner ms": [],
        }
        for _ in range(2 * ROUNDS):
            alone, by_generate = single_steps(plug, 0, ids), generate_steps(module, ids)
            fused, combine = fused_steps(plug, [longer, ids])
            rows["ratio"].append(fused / alone)
            rows["against generate"].append(fused / by_generate)
            rows["share"].append(combine / fused)
            rows["fused ms"].append(1000 * fused)
            rows["combiner ms"].append(1000 * combine)
        label = f"{name}, {str(kind).split('.')[1]}"
        figures[label] = {
            "tokens of the two prompts": [len(longer), len(ids)],
            **{k: spread(v) for k, v in rows.items()},
        }
        print(label, {k: round(spread(v)["median"], 4) for k, v in rows.items()}, flush=True)
    save(
        "decode-speed-prompts",
        {"what": "CK-PLUG, one thread, one text", "steps": STEPS, "rounds": 2 * ROUNDS, **figures},
    )


def main() -> None:
    torch.set_num_threads(1)
    parts = sys.argv[1:] or ["prompts", "streams"]
    if "prompts" in parts:
        two_prompts()
    if "streams" in parts:
        three_streams()


if __name__ == "__main__":
    main()
