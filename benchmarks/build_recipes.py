"""The recipes symbolic-kd and mechgpt as they ship, run once on a small real language model that is teacher and student.

    python benchmarks/build_recipes.py [symbolic-kd] [mechgpt]

``symbolic-kd``: the student is asked about heads that it never saw in training (sixty facts, which the critic knew), as it learnt to be asked; beside
it the teacher with its examples, the same student without training, and one that learnt the corpus without critic. The recall of the second
student is set to 1, everything else is the same.

``mechgpt``: thirty invented things in a text, each with a town and a use; pairs are found by patterns. The tuned model is asked in another wording
and chooses among eight towns or uses; beside it the model without tuning, and one tuned on the sentences themselves for as many steps.
What it should still know: capitals of 24 countries, in its own words. Epochs and learning rate are set for so few pairs.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from build_bertnet import right
from real_models import smollm2
from record import part, save
from shipped_recipe import shipped as recipe

from interfuse.core import index
from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.core.run import run
from interfuse.core.safe import load_yaml
from interfuse.data.lm import open_lm
from interfuse.kit.commonsense import clean_tail, read_schema, request, training_text
from interfuse.kit.stats import compare_outcomes, score_interval, wilson_interval

PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
MODEL = "SmolLM2-135M-Instruct (4-bit weights, computed in bfloat16)"


def told(hits: Sequence[bool]) -> dict[str, float]:
    interval = wilson_interval(sum(hits), len(hits))
    return {"n": len(hits), "right": interval.estimate, "low": interval.low, "high": interval.high}


def paired(hits: dict[str, list[bool]], one: str, two: str) -> dict[str, float]:
    change = compare_outcomes(hits[one], hits[two])
    interval = score_interval(change.gained, change.lost, change.n)
    return {"n": change.n, "difference": change.delta, "low": interval.low, "high": interval.high}


# ------------------------------------------------------------------------------------------------ symbolic-kd


def symbolic(model: str) -> dict[str, Any]:
    """Right tails of teacher and students."""
    shipped = index.shipped("recipes")
    with (shipped / "symbolic-kd.csv").open() as file:
        facts = [(r["head"], r["relation"], r["tail"]) for r in csv.DictReader(file) if r["valid"] == "1"]
    found: dict[str, Any] = {"facts": len(facts)}
    answers: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "symbolic-kd.csv").write_text((shipped / "symbolic-kd.csv").read_text())
        for arm, recall in (("student", "0.8"), ("student, no critic", "1.0")):
            file = recipe("symbolic-kd.yaml", place, {r"teacher: \{[^}]*\}": f"teacher: {{model: {model}}}", r"small: \{[^}]*\}": f"small: {{model: {model}}}",
                                                      "recall: 0.8": f"recall: {recall}"})  # fmt: skip
            made = run(file, place / arm.replace(", ", "-").replace(" ", "-"), ctx=Ctx(dtype="bfloat16"))
            told_by = json.loads((made["student"] / "interfuse.json").read_text())["facts"]
            found[f"{arm}: examples"], found[f"{arm}: loss of the last epoch"] = (
                told_by["examples"],
                told_by["last_epoch"],
            )
            answers[arm] = completed(str(made["student"]), facts)
            if arm == "student":
                corpus = json.loads((made["corpus"] / "interfuse.json").read_text())["facts"]["method"]
                found |= {"critic": corpus["critic"], "thresholds": corpus["thresholds"], "funnel": corpus["funnel"]}
        answers["student before training"] = completed(model, facts)
        lm: Any = open_lm(Source(model), Ctx(dtype="bfloat16"))
        recipe_text, _ = load_yaml(file.read_text(), where=file.name)
        schema = {r.name: r for r in read_schema(recipe_text["steps"]["corpus"]["relations"])}
        asked = [request(schema[r], h, Ctx().rng(f"{h} {r}"), 5) for h, r, _ in facts]
        answers["teacher with five examples"] = [
            clean_tail(r[0].text) for r in lm.generate(asked, max_tokens=8, stop=("\n",))
        ]
    hits = {arm: [right(said, tail) for said, (_, _, tail) in zip(a, facts, strict=True)] for arm, a in answers.items()}
    return found | {"answers": {arm: told(h) for arm, h in hits.items()},
                    "paired": {f"student minus {arm}": paired(hits, arm, "student") for arm in hits if arm != "student"},
                    "examples": [[h, r, t, *(a[i] for a in answers.values())] for i, (h, r, t) in enumerate(facts) if i % 8 == 0]}  # fmt: skip


def completed(model: str, facts: Sequence[tuple[str, str, str]]) -> list[str]:
    """Greedy tails, asked in the form of the student's training texts."""
    lm: Any = open_lm(Source(model), Ctx(dtype="bfloat16"))
    replies = lm.generate([training_text(h, r, "")["prompt"] for h, r, _ in facts], max_tokens=8, stop=("\n", "."))
    return [clean_tail(r[0].text) for r in replies]


