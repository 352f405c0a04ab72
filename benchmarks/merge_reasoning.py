"""Long-to-short and RCP merging, scaled down: a step-by-step arithmetic language, one base and three fine-tunings of it.

The language works out ``3 + 8 x 5 ...`` from left to right, modulo ten. A *quick* model answers at once, a *slow* model writes every
partial result, says "wait", writes them again and answers; a *brief* model writes them once; a *domain* model has learned facts (a key's value) instead. All are
fine-tunings of one base that was shown a little of everything, answers with the steps written once among it. Merged with every method the room has; a merged model's answers are scored for accuracy, length, "wait"
and nonsense (an answer that does not end, or fits neither format). Settings are chosen per seed on problems of their own
(``choose``), figures are of others. Every seed has its own base, data and draws; comparisons are the means of the seeds' paired
differences with a 95 % bootstrap interval over seeds. Finished seeds are kept: a run that was stopped goes on.

    python benchmarks/merge_reasoning.py [long-to-short | rcp] ...
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from record import part, save

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import Source
from interfuse.data.models import open_model
from interfuse.data.seeding import seeded
from interfuse.data.tables import from_dataset
from interfuse.kit import passes
from interfuse.kit.collectors import SquaredGradients
from interfuse.kit.resample import paired_bootstrap, sign_flip

SEEDS = range(5)
DIGITS, NUMBERS, KEYS = 5, 10, 40
PAD, END, PLUS, TIMES, EQUALS, WAIT, ANSWER, ASK = range(8)
FIRST_NUMBER, FIRST_KEY = 8, 8 + NUMBERS
FIRST_VALUE = FIRST_KEY + KEYS
WORDS = ["[PAD]", "[END]", "+", "x", "=", "wait", "so", "?", *(str(n) for n in range(NUMBERS)), *(f"k{i}" for i in range(KEYS)),
         *(f"v{i}" for i in range(KEYS))]  # fmt: skip
LONGEST = 24  # tokens an answer may take
CONFIG = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 48, "intermediate_size": 144, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "pad_token_id": PAD,
          "bos_token_id": PAD, "eos_token_id": END, "tie_word_embeddings": False}  # fmt: skip


def problems(rng: np.random.Generator, count: int) -> np.ndarray:
    """Digits, and between them 0 (plus) or 1 (times): [count, 2 * DIGITS - 1]."""
    made = rng.integers(0, 10, (count, 2 * DIGITS - 1))
    made[:, 1::2] %= 2
    return made


def partial(made: np.ndarray) -> np.ndarray:
    """Results after every step [count, DIGITS - 1]."""
    value, found = made[:, 0], []
    for i in range(1, DIGITS):
        digit = made[:, 2 * i]
        value = np.where(made[:, 2 * i - 1] == 1, value * digit, value + digit) % 10
        found.append(value)
    return np.stack(found, 1)


def asked(made: np.ndarray) -> np.ndarray:
    """``3 + 8 x ... =`` as token ids."""
    out = np.full((len(made), 2 * DIGITS), EQUALS)
    out[:, :-1] = made + FIRST_NUMBER
    out[:, 1:-1:2] = np.where(made[:, 1::2] == 1, TIMES, PLUS)
    return out


def answered(made: np.ndarray, style: str) -> np.ndarray:
    """``so 5`` (quick), ``1 5 ... so 5`` (steps) or ``1 5 ... wait 1 5 ... so 5`` (slow), with the end."""
    steps = partial(made) + FIRST_NUMBER
    column = np.ones((len(made), 1), dtype=int)
    last = [ANSWER * column, steps[:, -1:], END * column]
    before = {"quick": [], "steps": [steps], "slow": [steps, WAIT * column, steps]}[style]
    return np.hstack([*before, *last])


def arithmetic(rng: np.random.Generator, count: int, style: str) -> tuple[np.ndarray, int]:
    """Token ids, and the length of the question."""
    digits = problems(rng, count)
    return np.hstack([asked(digits), answered(digits, style)]), 2 * DIGITS


def facts(values: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, int]:
    """``k7 ? v12`` with the end."""
    ids = np.stack([FIRST_KEY + keys, np.full_like(keys, ASK), FIRST_VALUE + values[keys], np.full_like(keys, END)], 1)
    return ids, 2


Batch = list[tuple[np.ndarray, int]]


def train(module: Any, batches: Any, steps: int, lr: float) -> None:
    """AdamW on the answers' tokens; ``batches(step)`` gives groups of equal length."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01, fused=True)
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 20) * (0.5 * (1 + np.cos(np.pi * step / steps)) * 0.95 + 0.05)
        total, count = 0.0, 0
        for ids, question in batches(step):
            x = torch.from_numpy(ids)
            logits = module(input_ids=x, use_cache=False).logits[:, question - 1 : -1]
            wanted = x[:, question:]
            total = total + torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
            count += wanted.numel()
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    module.eval()


