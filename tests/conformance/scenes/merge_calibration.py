"""Calibration tables for the merge room's scene, and the oracle's view of models and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import tiny_texts


def tables(kind: str, path: Path, count: int, change: str = "") -> list[str]:
    """Parquet files of a few examples each: digits with labels, or sentences cut into question and answer."""
    from datasets import Dataset

    from tests.conformance.fixtures import digits

    found = []
    for number in range(count):
        file = path / f"calibration-{number}{'-' + change if change else ''}.parquet"
        if not file.is_file():
            if kind == "vit":
                images, labels = digits()
                rows = [number + 7 * i for i in range(4 + number)]
                table = {"image": images[rows].tolist(), "label": [labels[i] for i in rows]}
            else:
                texts, _ = tiny_texts.sentences(60)
                chosen = [texts[(11 * number + 3 * i) % 60].split() for i in range(5 + number)]
                chosen = [c for c in chosen if len(c) >= 4]
                table = {
                    "prompt": [" ".join(c[:3]) + " " for c in chosen],
                    "response": [" ".join(c[3:]) for c in chosen],
                }
            made = Dataset.from_dict(table)
            path.mkdir(parents=True, exist_ok=True)
            (made.select(range(change == "one")) if change in ("one", "empty") else made).to_parquet(file)
        found.append(str(file))
    return found


def probe(given: Mapping[str, Any], kind: str, auto: str) -> Any:
    """The models in float64 with their examples, as the oracles want them."""
    import pyarrow.parquet
    import safetensors
    import torch
    import transformers

    from tests.oracles.merge_calibration_oracle import open_probe

    folders = [*given["models"], *([given["base"]] if "base" in given else [])]
    files = given["calibration"]
    files = files if len(files) > 1 else files * max(1, len(given["models"]))
    full: list[list[Any]] = []
    prompts: list[list[Any]] = []
    for file in files:
        rows = pyarrow.parquet.read_table(file).to_pylist()
        if kind == "vit":
            labels = sorted({r["label"] for r in rows})
            full.append([({"pixel_values": torch.tensor(r["image"])[None, None]}, labels.index(r["label"])) for r in rows])  # fmt: skip
            prompts.append([])
            continue
        tokens = transformers.AutoTokenizer.from_pretrained(folders[0])

        def read(texts: Sequence[str], tokens: Any = tokens) -> list[Any]:
            return [({"input_ids": tokens(t, return_tensors="pt")["input_ids"]}, None) for t in texts]

        full.append(read([r["prompt"] + r["response"] for r in rows]))
        prompts.append(read([r["prompt"] for r in rows]))
    opened = open_probe(folders, auto, full, prompts, {})
    with safetensors.safe_open(Path(folders[0]) / "model.safetensors", framework="pt") as held:
        stored = {n: held.get_tensor(n) for n in held.keys()}  # noqa: SIM118
    loaded = dict(opened.modules[0].named_parameters())
    # which parameter holds a tensor's numbers: found by comparing them
    for n, tensor in stored.items():
        owners = [p for p, q in loaded.items() if q.shape == tensor.shape and torch.equal(q.float(), tensor)]
        assert len(owners) == 1, f"{n} is held by {owners}"
        opened.files[n] = owners[0]
    return opened
