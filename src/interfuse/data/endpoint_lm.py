"""Any OpenAI-compatible endpoint (OpenAI, vLLM, Ollama, llama.cpp, a gateway) as an :class:`~interfuse.data.lm.LM`.

Keys come from an environment variable that the source names, and are never written anywhere. Retries, time and the size of a
reply are bounded.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint
from interfuse.data.lm import Prompt, Reply, Scored, check_prompts, estimated_tokens

T = TypeVar("T")
#: the longest reply that is taken, in characters
LONGEST_REPLY = 2_000_000
#: the most bytes of an answer that are read: those characters, and what stands around them
MOST_BYTES = 4 * LONGEST_REPLY
#: seconds in which a server takes a connection; its answer may take longer
CONNECT = 10.0


def bounded(base: Any, seconds: float, most: int) -> Any:
    """A client that has each whole answer within a time and a size, however its server sends it.

    A client's own timeout starts anew with every byte that comes, and an answer is read before anyone looks at its length.

    Args:
        base: the class of a client of ``httpx`` or ``httpx2`` (which one, the package ``openai`` decides).
        seconds: from the request to the last byte. most: bytes of an answer, unpacked.

    Returns:
        the client. Too late is its module's ``ReadTimeout``, as a failure that may pass; too much is ``endpoint.failed``.
    """
    module = sys.modules[next(c.__module__.split(".")[0] for c in base.__mro__ if c.__module__.startswith("httpx"))]

    class Bounded(base):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            done, late = threading.Event(), threading.Event()
            made: list[Any] = []

            def read() -> None:
                try:
                    made.append(self._whole(request, options, late))
                except BaseException as error:  # it is raised where the answer is waited for
                    made.append(error)
                done.set()

            # what a server that sends its head byte by byte keeps waiting is this thread alone, and no exit waits for it
            threading.Thread(target=read, daemon=True).start()
            if not done.wait(seconds):
                late.set()
                raise module.ReadTimeout(f"no whole answer within {seconds:g} s", request=request)
            if isinstance(made[0], BaseException):
                raise made[0]
            return made[0]

        def _whole(self, request: Any, options: Mapping[str, Any], late: threading.Event) -> Any:
            answer = super().send(request, **{**options, "stream": True})
            parts, size = list[bytes](), 0
            with contextlib.closing(answer):
                for part in answer.iter_bytes(65_536):
                    size += len(part)
                    if late.is_set() or size > most:
                        raise InterfuseError("endpoint.failed", f"an answer is longer than {most:,} bytes",
                                             where=str(request.url.host), fix="Lower max_tokens, or look at what the server sends.")  # fmt: skip
                    parts.append(part)
            head = [(k, v) for k, v in answer.headers.multi_items()
                    if k.lower() not in ("content-encoding", "content-length", "transfer-encoding")]  # fmt: skip
            return type(answer)(answer.status_code, headers=head, content=b"".join(parts), request=request)

        def __del__(self) -> None:
            with contextlib.suppress(Exception):
                self.close()

    return Bounded()


def _fix_of(status: int) -> str:
    """What to do about a status of HTTP."""
    if status == 429:
        return "It wants fewer calls at a time: fewer workers, more retries, or run again later; what was answered is kept."
    if status >= 500:
        return "The fault is the server's, see its own log; run again later, what was answered is kept."
    return "See the server's own log; 401 and 403 are about the key, 404 about the model's name."


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as servers take it that hold a model to it strictly: every object has all its properties, and no others; a choice of words
    has a type; lengths of lists and texts, and that items differ, which not all of them know, are left out."""
    unknown = ("maxItems", "minLength", "uniqueItems")
    made = {k: closed(v) if k == "items" else v for k, v in schema.items() if k not in unknown}
    if "properties" in made:
        made["properties"] = {k: closed(v) for k, v in made["properties"].items()}
        made |= {"required": list(made["properties"]), "additionalProperties": False}
    if "enum" in made and all(isinstance(word, str) for word in made["enum"]):
        made.setdefault("type", "string")
    return made


