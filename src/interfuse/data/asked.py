"""A language model as a teacher of classes: how likely each class's words are after a prompt that shows the text.

The model may be local, behind an endpoint that gives log-probabilities, or recorded (see :func:`interfuse.data.lm.open_lm`). What
it says is asked once per table and, through the language model's own cache, once ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.core.safe import fingerprint
from interfuse.data.lm import LM, open_lm
from interfuse.data.models import Model
from interfuse.data.predictors import StoredPredictions
from interfuse.data.tables import Table

#: where the text goes in a prompt
TEXT = "{text}"


class AskedLM(StoredPredictions):
    """Log-probabilities of every class's answer, for the texts of the tables it was asked about."""

    def __init__(self, lm: LM, prompt: str, answers: Sequence[str] | Mapping[str, str] | None, ctx: Ctx) -> None:
        super().__init__([], np.zeros((0, 0), dtype=np.float32), "probs")
        self.lm, self.prompt, self.answers, self.ctx = lm, prompt, answers, ctx
        said = dict(answers) if isinstance(answers, Mapping) else list(answers) if answers is not None else None
        digest = hashlib.sha256(
            fingerprint({"lm": lm.fingerprint(), "prompt": prompt, "answers": said}).encode()
        ).digest()
        self.content = torch.tensor(list(digest), dtype=torch.uint8)
        self.asked: dict[str, int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> AskedLM:
        """Itself: it is never trained, and what it was asked holds for every copy."""
        return self

    def locate(self, table: Table, where: str) -> NDArray[np.int64]:
        """The rows of a table's examples, asked about at the first call.

        Raises:
            InterfuseError: ``input.type`` for a table without texts, ``input.shape`` when answers and classes differ, and what the
                language model raises (``needs.capability`` where it gives no log-probabilities).
        """
        key = table.fingerprint()
        if key not in self.asked:
            logits = self._ask(table, where)
            self.asked[key] = len(self.logits) if self.logits.shape[1] == logits.shape[1] else 0
            self.logits = torch.cat([self.logits, logits]) if self.asked[key] else logits
        return self.asked[key] + np.arange(len(table), dtype=np.int64)

    def _ask(self, table: Table, where: str) -> torch.Tensor:
        if table.kind != "text":
            raise InterfuseError(
                "input.type", f"a language model reads texts, the table holds {table.kind}", where=where
            )
        answers = self._answers(table, where)
        column = str(table.columns["text"])
        texts = table.dataset.select_columns([column])[table.rows][column]
        pairs = [(self.prompt.replace(TEXT, str(text)), answer) for text in texts for answer in answers]
        scored = self.lm.score(pairs, ctx=self.ctx)
        numbers = np.array([s.logprob for s in scored], dtype=np.float32).reshape(len(table), len(answers))
        return torch.from_numpy(numbers).log_softmax(dim=1)

    def _answers(self, table: Table, where: str) -> list[str]:
        classes = list(table.classes)
        if isinstance(self.answers, Mapping):
            lost = [c for c in classes if c not in self.answers]
            if lost or len(self.answers) != len(classes):
                raise InterfuseError(
                    "input.shape",
                    f"answers are given for {sorted(self.answers)}, the classes are {classes}",
                    where=where,
                )
            return [self.answers[c] for c in classes]
        answers = list(self.answers) if self.answers is not None else classes
        if not answers or (classes and len(answers) != len(classes)):
            raise InterfuseError("input.shape", f"there are {len(answers)} answers for {len(classes)} classes", where=where,
                                 fix="Give one answer per class, in the order of the table's classes.")  # fmt: skip
        return answers


def asked_model(spec: Mapping[str, Any], source: Source, ctx: Ctx) -> Model:
    """The model of a source ``{lm: ..., prompt: "... {text} ...", answers: [...]}``; answers default to the names of the classes.

    Raises:
        InterfuseError: ``param.value`` for a prompt without ``{text}``, or answers that are no texts; what opening the model raises.
    """
    prompt, answers = spec.get("prompt"), spec.get("answers")
    if not isinstance(prompt, str) or TEXT not in prompt:
        raise InterfuseError("param.value", f"prompt must hold {TEXT}, where the example goes", where=source.name)
    words = list(answers.values()) if isinstance(answers, Mapping) else answers
    if words is not None and (isinstance(words, str) or not all(isinstance(w, str) and w for w in words)):
        raise InterfuseError(
            "param.value", "answers are a list of texts, or a table from class to text", where=source.name
        )
    lm = open_lm(Source(spec["lm"], source.name, source.folder), ctx)
    config = {"num_labels": len(words)} if words is not None else {}
    return Model(source.name or lm.name, None, config, "predictions", module=AskedLM(lm, prompt, answers, ctx))
