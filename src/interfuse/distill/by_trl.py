"""Preferences learnt in the loop of ``trl`` instead of this room's."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interfuse.data.seeding import seeded
from interfuse.distill.hooks import Run
from interfuse.kit.train import make_optimizer


def train_preferences(run: Run, rows: Sequence[tuple[str, str, str]], *, beta: float) -> list[dict[str, Any]]:
    """Trains the student by ``trl.DPOTrainer`` on (prompt, chosen, rejected) texts; returns a row per epoch.

    Epochs, batches, optimiser, learning rate, schedule, warm-up, decay and clipping are the room's settings. A training that was killed goes on
    from trl's checkpoint of the last whole epoch.
    """
    from datasets import Dataset

    trl: Any = importlib.import_module("trl")
    s, ctx = run.settings, run.ctx
    table = Dataset.from_dict({name: list(column) for name, column in zip(("prompt", "chosen", "rejected"), zip(*rows, strict=True), strict=True)})  # fmt: skip
    with tempfile.TemporaryDirectory() as spare, seeded(ctx.seed_for("trl")):
        place = (ctx.scratch if ctx.scratch is not None else Path(spare)) / "trl"
        steps = -(-len(rows) // (s.batch_size * s.accumulate)) * s.epochs
        config = trl.DPOConfig(
            output_dir=str(place), beta=beta, max_length=s.max_length, learning_rate=s.lr, num_train_epochs=s.epochs,
            per_device_train_batch_size=s.batch_size, gradient_accumulation_steps=s.accumulate, weight_decay=s.weight_decay,
            max_grad_norm=s.clip, lr_scheduler_type={"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[s.schedule],
            warmup_steps=int(s.warmup * steps), seed=ctx.seed_for("trl") % 2**31,
            bf16=ctx.dtype == "bfloat16", fp16=ctx.dtype == "float16", use_cpu=run.device.type == "cpu", disable_dropout=False,
            save_strategy="epoch" if ctx.scratch is not None else "no", save_total_limit=1, logging_strategy="epoch", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        student: Any = run.accelerator.unwrap_model(run.student)
        optimizer = make_optimizer([{"params": [p for p in student.parameters() if p.requires_grad]}], s)
        reference = run.frozen_copy(student)
        trainer = trl.DPOTrainer(
            model=student, ref_model=reference, args=config, train_dataset=table, processing_class=run.encoder.tokenizer,
            optimizers=(optimizer, None),
        )  # fmt: skip
        kept = sorted(place.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        if kept:
            ctx.log(f"resuming: trl goes on from {kept[-1].name}")
        trainer.train(resume_from_checkpoint=bool(kept))
        run.facts["loop"] = {"library": "trl", "version": trl.__version__}
        told = [row for row in trainer.state.log_history if "loss" in row]
    return [{"epoch": i, "loss": round(float(row["loss"]), 6)} for i, row in enumerate(told, 1)]
