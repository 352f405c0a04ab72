"""Students of harvested knowledge, in worlds whose truth is known, five seeds each.

    python benchmarks/build_students.py [symbolic-kd] [mechgpt]

``symbolic-kd``: a teacher learns a corpus of which a quarter is false; a student a fifth of its size learns what it writes, unfiltered or cut by a
critic at an expected recall of 0.8 and 0.5. Teacher and students are asked in the same way and judged by the truth.

``mechgpt``: a small model that knows how questions are put learns sixty new facts from question and answer pairs (found by patterns in
a text) or from the text itself, for the same number of steps, and is asked in another wording; general ability is asked for too.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import part, save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import open_lm
from interfuse.data.models import Model, build
from interfuse.data.seeding import seeded

SEEDS = range(5)


def tokenizer(folder: Path, words: Sequence[str]) -> Path:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {w: i for i, w in enumerate(dict.fromkeys(["[PAD]", "[UNK]", "[EOS]", *words]))}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(folder)
    return folder


def fresh(folder: Path, width: int, seed: int) -> tuple[Any, Any]:
    """An untrained two-layer model for the tokenizer in ``folder``."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    config = {"model_type": "llama", "vocab_size": len(tok), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2, "tie_word_embeddings": True}  # fmt: skip
    module: Any = build(Model("student", None, config, "causal-lm"), Ctx(seed=seed))
    return module, tok