@torch.inference_mode()
def reply(module: Any, questions: np.ndarray) -> list[list[int]]:
    """Greedy answers up to the end or LONGEST tokens."""
    ids = torch.from_numpy(questions)
    out = module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST, do_sample=False,
                          pad_token_id=PAD, eos_token_id=END)[:, questions.shape[1] :]  # fmt: skip
    found = []
    for row in out.tolist():
        stop = row.index(END) + 1 if END in row else len(row)
        found.append(row[:stop])
    return found


def score_sums(module: Any, digits: np.ndarray) -> dict[str, float]:
    """Accuracy, mean tokens, share of answers that say "wait", and of nonsense: no end, or not ``... so NUMBER end``."""
    replies = reply(module, asked(digits))
    truth = partial(digits)[:, -1] + FIRST_NUMBER
    number = range(FIRST_NUMBER, FIRST_KEY)
    formed = [len(r) >= 3 and r[-1] == END and r[-3] == ANSWER and r[-2] in number and
              all(t in number or t == WAIT for t in r[:-3]) for r in replies]  # fmt: skip
    right = [f and r[-2] == t for f, r, t in zip(formed, replies, truth.tolist(), strict=True)]
    return {
        "accuracy": float(np.mean(right)),
        "tokens": float(np.mean([len(r) for r in replies])),
        "wait": float(np.mean([WAIT in r for r in replies])),
        "nonsense": 1 - float(np.mean(formed)),
        "cut off": float(np.mean([r[-1] != END for r in replies])),
    }


def score_facts(module: Any, values: np.ndarray) -> dict[str, float]:
    """Accuracy over all keys, and the share of replies that are not one value."""
    keys = np.arange(KEYS)
    replies = reply(module, facts(values, keys)[0][:, :2])
    formed = [len(r) == 2 and r[1] == END and r[0] >= FIRST_VALUE for r in replies]
    return {"accuracy": float(np.mean([r[0] == FIRST_VALUE + v for r, v in zip(replies, values.tolist(), strict=True)])),
            "nonsense": 1 - float(np.mean(formed))}  # fmt: skip


@dataclass
class Family:
    """One seed's models on disk, and its problems."""

    folder: Path
    seed: int
    values: np.ndarray
    choose: np.ndarray
    test: np.ndarray

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def open(self, name: str) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(self.place(name))


