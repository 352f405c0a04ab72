"""The distill room's one loop: gradients, resume, stored predictions, refusals, and what stays the same under a seed."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from interfuse.core.rooms import Call, apply, load_room, prepare
from interfuse.data.models import Model
from interfuse.distill import room as engine
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.encode import IGNORE
from interfuse.kit.losses import forward_kl
from tests import tiny_texts
from tests.conformance.fixtures import CLASSES, VISION, Killed, image_model, image_table
from tests.conformance.workspace import digests, quiet_threads


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with quiet_threads():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table of digits and tiny trained teachers."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_texts.tokenizer(tmp_path_factory.mktemp("texts") / "tokenizer")


class Perceptron(torch.nn.Module):
    """Four features to three classes through two hidden layers."""

    def __init__(self, inputs: int = 4, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = torch.nn.Sequential(
                torch.nn.Linear(inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh()
            )
            self.head = torch.nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


def features(rows: int = 23, classes: int = 3) -> Dataset:
    x = np.random.default_rng(3).normal(size=(rows, 4)).astype(np.float32)
    return Dataset.from_dict({"features": x.tolist(), "label": [str(i % classes) for i in range(rows)]})


def text_table(rows: int = 24) -> Dataset:
    body, labels = tiny_texts.sentences(rows)
    return Dataset.from_dict({"text": body, "label": labels})


def call_of(method: str, ctx: Ctx | None = None, **given: Any) -> Call:
    return prepare(load_room("distill"), load(f"distill/{method}"), given, ctx or Ctx())


def started(method: str, ctx: Ctx | None = None, **given: Any) -> tuple[Run, Hooks]:
    call = call_of(method, ctx, **given)
    hooks = engine._hooks(call)
    return engine.start(call, hooks), hooks


def refusal(code: str, **given: Any) -> str:
    """The text of the error of this code that distilling raises."""
    method = given.pop("method", "kd")
    with pytest.raises(InterfuseError) as caught:
        apply(f"distill/{method}", epochs=1, **given)
    assert caught.value.code == code, caught.value
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ gradients


def gradients(cut: list[int], method: str, **given: Any) -> dict[str, torch.Tensor]:
    """The gradient of one optimiser step over the same rows, cut into micro-batches of the given sizes."""
    run, hooks = started(method, clip=0, batch_size=64, epochs=1, **given)
    rows = np.array_split(np.arange(sum(cut)), np.cumsum(cut)[:-1])
    engine._step(run, hooks, rows, {})
    return {name: p.grad.clone() for name, p in run.student.named_parameters() if p.grad is not None}


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours
    assert set(ours) == set(theirs)
    scale = max(float(t.abs().max()) for t in theirs.values())
    for name, value in ours.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}")


CUTS = [[12, 11], [8, 8, 7], [5, 5, 5, 5, 3], [1] * 23]


@pytest.mark.parametrize("cut", CUTS, ids=len)
def test_gradient_does_not_depend_on_accumulation(cut: list[int]) -> None:
    given = {
        "student": Perceptron().double(),
        "teacher": [Perceptron(seed=1).double()],
        "data": features(),
        "alpha": 0.6,
    }
    close(gradients(cut, "kd", **given), gradients([23], "kd", **given))


@pytest.mark.parametrize("cut", CUTS, ids=len)
def test_gradient_of_texts_does_not_depend_on_accumulation(cut: list[int], texts: Path) -> None:
    """Texts differ in length, so the micro-batches hold different numbers of tokens: the mean is over all of them."""
    student, teacher = (llama(texts, seed, torch.float64) for seed in (0, 1))
    given = {"student": student, "teacher": [teacher], "data": text_table(23), "alpha": 0.6}
    close(gradients(cut, "kd", **given), gradients([23], "kd", **given))


def llama(tokenizer: Path, seed: int, dtype: torch.dtype = torch.float32, **config: Any) -> Model:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**tiny_texts.LLAMA, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).to(dtype)
    return Model(f"llama-{seed}", None, fields, "causal-lm", module=module, tokenizer=tokenizer)


# ------------------------------------------------------------------------------------------------ the same again


@pytest.mark.parametrize("name", VISION)
def test_a_model_distilled_into_itself_has_nothing_to_learn(name: str, images: Path, tmp_path: Path) -> None:
    teacher = image_model(images, name, 0)
    with mock.patch.object(torch.nn.modules.batchnorm._BatchNorm, "train", lambda self, mode=True: self):
        apply("distill/kd", teacher=[teacher], student=teacher, data=image_table(images), alpha=1.0, epochs=1, lr=1e-12,
              weight_decay=0, out=tmp_path / "out")  # fmt: skip
    rows = log_of(tmp_path / "out")
    assert abs(float(rows[0]["raw/kd"])) <= 1e-6


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "training.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_steps_with_one_configuration_start_from_the_same_weights(images: Path) -> None:
    given = {"student": {"config": VISION["vit"]}, "data": image_table(images)}
    one = started("none", **given)[0].student.state_dict()
    two = started("kd", teacher=[image_model(images, "resnet", 0)], tau=2.0, **given)[0].student.state_dict()
    other = started("none", Ctx(seed=1), **given)[0].student.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@contextlib.contextmanager
def killed_at(boundary: int) -> Iterator[None]:
    """The engine keeps its state at every end of an epoch, and dies after it has done so for the ``boundary``-th time."""
    keep, count = engine.save_state, itertools.count(1)

    def keep_and_die(*args: Any) -> None:
        keep(*args)
        if next(count) == boundary:
            raise Killed

    with mock.patch.object(engine, "CHECKPOINT_SECONDS", 0.0), mock.patch.object(engine, "save_state", keep_and_die):
        yield


@pytest.mark.parametrize("boundary", [1, 2, 3])
@pytest.mark.parametrize("student", ["resnet", "vit"])
def test_resume_at_every_epoch_boundary_equals_one_go(
    boundary: int, student: str, images: Path, tmp_path: Path
) -> None:
    config = {**VISION[student], **({"hidden_dropout_prob": 0.1} if student == "vit" else {})}
    given = {"teacher": [image_model(images, "vit", 0)], "student": {"config": config}, "data": image_table(images),
             "epochs": 4, "batch_size": 16, "accumulate": 2}  # fmt: skip
    apply("distill/kd", out=tmp_path / "one-go", **given)
    lines: list[str] = []
    with killed_at(boundary), pytest.raises(Killed):
        apply("distill/kd", out=tmp_path / "resumed", **given)
    assert not (tmp_path / "resumed").exists()
    apply("distill/kd", out=tmp_path / "resumed", ctx=Ctx(log=lines.append), **given)
    assert f"resuming after epoch {boundary} of 4" in lines
    assert digests(tmp_path / "resumed") == digests(tmp_path / "one-go")


def test_a_torn_checkpoint_is_named(images: Path, tmp_path: Path) -> None:
    given = {"student": {"config": VISION["vit"]}, "data": image_table(images), "out": tmp_path / "out"}
    with killed_at(1), pytest.raises(Killed):
        apply("distill/none", epochs=2, **given)
    (state,) = tmp_path.rglob("training.safetensors")
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(InterfuseError) as caught:
        apply("distill/none", epochs=2, **given)
    assert caught.value.code == "artifact.damaged"
    assert "training.safetensors" in caught.value.where
    assert not (tmp_path / "out").exists()


def test_stored_predictions_teach_as_a_live_teacher_does(images: Path, tmp_path: Path) -> None:
    given = {"teacher": [image_model(images, "convnext", 0)], "student": {"config": VISION["vit"]}, "data": image_table(images),
             "epochs": 2, "optimizer": "sgd", "lr": 0.05}  # fmt: skip
    run, _ = started("kd", **given)
    assert run.stored is not None
    live = engine.make_batch(run, np.arange(10), live=True)
    torch.testing.assert_close(run.stored[0][:10], engine.forward(run.teachers[0], run.teacher_models[0], live.teachers[0]).detach())  # fmt: skip
    for cache in ("auto", "off"):
        apply("distill/kd", out=tmp_path / cache, teacher_cache=cache, **given)
    assert started("kd", teacher_cache="off", **given)[0].stored is None
    stored, live_rows = log_of(tmp_path / "auto"), log_of(tmp_path / "off")
    for a, b in zip(stored, live_rows, strict=True):
        assert [float(v) for v in a.values()] == pytest.approx([float(v) for v in b.values()], rel=1e-4, abs=2e-6)
    import safetensors.torch

    one, two = (safetensors.torch.load_file(tmp_path / c / "model.safetensors") for c in ("auto", "off"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_networks_that_read_the_same_pictures_share_one_encoding(images: Path) -> None:
    student, larger = ({"config": {**VISION["vit"], "image_size": side}} for side in (8, 16))
    teachers = [image_model(images, "vit", 0), larger]
    run, _ = started("ensemble", teacher=teachers, student=student, data=image_table(images), teacher_cache="off")
    batch = engine.make_batch(run, np.arange(4))
    mine, theirs, other = (x["pixel_values"] for x in (batch.student, *batch.teachers))
    assert theirs is mine
    assert other.shape[-1] == 2 * mine.shape[-1]
    torch.testing.assert_close(theirs, run.teacher_encoders[0].encode(np.arange(4))["pixel_values"])


def test_stored_predictions_see_texts_cut_as_the_student_does(texts: Path, tmp_path: Path) -> None:
    bert = {"config": tiny_texts.BERT, "task": "text-classification", "tokenizer": str(texts)}
    made = apply("distill/none", student=bert, data=text_table(), epochs=1, out=tmp_path / "teacher")
    run, _ = started("kd", student=bert, teacher=[made], data=text_table(), max_length=4)
    live = engine.make_batch(run, np.arange(24), live=True)
    assert live.teachers[0]["input_ids"].shape == (24, 4)
    assert run.stored is not None
    with torch.no_grad():
        torch.testing.assert_close(run.stored[0], engine.forward(run.teachers[0], made, live.teachers[0]))


def test_the_log_adds_up(images: Path, tmp_path: Path) -> None:
    apply("distill/kd", teacher=[image_model(images, "vit", 0)], student={"config": VISION["convnext"]}, data=image_table(images),
          alpha=0.3, epochs=2, out=tmp_path / "out")  # fmt: skip
    rows = log_of(tmp_path / "out")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        kd, ce = float(row["raw/kd"]), float(row["raw/ce"])
        assert float(row["weighted/kd"]) == pytest.approx(0.3 * kd, abs=2e-6)
        assert float(row["weighted/ce"]) == pytest.approx(0.7 * ce, abs=2e-6)
        assert float(row["loss"]) == pytest.approx(0.3 * kd + 0.7 * ce, abs=4e-6)
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])


# ------------------------------------------------------------------------------------------------ refusals


def test_class_counts_are_compared(images: Path) -> None:
    table, vit = image_table(images), {"config": VISION["vit"]}
    wide = {"config": {**VISION["vit"], "num_labels": 9}}
    said = refusal("input.shape", method="none", student=wide, data=table)
    assert "9 classes" in said
    assert f"{CLASSES}" in said
    refusal("input.shape", teacher=[wide], student=vit, data=table)


def test_logits_of_plain_modules_are_compared() -> None:
    said = refusal("input.shape", teacher=[Perceptron(4, 5)], student=Perceptron(), data=features())
    assert "(5,)" in said
    assert "(3,)" in said
    said = refusal("input.shape", method="none", student=Perceptron(4, 2), data=features())
    assert "a label is 2" in said


def test_a_model_that_cannot_read_the_data_is_named(images: Path) -> None:
    said = refusal("input.shape", method="none", student=Perceptron(7), data=features())
    assert "the model refuses the data" in said
    assert "Perceptron" in said


def test_a_teacher_that_says_nan_is_named() -> None:
    teacher = Perceptron(seed=1)
    with torch.no_grad():
        teacher.head.bias[1] = float("nan")
    assert "Perceptron" in refusal("input.nan", teacher=[teacher], student=Perceptron(), data=features())


def test_nan_features_are_found_wherever_they_are() -> None:
    table = features().to_dict()
    table["features"][20][2] = float("nan")
    said = refusal("input.nan", method="none", student=Perceptron(), data=Dataset.from_dict(table))
    assert "row 20" in said
    assert "feature 2" in said


def test_teachers_are_counted() -> None:
    refusal("param.value", method="ensemble", teacher=[Perceptron(seed=1)], student=Perceptron(), data=features())
    refusal("param.value", method="none", teacher=[Perceptron(seed=1)], student=Perceptron(), data=features())
    refusal("param.value", student=Perceptron(), data=features())


def test_labels_are_missed_only_where_they_are_needed(tmp_path: Path) -> None:
    table = features().remove_columns("label")
    given = {"teacher": [Perceptron(seed=1)], "student": Perceptron(), "data": table}
    refusal("input.missing", **given)
    refusal("input.missing", method="none", student=Perceptron(), data=table)
    apply("distill/kd", alpha=1.0, epochs=1, out=tmp_path / "out", **given)
    assert "raw/ce" not in log_of(tmp_path / "out")[0]


def test_kinds_are_compared(images: Path, texts: Path) -> None:
    two = {"config": {**VISION["vit"], "num_labels": 2}}
    refusal("input.type", method="none", student=two, data=text_table())
    refusal("input.type", method="none", student=llama(texts, 0), data=image_table(images))
    bert = {"config": tiny_texts.BERT, "task": "text-classification", "tokenizer": str(texts)}
    refusal("input.type", teacher=[llama(texts, 0)], student=bert, data=text_table())
    refusal("input.vocabulary", teacher=[llama(texts, 0, vocab_size=99)], student=llama(texts, 1), data=text_table())
    bare = {"config": tiny_texts.BERT, "task": "text-classification"}
    assert "tokenizer" in refusal("input.missing", method="none", student=bare, data=text_table())


def test_one_example_is_no_batch_to_normalise_over(images: Path) -> None:
    table = {"data": image_table(images, "one"), "labels": list("012345")}
    said = refusal("input.shape", method="none", student={"config": VISION["resnet"]}, data=table)
    assert "normalises over a batch" in said
    refusal("input.shape", method="none", student={"config": VISION["resnet"]}, data=image_table(images), batch_size=1)


def test_a_last_batch_of_one_is_left_out_where_the_student_normalises(images: Path, tmp_path: Path) -> None:
    table = {"data": image_table(images), "limit": 33}
    apply(
        "distill/none", student={"config": VISION["resnet"]}, data=table, batch_size=32, epochs=1, out=tmp_path / "out"
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()


# ------------------------------------------------------------------------------------------------ hooks


@dataclass(frozen=True)
class Probe(Hooks):
    """A method made of functions, for one test."""

    after: Callable[[Run, Views], dict[str, torch.Tensor]]
    wants: Needs = Needs(labels=True, teachers=(0, 100))  # noqa: RUF009  (frozen)

    def needs(self) -> Needs:
        return self.wants

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        return self.after(run, views)


def run_probe(probe: Probe, **given: Any) -> tuple[Run, list[dict[str, Any]]]:
    call = call_of("none", **given) if "teacher" not in given else call_of("kd", **given)
    run = engine.start(call, probe)
    return run, engine.train(run, probe)


def test_a_term_that_becomes_nan_is_named() -> None:
    def terms(run: Run, views: Views) -> dict[str, torch.Tensor]:
        good = hard_loss(views)
        return {"ce": good, "spoilt": good * (float("nan") if run.epoch == 1 else 1.0)}

    with pytest.raises(InterfuseError, match=r"spoilt.*epoch 2") as caught:
        run_probe(Probe(terms), student=Perceptron(), data=features(), epochs=3)
    assert caught.value.code == "run.failed"


def test_a_term_that_becomes_nan_leaves_nothing(tmp_path: Path) -> None:
    with mock.patch(
        "interfuse.distill.none.NoDistillation.terms", lambda self, run, views: {"ce": hard_loss(views) / 0}
    ):
        said = refusal("run.failed", method="none", student=Perceptron(), data=features(), out=tmp_path / "out")
    assert "'ce'" in said
    assert not (tmp_path / "out").exists()


def test_extra_modules_are_trained_at_their_own_rate() -> None:
    class Scaled(Probe):
        def setup(self, run: Run) -> None:
            run.add("scale", torch.nn.Linear(3, 3, bias=False), lr_scale=0.0)
            run.add("learns", torch.nn.Linear(3, 3, bias=False))
            run.add("frozen", torch.nn.Linear(3, 3, bias=False), train=False)

    seen: dict[str, torch.Tensor] = {}

    def terms(run: Run, views: Views) -> dict[str, torch.Tensor]:
        if not seen:
            seen.update({k: m.weight.detach().clone() for k, m in run.modules.items()})  # type: ignore[union-attr,operator]
        out = views.student
        for module in run.modules.values():
            out = module(out)
        return {"all": out.pow(2).sum(dim=1)}

    run, _ = run_probe(Scaled(terms), student=Perceptron(), data=features(), epochs=2, weight_decay=0)
    now = {k: m.weight for k, m in run.modules.items()}
    assert torch.equal(now["scale"], seen["scale"])
    assert torch.equal(now["frozen"], seen["frozen"])
    assert not torch.equal(now["learns"], seen["learns"])
    groups = run.optimizers["main"].param_groups
    assert [g["lr_scale"] for g in groups] == [1.0, 0.0], "every group costs time in every step"


def test_select_and_batch_hooks_decide_what_is_seen() -> None:
    rows: list[int] = []

    class Choosy(Probe):
        def select(self, run: Run, order: Any) -> Any:
            return order[order < 5]

        def batch(self, run: Run, batch: Any) -> Any:
            rows.extend(batch.positions.tolist())
            return batch

    run_probe(Choosy(lambda run, views: {"ce": hard_loss(views)}), student=Perceptron(), data=features(), epochs=2, batch_size=2)  # fmt: skip
    assert sorted(rows) == sorted([*range(5), *range(5)])


# ------------------------------------------------------------------------------------------------ language models


def test_padding_does_not_count(texts: Path) -> None:
    """Two texts of different length in one batch give the sum of the token losses that each gives alone."""
    table = Dataset.from_dict({"text": ["the cat", "a small red bird sings and the dog sits here"]})
    run, hooks = started("kd", student=llama(texts, 0), teacher=[llama(texts, 1)], data=table, alpha=0.5)

    def losses(rows: list[int]) -> tuple[dict[str, float], int]:
        batch = engine.make_batch(run, np.array(rows))
        views = hooks.views(run, batch)
        terms = {k: engine._masked(v, batch).sum().item() for k, v in hooks.terms(run, views).items()}
        return terms, engine._count(batch)

    both, count = losses([0, 1])
    (short, few), (long, many) = losses([0]), losses([1])
    assert (few, many, count) == (2, 10, 12)  # next tokens, [EOS] included
    for name in both:
        assert both[name] == pytest.approx(short[name] + long[name], rel=1e-5)
    batch = engine.make_batch(run, np.array([0, 1]))
    assert batch.labels is not None
    assert batch.labels.shape == (2, 10)
    assert (batch.labels[0, 2:] == IGNORE).all()


def test_token_losses_are_those_of_a_plain_loop(texts: Path) -> None:
    table = text_table(6)
    run, hooks = started("kd", student=llama(texts, 0), teacher=[llama(texts, 1)], data=table, alpha=0.5, tau=2.0)
    batch = engine.make_batch(run, np.arange(6))
    sums = {k: engine._masked(v, batch).sum().item() for k, v in hooks.terms(run, hooks.views(run, batch)).items()}
    ce = kd = 0.0
    for text in table["text"]:
        ids = run.encoder.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            s, t = (m(ids).logits[0, :-1] for m in (run.student, run.teachers[0]))
        ce += float(torch.nn.functional.cross_entropy(s, ids[0, 1:], reduction="sum"))
        kd += float(forward_kl(s, t, tau=2.0).sum())
    assert sums["ce"] == pytest.approx(ce, rel=1e-5)
    assert sums["kd"] == pytest.approx(kd, rel=1e-5)


def test_a_language_model_is_distilled_and_opens_with_its_tokenizer(texts: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student = {"config": tiny_texts.LLAMA, "task": "causal-lm", "tokenizer": str(texts)}
    made = apply("distill/none", student=student, data=text_table(), epochs=3, lr=1e-2, out=tmp_path / "teacher")
    apply(
        "distill/kd",
        teacher=[str(made.path)],
        student=student,
        data=text_table(),
        epochs=3,
        lr=1e-2,
        out=tmp_path / "out",
    )
    rows = log_of(tmp_path / "out")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    module, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")  # fmt: skip
    assert module(**tokenizer("the cat", return_tensors="pt")).logits.shape == (1, 3, tiny_texts.VOCABULARY)


def test_a_text_classifier_is_distilled(texts: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    student = {"config": tiny_texts.BERT, "task": "text-classification", "tokenizer": str(texts)}
    made = apply("distill/none", student=student, data=text_table(), epochs=2, lr=1e-2, out=tmp_path / "teacher")
    apply(
        "distill/kd",
        teacher=[str(made.path)],
        student=student,
        data=text_table(),
        epochs=2,
        lr=1e-2,
        out=tmp_path / "out",
    )
    rows = log_of(tmp_path / "out")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").num_labels == 2


def test_padding_does_not_change_what_a_classifier_says(texts: Path) -> None:
    from interfuse.kit.encode import predict

    table = Dataset.from_dict(
        {"text": ["the cat", "a small red bird sings and the dog sits here"], "label": ["a", "b"]}
    )
    bert = {"config": tiny_texts.BERT, "task": "text-classification", "tokenizer": str(texts)}
    call = call_of("none", student=bert, data=table)
    both = predict(call.inputs["student"], call.inputs["data"], Ctx())
    alone = predict(call.inputs["student"], call.inputs["data"], Ctx(), batch_size=1)
    np.testing.assert_allclose(both, alone, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ refused before a weight changes


def test_what_only_the_method_cannot_do_is_told_in_the_first_step(texts: Path, tmp_path: Path) -> None:
    t5 = {"model_type": "t5", "vocab_size": tiny_texts.VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2,
          "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0, "num_labels": 2}  # fmt: skip
    student = {"config": t5, "task": "text-classification", "tokenizer": str(texts)}
    said = refusal(
        "needs.capability", method="mix-kd", student=student, teacher=[student], data=text_table(), out=tmp_path / "out"
    )
    assert "MixKD" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("sizes differ"), "input.shape"), (KeyError("layer"), "input.shape"), (AttributeError("no head"), "needs.capability")])  # fmt: skip
@pytest.mark.parametrize("hook", ["batch", "views", "terms", "weights", "backward"])
def test_errors_of_a_method_are_coded_in_the_first_step_only(
    error: Exception, code: str, hook: str, tmp_path: Path
) -> None:
    given = {"student": Perceptron(), "teacher": [Perceptron(seed=1)], "data": features(), "batch_size": 8, "epochs": 2}
    for broken_in, expected in ((0, InterfuseError), (1, type(error))):
        run, hooks = started("kd", **given)
        calls = itertools.count()
        plain = getattr(hooks, hook)

        def breaks(*args: Any, plain: Any = plain, calls: Any = calls, at: int = broken_in) -> Any:
            if next(calls) == at:
                raise error
            return plain(*args)

        before = {n: p.clone() for n, p in run.student.named_parameters()}
        with mock.patch.object(type(hooks), hook, lambda self, *args: breaks(*args)), pytest.raises(expected) as caught:
            engine.train(run, hooks)
        moved = any(not torch.equal(p, before[n]) for n, p in run.student.named_parameters())
        assert moved == (broken_in == 1)
        if isinstance(caught.value, InterfuseError):
            assert caught.value.code == code
            assert caught.value.__cause__ is error


def frozen() -> torch.nn.Module:
    return Perceptron(seed=1).requires_grad_(False)


def trees() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    table = features()
    return RandomForestClassifier(3, random_state=0).fit(np.array(table["features"]), np.array(table["label"]))


@pytest.mark.parametrize("method", ["bd-kd", "dml", "kdcl"])
@pytest.mark.parametrize("teacher", [frozen, trees], ids=["frozen", "trees"])
def test_a_teacher_that_is_to_train_and_cannot_is_refused(
    method: str, teacher: Callable[[], Any], tmp_path: Path
) -> None:
    given = {"student": Perceptron(), "data": features(), "batch_size": 8}
    for way in ({"method": method}, {"method": "compose", "parts": [{"use": method}]}):
        said = refusal("needs.capability", teacher=[teacher()], out=tmp_path / "out", **way, **given)
        assert "no parameter that may" in said


@pytest.mark.parametrize("student", [frozen, trees], ids=["frozen", "trees"])
def test_a_student_that_cannot_train_is_refused(student: Callable[[], Any], tmp_path: Path) -> None:
    given = {"teacher": [Perceptron(seed=1)], "data": features(), "batch_size": 8}
    said = refusal("needs.capability", student=student(), out=tmp_path / "out", **given)
    assert "no parameter that may" in said


def test_what_a_teachers_owner_froze_stays_frozen_online(tmp_path: Path) -> None:
    import safetensors.torch

    teacher = Perceptron(seed=1)
    teacher.body.requires_grad_(False)
    before = {n: p.clone() for n, p in teacher.named_parameters()}
    apply(
        "distill/bd-kd",
        student=Perceptron(),
        teacher=[teacher],
        data=features(),
        batch_size=8,
        epochs=2,
        lr=1e-2,
        out=tmp_path / "out",
    )
    after = safetensors.torch.load_file(tmp_path / "out" / "teacher-0" / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(after[name], value) == name.startswith("body"), name
    run, _ = started("dml", student=Perceptron(), teacher=[teacher], data=features(), batch_size=8)
    assert {n for n, p in run.modules["peer_1"].named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("method", ["bd-kd", "dml", "kdcl", "hard"])
def test_stored_predictions_neither_train_nor_run(method: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    ids = [str(i) for i in range(23)]
    pyarrow.parquet.write_table(pa.table({"id": ids, "logits": [[0.1, 0.2, 0.3]] * 23}), tmp_path / "said.parquet")
    data = features().add_column("id", ids)
    said = refusal("needs.capability", method=method, student=Perceptron(), teacher=[{"predictions": str(tmp_path / "said.parquet")}], data=data,
                   batch_size=8, out=tmp_path / "out", **({"augmentor": "noise"} if method == "hard" else {}))  # fmt: skip
    assert "stored predictions cannot" in said
