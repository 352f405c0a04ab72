"""A fused model behind an OpenAI-compatible endpoint: chat and text completions, with streaming, for any client.

Parameters of the combiner may stand in the request beside those of the protocol (``extra_body={"alpha": 0.3}``); so may ``context``, the
context of the last user message. One request is decoded at a time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.safe import fingerprint
from interfuse.decode.engine import Event, Options
from interfuse.decode.fused import FusedLM

#: fields of the protocol that are understood; and those that are accepted and mean nothing here
KNOWN = ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "n", "seed", "stream",
         "stream_options", "context", "top_k", "min_p", "repetition_penalty")  # fmt: skip
IDLE = ("user", "metadata", "store", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "response_format",
        "tools", "tool_choice", "echo", "best_of", "suffix", "service_tier", "reasoning_effort", "parallel_tool_calls")  # fmt: skip
#: the largest request in bytes
LARGEST = 2**21
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "testserver")


def read_request(body: Mapping[str, Any], lm: FusedLM) -> tuple[FusedLM, Any, Options, bool]:
    """The model under the request's parameters, its prompt, how to draw, and whether to stream.

    Raises:
        InterfuseError: ``param.unknown``, ``param.value``, ``param.missing``, ``input.type`` or ``needs.capability``.
    """
    own = [n for n in lm.method.params if n not in ("vocabulary", "union_k", "embed", "prefill", "rows")]
    for name, value in body.items():
        if name in IDLE:
            if value not in (None, False, 0, [], {}, "none", "auto") and name not in (
                "user",
                "metadata",
                "store",
                "service_tier",
            ):
                raise InterfuseError("needs.capability", f"{name} is not offered here")
        elif name not in KNOWN and name not in own:
            raise InterfuseError(
                "param.unknown",
                f"neither the protocol nor {lm.method.id} has {name!r}",
                fix=did_you_mean(name, [*KNOWN, *own]),
            )
    changes = {n: body[n] for n in own if n in body and n not in KNOWN}
    chosen = lm.with_params(**changes) if changes else lm
    if "messages" in body:
        prompt: Any = body["messages"]
        if not isinstance(prompt, list) or not prompt:
            raise InterfuseError("input.type", "messages is a list of role and content")
        prompt = [
            {"role": str(m["role"]), "content": _content(m)} if isinstance(m, Mapping) and "role" in m else m
            for m in prompt
        ]
        if body.get("context"):
            prompt = [{"role": "context", "content": str(body["context"])}, *prompt]
    elif isinstance(body.get("prompt"), str):
        prompt = body["prompt"]
    else:
        raise InterfuseError("param.missing", "the request has neither messages nor a prompt of text")
    stop = body.get("stop") or ()
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    numbers = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1, "seed": 0}
    read = {n: default if body.get(n) is None else body[n] for n, default in numbers.items()}
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in read.values()):
        raise InterfuseError("param.value", "temperature, top_p, n and seed are numbers")
    options = Options(
        max_tokens=int(limit) if limit is not None else 256, temperature=float(read["temperature"]), top_p=float(read["top_p"]),
        top_k=int(read["top_k"]), min_p=float(read["min_p"]), repetition_penalty=float(read["repetition_penalty"]), n=int(read["n"]),
        seed=int(read["seed"]), stop=(stop,) if isinstance(stop, str) else tuple(str(s) for s in stop if s),
    )  # fmt: skip
    options.check()
    return chosen, prompt, options, bool(body.get("stream"))


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # parts, of which only texts are understood
        if any(not isinstance(p, Mapping) or p.get("type") != "text" for p in content):
            raise InterfuseError("input.type", "only parts of text are understood")
        return "".join(str(p["text"]) for p in content)
    return "" if content is None else str(content)


def pieces(lm: FusedLM, events: Iterator[Event], options: Options) -> Iterator[tuple[int, str, str, int]]:
    """What can be shown as it is made: (sample, further text, finish or empty, tokens so far).

    Unfinished characters, and beginnings of a stop string, are held back until it is clear what they are.
    """
    sent: dict[int, int] = {}
    hold = max((len(s) for s in options.stop), default=1) - 1
    for event in events:
        text = event.source
        whole = lm.engine.words(text, options.stop)
        if not event.done:
            whole = whole.rstrip("�")
            whole = whole[: max(len(whole) - hold, 0)]
        start = sent.get(text.sample, 0)
        if len(whole) > start or event.done:
            sent[text.sample] = max(len(whole), start)
            yield text.sample, whole[start:], text.finish if event.done else "", len(text.ids)


def make_app(lm: FusedLM, *, key_env: str = "", hosts: tuple[str, ...] = LOOPBACK) -> Any:
    """The Starlette application.

    Args:
        key_env: environment variable with the key that clients must send; none is asked for when empty. hosts: accepted Host headers.

    Raises:
        InterfuseError: ``needs.package`` without starlette, ``param.missing`` when the variable is not set.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response, StreamingResponse
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise InterfuseError(
            "needs.package", "serving needs starlette and uvicorn", fix="pip install 'interfuse[serve]'"
        ) from error
    key = os.environ.get(key_env, "") if key_env else ""
    if key_env and not key:
        raise InterfuseError("param.missing", f"the environment variable {key_env} is not set", where="--key-env")
    busy, served = threading.Lock(), {"requests": 0}

    def refused(error: InterfuseError, status: int = 400) -> Response:
        return JSONResponse({"error": {"message": f"{error.what} {error.fix}".strip(), "type": "invalid_request_error", "code": error.code}},
                            status_code=status)  # fmt: skip

    def locked(events: Iterator[Any]) -> Iterator[Any]:
        with busy:
            yield from events

    async def complete(request: Request, chat: bool) -> Response:
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return JSONResponse(
                {"error": {"message": "the key is not right", "type": "authentication_error", "code": "key"}},
                status_code=401,
            )
        try:
            raw = await request.body()
            if len(raw) > LARGEST:
                raise InterfuseError("input.limit", f"the request has more than {LARGEST} bytes")
            body = json.loads(raw)
            if not isinstance(body, dict):
                raise InterfuseError("input.type", "the request is a table")
            chosen, prompt, options, stream = read_request(body, lm)
            encoded = chosen.engine.encode([prompt])
            chosen.engine.fits(encoded, options.max_tokens)
        except (ValueError, RecursionError) as error:
            return refused(InterfuseError("input.format", f"the request cannot be read: {error}"))
        except InterfuseError as error:
            return refused(error)
        served["requests"] += 1
        head = {"id": f"fused-{fingerprint([served['requests'], time.time()])[:20]}", "created": int(time.time()), "model": lm.name,
                "object": ("chat.completion" if chat else "text_completion") + (".chunk" if stream and chat else "")}  # fmt: skip
        asked = len(encoded[0][0])
        if not stream:

            def work() -> list[Any]:
                with busy:
                    texts = {e.source.sample: e.source for e in chosen.engine.run([prompt], options) if e.done}
                return [chosen.reply(texts[k], options) for k in sorted(texts)]

            try:
                replies = await run_in_threadpool(work)
            except InterfuseError as error:
                return refused(error, 500)
            choices = [{"index": i, "finish_reason": r.finish, "logprobs": None,
                        **({"message": {"role": "assistant", "content": r.text}} if chat else {"text": r.text})}
                       for i, r in enumerate(replies)]  # fmt: skip
            made = sum(r.tokens for r in replies)
            usage = {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
            return JSONResponse({**head, "choices": choices, "usage": usage})

        async def lines() -> Any:
            def chunk(choices: list[Any], **rest: Any) -> str:
                return f"data: {json.dumps({**head, 'choices': choices, **rest})}\n\n"

            if chat:
                yield chunk(
                    [
                        {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                        for i in range(options.n)
                    ]
                )
            counts: dict[int, int] = {}
            try:
                async for sample, text, finish, tokens in iterate_in_threadpool(
                    locked(pieces(chosen, chosen.engine.run([prompt], options), options))
                ):
                    counts[sample] = tokens
                    part = {"delta": {"content": text} if text else {}} if chat else {"text": text}
                    yield chunk([{"index": sample, "finish_reason": finish or None, **part}])
            except InterfuseError as error:
                yield f"data: {json.dumps({'error': {'message': error.what, 'type': 'server_error', 'code': error.code}})}\n\n"
                return
            if (body.get("stream_options") or {}).get("include_usage"):
                made = sum(counts.values())
                yield chunk([], usage={"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made})
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def chat(request: Request) -> Response:
        return await complete(request, True)

    async def text(request: Request) -> Response:
        return await complete(request, False)

    async def models(request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": lm.name, "object": "model", "created": 0, "owned_by": "interfuse"}]}
        )

    return Starlette(
        routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/completions", text, methods=["POST"]),
                Route("/v1/models", models)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )  # fmt: skip
