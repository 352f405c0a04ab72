"""Language models as a noun: local ones beside plain ``transformers``, an endpoint beside a server of our own, kept and recorded replies."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from interfuse.core.ctx import Budget, Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.data.lm import LM, CachedLM, RecordedLM, Reply, Scored, cached, open_lm
from interfuse.data.local_lm import LocalLM
from interfuse.data.models import open_model
from tests.tiny_models import words

VOCABULARY = ["the", "cat", "dog", "sees", "a", "bird", "and", "runs", "."]
CTX = Ctx(device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words(tmp_path_factory.mktemp("lm"), "base", VOCABULARY)


@pytest.fixture(scope="module")
def lm(place: Path) -> LocalLM:
    return LocalLM(open_model(Source(str(place)), CTX), CTX)


# ------------------------------------------------------------------------------------------------ local models


def test_greedy_replies_are_those_of_transformers_whatever_the_batch(lm: LocalLM) -> None:
    prompts = ["the cat", "a dog sees the bird and", "the"]
    ours = lm.generate(prompts, max_tokens=6)
    for prompt, replies in zip(prompts, ours, strict=True):
        ids = torch.tensor([lm.tokens_of(prompt)])
        plain = lm.module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        made = [t for t in plain[0, ids.shape[1] :].tolist() if t != lm.tokenizer.eos_token_id]
        assert replies[0].text == lm.tokenizer.decode(made, skip_special_tokens=True)
        assert replies[0].prompt_tokens == ids.shape[1]
        assert lm.generate([prompt], max_tokens=6)[0] == replies


def test_scores_are_the_log_probabilities_of_one_forward_pass(lm: LocalLM) -> None:
    pairs = [("the cat", " sees a bird"), ("", "the dog"), ("a dog sees the bird and", " runs")]
    for (prompt, text), found in zip(pairs, lm.score(pairs), strict=True):
        before, all_ids = (
            lm.tokenizer(prompt)["input_ids"] or [lm.tokenizer.eos_token_id],
            lm.tokenizer(prompt + text)["input_ids"],
        )
        after = all_ids[len(all_ids) - found.tokens :]
        with torch.no_grad():
            logs = lm.module(torch.tensor([before + after])).logits[0].log_softmax(-1)
        expected = [logs[len(before) - 1 + i, t].item() for i, t in enumerate(after)]
        assert found.token_logprobs == pytest.approx(expected, abs=1e-5)
        assert found.logprob == pytest.approx(sum(expected), abs=1e-5)
        assert found.tokens == len(text.split())


def test_sampling_depends_on_the_seed_alone(lm: LocalLM) -> None:
    ask = {"max_tokens": 8, "temperature": 1.5, "n": 3}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (
        lm.generate(["the"], seed=1, **ask),
        lm.generate(["the"], seed=1, **ask),
        lm.generate(["the"], seed=2, **ask),
    )
    assert first == again != other
    assert len(first[0]) == 3
    assert len({r.text for r in first[0]}) > 1
    assert torch.equal(before, torch.get_rng_state())
    assert [r.text for r in lm.generate(["the"], n=2, max_tokens=3)[0]] == [
        lm.generate(["the"], max_tokens=3)[0][0].text
    ] * 2


def test_a_stop_string_ends_the_reply(lm: LocalLM) -> None:
    whole = next(r for p in VOCABULARY for r in lm.generate([p], max_tokens=8)[0] if len(r.text.split()) > 1)
    start = next(p for p in VOCABULARY if lm.generate([p], max_tokens=8)[0][0] == whole)
    word = whole.text.split()[1]
    cut = lm.generate([start], max_tokens=8, stop=[word])[0][0]
    assert cut.text == whole.text[: whole.text.index(word)]
    assert cut.finish == "stop"


@pytest.mark.parametrize(("prompt", "code"), [
    ("the " * 70, "input.limit"), ([{"role": "user", "content": "the"}], "needs.capability"), ([], "input.empty"), ([{"content": "the"}], "input.type"),
    (7, "input.type"),
])  # fmt: skip
def test_prompts_that_cannot_be_read_are_refused(lm: LocalLM, prompt: Any, code: str) -> None:
    with pytest.raises(InterfuseError) as error:
        lm.generate([prompt], max_tokens=8)
    assert error.value.code == code


def test_a_chat_template_renders_messages(lm: LocalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        lm.tokenizer,
        "chat_template",
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}and{% endif %}",
    )
    talk = [{"role": "user", "content": "the cat"}]
    assert lm.render(talk) == "the cat and"
    assert lm.generate([talk], max_tokens=4) == lm.generate(["the cat and"], max_tokens=4)


def test_an_empty_continuation_and_a_classifier_are_refused(lm: LocalLM) -> None:
    with pytest.raises(InterfuseError, match=r"input\.empty"):
        lm.score([("the", "")])
    with pytest.raises(InterfuseError, match=r"input\.type"):
        LocalLM(open_model(Source({"config": {"model_type": "bert"}, "task": "text-classification"}), CTX))


# ------------------------------------------------------------------------------------------------ kept and recorded replies


class Counting:
    """An LM that counts what it is asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def fingerprint(self) -> str:
        return "counting"

    def generate(self, prompts: Any, *, n: int = 1, **options: Any) -> list[list[Reply]]:
        self.asked += list(prompts)
        return [[Reply(f"{p} {i} {options['seed']}", 1, 3, "stop") for i in range(n)] for p in prompts]

    def score(self, pairs: Any, *, ctx: Ctx | None = None) -> list[Scored]:
        self.asked += list(pairs)
        return [Scored(-1.5, 2, (-1.0, -0.5)) for _ in pairs]


