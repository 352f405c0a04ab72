"""Linking again after a change gives what linking everything gives."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from interfuse.kit.linking import LinkSettings, Mention, link
from interfuse.kit.relinking import LinkState, relink, state_of

pytest.importorskip("rapidfuzz")
FIRST = ("Harald", "Haralt", "Ingrid", "Ingrd", "Edvard", "Edward", "Sigrid", "Astrid", "Magnus", "Magnuss", "M")
LAST = (
    "Hardrada",
    "Hardrata",
    "Grieg",
    "Griegg",
    "Nordstrom",
    "Nordström",
    "Bjornson",
    "Björnson",
    "Kongsberg",
    "3",
    "4",
)


def world(seed: int, count: int) -> dict[str, Mention]:
    rng = random.Random(seed)
    return {f"urn:x:{i:03}": one(rng, f"urn:x:{i:03}") for i in range(count)}


def one(rng: random.Random, name: str) -> Mention:
    words = [rng.choice(FIRST), *([rng.choice(FIRST)] if rng.random() < 0.3 else []), rng.choice(LAST)]
    label = " ".join(words) if rng.random() < 0.85 else "".join(w[0] for w in words).upper()
    aliases = (" ".join([rng.choice(FIRST), rng.choice(LAST)]),) if rng.random() < 0.2 else ()
    near = tuple(sorted({f"urn:x:{rng.randrange(40):03}" for _ in range(rng.randrange(4))}))
    types = tuple(rng.sample(["urn:t:person", "urn:t:place"], 1)) if rng.random() < 0.4 else ()
    return Mention(name, label, tuple(sorted({label, *aliases})), types, near)


def called(state: LinkState) -> dict[str, str]:
    return {n: c for c, n in state.merges()}


@pytest.mark.parametrize(("block", "count"), [(2, 60), (4, 60), (8, 60), (60, 60), (5, 160), (25, 160)])
@pytest.mark.parametrize("seed", range(6))
def test_linking_again_gives_what_linking_everything_gives(block: int, count: int, seed: int) -> None:
    settings = LinkSettings(block=block)
    rng = random.Random(1000 + seed)
    mentions = world(seed, count)
    whole = link(mentions.values(), settings)
    assert whole.parts is not None
    state = state_of(whole.parts, whole.merges(), settings)
    for _ in range(6):
        before = dict(mentions)
        for name in rng.sample(sorted(mentions), rng.randrange(4)):
            del mentions[name]
        for name in rng.sample(sorted(mentions), rng.randrange(3)):
            mentions[name] = one(rng, name)
        for _ in range(rng.randrange(4)):
            name = f"urn:x:{rng.randrange(2 * count):03}"
            mentions.setdefault(name, one(rng, name))
        changed = [n for n in sorted({*before, *mentions}) if before.get(n) != mentions.get(n)]

        def now(ids: Sequence[str]) -> Mapping[str, Mention]:
            return {i: mentions[i] for i in ids if i in mentions}

        was = called(state)
        state, renamed = relink(state, changed, now, settings=settings)
        whole = link(mentions.values(), settings)
        assert state.merges() == whole.merges()
        assert whole.parts is not None
        fresh = state_of(whole.parts, whole.merges(), settings)
        assert sorted(map(str, state.pairs.to_pylist())) == sorted(map(str, fresh.pairs.to_pylist()))
        assert sorted(map(str, state.groups.to_pylist())) == sorted(map(str, fresh.groups.to_pylist()))
        is_now = called(state)
        assert renamed == {n: (was.get(n, n), is_now.get(n, n)) for n in sorted({*was, *is_now})
                           if was.get(n, n) != is_now.get(n, n)}  # fmt: skip
