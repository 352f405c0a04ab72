"""From a table's rows to what one model reads: pixels, tokens or feature vectors, and from batches to logits.

Every model has an encoder of its own, so teachers and students may differ in image size, channels or tokenizer. Pictures are encoded
as pixels in [0, 1]; :func:`forward` normalises them as the model's ``preprocessor_config.json`` says, so that what changes pictures
(mixing, augmenting) works on pixels, and models of unlike normalisations read the same picture.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.data.images import Normalisation, distort, fit, to_array
from interfuse.data.models import Model, build, device_of, open_tokenizer, window_of
from interfuse.data.predictors import StoredPredictions
from interfuse.data.tables import Table
from interfuse.kit.threads import threads_for
from interfuse.kit.token_rows import KINDS as TEXTS
from interfuse.kit.token_rows import LEARNT, TokenRows, put_into_words, tokenise

Batch = dict[str, torch.Tensor]
#: encoded tables up to this many bytes are kept in memory
KEEP_BYTES = 2**30
#: label value of positions that do not count
IGNORE = -100
#: what reads a table of numbers
NUMBERS = " Numbers are read by a torch.nn.Module or a fitted scikit-learn classifier, which are given in Python."


@dataclass
class Encoder:
    """Turns rows of one table into the inputs of one model; ``table`` rows are addressed by position 0..N-1.

    The result of :meth:`encode` has ``pixel_values`` [B, C, H, W] in [0, 1], or ``input_ids`` and ``attention_mask`` [B, L], or ``x``
    [B, D], all on the CPU. For a causal language model there is also ``learnt`` [B, L], which is no input of the model.

    ``words_of`` is the encoder whose tokenizer puts conversations into words: the student's, for a teacher's encoder.
    """

    model: Model
    table: Table
    max_length: int = 512
    words_of: Encoder | None = field(default=None, repr=False)
    _token_rows: TokenRows | None = field(default=None, repr=False)
    _tokenizer: Any = field(default=None, repr=False)
    _kept: Batch | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.model.task == "predictions":
            return
        kind, task = self.table.kind, self.model.task
        fits = {"image-classification": ("image",), "text-classification": ("text",), "causal-lm": TEXTS, "masked-lm": ("text",),
                "seq2seq-lm": ("text",)}.get(task, ("image", "features"))  # fmt: skip
        if kind not in fits:
            raise InterfuseError("input.type", f"the model is for {task}, the table holds {kind}", where=f"{self.model.name}, {self.table.name}",
                                 fix=f"Declare a column as {' or '.join(fits)}." + (NUMBERS if kind == "features" else ""))  # fmt: skip
        Normalisation.read(self.model.processor, self.model.name)  # refused before work starts

    @functools.cached_property
    def reads(self) -> tuple[Any, ...] | None:
        """Equal for encoders of one table whose models read the same pictures or numbers; None where that is not known."""
        if self.model.task in ("predictions", "causal-lm") or self.table.kind not in ("image", "features"):
            return None
        config = self.model.config if self.table.kind == "image" else {}
        return self.table.kind, config.get("num_channels"), str(config.get("image_size"))

    def encode(self, positions: NDArray[np.int64]) -> Batch:
        """Encodes the rows at ``positions`` (int64 [B])."""
        stored = self.model.module
        if isinstance(stored, StoredPredictions):
            if self._kept is None:
                self._kept = {
                    "rows": torch.from_numpy(stored.locate(self.table, f"{self.model.name}, {self.table.name}"))
                }
            return {"rows": self._kept["rows"][torch.from_numpy(np.ascontiguousarray(positions))]}
        if self.model.task == "causal-lm":
            return self.token_rows.batch(positions)
        if self._kept is None and self.table.kind != "text":
            sample = self._read(positions[:1])
            bytes_all = sum(t[0].numel() * t.element_size() for t in sample.values()) * len(self.table)
            if bytes_all <= KEEP_BYTES:
                self._kept = self._read(np.arange(len(self.table)))
        if self._kept is not None:
            index = torch.from_numpy(np.ascontiguousarray(positions))
            return {name: tensor[index] for name, tensor in self._kept.items()}
        return self._read(positions)

    def _read(self, positions: NDArray[np.int64]) -> Batch:
        table = self.table
        rows = table.rows[positions]
        if table.kind == "features":
            return {"x": torch.from_numpy(self._features(rows))}
        column = table.columns[table.kind]
        values = table.dataset.select_columns([column])[rows][column]
        if table.kind == "text":
            return self._tokens(list(values), rows)
        return {
            "pixel_values": torch.from_numpy(
                np.stack([self._image(v, int(r)) for v, r in zip(values, rows, strict=True)])
            )
        }

    def _image(self, value: Any, row: int) -> NDArray[np.float32]:
        where = f"{self.table.name}: row {row}"
        image = to_array(value, self.table.shape, self.table.scale, where)
        if self.table.distort:
            image = distort(image, self.table.distort, Ctx(seed=row).rng("distort"))
        config = self.model.config
        size = config.get("image_size")
        target = (int(size), int(size)) if isinstance(size, int) else tuple(size) if size else None
        return fit(image, int(config.get("num_channels", image.shape[0])), target)

    def _features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        names = self.table.columns["features"]
        names = names if isinstance(names, list) else [names]
        read = self.table.dataset.select_columns(names)[rows]
        parts = [np.asarray(read[name], dtype=np.float32).reshape(len(rows), -1) for name in names]
        array = np.concatenate(parts, axis=1) / np.float32(self.table.scale)
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise InterfuseError(
                "input.nan",
                "a feature is NaN, infinite or empty",
                where=f"{self.table.name}: row {rows[bad[0][0]]}, feature {bad[0][1]}",
            )
        return array

    def _tokens(self, texts: list[Any], rows: NDArray[np.int64]) -> Batch:
        for text, row in zip(texts, rows, strict=True):
            if not isinstance(text, str) or not text:
                raise InterfuseError("input.missing", "the text is empty", where=f"{self.table.name}: row {row}")
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        self._fits(int(encoded["attention_mask"].sum(dim=1).max()))
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    @property
    def token_rows(self) -> TokenRows:
        """All rows as tokens, for a causal language model; made once.

        Raises:
            InterfuseError: see :func:`~interfuse.kit.token_rows.put_into_words` and ``tokenise``; ``input.limit`` for a row that is longer
                than the model reads.
        """
        if self._token_rows is None:
            other = self.words_of
            words = put_into_words(self.table, self.tokenizer) if other is None else other.token_rows.words
            self._token_rows = tokenise(words, self.tokenizer, self.max_length, f"{self.model.name}, {self.table.name}")
            self._fits(max(map(len, self._token_rows.readings), default=0))
        return self._token_rows

    def _fits(self, longest: int) -> None:
        """Raises ``input.limit`` for a text of more tokens than the model's configuration says it reads."""
        window = window_of(self.model.config)
        if window is not None and longest > window:
            raise InterfuseError("input.limit", f"a text has {longest} tokens, the model reads {window}", where=f"{self.model.name}, {self.table.name}",
                                 fix=f"Set max_length: {window}, or less.")  # fmt: skip

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            InterfuseError: ``input.missing`` when the model folder has none.
        """
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(self.model)
        return self._tokenizer

    def batches(self, order: NDArray[np.int64], size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Batches of ``size`` positions in the given order, each with its encoding."""
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            yield positions, self.encode(positions)


