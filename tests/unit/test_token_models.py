"""Steppers and token probabilities against whole forward passes, with tokenizers of three kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interfuse.core.errors import InterfuseError
from interfuse.kit.constrained_beam import Clause, Constraint, constrained_beam
from interfuse.kit.relation_prompts import TupleScorer, masked_spans, read_prompt, tuple_score
from interfuse.kit.token_models import CausalStepper, MaskedStepper, causal_logprobs, offsets_of, tokens_over
from tests import tiny_world as world


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = world.model(tmp_path_factory.mktemp("causal"), "causal")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = world.model(tmp_path_factory.mktemp("masked"), "masked")
    return AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def plainly(module: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return module(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()


@pytest.mark.parametrize("context", [[], [5, 6, 7, 8]])
def test_steps_with_kept_keys_are_whole_passes(causal: tuple[Any, Any], context: list[int]) -> None:
    module, _ = causal
    stepper = CausalStepper(module, context)
    for prompt in ([9, 10], [11, 12, 13]):  # a second search begins anew
        np.testing.assert_allclose(stepper.begin(prompt)[0], plainly(module, context + prompt)[-1], atol=1e-5)
        logs = stepper.advance([0, 0, 0], [20, 21, 22])
        logs = stepper.advance([2, 0], [23, 24])
        for row, tail in zip(logs, ([22, 23], [20, 24]), strict=True):
            np.testing.assert_allclose(row, plainly(module, context + prompt + tail)[-1], atol=1e-5)
    with pytest.raises(InterfuseError):
        CausalStepper(module).begin([])
    with pytest.raises(InterfuseError):
        CausalStepper(module).advance([0], [1])


def test_rows_of_different_length_are_scored_as_each_alone(causal: tuple[Any, Any]) -> None:
    module, _ = causal
    rows = [[2, 5, 6, 7, 8, 9], [2, 10], [2, 11, 12, 13]]
    for row, logs in zip(rows, causal_logprobs(module, rows, batch=2), strict=True):
        whole = plainly(module, row)
        np.testing.assert_allclose(logs, [whole[i, t] for i, t in enumerate(row[1:])], atol=1e-5)


def test_a_masked_model_fills_its_places_under_a_constraint(masked: tuple[Any, Any]) -> None:
    module, tokenizer = masked
    mask = tokenizer.mask_token_id
    prompt = [5, mask, 7, mask, mask]
    stepper = MaskedStepper(module, mask)
    np.testing.assert_allclose(stepper.begin(prompt)[0], plainly(module, prompt)[1], atol=1e-5)
    wanted = tokenizer("water")["input_ids"][0]
    found = constrained_beam(
        stepper,
        prompt,
        Constraint((Clause(((wanted,),)),)),
        end=(),
        beam=4,
        min_length=3,
        max_length=3,
        count=4,
        penalty=0.0,
    )
    assert found
    for f in found:
        assert wanted in f.tokens
        total, row = 0.0, list(prompt)
        for place, token in zip((1, 3, 4), f.tokens, strict=True):
            total += float(plainly(module, row)[place][token])
            row[place] = token
        assert f.logprob == pytest.approx(total, abs=1e-4)
    with pytest.raises(InterfuseError):
        stepper.begin([5, 6])


def tokenizers(folder: Path) -> dict[str, Any]:
    """WordPiece, byte-level BPE and a metaspace unigram, each trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = [
        "The capital of New Zealand is Wellington .",
        "The capital of Norway is Oslo .",
        "Newer capitals are not old .",
    ] * 5
    special = ["[UNK]", "[PAD]", "[MASK]", "[EOS]"]
    made = {}
    for name, model, before, trainer, after in (
        ("wordpiece", models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), trainers.WordPieceTrainer(vocab_size=90, special_tokens=special), decoders.WordPiece()),
        ("bytes", models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainers.BpeTrainer(vocab_size=300, special_tokens=special), decoders.ByteLevel()),
        ("metaspace", models.Unigram(), pre_tokenizers.Metaspace(), trainers.UnigramTrainer(vocab_size=70, special_tokens=special, unk_token="[UNK]"), decoders.Metaspace()),
    ):  # fmt: skip
        core = Tokenizer(model)
        core.pre_tokenizer, core.decoder = before, after
        core.train_from_iterator(text, trainer)
        made[name] = PreTrainedTokenizerFast(
            tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]", eos_token="[EOS]"
        )
    return made


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "metaspace"])
def test_the_first_word_of_an_entity_is_found_whatever_the_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizers(tmp_path)[kind]
    text, spans = masked_spans(read_prompt("The capital of <ENT0> is <ENT1>"), ["New Zealand", "Wellington"], False)
    ids, offsets = offsets_of(tokenizer, text)
    for span, word in zip(spans, ("New", "Wellington"), strict=True):
        own = tokens_over(offsets, *span)
        assert own == list(range(own[0], own[-1] + 1))
        assert "".join(text[a:b] for a, b in (offsets[i] for i in own)).strip() == word
        assert tokenizer.decode([ids[i] for i in own]).strip() == word


def test_scores_of_tuples_reveal_one_entity_after_the_other(masked: tuple[Any, Any], causal: tuple[Any, Any]) -> None:
    module, tokenizer = masked
    prompt = read_prompt("<ENT1> is the capital of <ENT0>")
    ids = tokenizer("oslo is the capital of norway .")["input_ids"]
    hidden = [tokenizer.mask_token_id if i in (0, 5) else t for i, t in enumerate(ids)]
    later = [tokenizer.mask_token_id if i == 0 else t for i, t in enumerate(ids)]
    want = tuple_score([plainly(module, hidden)[5, ids[5]], plainly(module, later)[0, ids[0]]], 2)
    scorer = TupleScorer(module, tokenizer, masked=True)
    assert scorer([(prompt, ("norway", "oslo"))])[0] == pytest.approx(want, abs=1e-4)
    assert scorer([(prompt, ("norway", "oslo")), (prompt, ("norway", "oslo"))]).tolist() == pytest.approx(
        [want, want], abs=1e-4
    )
    assert scorer.scored == 1
    module, tokenizer = causal
    whole = plainly(module, [2, *ids])
    want = tuple_score([whole[5, ids[5]], whole[0, ids[0]]], 2)
    assert TupleScorer(module, tokenizer, masked=False)([(prompt, ("norway", "oslo"))])[0] == pytest.approx(
        want, abs=1e-4
    )
