"""Looking at merges: what a recipe would do, how two models differ, what made a tensor, a change as a LoRA adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interfuse.core.artifact import Artifact, environment, open_artifact, save_artifact, verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Call, Source
from interfuse.core.safe import read_text
from interfuse.data.formats.safetensors import KINDS
from interfuse.data.lora import MODEL as ADAPTER
from interfuse.data.lora import write_adapter
from interfuse.data.models import Model, build, make_config, open_model
from interfuse.data.overlay import Tensors, whole
from interfuse.data.vocabulary import rows_of, vocabulary_tensors
from interfuse.data.weights import Flat, Weights
from interfuse.kit.reductions import Difference, gram, sums
from interfuse.merge.adapters import best_pair
from interfuse.merge.finish import REPORT
from interfuse.merge.plan import layer_of
from interfuse.merge.prepare import everyone, prepared, weights_of
from interfuse.merge.recipes import recipe_call
from interfuse.merge.room import estimate, layout_of

Tensor = torch.Tensor


def lint(path: Path, ctx: Ctx | None = None) -> dict[str, Any]:
    """What a mergekit file would do, found without reading a number: plan, sizes, cost, remarks.

    Raises:
        InterfuseError: whatever is wrong with the file or its models.
    """
    call, notes = recipe_call(path, ctx)
    return {"recipe": str(path), **planned(call), "notes": notes}


def planned(call: Call) -> dict[str, Any]:
    """The plan of a call in words and sizes."""
    with prepared(call) as plan:
        layout = layout_of(call, plan)
        kinds = {json.dumps(dict(o.own), sort_keys=True, default=str) for o in plan.outputs}
        layers = [place[1] for o in plan.outputs if (place := layer_of(o.name)) is not None]
        return {
            "method": call.method.id,
            "models": [m.name for m in everyone(call)],
            "base": call.inputs["base"].name if call.inputs["base"] is not None else None,
            "tensors": len(plan.outputs),
            "layers": max(layers, default=-1) + 1,
            "parameter sets": len(kinds),
            "bytes": sum(math.prod(shape) * KINDS[code].itemsize for code, shape in layout.values()),
            "vocabulary": dict(plan.alignment.report) if plan.alignment is not None else None,
            "cost": asdict(estimate(call)),
            "remarks": list(plan.remarks),
        }


def difference(a: Tensors, b: Tensors) -> list[dict[str, Any]]:
    """How two models differ, tensor by tensor.

    Returns:
        Rows with ``tensor``, and either ``note`` (missing, other shape) or ``relative`` (``|b - a| / |a|``), ``cosine`` of the
        two tensors, ``largest`` absolute difference, ``changed`` share of elements.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            rows.append({"tensor": name, "note": "only in the second" if name in b else "only in the first"})
            continue
        if a[name].shape != b[name].shape:
            rows.append({"tensor": name, "note": f"{list(a[name].shape)} and {list(b[name].shape)}"})
            continue
        rows.append({"tensor": name, **_compare(a.source(name), b.source(name))})
    return rows


def _compare(x: Flat, y: Flat) -> dict[str, float]:
    largest = 0.0

    def terms(v: list[Tensor]) -> list[Tensor]:
        nonlocal largest
        gap = v[1] - v[0]
        largest = max(largest, float(gap.abs().max()) if gap.numel() else 0.0)
        return [v[0] * v[0], v[1] * v[1], v[0] * v[1], gap * gap, (gap != 0).double()]

    aa, bb, ab, dd, changed = sums([x, y], terms)
    size = max(math.prod(x.shape), 1)
    cosine = ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 else 1.0
    relative = math.sqrt(dd / aa) if aa > 0 else math.inf if dd > 0 else 0.0
    return {
        "relative": relative,
        "cosine": cosine,
        "largest": largest,
        "changed": changed / size,
        "_squares": aa,
        "_gap": dd,
    }


def by_layer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of :func:`difference` added up per layer; tensors outside the layers by their own name."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        place = layer_of(row["tensor"])
        groups.setdefault(f"{place[0]}{place[1]}" if place else row["tensor"], []).append(row)
    out = []
    for name, members in groups.items():
        squares, gap = (sum(m.get(k, 0.0) for m in members) for k in ("_squares", "_gap"))
        out.append({"part": name, "tensors": len(members), "relative": math.sqrt(gap / squares) if squares > 0 else 0.0,
                    "notes": sum("note" in m for m in members)})  # fmt: skip
    return out


