"""One method of every kind of hook on real sentences and on a table of numbers; a language model as the teacher of classes."""

from __future__ import annotations

import inspect
import json
import random
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from datasets import Dataset
from torch import nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source, apply
from interfuse.data.models import build, open_model
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table
from interfuse.distill.verbs import compare
from interfuse.kit.encode import Encoder, forward, predict
from interfuse.kit.taps import Taps
from tests.distill_bars import log_of, weights
from tests.tiny_texts import BERT

CLASSES = ("json", "random")


def sentences() -> tuple[list[str], list[int]]:
    """Sentences of the standard library's documentation of two modules, each with the module it is about."""
    texts, labels = [], []
    for label, members in enumerate(
        ((json, json.JSONEncoder, json.JSONDecoder, json.dump, json.load), (random, *vars(random.Random).values()))
    ):
        found: list[str] = []
        for member in members:
            doc = " ".join(textwrap.dedent(inspect.getdoc(member) or "").split())
            found += [s.strip() for s in re.split(r"(?<=[.!?])\s+", doc) if 20 < len(s) < 160 and ">>>" not in s]
        chosen = list(dict.fromkeys(found))[:20]
        texts += chosen
        labels += [label] * len(chosen)
    return texts, labels


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sentences as a table, a tokenizer of their words, a BERT teacher and a smaller student."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("real")
    texts, labels = sentences()
    assert min(labels.count(0), labels.count(1)) >= 15
    words = sorted({w for t in texts for w in re.findall(r"[a-z]+|[^\sa-z]", t.lower())})
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "words")
    table = open_table(
        Source(Dataset.from_dict({"text": texts, "label": labels, "id": [f"s{i}" for i in range(len(texts))]})), Ctx()
    )
    config = {**BERT, "vocab_size": len(vocabulary), "max_position_embeddings": 64}
    student = {
        "config": {**config, "hidden_size": 8},
        "task": "text-classification",
        "tokenizer": str(folder / "words"),
    }
    given = {"data": table, "batch_size": 8, "epochs": 2, "max_length": 48, "lr": 3e-3}
    teacher = apply("distill/none", student={**student, "config": config}, **given, out=folder / "teacher")
    return {"given": given, "student": student, "teacher": teacher}