# ------------------------------------------------------------------------------------------------ mechgpt

TOWNS = ("Dunmarch", "Ostrava", "Kirkwall", "Levanto", "Tromso", "Matera", "Ypres", "Zadar")
USES = ("sealing pipes", "colouring glass", "cleaning wool", "cooling engines", "binding paper", "hardening soap", "polishing lenses", "preserving fruit")  # fmt: skip
THINGS = [
    a + b for a in ("Vel", "Tras", "Mor", "Quin", "Dax", "Ploth") for b in ("orin", "tine", "usk", "ara", "emite")
]


def mechgpt(model: str, seed: int = 0) -> dict[str, Any]:
    """Share of right choices about invented and about old facts."""
    rng = np.random.default_rng(seed)
    where, used = ({t: kinds[int(rng.integers(8))] for t in THINGS} for kinds in (TOWNS, USES))
    sentences = [s for t in THINGS for s in (f"{t} is found in {where[t]}.", f"{t} is used for {used[t]}.")]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "texts").mkdir()
        for i in range(0, len(sentences), 10):
            (place / "texts" / f"{i}.txt").write_text(" ".join(sentences[i : i + 10]))
        file = recipe("mechgpt.yaml", place, {r"small: \{[^}]*\}": f"small: {{model: {model}}}", r"\n  teacher: \{[^}]*\}": "", " lm: teacher,": "",
                                              "shortest_answer: 15": "shortest_answer: 4, held_share: 0.0", r", topics: \[[^]]*\]": "", "epochs: 3": "epochs: 10",
                                              "lr: 2.0e-4": "lr: 1.0e-3"})  # fmt: skip
        made = run(file, place / "run", seeds=(seed,), ctx=Ctx(dtype="bfloat16"))
        chats = (made["pairs"] / "qa-train.jsonl").read_text().splitlines()
        (place / "plain.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences))
        plain = apply("distill/lora", student=model, data=str(place / "plain.jsonl"), rank=16, epochs=10, batch_size=8, lr=1e-3, warmup=0.03, clip=0.3,
                      ctx=Ctx(dtype="bfloat16"), seed=seed, out=place / "plain")  # fmt: skip
        found["pairs"], found["sentences"] = len(chats), len(sentences)
        found["trained share"] = json.loads((made["tuned"] / "interfuse.json").read_text())["facts"]["trained share"]
        samples = json.loads((PLACE / "lre-relations" / "factual/country_capital_city.json").read_text())["samples"]
        capitals = [s["object"] for s in samples]
        questions = [*((f"In which town can one see {t}?", TOWNS, TOWNS.index(where[t])) for t in THINGS),
                     *((f"What do people do with {t}?", USES, USES.index(used[t])) for t in THINGS)]  # fmt: skip
        old = [
            (f"What is the capital of {s['subject']}?", tuple(capitals), capitals.index(s["object"])) for s in samples
        ]
        hits: dict[str, dict[str, list[bool]]] = {}
        for arm, at in (("none", model), ("text", str(plain.path)), ("pairs", str(made["tuned"]))):
            hits[arm] = {"new": chosen(at, questions), "old": chosen(at, old)}
    for kind in ("new", "old"):
        found[f"{kind} facts"] = {arm: told(h[kind]) for arm, h in hits.items()}
        own = {arm: h[kind] for arm, h in hits.items()}
        found[f"{kind} facts, paired"] = {f"pairs minus {arm}": paired(own, arm, "pairs") for arm in ("none", "text")}
    return found


def chosen(model: str, questions: Sequence[tuple[str, Sequence[str], int]]) -> list[bool]:
    """Whether the answer with the highest log-probability per token is the right one, asked as a chat."""
    lm: Any = open_lm(Source(model), Ctx(dtype="bfloat16"))
    rows = [(lm.render([{"role": "user", "content": q}]), a) for q, answers, _ in questions for a in answers]
    scores = iter(lm.score(rows))
    found = []
    for _, answers, place in questions:
        own = [(s := next(scores)).logprob / max(s.tokens, 1) for _ in answers]
        found.append(int(np.argmax(own)) == place)
    return found


def main(words: Sequence[str]) -> None:
    folder = smollm2()
    if folder is None or not (PLACE / "lre-relations").is_dir():
        print("skipped: the LRE relations or the model are not here")
        return
    done = {}
    for name, make in (("symbolic-kd", symbolic), ("mechgpt", mechgpt)):
        if not words or name in words:
            done[name] = part("build-recipes", name, partial(make, str(folder)))
            print(name, json.dumps(done[name]), flush=True)
            save(f"build-recipe-{name}", {"model": MODEL, **done[name]})


if __name__ == "__main__":
    main(sys.argv[1:])
