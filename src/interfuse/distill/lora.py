"""Supervised fine-tuning of a language model by low-rank changes of its layers (Hu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.distill.hooks import Hooks, Needs, Run


@method()
@dataclass(frozen=True)
class LoRA(Hooks):
    """Cross entropy as ``sft``, but only matrices A [r, in] and B [out, r] beside each layer learn; the layer becomes
    ``W + (alpha / r) B A`` (section 4.1) and is saved so, as an ordinary model."""

    rank: Annotated[int, Field(ge=1, description="rank r of every change")] = 16
    alpha: Annotated[int, Field(ge=1, description="the change is scaled by alpha / r")] = 32
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="share of a layer's inputs that the change does not see")
    ] = 0.05
    layers: Annotated[list[str] | None, Field(
        description="ends of the names of the layers that change, such as q_proj; none: every linear layer but the output")] = None  # fmt: skip

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(0, 0), tokens=True)

    def check(self, call: Call) -> None:
        from importlib.util import find_spec

        if find_spec("peft") is None:
            raise InterfuseError("needs.package", "low-rank changes need peft", fix="pip install 'interfuse[lora]'")

    def setup(self, run: Run) -> None:
        from peft import LoraConfig, get_peft_model

        wanted: Any = self.layers if self.layers is not None else "all-linear"
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=wanted, task_type="CAUSAL_LM")  # fmt: skip
        try:
            changed: Any = get_peft_model(run.student, config)
        except ValueError as error:
            raise InterfuseError("param.value", str(error).splitlines()[0], where=f"{run.student_model.name}: layers",
                                 fix="Name layers of the model, or leave layers out.") from error  # fmt: skip
        run.held["changed"] = changed
        learnt = sum(p.numel() for p in changed.parameters() if p.requires_grad)
        run.facts["trained share"] = learnt / sum(p.numel() for p in run.student.parameters())

    def export(self, run: Run) -> torch.nn.Module:
        merged: torch.nn.Module = run.held["changed"].merge_and_unload()
        return merged.requires_grad_(True)
