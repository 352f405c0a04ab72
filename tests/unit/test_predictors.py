"""Teachers that are no networks: stored predictions and scikit-learn estimators."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source, apply
from interfuse.data.models import open_model
from interfuse.data.tables import open_table
from interfuse.kit.encode import predict

VIT = {"model_type": "vit", "num_channels": 1, "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
       "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 10}  # fmt: skip
DATA = {"data": "sklearn:digits", "limit": 60}


def store(path: Path, ids, rows, form="probs") -> str:
    path.write_text(
        "".join(json.dumps({"id": int(i), form: list(map(float, r))}) + "\n" for i, r in zip(ids, rows, strict=True))
    )
    return str(path)


def test_stored_predictions_teach_as_their_model_does(tmp_path):
    data = open_table(Source(DATA), Ctx())
    teacher = apply("distill/none", student={"config": VIT}, data=DATA, epochs=1, out=tmp_path / "teacher")
    logits = predict(teacher, data, Ctx())
    shuffled = np.random.default_rng(0).permutation(60)
    file = store(tmp_path / "said.jsonl", shuffled, logits[shuffled], "logits")
    given = {"student": {"config": VIT}, "data": DATA, "epochs": 1, "seed": 3}
    live = apply("distill/kd", teacher=teacher, out=tmp_path / "live", **given)
    stored = apply("distill/kd", teacher={"predictions": file}, out=tmp_path / "stored", **given)
    assert (live.path / "model.safetensors").read_bytes() == (stored.path / "model.safetensors").read_bytes()


def test_probabilities_become_their_logarithms(tmp_path):
    probs = np.random.default_rng(1).dirichlet(np.ones(10), 60)
    model = open_model(Source({"predictions": store(tmp_path / "p.jsonl", range(60), probs)}), Ctx())
    np.testing.assert_allclose(np.exp(predict(model, open_table(Source(DATA), Ctx()), Ctx())), probs, rtol=1e-5)
    assert model.labels == 10


def test_estimator_teaches(tmp_path):
    from sklearn.linear_model import LogisticRegression

    data = open_table(Source({"data": "sklearn:digits"}), Ctx())
    x = np.asarray(data.dataset["x"], dtype=np.float32) / 16
    teacher = LogisticRegression(max_iter=500).fit(x, data.labels())
    said = predict(open_model(Source(teacher), Ctx()), data, Ctx())
    np.testing.assert_allclose(np.exp(said), teacher.predict_proba(x), atol=1e-5)
    student = apply("distill/kd", teacher=teacher, student={"config": VIT}, data={"data": "sklearn:digits"}, alpha=1.0, epochs=8, lr=5e-3,
                    out=tmp_path / "student")  # fmt: skip
    agreement = (predict(student, data, Ctx()).argmax(1) == said.argmax(1)).mean()
    assert agreement > 0.5, agreement
    other = LogisticRegression(max_iter=500, C=0.01).fit(x, data.labels())
    assert open_model(Source(teacher), Ctx()).fingerprint() != open_model(Source(other), Ctx()).fingerprint()


@pytest.mark.parametrize(
    "rows, form, code",
    [
        ([[0.5, 0.5], [1.0]], "probs", "input.shape"),
        ([[0.5, float("nan")]], "logits", "input.nan"),
        ([[1.5, -0.5]], "probs", "input.format"),
        ([[0.5, 0.5]], "guess", "input.missing"),
    ],
)
def test_damaged_predictions_are_refused(tmp_path, rows, form, code):
    file = store(tmp_path / "p.jsonl", range(len(rows)), rows, form).replace("NaN", "null")
    with pytest.raises(InterfuseError) as caught:
        open_model(Source({"predictions": file}), Ctx())
    assert caught.value.code == code


def test_what_stored_predictions_cannot_do(tmp_path):
    uniform = np.full((60, 10), 0.1)
    file = {"predictions": store(tmp_path / "p.jsonl", range(60), uniform)}
    few = {"predictions": store(tmp_path / "few.jsonl", range(59), uniform[:59])}
    twice = {"predictions": store(tmp_path / "twice.jsonl", [0] * 60, uniform)}
    student = {"config": VIT}
    for method, teacher, code in [("mix-kd", file, "needs.capability"), ("fitnets", file, "needs.capability"),
                                  ("kd", few, "input.missing"), ("kd", twice, "input.duplicate")]:  # fmt: skip
        with pytest.raises(InterfuseError) as caught:
            apply(f"distill/{method}", teacher=teacher, student=student, data=DATA, epochs=1, out=tmp_path / "out")
        assert caught.value.code == code, method
    with pytest.raises(InterfuseError) as caught:
        apply("distill/none", student=file, data=DATA, out=tmp_path / "out")
    assert caught.value.code == "input.type"
    assert not (tmp_path / "out").exists()
