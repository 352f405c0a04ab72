"""What it costs to look at models at work: the passes of a method's calibration, told before any of them is made.

A method with the trait ``calibrate`` also has the trait ``looks``: from a checked call to the passes of examples through models that
it will take. Statistics that are kept from an earlier merge cost nothing again; that is not foreseen here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call, Cost
from interfuse.data.models import Model, size_of, tokenizer_folder
from interfuse.merge.prepare import everyone, weights_of

if TYPE_CHECKING:
    from interfuse.data.tables import Table

#: rows whose tokens are counted; more are as long as these on average
_COUNTED = 1000
_LETTERS = 4  # in a token, where no tokenizer can be asked
_SPEED = 3e10  # floating-point operations in a second, about what two cores do


@dataclass(frozen=True)
class Look:
    """One pass of examples through one model, or through two side by side.

    Attributes:
        models: their indices, the base's being the number of models. examples: the model whose examples they are.
        gradients: whether gradients are computed. part: ``full``, or ``prompt`` for what examples ask alone.
        totals: bytes of running totals per weight; where they do not fit into ``max_memory`` at once, examples are read again.
        kept: bytes per weight that are written as statistics. grams: totals and statistics are Gram matrices of all inputs.
    """

    models: tuple[int, ...]
    examples: int
    gradients: bool = False
    part: str = "full"
    totals: float = 0.0
    kept: float = 0.0
    grams: bool = False


def looking(call: Call) -> Cost:
    """What the calibration of a call costs; nothing for a method that looks at no examples."""
    if "looks" not in call.method.traits or not call.inputs["calibration"]:
        return Cost()
    looks: Sequence[Look] = call.method.traits["looks"](call)
    models = everyone(call)
    width = 8 if call.ctx.dtype == "float64" else 4
    weights, grams = zip(*(_sizes(m) for m in models), strict=True)
    lengths: dict[tuple[int, str], int] = {}
    read = written = tokens = memory = 0
    work = 0.0
    before: tuple[int, ...] = ()
    for look in looks:
        owner = models[look.examples]
        table = table_of(call, look.examples)
        key = (look.examples, look.part)
        lengths[key] = (
            lengths[key] if key in lengths else tokens_of(table, owner, look.part, call.params["calibration_length"])
        )
        totals = 8 * grams[look.examples] if look.grams else look.totals * weights[look.examples]
        budget = int(call.params["max_memory"] * 1e9)
        passes = max(1, math.ceil(totals / budget))
        tokens += passes * lengths[key] * len(look.models)
        loaded = sum(weights[i] for i in look.models)
        work += 2.0 * passes * lengths[key] * loaded * (3 if look.gradients else 1)
        memory = max(memory, int(width * loaded * (2 if look.gradients else 1) + min(totals, budget)))
        kept = 8 * grams[look.examples] if look.grams else int(look.kept * weights[look.examples])
        written += kept
        read += kept + (0 if look.models == before else sum(width // 2 * weights[i] for i in look.models))
        before = look.models
    return Cost(read, written, 0, round(work / _SPEED + (read + written) / 5e8, 1), tokens, memory)


def table_of(call: Call, index: int) -> Table:
    """The examples of a model: its own, or those given for all."""
    tables: list[Table] = call.inputs["calibration"]
    return tables[index] if len(tables) == len(call.inputs["models"]) > 1 else tables[0]


def each(call: Call, **traits: Any) -> list[Look]:
    """Every model on its own examples."""
    return [Look((i,), i, **traits) for i in range(len(call.inputs["models"]))]


def pairs(call: Call) -> list[Look]:
    """Every model beside every other, on the other's examples."""
    return [Look((i, j), j) for i, j in itertools.permutations(range(len(call.inputs["models"])), 2)]


def _sizes(model: Model) -> tuple[int, int]:
    """Numbers of a model, and of the Gram matrices of what its matrices read; from headers."""
    try:
        held = weights_of(model)
    except InterfuseError:  # a step that makes it has not run
        return size_of(model), 0
    try:
        infos = [held[n] for n in held if held[n].kind.floating]
        vocabulary = (model.config.get("text_config") or model.config).get("vocab_size")
        matrices = [i.shape for i in infos if len(i.shape) == 2 and i.shape[0] != vocabulary]
        return sum(math.prod(i.shape) for i in infos), sum(columns * columns for _, columns in matrices)
    finally:
        held.close()


def tokens_of(table: Table, model: Model, part: str, longest: int) -> int:
    """The tokens of a table's texts as a model reads them, cut off where they are cut off; its examples when they are no texts."""
    rows = len(table)
    if table.kind not in ("text", "prompt") or not rows or table.dataset is None:
        return rows
    from interfuse.kit.passes import texts_of

    try:
        texts = texts_of(table, part)[:_COUNTED]
    except InterfuseError:  # refused when it is read
        return rows
    folder = tokenizer_folder(model)
    if folder is not None and (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
        found.no_padding()
        found.no_truncation()
        counts = [len(e.ids) for e in found.encode_batch(texts)]
    else:
        counts = [-(-len(text) // _LETTERS) for text in texts]
    return round(sum(min(c, longest) for c in counts) * rows / len(texts))
