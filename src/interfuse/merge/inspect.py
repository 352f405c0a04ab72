"""Looking at merges: what a recipe would do, how two models differ, what made a tensor, a change as a LoRA adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
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


def _parts(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensors by layer, layers by their number and not letter by letter; those outside the layers by their own name."""

    def by_number(name: str) -> tuple[str, int]:
        place = layer_of(name)
        return (name, -1) if place is None else place[:2]

    parts: dict[str, list[str]] = {}
    for name in sorted(names, key=by_number):
        place = layer_of(name)
        parts.setdefault(f"{place[0]}{place[1]}" if place else name, []).append(name)
    return parts


def by_layer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of :func:`difference` added up per layer; tensors outside the layers by their own name."""
    named = {row["tensor"]: row for row in rows}
    out = []
    for part, names in _parts(named).items():
        members = [named[name] for name in names]
        squares, gap = (sum(m.get(k, 0.0) for m in members) for k in ("_squares", "_gap"))
        out.append({"part": part, "tensors": len(members), "relative": math.sqrt(gap / squares) if squares > 0 else 0.0,
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
    method, report = _report(out)
    names = [n for n in report["tensors"] if n == tensor] or [n for n in report["tensors"] if n.endswith(tensor)]
    if len(names) != 1:
        raise InterfuseError("input.missing", f"{len(names)} tensors end in {tensor!r}", where=str(out),
                             fix=did_you_mean(tensor, report["tensors"]))  # fmt: skip
    made, origins, under = _made(report, names[0])
    sources = [{"model": report["models"][i], "tensor": o} for i, o in zip(made["sources"], origins, strict=False)]
    found: dict[str, Any] = {"tensor": names[0], "method": method, "sources": sources,
                             "base": {"model": report["models"][made["base"]], "tensor": under} if made["base"] is not None else None,
                             "parameters": made["parameters"], "told": report.get("told", {}).get(names[0], {})}  # fmt: skip
    if models:
        opened, result, below = _opened(report, out, models, base)
        sums_of = _Sums(len(made["sources"]))
        sums_of.add(opened, result, below, names[0], made["sources"], origins, under, range(len(made["sources"])))
        found["numbers"] = {"of": _of(base), **sums_of.numbers()}
    return found


def explain_all(out: Path, *, models: Sequence[Path] = (), base: Path | None = None) -> dict[str, Any]:
    """What each source of a merge contributed, layer by layer; tensors outside the layers by their own name.

    Args:
        out, models, base: as in :func:`explain`; every tensor is read in pieces.

    Returns:
        ``method``, ``models``, ``layers`` (rows), ``whole`` (the same over all tensors) and ``other shapes``: tensors whose numbers are
        left out, since a source has them in another shape (another vocabulary). A row has ``part``, ``tensors``, ``told`` (the
        mean over its tensors of what the method computed of each), and with the models' folders the numbers of :func:`explain`, where
        ``kept`` is the result's component along each source's change, in units of that change: 1 where all of it is in the result.

    Raises:
        InterfuseError: as :func:`explain`; ``param.value`` when there are fewer folders than sources.
    """
    method, report = _report(out)
    count = len(report["models"])
    sources = [i for i in range(count) if any(i in made["sources"] for made in report["made"])]
    opened, result, below = _opened(report, out, models, base) if models else ([], None, None)
    whole_sums, rows = _Sums(len(sources)), []
    other: list[str] = []
    for part, names in _parts(report["tensors"]).items():
        here = _Sums(len(sources))
        for name in names:
            if result is None or not result[name].kind.floating:
                continue
            made, origins, under = _made(report, name)
            mine = [opened[i][o].shape for i, o in zip(made["sources"], origins, strict=True)]
            mine += [below[under].shape] if below is not None else []
            if any(shape != result[name].shape for shape in mine):  # rows were realigned to one vocabulary
                other.append(name)
                continue
            here.add(
                opened,
                result,
                below,
                name,
                made["sources"],
                origins,
                under,
                [sources.index(i) for i in made["sources"]],
            )
        whole_sums.take(here)
        rows.append(
            {
                "part": part,
                "tensors": len(names),
                "told": _mean_told(report, names),
                **(here.numbers() if models else {}),
            }
        )
    everything = {"part": "all", "tensors": len(report["tensors"]), "told": _mean_told(report, list(report["tensors"]))}
    return {"method": method, "models": [report["models"][i] for i in sources], "of": _of(base) if models else None,
            "layers": rows, "other shapes": other, "whole": {**everything, **(whole_sums.numbers() if models else {})}}  # fmt: skip


def _of(base: Path | None) -> str:
    return "changes of the base" if base is not None else "whole tensors"


def _report(out: Path) -> tuple[str, dict[str, Any]]:
    """The method of a merge, and what made its tensors."""
    artifact = open_artifact(out)
    if not (out / REPORT).is_file():
        raise InterfuseError("input.missing", f"the folder has no {REPORT}: it is not a merge", where=str(out))
    report: dict[str, Any] = json.loads(read_text(out / REPORT, limit=1 << 28))
    return artifact.manifest["method"], report


def _made(report: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str], str]:
    """How a tensor was made, the names of its sources' tensors, and of the base's (or, without one, of the last source's)."""
    row = report["tensors"][name]
    made = report["made"][row if isinstance(row, int) else row["made"]]
    origins = [name] * (len(made["sources"]) + (made["base"] is not None)) if isinstance(row, int) else row["from"]
    return made, origins[: len(made["sources"])], origins[-1]


def _mean_told(report: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The mean over tensors of what their method told, number by number."""
    told = report.get("told", {})
    found: dict[str, list[list[float]]] = {}
    for name in names:
        for key, value in told.get(name, {}).items():
            found.setdefault(key, []).append(value if isinstance(value, list) else [value])
    means = {}
    for key, lists in found.items():
        if len({len(values) for values in lists}) == 1:
            mean = [math.fsum(column) / len(column) for column in zip(*lists, strict=True)]
            means[key] = mean if len(mean) > 1 else mean[0]
    return means


def _opened(
    report: Mapping[str, Any], out: Path, models: Sequence[Path], base: Path | None
) -> tuple[list[Tensors], Tensors, Tensors | None]:
    """The tensors of the sources, of the result, and of the base."""

    def tensors_of(place: Path) -> Tensors:
        return weights_of(open_model(Source(str(place)), Ctx()))

    opened = [tensors_of(place) for place in models]
    if max(i for made in report["made"] for i in made["sources"]) >= len(opened):
        raise InterfuseError("param.value", f"{len(opened)} models are given, the merge has more", where="--model",
                             fix="Give them all, in the order of the merge.")  # fmt: skip
    return opened, tensors_of(out), tensors_of(base) if base is not None else None


class _Sums:
    """Inner products of the sources' changes and the result's, and conflicts of their signs, summed over tensors."""

    def __init__(self, count: int) -> None:
        self.products = np.zeros((count + 1, count + 1))
        self.conflicts = self.elements = 0.0

    def add(
        self,
        opened: Sequence[Tensors],
        result: Tensors,
        below: Tensors | None,
        name: str,
        indices: Sequence[int],
        origins: Sequence[str],
        under: str,
        places: Sequence[int],
    ) -> None:
        """Adds one tensor. ``indices`` and ``origins``: the models and their tensors; ``places``: their places in the sums."""
        picked: list[Flat] = [opened[i].source(o) for i, o in zip(indices, origins, strict=True)]
        merged = result.source(name)
        if below is not None:
            base = below.source(under)
            picked, merged = [Difference(p, base) for p in picked], Difference(merged, base)

        def conflict(values: list[Tensor]) -> list[Tensor]:
            signs = torch.stack(values).sign()
            return [((signs.amax(0) > 0) & (signs.amin(0) < 0)).double()]

        at = [*places, len(self.products) - 1]
        found = gram([*picked, merged])
        for row, i in enumerate(at):  # a model may be taken twice
            for column, j in enumerate(at):
                self.products[i, j] += found[row, column]
        self.conflicts += sums(picked, conflict)[0]
        self.elements += math.prod(merged.shape)

    def take(self, other: _Sums) -> None:
        """Adds what another has summed."""
        self.products += other.products
        self.conflicts += other.conflicts
        self.elements += other.elements

    def numbers(self) -> dict[str, Any]:
        """Norms, cosines, conflicts, and how much of each source's change the result holds."""
        norms = np.sqrt(self.products.diagonal())
        safe = np.where(norms > 0, norms, 1.0)
        cosines = self.products / safe[:, None] / safe[None, :]
        count = len(norms) - 1
        return {
            "norms": norms[:count].tolist(),
            "norm of the result": float(norms[count]),
            "cosines": cosines[:count, :count].tolist(),
            "cosines with the result": cosines[:count, count].tolist(),
            "kept": (self.products[:count, count] / safe[:count] ** 2).tolist(),
            "sign conflicts": self.conflicts / max(self.elements, 1.0),
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
