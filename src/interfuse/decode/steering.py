"""Steering inside a model while it decodes: routing weights of a mixture of experts, and vectors added to a layer's output.

Hooks stand on the module that computes the experts, whose call gets the chosen experts and their weights after top-k and
normalisation; a weight is multiplied there and nothing else changes. They are removed at the end, also after an error. Strength 1 and
the zero vector leave every bit as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.kit.taps import blocks


@dataclass(frozen=True)
class Family:
    """How one family of ``transformers`` lays out its routed experts.

    Attributes:
        experts: name of the class that computes them; it is called with hidden states [N, H], chosen experts [N, k] and their weights
            [N, k]. down: its parameters whose first axis is the expert and whose scaling scales an expert's output. number: field of
            the configuration with the number of experts.
    """

    experts: str
    number: str
    down: tuple[str, ...] = ("down_proj",)


#: model type -> layout. Shared experts are outside of it: they are never steered.
FAMILIES: dict[str, Family] = {
    "qwen2_moe": Family("Qwen2MoeExperts", "num_experts"),
    "qwen3_moe": Family("Qwen3MoeExperts", "num_experts"),
    "mixtral": Family("MixtralExperts", "num_local_experts"),
    "olmoe": Family("OlmoeExperts", "num_experts"),
    "deepseek_v2": Family("DeepseekV2Experts", "n_routed_experts"),
    "deepseek_v3": Family("DeepseekV3Experts", "n_routed_experts"),
    "gpt_oss": Family("GptOssExperts", "num_local_experts", ("down_proj", "down_proj_bias")),
    "granitemoe": Family("GraniteMoeExperts", "num_local_experts"),
}


def family_of(config: Mapping[str, Any], name: str) -> Family:
    """The family of a model's configuration.

    Raises:
        InterfuseError: ``needs.capability`` for dense models and for families whose experts are not known.
    """
    inner = config.get("text_config", config)
    kind = str(inner.get("model_type"))
    if kind in FAMILIES:
        return FAMILIES[kind]
    routed = any(isinstance(inner.get(key), int) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    if not routed:
        raise InterfuseError("needs.capability", f"{kind} has no routed experts: it is a dense model", where=name,
                             fix="Dense models are steered by adding a vector to a layer (interfuse.decode.steering.add_vector).")  # fmt: skip
    raise InterfuseError("needs.capability", f"where {kind} computes its experts is not known", where=name,
                         fix=f"Known: {', '.join(FAMILIES)}. {did_you_mean(kind, FAMILIES)}")  # fmt: skip


@dataclass(frozen=True)
class Routed:
    """One layer with routed experts: its number in the model, the module that computes them, and how many there are."""

    layer: int
    module: torch.nn.Module
    experts: int


def routed_layers(module: Any, name: str = "") -> list[Routed]:
    """The layers of a model in memory that have routed experts, in order.

    Raises:
        InterfuseError: ``needs.capability``.
    """
    config = module.config.to_dict()
    family = family_of(config, name or str(config.get("model_type")))
    count = int(getattr(module.config.get_text_config(), family.number))
    found: list[Routed] = []
    for path, child in module.named_modules():
        if type(child).__name__ == family.experts:
            number = next((int(part) for part in path.split(".") if part.isdigit()), len(found))
            found.append(Routed(number, child, count))
    if not found:
        raise InterfuseError("needs.capability", f"the model has no module {family.experts}", where=name or str(config.get("model_type")),
                             fix="Load it as transformers builds it; fused kernels leave nothing to hook.")  # fmt: skip
    return found


Hook = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]


@contextlib.contextmanager
def _hooked(layers: Sequence[Routed], hook: Hook) -> Iterator[None]:
    """Calls ``hook(layer, chosen, weights)`` before the experts of every layer; what it returns replaces the weights."""

    def before(layer: int) -> Callable[..., Any]:
        def run(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            values = [*args, *kwargs.values()]
            changed = hook(layer, values[1], values[2])
            if changed is None:
                return None
            if len(args) > 2:
                return (*args[:2], changed, *args[3:]), kwargs
            return args, {**kwargs, list(kwargs)[2 - len(args)]: changed}

        return run

    handles = [r.module.register_forward_pre_hook(before(r.layer), with_kwargs=True) for r in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def steer(
    module: Any,
    chosen: Sequence[tuple[int, int]],
    beta: float | torch.Tensor,
    *,
    renormalise: bool = False,
) -> Iterator[None]:
    """Multiplies the routing weight of the chosen experts by ``beta`` wherever they are selected.

    Args:
        module: a causal model of a known family. chosen: pairs (layer, expert). beta: one strength, or one per text [B] so that a batch
            can mix steered and unsteered texts. renormalise: keep the sum of a token's weights.

    Raises:
        InterfuseError: ``param.value`` for a strength that is not above 0 or an expert that is not there, ``needs.capability``.
    """
    strengths = torch.as_tensor(beta, dtype=torch.float32)
    if not bool((strengths > 0).all()):
        raise InterfuseError("param.value", f"beta = {beta}: it must be above 0")
    layers = routed_layers(module)
    table = {r.layer: r.experts for r in layers}
    for layer, expert in chosen:
        if not 0 <= expert < table.get(layer, 0):
            raise InterfuseError("param.value", f"layer {layer} has no routed expert {expert}")
    wanted = {layer: [e for at, e in chosen if at == layer] for layer, _ in chosen}
    if not wanted or bool((strengths == 1).all()):
        yield
        return

    def scale(layer: int, picked: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        hit = torch.isin(picked, torch.tensor(wanted[layer], device=picked.device))
        per_token = strengths.to(weights.device, weights.dtype)
        if per_token.dim():
            per_token = per_token.repeat_interleave(weights.shape[0] // len(per_token))[:, None]
        scaled = torch.where(hit, weights * per_token, weights)
        if renormalise:
            scaled = scaled * (weights.sum(dim=-1, keepdim=True) / scaled.sum(dim=-1, keepdim=True))
        return scaled

    with _hooked([r for r in layers if r.layer in wanted], scale):
        yield


@contextlib.contextmanager
def record(module: Any) -> Iterator[dict[int, list[torch.Tensor]]]:
    """The experts selected in each layer: layer -> one tensor [N, k] per forward pass, tokens in order."""
    found: dict[int, list[torch.Tensor]] = {r.layer: [] for r in routed_layers(module)}

    def keep(layer: int, picked: torch.Tensor, weights: torch.Tensor) -> None:
        found[layer].append(picked.reshape(-1, picked.shape[-1]).cpu())

    with _hooked(routed_layers(module), keep):
        yield found


@torch.no_grad()
def self_test(module: Any, ids: torch.Tensor) -> float:
    """Whether the hooks are heeded: doubling all weights of the first routed layer must change the logits of a probe [1, T].

    Returns:
        the largest change of a logit.

    Raises:
        InterfuseError: ``needs.capability`` when nothing changes, which is so when a fused kernel goes around the module, or when the
            hooks change logits at strength 1.
    """
    layers = routed_layers(module)
    first = layers[0]
    before = module(input_ids=ids, use_cache=False).logits
    with _hooked([first], lambda layer, picked, weights: weights * 1.0):
        same = module(input_ids=ids, use_cache=False).logits
    with _hooked([first], lambda layer, picked, weights: weights * 2.0):
        after = module(input_ids=ids, use_cache=False).logits
    if not bool(torch.isfinite(before).all()):
        raise InterfuseError("input.nan", "the model gives a logit that is not a number")
    moved = float((after - before).abs().max())
    if not torch.equal(before, same) or moved == 0:
        raise InterfuseError("needs.capability", "the model's experts go around the hooks: a probe at twice the weight changes nothing",
                             fix="Load it without fused or quantised expert kernels (experts_implementation='eager').")  # fmt: skip
    return moved


@torch.no_grad()
def scale_experts(module: Any, chosen: Sequence[tuple[int, int]], beta: float) -> None:
    """Writes the steering into the weights: the chosen experts' output projections, and their biases, times ``beta``. In place."""
    config = module.config.to_dict()
    family = family_of(config, str(config.get("model_type")))
    for routed in routed_layers(module):
        for layer, expert in chosen:
            if layer == routed.layer:
                for name in family.down:
                    routed.module.get_parameter(name)[expert].mul_(beta)


@contextlib.contextmanager
def add_vector(
    module: Any, layer: int, vector: torch.Tensor, coefficient: float | torch.Tensor = 1.0
) -> Iterator[None]:
    """Adds ``coefficient * vector`` to the output of a layer of a dense (or any) model: activation steering.

    Args:
        layer: counted from 0. vector: [H]. coefficient: one number, or one per text [B]. A zero change leaves every bit as it is.

    Raises:
        InterfuseError: ``param.value`` when there is no such layer or the vector has another length.
    """
    names = blocks(module)
    width = int(module.config.get_text_config().hidden_size)
    if not 0 <= layer < len(names) or vector.shape != (width,):
        raise InterfuseError("param.value", f"the model has {len(names)} layers of width {width}; asked for layer {layer} and a vector "
                             f"of shape {tuple(vector.shape)}")  # fmt: skip
    strength = torch.as_tensor(coefficient, dtype=torch.float32)
    shift = strength.reshape(-1, 1, 1) * vector.float()
    if not bool(shift.any()):
        yield
        return

    def after(block: Any, args: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        moved = hidden + shift.to(hidden.device, hidden.dtype)
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    handle = module.get_submodule(names[layer]).register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
