"""The pictures of the reports that methods write: their numbers stand in the CSV files beside them."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from interfuse.cli.reports import read_report
from interfuse.core.artifact import verify
from interfuse.core.rooms import apply
from interfuse.data.models import Model
from interfuse.data.tables import Table
from tests.distill_bars import CNN, made, trained
from tests.distill_bars import data as data
from tests.distill_bars import teacher as teacher

VIT = {"model_type": "vit", "num_channels": 1, "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
       "intermediate_size": 8, "num_labels": 4}  # fmt: skip


def plot(model: Model, name: str) -> list[dict[str, str]]:
    assert model.path is not None
    with (model.path / "plots" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def whole(model: Model) -> dict[str, Any]:
    """The report, whose page is self-contained and whose every picture has its numbers."""
    assert model.path is not None
    verify(model.path)
    report = read_report(model.path)
    assert report is not None
    html = (model.path / "report.html").read_text()
    assert html.count("<svg") >= 1
    assert "http-equiv" in html
    assert report["plots"]
    assert all((model.path / place).is_file() for place in report["plots"].values())
    return report


def test_fusion_ratios(data: Table, teacher: Model, tmp_path: Path) -> None:
    import pyarrow.parquet

    found = trained("tgeo-kd", data, teacher, tmp_path / "a", epochs=3, val_fraction=0.25)
    whole(found)
    assert found.path is not None
    table = pyarrow.parquet.read_table(found.path / "fusion_ratio.parquet").to_pandas()
    rows = plot(found, "fusion_ratio")
    assert {r["epoch"] for r in rows} == {"1", "2", "3"}
    for epoch in (1, 3):
        counted = sum(int(r["teacher_right"]) for r in rows if r["epoch"] == str(epoch))
        assert counted == int(table[table.epoch == epoch].teacher_correct.sum())


def test_reliability_of_student_and_teacher_on_examples_held_apart(data: Table, teacher: Model, tmp_path: Path) -> None:
    train, held = (dataclasses.replace(data, rows=data.rows[part]) for part in (slice(32), slice(32, None)))
    found = apply(
        "distill/bd-kd",
        student=made(CNN, 1),
        teacher=[made(CNN, 2)],
        data=train,
        validation=held,
        epochs=2,
        batch_size=16,
        out=tmp_path / "a",
    )
    report = whole(found)
    rows = plot(found, "reliability")
    assert {r["model"] for r in rows} == {"student", "teacher-0"}
    assert sum(int(r["n"]) for r in rows if r["model"] == "student") == 16
    ece = sum(
        int(r["n"]) / 16 * abs(float(r["accuracy"]) - float(r["confidence"])) for r in rows if r["model"] == "student"
    )
    assert float(report["table"]["rows"][0][2]) == pytest.approx(ece, abs=1e-3)
    without = apply(
        "distill/bd-kd",
        student=made(CNN, 1),
        teacher=[made(CNN, 2)],
        data=train,
        epochs=1,
        batch_size=16,
        out=tmp_path / "b",
    )
    assert without.path is not None
    assert not (without.path / "report.json").exists(), "calibration on what was trained on says nothing"


def test_scatter_of_candidates(data: Table, teacher: Model, tmp_path: Path) -> None:
    found = apply("distill/diswot", student={"config": VIT}, teacher=[teacher], data=data, space={"hidden_size": [8, 16]}, inits=1, score_batch=8,
                  epochs=1, batch_size=16, out=tmp_path / "a")  # fmt: skip
    whole(found)
    rows = plot(found, "ranking")
    assert len(rows) == 2
    assert float(rows[0]["score"]) >= float(rows[1]["score"])


def test_sheet_of_the_selected(data: Table, teacher: Model, tmp_path: Path) -> None:
    found = trained("kd3", data, teacher, tmp_path / "a", min_per_class=4)
    whole(found)
    assert [int(r["epoch"]) for r in plot(found, "kept")] == [1, 2]
    ids = set(data.ids())
    assert {r["id"] for r in plot(found, "selected")} <= ids


def test_the_same_training_writes_the_same_report(data: Table, teacher: Model, tmp_path: Path) -> None:
    one, other = (trained("hard", data, teacher, tmp_path / name, student_steps=2, examples=1) for name in ("a", "b"))
    assert one.path is not None
    assert other.path is not None
    assert (one.path / "report.html").read_bytes() == (other.path / "report.html").read_bytes()
    assert json.loads((one.path / "report.json").read_text())["method"] == "distill/hard"
