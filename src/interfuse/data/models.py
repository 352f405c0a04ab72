"""Models: a Hugging Face folder or id, a configuration to start from, or any ``torch.nn.Module``.

Nothing is read before it is needed, weights are safetensors only, and code in a model folder is never run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Source
from interfuse.core.safe import file_sha256, fingerprint, read_text
from interfuse.data.digests import weight_digest

if TYPE_CHECKING:
    import torch

    from interfuse.data.overlay import Computed

#: task -> (auto class of transformers, suffix of the architecture names)
TASKS = {
    "image-classification": ("AutoModelForImageClassification", "ForImageClassification"),
    "text-classification": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "causal-lm": ("AutoModelForCausalLM", "ForCausalLM"),
    "masked-lm": ("AutoModelForMaskedLM", "ForMaskedLM"),
    "seq2seq-lm": ("AutoModelForSeq2SeqLM", "ForConditionalGeneration"),
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".npy")
KEYS = ("model", "config", "predictions", "task", "revision", "tokenizer", "adapter", "lm", "prompt", "answers")


@dataclass(frozen=True)
class Model:
    """A model that may not have been loaded yet.

    Attributes:
        name: how reports call it.
        path: its folder, once there is one.
        config: the fields of ``config.json``; known before any weight is read.
        task: one of :data:`TASKS`, ``module`` for a plain PyTorch module, or ``predictions`` for stored ones.
        module: the module itself when it is in memory.
        computed: where its tensors come from when they are neither in a folder nor in memory.
        tokenizer: folder of the tokenizer when it is not in ``path``.
        processor: the fields of ``preprocessor_config.json``, by which pictures are normalised; empty where the model has none.
        speaker: the language model itself where it is no checkpoint (an endpoint, a fused one): an ``interfuse.data.lm.LM``.
        made_by, parents, key: the step that makes it, what that step takes, and the step's key (see ``core.run``).
    """

    name: str
    path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    task: str = "module"
    module: torch.nn.Module | None = field(default=None, repr=False, compare=False)
    computed: Computed | None = field(default=None, repr=False, compare=False)
    tokenizer: Path | None = None
    processor: Mapping[str, Any] = field(default_factory=dict, repr=False)
    speaker: Any = field(default=None, repr=False, compare=False)
    made_by: str = ""
    parents: tuple[Any, ...] = field(default=(), repr=False)
    key: str = ""

    def fingerprint(self) -> str:
        """The key of the step that makes it, or a digest of its configuration and weights."""
        if self.key:
            return self.key
        if self.path is not None:
            return folder_digest(self.path)
        if self.module is not None:
            return _module_digest(self.module)
        if self.computed is not None:
            return self.computed.fingerprint()
        return fingerprint({"config": _plain(self.config), "task": self.task})

    @property
    def labels(self) -> int | None:
        """The number of classes (or the vocabulary size of a language model), where the configuration tells it."""
        if self.task.endswith("-lm"):
            size = _text_config(self.config).get("vocab_size")
            return int(size) if size is not None else None
        if "num_labels" in self.config:
            return int(self.config["num_labels"])
        names = self.config.get("id2label")
        if names:
            return len(names)
        return 2 if self.task.endswith("classification") else None


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("text_config", config)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def open_model(source: Source, ctx: Ctx) -> Model:
    """Opens a model by reading its configuration only.

    Accepts a folder or Hugging Face id (``name`` or ``name@revision``), a table with the keys ``model`` or ``config`` (and
    ``task``, ``revision``, ``tokenizer``) or ``predictions`` (a file, see ``data.predictors``) or ``lm`` (a
    language model asked for classes, see ``data.asked``), a ``torch.nn.Module``, a state dict (name -> tensor or NumPy array), a
    fitted scikit-learn classifier, or a :class:`Model`.

    Raises:
        InterfuseError: ``input.missing``, ``input.type``, ``unsafe.pickle``, ``unsafe.code`` or ``param.unknown``.
    """
    spec = source.spec
    if isinstance(spec, Model):
        return spec
    if isinstance(spec, str | Path):
        spec = {"model": str(spec)}
    if not isinstance(spec, Mapping):
        return _from_module(spec, source.name)
    if _holds_tensors(spec):
        from interfuse.data.adapted import held_model

        return held_model(spec, source.name)
    for key in spec:
        if key not in KEYS:
            raise InterfuseError("param.unknown", f"a model source has no key {key!r}", where=source.name,
                                 fix=did_you_mean(key, KEYS))  # fmt: skip
    tokenizer = source.folder / spec["tokenizer"] if "tokenizer" in spec else None
    if "config" in spec:
        return _from_config(spec, source.name, tokenizer)
    if "predictions" in spec:
        from interfuse.data.predictors import read_predictions

        file = source.folder / Path(str(spec["predictions"])).expanduser()
        stored = read_predictions(file)
        return Model(
            source.name or file.stem, None, {"num_labels": stored.logits.shape[1]}, "predictions", module=stored
        )
    if "lm" in spec:
        from interfuse.data.asked import asked_model

        return asked_model(spec, source, ctx)
    if "model" not in spec:
        raise InterfuseError(
            "param.missing", "a model source needs 'model' (folder or id), 'config' or 'predictions'", where=source.name
        )
    wanted, adapter = str(spec["model"]), spec.get("adapter")
    if adapter is None and "+" in wanted and not (source.folder / wanted).is_dir():
        wanted, _, adapter = wanted.partition("+")
    folder = locate(wanted, source.folder, revision=spec.get("revision"))
    name = source.name or folder.name + (f"+{Path(str(adapter)).name}" if adapter is not None else "")
    if adapter is not None or ((folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()):
        from interfuse.data.adapted import adapted_model

        base = None if adapter is None else folder
        place = folder if adapter is None else locate(str(adapter), source.folder)
        return adapted_model(base, place, name, spec.get("task"), tokenizer, source.folder)
    config = read_config(folder)
    return Model(name, folder, config, spec.get("task") or task_of(config, folder), tokenizer=tokenizer,
                 processor=read_processor(folder))  # fmt: skip


def _holds_tensors(spec: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a state dict: nobody holds a tensor who has not imported its library."""
    kinds = tuple(
        getattr(sys.modules[lib], name)
        for lib, name in (("torch", "Tensor"), ("numpy", "ndarray"))
        if lib in sys.modules
    )
    return any(isinstance(value, kinds) for value in spec.values())