def tokenizer(folder: Path) -> None:
    """One token per word, beside every model."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[END]")
    fast.save_pretrained(folder)


BASE_STEPS, TUNE_STEPS = 600, 150


def family(folder: Path, seed: int) -> Family:
    """The base, shown all three styles and facts with values of no meaning; then quick, brief, slow and domain models."""
    rng = Ctx(seed=seed).rng("reasoning")
    values = rng.permutation(KEYS)
    made = Family(folder, seed, values, problems(rng, 200), problems(rng, 400))
    with seeded(Ctx(seed=seed).seed_for("base")):
        base = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIG))

    def mixed(step: int) -> Batch:
        noise = rng.permutation(KEYS)
        return [*(arithmetic(rng, 24, s) for s in ("quick", "steps", "slow")), facts(noise, rng.integers(0, KEYS, 16))]

    train(base, mixed, BASE_STEPS, 3e-3)
    kinds: dict[str, Any] = {
        "quick": lambda step: [arithmetic(rng, 64, "quick")],
        "brief": lambda step: [arithmetic(rng, 64, "steps")],
        "slow": lambda step: [arithmetic(rng, 48, "slow")],
        "domain": lambda step: [facts(values, rng.integers(0, KEYS, 64))],
    }
    base.save_pretrained(folder / "base")
    for name, batches in kinds.items():
        module = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
        train(module, batches, TUNE_STEPS, 1e-3)
        module.save_pretrained(folder / name)
    for name in ("base", *kinds):
        tokenizer(folder / name)
    return made


# ------------------------------------------------------------------------------------------------ merging and choosing

#: a method's settings to choose from: name -> (method, its parameters); models and base are the experiment's
Grid = Mapping[str, Sequence[tuple[str, dict[str, Any]]]]


def examples(made: Family, style: str, count: int) -> Dataset:
    """Calibration examples with question and answer apart."""
    rng = Ctx(seed=made.seed).rng(f"calibration {style}")
    if style == "domain":
        keys = rng.permutation(KEYS)[:count]
        ids, question = facts(made.values, keys)
    else:
        ids, question = arithmetic(rng, count, style)
    words = [[WORDS[t] for t in row] for row in ids.tolist()]
    return Dataset.from_dict(
        {"prompt": [" ".join(r[:question]) + " " for r in words], "response": [" ".join(r[question:]) for r in words]}
    )


def merge(made: Family, method: str, models: Sequence[str], given: Mapping[str, Any]) -> Any:
    """The merged module. ``aim(METHOD)`` merges first and relaxes then."""
    inner = dict(given)
    with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as place:
        own: dict[str, Any] = {"models": [made.place(m) for m in models], "base": made.place("base"), "seed": made.seed,
                               "ctx": Ctx(cache=made.folder / "cache")}  # fmt: skip
        if method == "aim":
            relax = {k: inner.pop(k) for k in ("keep", "calibration")}
            first = interfuse.merge.ties(**own, **inner, out=Path(place) / "first")
            own |= {"models": [first.path]}
            inner = relax
        if load(f"merge/{method}").traits.get("base", "optional") == "none":
            del own["base"]
        made_of = getattr(interfuse.merge, method.replace("-", "_"))(**own, **inner, out=Path(place) / "out")
        return transformers.AutoModelForCausalLM.from_pretrained(made_of.path)


def differences(
    rows: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]], what: str, label: str
) -> dict[str, Any]:
    """Mean paired difference over seeds with its interval, and how many seeds lie above."""
    a, b = [r[what] for r in baseline], [r[what] for r in rows]
    interval = paired_bootstrap(a, b, Ctx().rng(label))
    flip = sign_flip(a, b, Ctx().rng(f"{label}/flip"))
    return {"baseline": float(np.mean(a)), "candidate": float(np.mean(b)), "difference": interval.estimate, "low": interval.low,
            "high": interval.high, "p": flip.p, "seeds_above": sum(v > u for u, v in zip(a, b, strict=True))}  # fmt: skip


# ------------------------------------------------------------------------------------------------ long to short


def short_grid(made: Family, fast: str) -> Grid:
    """Every method with a few settings each; models are the fast one (quick or brief) and slow."""
    style = {"quick": "quick", "brief": "steps"}[fast]
    # as in the paper, quick answers calibrate the slow model and slow answers the quick one
    crossed = [examples(made, "slow", 32), examples(made, style, 32)]
    own = crossed[::-1]
    both = [examples(made, style, 32)]
    return {
        "average": [("linear", {"weight": 0.5})],
        "task arithmetic": [("linear", {"weight": [round(1 - a / 10, 1), a / 10]}) for a in (3, 5, 7, 8)],
        "ties": [("ties", {"density": d, "scale": s}) for d, s in ((0.2, 1.0), (0.5, 1.0), (0.8, 1.0))],
        "dare p=.3": [("dare-ties", {"density": 0.7, "scale": s}) for s in (0.5, 0.7, 1.0)],
        "dare p=.9": [("dare-ties", {"density": 0.1, "scale": s}) for s in (0.5, 0.7, 1.0)],
        "lore": [("lore", {"mu": m}) for m in (0.01, 0.1)],
        "twin": [("twin", {"density": d}) for d in (0.2, 0.5)],
        "aim-ties": [("aim", {"keep": k, "density": 0.5, "scale": 1.0, "calibration": both}) for k in (0.4, 0.7)],
        "sens": [("sens", {"scale": s, "temperature": 2.0, "calibration": crossed}) for s in (0.5, 0.7, 1.0)],
        "acm": [("acm", {"scale": s, "calibration": both}) for s in (1.0, 1.5, 2.0)],
        "fisher": [("fisher", {"calibration": own, "fisher_norm": n}) for n in ("none", "model")],
        "regmean": [("regmean", {"calibration": own, "gram": "mean"})],
    }


def choose_short(rows: Sequence[dict[str, float]], slow: float) -> int:
    """The shortest answers among settings within a point of the slow model on the choosing problems, else the most accurate."""
    good = [i for i, r in enumerate(rows) if r["accuracy"] >= slow - 0.01]
    return (
        min(good, key=lambda i: rows[i]["tokens"]) if good else max(range(len(rows)), key=lambda i: rows[i]["accuracy"])
    )


def short_seed(made: Family) -> dict[str, Any]:
    """One seed: sources, the sweep from fast to slow, and every method at the setting chosen on other problems."""
    sources = {n: score_sums(made.open(n), made.test) for n in ("base", "quick", "brief", "slow")}
    slow = score_sums(made.open("slow"), made.choose)["accuracy"]
    found: dict[str, Any] = {"sources": sources}
    for fast in ("quick", "brief"):
        sweep = []
        for a in range(11):
            module = merge(made, "linear", [fast, "slow"], {"weight": [round(1 - a / 10, 1), a / 10]})
            sweep.append({"a": a / 10, **score_sums(module, made.test)})
        methods = {}
        for name, settings in short_grid(made, fast).items():
            modules = [merge(made, m, [fast, "slow"], given) for m, given in settings]
            seen = [score_sums(m, made.choose) for m in modules]
            best = choose_short(seen, slow)
            shown = {k: v for k, v in settings[best][1].items() if k != "calibration"}
            methods[name] = {"setting": shown, **score_sums(modules[best], made.test)}
        found[fast] = {"sweep": sweep, "methods": methods}
    return found


def long_to_short(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The claims of the paper over seeds, for each of the two fast models."""
    slow = [s["sources"]["slow"] for s in seeds]
    found: dict[str, Any] = {
        "sources": {
            n: {k: float(np.mean([s["sources"][n][k] for s in seeds])) for k in slow[0]} for n in seeds[0]["sources"]
        }
    }
    for fast in ("quick", "brief"):
        names = list(seeds[0][fast]["methods"])
        rows = {n: [s[fast]["methods"][n] for s in seeds] for n in names} | {
            f"{fast} itself": [s["sources"][fast] for s in seeds]
        }

        def against(one: str, other: str, rows: Any = rows, fast: str = fast) -> dict[str, Any]:
            return differences(rows[one], rows[other], "accuracy", f"l2s/{fast}/{one}/{other}")

        table: dict[str, Any] = {}
        for n, r in rows.items():
            row = {w: differences(r, slow, w, f"l2s/{fast}/{n}/{w}") for w in ("accuracy", "tokens")}
            means = {k: float(np.mean([x[k] for x in r])) for k in ("wait", "nonsense", "cut off")}
            table[n] = {**row, "shorter by": -row["tokens"]["difference"] / row["tokens"]["baseline"], **means}
        rise = [float(np.mean(np.diff([p["tokens"] for p in s[fast]["sweep"]]) >= -0.05)) for s in seeds]
        found[f"{fast} with slow"] = {
            "methods against slow": table,
            "sweep": [{k: float(np.mean([s[fast]["sweep"][i][k] for s in seeds])) for k in seeds[0][fast]["sweep"][0]} for i in range(11)],
            "claims": {
                "at least 30% shorter, accuracy at most 2 points lower (whole interval)":
                    [n for n, r in table.items() if r["shorter by"] >= 0.3 and r["accuracy"]["low"] >= -0.02],
                "share of steps of the sweep in which answers do not get shorter as a rises": float(np.mean(rise)),
                "dare p=.9 against p=.3, accuracy": against("dare p=.9", "dare p=.3"),
                "ties against average, accuracy": against("ties", "average"),
                "aim-ties against ties, accuracy": against("aim-ties", "ties"),
                "sens against task arithmetic, accuracy": against("sens", "task arithmetic"),
            },
        }  # fmt: skip
    return {**found, "seeds": list(seeds)}


