"""Stretches of text fused: models of any kind propose and judge, endpoints included; what they cannot tell is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Source, apply, load_room, prepare
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.data.lm import open_lm
from interfuse.data.local_lm import LocalLM
from interfuse.data.models import open_model
from interfuse.decode.trace import Trace, explain
from tests.conformance.scenes.decode import speaker

SERVED = {"endpoint": "http://localhost:9/v1", "model": "far", "api": "completions"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


class Far:
    """The client of a server that writes by a plan and finds short words likely; ``tells``: whether it echoes log-probabilities."""

    def __init__(self, plan: list[str], tells: bool = True) -> None:
        self.plan, self.tells, self.asked = plan, tells, []  # type: list[str], bool, list[str]
        self.completions = SimpleNamespace(create=self.create)

    def create(self, prompt: str, max_tokens: int, echo: bool = False, **options: Any) -> Any:
        self.asked.append(prompt)
        if not echo:
            words = next((p for p in self.plan if prompt.endswith(p.split("|")[0])), "|").split("|")[1]
            return SimpleNamespace(choices=[SimpleNamespace(text=words, finish_reason="length" if words.endswith("~") else "stop")], usage=None)  # fmt: skip
        pieces = [prompt[i : i + 4] for i in range(0, len(prompt), 4)]
        told = SimpleNamespace(text_offset=[4 * i for i in range(len(pieces) + 1)],
                               token_logprobs=[None, *(-0.1 * len(p) for p in pieces[1:]), -1.0])  # fmt: skip
        return SimpleNamespace(choices=[SimpleNamespace(text="", logprobs=told if self.tells else None)])


def test_one_model_alone_writes_as_it_does_alone(place: Path, tmp_path: Path) -> None:
    """Spans of any length put together are the greedy text, under the word borders of its own tokenizer."""
    folder = speaker(place, "large")
    alone = LocalLM(open_model(Source(folder), Ctx()), exact=True)
    prompts = ["the cat", "one red bird sees"]
    want = [r[0].text for r in alone.generate(prompts, max_tokens=9)]
    for span in (1, 4, 9):
        lm = apply("decode/span-fusion", model=folder, span=span, out=tmp_path / str(span))
        assert [r[0].text.split()[:7] for r in lm.generate(prompts, max_tokens=9)] == [w.split()[:7] for w in want]
    assert all(t.startswith(" ") for t in want), "a reply can be put after its prompt"


def test_the_chosen_stretch_is_the_one_all_find_likeliest(place: Path, tmp_path: Path) -> None:
    folders = [speaker(place, name) for name in ("large", "small", "third")]
    lm = apply(
        "decode/span-fusion", model=folders[0], experts=folders[1:], span=3, outlier=None, out=tmp_path / "fused"
    )
    kept, prompt = Trace(), "the cat sees"
    reply = lm.generate([prompt], max_tokens=9, trace=kept)[0][0]
    assert reply.text == "".join(row["token"] for row in kept.rows)
    models = [LocalLM(open_model(Source(f), Ctx()), exact=True) for f in folders]
    made = ""
    for row in kept.rows:
        replies = [m.generate([prompt + made], max_tokens=min(3, 9 - len(made.split())))[0][0] for m in models]
        cut = [r.text.rsplit(" ", 1)[0] if r.finish == "length" and r.tokens > 1 else r.text for r in replies]
        means = {t: sum(m.score([(prompt + made, t)])[0].logprob for m in models) / len(t.encode()) for t in dict.fromkeys(cut) if t.strip()}  # fmt: skip
        assert row["token"] == max(means, key=lambda t: means[t])
        made += row["token"]
    kept.save(tmp_path / "run.parquet")
    page = explain(tmp_path / "run.parquet")
    assert "writer" in page
    drawn = [lm.generate([prompt], max_tokens=6, temperature=1.0, n=2, seed=s)[0] for s in (1, 1, 2)]
    assert [r.text for r in drawn[0]] == [r.text for r in drawn[1]] != [r.text for r in drawn[2]]


def test_an_endpoint_proposes_and_judges(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies are kept; its key's name alone is written down; a stop string across stretches ends the text; half of the models may end it."""
    far = Far(["the cat| a dog si~", "a dog| runs here the en~", "the| end"])
    monkeypatch.setattr(EndpointLM, "_client", far)
    monkeypatch.setenv("A_KEY", "secret")
    lines: list[str] = []
    ctx = Ctx(cache=tmp_path / "cache", log=lines.append)
    given = {"model": {**SERVED, "key_env": "A_KEY"}, "span": 4, "out": tmp_path / "fused"}
    made = apply("decode/span-fusion", ctx=ctx, **given)
    assert "secret" not in (tmp_path / "fused" / "fused-lm.json").read_text()
    lm = open_lm(Source(str(made.path)), ctx)
    reply = lm.generate(["the cat"], max_tokens=40)[0][0]
    assert reply.text == " a dog runs here the end"
    assert reply.finish == "stop"
    asked = len(far.asked)
    assert lm.generate(["the cat"], max_tokens=40)[0][0].text == reply.text
    assert len(far.asked) == asked, "a reply was paid for twice"
    assert any("calls of endpoints" in line for line in lines)
    stopped = lm.generate(["the cat"], max_tokens=40, stop=("dog runs",))[0][0]
    assert (stopped.text, stopped.finish) == (" a ", "stop")
    near = speaker(place, "large")
    both = apply("decode/span-fusion", model=near, experts=[SERVED], span=4, out=tmp_path / "both", ctx=ctx)
    text = both.generate(["the cat"], max_tokens=12)[0][0].text
    assert text
    assert any(p.startswith("the cat") and p != "the cat" for p in far.asked), "it judged proposals of the other"


