"""LINK: long-tail knowledge by filling symbolic rules step by step, with a critic at each (Li et al. 2024)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any
from typing import Literal as OneOf

import numpy as np
from pydantic import Field

from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call, Cost
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.data.graph import Graph
from interfuse.data.lm import LM
from interfuse.data.statements import Evidence, Literal, relation_id
from interfuse.kit.asking import for_chat, p_yes, prepared
from interfuse.kit.kept_steps import kept
from interfuse.kit.near_duplicates import plain_key
from interfuse.kit.rule_asking import answered, asked_truth, expected, proposed
from interfuse.kit.rule_search import (
    Binding,
    Predicate,
    Rule,
    Variable,
    accumulated,
    lowered,
    probes,
    ranked,
    read_rule,
    search_order,
    snapped,
    usable,
)

Floats = Any


def _cost(call: Call, params: Mapping[str, Any]) -> Cost:
    """What the beams allow at most: requests for values of every binding, and what critic and ranker ask of every value."""
    lm = call.inputs["lm"]
    if lm is None:
        return Cost()
    scores = not isinstance(lm, EndpointLM) or lm.api != "chat"  # others are asked each question instead
    calls, beam = 0, params["beam"]
    for number, spec in enumerate(params["rules"]):
        rule, bindings = read_rule(spec, number), 1
        for name, _ in search_order(rule):
            variable = rule.variables[name]
            turns = 2 if variable.factual else max(1, -(-beam // params["ask"])) + params["retries"]
            values = bindings * (1 if variable.factual else beam)
            asked = 4 if scores else 2
            if params["judge"] == "likelihood" or (params["judge"] == "auto" and params["style"] == "lines"):
                asked = 1 + len({v.type for v in rule.variables.values()})
            calls += bindings * turns + values * (asked * params["critic"] + scores * params["ranker"])
            bindings = min(values, 2 * beam)
    return Cost(calls=calls, seconds=float(calls))


@method(
    per="whole", cost=_cost, parts=("interfuse.kit.rule_search", "interfuse.kit.rule_asking", "interfuse.kit.asking")
)
def link_longtail(
    work: Work, *,
    rules: Annotated[list[dict[str, Any]], Field(
        description="rules: {name, premise: {predicate(V, W): sentence with [V]}, conclusion: {...}, variables: {V: {type, generic}}, examples: [{V: value}]}")],
    style: Annotated[OneOf["auto", "request", "lines"], Field(
        description="ask by the paper's request, or by lines of examples to be gone on with; auto: a request where the model was trained for chat")] = "auto",
    beam: Annotated[int, Field(ge=1, description="bindings that each of head and tail keeps per variable")] = 200,
    ask: Annotated[int, Field(ge=1, description="values asked for in one request")] = 50,
    retries: Annotated[int, Field(ge=0, description="further requests when one brings nothing new")] = 2,
    keep: Annotated[float, Field(gt=0, le=1, description="share of the accepted bindings that head and tail keep")] = 0.75,
    threshold: Annotated[float, Field(ge=0, le=1, description="confidence a value needs; types may do with 0.1 less")] = 0.85,
    least: Annotated[float, Field(ge=0, le=1, description="confidence a sentence needs even where no value of its binding reaches the threshold")] = 0.0,
    critic: Annotated[bool, Field(description="ask whether values are of their type and sentences true; False accepts all")] = True,
    judge: Annotated[OneOf["auto", "questions", "likelihood"], Field(
        description="the critic answers the paper's questions, or says how much it expects a value; auto: questions where values are requested")] = "auto",
    ranker: Annotated[bool, Field(description="head and tail by likelihood; False keeps the order of the proposals in both")] = True,
    repetition: Annotated[float, Field(ge=0, description="what an echo of an earlier value costs in the head, in nats per token")] = 0.0,
    temperature: Annotated[float, Field(ge=0, description="temperature of the proposals")] = 0.7,
) -> Iterator[Candidate]:  # fmt: skip
    """Fills every rule along its predicates; gives the filled sentences of head and tail as statements.

    Raises:
        InterfuseError: ``input.format`` for a rule that cannot be searched, ``param.missing`` without a model and a graph.
    """
    read = [read_rule(spec, i) for i, spec in enumerate(rules)]
    if not read:
        raise InterfuseError(
            "input.empty", "no rule is given", fix="rules: [{premise: ..., conclusion: ..., variables: ...}]"
        )
    if len({r.name for r in read}) < len(read):
        raise InterfuseError("input.duplicate", "two rules have one name")
    if work.lm is None and work.graph is None:
        raise InterfuseError(
            "param.missing", "values come from a model or from a graph, and neither is given", fix="Give lm or graph."
        )
    source: _Model | _Known = (
        _Model(work, ask, beam, retries, temperature, style, judge) if work.lm is not None else _Known(work, beam)
    )
    if isinstance(source, _Model) and ranker:
        work.ctx.log("proposals, critic and likelihood come from one model: its tail is what it finds unlikely itself")
    if isinstance(source, _Model):
        work.report("asked by", source.style)
        work.report("judged by", "questions" if source.asks else "likelihood")
    lint: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for rule in read:
        beams, account = _searched(work, rule, source, beam, keep, threshold, least, critic, ranker, repetition)
        figures[rule.name] = account
        for part in ("head", "tail"):
            for binding, sure, score in beams[part]:
                values = dict(binding)
                lint.append({"rule": rule.name, "domain": rule.domain, "set": part, "values": values, "statement": rule.statement(values),
                             "confidence": sure, "loglikelihood": score})  # fmt: skip
                questions += probes(rule, values, part)
                yield from _statements(work, rule, values, sure, score, part, source.name)
        work.count("head", len(beams["head"]))
        work.count("tail", len(beams["tail"]))
    work.save("lint.jsonl", "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in lint))
    work.save("probe.jsonl", "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in questions))
    work.report("rules", figures)


def _statements(
    work: Work, rule: Rule, values: Mapping[str, str], sure: float, score: float, part: str, name: str
) -> Iterator[Candidate]:
    """The sentences of a binding; the conclusion carries the other variables, and whether it is of the head or the tail."""
    for p in rule.predicates:
        ends = [values[a] for a in p.arguments]
        rest: list[tuple[str, str | Literal]] = [(a, values[a]) for a in p.arguments[2:]]
        if p.conclusion:
            rest += [(v, values[v]) for v in rule.variables if v not in p.arguments] + [("set", Literal(part))]
        status = "model-claimed" if work.lm is not None else "inferred"
        proof = Evidence(
            name, method="build/link-longtail", model=work.lm.name if work.lm is not None else "", score=score
        )
        kinds = [rule.variables[a].type for a in p.arguments]
        yield Candidate(ends[0], p.name.replace("_", " "), ends[-1] if len(ends) == 1 else ends[1], kinds[0], kinds[min(1, len(kinds) - 1)],
                        qualifiers=tuple(rest), confidence=min(max(sure, 0.0), 1.0), kind="critic", status=status, evidence=(proof,))  # fmt: skip


def _searched(work: Work, rule: Rule, source: _Model | _Known, beam: int, keep: float, threshold: float, least: float, critic: bool, ranker: bool,
              repetition: float) -> tuple[dict[str, list[tuple[Binding, float, float]]], dict[str, Any]]:  # fmt: skip
    """Head and tail of one rule with confidence and score, and an account of every step."""
    start: Binding = tuple((v.name, v.anybody) for v in rule.variables.values() if v.generic)
    beams: dict[str, list[Binding]] = {"head": [start], "tail": [start]}
    sure: dict[Binding, list[float]] = {start: []}
    steps, scores = [], {start: 0.0}
    for turn, (name, ties) in enumerate(search_order(rule)):
        variable = rule.variables[name]

        def step(variable: Variable = variable, ties: tuple[Predicate, ...] = ties, turn: int = turn) -> dict[str, Any]:
            made: dict[str, Any] = {"bindings": [], "proposed": 0, "of another type": 0, "not true": 0}
            asked = list(dict.fromkeys([*beams["head"], *beams["tail"]]))
            proposals = source.propose(rule, variable, ties, asked, turn == 0)
            judged = source.judge(rule, variable, ties, asked, proposals) if critic else [None] * len(asked)
            for binding, values, said in zip(asked, proposals, judged, strict=True):
                made["proposed"] += len(values)
                typed, true, chosen = np.ones(len(values)), np.ones(len(values)), np.ones(len(values), dtype=bool)
                if said is not None and values:
                    typed, true = said
                    passed, _ = lowered(typed, threshold, max(threshold - 0.1, 0.0))
                    bar = max(snapped(float(true[passed].max()), threshold), least) if passed.any() else threshold
                    made["of another type"] += int((~passed).sum())
                    made["not true"] += int((passed & (true < bar - 1e-9)).sum())
                    chosen = passed & (true >= bar - 1e-9)
                made["bindings"] += [[[*binding, (variable.name, v)], float((a + b) / 2)]
                                     for v, a, b, ok in zip(values, typed, true, chosen, strict=True) if ok]  # fmt: skip
            texts = [_so_far(rule, dict(b)) for b, _ in made["bindings"]]
            made["scores"] = (
                [float(v) for v in source.likelihood(texts, [dict(b) for b, _ in made["bindings"]])]
                if ranker
                else [0.0] * len(texts)
            )
            return made

        made = kept(work.ctx, f"rule {rule.name}: {name}", step)
        bindings = [tuple((k, v) for k, v in b) for b, _ in made["bindings"]]
        for binding, (_, p), score in zip(bindings, made["bindings"], made["scores"], strict=True):
            sure[binding], scores[binding] = [*sure[binding[:-1]], p], score
        steps.append(
            {
                "variable": name,
                "accepted": len(bindings),
                **{k: v for k, v in made.items() if k not in ("bindings", "scores")},
            }
        )
        for part in beams:
            mine = [b for b in bindings if b[:-1] in set(beams[part])]
            if ranker:
                beams[part] = ranked(mine, [scores[b] for b in mine], name, tail=part == "tail", first=turn == 0, beam=beam, share=keep,
                                     repetition=repetition)  # fmt: skip
            else:
                beams[part] = mine[:beam]
    done = {
        part: [(b, accumulated(sure[b]), scores[b]) for b in found if len(b) == len(rule.variables)]
        for part, found in beams.items()
    }
    means = {part: float(np.mean([s for *_, s in rows])) if rows else None for part, rows in done.items()}
    apart = None if None in means.values() else means["head"] - means["tail"]  # type: ignore[operator]
    return done, {"steps": steps, "loglikelihood": means, "head minus tail": apart}


def _so_far(rule: Rule, values: Mapping[str, str]) -> str:
    """The sentences whose variables are all known, the conclusion last."""
    known = [p for p in rule.predicates if all(a in values for a in p.arguments)]
    return ", ".join(p.says(values) for p in known) or ", ".join(p.says(values) for p in rule.premises)


class _Model:
    """Values, judgements and likelihoods from a language model."""

    def __init__(
        self, work: Work, ask: int, beam: int, retries: int, temperature: float, style: str, judge: str
    ) -> None:
        assert work.lm is not None
        self.work, self.lm, self.ask, self.beam = work, prepared(work.lm, work.ctx), ask, beam
        self.retries, self.temperature, self.name = retries, temperature, f"model:{work.lm.name}"
        self.style = style if style != "auto" else "request" if for_chat(work.lm) else "lines"
        self.asks = judge == "questions" or (judge == "auto" and self.style == "request")
        self._scores: LM | None = self.lm

    def propose(
        self, rule: Rule, variable: Variable, ties: Sequence[Predicate], bindings: Sequence[Binding], first: bool
    ) -> list[list[str]]:
        """Step 2 of the card for every binding, all of them asked at once, until the beam is full or requests bring nothing new too
        often. A date or number counts only when a second answer says the same."""
        values, known = [dict(b) for b in bindings], [{plain_key(v) for _, v in b} for b in bindings]
        wanted = 1 if variable.factual else 2 * self.ask if first else self.ask
        found: list[dict[str, str]] = [{} for _ in bindings]
        idle, open_ones = [0] * len(bindings), list(range(len(bindings)))
        for turn in range(1 if variable.factual else max(1, -(-self.beam // self.ask)) + self.retries):
            if not open_ones:
                break
            seed = self.work.ctx.seed_for(f"{rule.name} {variable.name} {turn}") % 2**31
            replies = self._asked(rule, ties, variable, [values[i] for i in open_ones], [list(found[i].values()) for i in open_ones], wanted, seed)  # fmt: skip
            for i, own in zip(open_ones, replies, strict=True):
                before = len(found[i])
                for value in own:
                    if usable(value, variable) and plain_key(value) not in known[i]:
                        found[i].setdefault(plain_key(value), value)
                idle[i] = idle[i] + 1 if len(found[i]) == before else 0
            open_ones = [i for i in open_ones if not (len(found[i]) >= self.beam or idle[i] >= 2)]
        answers = [list(f.values())[: self.beam] for f in found]
        if variable.factual:
            again = self._asked(rule, ties, variable, values, [[] for _ in bindings], 1, None)
            answers = [[v for v in a[:1] if plain_key(v) in map(plain_key, b[:1])] for a, b in zip(answers, again, strict=True)]  # fmt: skip
        return answers

    def _asked(self, rule: Rule, ties: Sequence[Predicate], variable: Variable, values: Sequence[Mapping[str, str]],
               found: Sequence[Sequence[str]], wanted: int, seed: int | None) -> list[list[str]]:  # fmt: skip
        """Proposals drawn from ``seed``; the likeliest without one."""
        heat = 0.0 if seed is None else self.temperature
        return proposed(self.lm, rule, ties, values, variable, found, wanted=wanted, style=self.style, temperature=heat, seed=seed or 0,
                        ctx=self.work.ctx)  # fmt: skip

    def judge(
        self,
        rule: Rule,
        variable: Variable,
        ties: Sequence[Predicate],
        bindings: Sequence[Binding],
        values: Sequence[Sequence[str]],
    ) -> list[tuple[Floats, Floats]]:
        """Step 3: probabilities that each value is of its type, and that the sentences are true; every question is asked once, after the
        answered ones that the rule's examples give. Instead of questions, it may count how much a value is expected."""
        if not self.asks:
            return expected(self.lm, rule, ties, variable, [dict(b) for b in bindings], values, ctx=self.work.ctx)
        typed = [[f"Is {v} a {variable.type}?" for v in own] for own in values]
        true = [
            [asked_truth(ties, {**dict(b), variable.name: v}) for v in own]
            for b, own in zip(bindings, values, strict=True)
        ]
        said: list[dict[str, float]] = []
        for questions, shots in zip((typed, true), answered(rule, ties, variable), strict=True):
            once = list(dict.fromkeys(q for own in questions for q in own))
            said.append(dict(zip(once, p_yes(self.lm, once, ctx=self.work.ctx, shots=shots).tolist(), strict=True)))
        return [
            (np.array([said[0][q] for q in a]), np.array([said[1][q] for q in b]))
            for a, b in zip(typed, true, strict=True)
        ]

    def likelihood(self, texts: Sequence[str], bindings: Sequence[Mapping[str, str]]) -> list[float]:
        """Mean log-likelihood per token of each text; zeros from a model that cannot score, which the log says."""
        if not texts or self._scores is None:
            return [0.0] * len(texts)
        try:
            return [
                s.logprob / max(s.tokens, 1) for s in self._scores.score([("", t) for t in texts], ctx=self.work.ctx)
            ]
        except InterfuseError as error:
            if error.code != "needs.capability":
                raise
            self.work.ctx.log("the model cannot score texts: head and tail are not ranked by likelihood")
            self._scores = None
            return [0.0] * len(texts)


