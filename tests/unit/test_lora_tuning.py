"""Fine-tuning with LoRA on question and answer pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interfuse.core.errors import InterfuseError
from interfuse.kit.lora_tuning import IGNORED, encoded, read_chats, tune
from interfuse.kit.qa_pairs import Pair, as_messages
from tests import tiny_world as world

PAIRS = [Pair(f"the capital of {a} is", f"{b} city") for a, b in world.FACTS]


def test_the_loss_covers_the_answer_and_its_end_only(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.tokenizer(tmp_path))
    ids, labels = encoded(tokenizer, PAIRS[0], "[EOS]")
    learnt = [t for t in labels if t != IGNORED]
    assert tokenizer.decode(learnt) == "paris city [EOS]"
    assert ids[-len(learnt) :] == learnt
    assert ids.count(tokenizer.eos_token_id) == 2  # the turn's end in the prompt is read, not learnt


def test_adapters_learn_and_open_as_a_model_source(tmp_path: Path) -> None:
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.models import open_model

    folder = world.model(tmp_path, "causal")
    file = tmp_path / "qa-train.jsonl"
    file.write_text("".join(json.dumps(as_messages(p)) + "\n" for p in PAIRS))
    made = [tune(folder, file, tmp_path / f"adapter{i}", epochs=12, batch_size=2, lr=3e-2, rank=4) for i in range(2)]
    assert made[0]["last"] < 0.8 * made[0]["first"]
    assert 0 < made[0]["trained share"] < 0.5
    assert made[0] == made[1]
    files = [(tmp_path / f"adapter{i}" / "adapter_model.safetensors").read_bytes() for i in range(2)]
    assert files[0] == files[1]
    assert open_model(Source({"model": folder, "adapter": str(tmp_path / "adapter0")}), Ctx()).task == "causal-lm"


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl"
    empty.write_text("")
    broken.write_text('{"messages": []}\n')
    for file, code in ((tmp_path / "none", "input.missing"), (empty, "input.empty"), (broken, "input.format")):
        with pytest.raises(InterfuseError) as error:
            read_chats(file)
        assert error.value.code == code
    for kind, end, code in (("masked", "", "input.type"), ("causal", "<|end_of_turn|>", "input.vocabulary")):
        with pytest.raises(InterfuseError) as error:
            tune(world.model(tmp_path, kind), PAIRS, tmp_path / "out", end=end)
        assert error.value.code == code
