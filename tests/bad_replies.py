"""A thousand bad replies of language models, made by code: good records, and one or two kinds of damage seen in the wild. Beside them
some replies of a real small model, as they came."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = ("subject", "relation", "object", "quote")
NAMES = [
    "Oslo",
    "Edvard Grieg",
    "Peer Gynt (suite)",
    "Åse's Death",
    "O'Neill",
    'The "Hall" of Kings',
    "Norway",
    "C++",
    "Bergen, Norway",
    "1 {one}",
    "Rana clamitans",
]
RELATIONS = ["capital of", "composed by", "born in", "part of", "has_author"]

Row = dict[str, str]


def rows_of(rng: np.random.Generator) -> list[Row]:
    """Two to six records."""
    made = []
    for _ in range(int(rng.integers(2, 7))):
        s, o = (NAMES[int(i)] for i in rng.choice(len(NAMES), 2, replace=False))
        r = RELATIONS[int(rng.integers(len(RELATIONS)))]
        made.append({"subject": s, "relation": r, "object": o, "quote": f"{s} is said to be {r} {o}."})
    return made


def pretty(rows: list[Row]) -> str:
    return json.dumps({"statements": rows}, indent=2, ensure_ascii=False)


def plain(rows: list[Row]) -> list[Row]:
    """Records without marks that a kind of damage would make ambiguous."""
    return [{k: re.sub(r"[\"'{}]", "", v) for k, v in row.items()} for row in rows]


def truncated(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    text = pretty(rows)
    cut = text.rindex('"subject"') + int(rng.integers(3, 40))
    return text[:cut], rows[:-1]


def fenced(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return f"Sure! Here is the JSON you asked for {{as requested}}:\n```json\n{pretty(rows)}\n```\nLet me know!", rows


def trailing(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return re.sub(r'("\n\s*\})', lambda m: m.group(1).replace('"\n', '",\n', 1), pretty(rows)).replace(
        "}\n  ]", "},\n  ]"
    ), rows


def single(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    rows = plain(rows)
    return str({"statements": rows}), rows


def curly(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    rows = plain(rows)
    return re.sub(r'"([^"]*)"', r"“\1”", pretty(rows)), rows


def bare(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return re.sub(r'"(subject|relation|object|quote|statements)":', r"\1:", pretty(rows)), rows


def literals(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return pretty(rows).replace('"quote":', '"checked": True, "source": None, "quote":'), rows


def comments(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return pretty(rows).replace("    {\n", "    { // a statement\n").replace(
        '"statements"', '/* all */ "statements"'
    ), rows


def no_commas(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return pretty(rows).replace("},\n", "}\n"), rows


def line_ends(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return pretty(rows).replace(" is said to be ", " is said\nto be "), [
        {**r, "quote": r["quote"].replace(" is said to be ", " is said\nto be ")} for r in rows
    ]


def unescaped(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return pretty(rows).replace('\\"', '"'), rows


def lines(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return "\n".join(json.dumps(r, ensure_ascii=False) for r in rows), rows


def lists(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return json.dumps({"statements": [list(r.values()) for r in rows]}, ensure_ascii=False), rows


def unclosed(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return re.sub(r"\s*\]\s*\}\s*\Z", "", pretty(rows)), rows


def lost_brace(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    text = pretty(rows)
    place = text.index("},")
    return text[:place] + "," + text[place + 2 :], rows


def mixed(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    bad = {"subject": rows[0]["subject"], "relation": "", "note": "..."}
    return pretty([*rows[:1], bad, *rows[1:]]), rows  # type: ignore[list-item]


def bullets(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return "Statements:\n" + "\n".join(f"{i}. {json.dumps(r, ensure_ascii=False)}" for i, r in enumerate(rows, 1)), rows


def upper(rows: list[Row], rng: np.random.Generator) -> tuple[str, list[Row]]:
    return re.sub(r'"(subject|relation|object|quote)":', lambda m: f'"{m.group(1).title()}":', pretty(rows)).replace(
        "},\n", "}\n"
    ), rows


KINDS: list[Callable[[list[Row], np.random.Generator], tuple[str, list[Row]]]] = [
    truncated, fenced, trailing, single, curly, bare, literals, comments, no_commas, line_ends, unescaped, lines, lists, unclosed, lost_brace,
    mixed, bullets, upper,
]  # fmt: skip


def bad_replies(count: int = 1000, seed: int = 11) -> list[tuple[str, str, list[Row]]]:
    """(kind, reply, the records that it still holds)."""
    rng = np.random.Generator(np.random.Philox(seed))
    made = []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        reply, good = kind(rows_of(rng), rng)
        made.append((kind.__name__, reply, good))
    return made


def real_replies() -> list[dict[str, Any]]:
    """``model``, whether it was ``held to a schema``, how its reply came to a ``finish``, and the ``reply``: distinct ones of
    SmolLM2-135M-Instruct to the prompt of ``build/lm-extract`` with two worked examples, 90 tokens each, for documents with an order in
    them (``benchmarks/build_injection.py``). Most are cut off within their first record."""
    file = Path(__file__).with_name("real_replies.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