# ------------------------------------------------------------------------------------------------ a prior of reasoning


def prior_grid(made: Family) -> Grid:
    """Methods with as many settings each; models are slow (reasoning), domain."""
    tables = [examples(made, "slow", 32), examples(made, "domain", KEYS)]
    prices = (1.0, 1e3, 1e5, 1e7)
    return {
        "linear": [("linear", {"weight": [round(1 - a, 1), a]}) for a in (0.3, 0.5, 0.7, 0.9)],
        "task arithmetic": [("task-arithmetic", {"weight": 1.0, "scale": s}) for s in (0.4, 0.6, 0.8, 1.0)],
        "ties": [("ties", {"density": d, "scale": s}) for d in (0.2, 0.6) for s in (1.0, 1.5)],
        "dare-ties": [("dare-ties", {"density": d, "scale": s}) for d in (0.7, 0.9) for s in (1.0, 1.5)],
        "fisher": [("fisher", {"calibration": tables, "fisher_norm": n}) for n in ("none", "model")],
        "regmean": [("regmean", {"calibration": tables, "gram": g}) for g in ("sum", "mean")],
        "sensitivity alone": [("rcp", {"penalty": 0.0, "domain_text": "full", "calibration": tables})],
        "rcp, prompt": [("rcp", {"penalty": p, "domain_text": "prompt", "calibration": tables}) for p in prices],
        "rcp, full": [("rcp", {"penalty": p, "domain_text": "full", "calibration": tables}) for p in prices],
    }