def test_a_kept_reply_is_not_asked_again(tmp_path: Path) -> None:
    inner = Counting()
    lm = CachedLM(inner, tmp_path, batch=2)
    first = lm.generate(["a", "b", "a"], seed=1)
    assert inner.asked == ["a", "b"]
    assert first[0] == first[2]
    assert isinstance(lm, LM)
    assert CachedLM(inner, tmp_path).generate(["b", "a"], seed=1) == [first[1], first[0]]
    assert len(inner.asked) == 2
    assert lm.generate(["a"], seed=2) != [first[0]]
    assert lm.generate(["a"], seed=1, n=2)[0][1].text == "a 1 1"
    lm.forget("a", seed=1)
    lm.generate(["a"], seed=1)
    assert inner.asked == ["a", "b", "a", "a", "a"]
    assert lm.score([("x", "y"), ("x", "y")]) == [Scored(-1.5, 2, (-1.0, -0.5))] * 2
    assert lm.score([("x", "y")])[0].tokens == 2
    assert inner.asked[5:] == [("x", "y")]
    assert lm.found == 3


def test_the_budget_pays_only_for_what_is_not_kept(tmp_path: Path) -> None:
    inner = Counting()
    ctx = Ctx(cache=tmp_path, budget=Budget(calls=2))
    lm = cached(inner, ctx)
    lm.generate(["a", "b"], ctx=ctx)
    lm.generate(["a", "b"], ctx=ctx)
    with pytest.raises(InterfuseError, match=r"budget\.spent"):
        lm.generate(["c"], ctx=ctx)
    assert inner.asked == ["a", "b"]
    assert ctx.budget.spent["calls"] == 2
    assert cached(lm, ctx) is lm


def test_a_kill_loses_one_call_at_most(tmp_path: Path) -> None:
    inner = Counting()

    class Dying(Counting):
        def generate(self, prompts: Any, **options: Any) -> list[list[Reply]]:
            if len(inner.asked) >= 4:
                raise KeyboardInterrupt
            return inner.generate(prompts, **options)

    texts = [str(i) for i in range(8)]
    with pytest.raises(KeyboardInterrupt):
        CachedLM(Dying(), tmp_path, batch=2).generate(texts)
    CachedLM(inner, tmp_path, batch=2).generate(texts)
    assert inner.asked == texts