@pytest.mark.parametrize(
    ("slug", "extra"),
    [
        ("rkd", {}), ("ofa-kd", {}), ("bd-kd", {}), ("kdcl", {}), ("fantastic-gains", {"lr": 0.05}), ("dhkd", {"align": "features"}),
        ("kd3", {"min_per_class": 8, "contrast": 0.5}), ("hard", {"augmentor": "noise", "student_steps": 2, "augmentor_lr": 0.05}),
        ("mix-kd", {}), ("tgeo-kd", {"val_fraction": 0.25}), ("trg", {"k": 3, "tokens": 32}),
        ("compose", {"parts": [{"use": "dist"}, {"use": "nd-kd", "base": "none", "ce": 0}]}),
        ("diswot", {"space": {"hidden_size": [8, 16]}, "inits": 1, "score_batch": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_real_sentences(real: dict[str, Any], tmp_path: Path, slug: str, extra: dict[str, Any]) -> None:
    student: Any = real["student"]
    if slug == "fantastic-gains":  # goes on from a trained student
        student = apply("distill/none", student=student, **real["given"], out=tmp_path / "first")
    found = apply(
        f"distill/{slug}",
        student=student,
        teacher=[real["teacher"]],
        **{**real["given"], **extra},
        out=tmp_path / "out",
    )
    rows = log_of(found)
    assert len(rows) == 2
    assert all(bool(v.isfinite().all()) for v in weights(found).values())
    assert predict(found, real["given"]["data"], Ctx()).shape == (len(real["given"]["data"]), 2)


SMALL = {
    "vocab_size": 0,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 2,
    "pad_token_id": 0,
}
#: text classifiers whose last linear layer by name is another, or that give logits of every token: configuration and the classifier's name
CLASSIFIERS: dict[str, tuple[dict[str, Any], str]] = {
    "xlm-roberta": ({**SMALL, "max_position_embeddings": 64}, "classifier.out_proj"),
    "gpt2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "num_labels": 2, "pad_token_id": 0}, "score"),
    "llama": ({**SMALL, "max_position_embeddings": 64}, "score"),
    "bert": ({**SMALL, "max_position_embeddings": 64}, "classifier"),
    "xlnet": (
        {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "num_labels": 2, "pad_token_id": 0},
        "logits_proj",
    ),
}


def classifier(real: dict[str, Any], kind: str, **changes: Any) -> dict[str, Any]:
    """The source of a small classifier of sentences."""
    config = {
        **CLASSIFIERS[kind][0],
        "vocab_size": real["student"]["config"]["vocab_size"],
        "model_type": kind,
        **changes,
    }
    return {**real["student"], "config": config}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_penultimate_is_what_the_logits_are_made_from(real: dict[str, Any], kind: str) -> None:
    model = open_model(Source(classifier(real, kind)), Ctx())
    module = build(model, Ctx())
    rows = Encoder(model, real["given"]["data"], 48).encode(np.arange(6))
    assert int(rows["attention_mask"].min()) == 0  # some are padded
    with Taps(module, ["penultimate"]) as taps, torch.no_grad():
        for part in (slice(0, 6), slice(2, 5)):
            logits = forward(module, model, {k: v[part] for k, v in rows.items()})
            assert taps.classifier == CLASSIFIERS[kind][1]
            assert taps.features["penultimate"].shape == (len(logits), 16)
            torch.testing.assert_close(module.get_submodule(taps.classifier)(taps.features["penultimate"]), logits)


@pytest.mark.parametrize("slug", ["dhkd", "nd-kd"])
@pytest.mark.parametrize("kind", ["xlm-roberta", "gpt2"])
def test_heads_that_are_no_plain_last_layer(real: dict[str, Any], tmp_path: Path, kind: str, slug: str) -> None:
    given = {**real["given"], "epochs": 1}
    teacher = apply("distill/none", student=classifier(real, kind), **given, out=tmp_path / "teacher")
    found = apply(f"distill/{slug}", student=classifier(real, kind), teacher=[teacher], **given, out=tmp_path / "out")
    assert all(bool(v.isfinite().all()) for v in weights(found).values())
    if slug == "dhkd":
        return
    means = safetensors.torch.load_file(tmp_path / "out" / "class_means.safetensors")["class_means"]
    table, module = given["data"], build(teacher, Ctx())
    rows = Encoder(teacher, table, 48).encode(np.arange(len(table)))
    head = module.get_submodule(CLASSIFIERS[kind][1])
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        forward(module, teacher, rows)
    vectors = seen[0]
    if vectors.ndim == 3:  # GPT-2 classifies by the last token that is no padding
        vectors = vectors[torch.arange(len(vectors)), rows["attention_mask"].sum(dim=1) - 1]
    labels = torch.from_numpy(table.labels())
    expected = torch.stack([vectors[labels == c].mean(dim=0) for c in range(2)])
    torch.testing.assert_close(means, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("slug", "given"),
    [("hard", {}), ("hard", {"augmentor": "vae"}), ("compose", {"parts": [{"use": "hard"}]}), ("reviewkd", {})],
)
def test_texts_have_no_pixels(
    real: dict[str, Any], tmp_path: Path, slug: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfuse.distill.room.build", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(InterfuseError) as caught:
        apply(f"distill/{slug}", student=real["student"], teacher=[real["teacher"]], **real["given"], **given, out=tmp_path / "a")  # fmt: skip
    assert caught.value.code == "input.type"


def test_an_exported_text_model_says_what_it_learned_to_say(real: dict[str, Any], tmp_path: Path) -> None:
    """Backbone, transfer block and the teacher's classifier, opened by ``transformers`` and as a teacher."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import interfuse.data.composed  # noqa: F401  registers the type

    given = {**real["given"], "epochs": 1}
    found = apply("distill/kd3", student=real["student"], teacher=[real["teacher"]], **given, min_per_class=8, out=tmp_path / "a")  # fmt: skip
    assert found.path is not None
    teacher, student = weights(real["teacher"]), weights(found)
    assert torch.equal(student["classifier.weight"], teacher["classifier.weight"]), "the teacher's, as it is"
    module = AutoModelForSequenceClassification.from_pretrained(found.path).eval()
    rows = AutoTokenizer.from_pretrained(found.path)(list(given["data"].dataset["text"]), padding=True, return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        logits = module(**rows).logits
        vectors = module.backbone.bert(**rows).pooler_output
        by_hand = module.classifier(module.transfer.layers(vectors))
    torch.testing.assert_close(logits, by_hand)
    np.testing.assert_allclose(predict(found, given["data"], Ctx()), logits.numpy(), atol=1e-5)
    log = (found.path / "plots" / "selected.csv").read_text().splitlines()
    assert len(log) > 1, "which texts were chosen is told"
    again = apply("distill/kd", student=real["student"], teacher=[found], **given, out=tmp_path / "b")
    assert log_of(again)[0]["raw/kd"] > 0


def test_a_transfer_block_reads_one_vector_of_a_text(real: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InterfuseError) as caught:
        apply("distill/kd3", student=classifier(real, "gpt2"), teacher=[real["teacher"]], **real["given"], out=tmp_path / "a")  # fmt: skip
    assert caught.value.code == "needs.capability"


@pytest.mark.parametrize(("slug", "extra"), [("kd3", {"min_per_class": 8}), ("hard", {"augmentor": "noise"})])
def test_a_teacher_that_decides_by_one_token(
    real: dict[str, Any], tmp_path: Path, slug: str, extra: dict[str, Any]
) -> None:
    given = {**real["given"], "epochs": 1, **extra}
    found = apply(f"distill/{slug}", student=real["student"], teacher=[classifier(real, "gpt2")], **given, out=tmp_path / "a")  # fmt: skip
    assert all(bool(v.isfinite().all()) for v in weights(found).values())


@pytest.mark.parametrize("kind", ["gpt2", "xlnet", "bert"])
def test_a_words_strength_is_the_same_for_networks_of_any_kind(real: dict[str, Any], kind: str) -> None:
    """Factor 1 changes nothing, factor 0 takes the word away; padding and the end of a text are still found."""
    from interfuse.distill.hard import shown

    source = classifier(real, kind)
    model = open_model(Source(source), Ctx())
    module = build(model, Ctx())
    rows = Encoder(model, real["given"]["data"], 48).encode(np.arange(4))
    with torch.no_grad():
        plain = forward(module, model, rows)
        ones = torch.ones(rows["input_ids"].shape)
        torch.testing.assert_close(shown(module, model, rows, ones), plain)
        less = ones.clone()
        less[2, 1] = 0.0
        changed = shown(module, model, rows, less)
    torch.testing.assert_close(changed[[0, 1, 3]], plain[[0, 1, 3]])
    assert not torch.allclose(changed[2], plain[2])
    assert not module.get_input_embeddings()._forward_hooks


def test_a_words_strength_needs_the_teachers_words(real: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from transformers import BertTokenizerFast

    monkeypatch.setattr("interfuse.distill.room.build", lambda *_, **__: pytest.fail("a model was loaded"))
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "other"])}
    BertTokenizerFast(vocab=words).save_pretrained(tmp_path / "words")
    student = {**real["student"], "tokenizer": str(tmp_path / "words")}
    with pytest.raises(InterfuseError) as caught:
        apply("distill/hard", student=student, teacher=[real["teacher"]], **real["given"], augmentor="noise", out=tmp_path / "a")  # fmt: skip
    assert caught.value.code == "input.vocabulary"


@pytest.mark.parametrize(
    ("slug", "extra"),
    [
        ("fantastic-gains", {}),
        ("bd-kd", {"validation": True}),
        ("tgeo-kd", {"val_fraction": 0.25, "teacher_cache": "off"}),
    ],
)
def test_models_in_folders_keep_their_tokenizer_and_the_length_of_texts(
    real: dict[str, Any], tmp_path: Path, slug: str, extra: dict[str, Any]
) -> None:
    """What a method asks the models beside training goes by the same tokenizer and ``max_length`` as the training itself."""
    texts, labels = sentences()
    long = [f"{t} {t} {t} {t} {t} {t}" for t in texts]  # more tokens than the models read
    rows = {"text": long, "label": labels, "id": [f"l{i}" for i in range(len(long))]}
    given = {**real["given"], **extra, "data": open_table(Source(Dataset.from_dict(rows)), Ctx())}
    if extra.get("validation"):
        held = Dataset.from_dict({**rows, "id": [f"h{i}" for i in range(len(long))]})
        given["validation"] = open_table(Source(held), Ctx())
    student = apply("distill/none", student=real["student"], **real["given"], out=tmp_path / "first")
    made = apply(f"distill/{slug}", student=str(student.path), teacher=[str(real["teacher"].path)], **given, out=tmp_path / "out")  # fmt: skip
    assert made.path is not None
    assert (made.path / "tokenizer.json").is_file()


def test_compare_cuts_test_texts_where_training_ones_are_cut(real: dict[str, Any]) -> None:
    texts, labels = sentences()
    rows = {"text": [" ".join([t] * 6) for t in texts], "label": labels, "id": [f"h{i}" for i in range(len(texts))]}
    held = open_table(Source(Dataset.from_dict(rows)), Ctx())
    common = {k: v for k, v in real["given"].items() if k != "data"} | {"epochs": 1}
    (row,) = compare(
        [("a", "none", {})], [], real["student"], real["given"]["data"], held, seeds=2, baseline="a", common=common
    )
    assert 0 <= row["accuracy"] <= 1


# -- tables of numbers -------------------------------------------------------------------------------------------------

WINE = {"data": "sklearn:wine", "scale": 100.0}


def net(width: int) -> nn.Module:
    with seeded(width):
        return nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.mark.parametrize(
    ("slug", "extra"), [("hard", {}), ("hard", {"augmentor": "vae"}), ("compose", {"parts": [{"use": "hard"}]})]
)
def test_numbers_are_no_pictures_to_move(tmp_path: Path, slug: str, extra: dict[str, Any]) -> None:
    with pytest.raises(InterfuseError) as caught:
        apply(f"distill/{slug}", student=net(4), teacher=[net(4)], data=WINE, **extra, out=tmp_path / "a")
    assert caught.value.code == "input.type"
    assert "augmentor: noise" in caught.value.fix


@pytest.mark.parametrize(
    ("slug", "extra"),
    [("rkd", {}), ("ofa-kd", {}), ("bd-kd", {}), ("kdcl", {}), ("hard", {"augmentor": "noise", "student_steps": 2}), ("fantastic-gains", {"lr": 0.05}),
     ("compose", {"parts": [{"use": "kd"}, {"use": "sp", "label_weight": 0, "student_layers": ["penultimate"], "teacher_layers": ["penultimate"]}]})],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_table_of_numbers(tmp_path: Path, slug: str, extra: dict[str, Any]) -> None:
    given = {"data": WINE, "batch_size": 32, "epochs": 2}
    found = apply(f"distill/{slug}", student=net(6), teacher=[net(12)], **{**given, **extra}, out=tmp_path / "out")
    assert all(bool(v.isfinite().all()) for v in weights(found).values())
    assert build(found, Ctx()).eval()(torch.zeros(2, 13)).shape == (2, 3)


@pytest.mark.parametrize("slug", ["kd", "ofa-kd", "fantastic-gains", "bd-kd"])
def test_trees_teach_a_net(tmp_path: Path, slug: str) -> None:
    from sklearn.ensemble import RandomForestClassifier

    table = open_table(Source(WINE), Ctx())
    x = Encoder(open_model(Source(net(6)), Ctx()), table).encode(np.arange(len(table)))["x"].numpy()
    trees = RandomForestClassifier(20, random_state=0).fit(x, table.labels())
    extra = {"online": False} if slug == "bd-kd" else {}
    found = apply(
        f"distill/{slug}",
        student=net(8),
        teacher=[trees],
        data=WINE,
        batch_size=32,
        epochs=25,
        lr=0.02,
        **extra,
        out=tmp_path / "a",
    )
    said = predict(found, table, Ctx()).argmax(axis=1)
    assert float((said == trees.predict(x)).mean()) > 0.5


# -- a language model as the teacher -----------------------------------------------------------------------------------

PROMPT = "{text}\nThis is about "


def recorded(folder: Path, table: Table) -> str:
    """Scores as an endpoint would give them: sure of the label, less so for longer texts."""
    file = folder / "scores.jsonl"
    with file.open("w") as lines:
        for text, label in zip(table.dataset["text"], table.labels(), strict=True):
            for c, answer in enumerate(CLASSES):
                logprob = -0.1 if c == label else -3.0
                row = {
                    "prompt": PROMPT.replace("{text}", text),
                    "continuation": answer,
                    "token_logprobs": [logprob, -0.01 * len(text)],
                }
                lines.write(json.dumps(row) + "\n")
    return f"replies:{file}"


def test_a_language_model_teaches_classes(real: dict[str, Any], tmp_path: Path) -> None:
    table: Table = real["given"]["data"]
    source = {"lm": recorded(tmp_path, table), "prompt": PROMPT, "answers": list(CLASSES)}
    teacher = open_model(Source(source), Ctx())
    p = torch.from_numpy(predict(teacher, table, Ctx())).softmax(1).numpy()
    assert p.shape == (len(table), 2)
    assert p.max(axis=1) == pytest.approx(1 / (1 + np.exp(-2.9)), abs=1e-6)
    found = apply(
        "distill/kd", student=real["student"], teacher=[source], **real["given"], alpha=1.0, out=tmp_path / "a"
    )
    assert log_of(found)[-1]["raw/kd"] < log_of(found)[0]["raw/kd"]
    named = {**source, "answers": {"1": "random", "0": "json"}}
    assert np.array_equal(predict(open_model(Source(named), Ctx()), table, Ctx()), predict(teacher, table, Ctx()))
    assert open_model(Source(named), Ctx()).fingerprint() != teacher.fingerprint()


@pytest.mark.parametrize(
    ("change", "code"),
    [({"prompt": "no place"}, "param.value"), ({"answers": "json"}, "param.value"), ({"answers": ["json"]}, "input.shape"),
     ({"answers": {"json": "json", "cooking": "x"}}, "input.shape"), ({"prompts": "x"}, "param.unknown"), ({"lm": "replies:nowhere.jsonl"}, "input.missing")],
)  # fmt: skip
def test_a_language_model_that_cannot_be_asked(
    change: dict[str, Any], code: str, real: dict[str, Any], tmp_path: Path
) -> None:
    source = {"lm": recorded(tmp_path, real["given"]["data"]), "prompt": PROMPT, "answers": list(CLASSES), **change}
    with pytest.raises(InterfuseError) as caught:
        apply("distill/kd", student=real["student"], teacher=[source], **real["given"], out=tmp_path / "a")
    assert caught.value.code == code


@pytest.mark.parametrize("slug", ["mix-kd", "dhkd", "nd-kd"])
def test_a_language_model_has_no_layers_and_no_raw_logits(slug: str, real: dict[str, Any], tmp_path: Path) -> None:
    source = {"lm": recorded(tmp_path, real["given"]["data"]), "prompt": PROMPT, "answers": list(CLASSES)}
    with pytest.raises(InterfuseError) as caught:
        apply(f"distill/{slug}", student=real["student"], teacher=[source], **real["given"], out=tmp_path / "a")
    assert caught.value.code == "needs.capability"


def test_a_language_model_reads_texts(tmp_path: Path, real: dict[str, Any]) -> None:
    source = {"lm": recorded(tmp_path, real["given"]["data"]), "prompt": PROMPT, "answers": ["a", "b", "c"]}
    with pytest.raises(InterfuseError) as caught:
        apply("distill/kd", student=net(6), teacher=[source], data=WINE, epochs=1, out=tmp_path / "a")
    assert caught.value.code == "input.type"
