"""How a variable of a rule is put to a language model: by a request, or by lines of a kind that the model goes on with.

A model that was trained for chat and is large enough follows the request of Li et al. 2024. A small one copies the request's format back, and an
untuned one does not see it as a request at all; both go on with a list of true sentences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.data.lm import LM
from interfuse.kit.asking import numbered, said_to
from interfuse.kit.rule_search import Predicate, Rule, Variable

BLANK = "___"
#: earlier values that a request or a list of lines repeats
SHOWN = 50


def request(variable: Variable, sentence: str, wanted: int, found: Sequence[str] = ()) -> str:
    """``Give me n values of V to fill in the sentence ...`` (step 2 of the card); values known already are not to come again."""
    values = "value" if wanted == 1 else "values"
    text = (f"Give me {wanted} {values} of {variable.name} to fill in the sentence '{sentence}' in the format '1. value.' where "
            f"{variable.name} is a {variable.type}.")  # fmt: skip
    if found:
        text += " Do not generate these values: " + ", ".join(found[-SHOWN:]) + "."
    return text


def opened(ties: Sequence[Predicate], values: Mapping[str, str], variable: Variable) -> str:
    """The sentences of a binding up to the place of the variable: ``the capital of Peru is``.

    Where the variable is not the last word, a blank stands in its places and the type asks for it: ``___ is in bread. Ingredient:``.
    """
    order = sorted(ties, key=lambda p: p.template.endswith(f"[{variable.name}]"))
    text = " and ".join(p.says({**values, variable.name: BLANK}) for p in order)
    if text.count(BLANK) == 1 and text.endswith(BLANK):
        return text.removesuffix(BLANK).rstrip()
    return f"{text}. {variable.type.capitalize()}:"


def lines(
    rule: Rule, ties: Sequence[Predicate], values: Mapping[str, str], variable: Variable, found: Sequence[str] = ()
) -> str:
    """One line for each example of the rule and each value found before, and the line to be gone on with."""
    generic = {v.name: v.anybody for v in rule.variables.values() if v.generic}
    start = opened(ties, values, variable)
    known = [f"{opened(ties, {**generic, **e}, variable)} {e[variable.name]}.\n" for e in rule.examples]
    return "".join([*dict.fromkeys(known), *(f"{start} {v}.\n" for v in found[-SHOWN:])]) + start


def first_value(text: str) -> str:
    """What a line was gone on with, up to its first stop."""
    rest = text.strip().splitlines()
    value = re.split(r"[.,;:!?](?:\s|$)|\s[-–—(]", rest[0], maxsplit=1)[0] if rest else ""
    return value.strip(" \"“”'*`_")


def proposed(
    lm: LM, rule: Rule, ties: Sequence[Predicate], bindings: Sequence[Mapping[str, str]], variable: Variable, found: Sequence[Sequence[str]], *,
    wanted: int, style: str, temperature: float, seed: int, ctx: Ctx,
) -> list[list[str]]:  # fmt: skip
    """Values for every binding, in the order in which they came, equal ones included.

    Args:
        found: values each binding has already. wanted: values asked for. style: ``request`` (one reply each, a numbered list) or ``lines``
            (as many replies as values are wanted, each a single value).
    """
    if style == "lines":
        prompts = [lines(rule, ties, b, variable, f) for b, f in zip(bindings, found, strict=True)]
        replies = lm.generate(prompts, max_tokens=12, temperature=temperature, n=wanted, stop=("\n",), seed=seed, ctx=ctx)  # fmt: skip
        return [[value for r in own if (value := first_value(r.text))] for own in replies]
    asked = [
        said_to(lm, request(variable, " and ".join(p.says(b) for p in ties), wanted, f))
        for b, f in zip(bindings, found, strict=True)
    ]
    replies = lm.generate(asked, max_tokens=max(24, min(512, 12 * wanted)), temperature=temperature, seed=seed, ctx=ctx)  # fmt: skip
    return [numbered(own[0].text) for own in replies]


def answered(rule: Rule, ties: Sequence[Predicate], variable: Variable) -> tuple[str, str]:
    """Answered questions to be put before the critic's: about the type, and about the truth; empty for a rule without examples.

    The truth of an example is yes; with the value of the next example in its place it is no, unless that makes an example again.
    """
    generic = {v.name: v.anybody for v in rule.variables.values() if v.generic}
    typed, true, n = "", "", len(rule.examples)
    others = [v for v in rule.variables.values() if not v.generic and v.type != variable.type]
    used = [a for a in dict.fromkeys(a for p in ties for a in p.arguments) if a != variable.name and a not in generic]
    known = {tuple(e[a] for a in [*used, variable.name]) for e in rule.examples}
    for i, e in enumerate(rule.examples):
        value, following = e[variable.name], rule.examples[(i + 1) % n][variable.name]
        typed += _shot(f"Is {value} a {variable.type}?", "yes")
        if others:
            typed += _shot(f"Is {e[others[i % len(others)].name]} a {variable.type}?", "no")
        true += _shot(asked_truth(ties, {**generic, **e}), "yes")
        wrong = {**generic, **e, variable.name: following}
        if used and (*(e[a] for a in used), following) not in known:
            true += _shot(asked_truth(ties, wrong), "no")
    return typed, true


def asked_truth(ties: Sequence[Predicate], values: Mapping[str, str]) -> str:
    """``Is it true that ...?`` for the sentences of a binding."""
    return "Is it true that " + " and ".join(p.says(values) for p in ties) + "?"


def expected(
    lm: LM, rule: Rule, ties: Sequence[Predicate], variable: Variable, bindings: Sequence[Mapping[str, str]], values: Sequence[Sequence[str]], *,
    ctx: Ctx | None = None,
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:  # fmt: skip
    """Of every value how likely it is of its type, and true of its binding, without a question: by how much the model expects it.

    Type: the chance of the type's name after ``V is a``, among the types of the rule. Truth: the chance that the binding's line goes on with
    this value and ends there, after the examples of other bindings. What is said of anybody can be anything of the type: the truth is then
    that of the type.

    Raises:
        InterfuseError: ``needs.capability`` from a model that cannot score.
    """
    every = list(dict.fromkeys(v for own in values for v in own))
    typed = dict(zip(every, _types(lm, rule, variable, every, ctx), strict=True))
    generic = [v.name for v in rule.variables.values() if v.generic]
    used = [a for a in dict.fromkeys(a for p in ties for a in p.arguments) if a != variable.name and a not in generic]
    jobs: list[tuple[str, str]] = []
    for binding, own in zip(bindings, values, strict=True):
        others = tuple(e for e in rule.examples if any(e[a] != binding[a] for a in used))
        prompt = lines(replace(rule, examples=others), ties, binding, variable)
        jobs += [(prompt, f" {v}.") for v in own] if used else []
    logs = np.array([s.logprob for s in lm.score(jobs, ctx=ctx)]) if jobs else np.zeros(0)
    found, at = [], 0
    for own in values:
        kinds = np.array([typed[v] for v in own], dtype=np.float64)
        true, at = (np.exp(logs[at : at + len(own)]), at + len(own)) if used else (kinds, at)
        found.append((kinds, np.asarray(true, dtype=np.float64)))
    return found


def _types(lm: LM, rule: Rule, variable: Variable, values: Sequence[str], ctx: Ctx | None) -> list[float]:
    """The chance of the variable's type for each value, among the types of the rule."""
    types = list(dict.fromkeys(v.type for v in rule.variables.values()))
    if len(types) < 2 or not values:
        return [1.0] * len(values)
    known = [(v.anybody, v.type) for v in rule.variables.values() if v.generic]
    known += [(e[v.name], v.type) for e in rule.examples for v in rule.variables.values() if not v.generic]
    lead = "".join(f"{a} is a {b}.\n" for a, b in dict.fromkeys(known))
    scored = lm.score([(f"{lead}{v} is a", f" {t}.") for v in values for t in types], ctx=ctx)
    logs = np.array([s.logprob for s in scored]).reshape(len(values), len(types))
    chance = np.exp(logs[:, types.index(variable.type)] - np.logaddexp.reduce(logs, axis=1))
    return [float(c) for c in chance]


def _shot(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}\n"