def test_recorded_replies(tmp_path: Path) -> None:
    file = tmp_path / "replies.jsonl"
    talk = [{"role": "user", "content": "Who?"}]
    rows = [{"prompt": "Where?", "replies": ["here. Or there", "there"]}, {"prompt": talk, "replies": ["me"]},
            {"prompt": "x", "continuation": "y", "token_logprobs": [-1, -0.5]}]  # fmt: skip
    file.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    lm = open_lm(Source(f"replies:{file.name}", "tape", tmp_path), CTX)
    assert isinstance(lm, RecordedLM)
    assert lm.name == "tape"
    assert lm.fingerprint() == RecordedLM(file).fingerprint()
    assert [r.text for r in lm.generate(["Where?"], n=3, stop=["."])[0]] == ["here", "there", "here"]
    assert lm.generate([talk])[0][0].text == "me"
    assert lm.score([("x", "y")]) == [Scored(-1.5, 2, (-1.0, -0.5))]
    for ask, code in [
        (lambda: lm.generate(["Wher?"]), "input.missing"),
        (lambda: lm.score([("x", "z")]), "input.missing"),
    ]:
        with pytest.raises(InterfuseError) as error:
            ask()
        assert error.value.code == code
    file.write_text('{"prompt": "a", "replies": ["b"]}\n{"prompt"')
    with pytest.raises(InterfuseError, match=r"input\.format.*replies\.jsonl:2"):
        RecordedLM(file)
    with pytest.raises(InterfuseError, match=r"input\.missing"):
        RecordedLM(tmp_path / "none.jsonl")


# ------------------------------------------------------------------------------------------------ endpoints

SECRET = "sk-very-secret-7291"


class Handler(BaseHTTPRequestHandler):
    """A server that says what the test's ``script`` says; one entry per request, the last one for all that follow."""

    script: ClassVar[list[Any]] = []
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.seen.append({"path": self.path, "body": body, "key": self.headers.get("Authorization")})
        answer = Handler.script.pop(0) if len(Handler.script) > 1 else Handler.script[0]
        status, content = answer if isinstance(answer, tuple) else (200, answer(body) if callable(answer) else answer)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After-Ms", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Handler.script, Handler.seen = [], []


def chat(body: dict[str, Any]) -> dict[str, Any]:
    text = body["messages"][-1]["content"].upper()
    choices = [
        {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": f"{text} {i}"}}
        for i in range(body["n"])
    ]
    return {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices,
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}  # fmt: skip


def test_an_endpoint_is_asked_in_the_words_of_its_interface(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", SECRET)
    Handler.script = [chat]
    lm = open_lm(Source({"endpoint": address, "model": "big", "key_env": "TEST_KEY"}, "far"), CTX)
    found = lm.generate(
        ["one", [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}]],
        max_tokens=9,
        n=2,
        schema={"type": "object"},
    )
    assert [[r.text for r in replies] for replies in found] == [["ONE 0", "ONE 1"], ["TWO 0", "TWO 1"]]
    assert found[0][0].prompt_tokens == 5
    body = Handler.seen[0]["body"]
    assert body["max_tokens"] == 9
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert Handler.seen[0]["key"] == f"Bearer {SECRET}"
    assert SECRET not in lm.fingerprint() + repr(vars(lm))
    with pytest.raises(InterfuseError, match=r"needs\.capability"):
        lm.score([("a", "b")])


def test_a_schema_is_sent_as_strict_servers_take_it(address: str) -> None:
    Handler.script = [chat]
    inner = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema = {"type": "object", "properties": {"rows": {"type": "array", "items": inner}}, "required": []}
    word = {**inner, "properties": {**inner["properties"], "a": {"type": "string", "minLength": 1}}}  # type: ignore[dict-item]
    rows = {**schema["properties"]["rows"], "items": word, "maxItems": 3, "uniqueItems": True}  # type: ignore[index]
    EndpointLM(address, "m").generate(["one"], schema={**schema, "properties": {"rows": rows}})
    sent = Handler.seen[0]["body"]["response_format"]["json_schema"]
    assert sent["strict"] is True
    assert sent["schema"] == {**schema, "required": ["rows"], "additionalProperties": False, "properties": {
        "rows": {"type": "array", "items": {**inner, "required": ["a", "b"], "additionalProperties": False,
                                            "properties": {"a": {"type": "string"}, "b": {"enum": ["x", "y"], "type": "string"}}}}}}  # fmt: skip
    assert inner["required"] == ["a"], "what was given is not changed"


def test_texts_are_continued_and_scored_where_the_server_can(address: str) -> None:
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        logs = {
            "tokens": ["a", " b", " c", "!"],
            "token_logprobs": [None, -1.0, -0.5, -9.0],
            "text_offset": [0, 1, 3, 5],
            "top_logprobs": None,
        }
        choice = {"index": 0, "finish_reason": "length", "text": " on", "logprobs": logs if body.get("echo") else None}
        return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}

    Handler.script = [complete]
    lm = EndpointLM(address, "m", api="completions")
    assert lm.generate(["and so"], max_tokens=1)[0][0].text == " on"
    assert Handler.seen[0]["path"].endswith("/completions")
    assert lm.score([("a", " b c")]) == [Scored(-1.5, 2, (-1.0, -0.5))]
    with pytest.raises(InterfuseError, match=r"needs\.capability"):
        lm.generate([[{"role": "user", "content": "x"}]])