class _Known:
    """Values from a graph whose relations are called as the predicates are: all of them true, the rare ones of few statements."""

    def __init__(self, work: Work, beam: int) -> None:
        assert work.graph is not None
        self.graph: Graph = work.graph
        self.name, self.beam = f"graph:{work.graph.name}", beam
        self._counts: dict[str, int] = {}
        self._pairs: dict[str, list[tuple[str, str]]] = {}
        for s in self.graph.statements():
            if not isinstance(s.object, Literal):
                a, b = self.graph.label(s.subject), self.graph.label(s.object)
                self._pairs.setdefault(s.predicate, []).append((a, b))
                for end in (a, b):
                    self._counts[end] = self._counts.get(end, 0) + 1

    def _known(self, predicate: Predicate) -> list[tuple[str, str]]:
        return self._pairs.get(relation_id(predicate.name.replace("_", " ")), [])

    def propose(
        self, rule: Rule, variable: Variable, ties: Sequence[Predicate], bindings: Sequence[Binding], first: bool
    ) -> list[list[str]]:
        """What the graph says stands there for each binding."""
        return [self._fitting(rule, variable, b, first) for b in bindings]

    def _fitting(self, rule: Rule, variable: Variable, binding: Binding, first: bool) -> list[str]:
        """A predicate with a generic variable allows anything the other side is known to be."""
        values, generic = dict(binding), {v.name for v in rule.variables.values() if v.generic}
        left: list[str] | None = None
        for p in rule.premises:
            if variable.name not in p.arguments or len(p.arguments) != 2:
                continue
            mine = p.arguments.index(variable.name)
            other = p.arguments[1 - mine]
            if other in generic:
                continue
            fits = [pair[mine] for pair in self._known(p) if other not in values or pair[1 - mine] == values[other]]
            left = list(dict.fromkeys(fits)) if left is None else [v for v in left if v in set(fits)]
        return sorted(left or [])[: self.beam] if first else (left or [])[: self.beam]

    def judge(
        self,
        rule: Rule,
        variable: Variable,
        ties: Sequence[Predicate],
        bindings: Sequence[Binding],
        values: Sequence[Sequence[str]],
    ) -> list[tuple[Floats, Floats]]:
        """The graph has said so."""
        return [(np.ones(len(own)), np.ones(len(own))) for own in values]

    def likelihood(self, texts: Sequence[str], bindings: Sequence[Mapping[str, str]]) -> list[float]:
        """The mean logarithm of how many statements speak of each value."""
        return [
            float(np.mean([np.log(self._counts[v]) for v in b.values() if v in self._counts] or [0.0]))
            for b in bindings
        ]
