"""Synthesis: a language model makes examples, for training other models or itself.

Use it when what a model knows shall become data that can be looked at, checked and reused before anything is trained on it: answers to
your prompts (``labeling``), new prompts from a few (``expansion``) or from topics and documents (``curation``), preferences between
answers (``feedback``), a model's own answers that a verifier passes (``self-knowledge``), or its probabilities word by word
(``feature``). What comes out is a table that ``distill/sft`` and ``distill/dpo`` read, and that opens as parquet anywhere.
"""

from interfuse.core.rooms import door

TAKES = "a language model (local, endpoint or recorded), examples (table)"
MAKES = "table"

__getattr__ = door(__name__)
