"""A ``transformers`` model on this machine as an :class:`~interfuse.data.lm.LM`: batched, left-padded, on any device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.data.lm import Prompt, Reply, Scored, check_prompts, cut_at, words_of
from interfuse.data.models import Model, build, device_of, open_tokenizer, window_of
from interfuse.data.schema_decoding import Shaped, Vocabulary, stack_of
from interfuse.data.seeding import seeded

#: the most tokens (padding counted) of one forward pass of generation, and the most bytes of logits of one of scoring
BATCH_TOKENS, LOGIT_BYTES = 16_384, 2**29
#: the most rows of one forward pass
BATCH_ROWS = 64


class LocalLM:
    """A causal or sequence-to-sequence model. It is loaded when it is first asked.

    Args:
        model: the model, its task ``causal-lm`` or ``seq2seq-lm``. ctx: device and dtype.
        exact: a reply keeps the space it begins with where the tokenizer's decoder would drop it, so that it can be put after its prompt.

    Raises:
        InterfuseError: ``input.type`` when the model generates no text.
    """

    def __init__(self, model: Model, ctx: Ctx | None = None, *, exact: bool = False) -> None:
        if model.task not in ("causal-lm", "seq2seq-lm"):
            raise InterfuseError("input.type", f"the model's task is {model.task}: it generates no text", where=model.name,
                                 fix="Name a causal or sequence-to-sequence language model.")  # fmt: skip
        self.model, self.ctx, self.exact = model, ctx or Ctx(), exact

    @property
    def name(self) -> str:
        return self.model.name

    def fingerprint(self) -> str:
        return self.model.fingerprint()

    @functools.cached_property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self.ctx)

    @functools.cached_property
    def module(self) -> Any:
        """The module, in evaluation mode."""
        return build(self.model, self.ctx).to(self.device).eval()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, padding on the left."""
        tokenizer = open_tokenizer(self.model)
        tokenizer.padding_side = "left"
        return tokenizer

    @property
    def window(self) -> int | None:
        """The longest text it reads, in tokens, where its configuration tells."""
        return window_of(self.model.config)

    def render(self, prompt: Prompt) -> str:
        """The text that is read: a string as it is, messages by the chat template with the assistant's turn opened.

        Raises:
            InterfuseError: ``needs.capability`` when the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            return prompt
        if not self.tokenizer.chat_template:
            raise InterfuseError("needs.capability", "the model's tokenizer has no chat template", where=self.name,
                                 fix="Give the prompt as a text, or use a model that was trained for chat.")  # fmt: skip
        return str(
            self.tokenizer.apply_chat_template([dict(m) for m in prompt], tokenize=False, add_generation_prompt=True)
        )

    def tokens_of(self, prompt: Prompt) -> list[int]:
        """The token ids that are read for a prompt; never empty (a start token stands for nothing)."""
        text, plain = self.render(prompt), isinstance(prompt, str)
        ids = list(self.tokenizer(text, add_special_tokens=plain)["input_ids"])
        end = self.tokenizer.eos_token_id
        if self.model.task == "causal-lm" and ids and ids[-1] == end and not text.endswith(self.tokenizer.eos_token):
            ids = ids[:-1]  # the tokenizer added it, and nothing follows an end
        return ids or [self._start()]

    def _start(self) -> int:
        tokenizer = self.tokenizer
        return int(
            next(
                t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0) if t is not None
            )
        )

    def _fits(self, length: int, prompt: Prompt) -> None:
        if self.window is not None and length > self.window and self.model.task == "causal-lm":
            raise InterfuseError("input.limit", f"prompt and reply may take {length} tokens, the model reads {self.window}",
                                 where=f"{self.name}: {words_of(prompt)[:60]!r}", fix="Shorten the prompt, or lower max_tokens (max_new_tokens of a distillation).")  # fmt: skip

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
                 stop: Sequence[str] = (), n: int = 1, seed: int = 0, schema: Mapping[str, Any] | None = None,
                 ctx: Ctx | None = None) -> list[list[Reply]]:  # fmt: skip
        """Replies by ``module.generate``. The same call gives the same replies. A ``schema`` is enforced token by token (a reply that reaches
        ``max_tokens`` is cut all the same), where :func:`interfuse.data.schema_decoding.stack_of` understands it."""
        check_prompts(prompts)
        ids = [self.tokens_of(p) for p in prompts]
        for row, prompt in zip(ids, prompts, strict=True):
            self._fits(len(row) + max_tokens, prompt)
        found: list[list[Reply]] = [[] for _ in prompts]
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        copies = n if temperature > 0 else 1  # the greedy reply is always the same
        bar = (ctx or self.ctx).bar(f"generate {self.name}", len(prompts), "prompts")
        with torch.inference_mode(), seeded(seed), bar as progress:
            for rows in _batches([len(r) + max_tokens for r in ids], copies):
                width = max(len(ids[i]) for i in rows)
                pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._start()
                batch = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in rows], device=self.device)
                mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in rows], device=self.device)
                start = width if self.model.task == "causal-lm" else 1
                out = self.module.generate(
                    input_ids=batch, logits_processor=self._shaped(schema, start), attention_mask=mask, max_new_tokens=max_tokens, num_return_sequences=copies, pad_token_id=pad,
                    **sampling, stopping_criteria=self._ends(stop, start),
                )  # fmt: skip
                made = out[:, width:] if self.model.task == "causal-lm" else out[:, 1:]
                for place, i in enumerate(rows):
                    own = [self._reply(made[place * copies + k], ids[i], max_tokens, stop) for k in range(copies)]
                    found[i] = own if copies == n else own * n
                progress.advance(len(rows))
        return found

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    def _shaped(self, schema: Mapping[str, Any] | None, start: int) -> Any:
        """What refuses a model that gives no numbers, and keeps replies to a schema."""
        from transformers import LogitsProcessorList

        def numbers(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """The scores, when the first ones are numbers: of NaN the likeliest token would be the first, whatever was asked."""
            if ids.shape[1] <= start and bool(scores.isnan().any()):
                raise InterfuseError("input.nan", "the model gives a logit that is not a number", where=self.name)
            return scores

        stack = stack_of(schema) if schema else None
        if not stack or not self._vocabulary.writes_json:
            return LogitsProcessorList([numbers])
        return LogitsProcessorList([numbers, Shaped(self._vocabulary, stack, start, self._end_tokens())])

    def _end_tokens(self) -> list[int]:
        ends = self.module.generation_config.eos_token_id
        return list(ends) if isinstance(ends, list) else [ends if ends is not None else self.tokenizer.eos_token_id]

    def _ends(self, stop: Sequence[str], start: int) -> Any:
        """What ends a row: the last tokens of what was made hold a stop string (a token is one byte of it at least)."""
        from transformers import StoppingCriteriaList

        length = max((len(s.encode()) for s in stop), default=0) + 4

        def found(ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
            tails = self.tokenizer.batch_decode(ids[:, max(start, ids.shape[1] - length) :], skip_special_tokens=True)
            return torch.tensor([any(s in tail for s in stop if s) for tail in tails], device=ids.device)

        return StoppingCriteriaList([found] if stop else [])

    def _reply(self, made: torch.Tensor, asked: Sequence[int], max_tokens: int, stop: Sequence[str]) -> Reply:
        ends = self._end_tokens()
        ids = made.tolist()
        length = next((i for i, t in enumerate(ids) if t in ends), None)
        kept = ids if length is None else ids[:length]
        said = self.tokenizer.decode(kept, skip_special_tokens=True)
        if self.exact:
            before = self.tokenizer.decode(asked, skip_special_tokens=True)
            whole = self.tokenizer.decode([*asked, *kept], skip_special_tokens=True)
            said = whole[len(before) :] if before and whole.startswith(before) else said
        text, stopped = cut_at(said, stop)
        ended = length is not None or stopped or len(ids) < max_tokens
        return Reply(text, len(asked), len(kept), "stop" if ended else "length")

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        """Log-probabilities of the tokens that hold a character of the continuation, in one forward pass per batch.

        A token that straddles the border counts to the continuation.
        """
        split = [self._split(prompt, text) for prompt, text in pairs]
        found: list[Scored | None] = [None] * len(pairs)
        vocabulary = int(getattr(self.module.config.get_text_config(), "vocab_size", 50_000))
        bar = (ctx or self.ctx).bar(f"score {self.name}", len(pairs), "texts")
        with torch.inference_mode(), bar as progress:
            for rows in _batches([len(a) + len(b) for a, b in split], 1, LOGIT_BYTES // (4 * vocabulary)):
                for i, values in zip(rows, self._score([split[i] for i in rows]), strict=True):
                    found[i] = Scored(sum(values), len(values), tuple(values))
                progress.advance(len(rows))
        return [s for s in found if s is not None]

    def _split(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        if not text:
            raise InterfuseError(
                "input.empty", "a continuation to score is empty", where=f"{self.name}: after {prompt[-60:]!r}"
            )
        if self.model.task == "seq2seq-lm":
            return self.tokens_of(prompt), list(self.tokenizer(text_target=text)["input_ids"])
        coded = self.tokenizer(prompt + text, return_offsets_mapping=True)
        ids, spans = list(coded["input_ids"]), coded["offset_mapping"]
        special = coded.get("special_tokens_mask") or self.tokenizer.get_special_tokens_mask(
            ids, already_has_special_tokens=True
        )
        border = next(
            (i for i, (span, s) in enumerate(zip(spans, special, strict=True)) if not s and span[1] > len(prompt)),
            len(ids),
        )
        last = next(
            (i for i in range(len(ids), border, -1) if not special[i - 1]), border
        )  # an end token is not of the text
        before, after = ids[:border] or [self._start()], ids[border:last]
        self._fits(len(before) + len(after), prompt)
        return before, after

    def _score(self, rows: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[float]]:
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._start()
        if self.model.task == "seq2seq-lm":
            start = self.module.config.decoder_start_token_id
            sources = _padded([a for a, _ in rows], pad, self.device)
            decoder, _ = _padded([[start, *b[:-1]] for _, b in rows], pad, self.device)
            logits = self.module(input_ids=sources[0], attention_mask=sources[1], decoder_input_ids=decoder).logits
            firsts = [0] * len(rows)
        else:
            ids, mask = _padded([a + b for a, b in rows], pad, self.device)
            logits = self.module(input_ids=ids, attention_mask=mask).logits
            firsts = [len(a) - 1 for a, _ in rows]
        for row, ((_, after), first) in enumerate(zip(rows, firsts, strict=True)):
            part = logits[row, first : first + len(after)].float()
            if not torch.isfinite(part).all():
                raise InterfuseError("input.nan", "the model gives a logit that is not a number", where=self.name)
            wanted = torch.tensor(after, device=part.device)[:, None]
            yield (part.gather(1, wanted).squeeze(1) - part.logsumexp(dim=1)).tolist()


def _padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, L], padded on the right."""
    width = max(len(r) for r in rows)
    ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows], device=device)
    return ids, torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=device)


def _batches(lengths: Sequence[int], copies: int, tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Places in batches of like length whose padded size stays under a limit of tokens; one place at least."""
    order, part = sorted(range(len(lengths)), key=lambda i: (lengths[i], i)), list[int]()
    for i in order:
        if part and (lengths[i] * (len(part) + 1) * copies > tokens or (len(part) + 1) * copies > BATCH_ROWS):
            yield part
            part = []
        part.append(i)
    if part:
        yield part
