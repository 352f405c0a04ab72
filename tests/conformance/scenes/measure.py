"""The measure room: one model against two sources, classifiers of images or language models."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conformance.cases import Case
from tests.conformance.fixtures import (
    CLASSES,
    READINGS,
    VISION,
    Bad,
    Scene,
    digits,
    image_model,
    image_table,
    room,
    untrained,
)
from tests.tiny_models import words

#: check -> why no measure can be asked it
NOT_APPLICABLE = {
    "resume_equals_one_go": "a report is made in one go, from predictions that take seconds",
    "dtype_kept": "a report holds statistics, not tensors of its inputs",
}


def held_out(path: Path) -> str:
    """A parquet file of 60 digits that no tiny model was trained on."""
    from datasets import Dataset

    file = path / "held-out.parquet"
    if not file.is_file():
        images, labels = digits(20)
        rows = [i for c in range(CLASSES) for i in [j for j, y in enumerate(labels) if y == str(c)][10:]]
        Dataset.from_dict({"image": images[rows].tolist(), "label": [labels[i] for i in rows], "id": [f"h{i}" for i in rows]}).to_parquet(file)  # fmt: skip
    return str(file)


@room("measure")
def measure(case: Case, shared: Path) -> Scene:
    """One model against two sources."""
    if case.inputs:
        return language(case, shared / "language")
    path = shared / "images"
    model, *sources = [image_model(path, name, number) for number, name in enumerate(VISION)]
    image_table(path)
    given = {"models": [model], "against": sources, "data": held_out(path), **case.given}

    def in_memory() -> dict[str, Any]:
        from datasets import Dataset
        from transformers import AutoModelForImageClassification

        modules = [AutoModelForImageClassification.from_pretrained(folder).train() for folder in (model, *sources)]
        return {**given, "models": modules[:1], "against": modules[1:], "data": Dataset.from_parquet(given["data"], keep_in_memory=True)}  # fmt: skip

    strange = untrained(READINGS["images"], path, "vit", "strange", num_labels=CLASSES + 1)
    bad = {
        "refuses_wrong_shape": [Bad("model of another class count", {"models": [strange]}, ("input.shape",)),
                                Bad("source of another class count", {"against": [strange]}, ("input.shape",))],
        "refuses_empty": [Bad("table of no rows", {"data": image_table(path, "empty")}, ("input.empty",))],
        "one_row": [Bad("table of one row", {"data": image_table(path, "one")}, ("input.empty", "input.shape"))],
        "refuses_nan": [Bad("NaN in a picture", {"data": image_table(path, "nan")}, ("input.nan",))],
        "refuses_duplicates": [Bad("an id twice", {"data": image_table(path, "twice")}, ("input.duplicate",)),
                               Bad("a model twice", {"models": [model, model]}, ("input.duplicate",)),
                               Bad("a source measured against itself", {"models": sources}, ("input.duplicate",))],
        "refuses_missing_input": [Bad("no model", {"models": None}, ("param.missing",)), Bad("no data", {"data": None}, ("param.missing",))],
    }  # fmt: skip
    return Scene(
        given,
        in_memory,
        path,
        _numbers_of_report,
        bad,
        compare=lambda oracle: COMPARED[case.slug](case, given, oracle),
        tolerance=1e-9,
        not_applicable=NOT_APPLICABLE,
    )


# ------------------------------------------------------------------------------------------------ language models

VOCABULARY = ["the", "a", "red", "blue", "cat", "dog", "bird", "sees", "likes", "runs", "and", "not"]


def question_table(path: Path, kind: str, change: str = "") -> str:
    """A JSONL file of 30 texts, or of prompts with two to four choices or one answer; whole or with a fault."""
    file = path / f"{kind}{'-' + change if change else ''}.jsonl"
    if not file.is_file():
        rng, rows = np.random.Generator(np.random.Philox(5)), []
        for i in range(30):
            said = [VOCABULARY[k] for k in rng.permutation(len(VOCABULARY))]
            row: dict[str, Any] = {"id": f"q{i}"}
            if kind == "texts":
                row["text"] = " ".join(said[: 3 + i % 4])
            elif kind == "answers":
                row |= {"prompt": " ".join(said[:4]), "label": said[4]}
            else:
                row |= {"prompt": " ".join(said[:4]), "choices": said[4 : 6 + i % 3], "label": str(i % 2)}
            rows.append(row)
        if change == "twice":
            rows[11]["id"] = rows[3]["id"]
        rows = rows[:1] if change == "one" else rows
        path.mkdir(parents=True, exist_ok=True)
        file.write_text("" if change == "empty" else "\n".join(json.dumps(r) for r in rows) + "\n")
    return str(file)


def speaker(path: Path, name: str) -> str:
    """A tiny Llama that reads whole words; ``broken`` holds a NaN."""
    place = path / f"words-{name}"
    if not place.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        words(path, name, VOCABULARY)
        if name == "broken":
            import safetensors.torch

            file = place / "model.safetensors"
            tensors = safetensors.torch.load_file(file)
            tensors["model.norm.weight"][3] = float("nan")
            safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    return str(place)


def language(case: Case, path: Path) -> Scene:
    """A language model against two sources."""
    model, *sources = [speaker(path, name) for name in ("fused", "one", "two")]
    given = {"models": [model], "against": sources, "data": question_table(path, case.inputs), **case.given}

    def in_memory() -> dict[str, Any]:
        from datasets import Dataset

        from interfuse.core.ctx import Ctx
        from interfuse.core.rooms import Source
        from interfuse.data.lm import open_lm

        lms = [open_lm(Source(folder), Ctx()) for folder in (model, *sources)]
        return {
            **given,
            "models": lms[:1],
            "against": lms[1:],
            "data": Dataset.from_json(given["data"], keep_in_memory=True),
        }

    classifier = image_model(path.parent / "images", "vit", 0)
    bad = {
        "refuses_wrong_shape": [Bad("a model that reads pictures", {"models": [classifier]}, ("input.type",))],
        "refuses_empty": [Bad("table of no rows", {"data": question_table(path, case.inputs, "empty")}, ("input.empty", "input.format"))],
        "one_row": [Bad("table of one row", {"data": question_table(path, case.inputs, "one")}, ("input.empty",))],
        "refuses_nan": [Bad("NaN in a model", {"models": [speaker(path, "broken")]}, ("input.nan",))],
        "refuses_duplicates": [Bad("an id twice", {"data": question_table(path, case.inputs, "twice")}, ("input.duplicate",)),
                               Bad("a model twice", {"models": [model, model]}, ("input.duplicate",)),
                               Bad("a source measured against itself", {"models": sources}, ("input.duplicate",))],
        "refuses_missing_input": [Bad("no model", {"models": None}, ("param.missing",)), Bad("no data", {"data": None}, ("param.missing",))],
    }  # fmt: skip
    return Scene(
        given,
        in_memory,
        path,
        _numbers_of_report,
        bad,
        compare=lambda oracle: _language_oracle(case, given, oracle),
        tolerance=1e-5,
        not_applicable=NOT_APPLICABLE,
    )


def _language_oracle(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """The figures that need no draws, beside the oracle's, which reads each text alone with ``transformers``."""
    from interfuse.core.ctx import Ctx
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room, prepare

    engine: ModuleType = importlib.import_module("interfuse.measure.room")
    call = prepare(load_room("measure"), load(case.method), given, Ctx(seed=7))
    figures = call.method.target(engine.predictions(call), ctx=call.ctx, **call.params).figures
    folders = {Path(f).name: f for f in [*given["against"], *given["models"]]}
    rows = [json.loads(line) for line in Path(given["data"]).read_text().splitlines()]
    pairs = []
    for m in figures["models"]:
        ours = (
            {"bits": m["bits_per_byte"]["mean"]}
            if case.inputs == "texts"
            else {
                k: v["mean"]
                for k, v in m["scores"].items()
                if k in ("accuracy", "nll", "tokens", "cut_off", "reflective")
            }
        )
        said = oracle(folders[m["name"]], rows, **case.given)
        assert set(ours) == set(said)
        pairs += [(f"{m['name']}: {key}", value, said[key]) for key, value in ours.items()]
    return pairs


