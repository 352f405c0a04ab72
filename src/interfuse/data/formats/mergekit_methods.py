"""mergekit's merge methods in the merge room's terms: names, parameters and defaults, which differ from the papers' here and there.

Facts of release 0.1.5, from its documentation and its behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spelling:
    """How one of mergekit's methods is called here.

    Attributes:
        slug: our method. base: ``required``, ``optional``, ``first`` (the base is the first of the models) or ``source`` (it is
            a model like the others).
        names: mergekit's parameter -> ours; None is accepted and noted.
        per_model: which of ours may differ from model to model. fixed: ours that mergekit's defaults or names decide.
        plain: ours that hold for the whole merge: words, whole numbers, what is needed before the first tensor.
        tables: how many tables of examples it looks at models with: 0 none, 1 shared by all, 2 one for each of two, -1 either.
        roles: what its models are called, where the order of the models says which is which.
    """

    slug: str
    base: str
    names: Mapping[str, str | None]
    per_model: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    tables: int = 0
    roles: tuple[str, ...] = ()


_TASKS = {"weight": "weight", "lambda": "scale", "normalize": "normalize", "int8_mask": None}
_RANDOM = {**_TASKS, "density": "density", "rescale": "rescale"}
_L1 = {"density": 1.0, "normalize": False, "rescale": "l1"}

METHODS: dict[str, Spelling] = {
    "linear": Spelling("linear", "source", {"weight": "weight", "normalize": "normalize"}, ("weight",)),
    "karcher": Spelling("karcher", "source", {"max_iter": "steps", "tol": None}, fixed={"steps": 10}),
    "passthrough": Spelling("passthrough", "source", {"scale": "scale"}),
    "slerp": Spelling("slerp", "first", {"t": "t"}),
    "nearswap": Spelling("nearswap", "first", {"t": "t"}),
    "arcee_fusion": Spelling("arcee-fusion", "first", {}),
    "nuslerp": Spelling("nuslerp", "optional", {"weight": "weight", "nuslerp_flatten": "along", "nuslerp_row_wise": "along"}, ("weight",)),
    "multislerp": Spelling("multislerp", "optional", {"weight": "weight", "normalize_weights": "normalize", "eps": None}, ("weight",)),
    "model_stock": Spelling("model-stock", "required", {"filter_wise": "filter_wise"}),
    "sce": Spelling("sce", "required", {"select_topk": "select_topk", "int8_mask": None}, fixed={"select_topk": 1.0}),
    "task_arithmetic": Spelling("task-arithmetic", "required", {**_TASKS, "density": None, "rescale": None}, ("weight",)),
    "ties": Spelling("ties", "required", {**_TASKS, "density": "density", "rescale": "rescale"}, ("weight", "density"), {"density": 1.0}),
    "dare_ties": Spelling("dare-ties", "required", _RANDOM, ("weight", "density"), _L1),
    "dare_linear": Spelling("dare-linear", "required", _RANDOM, ("weight", "density"), _L1),
    "breadcrumbs": Spelling("breadcrumbs", "required", {**_TASKS, "density": "density", "gamma": "gamma", "rescale": "rescale"},
                            ("weight", "density", "gamma"), {"density": 1.0, "gamma": 0.01}),
    "breadcrumbs_ties": Spelling("breadcrumbs", "required", {**_TASKS, "density": "density", "gamma": "gamma", "rescale": "rescale"},
                                 ("weight", "density", "gamma"), {"density": 1.0, "gamma": 0.01, "elect": True}),
    "della": Spelling("della", "required", {**_RANDOM, "epsilon": "epsilon"}, ("weight", "density", "epsilon"),
                      {**_L1, "normalize": True, "epsilon": 0.15}),
    "della_linear": Spelling("della", "required", {**_RANDOM, "epsilon": "epsilon"}, ("weight", "density", "epsilon"),
                             {**_L1, "epsilon": 0.15, "elect": False}),
    "ram": Spelling("ram", "required", {"epsilon": "epsilon"}, fixed={"r": 0.0}),
    "ramplus_tl": Spelling("ram", "required", {"epsilon": "epsilon", "r": "r", "alpha": "alpha"}, fixed={"r": 0.1, "alpha": 0.2}),
}  # fmt: skip


def _ours(slug: str, base: str, names: str, **more: Any) -> Spelling:
    """A method that mergekit does not have; its parameters have our names."""
    return Spelling(slug, base, {name: name for name in names.split()}, **more)


#: methods that a file may name besides mergekit's own
OURS: dict[str, Spelling] = {
    "geometric_median": _ours("geometric-median", "source", "weight steps", per_model=("weight",), plain=("steps",)),
    "varm": _ours("varm", "required", "statistic granularity", plain=("statistic", "granularity")),
    "tsv": _ours("tsv", "required", "scale svd", plain=("svd",)),
    "iso_c": _ours("iso-c", "required", "scale svd", plain=("svd",)),
    "twin": _ours("twin", "optional", "density weight exclusive_weight svd", per_model=("weight", "exclusive_weight"), plain=("svd",)),
    "lore": _ours("lore", "source", "mu scale combine steps svd", plain=("combine", "steps", "svd")),
    "fisher": _ours("fisher", "optional", "weight floor labels fisher_norm", per_model=("weight",), plain=("labels", "fisher_norm"), tables=-1),
    "regmean": _ours("regmean", "optional", "reduce gram ridge", plain=("gram",), tables=-1),
    "rcp": Spelling("rcp", "required", {"lambda": "penalty", "penalty": "penalty", "accept": "accept", "fisher": "fisher",
                                        "domain_text": "domain_text", "zero_is": "zero_is"},
                    plain=("accept", "fisher", "domain_text", "zero_is"), tables=2, roles=("prior", "domain")),
    "aim": _ours("aim", "required", "keep weight normalize scale", per_model=("weight",), plain=("normalize",), tables=1),
    "sens": _ours("sens", "required", "temperature scale", plain=("temperature",), tables=-1),
    "acm": _ours("acm", "required", "scale", tables=-1),
}  # fmt: skip


#: what files carry over from another method, and mergekit passes over in silence where the method does not read it
IDLE = ("weight", "density", "normalize", "rescale", "int8_mask", "embed_slerp")

#: ours that are one value for all tensors, though they may stand at any level
SINGLE = ("normalize", "rescale", "filter_wise", "steps")


def spelling(name: Any) -> Spelling | None:
    """A method by the name a file gives it; ours may be written with hyphens."""
    return METHODS.get(name) or OURS.get(str(name).replace("-", "_"))


def translate(
    how: Spelling, own: Sequence[Mapping[str, Any]], levels: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The parameters of a method here, from those of mergekit's levels.

    Args:
        own: each model's parameters. levels: those of the slice, the module and the recipe, the innermost first. Parameters that
            hold for the whole merge (``plain``) are read elsewhere.

    Returns:
        Our parameters, and what has no effect here.
    """
    params: dict[str, Any] = {}
    notes: list[str] = []
    for theirs, ours in how.names.items():
        if ours in how.plain:
            continue
        if ours in how.per_model:
            chains = [_chain([mine, *levels], theirs) for mine in own]
            given = [c for c in chains if c is not None]
            if given:
                default = how.fixed.get(ours, 1.0)
                params[ours] = [_ending(default if c is None else c, default) for c in chains]
            continue
        value = _chain([*own[:1], *levels], theirs)
        if value is None:
            continue
        if ours is None:
            notes.append(f"{theirs} has no effect here")
        elif ours == "rescale":
            params[ours] = "l1" if value else "none"
        elif ours in SINGLE:
            params[ours] = int(value) if ours == "steps" else bool(value)
        elif ours != "along":
            params[ours] = value
    other = {"breadcrumbs": "gamma", "della": "epsilon"}.get(how.slug)
    if other is not None:  # a density of 1 leaves the task vector as it is, whatever else is said of it
        densities = params.get("density", [how.fixed["density"]] * len(own))
        rest = params.get(other, [how.fixed[other]] * len(own))
        params[other] = [
            0.0 if isinstance(d, int | float) and d >= 1 else r for d, r in zip(densities, rest, strict=True)
        ]
    if how.slug == "nuslerp":
        flat, rows = (_chain(levels, f"nuslerp_{k}") for k in ("flatten", "row_wise"))
        params["along"] = "tensor" if flat in (None, True) else "column" if rows else "row"
    if "weight" in how.names and "weight" not in params:
        notes.append("no weight is given: every model has 1")
    return params, notes


def weightless(how: Spelling, own: Sequence[Mapping[str, Any]], levels: Sequence[Mapping[str, Any]]) -> int | None:
    """The first model that has no weight where others have, counted from 0."""
    if how.names.get("weight") not in how.per_model:
        return None
    missing = [_chain([mine, *levels], "weight") is None for mine in own]
    return missing.index(True) if any(missing) and not all(missing) else None


def _chain(levels: Sequence[Mapping[str, Any]], name: str) -> Any:
    """One parameter's value over its levels, the innermost first: where no rule of a level fits, the next one counts."""
    rules: list[Any] = []
    for level in levels:
        value = level.get(name)
        if value is None:
            continue
        if not isinstance(value, list):
            return value if not rules else [*rules, {"value": value}]
        rules += value
        if any(set(rule) == {"value"} for rule in value):
            break
    return rules or None


def _ending(value: Any, default: Any) -> Any:
    """A list of rules with mergekit's default behind them."""
    if isinstance(value, list) and not any(set(rule) == {"value"} for rule in value):
        return [*value, {"value": default}]
    return value