PRICED = "price alone"
SHARES = (0.2, 0.4, 0.6, 0.8)


def priced(made: Family, shares: Sequence[float]) -> list[Any]:
    """What RCP would be without votes: the share of all weights whose price for reasoning is least takes the domain's change. The price is
    RCP's, ``F (theta_R - theta_D)^2`` with the ``F`` of the same examples."""
    loaded = passes.load(open_model(Source(made.place("slow")), Ctx()), Ctx())
    collector = SquaredGradients({n: tuple(p.shape) for n, p in loaded.parameters.items()}, True)
    passes.run_pass([loaded], from_dataset(examples(made, "slow", 32), "slow"), collector, Ctx())
    prior = collector.result()
    slow, domain, base = (dict(made.open(n).named_parameters()) for n in ("slow", "domain", "base"))
    with torch.no_grad():
        price = {n: prior[n].double() * (slow[n].double() - domain[n].double()).square() for n in prior}
        flat = torch.cat([v.flatten() for v in price.values()]).sort().values
        found = []
        for share in shares:
            limit = flat[int(share * len(flat)) - 1]
            module = made.open("slow")
            for n, parameter in module.named_parameters():
                parameter.add_(torch.where(price[n] <= limit, domain[n] - base[n], 0.0))
            found.append(module)
    return found