def trained(
    module: Any, tok: Any, texts: Sequence[tuple[str, str]], steps: int, seed: int, lr: float = 3e-3, batch: int = 64
) -> Any:
    """Trains on (prompt, completion) pairs, loss on the completions alone; the learning rate falls to zero."""
    rows = []
    for prompt, completion in texts:
        a, b = tok(prompt)["input_ids"] if prompt else [], [*tok(completion)["input_ids"], 2]
        rows.append((a + b, [-100] * len(a) + b))
    longest = max(len(r) for r, _ in rows)
    ids = torch.tensor([r + [0] * (longest - len(r)) for r, _ in rows])
    labels = torch.tensor([y + [-100] * (longest - len(y)) for _, y in rows])
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    module.train()
    with seeded(seed):
        for _ in range(steps):
            pick = torch.as_tensor(rng.integers(0, len(rows), batch))
            loss = module(input_ids=ids[pick], attention_mask=(ids[pick] != 0).long(), labels=labels[pick]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return module.eval()


def saved(module: Any, tok: Any, folder: Path) -> str:
    """The model and its tokenizer as a folder."""
    module.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


# ------------------------------------------------------------------------------------------------ symbolic distillation

KINDS, RELATIONS, VALUES, THINGS = 12, ("colour", "size", "use", "place"), 8, 25
#: heads whose triples are judged, four each; and the strength of the critic, chosen with other seeds than those reported
JUDGED, STRENGTH = 240, 30.0


def symbolic(seed: int) -> dict[str, float]:
    """Share of right answers of the teacher and its students, sampled alike; and what they were trained on."""
    rng = np.random.default_rng(seed)
    truth = {(k, r): f"{r}{int(rng.integers(VALUES))}" for k in range(KINDS) for r in RELATIONS}
    heads = [f"kind{k} thing{t}" for k in range(KINDS) for t in range(THINGS)]

    def right(head: str, relation: str, tail: str) -> bool:
        return truth[int(head.split()[0][4:]), relation] == tail.strip().rstrip(" .")

    words = [*(f"kind{k}" for k in range(KINDS)), *(f"thing{t}" for t in range(THINGS)), *RELATIONS, *(f"{r}{v}" for r in RELATIONS for v in range(VALUES)),
             "has", ".", *(str(i) for i in range(1, 12)), "<", ">", "/", "[", "]", "head", "relation", "GEN", "</", "]."]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        tok_folder = tokenizer(root / "tok", words)
        texts = []
        for head in heads:
            for r in RELATIONS:
                for _ in range(3):
                    tail = (
                        truth[int(head.split()[0][4:]), r] if rng.random() < 0.75 else f"{r}{int(rng.integers(VALUES))}"
                    )
                    texts.append(("", f"{head} has {r} {tail} ."))
        plain = [t for _, t in texts]
        for a in plain[::2]:  # it also knows lists, which is how it is asked
            shown = f"{heads[0]} has {(r := a.split()[3])} {truth[0, r]}"
            texts.append(("", f"1. {shown}. 2. {a}"))
        teacher, tok = fresh(tok_folder, 96, seed)
        lm = saved(trained(teacher, tok, texts, 700, seed), tok, root / "teacher")
        judged = []
        for head in [heads[int(i)] for i in rng.permutation(len(heads))[:JUDGED]]:
            for r in RELATIONS:
                tail = truth[int(head.split()[0][4:]), r] if rng.random() < 0.6 else f"{r}{int(rng.integers(VALUES))}"
                judged.append({"head": head, "relation": r, "tail": tail, "valid": int(right(head, r, tail))})
        from datasets import Dataset

        table = str(root / "judged.parquet")
        Dataset.from_dict({k: [j[k] for j in judged] for k in judged[0]}).to_parquet(table)
        schema = {r: {"phrase": f"has {r}", "examples": [[heads[0], truth[0, r]]]} for r in RELATIONS}
        found: dict[str, float] = {}
        apply(
            "build/symbolic-kd",
            lm=lm,
            relations=schema,
            heads=heads,
            tails=5,
            shots=1,
            top_p=1.0,
            max_tokens=2,
            recall=0.8,
            strength=STRENGTH,
            table=table,
            seed=seed,
            out=root / "g",
        )
        corpus = [json.loads(line) for line in (root / "g" / "corpus.jsonl").read_text().splitlines()]
        samples = [r for r in corpus for _ in range(r["times"])]
        found["teacher, as it was asked"] = float(
            np.mean([right(r["head"], r["relation"], r["tail"]) for r in samples])
        )
        for name, keep in (("no critic", None), ("recall 0.8", "0.8"), ("recall 0.5", "0.5")):
            rows = [r for r in corpus if keep is None or keep in r["kept at recall"]]
            found[f"corpus, {name}"] = float(np.mean([right(r["head"], r["relation"], r["tail"]) for r in rows]))
            found[f"corpus size, {name}"] = len(rows)
            weighted = [r for r in rows for _ in range(r["times"])]
            student, _ = fresh(tok_folder, 40, seed)
            pairs = [(f"{r['head']} has {r['relation']}", f"{r['tail']} .") for r in weighted]
            found[f"student, {name}"] = asked(
                saved(trained(student, tok, pairs, 500, seed), tok, root / name.replace(" ", "-")), heads, right, seed
            )
        found["teacher"] = asked(lm, heads, right, seed)
        found["size ratio"] = sum(p.numel() for p in teacher.parameters()) / sum(
            p.numel() for p in student.parameters()
        )
    return found


def asked(folder: str, heads: Sequence[str], right: Any, seed: int) -> float:
    """Share of right tails, one sampled per head and relation."""
    lm: Any = open_lm(Source(folder), Ctx())
    jobs = [(h, r) for h in heads for r in RELATIONS]
    replies = lm.generate([f"{h} has {r}" for h, r in jobs], max_tokens=1, temperature=1.0, seed=seed)
    return float(np.mean([right(h, r, reply[0].text) for (h, r), reply in zip(jobs, replies, strict=True)]))


# ------------------------------------------------------------------------------------------------ question and answer pairs

PLACES, STUFFS = 12, 12


def mechgpt(seed: int) -> dict[str, float]:
    """Exact answers to new facts in another wording, after learning from pairs, from the text, or not at all."""
    rng = np.random.default_rng(seed)
    old, new = [f"Ob{i}" for i in range(120)], [f"Nu{i}" for i in range(30)]
    where = {n: f"Town{int(rng.integers(PLACES))}" for n in [*old, *new]}
    made = {n: f"stuff{int(rng.integers(STUFFS))}" for n in [*old, *new]}

    def prose(n: str) -> list[str]:
        return [f"{n} is located in {where[n]}.", f"{n} contains {made[n]} and water."]

    def questions(n: str) -> list[tuple[str, str]]:
        return [
            (f"Where is {n} located ?", f"{n} is located in {where[n]} ."),
            (f"What does {n} contain ?", f"{n} contains {made[n]} and water ."),
        ]

    def others(n: str) -> list[tuple[str, str]]:
        return [(f"In which town is {n} ?", where[n]), (f"Of which stuff is {n} made ?", made[n])]

    words = " ".join(
        [
            *(t for n in [*old, *new] for t in prose(n)),
            *(q + " " + a for n in old for q, a in [*questions(n), *others(n)]),
        ]
    )
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folder = tokenizer(root / "tok", re.findall(r"\w+|[^\w\s]", words) + old + new)
        background = [("", t) for n in old for t in prose(n)] + [
            (q, a) for n in old for q, a in [*questions(n), *others(n)]
        ]
        base, tok = fresh(folder, 64, seed)
        trained(base, tok, background, 900, seed)
        state = {k: v.clone() for k, v in base.state_dict().items()}
        (root / "docs").mkdir()
        (root / "docs" / "new.txt").write_text("\n\n".join(" ".join(prose(n)) for n in new))
        apply("build/mechgpt", documents=str(root / "docs"), held_share=0.0, out=root / "g", seed=seed)
        chats = [json.loads(line)["messages"] for line in (root / "g" / "qa-train.jsonl").read_text().splitlines()]
        arms = {"none": [], "text": [("", t) for n in new for t in prose(n)],
                "pairs": [(re.sub(r"([?.])", r" \1", q["content"]), re.sub(r"([?.])", r" \1", a["content"])) for q, a in chats]}  # fmt: skip
        found: dict[str, float] = {"pairs found": len(chats)}
        for name, texts in arms.items():
            base.load_state_dict(state)
            if texts:
                trained(
                    base,
                    tok,
                    [*texts, *[background[int(i)] for i in rng.permutation(len(background))[:60]]],
                    200,
                    seed,
                    lr=1e-3,
                )
            base.eval()
            for kind, names in (("new facts, other wording", new), ("old facts, other wording", old)):
                found[f"{name}: {kind}"] = exact(base, tok, [x for n in names for x in others(n)])
            found[f"{name}: new facts, wording of the pairs"] = exact(
                base, tok, [(q, a) for n in new for q, a in questions(n)]
            )
    return found


def exact(module: Any, tok: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Share of greedy answers that begin with the right one."""
    good = 0
    for q, a in pairs:
        ids, want = tok(q, return_tensors="pt")["input_ids"], tok(a)["input_ids"]
        with torch.no_grad():
            out = module.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=len(want),
                do_sample=False,
                pad_token_id=0,
            )
        good += out[0, ids.shape[1] :].tolist()[: len(want)] == want
    return good / len(pairs)


def compared(rows: Sequence[dict[str, float]], one: str, other: str) -> dict[str, float]:
    """Mean difference over seeds with a 95 % interval (Student's t)."""
    change = np.array([r[one] - r[other] for r in rows])
    half = 2.776 * change.std(ddof=1) / np.sqrt(len(change))
    return {"difference": float(change.mean()), "low": float(change.mean() - half), "high": float(change.mean() + half)}


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name, run, pairs in (
        ("symbolic-kd", symbolic, [("student, recall 0.8", "teacher, as it was asked"), ("student, recall 0.5", "teacher, as it was asked"), ("student, no critic", "teacher, as it was asked"),
                                   ("student, recall 0.8", "student, no critic"), ("student, recall 0.5", "student, recall 0.8"),
                                   ("corpus, recall 0.8", "corpus, no critic"), ("corpus, recall 0.5", "corpus, no critic")]),
        ("mechgpt", mechgpt, [("pairs: new facts, other wording", "text: new facts, other wording"), ("pairs: new facts, other wording", "none: new facts, other wording"),
                              ("pairs: old facts, other wording", "none: old facts, other wording")]),
    ):  # fmt: skip
        if names and name not in names:
            continue
        rows = []
        for seed in SEEDS:
            rows.append(part(f"build-students-{name}", f"seed {seed}", partial(run, seed)))
            print(name, json.dumps(rows[-1]), flush=True)
        save(f"build-{name}-students", {"seeds": rows, "means": {k: float(np.mean([r[k] for r in rows])) for k in rows[0]},
                                        "paired": {f"{a} minus {b}": compared(rows, a, b) for a, b in pairs}})  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
