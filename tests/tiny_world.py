"""A tiny world for methods that harvest models: a tokenizer of whole words, untrained models, papers, judgements, documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS = [
    ["france", "paris"],
    ["japan", "tokyo"],
    ["peru", "lima"],
    ["kenya", "nairobi"],
    ["norway", "oslo"],
    ["italy", "rome"],
]
THINGS = ["brick", "feather", "stone", "cup"]
WORDS = ["the", "capital", "of", "is", "are", "can", "have", "need", "would", "may", "typically", "often", "always", "generally", "normally", "heavier", "lighter", "bigger", "smaller", "more", "less", "hot", "cold", "soft", "hard", "compared", "to", "bricks", "feathers", "stones", "cups", "a", "an", "in", "city", "and", "they", "than", "useful", "event", "likes", "wants", "flowers", "dinner", "cooks", "buys", "alex", "chris", "PersonX", "sleeps", "eats", "water", "as", "result", "person", ".", ",", "1", "2", "3", "4", ":"] + [w for pair in FACTS for w in pair] + THINGS  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[EOS]", "[MASK]"]
VOCABULARY = len(SPECIAL) + len(dict.fromkeys(WORDS))
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                         "num_attention_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "initializer_range": 0.6}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "masked": {"model_type": "bert", **SHAPE},
    "causal": {"model_type": "llama", **SHAPE, "num_key_value_heads": 1, "eos_token_id": 2, "bos_token_id": 2},
}


def tokenizer(folder: Path) -> Path:
    """The folder of a tokenizer with one token per word."""
    if not (folder / "tokenizer_config.json").is_file():
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        ids = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
        core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
        core.normalizer = normalizers.Sequence(
            [
                normalizers.Replace("PersonX", "personx"),
                normalizers.Lowercase(),
                normalizers.Replace("personx", "PersonX"),
            ]
        )
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", mask_token="[MASK]"
        )
        fast.save_pretrained(folder)
    return folder


def model(folder: Path, kind: str, seed: int = 7) -> str:
    """The folder of an untrained model (``masked`` or ``causal``) with its tokenizer."""
    place = folder / kind
    if not (place / "config.json").is_file():
        from interfuse.core.ctx import Ctx
        from interfuse.core.rooms import Source
        from interfuse.data.models import build, open_model

        task = {"masked": "masked-lm", "causal": "causal-lm"}[kind]
        ctx = Ctx(seed=seed)
        module: Any = build(open_model(Source({"config": MODELS[kind], "task": task}), ctx), ctx)
        module.save_pretrained(place)
        tokenizer(place)
    return str(place)


RELATIONS: dict[str, Any] = {
    "capital": {"prompts": ["The capital of <ENT0> is <ENT1>", "<ENT1> is the city of <ENT0>"], "seeds": FACTS[:3]},
    "city": {"prompts": ["<ENT1> is a city in <ENT0>"], "seeds": FACTS[1:4]},
}
PAIRS = [["brick", "feather"], ["stone", "cup"]]
SCHEMA: dict[str, Any] = {
    "wants": {"phrase": "as a result wants", "examples": [["PersonX cooks dinner", "water"], ["PersonX buys flowers", "hot water"]]},
    "is": {"phrase": "is", "examples": [["a brick", "heavier"], ["a cup", "useful"]]},
}  # fmt: skip
HEADS = ["PersonX cooks dinner", "PersonX buys flowers", "a stone", "a feather", "PersonX sleeps"]
RULES = [{
    "name": "eating", "domain": "food",
    "premise": {"is_allergic_to(P, A)": "[P] is allergic to [A]", "is_part_of(A, B)": "[A] is part of [B]", "is_served_in(B, C)": "[B] is served in [C]"},
    "conclusion": {"avoids(P, B)": "[P] avoids [B]"},
    "variables": {"P": {"type": "person", "generic": True}, "A": {"type": "ingredient"}, "B": {"type": "dish"}, "C": {"type": "place"}},
}]  # fmt: skip


def judgements(count: int = 160) -> list[dict[str, Any]]:
    """Judged triples: stones and bricks are heavier, the others lighter, but a third is judged wrongly."""
    things = ["stone", "brick", "feather", "cup"]
    rows = []
    for i in range(count):
        thing, tail = things[i % 4], ["heavier", "lighter"][(i // 4) % 2]
        rows.append(
            {
                "head": f"a {thing} {i // 8}",
                "relation": "is",
                "tail": tail,
                "valid": int(((thing in things[:2]) == (tail == "heavier")) != (i % 3 == 0)),
            }
        )
    return rows


def papers(count: int = 60) -> list[dict[str, Any]]:
    """Papers of six years that cite earlier ones; three concepts of technique, three of science."""
    names = ["neural network", "monte carlo", "fourier transform", "dark matter", "stellar wind", "galaxy cluster"]
    rows = []
    for i in range(count):
        own = sorted({(i * 5) % 6, (i * 7 + 2) % 6, (i // 3) % 6})
        refs = sorted({(i * 3) // 4 - 1, i // 2, i - 1} & set(range(i)))
        rows.append(
            {
                "id": f"p{i}",
                "year": 2000 + i // 10,
                "references": [f"p{j}" for j in refs],
                "concepts": [names[k] for k in own],
            }
        )
    return rows


DOMAINS = {
    "technique": ["neural networks", "monte carlo", "fourier transform"],
    "science": ["dark matter", "stellar wind", "galaxy clusters"],
}
PASSAGES = {
    "one.txt": "Collagen is a protein that gives skin its strength. The Eiffel Tower is located in Paris. It is tall.\n\n"
               "Spider silk contains several proteins and some water. Graphene is used for batteries and fast sensors.\n",
    "two.txt": "Collagen is a protein found in every tendon. Bone contains collagen and hard minerals. Steel is the alloy of iron with carbon. "
               "Old bridges fall because steel rusts in wet air.\n",
    "three.txt": "Keratin is a protein of hair and horn. Human hair contains keratin. Rust weakens iron beams.\n",
}  # fmt: skip


def parquet(file: Path, rows: list[dict[str, Any]]) -> str:
    """A parquet file of some rows."""
    if not file.is_file():
        from datasets import Dataset

        file.parent.mkdir(parents=True, exist_ok=True)
        columns = {name: [r[name] for r in rows] for name in rows[0]}
        Dataset.from_dict(columns).to_parquet(file)
    return str(file)


def documents(folder: Path) -> str:
    """A folder of the passages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in PASSAGES.items():
        if not (folder / name).is_file():
            (folder / name).write_text(text)
    return str(folder)


def meals(folder: Path) -> str:
    """A graph of ingredients, dishes and places, as N-Triples that the graph noun reads."""
    from interfuse.data.graph import Graph
    from interfuse.data.statements import LABEL, Evidence, Literal, Statement, entity_id, relation_id

    if not folder.is_dir():
        proof = (Evidence("menu"),)
        graph = Graph.open(None)
        served = [("nut", "cake", "cafe"), ("nut", "bread", "inn"), ("milk", "cake", "inn"), ("milk", "soup", "inn"), ("egg", "cake", "cafe"),
                  ("egg", "noodles", "stall"), ("nut", "cake", "inn"), ("milk", "tea", "stall")]  # fmt: skip
        for part, dish, place in served:
            graph.add([Statement(entity_id(part), relation_id("is part of"), entity_id(dish), evidence=proof),
                       Statement(entity_id(dish), relation_id("is served in"), entity_id(place), evidence=proof),
                       *(Statement(entity_id(x), LABEL, Literal(x), evidence=proof) for x in (part, dish, place))])  # fmt: skip
        graph.write(folder)
    return str(folder)


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
