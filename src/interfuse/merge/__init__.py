"""Merging: checkpoints of one family (and their base) make one checkpoint, without data and in bounded memory.

Use it when several models share architecture and ancestry: fine-tunes of one base, checkpoints of one training, or students
distilled from the same initial weights. It takes minutes and no examples. When architectures or vocabularies differ, use the
room ``distill``; when the models shall stay apart, ``decode``.

LoRA adapters are sources like whole models (``BASE+ADAPTER``). With ``output: lora`` adapters on one base make one adapter on it:
exact for ``linear`` and ``task-arithmetic``, whose ranks add up; otherwise the best approximation with ``lora_rank``, the
default of which is the sum of the adapters' ranks. What it holds of the change is in the result's facts as ``share``.

A merge is a model folder with a card (``README.md``: sources, their licences, parameters) and ``merge.json``: of every tensor what it
was made of, with which parameters, and the weights that the method has computed. ``interfuse merge explain OUT --model A --model B
--base C`` reads the sources again and tells, layer by layer, the norm of each one's change, the cosines between them, where their
signs differ, and how much of each is in the result. Times are not kept: the same merge has the same bytes.

Not offered here: arithmetic in another type than float32 (sums and decompositions in float64), stochastic rounding, padding or cropping
of tensors whose shapes differ (only vocabularies are aligned), a profile of the run beside its progress; RAM, iso-CTS, WUDI, consensus
and TALL masks, PCB and AdaMerging; a search over parameters (a study compares settings, it does not look for them); building mixtures of
experts out of models; and giving a model another tokenizer without merging it.
"""

from interfuse.core.rooms import door

TAKES = "checkpoints (models) of one architecture, often their base"
MAKES = "model"
#: the verb of ``interfuse merge RECIPE.yml``
DEFAULT = "recipe"

__getattr__ = door(__name__)
