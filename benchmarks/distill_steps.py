"""What a step of every distillation costs over a plain student step plus the teacher's prediction, on pairs of networks.

The method's step and the plain one with the prediction alternate; the ratio is that of the processor time of one thread, pair by
pair, so that other work on the machine hardly counts (elapsed time is recorded as well). Goals: methods on logits at most 1.10, methods on features at most 1.25, stored predictions at most 1.10 of a student
step without any teacher; ``ratio_of_arithmetic`` is the same ratio of multiplications and additions in convolutions and products of matrices, below
which no program can stay; ``ensemble`` is set against the predictions of its two teachers, ``dml`` and ``kdcl`` train the other network as
well. ``memory_mb``: weights, buffers, gradients, optimiser state, what a step keeps for its gradients and what the method stores.

    python benchmarks/distill_steps.py [METHOD ...] [--pair WORDS] [--counts] [--table]

Times want a machine that does nothing else; ``memory_mb`` and ``ratio_of_arithmetic`` are counted, and ``--counts`` renews them alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from distill_papers_b import CifarResNet
from record import RESULTS, save, summary
from torch.utils.flop_counter import FlopCounterMode

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import Source, load_room, prepare
from interfuse.data.models import build, open_model
from interfuse.data.tables import Table, open_table
from interfuse.distill.room import _hooks, _step, start
from interfuse.distill.verbs import step_memory
from interfuse.kit.encode import Encoder, forward

#: method, label, parameters (``rows``: of the table, instead of 128), goal of its ratio (None where the paper's own work is more than a loss)
METHODS: list[tuple[str, str, dict[str, Any], float | None]] = [
    ("kd", "", {}, 1.1), ("kd", "stored predictions", {"teacher_cache": "auto"}, 1.1), ("dkd", "", {}, 1.1), ("dist", "", {}, 1.1), ("logit-standardisation", "", {}, 1.1), ("nd-kd", "", {}, 1.1),
    ("mix-kd", "", {}, 1.1), ("dhkd", "align none", {"align": "none"}, 1.1), ("dhkd", "", {}, 1.1), ("dhkd", "align backbone", {"align": "backbone"}, None), ("fitnets", "", {}, 1.25),
    ("at", "", {}, 1.25), ("sp", "", {}, 1.25), ("rkd", "", {}, 1.25), ("crd", "128 rows", {}, 1.25), ("crd", "16,384 of 20,000 rows", {"rows": 20_000}, 1.25), ("reviewkd", "", {}, 1.25), ("reviewkd", "max_width 16", {"max_width": 16}, 1.25), ("trg", "", {}, 1.25),
    ("ofa-kd", "", {}, 1.25), ("diswot", "sp, ickd", {"space": {"num_labels": [10]}, "sp": 3000.0, "ickd": 2.5}, 1.25),
    ("fantastic-gains", "", {}, None), ("kd3", "", {"min_per_class": 128}, None),
    ("kd3", "no contrast", {"contrast": 0, "min_per_class": 128}, 1.25), ("hard", "", {}, None),
    ("tgeo-kd", "outer_every 10", {"outer_every": 10}, None), ("tgeo-kd", "", {}, None), ("bd-kd", "", {}, None),
    ("dml", "", {}, None), ("kdcl", "", {}, None), ("ensemble", "two teachers", {}, 1.1),
    ("compose", "kd + nd-kd", {"parts": [{"use": "kd"}, {"use": "nd-kd", "base": "none", "ce": 0}]}, 1.25),
]  # fmt: skip
VIT = {"model_type": "vit", "num_channels": 3, "image_size": 32, "patch_size": 4, "num_labels": 10}
SMALL = {
    "model_type": "resnet",
    "num_channels": 1,
    "layer_type": "basic",
    "num_labels": 10,
    "downsample_in_first_stage": False,
}


def cifar(*depths: int, wide: bool = False) -> Callable[[], torch.nn.Module]:
    """The papers' ResNet for 32 x 32 pictures: 16, 32 and 64 channels, or the "x4" one with 64, 128 and 256."""
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    return lambda: CifarResNet(depths, classes=10, widths=widths)


def configured(**config: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"config": config}