def explain(out: Path, tensor: str, *, models: Sequence[Path] = (), base: Path | None = None) -> dict[str, Any]:
    """What made one tensor of a merged model.

    Args:
        out: the merge's folder. tensor: its name, or an end of it that only one has.
        models: the folders of the sources, in the merge's order; with them, and ``base``, numbers are computed: the norm of
            each change, the cosines between them, the share of elements where their signs differ, and how much of each is left.

    Raises:
        InterfuseError: ``input.missing`` for another folder or an unknown tensor.
    """
    artifact = open_artifact(out)
    if not (out / REPORT).is_file():
        raise InterfuseError("input.missing", f"the folder has no {REPORT}: it is not a merge", where=str(out))
    report = json.loads(read_text(out / REPORT, limit=1 << 28))
    names = [n for n in report["tensors"] if n == tensor] or [n for n in report["tensors"] if n.endswith(tensor)]
    if len(names) != 1:
        raise InterfuseError("input.missing", f"{len(names)} tensors end in {tensor!r}", where=str(out),
                             fix=did_you_mean(tensor, report["tensors"]))  # fmt: skip
    row = report["tensors"][names[0]]
    made = report["made"][row if isinstance(row, int) else row["made"]]
    origins = [names[0]] * (len(made["sources"]) + (made["base"] is not None)) if isinstance(row, int) else row["from"]
    sources = [{"model": report["models"][i], "tensor": o} for i, o in zip(made["sources"], origins, strict=False)]
    found: dict[str, Any] = {"tensor": names[0], "method": artifact.manifest["method"], "sources": sources,
                             "base": {"model": report["models"][made["base"]], "tensor": origins[-1]} if made["base"] is not None else None,
                             "parameters": made["parameters"]}  # fmt: skip
    if models:
        found["numbers"] = _numbers(out, names[0], made, origins, models, base)
    return found


def _numbers(
    out: Path, name: str, made: Mapping[str, Any], origins: Sequence[str], models: Sequence[Path], base: Path | None
) -> dict[str, Any]:
    opened = [weights_of(open_model(Source(str(m)), Ctx())) for m in models]
    if max(made["sources"]) >= len(opened):
        raise InterfuseError("param.value", f"{len(opened)} models are given, the merge has more", where="--model",
                             fix="Give them all, in the order of the merge.")  # fmt: skip
    picked: list[Flat] = [opened[i].source(o) for i, o in zip(made["sources"], origins, strict=False)]
    result: Flat = weights_of(open_model(Source(str(out)), Ctx())).source(name)
    if base is not None:
        under = weights_of(open_model(Source(str(base)), Ctx())).source(origins[-1])
        picked, result = [Difference(p, under) for p in picked], Difference(result, under)
    products = gram([*picked, result])
    norms = np.sqrt(products.diagonal())
    safe = np.where(norms > 0, norms, 1.0)
    cosines = products / safe[:, None] / safe[None, :]

    def conflict(values: list[Tensor]) -> list[Tensor]:
        signs = torch.stack(values).sign()
        return [((signs.amax(0) > 0) & (signs.amin(0) < 0)).double()]

    count = len(picked)
    return {
        "of": "changes of the base" if base is not None else "whole tensors",
        "norms": norms[:count].tolist(),
        "norm of the result": float(norms[count]),
        "cosines": cosines[:count, :count].tolist(),
        "cosines with the result": cosines[:count, count].tolist(),
        "sign conflicts": sums(picked, conflict)[0] / max(math.prod(result.shape), 1),
    }


def verify_merge(out: Path, *, generate: bool = True) -> dict[str, Any]:
    """Checks every byte of a merged model, that all numbers are finite, that it loads, and (language models) that it generates.

    Raises:
        InterfuseError: ``artifact.damaged``, ``input.nan`` or ``input.format``.
    """
    artifact: Artifact = verify(out)
    adapted = not (out / "config.json").is_file() and (out / ADAPTER).is_file()  # a merge of LoRA adapters
    weights = Weights.open(out / ADAPTER if adapted else out)
    for name in weights:
        if not weights[name].dtype.is_floating_point:
            continue
        (total,) = sums([weights.source(name)], lambda v: [v[0] - v[0]])  # NaN and infinity less themselves are NaN
        if total != 0:
            raise InterfuseError("input.nan", "a number is NaN or infinite", where=f"{out}: {name}")
    model = open_model(Source(str(out)), Ctx())
    module = build(model, Ctx())
    said: list[int] | None = None
    if generate and model.task == "causal-lm":
        with torch.inference_mode():
            made: Any = module.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=4, do_sample=False)  # type: ignore[operator]
        said = made[0].tolist()
    return {"path": str(out), "digest": artifact.digest, "tensors": len(weights), "task": model.task, "generated": said}


