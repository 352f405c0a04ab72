"""Merging: checkpoints of one family (and their base) make one checkpoint, without data and in bounded memory.

Use it when several models share architecture and ancestry: fine-tunes of one base, checkpoints of one training, or students
distilled from the same initial weights. It takes minutes and no examples. When architectures or vocabularies differ, use the
room ``distill``; when the models shall stay apart, ``decode``.
"""

from interfuse.core.rooms import door

TAKES = "checkpoints (models) of one architecture, often their base"
MAKES = "model"
#: the verb of ``interfuse merge RECIPE.yml``
DEFAULT = "recipe"

__getattr__ = door(__name__)
