"""NeuroComparatives: comparisons by constrained over-generation, then filters of form, agreement and validity (Howard et al. 2024)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.local_lm import LocalLM
from interfuse.data.statements import Evidence, Literal, number
from interfuse.kit.comparatives import (
    ADVERBS,
    AUXILIARIES,
    SINGULAR_AUXILIARIES,
    WORDS,
    is_uncountable,
    outvoted,
    plural,
    prompt_of,
    taken_apart,
)
from interfuse.kit.constrained_beam import Clause, Constraint, constrained_beam, each_alternative, word_starts
from interfuse.kit.critics import Critic
from interfuse.kit.kept_steps import kept
from interfuse.kit.near_duplicates import best_of_each, clusters
from interfuse.kit.sifting import Funnel, Proposal
from interfuse.kit.token_models import CausalStepper

#: words that a comparison does not hold
PRONOUNS = (
    "they",
    "them",
    "it",
    "its",
    "this",
    "these",
    "those",
    "that",
    "same",
    "such",
    "he",
    "she",
    "we",
    "you",
    "i",
    "each",
    "other",
)
SIGNS = ("(", ")", "[", "]", '"', ":", ";", "?", "!", "/", "\n", "*", "-")


@method(
    per="whole",
    needs=("lm",),
    parts=("interfuse.kit.constrained_beam", "interfuse.kit.comparatives", "interfuse.kit.sifting"),
)
def neurocomparatives(
    work: Work, *,
    pairs: Annotated[list[list[str]], Field(description="pairs (first, second) or triples (class, first, second); or a table with columns "
                                            "first, second and perhaps class; or siblings in a graph")] = [],  # noqa: B006
    both_orders: Annotated[bool, Field(description="each pair the other way round too")] = True,
    divided: Annotated[bool, Field(description="one search for each auxiliary and adverb (30 per pair), not one with alternatives")] = False,
    adverbs: Annotated[list[str], Field(min_length=1, description="adverbs of frequency, one of which is said")] = list(ADVERBS),  # noqa: B006
    comparatives: Annotated[list[str], Field(min_length=1, description="comparative forms, beside more and less with an adjective")] = list(WORDS),  # noqa: B006
    beam: Annotated[int, Field(ge=1, description="hypotheses of a search")] = 15,
    returned: Annotated[int, Field(ge=1, description="continuations kept of a search")] = 10,
    longest: Annotated[int, Field(ge=5, description="tokens of a continuation at most")] = 20,
    draw: Annotated[float, Field(ge=0, description="temperature of drawing within groups of hypotheses; very large is uniform, 0 best first")] = 0.0,
    distance: Annotated[float, Field(gt=0, le=2, description="statements closer than this are one cluster")] = 0.5,
    survivors: Annotated[int, Field(ge=1, description="statements kept per pair at most")] = 5,
    vote: Annotated[bool, Field(description="drop what is contradicted by as many generations as support it")] = True,
    critic: Annotated[str | None, Field(description="folder or file of a trained critic; its probability becomes the confidence")] = None,
    least: Annotated[float, Field(ge=0, le=1, description="probability of the critic that a statement needs")] = 0.0,
) -> Iterator[Candidate]:  # fmt: skip
    """For each pair: search under constraints, filter the form, cluster, vote, judge; a reified comparison per statement.

    Raises:
        InterfuseError: ``input.empty`` without pairs, ``input.shape`` for a row that is none, ``input.duplicate`` for a pair of one thing,
            ``needs.capability`` for a model whose token probabilities cannot be read.
    """
    wanted = read_pairs(work, pairs, both_orders)
    lm: Any = work.lm
    if not isinstance(lm, LocalLM) or lm.model.task != "causal-lm":
        raise InterfuseError("needs.capability", "the probability of every token is needed, and this model does not give it",
                             where=lm.name, fix="Name a local causal model.")  # fmt: skip
    judge = Critic.load(_critic_file(critic)) if critic is not None else None
    search = _Search(lm, adverbs, comparatives, divided, beam, returned, longest, draw, work.ctx.rng)
    funnel, rows, lost = Funnel(), [], 0
    with work.ctx.bar("compare", len(wanted), "pairs") as bar:
        for pair in wanted:
            made = kept(work.ctx, f"pair {' / '.join(pair)}", partial(search, pair))
            lost += made["unmet"]
            work.count("tokens computed", made["tokens"])
            found = [Proposal(tuple(pair), text, score) for text, score in made["found"]]
            for row in _sifted(found, pair, comparatives, distance, survivors, vote, judge, least, funnel):
                rows.append(row)
                if not row["dropped"]:
                    yield _candidate(work, row)
            bar.advance()
    work.count("searches whose constraint was not met", lost)
    work.report("funnel", funnel.rows())
    work.save("comparisons.jsonl", "".join(json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in rows))


def read_pairs(work: Work, pairs: Sequence[Sequence[str]], both: bool) -> list[tuple[str, str, str]]:
    """Triples (class, first, second), each once, from the parameter, the table, or siblings (two entities of one type) in the graph.

    Raises:
        InterfuseError: as :func:`neurocomparatives`.
    """
    rows: list[tuple[str, str, str]] = []
    for row in pairs:
        if len(row) not in (2, 3) or not all(str(v).strip() for v in row):
            raise InterfuseError("input.shape", f"a pair is two things, perhaps a class before them, not {list(row)!r}")
        rows.append((str(row[0]).strip() if len(row) == 3 else "", str(row[-2]).strip(), str(row[-1]).strip()))
    if work.table is not None:
        first, second = work.table.column("first"), work.table.column("second")
        kinds = work.table.column("class") if "class" in work.table.dataset.column_names else [""] * len(first)
        for i, row in enumerate(zip(kinds, first, second, strict=True)):
            if row[1] is None or row[2] is None or not str(row[1]).strip() or not str(row[2]).strip():
                raise InterfuseError(
                    "input.missing", "a thing to be compared is empty", where=f"{work.table.name}: row {i}"
                )
            rows.append((str(row[0] or "").strip(), str(row[1]).strip(), str(row[2]).strip()))
    if work.graph is not None:
        for kind in sorted({t for e in work.graph.entities() for t in work.graph.types(e)}):
            names = sorted({work.graph.label(e) for e in work.graph.entities(kind)})
            rows += [(work.graph.called(kind), a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    for row in rows:
        if row[1].lower() == row[2].lower():
            raise InterfuseError("input.duplicate", f"{row[1]!r} cannot be compared with itself", where=" / ".join(row))
    if not rows:
        raise InterfuseError(
            "input.empty",
            "there is no pair to compare",
            fix="Give pairs, a table with columns first and second, or a graph.",
        )
    return list(dict.fromkeys(r for k, a, b in rows for r in ([(k, a, b), (k, b, a)] if both else [(k, a, b)])))


def _critic_file(place: str) -> Path:
    path = Path(place).expanduser()
    return path / "critic.safetensors" if path.is_dir() else path


class _Search:
    """Constrained generation of continuations for one pair (steps 2 to 4 of the card)."""

    def __init__(self, lm: LocalLM, adverbs: Sequence[str], comparatives: Sequence[str], divided: bool, beam: int, returned: int, longest: int,
                 draw: float, rng: Callable[[str], np.random.Generator]) -> None:  # fmt: skip
        self.lm, self.divided, self.beam, self.returned, self.longest, self.draw, self.rng = (
            lm,
            divided,
            beam,
            returned,
            longest,
            draw,
            rng,
        )
        self.adverbs, self.comparatives = list(adverbs), list(comparatives)
        size = int(lm.module.config.get_text_config().vocab_size)
        pieces = lm.tokenizer.convert_ids_to_tokens(list(range(min(size, len(lm.tokenizer)))))
        self.starts = np.concatenate(
            [word_starts([str(p) for p in pieces]), np.ones(max(size - len(pieces), 0), dtype=bool)]
        )
        self.end = list(dict.fromkeys([*self._ids("."), *self._ids("\n"), *lm.tokenizer.all_special_ids]))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Each word as it stands within a sentence, those that have no token left out."""
        return tuple(dict.fromkeys(p for p in (self._ids(f" {w}") for w in words) if p))

    def constraints(self, first: str, second: str) -> Iterator[Constraint]:
        """Auxiliary, adverb, comparative, in this order; neither thing again, no pronoun, no sign, nothing three tokens long twice."""
        single = is_uncountable(second)
        clauses = (Clause(self._words(SINGULAR_AUXILIARIES if single else AUXILIARIES)), Clause(self._words(self.adverbs)),
                   Clause(self._words([*self.comparatives, "more", "less"]), leading=5))  # fmt: skip
        things = [v for e in (first, second) for v in (e.lower(), plural(e).lower())]
        never = self._words([*dict.fromkeys(things), *PRONOUNS, "than"])
        signs = tuple(
            dict.fromkeys(
                (t,) for s in (*SIGNS, ",") for form in (s, f" {s}") for t in self._ids(form)[-1:] if t not in self.end
            )
        )
        blocked = tuple(n for n in (*never, *signs) if not any(p == n for c in clauses for p in c.phrases))
        for fixed in each_alternative(clauses, (0, 1) if self.divided else ()):
            yield Constraint(fixed, blocked, ordered=True, unrepeated=3, starts=self.starts)

    def __call__(self, pair: tuple[str, str, str]) -> dict[str, Any]:
        """Distinct continuations with their best score, how many searches met nothing, and the tokens the model computed."""
        _, first, second = pair
        prompt = prompt_of(first, second)
        ids = self.lm.tokens_of(prompt)
        if not ids:
            raise InterfuseError("input.empty", f"{first!r} and {second!r} have no token")
        stepper, found, unmet = CausalStepper(self.lm.module), {}, 0  # type: tuple[CausalStepper, dict[str, float], int]
        rng = self.rng(f"pair {' / '.join(pair)}")
        for constraint in self.constraints(first, second):
            made = constrained_beam(stepper, ids, constraint, end=self.end, beam=self.beam, min_length=3, max_length=self.longest,
                                    count=self.returned, temperature=self.draw, rng=rng)  # fmt: skip
            unmet += not any(f.complete for f in made)
            for f in made:
                if f.complete:
                    text = str(self.lm.tokenizer.decode(list(f.tokens), skip_special_tokens=True)).strip()
                    found[text] = max(found.get(text, -np.inf), f.score(0.1))
        return {
            "found": sorted(found.items(), key=lambda kv: (-kv[1], kv[0])),
            "unmet": unmet,
            "tokens": stepper.forward_tokens,
        }


