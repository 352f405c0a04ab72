"""The synthesize room by its definitions, slowly: which examples come out of given replies."""

from __future__ import annotations

import json
import math
import re
from typing import Any

Row = dict[str, Any]


def _replies(said: list[Row], *words: str, without: str = "") -> list[tuple[str, list[str]]]:
    return [(r["prompt"], r["replies"]) for r in said
            if "replies" in r and all(w in r["prompt"] for w in words) and not (without and without in r["prompt"])]  # fmt: skip


def _object(text: str) -> Row | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def labels(said: dict[str, list[Row]], questions: list[tuple[str, str]], **params: Any) -> list[Row]:
    made = []
    for question, _ in questions:
        for _, replies in sorted(_replies(said["lm"], question), key=lambda r: len(r[0])):
            row = _object(replies[0])
            if row is not None:
                made.append({"prompt": question, "response": row["answer"], "rationale": row["rationale"]})
                break
    return made


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _rouge(a: str, b: str) -> float:
    x, y = _words(a), _words(b)
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(len(x)):
        for j in range(len(y)):
            table[i + 1][j + 1] = table[i][j] + 1 if x[i] == y[j] else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    return 2 * common / (len(x) + len(y)) if common else 0.0


def tasks(said: dict[str, list[Row]], wanted: int, similar: float, shortest: int = 3, **params: Any) -> list[Row]:
    pool = ["Explain why the sea is salty.", "Name the largest stars of winter."]
    made: list[str] = []
    for _, replies in _replies(said["lm"], "Tasks of the collection"):
        for row in json.loads(replies[0])["tasks"]:
            text = row["instruction"]
            fits = len(text.split()) >= shortest and not re.search(r"\b(image|picture|graph|file|video|link)", text)
            if fits and all(_rouge(text, other) < similar for other in [*pool, *made]) and len(made) < wanted:
                made.append(text)
    answers = {p: r[0] for p, r in _replies(said["lm"], without="Tasks of the collection")}
    return [{"prompt": t, "response": answers[t].strip()} for t in made]


def lessons(said: dict[str, list[Row]], axes: dict[str, list[str]], per_cell: int, similar: float, quality: float, **params: Any) -> list[Row]:  # fmt: skip
    made: list[str] = []
    names = list(axes)
    for first in axes[names[0]]:
        for second in axes[names[1]]:
            cell = f"{names[0]}: {first}\n{names[1]}: {second}\n"
            mine: list[str] = []
            for row in json.loads(_replies(said["lm"], cell)[0][1][0])["questions"]:
                text = row["question"]
                if len(mine) < per_cell and all(_rouge(text, q) < similar for q in [*made, *mine]):
                    mine.append(text)
            made += mine
    answers = {p: r[0] for p, r in _replies(said["lm"])}
    scores = {(r["prompt"], r["continuation"]): r["token_logprobs"][0] for r in said["verifier"] if "continuation" in r}
    out = []
    for question in made:
        answer = answers[question]
        if answer.startswith("I'm sorry"):
            continue
        asked = next(p for p, _ in scores if question in p and f"Proposed answer: {answer}\n" in p)
        yes, no = math.exp(scores[asked, " yes"]), math.exp(scores[asked, " no"])
        if yes / (yes + no) >= quality:
            out.append({"prompt": question, "response": answer, "quality": yes / (yes + no)})
    return out


def preferences(said: dict[str, list[Row]], questions: list[tuple[str, str]], candidates: int, gap: float, **params: Any) -> list[Row]:  # fmt: skip
    out = []
    for question, _ in questions:
        answers: list[str] = []
        for text in _replies(said["student"], question)[0][1][:candidates]:
            if text and text not in answers:
                answers.append(text)
        scored = []
        for answer in answers:
            judged = sorted(_replies(said["lm"], question, f"answer:\n{answer}\n"), key=lambda r: len(r[0]))
            scores = [float(str(json.loads(r[0])["score"]).split("/")[0]) for _, r in judged]
            scored += [(score, answer) for score in scores if 1 <= score <= 10][:1]
        if len(scored) < 2:
            continue
        high, low = max(s for s, _ in scored), min(s for s, _ in scored)
        if high > low and high - low >= gap:
            best, worst = next(a for s, a in scored if s == high), next(a for s, a in scored if s == low)
            out.append({"prompt": question, "chosen": best, "rejected": worst, "chosen_score": high, "rejected_score": low})  # fmt: skip
    return out


def _last(text: str) -> float:
    return float(re.findall(r"-?[\d.]+", text.replace(",", ""))[-1].rstrip("."))


def verified(said: dict[str, list[Row]], questions: list[tuple[str, str]], samples: int, per_prompt: int, **params: Any) -> list[Row]:  # fmt: skip
    out = []
    for question, answer in questions:
        drawn = _replies(said["lm"], question, without="The answer is")[0][1][:samples]
        good = [t for i, t in enumerate(drawn) if _last(t) == _last(answer) and t not in drawn[:i]]
        if not good:
            hinted = _replies(said["lm"], question, "The answer is")[0][1][0]
            good = [hinted] if _last(hinted) == _last(answer) else []
        out += [{"prompt": question, "response": t} for t in good[:per_prompt]]
    return out


def said_inside(folder: str, texts: list[str], top_k: int, **params: Any) -> list[Row]:
    """One text at a time through transformers, probabilities in float64, best by sorting."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    out = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().tolist()
        row: Row = {"token": ids[1:], "top_ids": [], "top_logprobs": [], "logsumexp": []}
        for line in logits[:-1]:
            whole = math.log(sum(math.exp(v) for v in line))
            best = sorted(range(len(line)), key=lambda i: -line[i])[:top_k]
            row["logsumexp"].append(whole)
            row["top_ids"].append(best)
            row["top_logprobs"].append([line[i] - whole for i in best])
        out.append(row)
    return out
