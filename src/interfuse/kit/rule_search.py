"""Symbolic rules with variables: in which order they are filled, what a binding says, how sure and how rare it is (Li et al. 2024).

A rule is premises and a conclusion, each a predicate over variables with a sentence: ``is_ingredient_in(Z, B)``: ``[Z] is an
ingredient in [B]``. One variable is generic (``PersonX``); the others are found one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.kit.near_duplicates import rouge_l

Binding = tuple[tuple[str, str], ...]
_PREDICATE = re.compile(r"\s*([A-Za-z_]\w*)\s*\(\s*([A-Za-z]\w*(?:\s*,\s*[A-Za-z]\w*)*)\s*\)\s*")
KEYS = ("name", "domain", "premise", "conclusion", "variables", "examples")
VARIABLE_KEYS = ("type", "generic", "factual")


@dataclass(frozen=True)
class Predicate:
    """``name(arguments)`` with its sentence, in which ``[V]`` stands for variable ``V``."""

    name: str
    arguments: tuple[str, ...]
    template: str
    conclusion: bool = False

    def says(self, values: Mapping[str, str]) -> str:
        """The sentence with known values; unknown variables keep their names."""
        return re.sub(r"\[(\w+)\]", lambda m: values.get(m[1], m[1]), self.template)


@dataclass(frozen=True)
class Variable:
    """A variable: the type its values are of in words, whether it stands for anybody (``PersonX``), whether it is a date or number."""

    name: str
    type: str
    generic: bool = False
    factual: bool = False

    @property
    def anybody(self) -> str:
        """The value of a generic variable."""
        return "".join(w.capitalize() for w in self.type.split()) + "X"


@dataclass(frozen=True)
class Rule:
    """A checked rule."""

    name: str
    domain: str
    predicates: tuple[Predicate, ...] = field(repr=False)
    variables: Mapping[str, Variable] = field(repr=False)
    #: bindings that are known to be true: variable -> value, generic ones left out
    examples: tuple[Mapping[str, str], ...] = field(repr=False, default=())

    @property
    def premises(self) -> tuple[Predicate, ...]:
        return tuple(p for p in self.predicates if not p.conclusion)

    @property
    def conclusion(self) -> Predicate:
        return next(p for p in self.predicates if p.conclusion)

    def statement(self, values: Mapping[str, str]) -> str:
        """``If premises, then conclusion.``"""
        return f"If {' and '.join(p.says(values) for p in self.premises)}, then {self.conclusion.says(values)}."


def read_rule(spec: Mapping[str, Any], number: int = 0) -> Rule:
    """A rule from plain data: ``premise`` and ``conclusion`` map ``predicate(V, W)`` to sentences, ``variables`` map names to
    ``{type: words, generic: bool, factual: bool}``. ``examples`` are true bindings, each ``{variable: value}`` for all but generic ones.

    Raises:
        InterfuseError: ``input.format`` naming what is wrong: a predicate that cannot be read, an unknown variable, no generic one, one
            that stands in the conclusion alone, or parts that no predicate connects.
    """
    where = f"rule {spec.get('name', number)}"
    for key in spec:
        if key not in KEYS:
            raise InterfuseError(
                "param.unknown", f"a rule has no key {key!r}", where=where, fix=did_you_mean(str(key), KEYS)
            )

    def fail(what: str) -> InterfuseError:
        return InterfuseError("input.format", what, where=where)

    premise, conclusion, raw = spec.get("premise") or {}, spec.get("conclusion") or {}, spec.get("variables") or {}
    if not all(isinstance(part, Mapping) for part in (premise, conclusion, raw)):
        raise fail("premise, conclusion and variables are tables")
    if not premise or len(conclusion) != 1:
        raise fail(f"a rule has premises and one conclusion, not {len(premise)} and {len(conclusion)}")
    variables = {}
    for name, facts in raw.items():
        facts = {"type": facts} if isinstance(facts, str) else facts
        if not isinstance(facts, Mapping) or not set(facts) <= set(VARIABLE_KEYS) or not facts.get("type"):
            raise fail(f"the variable {name!r} needs a type, and may be generic or factual")
        variables[str(name)] = Variable(
            str(name), str(facts["type"]), bool(facts.get("generic")), bool(facts.get("factual"))
        )
    predicates = []
    for part, last in ((premise, False), (conclusion, True)):
        for key, template in part.items():
            found = _PREDICATE.fullmatch(str(key))
            if found is None:
                raise fail(f"{key!r} is no predicate over variables, such as is_made_of(A, B)")
            arguments = tuple(a.strip() for a in found[2].split(","))
            named = re.findall(r"\[(\w+)\]", str(template))
            for a in (*arguments, *named):
                if a not in variables:
                    raise fail(f"{key!r} speaks of {a!r}, which is no variable")
            if sorted(set(named)) != sorted(set(arguments)):
                raise fail(f"the sentence of {key!r} does not name its variables, each as [V]")
            predicates.append(Predicate(found[1], arguments, str(template), last))
    wanted = sorted(v.name for v in variables.values() if not v.generic)
    examples = spec.get("examples") or []
    if not isinstance(examples, list | tuple):
        raise fail("examples are a list of tables, each from variables to values")
    for e in examples:
        if not isinstance(e, Mapping) or sorted(map(str, e)) != wanted or not all(str(v).strip() for v in e.values()):
            raise fail(f"an example gives a value for each of {', '.join(wanted)}, not {e!r}")
    shown = tuple({str(k): str(v).strip() for k, v in e.items()} for e in examples)
    rule = Rule(
        str(spec.get("name", f"rule-{number}")), str(spec.get("domain", "")), tuple(predicates), variables, shown
    )
    if not any(v.generic for v in variables.values()):
        raise fail("no variable is generic: the search has nothing to start from")
    for name in variables:
        if not any(name in p.arguments for p in rule.premises):
            raise fail(f"{name} stands in no premise: nothing says what it may be")
    search_order(rule)
    return rule


def search_order(rule: Rule) -> list[tuple[str, tuple[Predicate, ...]]]:
    """The variables to be found, in order, each with the predicates that tie it to what is found before (step 1 of the card).

    From the generic variables one goes along premises; a rule with a factual variable goes along its conclusion first. The
    conclusion is used for the first variable only, and stands last in what is said.

    Raises:
        InterfuseError: ``input.format`` when no predicate leads to a variable.
    """
    found = [v.name for v in rule.variables.values() if v.generic]
    left = [v for v in rule.variables if v not in found]
    backwards = any(v.factual for v in rule.variables.values())
    path = [*((rule.conclusion,) if backwards else ()), *rule.premises, *(() if backwards else (rule.conclusion,))]
    order: list[tuple[str, tuple[Predicate, ...]]] = []
    while left:
        following = next((v for p in path if set(p.arguments) & set(found) for v in p.arguments if v in left), None)
        if following is None:
            raise InterfuseError("input.format", f"no predicate leads to {', '.join(left)}", where=rule.name,
                                 fix="Every variable is tied to the generic one by a chain of predicates.")  # fmt: skip
        known = {*found, following}
        ties = [p for p in rule.predicates if following in p.arguments and set(p.arguments) <= known and len(p.arguments) > 1
                and (not p.conclusion or not order or backwards)]  # fmt: skip
        if not ties:  # only a predicate that also speaks of a variable still to come leads here
            ties = [p for p in path if following in p.arguments and set(p.arguments) & set(found)][:1]
        order.append((following, tuple(sorted(ties, key=lambda p: p.conclusion))))
        found.append(following)
        left.remove(following)
    return order


def snapped(confidence: float, most: float = 0.85, step: float = 0.05) -> float:
    """``min(most, floor(confidence / step) * step)`` in whole steps: .83 -> .80, .97 -> .85, .85 -> .85."""
    return min(most, int(np.floor(confidence / step + 1e-9)) * step)


def accumulated(values: Sequence[float]) -> float:
    """The confidence of a binding: the mean of what was said of each of its variables so far."""
    return float(np.mean(values)) if len(values) else 1.0


def lowered(
    p: ArrayLike, start: float = 0.85, end: float = 0.75, step: float = 0.05
) -> tuple[NDArray[np.bool_], float]:
    """Which values pass the highest threshold, from ``start`` down to ``end``, that any passes; and that threshold."""
    values = np.asarray(p, dtype=np.float64)
    count = round((start - end) / step)
    for k in range(count + 1):
        threshold = start - k * step
        passed = values >= threshold - 1e-9
        if passed.any() or k == count:
            return passed, threshold
    return np.zeros(len(values), dtype=bool), end


def most_kept(accepted: int, beam: int, share: float = 0.75) -> int:
    """How many of the accepted bindings a beam keeps: ``min(beam, ceil(share * accepted))``."""
    return min(beam, int(np.ceil(share * accepted - 1e-9)))


def ranked(
    bindings: Sequence[Binding], scores: ArrayLike, variable: str, *, tail: bool, first: bool, beam: int, share: float = 0.75,
    repetition: float = 0.0,
) -> list[Binding]:  # fmt: skip
    """The bindings a beam goes on with (step 4 of the card).

    Args:
        scores: mean log-likelihood per token [N]. variable: the one just found. tail: the least likely are kept, not the likeliest.
        first: of the first variable nothing is cut; the tail only turns the order round.
        repetition: the head's score falls by this times the ROUGE-L between the new value and an earlier one.
    """
    values = np.asarray(scores, dtype=np.float64).copy()
    if not tail and repetition:
        for i, binding in enumerate(bindings):
            new = dict(binding)[variable]
            values[i] -= repetition * max((rouge_l(new, v) for k, v in binding if k != variable), default=0.0)
    order = np.argsort(values if tail else -values, kind="stable")
    keep = len(bindings) if first else most_kept(len(bindings), beam, share)
    return [bindings[int(i)] for i in order[:keep]]


def usable(value: str, variable: Variable, longest: int = 64) -> bool:
    """Whether a proposed text may be a value: short, not the variable's name or type, with a letter or digit."""
    low = value.strip().lower()
    if not low or len(value) > longest or not re.search(r"\w", low):
        return False
    return low != variable.type.lower() and not re.search(rf"\b{re.escape(variable.name)}\b", value)


#: questions of the probing task: {premise}, {conclusion} -> text; the second says whether the conclusion is negated
PROBES = (
    ("Is it true that if {premise}, then {conclusion}?", False),
    ("{premise}. Can we say that {conclusion}?", False),
    ("Is it false that if {premise}, then {conclusion}?", True),
)


def probes(rule: Rule, values: Mapping[str, str], part: str) -> list[dict[str, Any]]:
    """Yes-or-no questions about one complete binding, half of them with the answer no."""
    premise, conclusion = " and ".join(p.says(values) for p in rule.premises), rule.conclusion.says(values)
    return [{"question": text.format(premise=premise, conclusion=conclusion), "answer": "no" if negated else "yes", "set": part,
             "rule": rule.name} for text, negated in PROBES]  # fmt: skip
