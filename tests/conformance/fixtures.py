"""Tiny inputs for every room, made by code. A room joins the battery by one function here, marked with its name.

The function gets a case and a folder in which it may keep what several cases share, and gives back a :class:`Scene`.
Called twice with the same folder it must give the same scene and make nothing again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from tests import tiny_texts
from tests.conformance.cases import Case
from tests.oracles.seen import Seen


class Killed(BaseException):
    """The process ends here, as far as the code under test can tell."""


@dataclass(frozen=True)
class Bad:
    """An input that must be refused: what is given instead (None: left out), and the codes that may name it.

    ``or_works``: it may also be done.
    """

    label: str
    given: Mapping[str, Any]
    codes: tuple[str, ...]
    or_works: bool = False


@dataclass(frozen=True)
class Scene:
    """What the battery needs to know about one case.

    Attributes:
        given: the room's inputs and the method's parameters, as :func:`interfuse.apply` takes them; inputs are paths.
        in_memory: the same, with objects in memory wherever the room accepts them.
        files: the folder whose files are the inputs.
        opens: opens the artifact as its ecosystem does and gives every number in it by name.
        dtype: of every floating tensor in the artifact; empty where the room has none.
        bad: check -> the inputs that it must see refused.
        interrupted: inside it, the work raises :class:`Killed` after some of it is kept. Work that goes on from there says
            so in its log ("resuming ...").
        resumed_with: settings that the work goes on under instead of those it began with; they change no byte.
        compare: an oracle -> pairs to be equal: (name, ours, the oracle's). tolerance: relative.
        not_applicable: check -> why it does not apply to the room.
    """

    given: Mapping[str, Any]
    in_memory: Callable[[], dict[str, Any]]
    files: Path
    opens: Callable[[Path], Mapping[str, NDArray[Any]]]
    bad: Mapping[str, Sequence[Bad]]
    interrupted: Callable[[], AbstractContextManager[Any]] | None = None
    compare: Callable[[Callable[..., Any]], Sequence[tuple[str, Any, Any]]] | None = None
    tolerance: float = 1e-6
    dtype: str = ""
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    resumed_with: Mapping[str, Any] = field(default_factory=dict)


SCENES: dict[str, Callable[[Case, Path], Scene]] = {}


def room(name: str) -> Callable[[Callable[[Case, Path], Scene]], Callable[[Case, Path], Scene]]:
    """Marks the function that furnishes a room."""

    def mark(function: Callable[[Case, Path], Scene]) -> Callable[[Case, Path], Scene]:
        SCENES[name] = function
        return function

    return mark


# ------------------------------------------------------------------------------------------------ images and models

CLASSES = 6
#: tiny architectures that read 8 x 8 grey images
VISION: dict[str, dict[str, Any]] = {
    "resnet": {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic", "downsample_in_first_stage": False, "num_labels": CLASSES},
    "vit": {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": CLASSES},
    "convnext": {"model_type": "convnext", "num_channels": 1, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16],
                 "depths": [1, 1], "image_size": 8, "num_labels": CLASSES},
}  # fmt: skip


@functools.cache
def digits(per_class: int = 10) -> tuple[NDArray[np.float64], list[str]]:
    """The first images of each of the first classes, [N, 8, 8] in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = np.sort(np.concatenate([np.flatnonzero(bunch.target == c)[:per_class] for c in range(CLASSES)]))
    return bunch.images[rows] / 16.0, [str(t) for t in bunch.target[rows]]


def image_table(path: Path, change: str = "") -> str:
    """A parquet file of 60 digits, whole or with a fault."""
    from datasets import Dataset

    file = path / f"digits{'-' + change if change else ''}.parquet"
    if not file.is_file():
        images, labels = digits()
        images, ids = images.copy(), [f"d{i}" for i in range(len(labels))]
        if change == "nan":
            images[37, 3, 3] = np.nan
        if change == "twice":
            ids[41] = ids[5]
        rows = Dataset.from_dict({"image": images.tolist(), "label": labels, "id": ids})
        if change in ("empty", "one"):
            rows = rows.select(range(change == "one"))
        path.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(file)
    return str(file)


def text_table(path: Path, change: str = "") -> str:
    """A parquet file of 60 sentences, whole or with a fault."""
    from datasets import Dataset

    file = path / f"sentences{'-' + change if change else ''}.parquet"
    if not file.is_file():
        body, labels = tiny_texts.sentences(60)
        ids = [f"s{i}" for i in range(60)]
        if change == "twice":
            ids[41] = ids[5]
        rows = Dataset.from_dict({"text": body, "label": labels, "id": ids})
        path.mkdir(parents=True, exist_ok=True)
        (rows.select(range(change == "one")) if change in ("empty", "one") else rows).to_parquet(file)
    return str(file)


def prompt_table(path: Path, change: str = "") -> str:
    """A parquet file of 60 sentences cut into prompt and response, whole or with a fault."""
    from datasets import Dataset

    file = path / f"prompts{'-' + change if change else ''}.parquet"
    if not file.is_file():
        body, _ = tiny_texts.sentences(60)
        ids = [f"s{i}" for i in range(60)]
        if change == "twice":
            ids[41] = ids[5]
        words = [text.split(" ", 1) for text in body]
        rows = Dataset.from_dict({"prompt": [w[0] for w in words], "response": [" " + w[1] for w in words], "id": ids})
        path.mkdir(parents=True, exist_ok=True)
        (rows.select(range(change == "one")) if change in ("empty", "one") else rows).to_parquet(file)
    return str(file)


@dataclass(frozen=True)
class Reading:
    """A kind of examples: tiny configurations that read it, what they are for, a table, the classes, the field to widen."""

    models: Mapping[str, Mapping[str, Any]]
    task: str
    auto: str
    table: Callable[[Path, str], str]
    classes: tuple[str, ...]
    width: str = "num_labels"


READINGS: dict[str, Reading] = {
    "images": Reading(VISION, "image-classification", "AutoModelForImageClassification", image_table, tuple("012345")),
    "texts": Reading({"bert": tiny_texts.BERT}, "text-classification", "AutoModelForSequenceClassification", text_table, ("no", "yes")),
    "tokens": Reading({"llama": tiny_texts.LLAMA}, "causal-lm", "AutoModelForCausalLM", text_table, ("no", "yes"), "vocab_size"),
    "prompts": Reading({"llama": tiny_texts.LLAMA}, "causal-lm", "AutoModelForCausalLM", prompt_table, (), "vocab_size"),
}  # fmt: skip


def source(reading: Reading, name: str, path: Path, **changes: Any) -> dict[str, Any]:
    """A configuration to start from, with a tokenizer where one is needed."""
    tokens = {} if reading.task.startswith("image") else {"tokenizer": str(tiny_texts.tokenizer(path / "tokenizer"))}
    return {"config": {**reading.models[name], **changes}, "task": reading.task, **tokens}


def trained(reading: Reading, path: Path, name: str, number: int) -> str:
    """The folder of a tiny model trained for two epochs."""
    from interfuse.core.rooms import apply

    folder = path / f"{name}-{number}"
    if not folder.is_dir():
        apply("distill/none", student=source(reading, name, path), data=reading.table(path, ""), epochs=2, batch_size=32, lr=3e-3,
              seed=100 + number, out=folder)  # fmt: skip
    return str(folder)


def untrained(reading: Reading, path: Path, name: str, label: str, **changes: Any) -> str:
    """The folder of a model that fits nothing: of another width, or (``label="nan"``) with NaN in a weight."""
    import torch

    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.models import build, open_model

    folder = path / f"{name}-{label}"
    if not folder.is_dir():
        module: Any = build(open_model(Source(source(reading, name, path, **changes)), Ctx()), Ctx())
        if label == "nan":
            with torch.no_grad():
                list(module.parameters())[-1].view(-1)[0] = float("nan")
        module.save_pretrained(folder)
    return str(folder)


def image_model(path: Path, name: str, number: int) -> str:
    """The folder of a tiny model trained for two epochs on the digits."""
    return trained(READINGS["images"], path, name, number)


def numbers_of_model(path: Path, auto: str) -> dict[str, NDArray[Any]]:
    """Every tensor of a model folder, as transformers loads it."""
    import transformers

    module, info = getattr(transformers, auto).from_pretrained(path, local_files_only=True, output_loading_info=True)
    strange = {key: names for key, names in info.items() if names}
    assert not strange, strange
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


# ------------------------------------------------------------------------------------------------ distill


@room("distill")
def distill(case: Case, shared: Path) -> Scene:
    """``inputs``: ``images``, ``texts`` (classified) or ``tokens`` (continued). ``teachers``: how many, or their
    architectures. ``student``: its architecture."""
    given = dict(case.given)
    kind = case.inputs or "images"
    reading, path = READINGS[kind], shared / kind
    known = list(reading.models)
    teachers, student = given.pop("teachers", 1), given.pop("student", known[0])
    names = [known[(i + 1) % len(known)] for i in range(teachers)] if isinstance(teachers, int) else teachers
    folders = [trained(reading, path, name, number) for number, name in enumerate(names)]
    start = source(reading, student, path)
    given = {
        "student": start,
        "data": reading.table(path, ""),
        "batch_size": 32,
        "epochs": 2,
        "lr": 3e-3,
        **given,
        **({"teacher": folders} if folders else {}),
    }
    return Scene(
        given,
        lambda: {**given, **_distill_in_memory(reading, start, folders, given["data"])},
        path,
        lambda folder: numbers_of_model(folder, reading.auto),
        _distill_bad(reading, path, student, folders),
        _killed_after_an_epoch,
        lambda oracle: _distill_oracle(case, given, oracle),
        dtype="float32",
    )


def _distill_in_memory(reading: Reading, start: dict[str, Any], folders: Sequence[str], data: str) -> dict[str, Any]:
    """Teachers, student and table as objects."""
    from datasets import Dataset

    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.models import build, open_model

    def held(spec: Any) -> Any:
        model = open_model(Source(spec), Ctx())
        tokenizer = Path(start["tokenizer"]) if "tokenizer" in start else None
        return dataclasses.replace(model, path=None, module=build(model, Ctx()).train(), tokenizer=tokenizer)

    student, teachers = held(start), [held(folder) for folder in folders]
    if reading.task.startswith("image"):  # without tokenizer a bare module will do
        student, teachers = student.module, [t.module for t in teachers]
    table = Dataset.from_parquet(data, keep_in_memory=True)
    return {"student": student, "data": table, **({"teacher": teachers} if teachers else {})}


def _distill_bad(reading: Reading, path: Path, student: str, folders: Sequence[str]) -> dict[str, list[Bad]]:
    table, wide = reading.table, {reading.width: int(reading.models[student][reading.width]) + 1}
    shape = ("input.vocabulary",) if reading.task == "causal-lm" else ("input.shape",)
    narrow = {reading.width: 5}
    some = len(folders)
    first = next(iter(reading.models))
    bad = {
        "refuses_wrong_shape": [Bad("student of another class count", {"student": source(reading, student, path, **(wide if some else narrow))},
                                    shape if some else ("input.shape",))],
        "refuses_empty": [Bad("table of no rows", {"data": table(path, "empty")}, ("input.empty",))],
        "one_row": [Bad("table of one row", {"data": {"data": table(path, "one"), "labels": list(reading.classes)}},
                        ("input.empty", "input.shape", "needs.capability", "run.failed"), or_works=True)],
        "refuses_nan": [Bad("NaN in a weight", {"student": {"model": untrained(reading, path, first, "nan"), **_tokens(reading, path)}},
                            ("input.nan",))],
        "refuses_duplicates": [Bad("an id twice", {"data": table(path, "twice")}, ("input.duplicate",))],
        "refuses_missing_input": [Bad("no student", {"student": None}, ("param.missing",)),
                                  Bad("no data", {"data": None}, ("param.missing",))],
    }  # fmt: skip
    if reading.task.startswith("image"):
        bad["refuses_nan"] = [Bad("NaN in a picture", {"data": table(path, "nan")}, ("input.nan",))]
    if folders:
        strange = untrained(
            reading, path, first, "strange", **{reading.width: int(reading.models[first][reading.width]) + 2}
        )
        bad["refuses_wrong_shape"].append(
            Bad("teacher of another class count", {"teacher": [strange] * len(folders)}, shape)
        )
        bad["refuses_missing_input"].append(Bad("no teacher", {"teacher": None}, ("param.value", "param.missing")))
    return bad


def _tokens(reading: Reading, path: Path) -> dict[str, str]:
    return {k: v for k, v in source(reading, next(iter(reading.models)), path).items() if k == "tokenizer"}


@contextlib.contextmanager
def _killed_after_an_epoch() -> Iterator[None]:
    """The engine keeps its state at the end of every epoch, and dies right after the first."""
    engine = importlib.import_module("interfuse.distill.room")
    keep = engine.save_state

    def save_and_die(*args: Any) -> None:
        keep(*args)
        raise Killed

    with mock.patch.object(engine, "CHECKPOINT_SECONDS", 0.0), mock.patch.object(engine, "save_state", save_and_die):
        yield


def _distill_oracle(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """The method's weighted terms on one batch, in float64, beside what the oracle says of the same views."""
    import torch

    from interfuse.core.ctx import Ctx
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room, prepare
    from interfuse.data.seeding import seeded

    engine: ModuleType = importlib.import_module("interfuse.distill.room")
    call = prepare(load_room("distill"), load(case.method), given, Ctx(seed=7))
    hooks = engine._hooks(call)
    call = dataclasses.replace(call, inputs={**call.inputs, "student": hooks.choose(call)[0]})
    run = engine.start(call, hooks)
    hooks.scan(run)
    for module in run.modules.values():
        module.double()
    order = hooks.select(run, np.arange(len(run.data)))
    with seeded(7):
        views = hooks.views(run, hooks.batch(run, engine.make_batch(run, order[:12])))

    def wide(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().double() if value.is_floating_point() else value
        if isinstance(value, Mapping):
            return {k: wide(v) for k, v in value.items()}
        return [wide(v) for v in value] if isinstance(value, list) else value

    views = dataclasses.replace(
        views,
        batch=dataclasses.replace(views.batch, soft=wide(views.batch.soft), extra=wide(views.batch.extra)),
        **{k: wide(getattr(views, k)) for k in ("student", "teachers", "features", "teacher_features")},
    )
    with seeded(7):
        terms, weights = hooks.terms(run, views), hooks.weights(run, views)

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().numpy()
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list) else value

    ours = {name: plain(term * weights.get(name, 1.0)) for name, term in terms.items()}
    seen = Seen(
        positions=views.batch.positions,
        student=plain(views.student),
        teachers=plain(views.teachers),
        labels=plain(views.labels),
        soft=plain(views.batch.soft),
        features=plain(dict(views.features)),
        teacher_features=plain(views.teacher_features),
        extra=plain(views.batch.extra),
        modules={name: plain(dict(module.state_dict())) for name, module in run.modules.items()},
        tensors=plain(dict(run.tensors)),
        epoch=run.epoch,
        epochs=run.settings.epochs,
        step=run.step,
        steps=run.steps,
    )
    own = {f.name: call.params[f.name] for f in dataclasses.fields(call.method.target)}  # type: ignore[arg-type]
    said = oracle(seen, **own)
    if not isinstance(said, dict):
        return [("the whole loss", sum(ours.values()), said)]
    assert set(said) == set(ours), f"the oracle names the terms {sorted(said)}, the method {sorted(ours)}"
    return [(name, ours[name], said[name]) for name in sorted(ours)]


# ------------------------------------------------------------------------------------------------ merge

#: inputs -> (configuration, task, auto class)
MERGED: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": (tiny_texts.LLAMA, "causal-lm", "AutoModelForCausalLM"),
    "vit": (VISION["vit"], "image-classification", "AutoModelForImageClassification"),
    "reader": (tiny_texts.LLAMA, "causal-lm", "AutoModelForCausalLM"),  # llama with a tokenizer beside it
}


def checkpoint(path: Path, kind: str, name: str, change: str = "", step: float = 0.05) -> str:
    """A model folder: ``base``, or a fine-tuned variant of it (the base plus a small random ``step`` of its own)."""
    import safetensors.torch
    import torch
    import transformers

    folder = path / name
    if not folder.is_dir():
        config, _, auto = MERGED[kind]
        if change == "wider":
            config = {**config, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3}
        with torch.random.fork_rng():
            torch.manual_seed(11)
            module = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(**config))
            torch.manual_seed(sum(name.encode()))
            with torch.no_grad():
                for parameter in module.parameters() if name != "base" else ():
                    parameter.add_(step * torch.randn_like(parameter))
                if change == "nan":
                    list(module.parameters())[3].view(-1)[5] = float("nan")
        module.save_pretrained(folder)
        if kind == "reader":
            tiny_texts.tokenizer(folder)
        if change == "twice":  # two shards that both hold a tensor which their index does not place
            held = safetensors.torch.load_file(folder / "model.safetensors")
            names, shards = sorted(held), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
            parts = [{n: held[n] for n in names[i::2]} for i in (0, 1)]
            for shard, part in zip(shards, parts, strict=True):
                safetensors.torch.save_file(
                    {**part, "extra.weight": held[names[0]].clone()}, folder / shard, metadata={"format": "pt"}
                )
            (folder / "model.safetensors").unlink()
            index = {"metadata": {}, "weight_map": {n: shards[i % 2] for i, n in enumerate(names)}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        if change == "empty":
            safetensors.torch.save_file({}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@room("merge")
def merge(case: Case, shared: Path) -> Scene:
    """``inputs``: ``llama``, ``reader`` or ``vit``. ``models``: how many variants. ``base``: whether the base is given.
    ``calibration``: how many tables of examples."""
    from tests.conformance.scenes import merge_calibration

    given = dict(case.given)
    kind = case.inputs or "llama"
    auto = MERGED[kind][2]
    path = shared / f"merge-{kind}"
    folders = [checkpoint(path, kind, f"variant-{i}") for i in range(given.pop("models", 3))]
    bases = {"base": checkpoint(path, kind, "base")} if given.pop("base", True) else {}
    tables = given.pop("calibration", 0)
    given = {"models": folders, **bases, **given}
    if tables:  # statistics are made anew by every run, so that runs can be compared
        given |= {"calibration": merge_calibration.tables(kind, path, tables), "reuse_statistics": False}
    other = (
        checkpoint(shared / "merge-vit", "vit", "base")
        if kind != "vit"
        else checkpoint(shared / "merge-llama", "llama", "base")
    )
    rest = folders[1:]

    def in_memory() -> dict[str, Any]:
        import transformers

        from interfuse.data.models import Model

        def module(folder: str) -> Any:
            loaded = getattr(transformers, auto).from_pretrained(folder)
            return (
                Model("m", None, loaded.config.to_dict(), "causal-lm", module=loaded, tokenizer=Path(folder))
                if kind == "reader"
                else loaded
            )

        return {**given, "models": [module(f) for f in folders], **({"base": module(bases["base"])} if bases else {})}

    bad = {
        "refuses_wrong_shape": [
            Bad("wider layers", {"models": [*rest, checkpoint(path, kind, "wider", "wider")]}, ("input.shape",)),
            Bad("another architecture", {"models": [*rest, other]}, ("input.shape",)),
        ],
        "refuses_empty": [
            Bad("no models", {"models": []}, ("param.missing",)),
            Bad("a file of no tensors", {"models": [*rest, checkpoint(path, kind, "hollow", "empty")]}, ("input.shape", "input.empty")),
        ],
        "one_row": [Bad("one model", {"models": folders[:1]}, ("param.value",), or_works=True)],
        "refuses_nan": [Bad("NaN in a tensor", {"models": [*rest, checkpoint(path, kind, "spoilt", "nan")]}, ("input.nan",))],
        "refuses_duplicates": [Bad("a tensor in two files", {"models": [*rest, checkpoint(path, kind, "double", "twice")]},
                                   ("input.duplicate",))],
        "refuses_missing_input": [Bad("no models at all", {"models": None}, ("param.missing",))],
    }  # fmt: skip
    if bases and "required" in str(_traits(case.method).get("base")):
        bad["refuses_missing_input"].append(Bad("no base", {"base": None}, ("param.missing",)))
    if tables:
        bad["refuses_missing_input"].append(Bad("no examples", {"calibration": None}, ("param.missing",)))
        bad["refuses_empty"].append(Bad("a table of no rows", {"calibration": merge_calibration.tables(kind, path, tables, "empty")}, ("input.empty",)))  # fmt: skip
        bad["one_row"].append(Bad("tables of one row", {"calibration": merge_calibration.tables(kind, path, tables, "one")}, (), or_works=True))  # fmt: skip
    return Scene(
        given,
        in_memory,
        path,
        lambda folder: numbers_of_model(folder, auto),
        bad,
        _killed_after_some_tensors,
        lambda oracle: _merge_oracle(case, given, oracle),
        tolerance=1e-5,
        dtype="float32",
        not_applicable={} if rest or bases else {"refuses_wrong_shape": "one model alone has nothing it must fit"},
        resumed_with={"workers": 1, "max_memory": 0.002},  # as after a run that had not memory enough
    )


def _traits(method: str) -> Mapping[str, Any]:
    from interfuse.core.method import load

    return load(method).traits


@contextlib.contextmanager
def _killed_after_some_tensors() -> Iterator[None]:
    """The engine dies once three tensors are in its journal."""
    engine = importlib.import_module("interfuse.merge.room")
    stream = engine.stream_merge

    def stream_and_die(*args: Any, journal: Any, progress: Any, **rest: Any) -> Any:
        def die(done: int, whole: int, tensor: str) -> None:
            progress(done, whole, tensor)
            if len(journal.done) >= 3:
                raise Killed

        return stream(*args, journal=journal, progress=die, **rest)

    with mock.patch.object(engine, "stream_merge", stream_and_die):
        yield


def _draws(
    folders: list[str], arrays: Callable[[str | Path], dict[str, NDArray[np.float64]]]
) -> Callable[[int, str], Any]:
    """The uniform numbers of a seed, model and tensor, in the tensor's shape: their own definition is tested elsewhere."""
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.models import open_model
    from interfuse.kit.counter_random import tensor_key, uniform

    labels = [open_model(Source(f), Ctx()).fingerprint() for f in folders]
    shapes = {name: value.shape for name, value in arrays(folders[0]).items()}

    def draw(model: int, name: str) -> NDArray[Any]:
        shape = shapes[name]
        return uniform(tensor_key(7, labels[model], name), 0, int(np.prod(shape))).numpy().reshape(shape)

    return draw


def _merge_oracle(case: Case, given: Mapping[str, Any], oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Every tensor of the merged model beside ``oracle(models, base, **parameters)``: float64 arrays by tensor name."""
    import tempfile

    import safetensors.numpy

    from interfuse.core.method import load, read_params
    from interfuse.core.rooms import apply

    def arrays(folder: str | Path) -> dict[str, NDArray[np.float64]]:
        files = sorted(Path(folder).glob("*.safetensors"))
        return {k: v.astype(np.float64) for f in files for k, v in safetensors.numpy.load_file(f).items()}

    method = load(case.method)
    own = {name: param.default for name, param in read_params(method.target).items()}
    own |= {name: given[name] for name in own if name in given}
    if "calibration" in given:
        from tests.conformance.scenes.merge_calibration import probe

        own["probe"] = probe(given, case.inputs, MERGED[case.inputs][2])
    if method.traits.get("random"):
        own["draw"] = _draws(given["models"], arrays)
    with tempfile.TemporaryDirectory() as folder:
        made = arrays(apply(case.method, out=Path(folder) / "out", seed=7, **given).path)
    said = oracle([arrays(f) for f in given["models"]], arrays(given["base"]) if "base" in given else None, **own)
    assert set(said) == set(made), f"other tensors: {sorted(set(said) ^ set(made))[:5]}"
    return [(name, made[name], said[name]) for name in sorted(made)]


for _file in sorted((Path(__file__).parent / "scenes").glob("[a-z]*.py")):
    importlib.import_module(f"tests.conformance.scenes.{_file.stem}")
