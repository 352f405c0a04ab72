"""What a distillation reads: layers of any model by name, tables of any format, images of any size, plain modules."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Source, apply, load_room, prepare
from interfuse.data.images import Normalisation
from interfuse.data.models import build, open_model
from interfuse.data.tables import open_table
from interfuse.distill import room as engine
from interfuse.kit.encode import Encoder, forward, predict
from interfuse.kit.taps import Taps, as_vector, layer_names
from tests import tiny_texts
from tests.conformance.fixtures import VISION, digits, image_model, image_table
from tests.conformance.workspace import object_digest, quiet_threads


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with quiet_threads():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def cnn() -> torch.nn.Module:
    """A plain network on 8 x 8 grey images."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(96, 6),
    )  # fmt: skip


def mlp() -> torch.nn.Module:
    """A plain network on four features."""
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    )


def started(method: str, **given: Any) -> tuple[Any, Any]:
    """A distillation before its first step, and its hooks."""
    call = prepare(load_room("distill"), load("distill/" + method), given, Ctx(seed=3))
    hooks = engine._hooks(call)
    return engine.start(call, hooks), hooks


# ------------------------------------------------------------------------------------------------ layers by name


class Mixing(torch.nn.Module):
    """A block of an MLP-Mixer: over places, then over channels."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)])
        self.places, self.channels = torch.nn.Linear(places, places), torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        found: torch.Tensor = x + self.channels(torch.nn.functional.gelu(self.norms[1](x)))
        return found


class Mixer(torch.nn.Module):
    """A small MLP-Mixer on 8 x 8 grey images in patches of 2 x 2."""

    def __init__(self, width: int = 12, depth: int = 4, classes: int = 6) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(1, width, 2, stride=2)
        self.blocks = torch.nn.ModuleList([Mixing(16, width) for _ in range(depth)])
        self.head = torch.nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.head(x.mean(dim=1))
        return found


PIXELS = {"pixel_values": torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)}
TOKENS = {
    "input_ids": torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2]]),
    "attention_mask": torch.ones(2, 4, dtype=torch.int64),
}
NUMBERS = {"x": torch.linspace(-1, 1, 8).reshape(2, 4)}
#: name -> (model source, inputs, a glob and what it matches, penultimate shape, shapes of the automatic layers)
MODELS: dict[str, tuple[Any, Mapping[str, torch.Tensor], str, list[str], tuple[int, ...], list[tuple[int, ...]]]] = {
    "resnet": ({"config": VISION["resnet"]}, PIXELS, "resnet.encoder.stages.?", ["resnet.encoder.stages.0", "resnet.encoder.stages.1"],
               (2, 16), [(2, 8, 2, 2), (2, 16, 1, 1)]),
    "vit": ({"config": VISION["vit"]}, PIXELS, "vit.layers.*.layernorm_after", ["vit.layers.0.layernorm_after", "vit.layers.1.layernorm_after"], (2, 16), [(2, 5, 16), (2, 5, 16)]),
    "convnext": ({"config": VISION["convnext"]}, PIXELS, "convnext.encoder.stages.*.layers.0",
                 ["convnext.encoder.stages.0.layers.0", "convnext.encoder.stages.1.layers.0"], (2, 16), [(2, 8, 4, 4), (2, 16, 2, 2)]),
    "bert": ({"config": tiny_texts.BERT, "task": "text-classification"}, TOKENS, "bert.encoder.layer.[01]",
             ["bert.encoder.layer.0", "bert.encoder.layer.1"], (2, 16), [(2, 4, 16), (2, 4, 16)]),
    "mixer": (Mixer(), PIXELS, "blocks.?", [f"blocks.{i}" for i in range(4)], (2, 12), [(2, 16, 12)] * 4),
    "pvt": ({"config": {"model_type": "pvt", "image_size": 8, "num_channels": 1, "num_labels": 6, "num_encoder_blocks": 2, "patch_sizes": [4, 2],
                        "strides": [4, 2], "hidden_sizes": [8, 16], "depths": [1, 2], "num_attention_heads": [1, 1], "mlp_ratios": [2, 2],
                        "sequence_reduction_ratios": [1, 1]}}, PIXELS, "pvt.encoder.block.*.0", ["pvt.encoder.block.0.0", "pvt.encoder.block.1.0"],
            (2, 16), [(2, 4, 8), (2, 2, 16)]),
    "poolformer": ({"config": {"model_type": "poolformer", "num_channels": 1, "num_labels": 6, "num_encoder_blocks": 2, "patch_sizes": [2, 2],
                               "strides": [2, 2], "padding": [0, 0], "hidden_sizes": [8, 16], "depths": [1, 2], "mlp_ratio": 2.0}}, PIXELS, "poolformer.encoder.block.*.0",
                   ["poolformer.encoder.block.0.0", "poolformer.encoder.block.1.0"], (2, 16), [(2, 8, 4, 4), (2, 16, 2, 2)]),
    "cnn": (cnn(), PIXELS, "[02]", ["0", "2"], (2, 96), []),
    "mlp": (mlp(), NUMBERS, "2", ["2"], (2, 5), [(2, 8), (2, 5), (2, 5), (2, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_tapped_by_glob_penultimate_and_auto(name: str) -> None:
    source, inputs, glob, hits, penultimate, automatic = MODELS[name]
    model = open_model(Source(source), Ctx())
    module = build(model, Ctx())
    if hits:
        assert layer_names(module, [glob]) == hits
    with Taps(module, ["penultimate", glob, "auto"]) as taps, torch.no_grad():
        logits = forward(module, model, inputs)
    assert taps.features["penultimate"].shape == penultimate
    head = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1]
    torch.testing.assert_close(head(taps.features["penultimate"]), logits)
    assert set(taps.features) == set(taps.names)
    chosen = layer_names(module, ["auto"])
    assert len(chosen) >= 2
    if automatic:
        assert [tuple(taps.features[n].shape) for n in chosen] == automatic
    for feature in taps.features.values():
        assert as_vector(feature).shape[0] == 2
        assert as_vector(feature).ndim == 2


class Several(torch.nn.Module):
    """A layer that gives what the test says, before a linear layer."""

    def __init__(self, gives: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Module()
        self.layer.forward = lambda x: gives(x)  # type: ignore[method-assign]
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        found: torch.Tensor = self.head(x)
        return found


@pytest.mark.parametrize(
    ("gives", "pattern", "expected"),
    [
        (lambda x: (x.sum(), 2 * x), "layer", 2.0),  # a loss before the feature
        (lambda x: (x, x[:, None].expand(-1, 3, -1)), "layer", 1.0),  # hidden states, attentions
        (
            lambda x: (x, x, (8, 8)),
            "layer",
            1.0,
        ),  # a last stage of Swin V2 or FocalNet: before and after no downsampling
        (lambda x: (x, 2 * x), "layer[1]", 2.0),
        (lambda x: {"loss": x.sum(), "hidden": 3 * x}, "layer", 3.0),
        (lambda x: (x, 2 * x), "layer", "needs.capability"),
        (lambda x: (x, 2 * x), "layer[2]", "param.value"),
        (lambda x: (x.sum(), None), "layer", "needs.capability"),
        (lambda x: x.sum(), "layer", "needs.capability"),
    ],
)
def test_one_of_several_tensors_is_taken_or_asked_for(gives: Any, pattern: str, expected: Any) -> None:
    module, x = Several(gives), NUMBERS["x"]
    with Taps(module, [pattern]) as taps:
        if isinstance(expected, str):
            with pytest.raises(InterfuseError) as caught:
                module(x)
            assert caught.value.code == expected
            assert "layer[" in caught.value.fix or "[0]" in caught.value.fix or "no tensor" in caught.value.what
        else:
            module(x)
            torch.testing.assert_close(taps.features[pattern], expected * x)


class Block(torch.nn.Module):
    """Twice what it is given, in whatever wrapping."""

    def __init__(self, wrap: Any = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.wrap = wrap or (lambda x: x)

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.weight * x)


class Towers(torch.nn.Module):
    """Embeddings in a list, a tower that is not used, and the one that is (``passes`` times over)."""

    def __init__(self, blocks: int = 2, passes: int = 1, wrap: Any = None) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleList([torch.nn.Embedding(9, 4), torch.nn.Embedding(9, 4)])
        self.vision, self.text = torch.nn.Module(), torch.nn.Module()
        if blocks > 1:
            self.vision.layers = torch.nn.ModuleList([Block(), Block()])
        self.text.layers = torch.nn.ModuleList([Block(wrap) for _ in range(blocks)])
        self.head, self.passes = torch.nn.Linear(4, 3), passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tables[0](x)
        for layer in [*self.text.layers] * self.passes:
            given = layer(h)
            while not isinstance(given, torch.Tensor):
                given = given[0]
            h = given
        found: torch.Tensor = self.head(h.mean(dim=1))
        return found


@pytest.mark.parametrize(
    ("module", "names", "times"),
    [
        (Towers(), ["text.layers.0", "text.layers.1"], [2, 4]),  # not the embeddings, not the tower that takes no part
        (Towers(blocks=1, passes=3), ["text.layers.0"], [8]),  # one block gone through again: its last pass
        (Towers(wrap=lambda x: ((x,), 2, 2)), ["text.layers.0", "text.layers.1"], [2, 4]),  # PVT v2: a tuple beside height and width
    ],
)  # fmt: skip
def test_automatic_layers_are_those_that_take_part(module: torch.nn.Module, names: list[str], times: list[int]) -> None:
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with Taps(module, ["auto", "penultimate"]) as taps:
        module(x)
        assert list(taps.shapes()) == [*names, "penultimate"]
        assert taps.chosen(["auto"]) == names
        for _ in range(2):  # in every pass, not only in the first
            for name, factor in zip(names, times, strict=True):
                torch.testing.assert_close(taps.features[name], factor * module.tables[0](x))
            x = x + 1
            module(x)
    assert not any(m._forward_hooks for m in module.modules())


def test_a_feature_whose_first_axis_is_not_the_batch_is_refused() -> None:
    module = Towers(wrap=lambda x: x.transpose(0, 2))
    with Taps(module, ["text.layers.0"]) as taps:
        module(torch.tensor([[1, 2, 3], [4, 5, 6]]))
        with pytest.raises(InterfuseError, match=r"needs\.capability") as caught:
            taps.shapes()
    assert "batch" in caught.value.what


FOR_TEXTS = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "fields", "layers"),
    [
        ("xlnet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, ["transformer.layer.0", "transformer.layer.1"]),
        ("squeezebert", {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
         ["transformer.encoder.layers.0.output", "transformer.encoder.layers.1.output"]),
    ],
)  # fmt: skip
def test_tokens_of_texts_are_turned_upright(kind: str, fields: dict[str, Any], layers: list[str]) -> None:
    """XLNet's blocks give [L, B, D], SqueezeBERT's, which are not called as modules, [B, D, L]."""
    source = {"config": {**FOR_TEXTS, **fields, "model_type": kind}, "task": "text-classification"}
    module = build(open_model(Source(source), Ctx()), Ctx())
    with Taps(module, ["auto", "penultimate"]) as taps, torch.no_grad():
        for batch, length in ((2, 7), (4, 5), (3, 3)):  # of a square one too, once it is known
            ids = torch.randint(1, 40, (batch, length), generator=torch.Generator().manual_seed(length))
            found = module(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            assert list(taps.shapes()) == [*layers, "penultimate"]
            for name, hidden in zip(layers, found.hidden_states[1:], strict=True):
                torch.testing.assert_close(
                    taps.features[name], hidden.transpose(0, 1) if len(hidden) != batch else hidden
                )
            assert taps.chosen(["auto"]) == layers
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"model_type": "albert", "vocab_size": 40, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}, 1),
        ({"model_type": "pvt_v2", "num_channels": 1, "image_size": 8, "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [3, 3],
          "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}, 2),
    ],
)  # fmt: skip
def test_families_with_shared_and_wrapped_blocks(config: dict[str, Any], count: int) -> None:
    texts = config["model_type"] == "albert"
    source = {"config": {**config, "num_labels": 3}, "task": "text-classification" if texts else "image-classification"}
    module = build(open_model(Source(source), Ctx()), Ctx())
    with Taps(module, ["auto"]) as taps, torch.no_grad():
        module(
            **({"input_ids": torch.ones(2, 5, dtype=torch.long)} if texts else {"pixel_values": torch.rand(2, 1, 8, 8)})
        )
        shapes = taps.shapes()
    assert [len(shape) for shape in shapes.values()] == [2] * count


def test_an_index_is_no_glob() -> None:
    module = build(open_model(Source({"config": tiny_texts.BERT, "task": "text-classification"}), Ctx()), Ctx())
    assert layer_names(module, ["bert.encoder.layer.[1]"]) == ["bert.encoder.layer.1"]
    assert layer_names(module, ["bert.encoder.layer.1[0]"]) == ["bert.encoder.layer.1[0]"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("deit", {"patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}),
     ("levit", {"image_size": 64, "num_channels": 3, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [4, 4, 4]})],
)  # fmt: skip
def test_families_of_several_classifiers_start_from_a_configuration(
    kind: str, fields: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    config = {"model_type": kind, "image_size": 8, "num_channels": 1, **fields}
    found = apply("distill/kd", student={"config": {**config, "num_labels": 6}}, teacher=[image_model(images, "vit", 0)],
                  data=image_table(images), epochs=1, out=tmp_path / "out")  # fmt: skip
    assert found.config["architectures"] == [
        {"deit": "DeiTForImageClassification", "levit": "LevitForImageClassification"}[kind]
    ]
    with pytest.raises(InterfuseError) as caught:
        apply("distill/none", student={"config": {**config, "hidden_sizes": [3], "num_hidden_layers": "two", "num_labels": 6}},
              data=image_table(images), epochs=1, out=tmp_path / "bad")  # fmt: skip
    assert caught.value.code == "param.value"


def test_taps_leave_nothing_behind() -> None:
    module = cnn()
    before = object_digest(module)
    with Taps(module, ["penultimate", "0", "auto"]), torch.no_grad():
        module(PIXELS["pixel_values"])
    assert object_digest(module) == before


def test_an_unknown_layer_is_refused_with_close_names() -> None:
    with pytest.raises(InterfuseError) as caught:
        layer_names(build(open_model(Source({"config": VISION["vit"]}), Ctx()), Ctx()), ["vit.layers.0.attentoin"])
    assert caught.value.code == "param.value"
    assert "attention" in caught.value.fix


def test_a_model_without_blocks_says_so() -> None:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = torch.nn.Bilinear(2, 2, 2)

    for pattern in ("auto", "penultimate"):
        with pytest.raises(InterfuseError) as caught:
            Taps(One(), [pattern])
        assert caught.value.code == "needs.capability"


# ------------------------------------------------------------------------------------------------ tables


def rows() -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[str]]:
    x = np.round(np.random.default_rng(5).normal(size=(30, 4)), 4)
    return x, [("left", "right", "up")[i % 3] for i in range(30)]


def write(path: Path, kind: str) -> dict[str, Any]:
    """The same 30 rows in a file of a kind, and the source that reads them."""
    x, labels = rows()
    names = [f"f{j}" for j in range(4)]
    table = [{**dict(zip(names, map(float, row), strict=True)), "side": y, "key": f"r{i}"} for i, (row, y) in enumerate(zip(x, labels, strict=True))]  # fmt: skip
    file = path / f"rows.{kind}"
    if kind in ("csv", "tsv"):
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(table[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(table)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        Dataset.from_list(table).to_parquet(file)
    return {"data": str(file), "columns": {"features": names, "label": "side", "id": "key"}}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_the_same_rows_in_any_format_train_the_same_student(kind: str, tmp_path: Path) -> None:
    import safetensors.torch

    student = mlp()
    weights = []
    for form in ("parquet", kind):
        made = apply("distill/none", student=student, data=write(tmp_path, form), epochs=2, batch_size=8, out=tmp_path / f"out-{form}")  # fmt: skip
        weights.append(safetensors.torch.load_file(made.path / "model.safetensors"))
    assert set(weights[0]) == set(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_folder_of_pictures_is_read_as_the_numbers_it_holds(images: Path, tmp_path: Path) -> None:
    pixels, labels = digits()
    whole = np.round(pixels * 255).astype(np.uint8)
    for i, (picture, label) in enumerate(zip(whole, labels, strict=True)):
        (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / label / f"{i:03}.png")
    table = open_table(Source({"data": str(tmp_path / "pictures")}), Ctx())
    assert table.classes == tuple("012345")
    model = open_model(Source(image_model(images, "convnext", 0)), Ctx())
    order = sorted(range(len(labels)), key=lambda i: (labels[i], i))
    memory = Dataset.from_dict({"image": (whole[order] / 255.0).tolist(), "label": [labels[i] for i in order]})
    np.testing.assert_allclose(predict(model, table, Ctx()), predict(model, open_table(Source(memory), Ctx()), Ctx()), rtol=1e-4, atol=1e-5)  # fmt: skip
    apply("distill/kd", teacher=[image_model(images, "convnext", 0)], student={"config": VISION["vit"]},
          data={"data": str(tmp_path / "pictures")}, epochs=1, out=tmp_path / "out")  # fmt: skip
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_teacher_and_student_may_see_images_of_other_sizes_and_channels(images: Path, tmp_path: Path) -> None:
    big = {**VISION["vit"], "image_size": 16, "num_channels": 3}
    apply("distill/none", student={"config": big}, data=image_table(images), epochs=1, out=tmp_path / "teacher")
    for cache in ("auto", "off"):
        made = apply("distill/kd", teacher=[str(tmp_path / "teacher")], student={"config": VISION["convnext"]},
                     data=image_table(images), epochs=1, teacher_cache=cache, out=tmp_path / cache)  # fmt: skip
        assert made.config["num_channels"] == 1
    table = open_table(Source(image_table(images)), Ctx())
    teacher = Encoder(open_model(Source(str(tmp_path / "teacher")), Ctx()), table).encode(np.arange(3))["pixel_values"]
    student = Encoder(open_model(Source({"config": VISION["convnext"]}), Ctx()), table).encode(np.arange(3))[
        "pixel_values"
    ]
    assert teacher.shape == (3, 3, 16, 16)
    assert student.shape == (3, 1, 8, 8)
    assert torch.equal(teacher[:, 0], teacher[:, 2])
    torch.testing.assert_close(teacher.mean(), student.mean(), rtol=0.05, atol=0.01)


#: name -> (class of transformers' processor, its settings)
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "halves": ("ViTImageProcessorPil", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}),
    "imagenet": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 8}, "crop_pct": 1.0, "do_resize": False,
                                               "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    "rescaled alone": ("ViTImageProcessorPil", {"do_normalize": False}),
    "whole numbers": ("ViTImageProcessorPil", {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0, 50.0, 40.0]}),
    "offset, twice": ("EfficientNetImageProcessorPil", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": True,
                                                        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
    "blue first": ("MobileViTImageProcessorPil", {"do_flip_channel_order": True, "do_center_crop": False, "size": {"shortest_edge": 8}}),
}  # fmt: skip


def colours() -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Dataset]:
    """Twelve colour pictures of 8 x 8, as bytes and as a table of two classes."""
    pixels = np.random.default_rng(2).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    pixels[:6, ..., 0] //= 4
    return pixels, Dataset.from_dict({"image": (pixels / 255.0).tolist(), "label": ["a"] * 6 + ["b"] * 6})


def with_processor(folder: Path, kind: str, model: str = "vit") -> tuple[Path, Any]:
    """The folder of an image model with a processor, and the processor."""
    import transformers

    name, settings = PROCESSORS[kind]
    made = getattr(transformers, name)(**{"size": {"height": 8, "width": 8}, **settings})
    config = {**VISION[model], "num_channels": 3, "num_labels": 2}
    place = folder / f"{model} {kind}"
    module: Any = build(open_model(Source({"config": config}), Ctx()), Ctx(seed=3))
    module.save_pretrained(place)
    made.save_pretrained(place)
    return place, made


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_model_reads_pictures_as_its_own_processor_makes_them(kind: str, tmp_path: Path) -> None:
    pixels, data = colours()
    place, processor = with_processor(tmp_path, kind)
    model, table = open_model(Source(str(place)), Ctx()), open_table(Source(data), Ctx())
    with torch.no_grad():
        theirs = build(model, Ctx())(**processor(list(pixels), return_tensors="pt")).logits
        raw = build(model, Ctx())(pixel_values=torch.from_numpy(pixels / 255.0).float().movedim(-1, 1)).logits
    found = torch.from_numpy(predict(model, table, Ctx()))
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found, raw, atol=1e-5) == (kind == "rescaled alone")


def test_networks_of_unlike_processors_read_one_picture_each_in_its_own_way(tmp_path: Path) -> None:
    _, data = colours()
    student, _ = with_processor(tmp_path, "halves")
    teacher, theirs = with_processor(tmp_path, "imagenet", "convnext")
    run, hooks = started("hard", teacher=[str(teacher)], student=str(student), data=data, augmentor="noise", noise=0.9)
    batch = engine.make_batch(run, np.arange(12), live=True)
    moved = hooks.augment(run, batch.student["pixel_values"], run.generator("here")).detach()
    assert 0 <= float(moved.min()) < 0.01 < 0.99 < float(moved.max()) <= 1  # pixels, not normalised numbers, are cut
    with torch.no_grad():
        said = hooks._teacher(run, batch, moved)
        expected = run.teachers[0](**theirs(list(moved), do_rescale=False, return_tensors="pt")).logits
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)
    run, hooks = started("mix-kd", teacher=[str(teacher)], student=str(student), data=data, fraction=1.0)
    mixed = hooks.batch(run, engine.make_batch(run, np.arange(12), live=True))
    assert torch.equal(mixed.student["pixel_values"], mixed.teachers[0]["pixel_values"])
    with torch.no_grad():
        (said,) = hooks.views(run, mixed).teachers
        shown = theirs(list(mixed.teachers[0]["pixel_values"]), do_rescale=False, return_tensors="pt")
        torch.testing.assert_close(said, run.teachers[0](**shown).logits, rtol=1e-4, atol=1e-5)


def test_what_a_processor_does_not_say_is_as_its_family_has_it(tmp_path: Path) -> None:
    for kind, expected in (
        ("ViTFeatureExtractor", Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("MobileViTImageProcessor", Normalisation(flip=True)),
    ):
        assert (
            Normalisation.read({"feature_extractor_type" if "Feature" in kind else "image_processor_type": kind})
            == expected
        )
    assert Normalisation.read({}).nothing


def test_a_trained_model_keeps_its_processor(tmp_path: Path) -> None:
    pixels, data = colours()
    student, processor = with_processor(tmp_path, "halves")
    made = apply("distill/none", student=str(student), data=data, epochs=1, out=tmp_path / "out")
    again = open_model(Source(str(tmp_path / "out")), Ctx())
    kept = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert kept == json.loads((student / "preprocessor_config.json").read_text())
    table = open_table(Source(data), Ctx())
    with torch.no_grad():
        theirs = build(again, Ctx())(**processor(list(pixels), return_tensors="pt")).logits
    for model in (made, again):
        np.testing.assert_allclose(predict(model, table, Ctx()), theirs, rtol=1e-4, atol=1e-5)
    merged = apply("merge/linear", models=[str(student), str(tmp_path / "out")], out=tmp_path / "merged")
    assert merged.processor == kept
    assert json.loads((tmp_path / "merged" / "preprocessor_config.json").read_text()) == kept


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"image_std": [0.5, 0.0, 0.5]}, "input.format"), ({"image_mean": None}, "input.format"), ({"image_mean": [0.5, 0.5]}, "input.shape")],
)  # fmt: skip
def test_a_processor_that_does_not_fit_is_refused(changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    place, _ = with_processor(tmp_path, "halves")
    file = place / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InterfuseError) as caught:
        apply("distill/none", student=str(place), data=colours()[1], epochs=1, out=tmp_path / "out")
    assert caught.value.code == code


# ------------------------------------------------------------------------------------------------ plain modules


def test_a_plain_module_is_trained_and_opens_trained(tmp_path: Path) -> None:
    student, teacher = mlp(), mlp()
    before = object_digest([student, teacher])
    table = write(tmp_path, "parquet")
    made = apply("distill/kd", teacher=[teacher], student=student, data=table, epochs=3, lr=1e-2, out=tmp_path / "out")
    assert object_digest([student, teacher]) == before
    trained = build(made, Ctx())
    assert not torch.equal(trained.state_dict()["0.weight"], student.state_dict()["0.weight"])
    assert predict(made, open_table(Source(table), Ctx()), Ctx()).shape == (30, 3)


def test_the_order_of_rows_in_a_file_is_kept(tmp_path: Path) -> None:
    table = open_table(Source(write(tmp_path, "csv")), Ctx())
    assert table.ids() == [f"r{i}" for i in range(30)]
    assert [table.classes[c] for c in table.labels()] == rows()[1]
    encoded = Encoder(open_model(Source(mlp()), Ctx()), table).encode(np.array([4, 2]))["x"]
    np.testing.assert_allclose(encoded, rows()[0][[4, 2]], rtol=1e-6)
