"""A model whose head was replaced: a backbone, a transfer block on one of its layers, and a classifier.

Saved like any ``transformers`` model under the type ``interfuse-composed``. Importing this module registers the type, after
which ``from_pretrained`` of ``AutoModelForImageClassification`` or ``AutoModelForSequenceClassification`` opens such folders; without it
they are refused, never misread.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

from interfuse.data.layer_outputs import INDEXED, PENULTIMATE, feature_of

MODEL_TYPE = "interfuse-composed"
#: the name of no part: with "backbone" its own classifier and ours would change places when they are loaded
PREFIX = "composed"
#: fields of the backbone's configuration that readers of images and texts ask for
SHOWN = ("image_size", "num_channels", "patch_size", "vocab_size", "max_position_embeddings", "pad_token_id")


class Transfer(nn.Module):
    """From one network's features to another's: ``[B, C, H, W] -> [B, C', *size]``, or ``[B, D] -> [B, D']``.

    Maps are averaged down to ``size`` and pass 1x1, 3x3 and 1x1 convolutions through half the new width, vectors two linear
    layers; batch normalisation and ReLU follow as in the reference of KD3 (Tang et al. 2023) and SimKD.

    Args:
        in_width, out_width: channels. size: height and width of the result; None for vectors.
        rectify: end with a ReLU, as fits features that are never negative.
        leading: tokens ``[B, N, D]`` are read as a square map after this many leading ones.
    """

    def __init__(
        self, in_width: int, out_width: int, size: tuple[int, int] | None, rectify: bool = True, leading: int = 0
    ) -> None:
        super().__init__()
        self.size, self.leading = (size[0], size[1]) if size else None, leading
        if self.size is None:
            layers: list[nn.Module] = [
                nn.Linear(in_width, out_width),
                nn.BatchNorm1d(out_width),
                nn.ReLU(),
                nn.Linear(out_width, out_width),
            ]
        else:
            half = max(1, out_width // 2)
            layers = [nn.Conv2d(in_width, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
                      nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
                      nn.Conv2d(half, out_width, 1, bias=False), nn.BatchNorm2d(out_width)]  # fmt: skip
        self.layers = nn.Sequential(*layers, *([nn.ReLU()] if rectify else []))

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        if self.size is not None:
            if feature.ndim == 3:
                side = math.isqrt(feature.shape[1] - self.leading)
                feature = feature[:, self.leading :].transpose(1, 2).unflatten(2, (side, side))
            feature = F.adaptive_avg_pool2d(feature, self.size)
        found: torch.Tensor = self.layers(feature)
        return found


def pooled(feature: torch.Tensor) -> torch.Tensor:
    """A map's mean over places [B, C]; a vector as it is."""
    return feature.mean(dim=(2, 3)) if feature.ndim == 4 else feature


class Composed(nn.Module):
    """A plain module with a replaced head: what ``layer`` of the backbone gives goes through ``transfer``, a mean over places
    and ``classifier``."""

    def __init__(self, backbone: nn.Module, layer: str, transfer: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.transfer, self.classifier, self.layer = backbone, transfer, classifier, layer

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        found: torch.Tensor = self.classifier(pooled(self.transfer(_tapped(self.backbone, self.layer, args, kwargs))))
        return found


class ComposedConfig(PretrainedConfig):
    """``backbone``: its configuration. ``layer``: where its features are taken. ``transfer``: arguments of :class:`Transfer`."""

    model_type = MODEL_TYPE

    def __init__(self, backbone: dict[str, Any] | None = None, layer: str = PENULTIMATE, transfer: dict[str, Any] | None = None,
                 classifier_bias: bool = True, **kwargs: Any) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.backbone, self.layer, self.transfer, self.classifier_bias = (
            backbone or {},
            layer,
            transfer or {},
            classifier_bias,
        )
        for name in SHOWN:
            if self.backbone.get(name) is not None:
                setattr(self, name, self.backbone[name])


class ComposedForImageClassification(PreTrainedModel):
    """The same for image models of ``transformers``. The backbone keeps its own head, which is not used."""

    config_class = ComposedConfig
    base_model_prefix = PREFIX
    main_input_name = "pixel_values"

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModelForImageClassification.from_config(_backbone_config(config))
        self.transfer, self.classifier = Transfer(**config.transfer), _classifier(config)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        feature = _tapped(self.backbone, str(self.config.layer), (), {"pixel_values": pixel_values})
        logits = self.classifier(pooled(self.transfer(feature)))
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class ComposedForSequenceClassification(PreTrainedModel):
    """The same for models of ``transformers`` that classify texts; ``layer`` gives one vector per text."""

    config_class = ComposedConfig
    base_model_prefix = PREFIX

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModelForSequenceClassification.from_config(_backbone_config(config))
        self.transfer, self.classifier = Transfer(**config.transfer), _classifier(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.backbone.get_input_embeddings()
        return found

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        feature = _tapped(self.backbone, str(self.config.layer), (), {k: v for k, v in given.items() if v is not None})
        logits = self.classifier(self.transfer(feature))
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def _backbone_config(config: ComposedConfig) -> PretrainedConfig:
    fields = {k: v for k, v in config.backbone.items() if k != "model_type"}
    found: PretrainedConfig = CONFIG_MAPPING[config.backbone["model_type"]](**fields)
    return found


def _classifier(config: ComposedConfig) -> nn.Linear:
    return nn.Linear(config.transfer["out_width"], int(config.num_labels or 0), bias=config.classifier_bias)


def _tapped(backbone: nn.Module, layer: str, args: Any, kwargs: Any) -> torch.Tensor:
    """What a layer gives during one forward pass of the backbone; ``penultimate`` is the input of its last linear layer, or of the named one."""
    seen: list[Any] = []
    before, _, name = layer.partition(":")
    picked = INDEXED.fullmatch(layer)
    if before == PENULTIMATE:
        last = backbone.get_submodule(name) if name else [m for m in backbone.modules() if isinstance(m, nn.Linear)][-1]
        handle = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    else:
        taken = backbone.get_submodule(picked[1] if picked is not None else layer)
        handle = taken.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        backbone(*args, **kwargs)
    finally:
        handle.remove()
    return feature_of(seen[-1], layer)


def compose(backbone: PreTrainedModel, layer: str, transfer: dict[str, Any], weights: nn.Module, classifier: nn.Linear,
            labels: int, *, texts: bool = False) -> ComposedForImageClassification | ComposedForSequenceClassification:  # fmt: skip
    """A trained backbone, transfer block and classifier as one saveable model, of images or of texts."""
    config = ComposedConfig(backbone.config.to_dict(), layer, transfer, classifier.bias is not None, num_labels=labels)
    model = (ComposedForSequenceClassification if texts else ComposedForImageClassification)(config)
    model.backbone.load_state_dict(backbone.state_dict())
    model.transfer.load_state_dict(weights.state_dict())
    model.classifier.load_state_dict(classifier.state_dict())
    return model


AutoConfig.register(MODEL_TYPE, ComposedConfig)
AutoModelForImageClassification.register(ComposedConfig, ComposedForImageClassification)
AutoModelForSequenceClassification.register(ComposedConfig, ComposedForSequenceClassification)
