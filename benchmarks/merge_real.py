"""Every merge method on a real language model: three experts of SmolLM2-135M, what each merge keeps of what they learned.

Three experts are fine-tuned in full (a few minutes each, kept beside the model folders): worked solutions of gsm8k, topics of banking77,
verdicts with reasons of creak. Every method of the room that applies merges them with the base. Held in: unseen examples of the three
tasks; held out: facts of strategyqa, which no expert has seen. Measured: loss per answer token, and whether the right answer is
likelier than the wrong ones (banking77: among four topics; creak and strategyqa: true or false, yes or no): gained, kept and lost beside the base,
with 95 % intervals over the items. Each merged folder is loaded with ``AutoModelForCausalLM.from_pretrained``, and generates.
What is measured is kept method by method: a run that was stopped goes on.

    INTERFUSE_SHARED_DATA=... python benchmarks/merge_real.py [--steps 24] [--items 20] [--first ties,linear]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_models import PLACE, smollm2
from record import part, save, shared

DATA = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
TASKS = ("gsm8k", "banking77", "creak")
HELD_OUT = "strategyqa"
LONGEST = 128
ROWS = 6  # examples in a step
READ = 8  # rows measured together
EXAMPLES = 8  # of each task, for the methods that look at the models at work

Item = dict[str, Any]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load(task: str, rng: np.random.Generator) -> tuple[list[Item], list[Item]]:
    """Examples to train on and unseen ones to measure on: ``prompt``, ``answer`` and, where there is a choice, wrong ``others``."""
    if task == "gsm8k":
        rows = [{"prompt": r["question"], "answer": r["answer"].replace("<<", "").replace(">>", ""), "others": []}
                for r in _lines(DATA / task / "test.jsonl")]  # fmt: skip
        order = [rows[i] for i in rng.permutation(len(rows))]
        return order[:1000], order[1000:]
    if task == "banking77":
        topics = [t.replace("_", " ") for t in json.loads((DATA / task / "categories.json").read_text())]

        def read(name: str) -> list[Item]:
            with (DATA / task / name).open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            made = []
            for i in rng.permutation(len(rows)):
                right = rows[i]["category"].replace("_", " ")
                wrong = [topics[j] for j in rng.permutation(len(topics)) if topics[j] != right][:3]
                ask = f"A customer of a bank writes: {rows[i]['text'].strip()}\nWhat is it about?"
                made.append({"prompt": ask, "answer": right, "others": wrong})
            return made

        return read("train.csv"), read("test.csv")
    if task == "creak":

        def claims(name: str) -> list[Item]:
            rows = _lines(DATA / task / name)
            return [{"prompt": f"Is this true or false, and why? {rows[i]['sentence']}", "answer": f"{rows[i]['label']}. {rows[i]['explanation']}",
                     "right": rows[i]["label"], "others": ["false" if rows[i]["label"] == "true" else "true"]}
                    for i in rng.permutation(len(rows))]  # fmt: skip

        return claims("train.jsonl"), claims("dev.jsonl")
    rows = _lines(DATA / HELD_OUT / "dev.jsonl")
    word = {True: "yes", False: "no"}
    return [], [{"prompt": rows[i]["question"], "answer": f"{word[rows[i]['answer']]}. {' '.join(rows[i]['facts'])}",
                 "right": word[rows[i]["answer"]], "others": [word[not rows[i]["answer"]]]} for i in rng.permutation(len(rows))]  # fmt: skip


def encode(tokenizer: Any, item: Item, answer: str) -> tuple[list[int], int]:
    """Token ids of the chat with an answer, and where the answer begins."""
    turn = [{"role": "user", "content": item["prompt"]}]
    head = tokenizer(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)).input_ids
    return (head + tokenizer(answer).input_ids + [tokenizer.eos_token_id])[: LONGEST + 60], len(head)


def batch(rows: list[tuple[list[int], int]], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention and targets (-100 outside the answers), padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    seen, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, start) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        seen[i, : len(row)] = 1
        targets[i, start : len(row)] = ids[i, start : len(row)]
    return ids, seen, targets


def token_losses(
    module: Any, ids: torch.Tensor, seen: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each target in nats, 0 elsewhere: [rows, width - 1], and the logits of every row's first target [rows, vocabulary].
    Only the answers' positions get logits."""
    hidden = module.model(input_ids=ids, attention_mask=seen).last_hidden_state[:, :-1]
    after = targets[:, 1:]
    where = after != -100
    logits = module.lm_head(hidden[where]).float()
    losses = torch.zeros(after.shape)
    each = torch.nn.functional.cross_entropy(logits, after[where], reduction="none")
    counts = where.sum(1)
    return losses.masked_scatter(where, each), logits[counts.cumsum(0) - counts].detach()


