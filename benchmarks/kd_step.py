"""A training step of distillation against a hand-written PyTorch loop that does the same work on the same batches.

Both run the same student and teacher, the same loss, clipping and optimiser; steps alternate, so a machine that slows down slows
both. The ratio is taken pair by pair. A second figure: the step with stored teacher predictions against the same hand-written
step without any teacher.

    python benchmarks/kd_step.py
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import save, summary

from interfuse.core.ctx import Ctx
from interfuse.core.method import load
from interfuse.core.rooms import load_room, prepare
from interfuse.distill.room import _step, start

PAIRS = 40
CASES = {
    "vit": (64, {"model_type": "vit", "num_channels": 1, "image_size": 8, "patch_size": 2, "hidden_size": 64, "num_hidden_layers": 4,
                 "num_attention_heads": 4, "intermediate_size": 128, "num_labels": 10}),
    "convnext": (128, {"model_type": "convnext", "num_channels": 1, "image_size": 8, "patch_size": 2, "num_stages": 2,
                       "hidden_sizes": [64, 128], "depths": [2, 2], "num_labels": 10}),
}  # fmt: skip


def plain_step(
    student: Any, teacher: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor, stored: torch.Tensor | None = None
) -> None:
    """Hinton's loss by hand: tau 4, alpha 0.9, gradient norm clipped at 1."""
    tau, alpha = 4.0, 0.9
    student.train()
    optimizer.zero_grad(set_to_none=True)
    logits = student(pixel_values=x).logits
    if teacher is not None:
        with torch.no_grad():
            target = teacher(pixel_values=x).logits
    else:
        target = stored
    loss = (1 - alpha) * F.cross_entropy(logits, y)
    if target is not None:
        loss = loss + alpha * tau**2 * F.kl_div(
            F.log_softmax(logits / tau, 1), F.log_softmax(target / tau, 1), log_target=True, reduction="batchmean"
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()


def measure(name: str, batch: int, config: dict[str, Any], cached: bool) -> dict[str, Any]:
    """Pairs of one step of the engine and one by hand, after ten warm-up pairs."""
    room, method = load_room("distill"), load("distill/kd")
    given = {"teacher": [{"config": config}], "student": {"config": {**config, "hidden_dropout_prob": 0.0}}, "data": {"data": "sklearn:digits"},
             "batch_size": batch, "teacher_cache": "auto" if cached else "off"}  # fmt: skip
    call = prepare(room, method, given, Ctx(device="cpu"))
    hooks = method.target()
    state = start(call, hooks)
    state.steps = 10_000
    student, teacher = copy.deepcopy(state.student), copy.deepcopy(state.teachers[0])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    pixels, labels = state.encoder.encode(np.arange(len(state.data)))["pixel_values"], state.labels
    ours, theirs = [], []
    rng = np.random.default_rng(0)
    for pair in range(PAIRS + 10):
        positions = rng.permutation(len(state.data))[:batch]
        index = torch.from_numpy(positions)

        def engine(positions: Any = positions) -> None:
            _step(state, hooks, [positions], {})

        def by_hand(index: Any = index) -> None:
            plain_step(student, None if cached else teacher, optimizer, pixels[index], labels[index])

        times = {}
        for step in (engine, by_hand) if pair % 2 else (by_hand, engine):
            began = time.perf_counter()
            step()
            times[step is engine] = time.perf_counter() - began
        if pair >= 10:
            ours.append(times[True])
            theirs.append(times[False])
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"model": name, "batch": batch, "pairs": PAIRS, "ours_ms": summary([1e3 * t for t in ours]),
            "by_hand_ms": summary([1e3 * t for t in theirs]), "ratio": summary(ratios),
            "ratio_of_medians": statistics.median(ours) / statistics.median(theirs)}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures = {
        "what": "one training step of distill/kd over the same step written by hand; goal: ratio at most 1.05 for steps of 20 ms and more",
        "threads": 1,
        "kd_live_teacher": [measure(name, *case, cached=False) for name, case in CASES.items()],
        "kd_stored_teacher_over_plain_student_step": [
            measure(name, *case, cached=True) for name, case in CASES.items()
        ],
    }
    print(save("kd-step", figures))
    for key in ("kd_live_teacher", "kd_stored_teacher_over_plain_student_step"):
        for row in figures[key]:
            print(
                key,
                row["model"],
                f"{row['ours_ms']['median']:.1f} ms / {row['by_hand_ms']['median']:.1f} ms = {row['ratio']['median']:.3f}",
            )