def _from_module(value: Any, name: str) -> Model:
    import torch

    if callable(getattr(value, "predict_proba", None)):
        from interfuse.data.predictors import Estimator

        classes = len(value.classes_) if getattr(value, "classes_", None) is not None else None
        return Model(
            name or type(value).__name__, None, {"num_labels": classes} if classes else {}, module=Estimator(value)
        )
    if not isinstance(value, torch.nn.Module):
        raise InterfuseError(
            "input.type", f"a model is a folder, an id, a table or a torch module, not {type(value).__name__}"
        )
    config = getattr(value, "config", None)
    to_dict = getattr(config, "to_dict", None)
    fields: dict[str, Any] = to_dict() if callable(to_dict) else {}
    if fields:
        fields["architectures"] = [type(value).__name__]
        fields["num_labels"] = getattr(config, "num_labels", None)
        fields = {k: v for k, v in fields.items() if v is not None}
    task = next((t for t, (_, end) in TASKS.items() if type(value).__name__.endswith(end)), "module")
    return Model(name or type(value).__name__, None, fields, task, module=value)


def _from_config(spec: Mapping[str, Any], name: str, tokenizer: Path | None) -> Model:
    config = spec["config"]
    if not isinstance(config, Mapping) or "model_type" not in config:
        raise InterfuseError("param.value", "'config' is a table with at least model_type", where=name)
    task = spec.get("task", "image-classification")
    if task not in TASKS:
        raise InterfuseError("param.value", f"unknown task {task!r}", where=name, fix=did_you_mean(str(task), TASKS))
    from transformers import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        raise InterfuseError("input.type", f"transformers has no model type {config['model_type']!r}", where=name,
                             fix=did_you_mean(str(config["model_type"]), CONFIG_MAPPING.keys()))  # fmt: skip
    return Model(name or str(config["model_type"]), None, dict(config), task, tokenizer=tokenizer)