def expert(task: str, base: Path, folder: Path, steps: int) -> Path:
    """The base fine-tuned on one task; made unless it is there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (folder / "tokenizer.json").is_file():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    module.train()
    rng = np.random.default_rng(TASKS.index(task))
    items = [
        r
        for r in (encode(tokenizer, i, i["answer"]) for i in load(task, rng)[0][: ROWS * steps * 2])
        if len(r[0]) <= LONGEST
    ]
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-5, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 3) * (1 - s / steps))
    for step in range(steps):
        ids, seen, targets = batch([items[(step * ROWS + i) % len(items)] for i in range(ROWS)], tokenizer.eos_token_id)
        with torch.autocast("cpu", torch.bfloat16):
            losses, _ = token_losses(module, ids, seen, targets)
        loss = losses.sum() / (targets[:, 1:] != -100).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 4 == 0 or step == steps - 1:
            print(f"{task}: step {step}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    work = Path(tempfile.mkdtemp(prefix="expert-", dir=folder.parent))
    module.to(torch.bfloat16).save_pretrained(work / "made")
    tokenizer.save_pretrained(work / "made")
    shutil.rmtree(folder, ignore_errors=True)
    (work / "made").rename(folder)
    work.rmdir()
    return folder


def measured(folder: Path, items: dict[str, list[Item]], generate: bool = False) -> dict[str, Any]:
    """Per task: each item's loss per token, and whether its right answer is the likeliest (None where there is no choice)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    found: dict[str, Any] = {}
    with torch.no_grad():
        for task, rows in items.items():
            told, owner = [], []
            for number, item in enumerate(rows):
                own = [encode(tokenizer, item, item["answer"])]
                if "right" not in item and item["others"]:  # choices of several words are read to their end
                    own += [encode(tokenizer, item, answer) for answer in item["others"]]
                told += own
                owner += [(number, k) for k in range(len(own))]
            sums: dict[tuple[int, int], tuple[float, float]] = {}
            first: dict[int, torch.Tensor] = {}
            order = sorted(range(len(told)), key=lambda r: (len(told[r][0]), r))
            for some in (order[start : start + READ] for start in range(0, len(order), READ)):
                losses, begins = token_losses(module, *batch([told[r] for r in some], tokenizer.eos_token_id))
                for place, r in enumerate(some):
                    ids, begin = told[r]
                    own_losses = losses[place, begin - 1 : len(ids) - 1]
                    sums[owner[r]] = float(own_losses.mean()), float(own_losses[:-1].sum())  # without the turn's end
                    if owner[r][1] == 0:
                        first[owner[r][0]] = begins[place]
            right: list[bool] = []
            for number, item in enumerate(rows):
                if "right" in item:  # choices that begin with different words are decided by the first
                    words = [tokenizer(answer).input_ids[0] for answer in (item["right"], *item["others"])]
                    right.append(bool(first[number][words[0]] > max(first[number][w] for w in words[1:])))
                elif item["others"]:
                    right.append(sums[number, 0][1] < min(sums[number, k + 1][1] for k in range(len(item["others"]))))
            found[task] = {"loss": [sums[number, 0][0] for number in range(len(rows))], "right": right or None}
    if generate:
        turn = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer(
            tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False), return_tensors="pt"
        )
        out = module.generate(**prompt, max_new_tokens=16, do_sample=False)
        found["says"] = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def beside(base: dict[str, Any], other: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
    """Differences of loss (paired t intervals) and gained, kept and lost items, task by task and held in and out."""
    from interfuse.kit.stats import compare_outcomes, paired_t, score_interval

    rows: dict[str, Any] = {}
    for name, group in [*((t, [t]) for t in tasks), ("held in", list(TASKS)), ("held out", [HELD_OUT])]:
        before = np.concatenate([base[t]["loss"] for t in group])
        after = np.concatenate([other[t]["loss"] for t in group])
        change = paired_t(before, after)
        row: dict[str, Any] = {
            "loss per token": float(after.mean()),
            "change": change.delta,
            "change low": change.low,
            "change high": change.high,
            "n": len(after),
        }
        choice = [t for t in group if base[t]["right"]]
        if choice:
            one = np.concatenate([base[t]["right"] for t in choice])
            two = np.concatenate([other[t]["right"] for t in choice])
            outcome = compare_outcomes(one, two)
            span = score_interval(outcome.gained, outcome.lost, outcome.n)
            row |= {"choices": len(one), "right": float(two.mean()), "gained": outcome.gained, "kept": outcome.kept, "lost": outcome.lost,
                    "right change low": span.low, "right change high": span.high}  # fmt: skip
        rows[name] = row
    return rows


def plans(first: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """The rows: the methods that apply to three experts and their base, with what has to be said to them; LoRE also with its low-rank
    parts added up, since their mean gives the mean of the models."""
    from interfuse.core import index
    from interfuse.core.method import load as load_method

    special: dict[str, dict[str, Any]] = {
        "task-arithmetic": {"weight": 0.4},
        "dare-linear": {"weight": 0.4},
        "breadcrumbs": {"weight": 0.4},
        "lore": {"steps": 2, "svd": "gram"},
        "tsv": {"svd": "randomised"},
        "twin": {"svd": "randomised"},
        "iso-c": {"svd": "gram"},
    }
    made = []
    for entry in sorted(index.entries().values(), key=lambda e: e.slug):
        if entry.kind != "method" or entry.room != "merge" or entry.slug == "passthrough":
            continue
        traits = load_method(entry.id).traits
        least, most = traits.get("models", (1, 1000))
        given: dict[str, Any] = dict(special.get(entry.slug, {}))
        given["count"] = min(3, most)
        given["base"] = traits.get("base", "optional") == "required"
        given["tables"] = traits.get("tables", given["count"]) if "calibrate" in traits else 0
        if given["count"] >= least:
            made.append((entry.slug, entry.slug, given))
        if entry.slug == "lore":
            made.append(("lore (sum)", "lore", {**given, "combine": "sum"}))
    return sorted(made, key=lambda m: (first.index(m[0]) if m[0] in first else len(first), m[0]))


def merged(
    slug: str, given: dict[str, Any], base: Path, experts: list[Path], tables: list[Path], work: Path
) -> dict[str, Any]:
    """One method's merge of the experts, in one thread: the folder, processor seconds, or why it is refused."""
    from interfuse.core.ctx import Ctx
    from interfuse.core.errors import InterfuseError
    from interfuse.core.rooms import apply

    own = {k: v for k, v in given.items() if k not in ("count", "base", "tables")}
    if given["base"]:
        own["base"] = str(base)
    if given["tables"]:
        own["calibration"] = [str(t) for t in tables[: given["tables"]]]
    out, clock = work / "merged", time.process_time()
    shutil.rmtree(out, ignore_errors=True)
    try:
        apply(slug, room="merge", out=out, ctx=Ctx(cache=work / "cache"), workers=1,
              models=[str(e) for e in experts[: given["count"]]], **own)  # fmt: skip
    except InterfuseError as error:
        return {"not run": f"{error.code}: {error.what}"}
    about = json.loads((out / "interfuse.json").read_text())["facts"].get("calibration", {})
    found = {k: v for k, v in about.items() if k in ("accepted", "between models", "examples")}
    return {"processor seconds": time.process_time() - clock, **({"calibration": found} if found else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--first", default="", help="methods to begin with")
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shared(*TASKS, HELD_OUT)
    base = smollm2()
    experts = [expert(task, base, PLACE / f"expert-{task}-{args.steps}", args.steps) for task in TASKS]
    if args.train_only:
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    items = {
        t: [i for i in load(t, np.random.default_rng(7))[1] if len(encode(tokenizer, i, i["answer"])[0]) <= LONGEST][
            : args.items
        ]
        for t in (*TASKS, HELD_OUT)
    }
    kept = f"merge-real-{args.steps}-{args.items}"
    rows: dict[str, Any] = {}

    def report(name: str, found: dict[str, Any]) -> None:
        """One more row, saved at once."""
        if "not run" in found:
            rows[name] = found
        else:
            scores = found.pop("scores")
            rows[name] = {**found, **beside(start, scores, list(items))}
        save("merge-real", {"what": __doc__.splitlines()[0], "base": "SmolLM2-135M-Instruct", "steps": args.steps,
                            "items": args.items, "rows": rows})  # fmt: skip
        brief = rows[name].get("not run") or {
            k: round(rows[name][k]["change"], 3) for k in (*items, "held in", "held out")
        }
        print(f"{name}: {found.get('processor seconds', 0):.1f} s, change of loss {brief}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="merge-real-") as place:
        work = Path(place)
        tables = []
        for task in TASKS:  # examples for the methods that look at the models at work: as the models read them
            tables.append(work / f"{task}.jsonl")
            some = load(task, np.random.default_rng(TASKS.index(task)))[0]
            some = [i for i in some if len(encode(tokenizer, i, i["answer"])[0]) <= LONGEST][:EXAMPLES]
            turns = [tokenizer.apply_chat_template([{"role": "user", "content": i["prompt"]}], add_generation_prompt=True,
                                                   tokenize=False) for i in some]  # fmt: skip
            lines = [json.dumps({"prompt": t, "response": i["answer"]}) for t, i in zip(turns, some, strict=True)]
            tables[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
        start = part(kept, "base", lambda: {"scores": measured(base, items)})["scores"]
        report("base", {"scores": start})
        for task, folder in zip(TASKS, experts, strict=True):
            report(f"expert {task}", part(kept, f"expert {task}", lambda f=folder: {"scores": measured(f, items)}))

        def run(slug: str, given: dict[str, Any]) -> dict[str, Any]:
            made = merged(slug, given, base, experts, tables, work)
            if "not run" in made:
                return made
            scores = measured(work / "merged", items, generate=True)
            return {"models": given["count"], "given": {k: v for k, v in given.items() if k not in ("count", "base", "tables")},
                    **made, "says": scores.pop("says"), "scores": scores}  # fmt: skip

        for name, slug, given in plans([m for m in args.first.split(",") if m]):
            key = f"{slug} {json.dumps(given, sort_keys=True)}"
            report(name, part(kept, key, lambda s=slug, g=given: run(s, g)))
    print(f"{len(rows)} rows")


if __name__ == "__main__":
    main()
