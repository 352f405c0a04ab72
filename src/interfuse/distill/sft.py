"""Supervised fine-tuning of a language model on texts or on responses (no teacher)."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs


@method()
@dataclass(frozen=True)
class SFT(Hooks):
    """Cross entropy of the learnt tokens: of a whole text, of a response after its prompt, or of an assistant's turns.

    It is the sequence-level distillation of the survey's family A when a teacher has written the responses (see ``seqkd``).
    """

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(0, 0), tokens=True)
