"""Decoding: models, prompts or experts are fused at every token, without training, and the result is a language model.

Use it when a large model shall behave like small fine-tuned ones, when a context and a model's memory disagree, when several
models shall speak with one voice, or when experts of a mixture shall be turned up. The artifact is a small folder that names its
sources; it opens as a language model, answers through ``interfuse decode serve``, and other rooms take it like any other. To
have one set of weights instead, use ``merge`` (one architecture) or ``distill``.
"""

from interfuse.core.rooms import door

TAKES = "language models, often a base and its fine-tuned experts, or one model with two prompts"
MAKES = "lm"

__getattr__ = door(__name__)