class EndpointLM:
    """A model behind an address.

    Args:
        endpoint: the base address, such as ``http://localhost:8000/v1``. model: the name its server knows.
        key_env: the environment variable that holds the key, where the server asks for one.
        api: ``chat`` (a string is one message of the user) or ``completions`` (a string is continued as it stands).
        timeout: seconds of one try, up to the last byte of its answer; a connection is waited for 10 s at most. retries: further tries after a failure that may pass.
        workers: calls at a time.

    Raises:
        InterfuseError: ``unsafe.address`` or ``param.value`` at once; ``needs.package`` when the client is not installed.
    """

    def __init__(self, endpoint: str, model: str, *, key_env: str = "", api: str = "chat", timeout: float = 600.0, retries: int = 5,
                 workers: int = 4, name: str = "") -> None:  # fmt: skip
        parts = urlsplit(str(endpoint))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise InterfuseError("unsafe.address", "an endpoint is a plain http or https address without a user or a password in it",
                                 where=str(parts.hostname or endpoint)[:100], fix="Name the key's variable: key_env: MY_KEY.")  # fmt: skip
        if api not in ("chat", "completions"):
            raise InterfuseError("param.value", f"api = {api!r}: an endpoint's api is chat or completions", where=name)
        self.endpoint, self.model, self.key_env, self.api = str(endpoint), str(model), key_env, api
        self.timeout, self.retries, self.workers = float(timeout), int(retries), int(workers)
        self.name = name or self.model
        self._no_schema = False  # the server has refused one

    def fingerprint(self) -> str:
        return fingerprint({"endpoint": self.endpoint, "model": self.model, "api": self.api})

    @cached_property
    def _client(self) -> Any:
        try:
            from openai import DefaultHttpxClient, OpenAI, Timeout
        except ImportError as error:
            raise InterfuseError(
                "needs.package", "endpoints need the package openai", fix="pip install 'interfuse[endpoint]'"
            ) from error
        key = os.environ.get(self.key_env, "") if self.key_env else "none"
        if not key:
            raise InterfuseError("needs.capability", f"the environment variable {self.key_env} holds no key", where=self.name,
                                 fix=f"export {self.key_env}=...")  # fmt: skip
        patience = Timeout(self.timeout, connect=min(self.timeout, CONNECT))
        return OpenAI(base_url=self.endpoint, api_key=key, timeout=patience, max_retries=self.retries,
                      http_client=bounded(DefaultHttpxClient, self.timeout, MOST_BYTES))  # fmt: skip

    def _asked(self, call: Callable[[], T]) -> T:
        """The answer of one call, its failures under our codes (a key that a server echoes is not passed on)."""
        import openai

        try:
            return call()
        except openai.APIStatusError as error:
            status, words = error.status_code, self._words_of(error)
            raise InterfuseError("endpoint.failed", f"the endpoint answered with status {status}" + (f": {words}" if words else ""),
                                 where=self.name, fix=_fix_of(status)) from error  # fmt: skip
        except openai.OpenAIError as error:
            raise InterfuseError("endpoint.failed", f"the endpoint gave no usable answer ({type(error).__name__})", where=self.name,
                                 fix="Is its server running, and the address right? A slow one needs a larger timeout, or fewer workers.") from error  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InterfuseError(
                "endpoint.failed",
                f"the endpoint's answer cannot be read ({type(error).__name__})",
                where=self.name,
                fix="Is it the address of an interface like OpenAI's? Usually it ends with /v1.",
            ) from error

    def _words_of(self, error: Any) -> str:
        """What a server says of a request that it refused, without the key; nothing where it is about the key."""
        told = error.body.get("message") if isinstance(error.body, Mapping) else None
        if error.status_code in (401, 403) or not isinstance(told, str):
            return ""
        key = os.environ.get(self.key_env, "") if self.key_env else ""
        return " ".join((told.replace(key, "***") if key else told).split())[:200]

    def _text(self, text: Any) -> str:
        if text is not None and (not isinstance(text, str) or len(text) > LONGEST_REPLY):
            raise InterfuseError(
                "endpoint.failed", f"a reply is no text of at most {LONGEST_REPLY:,} characters", where=self.name
            )
        return text or ""

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
                 stop: Sequence[str] = (), n: int = 1, seed: int = 0, schema: Mapping[str, Any] | None = None,
                 ctx: Ctx | None = None) -> list[list[Reply]]:  # fmt: skip
        """One call per prompt, several at a time. A schema goes along as ``response_format``; a server that knows none ignores it, or
        refuses it, and is then asked without."""
        found = []
        for answer in self.each(prompts, max_tokens=max_tokens, temperature=temperature, top_p=top_p, stop=stop, n=n, seed=seed,
                                schema=schema, ctx=ctx):  # fmt: skip
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
        return found

    def each(self, prompts: Sequence[Prompt], *, max_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
             stop: Sequence[str] = (), n: int = 1, seed: int = 0, schema: Mapping[str, Any] | None = None,
             ctx: Ctx | None = None) -> Iterator[list[Reply] | InterfuseError]:  # fmt: skip
        """The replies to each prompt in order as they come, or the error that its call ended in: what was paid for is not lost.

        After a first error no further call is begun; prompts that were not asked have that error too.
        """
        check_prompts(prompts)
        options: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "n": n,
            "seed": seed,
        }
        options |= {"stop": list(stop)} if stop else {}

        def chat(prompt: Prompt) -> list[Reply]:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
            form = (
                {"type": "json_schema", "json_schema": {"name": "reply", "schema": closed(schema), "strict": True}}
                if schema is not None and not self._no_schema
                else None
            )
            try:
                made = self._client.chat.completions.create(
                    messages=messages, **options, **({"response_format": form} if form else {})
                )
            except refusals as error:
                told = self._words_of(error)
                if not form or not re.search(r"response.?format|schema", told, re.IGNORECASE):
                    raise
                if not self._no_schema:
                    (ctx or Ctx()).log(f"{self.name} takes no JSON schema and is asked without: {told}")
                self._no_schema = True
                made = self._client.chat.completions.create(messages=messages, **options)
            return [self._reply(prompt, c.message.content, c.finish_reason, made.usage, n) for c in made.choices]

        def continued(prompt: Prompt) -> list[Reply]:
            if not isinstance(prompt, str):
                raise InterfuseError(
                    "needs.capability",
                    "api: completions takes texts, not messages",
                    where=self.name,
                    fix="Use api: chat.",
                )
            made = self._client.completions.create(prompt=prompt, **options)
            return [self._reply(prompt, c.text, c.finish_reason, made.usage, n) for c in made.choices]

        client = self._client  # its errors are raised here, not in a thread
        assert client is not None
        import openai

        refusals = (openai.BadRequestError, openai.UnprocessableEntityError)
        ask = chat if self.api == "chat" else continued
        first: list[InterfuseError] = []

        def one(prompt: Prompt) -> list[Reply] | InterfuseError:
            if first:
                return first[0]
            try:
                replies = self._asked(lambda: ask(prompt))
                if len(replies) == n:
                    return replies
                error = InterfuseError(
                    "endpoint.failed", f"{len(replies)} replies came for {n} that were asked for", where=self.name
                )
            except InterfuseError as caught:
                error = caught
            first.append(error)
            return error

        bar = (ctx or Ctx()).bar(f"ask {self.name}", len(prompts), "prompts")
        with ThreadPoolExecutor(max_workers=max(1, self.workers)) as pool, bar as progress:
            for answer in pool.map(one, prompts):
                yield answer
                progress.advance()

    def _reply(self, prompt: Prompt, text: Any, finish: str, usage: Any, n: int) -> Reply:
        text = self._text(text)
        asked = usage.prompt_tokens if usage is not None else estimated_tokens([prompt])
        tokens = usage.completion_tokens if usage is not None and n == 1 else estimated_tokens([text])
        return Reply(text, int(asked), int(tokens), "length" if finish == "length" else "stop")

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        """By ``echo`` and ``logprobs`` of the completions interface, which vLLM and llama.cpp have and chat interfaces do not."""
        if self.api != "completions":
            raise InterfuseError("needs.capability", "a chat endpoint does not score texts", where=self.name,
                                 fix="Use api: completions on a server that echoes log-probabilities, or a local model.")  # fmt: skip

        def one(pair: tuple[str, str]) -> Scored:
            prompt, text = pair
            if not text:
                raise InterfuseError("input.empty", "a continuation to score is empty", where=self.name)
            made = self._client.completions.create(
                model=self.model, prompt=prompt + text, max_tokens=1, echo=True, logprobs=1, temperature=0
            )
            told = made.choices[0].logprobs
            if told is None or not told.token_logprobs:
                raise InterfuseError("needs.capability", "the endpoint gives no log-probabilities", where=self.name)
            ends = [*told.text_offset[1:], len(prompt) + len(text) + 1]
            values = tuple(float(v) for v, start, end in zip(told.token_logprobs, told.text_offset, ends, strict=True)
                           if v is not None and end > len(prompt) and start < len(prompt) + len(text))  # fmt: skip
            return Scored(sum(values), len(values), values)

        client = self._client
        assert client is not None
        with ThreadPoolExecutor(max_workers=max(1, self.workers)) as pool:
            return list(pool.map(lambda p: self._asked(lambda: one(p)), pairs))
