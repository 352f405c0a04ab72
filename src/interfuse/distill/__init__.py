"""Distillation: teachers, a student and examples make a model.

Use it when what you have knows more than what you may ship: several specialists that shall become one small model, a large
model that shall become a small one, or models of different architecture whose weights cannot be merged. Labels are needed
only by methods that say so. Language models of different families and tokenizers are fused here too (``lm-kd``, ``uld``, ``gkd``,
``seqkd``, ``dpo``, ``fusechat``, ``infigfusion``); ``interfuse run fusechat.yaml`` is the whole of FuseChat, from sources to one
model. When the models share architecture and ancestry, try the room ``merge`` first: it needs no data.
"""

from interfuse.core.rooms import door

TAKES = "teachers (models), a student (model or configuration), examples (table)"
MAKES = "model"

__getattr__ = door(__name__)