def test_what_an_endpoint_cannot_tell_is_refused_by_name(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, room = speaker(place, "large"), load_room("decode")

    def refused(method: str, code: str, **given: Any) -> None:
        with pytest.raises(InterfuseError) as caught:
            prepare(room, load(f"decode/{method}"), given, Ctx())
        assert caught.value.code == code
        assert caught.value.where

    for method, given in (
        ("mixture", {"model": near, "experts": [SERVED]}), ("ck-plug", {"model": SERVED}),
        ("dynamic-logits-fusion", {"model": near, "base": SERVED, "experts": [near]}),
    ):  # fmt: skip
        refused(method, "needs.capability", **given)
    refused("span-fusion", "needs.capability", model=near, experts=[{**SERVED, "api": "chat"}])
    monkeypatch.setattr(EndpointLM, "_client", Far(["the cat| a dog~"], tells=False))
    lm = apply(
        "decode/span-fusion", model=near, experts=[SERVED], out=tmp_path / "mute", ctx=Ctx(cache=tmp_path / "cache")
    )
    with pytest.raises(InterfuseError, match="no log-probabilities"):
        lm.generate(["the cat"], max_tokens=12)
    with pytest.raises(InterfuseError, match="chat template"):
        lm.generate([[{"role": "user", "content": "the cat"}]], max_tokens=12)
    for options in ({"top_k": 3}, {"repetition_penalty": 1.2}):
        with pytest.raises(InterfuseError, match="drawn by the models"):
            lm.generate(["the cat"], max_tokens=4, **options)
    with pytest.raises(InterfuseError, match=r"needs\.capability"):
        lm.score([("the cat", " sees")])
    with pytest.raises(InterfuseError, match=r"input\.limit"):
        lm.generate(["the cat"], max_tokens=100)
    with pytest.raises(InterfuseError, match=r"param\.value"):
        lm.with_params(weights=[1.0]).generate(["the cat"], max_tokens=4)
    with pytest.raises(InterfuseError, match=r"param\.value"):
        lm.with_params(samples=2).generate(["the cat"], max_tokens=4)


def test_spans_are_served(place: Path, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from interfuse.decode.serve import make_app

    lm = apply(
        "decode/span-fusion",
        model=speaker(place, "large"),
        experts=[speaker(place, "small")],
        span=3,
        out=tmp_path / "fused",
    )
    want = lm.generate(["the cat"], max_tokens=9)[0][0].text
    web = TestClient(make_app(lm))
    body = {"prompt": "the cat", "max_tokens": 9, "temperature": 0}
    assert web.post("/v1/completions", json=body).json()["choices"][0]["text"] == want
    lines = [
        x[6:]
        for x in web.post("/v1/completions", json={**body, "stream": True}).text.splitlines()
        if x.startswith("data: {")
    ]
    pieces = [json.loads(x)["choices"][0]["text"] for x in lines]
    assert "".join(pieces) == want
    assert len(pieces) > 1
    assert web.post("/v1/completions", json={**body, "span": 1}).status_code == 200