@dataclass(frozen=True)
class _Row:
    """One statement on its way."""

    proposal: Proposal
    size: int


def _sifted(found: list[Proposal], pair: tuple[str, str, str], words: Sequence[str], distance: float, survivors: int, vote: bool,
            judge: Critic | None, least: float, funnel: Funnel) -> list[dict[str, Any]]:  # fmt: skip
    """Steps 5 to 8 of the card on the statements of one pair: all of them, with why some are dropped."""
    kind, first, second = pair
    apart = {p.text: taken_apart(first, second, p.text, words) for p in found}
    formed = funnel.keep("form", found, lambda p: "" if not isinstance(apart[p.text], str) else str(apart[p.text]))
    if not formed:
        return []
    texts = [p.text for p in formed]
    labels = clusters(texts, distance=distance)
    sizes = np.bincount(labels)
    best = best_of_each(labels, [p.score for p in formed])
    funnel.note("cluster", len(formed), len(best), ["near duplicate"] * (len(formed) - len(best)))
    rows = [_Row(formed[i], int(sizes[labels[i]])) for i in best]
    rows.sort(key=lambda r: -r.proposal.score)
    said = [c for r in rows if not isinstance(c := apart[r.proposal.text], str)]
    votes = outvoted(said, [r.size for r in rows]) if vote else [(r.size, 0) for r in rows]
    made: list[dict[str, Any]] = []
    for row, (supporters, opponents) in zip(rows, votes, strict=True):
        c = apart[row.proposal.text]
        assert not isinstance(c, str)
        text = f"{prompt_of(first, second)} {c.text}."
        p = float(judge([text])[0]) if judge is not None else None
        made.append({"class": kind, "first": first, "second": second, "text": text, "auxiliary": c.auxiliary, "adverb": c.adverb,
                     "comparative": c.comparative, "property": c.aspect, "logprob": row.proposal.score, "cluster size": row.size,
                     "entailed": supporters, "contradicted": opponents, "p_valid": p, "dropped": ""})  # fmt: skip
    for stage, reason, falls in (
        ("vote", "contradicted", lambda m, _: vote and m["entailed"] <= m["contradicted"]),
        ("critic", "the critic doubts it", lambda m, _: m["p_valid"] is not None and m["p_valid"] <= least),
        ("survivors", "beyond the wanted count", lambda _, place: place >= survivors),
    ):
        left = [m for m in made if not m["dropped"]]
        gone = [m for place, m in enumerate(left) if falls(m, place)]
        for m in gone:
            m["dropped"] = reason
        funnel.note(stage, len(left), len(left) - len(gone), [reason] * len(gone))
    return made


def _candidate(work: Work, row: dict[str, Any]) -> Candidate:
    """``second  is <comparative>  first``: the comparison as one statement, what it is about in its qualifiers."""
    name = work.lm.name if work.lm is not None else ""
    proof = Evidence(f"model:{name}", method="build/neurocomparatives", model=name, score=row["logprob"])
    rest = [("adverb", Literal(row["adverb"])), ("text", Literal(row["text"])), ("supported by", number(int(row["entailed"]))),
            ("contradicted by", number(int(row["contradicted"])))]  # fmt: skip
    if row["property"]:
        rest.append(("property", Literal(row["property"])))
    total = row["entailed"] + row["contradicted"]
    sure = row["p_valid"] if row["p_valid"] is not None else row["entailed"] / total
    return Candidate(row["second"], f"{row['comparative']} than", row["first"], row["class"], row["class"], qualifiers=tuple(rest),
                     confidence=sure, kind="critic" if row["p_valid"] is not None else "vote", status="model-claimed", evidence=(proof,))  # fmt: skip