def locate(name: str, folder: Path = Path(), *, revision: str | None = None) -> Path:
    """The local folder of a model named by path or Hugging Face id; an id is downloaded (safetensors, JSON, tokenizer and card only).

    Raises:
        InterfuseError: ``input.missing`` when there is neither, ``unsafe.pickle`` when the name is a weight file to be refused.
    """
    path = Path(name).expanduser()
    path = path if path.is_absolute() else folder / path
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix in PICKLES:
            raise refuse_pickle(path)
        raise InterfuseError("input.type", "a model is a folder with config.json", where=str(path))
    repo, _, at = name.partition("@")
    if repo.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InterfuseError("input.missing", "there is no such model folder", where=str(path))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision or at or None,
                                      allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]))  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InterfuseError("input.missing", f"no folder and no reachable Hugging Face model {name!r}", where=str(path),
                             fix="Check the path; an id needs the network or a filled cache.") from error  # fmt: skip


def refuse_pickle(path: Path) -> InterfuseError:
    """The error that a file of pickled weights is met with, and how to convert it."""
    return InterfuseError(
        "unsafe.pickle", f"{path.name} is a pickle or another format that can run code when opened", where=str(path),
        fix="Convert it once in a place you trust: "
        "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors').",
    )  # fmt: skip


@functools.cache
def _read_config(path: Path, stamp: int) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InterfuseError("input.format", f"{path.name} is not JSON", where=str(path)) from error
    if not isinstance(value, dict):
        raise InterfuseError("input.format", f"{path.name} is not a table", where=str(path))
    return value


PROCESSOR = "preprocessor_config.json"


def read_processor(folder: Path) -> dict[str, Any]:
    """``preprocessor_config.json`` of a model folder; empty where there is none.

    Raises:
        InterfuseError: ``input.format``.
    """
    path = folder / PROCESSOR
    return _read_config(path, path.stat().st_mtime_ns) if path.is_file() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder, after checking that the folder needs no code of its own and holds safetensors.

    Raises:
        InterfuseError: ``input.missing``, ``input.format``, ``unsafe.code`` or ``unsafe.pickle``.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InterfuseError("input.missing", "the model folder has no config.json", where=str(folder))
    config = _read_config(path, path.stat().st_mtime_ns)
    if "auto_map" in config:
        raise InterfuseError("unsafe.code", "the model brings its own code (auto_map), which Interfuse never runs", where=str(path),
                             fix="Use a model that transformers knows, or load it yourself and pass the module in Python.")  # fmt: skip
    if not any(folder.glob("*.safetensors")):
        for file in sorted(folder.iterdir()):
            if file.suffix in PICKLES:
                raise refuse_pickle(file)
        raise InterfuseError("input.missing", "the model folder has no safetensors weights", where=str(folder))
    return config


def task_of(config: Mapping[str, Any], folder: Path) -> str:
    """The task that a configuration's architecture names; raises ``input.type`` when it names none."""
    for architecture in config.get("architectures") or []:
        for task, (_, suffix) in TASKS.items():
            if architecture.endswith(suffix) or (task == "causal-lm" and architecture.endswith("LMHeadModel")):
                return task
    raise InterfuseError("input.type", f"cannot tell the task of {config.get('architectures')}", where=str(folder),
                         fix="Add task: " + " | ".join(TASKS))  # fmt: skip


