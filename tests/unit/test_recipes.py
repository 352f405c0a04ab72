"""Recipes that ship: each can be planned, and the one for a user's own files is run on models and tables made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from interfuse.core import index
from interfuse.core.artifact import verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.recipe import load_recipe
from interfuse.core.run import make_plan, run
from interfuse.core.safe import load_yaml

RECIPES = [entry for entry in index.entries().values() if entry.kind == "recipe"]
LOCAL = index.shipped("recipes") / "local-models.yaml"


def test_every_recipe_has_a_card_and_every_card_a_recipe() -> None:
    folder = index.shipped("recipes")
    with_cards = {entry.recipe_path for entry in RECIPES}
    assert set(folder.rglob("*.yaml")) == with_cards
    assert {path.with_suffix(".yaml") for path in folder.rglob("*.md")} == with_cards


@pytest.mark.parametrize("entry", RECIPES, ids=lambda e: e.slug)
def test_a_recipe_is_read_and_says_what_it_takes_and_makes(entry: index.Entry) -> None:
    assert entry.recipe_path is not None
    recipe = load_recipe(entry.recipe_path)
    assert all(index.find(step.use).kind == "method" for step in recipe.steps)
    assert entry.card.takes
    assert entry.card.makes
    assert entry.card.body.strip()


ELEVEN = ("tgeo-kd", "mix-kd", "trg", "kd3", "dhkd", "nd-kd", "fantastic-gains", "hard", "diswot", "ofa-kd", "bd-kd")
PAPERS = [index.find(f"recipes/distill-{slug}") for slug in ELEVEN]


@pytest.mark.parametrize("entry", PAPERS, ids=lambda e: e.slug)
def test_a_papers_recipe_is_planned_with_its_method_its_baselines_and_a_measurement(
    entry: index.Entry, tmp_path: Path
) -> None:
    assert entry.recipe_path is not None
    plan = make_plan(load_recipe(entry.recipe_path), tmp_path, Ctx())
    made = [row["method"] for row in plan.rows()]
    assert f"distill/{entry.slug.removeprefix('distill-')}" in made
    assert "measure/classification" in made
    assert made.count("distill/none") >= 5, "five seeds of a teacher"


@pytest.mark.slow
def test_a_papers_recipe_runs(tmp_path: Path) -> None:
    """Shortened: one seed, two epochs."""
    text = (index.shipped("recipes") / "distill/nd-kd.yaml").read_text()
    assert "seeds: [0, 1, 2, 3, 4]" in text
    short = text.replace("seeds: [0, 1, 2, 3, 4]", "seeds: [0]").replace("epochs: 30", "epochs: 2")
    recipe = tmp_path / "nd-kd.yaml"
    recipe.write_text(short)
    made = run(recipe, tmp_path / "out")
    report = json.loads((made["report"] / "report.json").read_text())
    assert {c["baseline"] for c in report["comparisons"]} == {"labels-alone", "kd", "dkd"}


def test_local_models_names_what_is_not_there_yet() -> None:
    with pytest.raises(InterfuseError) as caught:
        make_plan(load_recipe(LOCAL), Path("nowhere"), Ctx())
    assert caught.value.code == "input.missing"
    assert str(LOCAL.parent / "models/first") in str(caught.value) or "images" in str(caught.value)


def faster(text: str) -> str:
    """The recipe with one seed and few epochs: every other line as it ships."""
    assert "seeds: [0, 1, 2]" in text
    assert text.count("epochs: 30") == 2
    return text.replace("seeds: [0, 1, 2]", "seeds: [0]").replace("epochs: 30", "epochs: 16")


def trained(
    folder: Path, config: dict[str, Any], data: dict[str, Any], task: str, tokenizer: Path | None = None
) -> None:
    """A model folder as a user would have it: trained elsewhere, without Interfuse's own file."""
    from interfuse.core.rooms import apply

    student: dict[str, Any] = {"config": config, "task": task}
    if tokenizer is not None:
        student["tokenizer"] = str(tokenizer)
    apply("distill/none", student=student, data=data, epochs=24, batch_size=16, lr=3e-3, out=folder)
    (folder / "interfuse.json").unlink()
    (folder / "training.csv").unlink()