def extract_lora(
    model: Model, base: Model, out: Path, *, rank: int = 16, save_rest: bool = False, force: bool = False
) -> dict[str, Any]:
    """The change from a base to a model as a LoRA adapter: its best approximation of a rank (Eckart and Young 1936).

    Args:
        rank: largest rank of a matrix's change. save_rest: keep changed tensors that are no such matrices (norms, biases,
            embeddings) whole in the adapter; otherwise their change is left out and reported.

    Returns:
        ``share`` of the squared norm of all changes that the adapter holds, and a row per tensor.

    Raises:
        InterfuseError: ``input.shape`` when the models differ, ``param.value`` for a rank below 1.
    """
    if rank < 1:
        raise InterfuseError("param.value", f"the rank must be at least 1, not {rank}", where="--rank")
    theirs, mine = weights_of(model), weights_of(base)
    wrong = [
        n
        for n in dict.fromkeys([*theirs, *mine])
        if n not in theirs or n not in mine or theirs[n].shape != mine[n].shape
    ]
    if wrong:
        raise InterfuseError("input.shape", f"{len(wrong)} tensors differ in name or shape, the first is {wrong[0]}",
                             where=f"{model.name}, {base.name}", fix="Use the base the model was made from.")  # fmt: skip
    modules, turned = _matrices(base, mine)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for name in mine:
        if not mine[name].dtype.is_floating_point:
            continue
        change = whole(Difference(theirs.source(name), mine.source(name))).double()
        size = float(change.square().sum())
        if size == 0:
            continue
        kept = 0.0
        if name in modules:
            pairs[modules[name]], kept = best_pair(change.T if turned else change, rank)
        elif save_rest:
            rest[name] = whole(theirs.source(name)).to(mine[name].dtype)
            kept = size
        rows.append({"tensor": name, "norm": math.sqrt(size), "share": kept / size, "_size": size, "_kept": kept})
    if not pairs and not rest:
        raise InterfuseError("input.empty", "the models do not differ", where=f"{model.name}, {base.name}")
    total, held = sum(r["_size"] for r in rows), sum(r["_kept"] for r in rows)
    share = held / total

    def work(folder: Path) -> dict[str, Any]:
        write_adapter(folder, pairs, rest, {
            "base_model_name_or_path": str(base.path) if base.path else None, "fan_in_fan_out": turned,
            "task_type": {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}.get(base.task),
        })  # fmt: skip
        return {"share": share, "rank": rank, "matrices": len(pairs), "whole tensors": len(rest)}

    inputs = [
        {
            "model": {"name": model.name, "fingerprint": model.fingerprint()},
            "base": {"name": base.name, "fingerprint": base.fingerprint()},
        }
    ]
    params = {"rank": rank, "save_rest": save_rest}
    save_artifact(out, work, {"kind": "adapter", "method": "merge/extract-lora", "params": params, "inputs": inputs,
                              "environment": environment()}, force=force)  # fmt: skip
    return {"path": str(out), "share": share, "matrices": len(pairs), "whole tensors": len(rest),
            "tensors": [{k: v for k, v in r.items() if k[0] != "_"} for r in rows]}  # fmt: skip


def _matrices(base: Model, tensors: Tensors) -> tuple[dict[str, str], bool]:
    """The tensors that are weights of linear layers -> the layer's name; and whether they are stored [in, out]."""
    import transformers
    from transformers.pytorch_utils import Conv1D

    from interfuse.data.models import TASKS

    with torch.device("meta"):
        module = base.module or getattr(transformers, TASKS[base.task][0]).from_config(make_config(base))
    turned = any(isinstance(m, Conv1D) for m in module.modules())
    wanted = Conv1D if turned else torch.nn.Linear
    tokens = vocabulary_tensors(tensors, rows_of(tensors, base.config))
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, wanted):
            known = next((n for n in (f"{name}.weight", f"{name.split('.', 1)[-1]}.weight") if n in tensors), None)
            if known is not None and known not in tokens:
                found[known] = name
    return found, turned
