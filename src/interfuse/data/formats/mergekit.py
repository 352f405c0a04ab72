"""mergekit's YAML, read into the merge room's own terms.

The format is described in mergekit's README and in ``docs/merge_methods.md`` and ``docs/multimerge.md`` of its repository; the
release compared with is 0.1.5. A file holds one merge, or several separated by ``---`` of which each may name earlier results.
Every mistake is refused with its line. What is accepted without effect is noted.

Beyond mergekit's, a file may name our methods, and those that look at models at work find their examples under ``calibration``::

    merge_method: rcp
    base_model: BASE
    models: [{model: R, role: prior}, {model: D, role: domain}]
    calibration: {prior: r.jsonl, domain: d.jsonl, max_length: 2048}
    parameters: {lambda: 1000}
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.safe import Lines, load_yaml, read_text
from interfuse.data.formats.mergekit_methods import (
    IDLE,
    METHODS,
    OURS,
    SINGLE,
    Spelling,
    spelling,
    translate,
    weightless,
)

VERSION = "0.1.5"
KEYS = ("merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype", "tokenizer_source",
        "tokenizer", "chat_template", "name", "calibration")  # fmt: skip
#: keys of ``calibration`` that are not examples -> our parameters
_READING = {"max_length": "calibration_length", "batch": "calibration_batch", "reuse": "reuse_statistics"}
DTYPES = ("float32", "bfloat16", "float16")
_EVERYWHERE = ("weight", "density", "scale")  # parameters a single model may have

_MOE = ("experts", "gate_mode", "experts_per_token", "shared_experts")  # keys of mergekit-moe's files
_HINTS = {
    "random_seed": "The seed stands on the command line: --seed NUMBER.",
    "pattern": "Did you mean filter?",
    "name": "Did you mean filter?",
    "layer_range": "Layers are chosen in slices: {sources: [{model, layer_range}]}; take it out to merge all of them.",
}

Fail = Callable[..., InterfuseError]
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Stage:
    """One merge of a file, in the room's own terms.

    Attributes:
        name: how later merges call it; "" for the last. line: where it begins. method: the slug of our method.
        models: paths, ids or names of stages, ``model+adapter`` and ``model@revision`` included. base: the same.
        params: the method's parameters and the room's settings, schedules included.
        tokenizer: ``base``, ``union`` or a model's name; None leaves tokens alone.
        calibration: tables of examples (a file or a table of keys) with the lines they stand on: one for all models, or one for each.
        notes: what was accepted without effect, or means something else here.
        spots: every single value of a parameter, every condition of a rule and every ``model``, with its line: (our name, value, line).
    """

    name: str
    line: int
    method: str
    models: tuple[str, ...]
    base: str | None
    params: Mapping[str, Any]
    tokenizer: str | None = None
    notes: tuple[str, ...] = ()
    calibration: tuple[tuple[Any, int], ...] = ()
    spots: tuple[tuple[str, Any, int], ...] = ()


def read_mergekit(path: Path) -> list[Stage]:
    """The merges of a file, each after those it needs; the last is the result.

    Raises:
        InterfuseError: ``recipe.syntax``, ``recipe.key`` or ``recipe.cycle`` with file and line.
    """
    stages: list[Stage] = []
    for start, text in _documents(read_text(path)):
        raw, lines = load_yaml("\n" * start + text, where=str(path))
        if raw is not None:
            stages.append(_Reader(path, lines).stage(raw))
    if not stages:
        raise InterfuseError("recipe.key", "the file holds no merge", where=f"{path}:1")
    return _in_order(stages, path)


def _documents(text: str) -> list[tuple[int, str]]:
    """First line (from 0) and text of every document."""
    rows, found, start = text.splitlines(), [], 0
    for number, row in enumerate([*rows, "---"]):
        if re.match(r"---(\s|\Z)", row):
            found.append((start, "\n".join(rows[start:number])))
            start = number + 1
    return found


def _in_order(stages: Sequence[Stage], path: Path) -> list[Stage]:
    named = {s.name: s for s in stages if s.name}
    unnamed = [s for s in stages if not s.name]
    if len(named) + len(unnamed) < len(stages):
        twice = next(s for i, s in enumerate(stages) if s.name and s.name in [o.name for o in stages[:i]])
        raise InterfuseError("recipe.key", f"two merges are called {twice.name!r}", where=f"{path}:{twice.line}")
    if len(unnamed) > 1:
        raise InterfuseError(
            "recipe.key",
            "only the last merge goes without a name",
            where=f"{path}:{unnamed[0].line}",
            fix="Add name: ...",
        )
    last = unnamed[0] if unnamed else stages[-1]
    done: list[Stage] = []

    def add(stage: Stage, seen: tuple[str, ...]) -> None:
        for model in (name.partition("+")[0] for name in (*stage.models, stage.base or "")):
            if model in seen:
                raise InterfuseError(
                    "recipe.cycle",
                    "merges need each other: " + " -> ".join((*seen, model)),
                    where=f"{path}:{stage.line}",
                )
            if model in named and named[model] not in done:
                add(named[model], (*seen, model))
        done.append(stage)

    add(last, (last.name,) if last.name else ())
    idle = [s for s in stages if s not in done]
    if idle:
        raise InterfuseError("recipe.key", f"nothing uses the merge {idle[0].name!r}", where=f"{path}:{idle[0].line}",
                             fix="Name it in a later merge, or take it out.")  # fmt: skip
    return done


@dataclass(frozen=True)
class _Source:
    """A model as it is written in a slice or list: its reference, layers, the parameters of its own, its examples and its role."""

    model: str
    layers: tuple[int, int] | None
    at: Path_
    parameters: Mapping[str, Any]
    examples: Any = None
    role: str = ""


class _Reader:
    """Reads one document; knows the line of every value."""

    def __init__(self, path: Path, lines: Lines) -> None:
        self.path, self.lines = path, lines
        self.notes: list[str] = []
        self.spots: list[tuple[str, Any, int]] = []

    def line(self, at: Path_) -> int:
        return next((self.lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.lines), 1)

    def fail(self, message: str, at: Path_ = (), fix: str = "") -> InterfuseError:
        return InterfuseError("recipe.key", message, where=f"{self.path}:{self.line(at)}", fix=fix)

    def table(self, value: Any, keys: Sequence[str], at: Path_, what: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(f"{what} is a table, not {value!r}", at)
        for key in value:
            if key not in keys:
                hint = _HINTS.get(key, "") if key not in ("pattern", "name") or "filter" in keys else ""
                hint = hint or did_you_mean(str(key), keys)
                raise self.fail(f"{what} has no key {key!r}", (*at, key), hint)
        return value

    def items(self, value: Any, at: Path_, what: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self.fail(f"{what} is a list, not {value!r}", at)
        return value

    def stage(self, raw: Any) -> Stage:
        moe = next((key for key in _MOE if isinstance(raw, dict) and key in raw), None)
        if moe is not None:
            raise self.fail(f"{moe!r} is a key of mergekit-moe, which makes a mixture of experts of dense models: that is not done here",
                            (moe,), "A mixture that is made already is merged like any model.")  # fmt: skip
        table = self.table(raw, KEYS, (), "a merge")
        line = min(self.lines.values(), default=1)
        name = table.get("merge_method")
        how = spelling(name)
        if how is None:
            raise self.fail(
                f"there is no merge_method {name!r} here", ("merge_method",), did_you_mean(str(name), [*METHODS, *OURS])
            )
        base = self.model(table["base_model"], ("base_model",)) if table.get("base_model") is not None else None
        shared = self.parameters(table.get("parameters"), ("parameters",), how)
        groups = self.groups(table, base, how)
        models = list(
            dict.fromkeys(s.model for _, _, sources, _, _ in groups for s in sources if self.counts(s.model, how, base))
        )
        plain = len(groups) == 1 and all(s.layers is None for s in groups[0][2]) and not groups[0][0]
        slices = []
        for module, at, sources, levels, own_base in groups:
            slices.append(self.slice(how, base, own_base, models, sources, [*levels, shared], at, module, plain))
        params: dict[str, Any] = {k: v for k, v in how.fixed.items() if k not in slices[0][1]}
        if plain:
            models, params = slices[0][0], params | slices[0][1]
        else:
            params["slices"] = [made for _, _, made in slices]
        params |= self.settings(table) | self.plain(table, how)
        examples, reading = self.calibration(table, models, groups[0][2], how)
        params |= reading
        tokenizer, tokens = self.tokenizer(table, models, base)
        return Stage(str(table.get("name") or ""), line, how.slug, tuple(models), base if how.base in ("required", "optional") else None,
                     params | tokens, tokenizer, tuple(dict.fromkeys(self.notes)), tuple(examples), tuple(self.spots))  # fmt: skip

    def counts(self, model: str, how: Spelling, base: str | None) -> bool:
        """Whether a source is one of the models the method combines."""
        return how.base in ("first", "source") or model != base

    def model(self, value: Any, at: Path_) -> str:
        if isinstance(value, str) and value:
            self.spots.append(("model", value, self.line(at)))
            return value
        table = self.table(value, ("model", "lora", "path", "revision"), at, "a model")
        main = table.get("model", table.get("path"))
        text = main if isinstance(main, str) else self.model(main, (*at, "model"))
        text += f"@{table['revision']}" if table.get("revision") else ""
        if table.get("lora"):
            text += "+" + self.model(table["lora"], (*at, "lora"))
        self.spots.append(("model", text, self.line(at)))
        return text

    def groups(
        self, table: Mapping[str, Any], base: str | None, how: Spelling
    ) -> list[tuple[str, Path_, list[_Source], list[Mapping[str, Any]], str | None]]:
        """Every slice: module, place, sources, parameters of slice and module, base of its own."""
        given = [key for key in ("models", "slices", "modules") if table.get(key)]
        if len(given) != 1:
            raise self.fail(
                "exactly one of models, slices and modules is needed", (given[1],) if len(given) > 1 else ()
            )
        if given[0] != "modules":
            return self.module(table, (), "", base, how, [])
        found = []
        for name, part in table["modules"].items():
            at = ("modules", name)
            inner = self.table(part, ("models", "slices", "parameters"), at, "a module")
            if bool(inner.get("models")) == bool(inner.get("slices")):
                raise self.fail("a module has either models or slices", at)
            own = self.parameters(inner.get("parameters"), (*at, "parameters"), how)
            found += self.module(
                inner, at, "" if name == "default" and len(table["modules"]) == 1 else name, base, how, [own]
            )
        return found

    def module(
        self,
        table: Mapping[str, Any],
        at: Path_,
        module: str,
        base: str | None,
        how: Spelling,
        levels: list[Mapping[str, Any]],
    ) -> list[tuple[str, Path_, list[_Source], list[Mapping[str, Any]], str | None]]:
        if table.get("models"):
            place = (*at, "models")
            keys = (
                "model",
                "parameters",
                *(("calibration",) if how.tables and not at else ()),
                *(("role",) if how.roles and not at else ()),
            )
            sources = [
                self.source(m, (*place, i), how, keys)
                for i, m in enumerate(self.items(table["models"], place, "models"))
            ]
            sources = self.by_role(sources, how, base, place)
            if how.base in ("first", "source") and base is not None and base not in [s.model for s in sources]:
                if how.base == "source":
                    self.notes.append(f"base_model is one of the models that are merged, as in mergekit {VERSION}")
                sources.append(_Source(base, None, ("base_model",), {}))
            return [(module, place, sources, levels, None)]
        found = []
        for number, part in enumerate(self.items(table["slices"], (*at, "slices"), "slices")):
            here = (*at, "slices", number)
            inner = self.table(part, ("sources", "base_model", "parameters"), here, "a slice")
            rows = self.items(inner.get("sources"), (*here, "sources"), "sources")
            sources = [
                self.source(s, (*here, "sources", i), how, ("model", "layer_range", "parameters"))
                for i, s in enumerate(rows)
            ]
            own = self.parameters(inner.get("parameters"), (*here, "parameters"), how)
            other = (
                self.model(inner["base_model"], (*here, "base_model")) if inner.get("base_model") is not None else None
            )
            found.append((module, here, sources, [own, *levels], other))
        return found

    def source(self, value: Any, at: Path_, how: Spelling, keys: Sequence[str]) -> _Source:
        table = self.table(value, keys, at, "a source")
        if "model" not in table:
            raise self.fail("a source needs 'model'", at)
        layers = table.get("layer_range")
        if "layer_range" in keys and (
            not isinstance(layers, list) or len(layers) != 2 or not all(type(v) is int for v in layers)
        ):
            raise self.fail(f"layer_range is [first, end), not {layers!r}", (*at, "layer_range"))
        own = self.parameters(table.get("parameters"), (*at, "parameters"), how)
        for key in own:
            if key not in _EVERYWHERE and how.names[key] not in how.per_model:
                raise self.fail(
                    f"{key} holds for all models together",
                    (*at, "parameters", key),
                    "Move it to the parameters of the recipe.",
                )
        return _Source(self.model(table["model"], (*at, "model")), tuple(layers) if layers else None, (*at, "parameters"), own,
                       table.get("calibration"), str(table.get("role") or ""))  # fmt: skip

    def by_role(self, sources: list[_Source], how: Spelling, base: str | None, at: Path_) -> list[_Source]:
        """The sources in the order of their roles, where they are named."""
        combined = [s for s in sources if self.counts(s.model, how, base)]
        said = [s.role for s in combined]
        if not any(said):
            return sources
        if sorted(said) != sorted(how.roles):
            raise self.fail(f"{how.slug} takes one model of each role: {', '.join(how.roles)}", at,
                            f"The roles are {', '.join(r or '(none)' for r in said)}.")  # fmt: skip
        return sorted(sources, key=lambda s: how.roles.index(s.role) if s in combined else len(how.roles))

    def plain(self, table: Mapping[str, Any], how: Spelling) -> dict[str, Any]:
        """Parameters that hold for the whole merge, as they stand at the recipe's level."""
        given = table.get("parameters") or {}
        return {ours: given[theirs] for theirs, ours in how.names.items() if ours is not None and ours in how.plain and given.get(theirs) is not None}  # fmt: skip

    def calibration(
        self, table: Mapping[str, Any], models: Sequence[str], sources: Sequence[_Source], how: Spelling
    ) -> tuple[list[tuple[Any, int]], dict[str, Any]]:
        """The tables of examples with their lines, and how they are read."""
        given = table.get("calibration")
        at: Path_ = ("calibration",)
        if not how.tables:
            if given is not None:
                raise self.fail(f"{how.slug} looks at no examples", at, "Leave calibration out, or use a method that looks at models at work: "
                                + ", ".join(n for n, o in OURS.items() if o.tables) + ".")  # fmt: skip
            return [], {}
        reading: dict[str, Any] = {}
        if isinstance(given, dict) and "data" not in given:
            inner = self.table(given, ("examples", *how.roles, *_READING), at, "calibration")
            reading = {_READING[k]: v for k, v in inner.items() if k in _READING}
            named = [r for r in how.roles if r in inner]
            if named and ("examples" in inner or len(named) < len(how.roles)):
                raise self.fail(f"calibration names {' and '.join(named)} and needs {' and '.join(how.roles)}", at)
            at = at if named else (*at, "examples")
            given = [inner[r] for r in how.roles] if named else inner.get("examples")
        shared = given if isinstance(given, list) else [] if given is None else [given]
        tables = [
            (self.examples(v, (*at, i)), self.line((*at, i) if len(shared) > 1 else at)) for i, v in enumerate(shared)
        ]
        places = {s.model: s for s in sources if s.examples is not None and s.model in models}
        if places:
            where = (*next(iter(places.values())).at[:-1], "calibration")
            if how.tables == 1:
                raise self.fail(f"{how.slug} looks at one table of examples, not at one of each model", where, "Move it to calibration: FILE of the recipe.")  # fmt: skip
            alone = next((s for s in sources if s.model in models and s.model not in places), None)
            if alone is not None and len(tables) != 1:
                raise self.fail("the model has no examples and others have", alone.at[:-1], "Add calibration: FILE to it, or to the recipe for all that have none.")  # fmt: skip
            found = []
            for name in models:
                at = (*places[name].at[:-1], "calibration") if name in places else at
                found.append((self.examples(places[name].examples, at), self.line(at)) if name in places else tables[0])
            return found, reading
        if not tables:
            raise self.fail(f"{how.slug} looks at models at work and needs examples", ("merge_method",),
                            "Add calibration: FILE (.jsonl, .csv, .parquet or .txt) to the recipe"
                            + ("." if how.tables == 1 else ", or to each model."))  # fmt: skip
        wanted = {1: (1,), 2: (2,), -1: (1, len(models))}[how.tables]
        if len(tables) not in wanted:
            raise self.fail(f"{how.slug} takes {' or '.join(map(str, dict.fromkeys(wanted)))} tables of examples for {len(models)} models, "
                            f"{len(tables)} are given", ("calibration",),
                            f"Name them: calibration: {{{', '.join(f'{r}: FILE' for r in how.roles)}}}." if how.roles else "")  # fmt: skip
        return tables, reading

    def examples(self, value: Any, at: Path_) -> Any:
        if (isinstance(value, str) and value) or (isinstance(value, dict) and value):
            return value
        raise self.fail(f"examples are a file or a table of keys (data, columns ...), not {value!r}", at)

    def parameters(self, value: Any, at: Path_, how: Spelling) -> Mapping[str, Any]:
        """mergekit's name -> the value in our terms, not yet renamed."""
        if value is None:
            return {}
        idle = [key for key in value if key in IDLE and key not in how.names] if isinstance(value, dict) else []
        for key in idle:
            self.notes.append(f"{key} has no effect with {how.slug} (line {self.line((*at, key))})")
        table = self.table({k: v for k, v in value.items() if k not in idle} if idle else value, tuple(how.names), at,
                           f"parameters of {how.slug}")  # fmt: skip
        for key, setting in table.items():
            if how.names[key] in how.plain and (at != ("parameters",) or isinstance(setting, dict | list)):
                raise self.fail(
                    f"{key} is one value for the whole merge",
                    (*at, key),
                    "Give it once, under the recipe's parameters.",
                )
            if how.names[key] in SINGLE and not isinstance(setting, bool | int | float | str):
                raise self.fail(f"{key} is one value for all tensors, not {setting!r}", (*at, key))
            if how.names[key] in how.plain:
                self.spots.append((how.names[key] or "", setting, self.line((*at, key))))
        return {
            key: self.value(setting, (*at, key), how.names[key] or "")
            for key, setting in table.items()
            if how.names[key] not in how.plain
        }

    def value(self, value: Any, at: Path_, name: str) -> Any:
        """A number, ``{gradient: [...]}``, or a list of rules, of our parameter ``name``."""
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError as error:
                raise self.fail(f"a number is wanted, not {value!r}", at) from error
        if isinstance(value, bool | int | float):
            if not -sys.float_info.max <= value <= sys.float_info.max:
                raise self.fail(f"a finite number is wanted, not {str(value)[:30]}", at)
            self.spots.append((name, value, self.line(at)))
            return value
        if isinstance(value, dict):
            value = [value]
        rows = self.items(value, at, "a parameter's value")
        if not any(isinstance(row, dict | list) for row in rows):
            return {"gradient": [self.value(v, (*at, i), name) for i, v in enumerate(rows)]}
        rules = []
        for i, row in enumerate(rows):
            table = self.table(row, ("filter", "regex", "layer", "value"), (*at, i), "a rule")
            if "value" not in table:
                raise self.fail("a rule needs 'value'", (*at, i))
            rule = {key: table[key] for key in ("filter", "regex", "layer") if table.get(key) not in (None, "*")}
            self.spots += [(key, text, self.line((*at, i, key))) for key, text in rule.items()]
            rules.append({**rule, "value": self.value(table["value"], (*at, i, "value"), name)})
        return rules

    def slice(
        self, how: Spelling, base: str | None, own_base: str | None, models: list[str], sources: list[_Source],
        levels: list[Mapping[str, Any]], at: Path_, module: str, plain: bool,
    ) -> tuple[list[str], dict[str, Any], dict[str, Any]]:  # fmt: skip
        """The models, the parameters, and the slice itself as the room's own recipes write it."""
        root = own_base or base
        if how.base in ("first", "required") and root is None:
            raise self.fail(
                f"{how.slug} needs base_model",
                at,
                "Add base_model: the model they were all made from."
                if how.base == "required"
                else "Add base_model: the model to start from.",
            )
        combined = [s for s in sources if self.counts(s.model, how, root)]
        if how.base == "first":
            combined.sort(key=lambda s: s.model != root)
            if not combined or combined[0].model != root:
                raise self.fail("the base_model is not among the sources", at)
        if not combined:
            raise self.fail("there is no model besides the base", at)
        for s in sources:
            if s not in combined and s.parameters:
                self.notes.append(f"parameters of the base ({', '.join(s.parameters)}) have no effect")
        lone = weightless(how, [s.parameters for s in combined], levels)
        if lone is not None:
            source = combined[lone]
            raise self.fail(f"the {'base' if source.at == ('base_model',) else 'model'} {source.model} has no weight and others have",
                            source.at if source.at == ("base_model",) else source.at[:-1] or at,
                            "Give it one, or all of them by weight under the recipe's parameters.")  # fmt: skip
        params, notes = translate(how, [s.parameters for s in combined], levels)
        self.notes += notes
        layers = [
            {"model": models.index(s.model), **({"layers": list(s.layers)} if s.layers else {})} for s in combined
        ]
        made: dict[str, Any] = {"sources": layers, "parameters": {**how.fixed, **params}}
        if module:
            made["module"] = module
        if not plain and how.base in ("required", "optional") and root is not None:
            mine = next((s.layers for s in sources if s.model == root), combined[0].layers)
            made["base"] = {
                "model": -1 if root == base else models.index(root) if root in models else -1,
                **({"layers": list(mine)} if mine else {}),
            }
            if root != base and root not in models:
                raise self.fail("the slice's base_model must be a model of the recipe", at)
        return [s.model for s in combined], params, made

    def settings(self, table: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in ("dtype", "out_dtype"):
            if table.get(key) is not None:
                name = str(table[key]).removeprefix("torch.")
                if name not in DTYPES:
                    raise self.fail(f"{key}: {table[key]!r} is not supported", (key,), did_you_mean(name, DTYPES))
                found["out_dtype"] = name
        if table.get("dtype") is not None:
            self.notes.append("dtype is that of the result; arithmetic is float32")
        if table.get("chat_template") is not None:
            found["chat_template"] = str(table["chat_template"])
        return found

    def tokenizer(
        self, table: Mapping[str, Any], models: Sequence[str], base: str | None
    ) -> tuple[str | None, dict[str, Any]]:
        source, block = table.get("tokenizer_source"), table.get("tokenizer")
        if source is not None and block is not None:
            raise self.fail("tokenizer_source and tokenizer exclude each other", ("tokenizer_source",))
        if block is None:
            return (None if source is None else self.word(source, ("tokenizer_source",))), {}
        inner = self.table(block, ("source", "tokens", "pad_to_multiple_of"), ("tokenizer",), "tokenizer")
        params: dict[str, Any] = {}
        if inner.get("pad_to_multiple_of") is not None:
            params["pad_to_multiple_of"] = inner["pad_to_multiple_of"]
        if inner.get("tokens"):
            params["tokens"] = {
                t: self.token(rule, ("tokenizer", "tokens", t), models, base) for t, rule in inner["tokens"].items()
            }
        return self.word(inner.get("source", "union"), ("tokenizer", "source")), params

    def word(self, source: Any, at: Path_) -> str:
        return source if source in ("base", "union") else self.model(source, at).removeprefix("model:")

    def token(self, rule: Any, at: Path_, models: Sequence[str], base: str | None) -> dict[str, Any]:
        table = self.table(rule or {}, ("source", "force"), at, "a token")
        source = table.get("source")
        found: dict[str, Any] = {"force": bool(table.get("force", False))}
        if isinstance(source, dict) and source.get("kind") == "zero":
            found["source"] = "zero"
        elif isinstance(source, dict) and source.get("kind") == "model_token":
            inner = self.table(source, ("kind", "model", "token", "token_id"), (*at, "source"), "a source")
            word = inner.get("token_id", inner.get("token"))
            found["source"] = {"model": self.index(inner.get("model"), (*at, "source"), models, base), "token": word}
        elif source is not None:
            found["source"] = self.index(source, (*at, "source"), models, base)
        return found

    def index(self, value: Any, at: Path_, models: Sequence[str], base: str | None) -> int:
        name = self.model(value, at)
        known = [*models, *([base] if base is not None and base not in models else [])]
        if name not in known:
            raise self.fail(f"{name!r} is not a model of this merge", at, did_you_mean(name, known))
        return known.index(name)
