"""Writes ``mergekit.json``: what mergekit makes of the recipes beside it, a few numbers per tensor.

Run it where mergekit 0.1.5 is installed, from the root of the project::

    python -m tests.formats.golden.freeze FOLDER

FOLDER gets the tiny checkpoints. mergekit is compared with, not used: its licence is LGPL-3.0, and none of it is here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "mergekit"
POINTS = 6
TEXTS = ("the cat swims here", "there sees a bluebird", "fish dog")


def digest(tensor: Any) -> dict[str, Any]:
    """Shape, sum, sum of squares, and six elements at equal distances."""
    flat = tensor.double().flatten()
    places = [i * (flat.numel() - 1) // (POINTS - 1) for i in range(POINTS)]
    numbers = [float(f"{v:.9g}") for v in (flat.sum(), flat.square().sum(), *flat[places])]
    return {"shape": list(tensor.shape), "numbers": numbers}


def main(folder: Path) -> None:
    """Runs every recipe with mergekit."""
    from importlib.metadata import version

    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file

    from tests.tiny_models import zoo

    os.chdir(zoo(folder))
    found: dict[str, Any] = {"mergekit": version("mergekit"), "recipes": {}}
    for path in sorted(RECIPES.glob("*.yml")):
        for number, raw in enumerate(yaml.safe_load_all(path.read_text())):
            name = raw.pop("name", path.stem)
            options = MergeOptions(
                write_model_card=False, quiet=True, random_seed=0, lora_merge_cache=str(folder / "lora")
            )
            if "tokenizer" in raw and raw.get("chat_template"):
                del raw["chat_template"]
            try:
                run_merge(MergeConfiguration.model_validate(raw), str(folder / name), options)
            except Exception as error:  # what it refuses is of interest too
                found["recipes"][path.stem] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
                print(path.stem, number, found["recipes"][path.stem], flush=True)
                break
            state = {k: v for f in sorted((folder / name).glob("*.safetensors")) for k, v in load_file(f).items()}
            row: dict[str, Any] = {"tensors": {k: digest(v) for k, v in sorted(state.items())}}
            if (folder / name / "tokenizer.json").is_file() and "tokenizer" in path.stem:
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(folder / name)
                row["tokens"] = tokenizer.get_vocab()
                row["encoded"] = {text: tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for text in TEXTS}
                row["embedding"] = [[float(f"{v:.9g}") for v in r[:3]] for r in state["model.embed_tokens.weight"]]
            found["recipes"][path.stem] = row
            print(path.stem, number, len(state), flush=True)
    (HERE / "mergekit.json").write_text(
        json.dumps(found, separators=(",", ":")).replace('"recipes"', '\n"recipes"').replace('},"', '},\n"') + "\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