@pytest.mark.parametrize(("script", "code"), [
    ([(429, {}), (500, {}), chat], ""), ([(401, {"error": {"message": f"bad key {SECRET}"}})], "endpoint.failed"), ([(503, {})], "endpoint.failed"),
    ([(200, b"{\"choices\": ")], "endpoint.failed"), ([(200, {"choices": []})], "endpoint.failed"), ([(200, {})], "endpoint.failed"),
    ([(200, b"\xff\xfe")], "endpoint.failed"),
])  # fmt: skip
def test_failures_of_a_server_are_bounded_and_coded(
    address: str, monkeypatch: pytest.MonkeyPatch, script: list[Any], code: str
) -> None:
    monkeypatch.setenv("TEST_KEY", SECRET)
    Handler.script = list(script)
    lm = EndpointLM(address, "m", key_env="TEST_KEY", retries=2, timeout=5)
    if not code:
        assert lm.generate(["one"])[0][0].text == "ONE 0"
        assert len(Handler.seen) == 3
        return
    with pytest.raises(InterfuseError) as error:
        lm.generate(["one"])
    assert error.value.code == code
    assert SECRET not in str(error.value)
    assert len(Handler.seen) <= 3


def test_a_server_that_refuses_schemas_is_asked_without(address: str) -> None:
    said: list[str] = []
    refusal = (400, {"error": {"message": "response_format\n is not supported"}})
    Handler.script = [refusal, chat]
    lm = EndpointLM(address, "m", workers=1)
    found = lm.generate(["one", "two"], schema={"type": "object"}, ctx=Ctx(log=said.append))
    assert [[r.text for r in replies] for replies in found] == [["ONE 0"], ["TWO 0"]]
    assert ["response_format" in row["body"] for row in Handler.seen] == [True, False, False]
    assert [x for x in said if "schema" in x] == [
        "m takes no JSON schema and is asked without: response_format is not supported"
    ]
    Handler.script = [(400, {"error": {"message": "max_tokens is too large"}})]
    with pytest.raises(InterfuseError, match="status 400: max_tokens is too large"):
        EndpointLM(address, "m").generate(["one"], schema={"type": "object"})


def test_what_a_server_says_is_told_without_the_key(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", SECRET)
    Handler.script = [(429, {"error": {"message": f"slow down, {SECRET}"}})]
    with pytest.raises(InterfuseError, match=r"slow down, \*\*\*") as error:
        EndpointLM(address, "m", key_env="TEST_KEY", retries=0).generate(["one"])
    assert "fewer workers" in error.value.fix


def test_a_reply_beyond_all_measure_is_refused(address: str) -> None:
    Handler.script = [
        lambda body: {
            **chat(body),
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x" * 2_000_001}}
            ],
        }
    ]
    with pytest.raises(InterfuseError, match=r"endpoint\.failed"):
        EndpointLM(address, "m").generate(["one"])


