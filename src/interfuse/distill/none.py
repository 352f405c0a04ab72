"""Training on labels alone: the baseline every distillation is compared with, and how specialists are trained."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks


@method()
@dataclass(frozen=True)
class NoDistillation(Hooks):
    """Cross entropy with the labels; for a causal language model, with its next tokens."""
