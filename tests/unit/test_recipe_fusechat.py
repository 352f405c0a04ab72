"""The whole of FuseChat as it ships, on tiny models of two tokenizers; one more source makes only its own part."""

from __future__ import annotations

import json
from pathlib import Path

from interfuse.core import index
from interfuse.core.artifact import verify
from interfuse.core.ctx import Ctx
from interfuse.core.recipe import load_recipe
from interfuse.core.run import make_plan, run_plan
from tests.conformance.workspace import quiet_threads
from tests.tiny_tokenizers import TEXT
from tests.unit.test_distill_lm import TALK, lm

RECIPE = index.shipped("recipes") / "fusechat.yaml"


def write_models(folder: Path) -> None:
    for number, (name, scheme) in enumerate(
        (("pivot", "bytes"), ("first", "marker"), ("second", "bytes"), ("third", "wordpiece"))
    ):
        from transformers import AutoTokenizer

        model = lm(folder / "tokenizers", scheme, number)
        assert model.module is not None
        model.module.save_pretrained(folder / "models" / name)
        tok = AutoTokenizer.from_pretrained(model.tokenizer)
        tok.chat_template = TALK
        tok.save_pretrained(folder / "models" / name)
    lines = []
    for text in TEXT[:4]:
        first, rest = text.split(" ", 1)
        talk = [{"role": "user", "content": first}, {"role": "assistant", "content": rest}]
        lines.append(json.dumps({"messages": talk}))
    (folder / "chat.jsonl").write_text("\n".join(lines) + "\n")


def test_a_further_source_redoes_only_its_own_part(tmp_path: Path) -> None:
    write_models(tmp_path)
    text = RECIPE.read_text()
    assert text.count("epochs: 3, batch_size: 8, accumulate: 16") == 2
    text = text.replace("epochs: 3, batch_size: 8, accumulate: 16", "epochs: 1, batch_size: 4, accumulate: 1")
    (tmp_path / "fusechat.yaml").write_text(text)
    ctx = Ctx(cache=tmp_path / "cache")
    with quiet_threads():
        run_plan(make_plan(load_recipe(tmp_path / "fusechat.yaml"), tmp_path / "out", ctx))
        for step in ("target-first", "target-second", "fused", "fused-varm"):
            verify(tmp_path / "out" / "steps" / step / "seed-0")
        caches = len(list((tmp_path / "cache" / "teachers").iterdir()))
        assert caches == 3, "two sources and the pivot, whose predictions both trainings share"
        line = next(row for row in text.splitlines() if row.strip().startswith("target-second:"))
        more = text.replace(
            line,
            line + "\n" + line.replace("target-second", "target-third").replace("teacher: second", "teacher: third"),
        )
        more = more.replace(
            "  second: {model: models/second}", "  second: {model: models/second}\n  third: {model: models/third}"
        )
        more = more.replace(
            "models: [target-first, target-second]", "models: [target-first, target-second, target-third]"
        )
        (tmp_path / "fusechat.yaml").write_text(more)
        plan = make_plan(load_recipe(tmp_path / "fusechat.yaml"), tmp_path / "out", ctx)
        states = {row["step"]: row["state"] for row in plan.rows()}
        assert states == {
            "target-first": "done",
            "target-second": "done",
            "target-third": "to do",
            "fused": "to do",
            "fused-varm": "to do",
        }
        run_plan(make_plan(load_recipe(tmp_path / "fusechat.yaml"), tmp_path / "out", ctx))
        assert len(list((tmp_path / "cache" / "teachers").iterdir())) == caches + 1
