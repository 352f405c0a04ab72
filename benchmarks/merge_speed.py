"""Whole merges from the shell, beside mergekit on the same files and beside a plain copy of the same bytes.

mergekit is not a dependency: give the path of its command (installed in an environment of its own) to compare with it.

    python benchmarks/merge_speed.py [--gigabytes 1.3] [--runs 5] [--mergekit VENV/bin/mergekit-yaml]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import save, summary
from safetensors.torch import load_file, save_file

HIDDEN, FFN, VOCAB = 2048, 5632, 32000
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": 3},
    "task-arithmetic": {"merge_method": "task_arithmetic", "models": 2, "base": True},
    "slerp": {"merge_method": "slerp", "models": 2, "ours": ["--t", "0.5"], "theirs": {"t": 0.5}},
    "ties": {"merge_method": "ties", "models": 2, "base": True, "ours": ["--density", "0.2"], "theirs": {"density": 0.2}},
    "dare-ties": {"merge_method": "dare_ties", "models": 2, "base": True, "ours": ["--density", "0.5", "--rescale", "l1"], "theirs": {"density": 0.5}},
    "sce": {"merge_method": "sce", "models": 2, "base": True, "ours": ["--select-topk", "0.5"], "theirs": {"select_topk": 0.5}},
}  # fmt: skip


def checkpoint(folder: Path, gigabytes: float, seed: int) -> None:
    """A Llama-shaped bf16 checkpoint of about the given size: a shared base and small changes."""
    folder.mkdir(parents=True)
    per_layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN + 2 * HIDDEN
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * VOCAB * HIDDEN) / per_layer))
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {at + f"self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
        shapes |= {
            at + "mlp.gate_proj.weight": (FFN, HIDDEN),
            at + "mlp.up_proj.weight": (FFN, HIDDEN),
            at + "mlp.down_proj.weight": (HIDDEN, FFN),
        }
        shapes |= {at + "input_layernorm.weight": (HIDDEN,), at + "post_attention_layernorm.weight": (HIDDEN,)}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        base = torch.randn(shape, generator=torch.Generator().manual_seed(number)) * 0.02
        change = (
            torch.randn(shape, generator=torch.Generator().manual_seed(10_000 * seed + number)) * 0.002 if seed else 0.0
        )
        tensors[name] = (base + change).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "vocab_size": VOCAB,
              "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 2048, "tie_word_embeddings": False, "dtype": "bfloat16"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def timed(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of a whole process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(said.decode()[-2000:])
    return time.perf_counter() - began, usage.ru_maxrss / 1024


COPY = """
import os, sys
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
buffer = bytearray(1 << 22)
for number, name in enumerate(sys.argv[2:]):
    with open(name, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            if number == 0:
                os.write(out, memoryview(buffer)[:n])
os.fsync(out)
"""


def equal(ours: Path, theirs: Path) -> dict[str, float]:
    """How far two results are apart: share of equal values, and the largest difference relative to the largest value."""
    a = load_file(ours / "model.safetensors")
    files = sorted(theirs.glob("*.safetensors"))
    b = {k: v for f in files for k, v in load_file(f).items()}
    same = total = 0
    worst = 0.0
    for name, value in a.items():
        x, y = value.float(), b[name].float()
        same += int((x == y).sum())
        total += x.numel()
        worst = max(worst, float((x - y).abs().max() / y.abs().max()))
    return {"share_equal": same / total, "largest_relative_difference": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 is one per processor")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--mergekit", help="path of mergekit-yaml")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="merge-speed-"))
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        for i, name in enumerate(["base", "a", "b", "c"]):
            checkpoint(root / name, args.gigabytes, i)
        size = (root / "base" / "model.safetensors").stat().st_size
        rows = []
        for method in args.methods.split(","):
            about = METHODS[method]
            base = about.get("base", False)
            models = ["a", "b", "c"][: about["models"]]
            sources = [str(root / n) for n in [*(["base"] if base else []), *models]]
            command = [str(Path(sys.executable).with_name("interfuse")), "merge", method, *[str(root / n) for n in models],
                       *(["--base", str(root / "base")] if base else []), *about.get("ours", []), "--workers", str(args.threads), "-q",
                       "-o", str(root / "ours"), "--force"]  # fmt: skip
            copy = [sys.executable, "-c", COPY, str(root / "copy"), *[s + "/model.safetensors" for s in sources]]
            commands = {"ours": command, "copy": copy}
            if args.mergekit:
                recipe = {
                    "merge_method": about["merge_method"],
                    "dtype": "bfloat16",
                    "models": [{"model": str(root / n), "parameters": {"weight": 1.0}} for n in models],
                }
                if base:
                    recipe["base_model"] = str(root / "base")
                if method == "slerp":
                    recipe["base_model"] = str(root / "a")
                recipe["parameters"] = about.get("theirs", {})
                (root / "recipe.yml").write_text(json.dumps(recipe))
                commands["mergekit"] = [
                    args.mergekit,
                    str(root / "recipe.yml"),
                    str(root / "theirs"),
                    "--no-copy-tokenizer",
                ]
            times: dict[str, list[float]] = {n: [] for n in commands}
            peaks: dict[str, float] = {}
            for run in range(args.runs + 1):
                for name, words in commands.items():
                    shutil.rmtree(root / "theirs", ignore_errors=True)
                    seconds, peak = timed(words, env)
                    peaks[name] = max(peaks.get(name, 0.0), peak)
                    if run:
                        times[name].append(seconds)
            row = {
                "method": method,
                "sources": len(sources),
                "bytes_each": size,
                "seconds": {n: summary(t) for n, t in times.items()},
                "peak_mb": peaks,
            }
            row["over_copy"] = statistics.median(times["ours"]) / statistics.median(times["copy"])
            if args.mergekit:
                timed(commands["mergekit"], env)
                row["mergekit_over_ours"] = statistics.median(times["mergekit"]) / statistics.median(times["ours"])
                row["results"] = equal(root / "ours", root / "theirs")
            rows.append(row)
            print(json.dumps(row))
        assert np.isfinite(size)
        print(save("merge-speed", {"what": "whole processes, warm cache", "gigabytes": args.gigabytes, "threads": args.threads, "rows": rows,
                                   "peak_rss_of_children_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}))  # fmt: skip
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
