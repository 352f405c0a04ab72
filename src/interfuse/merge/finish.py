"""What surrounds the numbers of a merge: one vocabulary for all sources before, and configuration, tokenizer and card after."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Call, Source
from interfuse.core.safe import canonical_json, jsonable
from interfuse.data.formats.safetensors import KINDS
from interfuse.data.models import Model, copy_tokenizer, locate, tokenizer_folder, write_processor
from interfuse.data.overlay import Overlay, Tensors
from interfuse.data.tokenizer_union import read_tokenizer, try_out, unite, write_template, write_tokenizer
from interfuse.data.vocabulary import (
    Alignment,
    Reader,
    Vocabulary,
    align,
    read_ids,
    refuse_different,
    rows_of,
    vocabulary_tensors,
)
from interfuse.merge.licences import ASKS, told_of
from interfuse.merge.plan import Output, layer_of, stacks

REPORT = "merge.json"
_HEAD = "lm_head.weight"
_SPECIAL = ("bos_token", "eos_token", "pad_token")


class Plan(Protocol):
    """What the engine has prepared."""

    weights: list[Tensors]
    outputs: list[Output]
    alignment: Alignment | None
    merged: Mapping[str, Any] | None
    remarks: list[str]


def open_vocabulary(source: Source, ctx: Ctx) -> Vocabulary:
    """``base``, ``union`` or the folder (or id) of a tokenizer.

    Raises:
        InterfuseError: ``param.value`` when it is neither.
    """
    if isinstance(source.spec, Vocabulary):
        return source.spec
    word = str(source.spec)
    if word in ("base", "union"):
        return Vocabulary(word)
    try:
        folder = locate(word, source.folder)
    except InterfuseError as error:
        raise InterfuseError("param.value", f"no tokenizer {word!r}", where="tokenizer",
                             fix=f"base, union, or a folder. {did_you_mean(word, ('base', 'union'))}".strip()) from error  # fmt: skip
    return Vocabulary(folder.name, folder)


def untied(weights: Sequence[Tensors], configs: Sequence[Mapping[str, Any]]) -> list[Tensors]:
    """Gives models that share their embedding with their output layer an output layer, when others have one of their own."""
    if len({_HEAD in held for held in weights}) < 2:
        return list(weights)
    made: list[Tensors] = []
    for held, config in zip(weights, configs, strict=True):
        embeddings = [n for n in held if n.endswith("embed_tokens.weight")]
        if _HEAD in held or len(embeddings) != 1 or config.get("tie_word_embeddings") is False:
            made.append(held)
            continue
        made.append(Overlay(held, {_HEAD: (held.source(embeddings[0]), held[embeddings[0]].dtype)}))
    return made


def same_vocabulary(
    call: Call, models: Sequence[Model], weights: Sequence[Tensors]
) -> tuple[list[Tensors], Alignment | None, Mapping[str, Any] | None, list[str]]:
    """The models' tensors with embeddings in one order of tokens.

    Returns:
        The tensors, the alignment and the union's ``tokenizer.json`` (if asked for), and remarks.

    Raises:
        InterfuseError: ``input.vocabulary`` when the models read different tokens and no tokenizer is asked for.
    """
    rows = [rows_of(held, m.config) for held, m in zip(weights, models, strict=True)]
    wanted: Vocabulary | None = call.inputs["tokenizer"]
    if any(r is None for r in rows):
        if wanted is not None:
            raise InterfuseError("param.value", "these models read no tokens", where="tokenizer", fix="Leave it out.")
        return list(weights), None, None, []
    readers = [Reader(m.name, tokenizer_folder(m), r or 0) for m, r in zip(models, rows, strict=True)]
    if wanted is None:
        return list(weights), None, None, refuse_different(readers)
    base = len(models) - 1 if call.inputs["base"] is not None else None
    head = readers[base if base is not None else 0]
    merged: Mapping[str, Any] | None = None
    remarks: list[str] = []
    if wanted.name == "union" and wanted.path is None:
        order = [head, *(r for r in readers if r is not head and r.folder is not None)]
        if head.folder is None:
            raise InterfuseError("input.vocabulary", "the first model has no tokenizer to begin the union with", where=head.name,
                                 fix="Put its tokenizer files into its folder.")  # fmt: skip
        tables = [_without_rowless(read_tokenizer(r.folder), r.rows) for r in order if r.folder is not None]
        merged, ids, remarks = unite(tables, [r.name for r in order])
    else:
        folder = wanted.path or head.folder
        found = read_ids(folder) if folder is not None else None
        if found is None:
            raise InterfuseError("input.vocabulary", "there is no tokenizer there", where=str(folder or head.name),
                                 fix="Put its tokenizer files into its folder.")  # fmt: skip
        ids = found
    alignment = align(
        readers, ids, base=base, tokens=call.params["tokens"], pad_to_multiple_of=call.params["pad_to_multiple_of"]
    )
    made: list[Tensors] = [alignment.overlay(i, weights, [r or 0 for r in rows]) for i in range(len(weights))]
    return made, alignment, merged, remarks


def _without_rowless(table: dict[str, Any], rows: int) -> dict[str, Any]:
    """A tokenizer without the added tokens that its model has no row for."""
    return {**table, "added_tokens": [row for row in table.get("added_tokens") or () if row["id"] < rows]}


def finish(
    call: Call,
    folder: Path,
    plan: Plan,
    layout: Mapping[str, Any],
    first: Model,
    models: Sequence[Model],
    own: Mapping[str, Any],
    told: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes configuration, tokenizer, report (with what the method ``told`` of tensors) and card; returns facts for the manifest."""
    wanted: Vocabulary | None = call.inputs["tokenizer"]
    facts: dict[str, Any] = {}
    report: dict[str, Any] = {"models": [m.name for m in models], "remarks": plan.remarks}
    write_surroundings(call, folder, plan, layout, first, models)
    if plan.alignment is not None:
        readers = [(m.name, place) for m in models if (place := tokenizer_folder(m)) is not None]
        tried = try_out(folder, plan.alignment.ids, plan.alignment.rows, readers)
        report["tokenizer"] = {"source": wanted.name if wanted is not None else "", **plan.alignment.report, **tried}
        facts["tokenizer"] = {k: report["tokenizer"][k] for k in ("source", "tokens", "rows")}
    write_report(call, folder, plan, models, own, report, told)
    return facts