def folder_digest(folder: Path) -> str:
    """A digest of a model folder's configuration, tokenizer and weights."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja"))
    rows = [
        (p.name, weight_digest(p) if p.suffix == ".safetensors" else file_sha256(p))
        for p in files
        if p.name != "interfuse.json"
    ]
    return fingerprint(rows)


def _module_digest(module: torch.nn.Module) -> str:
    return state_digest(type(module).__qualname__, module.state_dict())


def state_digest(kind: str, state: Mapping[str, torch.Tensor]) -> str:
    """A digest of named tensors and of what holds them."""
    import torch

    digest = hashlib.sha256(kind.encode())
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build(model: Model, ctx: Ctx, *, train: bool = False) -> torch.nn.Module:
    """The module itself: loaded from its folder, or initialised from its configuration.

    Initial weights depend on the run's seed and the configuration alone: two steps that start from the same configuration
    under the same seed start from the same weights.

    Raises:
        InterfuseError: ``input.missing`` when the folder is not there, ``input.format`` when weights do not fit the configuration.
    """
    import copy

    import safetensors.torch
    import torch
    import transformers

    from interfuse.data.seeding import seeded

    if model.module is not None:
        # the caller's module stays as it is; for prediction only, the copy shares its tensors
        module = copy.deepcopy(model.module, None if train or model.path is not None else _frozen(model.module))
        if model.path is not None:
            module.load_state_dict(safetensors.torch.load_file(model.path / "model.safetensors"))
    elif model.path is not None:
        auto = getattr(transformers, TASKS[model.task][0])
        dtype = torch.float32 if train else getattr(torch, ctx.dtype)
        if read_config(model.path).get("model_type") == "interfuse-composed":
            import interfuse.data.composed  # noqa: F401  registers the type
        try:
            with quiet():
                module, info = auto.from_pretrained(model.path, local_files_only=True, use_safetensors=True,
                                                    trust_remote_code=False, dtype=dtype, output_loading_info=True)  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InterfuseError(
                "input.format",
                f"the weights cannot be loaded: {(str(error) or type(error).__name__).splitlines()[0]}",
                where=str(model.path),
            ) from error
        lost = sorted(info["missing_keys"]) + sorted(str(k) for k in info.get("mismatched_keys", ()))
        if lost:
            raise InterfuseError("input.format", f"{len(lost)} tensors of the model are not in its files, the first is {lost[0]}",
                                 where=str(model.path))  # fmt: skip
    elif model.computed is not None:
        from interfuse.data.adapted import in_memory

        module = in_memory(model)
    else:
        with seeded(ctx.seed_for("init/" + fingerprint({"config": _plain(model.config), "task": model.task}))):
            module = _from_scratch(model)
    return module.train(train)


def _frozen(module: torch.nn.Module) -> dict[int, Any]:
    """A memo for ``copy.deepcopy``: a copy with flags and hooks of its own on the same tensors, without gradient."""
    import torch

    memo: dict[int, Any] = {id(b): b.detach() for b in module.buffers()}
    return memo | {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}


_QUIET = threading.Lock()
_quiet_now: list[bool] = []  # for each thread within, whether bars were drawn when the first one came


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps ``transformers`` from drawing progress bars of its own, until the last thread that asked for it is done."""
    from transformers.utils import logging

    with _QUIET:
        _quiet_now.append(_quiet_now[0] if _quiet_now else logging.is_progress_bar_enabled())
        logging.disable_progress_bar()
    try:
        yield
    finally:
        with _QUIET:
            if _quiet_now.pop() and not _quiet_now:
                logging.enable_progress_bar()


