"""What is refused when models are opened, and the teachers' cache on disk."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source, apply
from interfuse.data.models import open_model, quiet
from interfuse.data.seeding import seeded

VIT = {"model_type": "vit", "num_channels": 1, "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
       "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 10}  # fmt: skip
DATA = {"data": "sklearn:digits", "limit": 60}


def folder(path: Path, config: str | None, weights: str = "model.safetensors") -> Path:
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(config)
    if weights.endswith(".safetensors"):
        safetensors.torch.save_file({"x": torch.zeros(1)}, path / weights)
    elif weights:
        (path / weights).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    return path


GOOD = json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]})


@pytest.mark.parametrize(
    "config, weights, code, words",
    [
        (json.dumps({"model_type": "vit", "auto_map": {"AutoModel": "modeling.Evil"}}), "model.safetensors", "unsafe.code", "auto_map"),
        (GOOD, "pytorch_model.bin", "unsafe.pickle", "pytorch_model.bin"),
        (GOOD, "model.pt", "unsafe.pickle", "model.pt"),
        (GOOD, "", "input.missing", "safetensors"),
        (None, "model.safetensors", "input.missing", "config.json"),
        ("{", "model.safetensors", "input.format", "JSON"),
        ("[1]", "model.safetensors", "input.format", "table"),
        (json.dumps({"model_type": "vit", "architectures": ["Strange"]}), "model.safetensors", "input.type", "task"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path, config, weights, code, words):
    place = folder(tmp_path / "model", config, weights)
    with pytest.raises(InterfuseError, match=words) as caught:
        open_model(Source(str(place)), Ctx())
    assert caught.value.code == code
    assert str(place) in caught.value.where
    assert not (tmp_path / "ran").exists()
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "spec, code, words",
    [
        ({"config": {"model_type": "vti"}}, "input.type", "Did you mean vit"),
        ({"config": {"hidden_size": 3}}, "param.value", "model_type"),
        ({"config": VIT, "task": "image-clasification"}, "param.value", "image-classification"),
        ({"modle": "x"}, "param.unknown", "Did you mean model"),
        ({"task": "causal-lm"}, "param.missing", "model"),
        ("./nowhere", "input.missing", "no such model folder"),
        (3.5, "input.type", "float"),
    ],
)
def test_sources_that_are_refused(spec, code, words):
    with pytest.raises(InterfuseError, match=words) as caught:
        open_model(Source(spec), Ctx())
    assert caught.value.code == code


def test_a_weight_file_is_no_model(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InterfuseError) as caught:
        open_model(Source(str(tmp_path / "model.bin")), Ctx())
    assert caught.value.code == "unsafe.pickle"


@pytest.mark.parametrize(
    "change, code, words",
    [
        ({"teacher": {"config": {**VIT, "num_labels": 7}}}, "input.shape", "the teacher has 7 classes, the student 10"),
        ({"student": {"config": {**VIT, "num_labels": 7}}}, "input.shape", "7 classes"),
        ({"data": {**DATA, "columns": {"image": "x"}, "shape": [8, 8]}}, "input.missing", "labels"),
        ({"data": {**DATA, "limit": 0}}, "input.empty", "no rows"),
        ({"data": {**DATA, "classes": ["11"]}}, "param.value", "no class"),
        ({"teacher": None}, "param.value", "takes 1 teacher, 0 are given"),
    ],
)
def test_distillation_refuses_before_work(tmp_path, change, code, words):
    given = {"teacher": {"config": VIT}, "student": {"config": VIT}, "data": DATA, "epochs": 1} | change
    with pytest.raises(InterfuseError, match=words) as caught:
        apply("distill/kd", out=tmp_path / "out", **given)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_teacher_cache_is_shared_and_checked(tmp_path, monkeypatch):
    ctx = Ctx(cache=tmp_path / "cache")
    given = {
        "teacher": {"config": VIT},
        "student": {"config": VIT},
        "data": DATA,
        "epochs": 1,
        "teacher_cache": "disk",
        "ctx": ctx,
    }
    one = apply("distill/kd", out=tmp_path / "one", **given)
    (file,) = (tmp_path / "cache" / "teachers").iterdir()
    monkeypatch.setattr("interfuse.distill.teacher_cache.predict", lambda *a, **k: pytest.fail("the teacher ran again"))
    two = apply("distill/kd", out=tmp_path / "two", **given)
    assert (one.path / "model.safetensors").read_bytes() == (two.path / "model.safetensors").read_bytes()
    monkeypatch.undo()
    apply("distill/kd", out=tmp_path / "other", **{**given, "data": {**DATA, "limit": 59}})
    assert len(list(file.parent.iterdir())) == 2
    other = next(f for f in file.parent.iterdir() if f != file)
    file.write_bytes(other.read_bytes())  # the predictions for other examples under this name
    with pytest.raises(InterfuseError) as caught:
        apply("distill/kd", out=tmp_path / "three", **given)
    assert caught.value.code == "artifact.damaged"
    assert not (tmp_path / "three").exists()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InterfuseError) as caught:
        apply("distill/kd", out=tmp_path / "three", **given)
    assert caught.value.code == "artifact.damaged"


def test_one_thread_at_a_time_is_behind_the_fence_of_the_global_generator() -> None:
    """Two trainings in threads of one process draw what each draws alone."""
    inside, asked = threading.Event(), threading.Event()

    def first() -> list[float]:
        with seeded(1):
            drawn = [float(torch.rand(()))]
            inside.set()
            asked.wait(5)
            time.sleep(0.1)  # the other one is at the fence by now
            return [*drawn, float(torch.rand(()))]

    def second() -> list[float]:
        inside.wait(5)
        asked.set()
        with seeded(2):
            return torch.rand(2).tolist()

    with seeded(1):
        alone = [float(torch.rand(())), float(torch.rand(()))]
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(first), pool.submit(second)
        assert one.result() == alone
        with seeded(2):
            assert two.result() == torch.rand(2).tolist()


def test_bars_of_transformers_come_back_when_the_last_one_is_done() -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        first, second = quiet(), quiet()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not logging.is_progress_bar_enabled()  # the other one is still at work
        second.__exit__(None, None, None)
        assert logging.is_progress_bar_enabled()
    finally:
        if not before:
            logging.disable_progress_bar()