def _numbers_of_report(folder: Path) -> dict[str, NDArray[Any]]:
    """Every number of the per-item log and of the report, as pandas' and Python's own readers give them."""
    import pyarrow.parquet

    numbers: list[float] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                walk(item)
        elif isinstance(value, int | float):
            numbers.append(float(value))

    walk(json.loads((folder / "report.json").read_text()))
    log = pyarrow.parquet.read_table(folder / "items.parquet")
    columns = {n: log[n].to_numpy() for n in log.column_names if str(log[n].type) in ("int64", "double", "bool")}
    return {"report.json": np.array(numbers), **columns}


def _flips_oracle(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """The flips of logits that two seeds changed, beside the oracle's."""
    seen, call = _changed_by_seeds(case, given)
    figures = call.method.target(seen, ctx=call.ctx, **call.params).figures
    said = oracle({c.name: c.logits.tolist() for c in seen.contenders}, seen.labels.tolist(), len(seen.classes))
    pairs = []
    for p in figures["pairs"]:
        head = f"{p['model']} against {p['baseline']}"
        ours = {"positive": p["rho_pos"]["mean"], "negative": p["rho_neg"]["mean"], "classes": [r["flips"] for r in p["per_class"]],
                "entropy": p["entropy"], "half": [seen.classes.index(name) for name in p["expertise"]["0.5"]]}  # fmt: skip
        pairs += [(f"{head}: {key}", value, said[f"{head}: {key}"]) for key, value in ours.items()]
    assert all(p["rho_pos"]["mean"] > 0 for p in figures["pairs"])
    return pairs


def _cka_oracle(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """The likeness of every two layers, of which ``transformers``' own modules gave the features, and the penultimate ones as the
    classifier reads them."""
    import pyarrow.parquet
    import torch
    from transformers import AutoModelForImageClassification

    import interfuse

    read = interfuse.measure.cka(**given).read()
    rows = pyarrow.parquet.read_table(given["data"]).to_pylist()
    x = torch.tensor([r["image"] for r in sorted(rows, key=lambda r: r["id"])]).float().unsqueeze(1)

    def features(folder: str, names: list[str]) -> dict[str, list[list[float]]]:
        module, found = AutoModelForImageClassification.from_pretrained(folder).eval(), {}
        for name in names:
            last = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1]
            if name == "penultimate":
                last.register_forward_pre_hook(lambda _, args: found.__setitem__("penultimate", args[0]))
            else:
                module.get_submodule(name).register_forward_hook(
                    lambda _, __, out, name=name: found.__setitem__(
                        name, out if isinstance(out, torch.Tensor) else out[0]
                    )
                )
        with torch.no_grad():
            module(pixel_values=x)
        return {name: f.double().flatten(1).tolist() for name, f in found.items()}

    folders, pairs = {Path(f).name: f for f in [*given["models"], *given["against"]]}, []
    for p in read["pairs"]:
        ours, theirs = (
            features(folders[p["model"]], p["layers"]),
            features(folders[p["baseline"]], p["baseline_layers"]),
        )
        for i, layer in enumerate(p["layers"]):
            for j, other in enumerate(p["baseline_layers"]):
                if (i + j) % 2 == 0:  # the oracle is slow
                    name = f"{p['model']} {layer}, {p['baseline']} {other}"
                    pairs.append((name, p["cka"][i][j], oracle(ours[layer], theirs[other], given["batch"])))
    return pairs


def _changed_by_seeds(case: Case, given: Mapping[str, Any]) -> tuple[Any, Any]:
    """What two seeds saw of models whose logits differ between them, and the call."""
    from interfuse.core.ctx import Ctx
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room, prepare

    engine: ModuleType = importlib.import_module("interfuse.measure.room")
    call = prepare(load_room("measure"), load(case.method), given, Ctx(seed=7))
    call = dataclasses.replace(call, seeds=(7, 8), replicas=(call.inputs, call.inputs))
    seen = engine.predictions(call)
    noise = Ctx(seed=7).rng("oracle")  # models from folders are the same under every seed: here they shall not be
    changed = [dataclasses.replace(c, logits=c.logits + noise.normal(size=c.logits.shape)) for c in seen.contenders]
    return dataclasses.replace(seen, contenders=tuple(changed)), call


def _measure_oracle(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """The report's figures that need no draws, beside what the oracle says of the same logits under two seeds."""
    seen, call = _changed_by_seeds(case, given)
    figures = call.method.target(seen, ctx=call.ctx, **call.params).figures
    said = oracle({c.name: c.logits.tolist() for c in seen.contenders}, seen.labels.tolist(), call.params["bins"])
    pairs = [(key, m["scores"][score]["mean"], said[key]) for m in figures["models"] for score in m["scores"]
             if (key := f"{m['name']}: {score}") in said]  # fmt: skip
    for c in figures["comparisons"]:
        head = f"{c['model']} against {c['baseline']}"
        pairs += [
            (f"{head}: {part}", c[part]["items"], said[f"{head}: {part}"])
            for part in ("gained", "kept", "lost", "never")
        ]
        pairs.append((f"{head}: McNemar", c["mcnemar_p"], said[f"{head}: McNemar"]))
        delta = (said[f"{head}: gained"] - said[f"{head}: lost"]) / c["n"]
        pairs.append((f"{head}: difference", c["delta"]["mean"], delta))
    return pairs


#: how a classifiers' method is held against its oracle
COMPARED = {"classification": _measure_oracle, "flips": _flips_oracle, "cka": _cka_oracle}
