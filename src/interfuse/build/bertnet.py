"""BertNet: any relation that a few examples show, harvested from a masked or causal language model (Hao et al. 2023)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.safe import fingerprint
from interfuse.data.lm import LM
from interfuse.data.local_lm import LocalLM
from interfuse.data.models import Model, build, device_of, open_tokenizer
from interfuse.data.statements import Evidence
from interfuse.kit.kept_steps import kept
from interfuse.kit.relation_prompts import (
    Prompt,
    TupleScorer,
    corrupted,
    most_apart,
    read_prompt,
    rescored,
    slots_in,
    weigh,
)
from interfuse.kit.tuple_search import MaskedFiller, banned_ids, causal_tuples, entity_is_good, search_tuples

Floats = NDArray[np.float64]
KEYS = ("prompts", "seeds")


@dataclass(frozen=True)
class _Relation:
    name: str
    prompts: tuple[Prompt, ...]
    seeds: tuple[tuple[str, ...], ...]


@method(per="whole", needs=("lm",), masked=True, parts=("interfuse.kit.relation_prompts", "interfuse.kit.tuple_search"))
def bertnet(
    work: Work, *,
    relations: Annotated[dict[str, dict[str, list[Any]]], Field(
        description="relation -> {prompts: sentences with <ENT0> <ENT1> ..., seeds: lists of entities}")],
    most: Annotated[int, Field(ge=1, description="tuples searched for, per relation")] = 100,
    search: Annotated[bool, Field(description="search for new tuples; without it only prompts and seeds are weighed")] = True,
    subjects: Annotated[list[str], Field(description="first entities to be completed, instead of searching for them")] = [],  # noqa: B006
    paraphrases: Annotated[int, Field(ge=0, description="prompts held per relation, new ones written by the model (needs one that writes)")] = 0,
    prompt_temp: Annotated[float, Field(gt=0, description="temperature T of the prompts' weights")] = 2.0,
    max_prompts: Annotated[int, Field(ge=1, description="prompts that may have a weight")] = 20,
    subwords: Annotated[int, Field(ge=1, le=4, description="tokens of an entity in masked search")] = 2,
    max_word_repeat: Annotated[int, Field(ge=1, description="tuples a word may stand in, and objects tried per subject")] = 5,
    longest: Annotated[int, Field(ge=1, description="tokens of an entity in causal search")] = 6,
    whole_entity: Annotated[bool | None, Field(
        description="all words of an entity are scored, not its first alone; by default with causal models only")] = None,
    objects: Annotated[int | None, Field(ge=1, description="objects kept per subject, the best scored; none: all")] = None,
    rescore: Annotated[bool | None, Field(
        description="rank by the full score under all prompts; False keeps the order of the search; by default with masked models only")] = None,
) -> Iterator[Candidate]:  # fmt: skip
    """Weighs prompts, searches for tuples, scores them again under all prompts, ranks.

    Beside the graph: ``tuples.jsonl``, every tuple with its score, the score in the search (the log-probability that ordered it), the
    score under each prompt that has a weight, and its confidence.

    Raises:
        InterfuseError: ``input.format`` for a prompt without its slots, ``input.shape`` for seeds of another length, ``input.empty``
            without prompt or seed, ``needs.capability`` for a model whose token probabilities cannot be read.
    """
    wanted = read_relations(relations, masked=isinstance(work.lm, Model))
    module, tokenizer, masked = token_model(work)
    scorer = TupleScorer(module, tokenizer, masked=masked, whole=not masked if whole_entity is None else whole_entity)
    report: dict[str, Any] = {}
    lines: list[str] = []
    for relation in wanted:

        def harvest(relation: _Relation = relation) -> dict[str, Any]:
            before = scorer.scored
            prompts = list(relation.prompts)
            if paraphrases > len(prompts):
                prompts += rephrased(work, relation, paraphrases - len(prompts))
            weights, pos, neg = weigh(scorer, prompts, relation.seeds, temperature=prompt_temp, most=max_prompts)
            tuples = []
            if search:
                found = _search(work, module, tokenizer, masked, relation, prompts, weights, subjects, most, subwords,
                                max_word_repeat, longest)  # fmt: skip
                known = {tuple(e.lower() for e in s) for s in relation.seeds}
                tuples = [t for _, t in found if tuple(e.lower() for e in t) not in known]
            ranked = rescored(scorer, prompts, weights, tuples, cases=masked)
            if not (masked if rescore is None else rescore):
                place = {tuple(e.lower() for e in t): i for i, t in reversed(list(enumerate(tuples)))}
                ranked.sort(key=lambda pair: place[tuple(e.lower() for e in pair[1])])
            if objects is not None:
                ranked = first_of_each(ranked, objects)
            wrong = corrupted(relation.seeds)
            right_scores = _mixed(scorer, prompts, weights, relation.seeds)
            wrong_scores = _mixed(scorer, prompts, weights, wrong) if wrong else np.zeros(0)
            sure = confidence([s for s, _ in ranked], right_scores, wrong_scores)
            soft = softmax([s for s, _ in ranked])
            first = {tuple(e.lower() for e in t): s for s, t in (found if search else [])}
            apart = _by_prompt(scorer, prompts, weights, [t for _, t in ranked])
            return {
                "scored": scorer.scored - before,
                "prompts": [{"text": p.text, "weight": w, "seeds": a, "corrupted": b}
                            for p, w, a, b in zip(prompts, weights, pos, neg, strict=True)],
                "tuples": [{"entities": t, "score": s, "weight": w, "confidence": c, "search": first.get(tuple(e.lower() for e in t)),
                            "prompts": list(apart[i])}
                           for i, ((s, t), w, c) in enumerate(zip(ranked, soft, sure, strict=True))],
            }  # fmt: skip

        made = kept(work.ctx, f"relation {relation.name}", harvest)
        work.count("tuples", len(made["tuples"]))
        report[relation.name] = {**made, "tuples": len(made["tuples"])}
        prompt = fingerprint([p["text"] for p in made["prompts"]])
        lines += [json.dumps({"relation": relation.name, **row}, ensure_ascii=False) + "\n" for row in made["tuples"]]
        for row in made["tuples"]:
            yield _candidate(work, relation, row, prompt)
    work.report("relations", report)
    work.save("tuples.jsonl", "".join(lines))


def _candidate(work: Work, relation: _Relation, row: Mapping[str, Any], prompt: str) -> Candidate:
    """The statement of a tuple: the first two entities are subject and object, further ones qualifiers (of one alone: itself)."""
    entities, name = [str(e) for e in row["entities"]], work.lm.name if work.lm is not None else ""
    proof = Evidence(f"model:{name}", method="build/bertnet", model=name, prompt=prompt, score=float(row["score"]))
    rest = tuple((f"argument {i}", e) for i, e in enumerate(entities[2:], 2))
    return Candidate(entities[0], relation.name, entities[-1] if len(entities) == 1 else entities[1], qualifiers=rest,
                     confidence=float(row["confidence"]), kind="critic", status="model-claimed", prompt=prompt, evidence=(proof,))  # fmt: skip


def read_relations(relations: Mapping[str, Mapping[str, Sequence[Any]]], *, masked: bool) -> list[_Relation]:
    """The relations, checked.

    Raises:
        InterfuseError: as :func:`bertnet`.
    """
    found = []
    if not relations:
        raise InterfuseError(
            "input.empty", "no relation is given", fix="relations: {capital: {prompts: [...], seeds: [[...], ...]}}"
        )
    for name, spec in relations.items():
        for key in spec:
            if key not in KEYS:
                raise InterfuseError(
                    "param.unknown", f"a relation has no key {key!r}", where=name, fix="Known: " + ", ".join(KEYS)
                )
        texts, seeds = spec.get("prompts") or [], [tuple(str(e).strip() for e in s) for s in spec.get("seeds") or []]
        if not texts or not seeds:
            raise InterfuseError("input.empty", "a relation needs a prompt and a seed at least", where=name)
        arity = len(seeds[0])
        for seed in seeds:
            if len(seed) != arity or not all(seed):
                raise InterfuseError(
                    "input.shape",
                    f"the seed {list(seed)} does not have {arity} entities as the first one has",
                    where=name,
                )
        prompts = [read_prompt(str(t), arity, ending=" ." if masked else ".") for t in texts]
        found.append(_Relation(name, tuple(dict.fromkeys(prompts)), tuple(dict.fromkeys(seeds))))
    return found


def token_model(work: Work) -> tuple[Any, Any, bool]:
    """The module, its tokenizer, and whether it is a masked model.

    Raises:
        InterfuseError: ``needs.capability`` for a model whose token probabilities cannot be read.
    """
    lm: Any = work.lm
    if isinstance(lm, Model):
        return build(lm, work.ctx).to(device_of(work.ctx)).eval(), open_tokenizer(lm), True
    if isinstance(lm, LocalLM) and lm.model.task == "causal-lm":
        return lm.module, lm.tokenizer, False
    raise InterfuseError("needs.capability", "the probability of every token is needed, and this model does not give it",
                         where=lm.name, fix="Name a local masked or causal model.")  # fmt: skip


def rephrased(work: Work, relation: _Relation, count: int) -> list[Prompt]:
    """New prompts written by the model: seeds' sentences said in other words, the entities replaced by slots again; those furthest
    from what there is come first (step 1 of the card)."""
    lm: Any = work.lm
    if not isinstance(lm, LM):
        raise InterfuseError(
            "needs.capability",
            "a masked model writes no prompts",
            where=lm.name,
            fix="Give more prompts, or paraphrases: 0.",
        )
    held = [p.text for p in relation.prompts]
    for turn in range(3):
        asked = []
        for text in held[-10:]:
            seed = relation.seeds[turn % len(relation.seeds)]
            sentence = read_prompt(text, ending=".").fill(seed)[0]
            asked.append(
                (seed, f"Say the same in other words, naming {' and '.join(seed)}.\nSentence: {sentence}\nSame: ")
            )
        replies = lm.generate([a for _, a in asked], max_tokens=40, temperature=1.0, top_p=0.9, stop=("\n",), n=4,
                              seed=work.ctx.seed_for(f"paraphrase {turn}") % 2**31, ctx=work.ctx)  # fmt: skip
        fresh = []
        for (seed, _), group in zip(asked, replies, strict=True):
            for reply in group:
                slotted = slots_in(reply.text.strip().strip('"'), seed)
                if slotted is not None and 4 <= len(slotted.split()) <= 40:
                    try:
                        fresh.append(read_prompt(slotted, relation.prompts[0].arity, ending=".").text)
                    except InterfuseError:
                        continue
        new = most_apart(fresh, count - (len(held) - len(relation.prompts)), held)
        held += new
        if len(held) - len(relation.prompts) >= count or not new:
            break
    return [read_prompt(t, relation.prompts[0].arity, ending=".") for t in held[len(relation.prompts) :]]


def _search(work: Work, module: Any, tokenizer: Any, masked: bool, relation: _Relation, prompts: Sequence[Prompt], weights: Floats,
            subjects: Sequence[str], most: int, subwords: int, repeat: int, longest: int) -> list[tuple[float, tuple[str, ...]]]:  # fmt: skip
    """Candidates, best first: step 4 of the card with a masked model, beams under the best prompt with a causal one."""
    texts = [p.text for p in prompts]

    def good(entity: str, earlier: Sequence[str]) -> bool:
        return entity_is_good(entity, earlier, texts)

    arity = prompts[0].arity
    if masked:
        fill = MaskedFiller(module, tokenizer, prompts, weights, banned_ids(tokenizer, int(module.config.vocab_size)))
        with work.ctx.bar(f"search {relation.name}", subwords**arity, "shapes") as bar:
            return search_tuples(fill, lambda t: str(tokenizer.decode(list(t))), arity, most=most, subwords=subwords, repeat=repeat,
                                 good=good, advance=bar.advance)  # fmt: skip
    order = np.argsort(-weights, kind="stable")
    best = next(
        (prompts[int(i)] for i in order if weights[int(i)] > 0 and (not subjects or prompts[int(i)].order[0] == 0)),
        prompts[int(order[0])],
    )
    found: dict[tuple[str, ...], float] = {}
    for score, names in causal_tuples(module, tokenizer, best, relation.seeds, most=most, repeat=repeat, longest=longest, good=good,
                                      first=list(subjects)):  # fmt: skip
        found.setdefault(names, score)
    return sorted(((s, n) for n, s in found.items()), key=lambda pair: -pair[0])


def _by_prompt(
    scorer: TupleScorer, prompts: Sequence[Prompt], weights: Floats, tuples: Sequence[Sequence[str]]
) -> Floats:
    """The score of each tuple under each prompt that has a weight, [N, P]."""
    used = [p for p, w in zip(prompts, weights, strict=True) if w > 0]
    return scorer([(p, t) for t in tuples for p in used]).reshape(len(tuples), len(used))


def _mixed(scorer: TupleScorer, prompts: Sequence[Prompt], weights: Floats, tuples: Sequence[Sequence[str]]) -> Floats:
    return np.asarray(_by_prompt(scorer, prompts, weights, tuples) @ weights[weights > 0])


def confidence(scores: Sequence[float], right: Floats, wrong: Floats) -> list[float]:
    """Scores as the chance of being a seed rather than a corrupted seed (both equally likely before), by logistic regression on
    the two; 0.5 everywhere where there is nothing to compare with."""
    if not len(scores) or not len(right) or not len(wrong):
        return [0.5] * len(scores)
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([right, wrong])
    spread = float(x.std()) or 1.0
    fit = LogisticRegression(class_weight="balanced").fit(
        ((x - x.mean()) / spread)[:, None], [1] * len(right) + [0] * len(wrong)
    )
    return [float(p) for p in fit.predict_proba(((np.asarray(scores) - x.mean()) / spread)[:, None])[:, 1]]


def first_of_each(ranked: Sequence[tuple[float, tuple[str, ...]]], most: int) -> list[tuple[float, tuple[str, ...]]]:
    """The first ``most`` tuples of every first entity, in the order given."""
    seen: dict[str, int] = {}
    kept_ones = []
    for score, entities in ranked:
        subject = entities[0].lower()
        seen[subject] = seen.get(subject, 0) + 1
        if seen[subject] <= most:
            kept_ones.append((score, entities))
    return kept_ones


def softmax(scores: Sequence[float]) -> list[float]:
    """Weights that sum to 1 over all tuples: the paper's; they shrink as more are kept, and are no probabilities of truth."""
    if not len(scores):
        return []
    values = np.exp(np.asarray(scores) - max(scores))
    return [float(v) for v in values / values.sum()]