def targets(model: Model, labels: torch.Tensor | None, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What the model should say: class indices [B], or for a causal language model its own next tokens [B, L-1]."""
    if model.task == "causal-lm":
        ids = batch["input_ids"]
        mask = batch[LEARNT] if LEARNT in batch else batch["attention_mask"].bool()
        return torch.where(mask[:, 1:], ids[:, 1:], torch.full_like(ids[:, 1:], IGNORE))
    return labels


def forward(module: torch.nn.Module, model: Model, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits: [B, K] of a classifier; [B, L-1, V] of a causal language model, position t predicting token t+1."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    batch = normalised(model, batch)
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items() if k != LEARNT}
    if model.task in ("module", "predictions"):
        output = module(next(iter(batch.values())))
    else:
        output = module(**batch)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return logits[:, :-1] if model.task == "causal-lm" else logits


@contextlib.contextmanager
def words_changed(module: Any, ids: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside the block a text model reads ``change(vectors)`` where it would read its word vectors [B, L, D]. Its token ids stay,
    by which models find padding and the end of a text.

    Args:
        module: a ``transformers`` model. ids: the token ids [B, L] of its forward passes.

    Raises:
        InterfuseError: ``needs.capability`` when the model has no table of word vectors.
    """
    try:
        words = module.get_input_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise InterfuseError("needs.capability", "the model has no table of word vectors", where=type(module).__name__) from error  # fmt: skip

    def changed(layer: Any, args: Any, vectors: torch.Tensor) -> torch.Tensor:
        turned = args[0].shape != ids.shape or (len(ids) == ids.shape[1] and torch.equal(args[0], ids.T))
        return change(vectors.transpose(0, 1)).transpose(0, 1) if turned else change(vectors)  # XLNet's batch is second

    handle = words.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def normalised(model: Model, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """A batch whose pictures ``pixel_values`` [B, C, H, W] are as the model's own processor makes them of pixels in [0, 1]; all else
    as it is, and everything where the model brings no processor.

    Raises:
        InterfuseError: ``input.format`` or ``input.shape`` for a processor that does not fit.
    """
    if not model.processor or "pixel_values" not in batch:
        return batch
    how = Normalisation.read(model.processor, model.name)
    return batch if how.nothing else {**batch, "pixel_values": how(batch["pixel_values"], model.name)}


def predict(model: Model, table: Table, ctx: Ctx, *, batch_size: int = 256, module: torch.nn.Module | None = None,
            encoder: Encoder | None = None) -> NDArray[np.float32]:  # fmt: skip
    """Logits of a classifier for every row of a table, float32 [N, K].

    Args:
        module, encoder: the model's, where they are at hand already; the module is in evaluation mode.

    Raises:
        InterfuseError: ``input.nan`` naming model and row when a logit is not finite; ``input.type`` when they do not fit.
    """
    encoder = encoder or Encoder(model, table)
    device = device_of(ctx)
    module = build(model, ctx).to(device).eval() if module is None else module
    rows: list[NDArray[np.float32]] = []
    size = sum(p.numel() for p in module.parameters())
    with threads_for(size), torch.inference_mode(), ctx.bar(f"predict {model.name}", len(table), "items") as bar:
        for positions, batch in encoder.batches(np.arange(len(table)), batch_size):
            logits = forward(module, model, {k: v.to(device) for k, v in batch.items()})
            rows.append(logits.float().cpu().numpy())
            bar.advance(len(positions))
    found = np.concatenate(rows)
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        raise InterfuseError(
            "input.nan",
            "the model gives a logit that is not a number",
            where=f"{model.name}, {table.name}: row {bad[0][0]}",
        )
    return found
