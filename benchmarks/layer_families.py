"""Which families of ``transformers`` that classify images or texts get automatic layers and a penultimate one, on small networks with
random weights. Run: ``python benchmarks/layer_families.py [FAMILY ...]``; takes about a minute, needs no network."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import Any

import torch
import transformers
from record import RESULTS, commit, machine
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from interfuse.core.errors import InterfuseError
from interfuse.kit.taps import Taps

WIDTH, VOCABULARY = 32, 200
#: what a field's name means -> a small value of it
SMALL = {
    WIDTH: ("hidden_size", "d_model", "dim", "embed_dim", "n_embd", "emb_dim", "hidden_dim", "embedding_size", "attention_hidden_size",
            "d_latents", "word_embed_proj_dim", "projection_dim"),
    2 * WIDTH: ("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "moe_intermediate_size",
                "shared_expert_intermediate_size", "ffn_hidden_size", "image_size"),
    3: ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    WIDTH // 4: ("head_dim", "d_kv", "d_head", "kv_channels"),
    VOCABULARY: ("vocab_size",),
    4: ("num_experts", "n_routed_experts", "num_local_experts"),
}  # fmt: skip
FIELDS = {name: value for value, names in SMALL.items() for name in names}
WINDOWS = {"embed_dim": 12, "depths": [1, 1, 1, 1], "image_size": 64, "window_size": 2, "num_heads": [3, 3, 3, 3]}
LATENT = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8, "qk_head_dim": 16}
LINEAR = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
#: families whose fields hang together in a way of their own
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("swin", "swinv2", "donut-swin"), WINDOWS), **dict.fromkeys(("deepseek_v3", "minicpm3"), LATENT), "qwen3_5_text": LINEAR,
    "efficientnet": {"hidden_dim": 2560}, "deberta": {"pooler_hidden_size": WIDTH}, "deberta-v2": {"pooler_hidden_size": WIDTH},
    "gptj": {"rotary_dim": 8}, "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": 64}, "esm": {"vocab_size": VOCABULARY},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48, "intermediate_size": 96}, "siglip2": {"num_patches": 16}, "qwen3_moe": {"num_experts": 8},
    "nemotron": {"num_key_value_heads": 4, "head_dim": 8}, "ministral": {"head_dim": 8}, "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8}, "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2}, "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip


def shrink(config: PretrainedConfig, depth: int = 0) -> None:
    """Makes a configuration small, in place, by the names of its fields."""
    for name, value in dict(vars(config)).items():
        if isinstance(value, PretrainedConfig) and depth < 3:
            shrink(value, depth + 1)
        elif isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
            small = FIELDS.get(name)
            if small == 3 or name in ("max_position_embeddings", "n_positions"):
                small = min(value, small or 64)
            elif "heads" in name or name == "n_head":
                small = min(value, 4)
            elif name.endswith("_token_id") and value >= VOCABULARY:
                small = 1
            if small is not None:
                with contextlib.suppress(Exception):  # a field that a family computes
                    setattr(config, name, small)
        elif name == "depths" and isinstance(value, list | tuple) and all(isinstance(v, int) for v in value):
            config.depths = type(value)(min(v, 2) for v in value)
    if not getattr(config, "pad_token_id", None):
        with contextlib.suppress(Exception):
            config.pad_token_id = 0


def configured(family: str) -> PretrainedConfig:
    """A small configuration of a family, for five classes."""
    own = OWN.get(family, {})
    try:
        config = CONFIG_MAPPING[family](**own)
    except Exception:  # fields that only fit a small network
        config = CONFIG_MAPPING[family]()
    shrink(config)
    for name, value in own.items():
        setattr(config, name, value)
    config.num_labels = 5
    config.architectures = list(config.architectures or [])
    return config


def inputs_of(task: str, family: str, config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """Two examples, of texts one with padding."""
    draw = torch.Generator().manual_seed(0)
    if family == "imagegpt":
        return {"input_ids": torch.randint(0, 100, (2, 12), generator=draw)}
    if family == "siglip2":
        return {"pixel_values": torch.rand(2, 16, 768, generator=draw), "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
                "spatial_shapes": torch.tensor([[4, 4], [4, 4]])}  # fmt: skip
    if task == "image":
        size = getattr(config, "image_size", None) or 64
        size = size[0] if isinstance(size, list | tuple) else size
        return {"pixel_values": torch.rand(2, getattr(config, "num_channels", 3) or 3, size, size, generator=draw)}
    ids, mask = torch.randint(5, 100, (2, 9), generator=draw), torch.ones(2, 9, dtype=torch.long)
    ids[0, 6:], mask[0, 6:] = 0, 0
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 < end < VOCABULARY:  # some decide by the end token
        ids[ids == end] = 7
        ids[0, 5], ids[1, 8] = end, end
    boxes = {"bbox": torch.zeros(2, 9, 4, dtype=torch.long)} if family == "layoutlmv3" else {}
    return {"input_ids": ids, "attention_mask": mask, **boxes}


def one(task: str, family: str) -> dict[str, Any]:
    """A family's row: why it did not run, or the shapes of its layers, or the code it was refused with."""
    row: dict[str, Any] = {"task": task, "family": family}
    auto = AutoModelForImageClassification if task == "image" else AutoModelForSequenceClassification
    try:
        torch.manual_seed(0)
        config = configured(family)
        module: torch.nn.Module = auto.from_config(config).eval()  # type: ignore[no-untyped-call]
        given = inputs_of(task, family, config)
        with torch.no_grad():
            _ = module(**given).logits
    except Exception as error:  # a package is missing, or fields do not fit each other: it says nothing about layers
        return {
            **row,
            "not_run": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
        }
    for kind in ("penultimate", "auto"):
        try:
            with Taps(module, [kind]) as taps, torch.no_grad():
                module(**given)
                row[kind] = {name: list(shape) for name, shape in taps.shapes().items()}
        except InterfuseError as error:
            row[kind] = f"{error.code}: {error.what}"
    return row


def main() -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable(logging.CRITICAL)
    wanted, rows = sys.argv[1:], []
    for task, names in (
        ("image", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        ("text", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    ):
        rows += [one(task, family) for family in names if not wanted or family in wanted]
    ran = [r for r in rows if "not_run" not in r]
    counts = {task: {"known": sum(r["task"] == task for r in rows), "ran": sum(r["task"] == task for r in ran),
                     **{kind: sum(r["task"] == task and isinstance(r[kind], dict) for r in ran) for kind in ("penultimate", "auto")}} for task in ("image", "text")}  # fmt: skip
    print(json.dumps(counts, indent=2))
    for row in rows:
        refused = {k: v for k, v in row.items() if k in ("penultimate", "auto") and isinstance(v, str)}
        if refused or "not_run" in row:
            print(row["task"], row["family"], row.get("not_run") or refused)
    if not wanted:
        found = {"machine": machine(), "commit": commit(), "counts": counts, "families": rows}
        (RESULTS / "layer-families.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