class Slow(BaseHTTPRequestHandler):
    """A server that answers as its ``way`` says: whole, late, in drips of body or head, half, endless or too long."""

    way: ClassVar[str] = ""
    seen: ClassVar[int] = 0

    def do_POST(self) -> None:
        Slow.seen += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data, way = json.dumps(chat(body)).encode(), Slow.way
        with contextlib.suppress(OSError):
            if way == "late":
                time.sleep(1)
            if way == "head in drips":
                for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 30:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            if way in ("", "half", "drips"):
                self.send_header("Content-Length", str(len(data)))
            if way == "packed":
                self.send_header("Content-Encoding", "gzip")
                data = gzip.compress(b" " * 40_000_000)
            self.end_headers()
            if way == "drips":
                for byte in data[:40]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
            elif way in ("endless", "10 MB"):
                for _ in range(160 if way == "10 MB" else 10_000):
                    self.wfile.write(b" " * 65_536)
            else:
                self.wfile.write(data[: len(data) // 2] if way.startswith("half") else data)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("way", "tries"), [
    ("late", 2), ("drips", 2), ("head in drips", 2), ("half", 2), ("half, of no said length", 1), ("endless", 1), ("10 MB", 1), ("packed", 1),
])  # fmt: skip
def test_a_try_ends_in_time_however_a_server_answers(slow: str, way: str, tries: int) -> None:
    Slow.way, Slow.seen = way, 0
    lm = EndpointLM(slow, "m", timeout=0.4 if tries == 2 else 5, retries=tries - 1)
    start = time.monotonic()
    with pytest.raises(InterfuseError) as error:
        lm.generate(["one"])
    assert error.value.code == "endpoint.failed"
    assert ("longer than" in error.value.what) == (way in ("endless", "10 MB", "packed"))
    assert time.monotonic() - start < 4  # two tries and a pause before the second
    assert Slow.seen == tries
    Slow.way = ""
    assert EndpointLM(slow, "m").generate(["one"])[0][0].text == "ONE 0"


def test_addresses_and_keys_are_checked_before_anything_is_sent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for bad in ["file:///etc/passwd", "ftp://x/y", "http://user:pw@host/v1", "localhost:8000", "http://"]:
        with pytest.raises(InterfuseError, match=r"unsafe\.address"):
            EndpointLM(bad, "m")
    with pytest.raises(InterfuseError, match=r"needs\.capability"):
        EndpointLM(address, "m", key_env="NO_SUCH_KEY").generate(["one"])
    for spec, code in [
        ({"endpoint": address}, "param.missing"),
        ({"endpoint": address, "modle": "m"}, "param.unknown"),
    ]:
        with pytest.raises(InterfuseError) as error:
            open_lm(Source(spec), CTX)
        assert error.value.code == code
    assert Handler.seen == []


def test_open_lm_opens_models_and_takes_any_lm(place: Path) -> None:
    opened = open_lm(Source(str(place), "tiny"), CTX)
    assert isinstance(opened, LocalLM)
    assert opened.name == "tiny"
    assert opened.fingerprint() == LocalLM(open_model(Source(str(place)), CTX)).fingerprint()
    assert open_lm(Source(opened), CTX) is opened
    with pytest.raises(InterfuseError, match=r"input\.missing"):
        open_lm(Source("no/such/folder/here", "x"), CTX)


def test_a_connection_is_not_waited_for_as_long_as_an_answer() -> None:
    pytest.importorskip("openai")
    assert EndpointLM("http://127.0.0.1:9/v1", "m")._client.timeout.connect == 10
    assert EndpointLM("http://127.0.0.1:9/v1", "m", timeout=3)._client.timeout.connect == 3


def test_the_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InterfuseError, match=r"needs\.package") as caught:
        EndpointLM("http://127.0.0.1:9/v1", "m").generate(["x"])
    assert "interfuse[endpoint]" in caught.value.fix