def write_digits(folder: Path) -> None:
    """400 of scikit-learn's digits as PNG files of 8 x 8 pixels, one folder per class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for number, (image, label) in enumerate(zip(bunch.images[:400], bunch.target[:400], strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(place / f"{number:04}.png")


def read_report(work: Path) -> dict[str, Any]:
    place = work / "out" / "steps" / "report" / "all"
    verify(place)
    assert (place / "report.html").stat().st_size > 1000
    found: dict[str, Any] = json.loads((place / "report.json").read_text())
    return found


@pytest.mark.slow
def test_local_models_on_images_from_disk(tmp_path: Path) -> None:
    """A ViT and a ConvNeXt that each know some classes best teach a ResNet, from PNG files in class folders."""
    write_digits(tmp_path / "images")
    shared = {"num_channels": 3, "image_size": 8, "num_labels": 10}
    vit = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 64, "patch_size": 2, **shared}  # fmt: skip
    convnext = {
        "model_type": "convnext",
        "patch_size": 2,
        "num_stages": 2,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        **shared,
    }
    data = {"data": str(tmp_path / "images"), "split": {"rest": 0.6, "own": 0.4}, "split_seed": 7, "take": "own"}
    trained(tmp_path / "models/first", vit, {**data, "classes": [0, 1, 2, 3, 4, 5]}, "image-classification")
    trained(tmp_path / "models/second", convnext, {**data, "classes": [4, 5, 6, 7, 8, 9]}, "image-classification")
    recipe = tmp_path / "local-models.yaml"
    recipe.write_text(faster(LOCAL.read_text()))
    made = run(recipe, tmp_path / "out")
    assert (made["student"] / "model.safetensors").is_file()
    report = read_report(tmp_path)
    assert report["n"] == 161
    assert report["seeds"] == [0]
    named = {m["name"]: m for m in report["models"]}
    assert set(named) == {"student", "alone", "first", "second", "ensemble of sources"}
    for source in ("first", "second"):  # a specialist is right on its own classes and cannot be on the others
        assert 0.2 < named[source]["scores"]["accuracy"]["mean"] < 0.75
    assert named["student"]["scores"]["accuracy"]["mean"] > 0.3
    pairs = {(c["model"], c["baseline"]) for c in report["comparisons"]}
    assert {("student", "first"), ("student", "second"), ("alone", "first")} <= pairs


WORDS = {"good": ["fine", "great", "warm", "clear", "kind"], "bad": ["poor", "cold", "late", "rude", "dull"]}


def write_reviews(path: Path) -> None:
    """200 short texts whose class is told by half of their words."""
    rng = Ctx(seed=1).rng("reviews")
    neutral = ["the", "room", "was", "and", "very", "staff"]
    rows = ["body,stars"]
    for number in range(200):
        stars = "bad" if number % 2 else "good"
        words = [*rng.choice(WORDS[stars], 3), *rng.choice(neutral, 4)]
        rows.append(f"{' '.join(rng.permutation(words))},{stars}")
    path.write_text("\n".join(rows) + "\n")


def write_tokenizer(folder: Path) -> int:
    """A word-level BERT tokenizer over the words of the reviews; the size of its vocabulary."""
    from transformers import BertTokenizerFast

    known = [*WORDS["good"], *WORDS["bad"], "the", "room", "was", "and", "very", "staff"]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return len(vocabulary)


def test_local_models_on_texts_from_a_csv_file(tmp_path: Path) -> None:
    """The sources the card gives for texts, in the same recipe."""
    write_reviews(tmp_path / "reviews.csv")
    size = write_tokenizer(tmp_path / "tokenizer")
    config = {"model_type": "bert", "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 64, "max_position_embeddings": 32, "num_labels": 2}  # fmt: skip
    data = {"data": str(tmp_path / "reviews.csv"), "columns": {"text": "body", "label": "stars"}, "limit": 80}
    for name, width in (("first", 64), ("second", 48)):
        trained(tmp_path / "models" / name, {**config, "intermediate_size": width}, data, "text-classification",
                tmp_path / "tokenizer")  # fmt: skip
    shutil.rmtree(tmp_path / "tokenizer")  # the models' folders are enough
    lines = LOCAL.read_text().split("\n")
    block = LOCAL.with_suffix(".md").read_text().split("```yaml\n")[1].split("```")[0]
    sources, _ = load_yaml(block, where="card")
    kept = faster("\n".join(line for line in lines if not line.startswith("    ")))
    for name, value in sources.items():
        old = next(line for line in kept.split("\n") if line.startswith(f"  {name}:"))
        kept = kept.replace(old, f"  {name}: {json.dumps(value)}")
    recipe = tmp_path / "texts.yaml"
    recipe.write_text(kept)
    made = run(recipe, tmp_path / "out")
    assert (made["student"] / "tokenizer_config.json").is_file()
    report = read_report(tmp_path)
    assert report["data"]["classes"] == ["bad", "good"]
    assert report["n"] == 80
    assert {m["name"]: m["scores"]["accuracy"]["mean"] for m in report["models"]}["student"] > 0.8