#: pair -> teacher, student, side and channels of the pictures, pairs of steps, and the only method that is measured (else all, with a column)
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any], int, int, int, str]] = {
    "ResNet-56 to ResNet-20, 32 x 32": (cifar(9, 9, 9), cifar(3, 3, 3), 32, 3, 8, ""),
    "ViT 6 x 192 to ViT 4 x 96, 32 x 32": (
        configured(**VIT, hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768),
        configured(**VIT, hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=384), 32, 3, 4, ""),
    "ResNet 32-64 to 16-32, 8 x 8": (configured(**SMALL, embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1]),
                                     configured(**SMALL, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]), 8, 1, 40, ""),
    # the wide pair of knowledge review, whose cost grows with the students' width
    "ResNet-32x4 to ResNet-8x4, 32 x 32": (cifar(5, 5, 5, wide=True), cifar(1, 1, 1, wide=True), 32, 3, 3, "reviewkd"),
}  # fmt: skip
BATCH = 64
FIRST = np.arange(BATCH)
PAGE = Path(__file__).parents[1] / "docs" / "choose.md"


def pictures(side: int, channels: int, rows: int = 128) -> Table:
    """128 pictures of noise with ten classes, over and over: time does not depend on what is on them."""
    rng = np.random.default_rng(0)
    x = rng.random((128, side, side, channels) if channels > 1 else (128, side, side), dtype=np.float32)
    made = Dataset.from_dict({"image": x.tolist(), "label": [i % 10 for i in range(128)]})
    return open_table(Source(made.select([i % 128 for i in range(rows)]) if rows != 128 else made), Ctx())