def write_surroundings(
    call: Call, folder: Path, plan: Plan, layout: Mapping[str, Any], first: Model, models: Sequence[Model]
) -> None:
    """Writes what stands beside the weights of a model: tokenizer, processor, chat template and configuration."""
    wanted: Vocabulary | None = call.inputs["tokenizer"]
    source = (wanted.path if wanted is not None else None) or tokenizer_folder(first)
    if plan.merged is not None and plan.alignment is not None and source is not None:
        write_tokenizer(folder, source, plan.merged, plan.alignment.ids)
        if (source / "generation_config.json").is_file():
            shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    else:
        copy_tokenizer(source, folder, shutil.copyfile)
    write_processor(first.processor, folder)
    if call.params["chat_template"]:
        write_template(folder, call.params["chat_template"], [tokenizer_folder(m) for m in (first, *models)])
    _write_config(first, folder, plan, layout, models)


def write_report(
    call: Call,
    folder: Path,
    plan: Plan,
    models: Sequence[Model],
    own: Mapping[str, Any],
    report: Mapping[str, Any],
    told: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes what made every tensor (:data:`REPORT`) and what the method ``told`` of it, and the model card."""
    licences, said = told_of(models)
    for sentence in said:
        call.ctx.log(sentence)
    report = {**report, "remarks": [*report["remarks"], *said], **_resolved(plan.outputs, len(models)),
              **({"told": {o.name: told[o.name] for o in plan.outputs if o.name in told}} if told else {})}  # fmt: skip
    (folder / REPORT).write_bytes(canonical_json(jsonable(report)))
    _write_card(call, models, folder, own, licences, said)


def _resolved(outputs: Sequence[Output], count: int) -> dict[str, Any]:
    """Which tensors and which parameters made every output; what holds for many is said once."""
    kinds: dict[str, int] = {}
    rows: dict[str, Any] = {}
    for output in outputs:
        made = {
            "sources": [i for i, _ in output.sources],
            "base": output.base[0] % count if output.base else None,
            "parameters": {} if output.kept else dict(output.own),
            **({"kept": True} if output.kept else {}),
        }
        text = json.dumps(jsonable(made), sort_keys=True)
        kind = kinds.setdefault(text, len(kinds))
        named = [n for _, n in (*output.sources, *([output.base] if output.base else []))]
        rows[output.name] = kind if all(n == output.name for n in named) else {"made": kind, "from": named}
    return {"made": [json.loads(text) for text in kinds], "tensors": rows}


def _write_config(first: Model, folder: Path, plan: Plan, layout: Mapping[str, Any], models: Sequence[Model]) -> None:
    config = {k: v for k, v in jsonable(dict(first.config)).items() if k not in ("torch_dtype", "_name_or_path")}
    if not config:
        return
    kinds = list(dict.fromkeys(KINDS[code] for code, _ in layout.values() if KINDS[code].floating))
    if len(kinds) == 1:
        config["dtype"] = kinds[0].name
    inner = config.get("text_config", config)
    if plan.alignment is not None or inner.get("vocab_size") is not None:
        _set_vocabulary(inner, config, folder, plan, layout)
    if _HEAD in layout and not any(
        _HEAD in held for held, m in zip(plan.weights, models, strict=True) if m is first and m.computed is None
    ):
        config["tie_word_embeddings"] = False
    elif _HEAD in layout and inner.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = inner["tie_word_embeddings"] = False
    _set_layers(inner, plan, layout, models)
    (folder / "config.json").write_bytes(canonical_json(config))


def _set_vocabulary(
    inner: dict[str, Any], config: dict[str, Any], folder: Path, plan: Plan, layout: Mapping[str, Any]
) -> None:
    """``vocab_size`` and the ids of special tokens, as the result's own tokenizer has them."""
    rows = plan.alignment.rows if plan.alignment is not None else None
    if rows is None:
        tensors = plan.weights[-1] if plan.weights else None
        rows = (
            rows_of(tensors, config)
            if tensors is not None and not vocabulary_tensors(tensors, inner["vocab_size"])
            else None
        )
    if rows is not None:
        inner["vocab_size"] = rows
    if plan.alignment is None:
        return
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for file in (None, folder / "generation_config.json"):
        table = inner if file is None else json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if table is None:
            continue
        for name in _SPECIAL:
            token = settings.get(name)
            word = token.get("content") if isinstance(token, dict) else token
            if isinstance(word, str) and word in plan.alignment.ids and not isinstance(table.get(f"{name}_id"), list):
                table[f"{name}_id"] = plan.alignment.ids[word]
        if file is not None:
            file.write_bytes(canonical_json(table))


def _set_layers(inner: dict[str, Any], plan: Plan, layout: Mapping[str, Any], models: Sequence[Model]) -> None:
    """The number of layers, and lists with one entry per layer, where slices have changed them."""
    mine = stacks(list(layout))
    for stack, count in mine.items():
        before = stacks([n for n in plan.weights[-1] if n.startswith(stack)]).get(stack)
        moved = any(
            layer_of(o.name) is not None and o.name.startswith(stack) and (o.base or o.sources[0])[1] != o.name
            for o in plan.outputs
        )
        if before == count and not moved:
            continue
        taken: dict[int, tuple[int, int]] = {}
        for output in plan.outputs:
            place, origin = layer_of(output.name), output.base or output.sources[0]
            theirs = layer_of(origin[1])
            if place is not None and theirs is not None and place[0] == stack:
                taken[place[1]] = (origin[0], theirs[1])
        for key, value in list(inner.items()):
            if (
                isinstance(value, int)
                and not isinstance(value, bool)
                and value == before
                and re.search(r"(?:^n_|num_).*layers?$|^(?:en|de)coder_layers$", key)
            ):
                inner[key] = count
            elif isinstance(value, list) and len(value) == before:
                columns = [m.config.get("text_config", m.config).get(key, value) for m in models]
                inner[key] = [columns[taken[i][0]][taken[i][1]] for i in range(count)]


def _write_card(
    call: Call,
    models: Sequence[Model],
    folder: Path,
    own: Mapping[str, Any],
    licences: Sequence[str],
    said: Sequence[str],
) -> None:
    """The model card hubs read: which models under which licences, which method, which parameters."""
    names = [re.sub(r"[^\w./@+-]", "_", m.name) for m in models]
    library = "peft" if call.params["output"] == "lora" else "transformers"
    same = [f"license: {licences[0]}"] if licences[0].lower() in ASKS and len(dict.fromkeys(licences)) == 1 else []
    lines = ["---", f"library_name: {library}", *same, "base_model:", *(f"- {n}" for n in names), "tags:", "- merge",
             "- interfuse", "---", f"# Merged with `{call.method.id}`", "", "| input | model | licence |", "|---|---|---|"]  # fmt: skip
    lines += [
        f"| {'base' if call.inputs['base'] is m else 'model'} | {n} | {licence or 'not stated'} |"
        for m, n, licence in zip(models, names, licences, strict=True)
    ]
    lines += [line for sentence in said for line in ("", sentence)]
    shown = {
        **own,
        **{k: call.params[k] for k in ("slices", "freeze", "tokens", "pad_to_multiple_of") if call.params[k]},
    }
    lines += ["", "Parameters:", "", "```json", json.dumps(jsonable(shown), indent=2, sort_keys=True), "```", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
