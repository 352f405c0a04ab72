"""Opening a merge: who takes part, whether they fit, and the plan of every tensor, from headers and tokenizers alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interfuse.core.errors import InterfuseError
from interfuse.core.method import read_params
from interfuse.core.rooms import Call
from interfuse.data.models import PROCESSOR, Model
from interfuse.data.overlay import Tensors
from interfuse.data.tokenizer_union import check_template
from interfuse.data.vocabulary import Alignment
from interfuse.data.weights import Weights
from interfuse.kit.reductions import array_blocks
from interfuse.merge.finish import same_vocabulary, untied
from interfuse.merge.plan import Output, Slice, frozen, listing, mismatches, plan_outputs, read_slices
from interfuse.merge.schedule import listed

#: fields of a processor that say nothing of what it does to pixels
NAMES_OF_PROCESSORS = ("image_processor_type", "feature_extractor_type", "processor_class", "transformers_version")


def own_params(call: Call) -> dict[str, Any]:
    """The parameters that are the method's own and not settings of the room."""
    return {name: call.params[name] for name in read_params(call.method.target)}


def per_model_params(call: Call) -> list[str]:
    """The parameters that may have one value per model."""
    return [n for n in call.method.traits.get("per_model", ("weight",)) if n in call.params]


def _slices(call: Call) -> list[Slice]:
    own = own_params(call)
    known = {name: call.method.params[name] for name in own}
    models, has_base = len(call.inputs["models"]), call.inputs["base"] is not None
    return read_slices(call.params["slices"], models, has_base, own, per_model_params(call), known)


def everyone(call: Call) -> list[Model]:
    """The models of a call, the base last."""
    base = call.inputs["base"]
    return [*call.inputs["models"], *([base] if base is not None else [])]


def leading(call: Call) -> Model:
    """The model that configuration and tokenizer are taken from: the base, or the first."""
    base: Model | None = call.inputs["base"]
    return base if base is not None else call.inputs["models"][0]


def check(call: Call) -> None:
    """Refuses what cannot be merged, from configurations and file headers alone."""
    traits, models = call.method.traits, call.inputs["models"]
    least, most = traits.get("models", (1, 1000))
    parts = _slices(call)
    for part in parts:
        if not least <= len(part.sources) <= most:
            wanted = str(least) if least == most else f"at least {least}" if most >= 1000 else f"{least} to {most}"
            raise InterfuseError(
                "param.value", f"{call.method.id} takes {wanted} models, {len(part.sources)} are given", where="models"
            )
    wants = traits.get("base", "optional")
    if wants == "required" and any(part.base is None for part in parts):
        raise InterfuseError("param.missing", f"{call.method.id} needs the base the models were made from", where="base",
                             fix="Add --base FOLDER (or base: NAME).")  # fmt: skip
    if wants == "none" and call.inputs["base"] is not None:
        raise InterfuseError(
            "param.unknown",
            f"{call.method.id} takes no base",
            where="base",
            fix="Leave it out. In Python the models are one list: [a, b].",
        )
    if call.inputs["tokenizer"] is None and (call.params["tokens"] or call.params["pad_to_multiple_of"]):
        raise InterfuseError(
            "param.missing", "tokens and pad_to_multiple_of need a tokenizer", fix="Add --tokenizer base or union."
        )
    if call.params["lora_rank"] is not None and call.params["output"] != "lora":
        raise InterfuseError("param.missing", "lora_rank is of an adapter, and a whole model would be written", where="lora_rank",
                             fix="Add --output lora, or leave it out.")  # fmt: skip
    _check_calibration(call)
    if call.params["chat_template"]:
        check_template(call.params["chat_template"])
    for name in per_model_params(call):
        given = len(call.params[name]) if listed(call.params[name]) else len(models)
        if given != len(models):
            raise InterfuseError("param.value", f"{name} has {given} values for {len(models)} models",
                                 fix="Give one value, or one per model.")  # fmt: skip
    named = everyone(call)
    known = [m for m in named if m.config or m.computed is None]  # a state dict says no architecture
    for model in known[1:]:
        if model.config.get("model_type") != known[0].config.get("model_type"):
            raise InterfuseError("input.shape", f"the architectures differ: {known[0].config.get('model_type')} and "
                                 f"{model.config.get('model_type')}{_differences(known[0], model)}", where=f"{known[0].name}, {model.name}",
                                 fix="Merging needs one architecture; distillation does not.")  # fmt: skip
    if call.params["output"] == "lora":
        from interfuse.merge.adapters import refuse_others

        refuse_others(call)
    if all(_is_there(m) for m in named):
        with prepared(call) as plan:
            if "check" in traits:  # what the method cannot do with the parameters of all tensors
                traits["check"](plan.outputs)


def _is_there(model: Model) -> bool:
    """Whether a model's tensors can be looked at: no earlier step has yet to make it."""
    if model.computed is not None:
        from interfuse.data.adapted import AdaptedModel

        return not isinstance(model.computed, AdaptedModel) or model.computed.adapter.is_dir()
    return model.module is not None or (model.path is not None and model.path.is_dir())


def _differences(one: Model, two: Model) -> str:
    """The first tensors that two models do not share, a line each; nothing where weights are not here."""
    if not (_is_there(one) and _is_there(two)):
        return ""
    with contextlib.ExitStack() as stack:
        held = []
        for model in (one, two):
            held.append(weights_of(model))
            stack.callback(held[-1].close)
        return listing(mismatches(held[0], held[1], (one.name, two.name)))