def arithmetic(work: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions of some work."""
    with FlopCounterMode(display=False) as counter:
        work(*args)
    return counter.get_total_flops()


def teachers_of(slug: str) -> int:
    return 2 if slug == "ensemble" else 1


def chosen(pair: str, only: Sequence[str]) -> list[tuple[str, str, dict[str, Any], float | None]]:
    """The rows of :data:`METHODS` that are measured on a pair; ``diswot`` varies a configuration."""
    _, student, *_, alone = PAIRS[pair]
    return [m for m in METHODS if (not alone or m[0] == alone) and (not only or m[0] in only) and (m[0] != "diswot" or isinstance(student(), dict))]  # fmt: skip


def measure(pair: str, only: Sequence[str] = (), counts: bool = False) -> dict[str, Any]:
    """By row what was found; with ``counts`` only what is counted, without the times."""
    teacher, student, side, channels, pairs, _ = PAIRS[pair]
    ctx, data = Ctx(device="cpu"), pictures(side, channels)

    def begun(slug: str, extra: Mapping[str, Any]) -> tuple[Any, Any]:
        given = {
            "student": student(),
            "data": pictures(side, channels, extra["rows"]) if "rows" in extra else data,
            "batch_size": BATCH,
            "epochs": 100,
            "teacher_cache": "off",
            **{k: v for k, v in extra.items() if k != "rows"},
        }
        taught = {} if slug == "none" else {"teacher": [teacher() for _ in range(teachers_of(slug))]}
        call = prepare(load_room("distill"), load(f"distill/{slug}"), {**given, **taught}, ctx)
        hooks = _hooks(call)
        state = start(call, hooks)
        hooks.scan(state)
        state.steps = 10_000
        return state, hooks

    plain, plain_hooks = begun("none", {})
    model = open_model(Source(teacher()), ctx)
    module, encoder = build(model, ctx).eval(), Encoder(model, data)

    def predicted(rows: Any) -> None:
        with torch.no_grad():
            forward(module, model, encoder.encode(rows))

    plain_work, teacher_work = arithmetic(_step, plain, plain_hooks, [FIRST], {}), arithmetic(predicted, FIRST)
    found: dict[str, Any] = {}
    for slug, label, extra, goal in chosen(pair, only):
        name = f"{slug}, {label}" if label else slug
        state, hooks = begun(slug, extra)
        stored = slug == "kd" and extra.get("teacher_cache") == "auto"
        memory = step_memory(state, lambda state=state, hooks=hooks: _step(state, hooks, [FIRST], {}))
        asked = 0 if stored else teachers_of(slug)
        needed = plain_work + asked * teacher_work
        counted = arithmetic(_step, state, hooks, [FIRST], {})
        found[name] = {"ratio_of_arithmetic": counted / needed, "memory_mb": memory}
        if counts:
            print(f"{pair:36} {name:26} arithmetic {counted / needed:.2f}  {memory:.0f} MB", flush=True)
            continue
        seen: dict[str, list[float]] = {"cpu": [], "base cpu": [], "wall": [], "base wall": []}
        rng = np.random.default_rng(0)
        for turn in range(pairs + 1):
            rows = rng.permutation(len(data))
            picked = hooks.select(state, rows)[:BATCH] if slug == "tgeo-kd" else rows[:BATCH]
            for which in ("", "base ") if turn % 2 else ("base ", ""):
                cpu, wall = time.process_time(), time.perf_counter()
                if which:
                    _step(plain, plain_hooks, [picked], {})
                    for _ in range(asked):
                        predicted(picked)
                else:
                    _step(state, hooks, [picked], {})
                if turn > 0:
                    seen[f"{which}cpu"].append(time.process_time() - cpu)
                    seen[f"{which}wall"].append(time.perf_counter() - wall)
        ratios = {
            what: [a / b for a, b in zip(seen[what], seen[f"base {what}"], strict=True)] for what in ("cpu", "wall")
        }
        middle = statistics.median(ratios["cpu"])
        found[name] = {"step_ms": 1e3 * statistics.median(seen["cpu"]), "base_ms": 1e3 * statistics.median(seen["base cpu"]), "ratio": summary(ratios["cpu"]),
                       "ratio_of_elapsed_time": statistics.median(ratios["wall"]), "goal": goal, "reached": None if goal is None else middle <= goal,
                       **found[name]}  # fmt: skip
        print(f"{pair:36} {name:26} {found[name]['step_ms']:8.1f} ms  ratio {middle:.2f} (elapsed {found[name]['ratio_of_elapsed_time']:.2f}, arithmetic {counted / needed:.2f})  "
              f"goal {goal or '-'}  {found[name]['memory_mb']:.0f} MB", flush=True)  # fmt: skip
    return found


def write_table(pairs: Mapping[str, Mapping[str, Any]]) -> None:
    """The table of ``docs/choose.md``: a row per method, its median ratio on each pair, and the memory of a step of the first pair."""
    pairs = {pair: rows for pair, rows in pairs.items() if not PAIRS[pair][-1]}
    names = list(dict.fromkeys(name for rows in pairs.values() for name in rows))
    lines = [f"| method | {' | '.join(pairs)} | MB |", "|---" * (len(pairs) + 2) + "|"]
    first = next(iter(pairs.values()))
    for name in names:
        cells = [f"{rows[name]['ratio']['median']:.2f}" if name in rows else "–" for rows in pairs.values()]
        memory = f"{first[name]['memory_mb']:.0f}" if name in first else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {memory} |")
    page = PAGE.read_text(encoding="utf-8")
    begin = page.index("| method | ResNet")
    end = page.index("\n\n", begin)
    PAGE.write_text(page[:begin] + "\n".join(lines) + page[end:], encoding="utf-8")


def main(words: list[str]) -> None:
    """``METHOD ...`` and ``--pair`` measure these alone and put them into the figures that are there; ``--table`` only writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", help="measure these alone; the other rows stay")
    parser.add_argument("--pair", default="", help="only pairs of networks whose name has these words, such as '8 x 8'")
    parser.add_argument("--counts", action="store_true", help="renew memory and arithmetic alone, not the times")
    parser.add_argument("--table", action="store_true", help="only write the table of docs/choose.md")
    args = parser.parse_args(words)
    unknown = sorted({*args.methods} - {slug for slug, *_ in METHODS})
    if unknown:
        parser.error(f"unknown methods: {', '.join(unknown)}")
    before = RESULTS / "distill-steps.json"
    kept = json.loads(before.read_text()) if before.is_file() else {"pairs": {}}
    if args.table:
        write_table(kept["pairs"])
        return
    torch.set_num_threads(1)
    began = time.perf_counter()
    figures: dict[str, Any] = {
        "what": "one step of a method over a plain student step and the teacher's prediction, processor time of one thread, batches of 64, medians of pairs",
        "threads": 1, "pairs": {},
    }  # fmt: skip
    if args.methods or args.pair or args.counts:
        figures["pairs"] = kept["pairs"]
    if args.counts:
        figures |= {k: kept[k] for k in ("load", "minutes") if k in kept}
    names = [f"{slug}, {label}" if label else slug for slug, label, _, _ in METHODS]
    for pair in PAIRS:
        if args.pair not in pair or not chosen(pair, args.methods):
            continue
        known = dict(figures["pairs"].get(pair, {}))
        for name, row in measure(pair, args.methods, args.counts).items():
            if not args.counts:
                known[name] = row
            elif name in known:  # what was never timed has no row
                known[name] = {**known[name], **row}
        figures["pairs"][pair] = {name: known[name] for name in names if name in known}
        if not args.counts:
            figures |= {"load": os.getloadavg()[0], "minutes": (time.perf_counter() - began) / 60}
        print(save("distill-steps", figures))
    write_table(figures["pairs"])


if __name__ == "__main__":
    main(sys.argv[1:])