def both(module: Any, made: Family, digits: np.ndarray) -> dict[str, float]:
    """Accuracy of facts and sums, their mean, and the share of nonsense in both."""
    sums, known = score_sums(module, digits), score_facts(module, made.values)
    return {"domain": known["accuracy"], "reasoning": sums["accuracy"], "mean": (known["accuracy"] + sums["accuracy"]) / 2,
            "nonsense": (known["nonsense"] + sums["nonsense"]) / 2, "steps": sums["tokens"]}  # fmt: skip


def prior_seed(made: Family) -> dict[str, Any]:
    """One seed: every method at its best setting by the mean of both accuracies on the choosing problems; all settings too."""
    sources = {n: both(made.open(n), made, made.test) for n in ("base", "slow", "domain")}
    methods, front = {}, {}
    grid = {**prior_grid(made), PRICED: [("", {"share": share}) for share in SHARES]}
    for name, settings in grid.items():
        modules = (
            priced(made, SHARES)
            if name == PRICED
            else [merge(made, m, ["slow", "domain"], given) for m, given in settings]
        )
        seen = [both(m, made, made.choose) for m in modules]
        best = max(range(len(seen)), key=lambda i: seen[i]["mean"])
        shown = [{k: v for k, v in given.items() if k != "calibration"} for _, given in settings]
        methods[name] = {"setting": shown[best], **both(modules[best], made, made.test)}
        front[name] = [{"setting": s, **r} for s, r in zip(shown, seen, strict=True)]
    return {"sources": sources, "methods": methods, "settings": front}


def rcp(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """RCP against the others over seeds."""
    names = list(seeds[0]["methods"])
    rows = {n: [s["methods"][n] for s in seeds] for n in names}
    mine = "rcp, full"
    return {
        "sources": {n: {k: float(np.mean([s["sources"][n][k] for s in seeds])) for k in seeds[0]["sources"]["slow"]} for n in ("base", "slow", "domain")},
        "methods": {n: {k: float(np.mean([r[k] for r in rs])) for k in ("domain", "reasoning", "mean", "nonsense", "steps")} for n, rs in rows.items()},
        "rcp (full) against": {n: {k: differences(rows[mine], rows[n], k, f"rcp/{n}/{k}") for k in ("domain", "reasoning", "mean", "nonsense")}
                               for n in names if n != mine},
        "on the front of (domain, reasoning)": {n: sum(_undominated(n, s["methods"]) for s in seeds) for n in names},
        "seeds": list(seeds),
    }  # fmt: skip


def _undominated(name: str, methods: Mapping[str, Mapping[str, float]]) -> bool:
    mine = methods[name]
    return not any(o["domain"] >= mine["domain"] and o["reasoning"] >= mine["reasoning"] and
                   (o["domain"] > mine["domain"] or o["reasoning"] > mine["reasoning"]) for n, o in methods.items() if n != name)  # fmt: skip


def main() -> None:
    wanted = sys.argv[1:] or ["long-to-short", "rcp"]
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {w: [] for w in wanted}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            made: list[Family] = []

            def one(what: str, seed: int = seed, folder: str = folder, made: list[Family] = made) -> dict[str, Any]:
                """One seed's figures; its models are trained when the first experiment wants them."""
                began = time.process_time()
                made += [] if made else [family(Path(folder), seed)]
                figures = {"long-to-short": short_seed, "rcp": prior_seed}[what](made[0])
                return {**figures, "processor seconds": time.process_time() - began}

            for w in wanted:
                found[w].append(part("merge-reasoning", f"{w} {seed}", lambda w=w, one=one: one(w)))
                print(f"seed {seed}: {w}", flush=True)
    for w in wanted:
        spent = [s.pop("processor seconds") for s in found[w]]
        about = {
            "model": CONFIG,
            "steps": {"base": BASE_STEPS, "each fine-tuning": TUNE_STEPS},
            "processor seconds": sum(spent),
        }
        save(f"merge-{w}", {**about, **{"long-to-short": long_to_short, "rcp": rcp}[w](found[w])})


if __name__ == "__main__":
    main()