def _check_calibration(call: Call) -> None:
    """Examples are there when the method needs them, and only then; as many tables as it knows what to do with."""
    tables, count = call.inputs["calibration"], len(call.inputs["models"])
    if "calibrate" not in call.method.traits:
        if tables:
            raise InterfuseError("param.unknown", f"{call.method.id} looks at no examples", where="calibration", fix="Leave it out.")  # fmt: skip
        return
    if not tables:
        raise InterfuseError("param.missing", f"{call.method.id} needs calibration examples", where="calibration",
                             fix="Add --calibration FILE, one for all models or one for each in their order.")  # fmt: skip
    wanted = call.method.traits.get("tables")
    if len(tables) not in ((1, count) if wanted is None else (wanted,)):
        raise InterfuseError("param.value", f"{len(tables)} calibration tables are given for {count} models", where="calibration",
                             fix=f"Give {'one for all, or one for each model' if wanted is None else wanted}.")  # fmt: skip
    for model in everyone(call):
        if model.config.get("quantization_config"):
            raise InterfuseError("needs.capability", "the weights are quantised: there are no gradients or inputs of weights to see",
                                 where=model.name, fix="Name the model as it was before it was quantised.")  # fmt: skip


@dataclass
class Prepared:
    """An opened call: headers read, vocabularies in one order, every output tensor planned. No number has been read.

    Attributes:
        weights: the tensors of the models, the base last. outputs: the plan. alignment: the merged vocabulary, if any.
        merged: the tokenizer of the result as ``tokenizer.json`` holds it, when it is a union. remarks: for the report.
    """

    weights: list[Tensors]
    outputs: list[Output]
    alignment: Alignment | None
    merged: Mapping[str, Any] | None
    remarks: list[str]


@contextlib.contextmanager
def prepared(call: Call) -> Iterator[Prepared]:
    """Opens the models of a call and plans every tensor.

    Raises:
        InterfuseError: ``input.shape``, ``input.vocabulary``, ``param.value`` ... whatever headers and tokenizers tell.
    """
    models, has_base = everyone(call), call.inputs["base"] is not None
    with contextlib.ExitStack() as stack:
        weights: list[Tensors] = []
        for model in models:
            weights.append(weights_of(model))
            stack.callback(weights[-1].close)
        weights = untied(weights, [m.config for m in models])
        weights, alignment, merged, remarks = same_vocabulary(call, models, weights)
        parts = _slices(call)
        defaults = {name: param.default for name, param in call.method.params.items()}
        outputs = plan_outputs(weights[: len(call.inputs["models"])], weights[-1] if has_base else None, parts, defaults,
                               [m.name for m in models])  # fmt: skip
        outputs = frozen(outputs, call.params["freeze"])
        yield Prepared(weights, outputs, alignment, merged, remarks + unlike_processors(leading(call), models))


def unlike_processors(first: Model, models: Sequence[Model]) -> list[str]:
    """A remark for every model that was trained on pictures prepared otherwise than the leading one's, whose processor is written.

    Fields that name a class or a version say nothing of pixels and do not count.
    """

    def about(model: Model) -> dict[str, Any]:
        return {k: v for k, v in model.processor.items() if k not in NAMES_OF_PROCESSORS and not k.startswith("_")}

    ours, found = about(first), []
    for model in models:
        theirs = about(model)
        if model is first or theirs == ours:
            continue
        if not theirs or not ours:
            has, lacks = (model, first) if theirs else (first, model)
            what = f"{has.name} prepares pictures with a {PROCESSOR}, {lacks.name} has none"
        else:
            unlike = [f"{k} is {ours.get(k)} and {theirs.get(k)}" for k in sorted({**ours, **theirs}) if ours.get(k) != theirs.get(k)]  # fmt: skip
            what = f"{first.name} and {model.name} prepare pictures in unlike ways: {'; '.join(unlike[:4])}"
        found.append(f"{what}. The result goes by {first.name}" + (", so without." if not ours else "."))
    return list(dict.fromkeys(found))


def with_its_models(error: InterfuseError, call: Call, plan: Prepared) -> InterfuseError:
    """An error about NaN or infinity in a tensor, with the models that hold it: their tensors are looked at once more (all tensors, where
    the error names none). The error itself where all sources are finite, and the result is not."""
    if error.code != "input.nan":
        return error
    named = everyone(call)
    about = [
        o for o in plan.outputs if error.where == f"tensor {o.name}" or error.where.startswith(f"tensor {o.name!r},")
    ]
    for output in about or [o for o in plan.outputs if o.info.kind.floating]:
        found = []
        for index, name in [*output.sources, *([output.base] if output.base else [])]:
            if any(not np.isfinite(values).all() for _, (values,) in array_blocks([plan.weights[index].source(name)])):
                found.append(named[index].name if name == output.name else f"{named[index].name} ({name})")
        if found:
            found = list(dict.fromkeys(found))
            which = " and ".join(found)
            where = error.where if about else f"tensor {output.name}"
            return InterfuseError("input.nan", f"{which} hold{'s' if len(found) == 1 else ''} NaN or infinity", where=where,
                                  fix="Use a checkpoint from before training diverged.")  # fmt: skip
    return error


def weights_of(model: Model) -> Tensors:
    """The lazily readable tensors of a model.

    Raises:
        InterfuseError: ``input.missing`` when the model has no weights yet (a bare configuration).
    """
    if model.module is not None:
        return Weights.from_state_dict(model.module.state_dict())
    if model.computed is not None:
        return model.computed.open()
    if model.path is None:
        raise InterfuseError("input.missing", "a configuration has no weights to merge", where=model.name)
    return Weights.open(model.path)
