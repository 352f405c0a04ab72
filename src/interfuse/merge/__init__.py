"""Merging: checkpoints of one family (and their base) make one checkpoint, without data and in bounded memory.

Use it when several models share architecture and ancestry: fine-tunes of one base, checkpoints of one training, or students
distilled from the same initial weights. It takes minutes and no examples. When architectures or vocabularies differ, use the
room ``distill``; when the models shall stay apart, ``decode``.

LoRA adapters are sources like whole models (``BASE+ADAPTER``). With ``output: lora`` adapters on one base make one adapter on it:
exact for ``linear`` and ``task-arithmetic``, whose ranks add up; otherwise the best approximation with ``lora_rank``, the
default of which is the sum of the adapters' ranks. What it holds of the change is in the result's facts as ``share``.
"""

from interfuse.core.rooms import door

TAKES = "checkpoints (models) of one architecture, often their base"
MAKES = "model"
#: the verb of ``interfuse merge RECIPE.yml``
DEFAULT = "recipe"

__getattr__ = door(__name__)