def make_config(model: Model) -> Any:
    """The ``transformers`` configuration object of a model that starts from a configuration.

    Raises:
        InterfuseError: ``param.value`` when the configuration is refused.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = {
        k: v
        for k, v in model.config.items()
        if k not in ("model_type", "architectures", "transformers_version", "dtype")
    }
    try:
        made = AutoConfig.for_model(model.config["model_type"], **fields)
        made.architectures = list(
            model.config.get("architectures") or []
        )  # which of a family's classes; the first if none is named
        return made
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, StrictDataclassError) as error:
        raise InterfuseError(
            "param.value",
            f"transformers refuses the configuration: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=model.name,
        ) from error


def _from_scratch(model: Model) -> torch.nn.Module:
    """The module that a configuration describes, with new weights.

    Raises:
        InterfuseError: ``param.value`` when ``transformers`` cannot build it, ``needs.package`` where that takes a package.
    """
    import transformers

    config = make_config(model)
    try:
        module: torch.nn.Module = getattr(transformers, TASKS[model.task][0]).from_config(config)
    except ImportError as error:
        raise InterfuseError("needs.package", str(error).strip().splitlines()[0], where=model.name) from error
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError) as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise InterfuseError("param.value", f"transformers cannot build a model of this configuration: {what}", where=model.name) from error  # fmt: skip
    return module


def save(module: torch.nn.Module, folder: Path, *, tokenizer_from: Path | None = None, processor: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Writes a module as an ordinary model folder: ``config.json`` and safetensors, tokenizer files and, for a model that has one
    (:attr:`Model.processor`), ``preprocessor_config.json`` beside them."""
    import shutil

    import safetensors.torch

    save_pretrained = getattr(module, "save_pretrained", None)
    if callable(save_pretrained):
        with quiet():
            save_pretrained(folder)
    else:
        state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
        safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    copy_tokenizer(tokenizer_from, folder, shutil.copyfile)
    write_processor(processor or {}, folder)


def write_processor(processor: Mapping[str, Any], folder: Path) -> None:
    """Writes ``preprocessor_config.json``, where there is anything to write."""
    if processor:
        (folder / PROCESSOR).write_text(
            json.dumps(_plain(processor), indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
                   "tokenizer.model", "added_tokens.json", "chat_template.jinja", "generation_config.json")  # fmt: skip


def copy_tokenizer(source: Path | None, folder: Path, copy: Any) -> None:
    """Copies the tokenizer files of a model folder, where there are any."""
    for name in TOKENIZER_FILES if source is not None else ():
        if source is not None and (source / name).is_file() and not (folder / name).exists():
            copy(source / name, folder / name)


def window_of(config: Mapping[str, Any]) -> int | None:
    """The longest text, in tokens, that a model of this configuration reads; None where it tells none."""
    found = config.get("text_config") or config
    return next((int(found[k]) for k in ("max_position_embeddings", "n_positions") if found.get(k)), None)


def size_of(model: Model) -> int:
    """The number of parameters, from file headers or by building the model without memory.

    Raises:
        InterfuseError: ``param.value`` when the configuration is refused.
    """
    import torch

    if model.speaker is not None:
        return 0  # nobody tells
    if model.module is not None:
        return sum(p.numel() for p in model.module.parameters())
    if model.path is not None and model.path.is_dir():
        return sum(p.stat().st_size for p in model.path.glob("*.safetensors")) // 4
    return _meta_size(json.dumps(_plain(model.config), sort_keys=True), model.task) if torch else 0


@functools.cache
def _meta_size(config: str, task: str) -> int:
    import torch

    fields = json.loads(config)
    with torch.device("meta"):
        module = _from_scratch(Model(str(fields.get("model_type", "")), None, fields, task))
    return sum(p.numel() for p in module.parameters())


def tokenizer_folder(model: Model) -> Path | None:
    """The folder of a model's tokenizer: its own, the declared one, or that of the model it was made from."""
    if model.tokenizer is not None:
        return model.tokenizer
    if model.path is not None and (model.path / "tokenizer_config.json").is_file():
        return model.path
    return next((found for p in model.parents if isinstance(p, Model) and (found := tokenizer_folder(p))), None)


def open_tokenizer(model: Model) -> Any:
    """The tokenizer of a model; a padding token is set to the end token where there is none.

    Raises:
        InterfuseError: ``input.missing``.
    """
    from transformers import AutoTokenizer

    folder = tokenizer_folder(model)
    if folder is None:
        raise InterfuseError(
            "input.missing",
            "the model has no tokenizer",
            where=model.name,
            fix="Add 'tokenizer: FOLDER' to its source.",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device_of(ctx: Ctx) -> torch.device:
    """The device a context names; ``auto`` is the first accelerator, else the CPU.

    Raises:
        InterfuseError: ``needs.capability`` when the device is not there.
    """
    import torch

    name = ctx.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InterfuseError(
            "needs.capability", f"there is no device {name!r} here", fix="Use --device cpu."
        ) from error
    return torch.device(name)
