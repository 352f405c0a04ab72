"""Tokens of one text in two vocabularies: bytes, alignments, maps between vocabularies, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.kit import token_map as tm
from interfuse.kit.lexicon import byte_spans, lexicon, tokenizer_key
from interfuse.kit.token_align import Alignment, align, align_by_edits, count_pairs, read
from tests.tiny_tokenizers import TEXT, tokenizer

TRICKY = ["naïve Straße — 日本語", "a", " two  spaces ", "😀 smile", "The cat sees", "tab\tand\nline"]


def both(one: str, two: str) -> tuple[Any, Any, Any, Any]:
    a, b = tokenizer(one), tokenizer(two)
    return a, b, lexicon(a), lexicon(b)


@pytest.mark.parametrize("scheme", ["bytes", "marker"])
def test_surfaces_spell_the_text(scheme: str) -> None:
    tok = tokenizer(scheme)
    lex = lexicon(tok)
    for text in TEXT[:5] + TRICKY:
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert b"".join(lex.surfaces[i] for i in ids) == text.encode()


def test_word_starts_are_one_thing_in_every_scheme() -> None:
    lexicons = [lexicon(tokenizer(s)) for s in ("bytes", "marker", "wordpiece")]
    assert [lex.scheme for lex in lexicons] == ["bytes", "marker", "wordpiece"]
    assert all(b" the" in lex.ids for lex in lexicons)
    assert lexicons[1].surfaces[lexicons[1].ids[b"A"]] == b"A"
    assert not lexicons[1].spelt[lexicons[1].ids[b"A"]]


@pytest.mark.parametrize("scheme", ["bytes", "marker", "wordpiece"])
def test_spans_lie_in_the_text(scheme: str) -> None:
    tok = tokenizer(scheme)
    lex = lexicon(tok)
    for text in TEXT[:5] + TRICKY:
        found = tok(text, return_offsets_mapping=True)
        starts, ends = byte_spans(lex, found["input_ids"], found["offset_mapping"], text)
        data = text.encode()
        assert (starts[1:] >= starts[:-1]).all()
        assert (ends[1:] >= ends[:-1]).all()
        assert (starts <= ends).all()
        assert ends[-1] <= len(data)
        if scheme != "wordpiece":
            for number, a, b in zip(found["input_ids"], starts, ends, strict=True):
                assert lex.special[number] or data[a:b] == lex.surfaces[number]


def test_same_tokenizer_is_the_identity() -> None:
    tok = tokenizer("bytes")
    lex = lexicon(tok)
    for reading in read(tok, lex, TEXT[:5] + TRICKY):
        found = align(reading, reading)
        own = np.arange(len(reading))
        assert (found.same == own).all()
        assert (found.first == own).all()
        assert (found.last == own).all()
        found = align_by_edits(reading.ids, reading.ids, lex, lex)
        assert (found.same == own).all()
    mapped = tm.vocabulary_map(lex, lex)
    assert mapped.identity
    assert (mapped.first == np.arange(len(lex))).all()
    probs = torch.rand(2, 3, len(lex), generator=torch.Generator().manual_seed(0))
    out, matched = mapped.project(probs / probs.sum(-1, keepdim=True))
    assert torch.equal(out, probs / probs.sum(-1, keepdim=True))
    assert torch.allclose(matched, torch.ones(2, 3))
    assert tm.identity_map(lex).report()["matched share"] == 1.0


def test_byte_alignment_by_definition() -> None:
    a, b, la, lb = both("bytes", "marker")
    for base, source in zip(read(a, la, TEXT + TRICKY), read(b, lb, TEXT + TRICKY), strict=True):
        found = align(base, source)
        for i in range(len(base)):
            overlap = [
                j
                for j in range(len(source))
                if max(base.starts[i], source.starts[j]) < min(base.ends[i], source.ends[j])
            ]
            assert list(range(int(found.first[i]), int(found.last[i]) + 1)) == overlap
            ends = [j for j in range(len(source)) if source.ends[j] == base.ends[i]]
            assert (found.same[i] if found.same[i] >= 0 else None) == (ends[0] if ends else None)


def test_ends_of_a_text_belong_together() -> None:
    a, b, la, lb = both("bytes", "marker")
    text = "the cat"
    base = read(a, la, [text + a.eos_token])[0]
    source = read(b, lb, [text + b.eos_token])[0]
    found = align(base, source)
    assert base.ids[-1] == la.roles["eos"]
    assert source.ids[found.same[-1]] == lb.roles["eos"]


def slow_warping(cost: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = cost.shape
    total = np.full((rows, columns), np.inf)
    for i in range(rows):
        for j in range(columns):
            before = [total[i - 1, j - 1]] if i and j else []
            before += [total[i, j - 1]] if j else []
            before += [total[i - 1, j]] if i else []
            total[i, j] = cost[i, j] + (min(before) if before else 0.0)
    i, j, path = rows - 1, columns - 1, []
    while True:
        path.append((i, j))
        if (i, j) == (0, 0):
            return path[::-1]
        steps = []
        if i and j:
            steps.append((total[i - 1, j - 1], 0, (i - 1, j - 1)))
        if j:
            steps.append((total[i, j - 1], 1, (i, j - 1)))
        if i:
            steps.append((total[i - 1, j], 2, (i - 1, j)))
        i, j = min(steps)[2]


def levenshtein(a: bytes, b: bytes) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def test_warping_is_the_cheapest_path() -> None:
    a, b, la, lb = both("bytes", "wordpiece")
    for text in TEXT[:5]:
        mine = np.array(a(text)["input_ids"])
        theirs = np.array(b(text)["input_ids"])
        found = align_by_edits(mine, theirs, la, lb)

        def bare(lex: Any, number: int) -> bytes:
            return lex.surfaces[number].removeprefix(b" ") or lex.surfaces[number]

        cost = np.array([[levenshtein(bare(la, x), bare(lb, y)) for y in theirs] for x in mine], dtype=float)
        spans: dict[int, list[int]] = {}
        for i, j in slow_warping(cost):
            spans.setdefault(i, []).append(j)
        assert found.first.tolist() == [min(spans[i]) for i in range(len(mine))]
        assert found.last.tolist() == [max(spans[i]) for i in range(len(mine))]


def test_warping_agrees_with_bytes_on_plain_text() -> None:
    a, b = tokenizer("bytes", 380), tokenizer("bytes", 400)
    la, lb = lexicon(a), lexicon(b)
    for text in TEXT[:2]:
        base, source = read(a, la, [text])[0], read(b, lb, [text])[0]
        sure = align(base, source)
        warped = align_by_edits(base.ids, source.ids, la, lb)
        known = sure.same >= 0
        assert (warped.same[known] == sure.same[known]).mean() > 0.9


def test_maps_by_definition() -> None:
    _, _, la, lb = both("bytes", "marker")
    found = tm.vocabulary_map(lb, la)
    assert found.kinds[lb.roles["eos"]] == tm.SPECIAL
    assert found[lb.roles["eos"]] == (la.roles["eos"],)
    for number, surface in enumerate(lb.surfaces):
        kind, to = found.kinds[number], found[number]
        if kind == tm.EXACT:
            assert la.surfaces[to[0]] == surface
            assert len(to) == 1
        elif kind == tm.PREFIX:
            assert b"".join(la.surfaces[t] for t in to) == surface
            assert len(to) > 1
            longer = [s for s in la.ids if surface.startswith(s) and len(s) > len(la.surfaces[to[0]])]
            assert not longer
        elif kind == tm.NONE:
            assert surface not in la.ids
    assert tm.vocabulary_map(lb, la, policy="exact").report()["tokens"]["prefix"] == 0


def test_nearest_token_is_nearest() -> None:
    _, _, la, lb = both("marker", "wordpiece")
    found = tm.vocabulary_map(la, lb, policy="edit")
    edited = np.flatnonzero(found.kinds == tm.EDIT)
    assert len(edited) > 20
    for number in edited[::7].tolist():
        mine = la.surfaces[number].lstrip(b" ")
        distances = {t: levenshtein(mine, s.lstrip(b" ")) for s, t in lb.ids.items()}
        assert distances[found[number][0]] == min(distances.values())


def test_counts_choose_the_most_frequent_partner() -> None:
    a, b, la, lb = both("bytes", "marker")
    base, source = read(a, la, TEXT), read(b, lb, TEXT)
    found = [align(x, y) for x, y in zip(base, source, strict=True)]
    counts = count_pairs(found, [r.ids for r in base], [r.ids for r in source])
    slow: dict[tuple[int, int], int] = {}
    for x, y, z in zip(base, source, found, strict=True):
        for i in range(len(x)):
            for j in range(int(z.first[i]), int(z.last[i]) + 1):
                pair = (int(y.ids[j]), int(x.ids[i]))
                slow[pair] = slow.get(pair, 0) + 1
    assert dict(counts) == slow
    mapped = tm.vocabulary_map(lb, la, policy="counted", counts=counts)
    for number in np.flatnonzero(mapped.kinds == tm.COUNTED).tolist():
        mine = {t: n for (s, t), n in counts.items() if s == number and not la.special[t]}
        assert mine[mapped[number][0]] == max(mine.values())
    edit = tm.vocabulary_map(lb, la, policy="exact").report()["placed share"]
    assert mapped.report()["placed share"] > edit, "counts place tokens that exact matching leaves out"
    three = {(300, 10): 5, (300, 11): 5, (300, 12): 1}
    chosen = tm.vocabulary_map(lb, la, policy="counted-reference", counts=three)
    assert tm.vocabulary_map(lb, la, policy="counted", counts=three).kinds[300] in (tm.COUNTED, tm.EXACT)
    assert chosen.kinds[300] in (tm.COUNTED, tm.EXACT)


def test_projection_keeps_mass() -> None:
    _, _, la, lb = both("bytes", "marker")
    found = tm.vocabulary_map(lb, la)
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(4, len(lb) + 5, generator=generator, dtype=torch.float64).softmax(-1)
    out, matched = found.project(probs, size=len(la) + 3)
    want = np.zeros((4, len(la) + 3))
    for number in range(len(lb)):
        if found.first[number] >= 0:
            want[:, found.first[number]] += probs[:, number].numpy()
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(matched.numpy(), probs[:, : len(lb)][:, found.matched].sum(-1).numpy(), rtol=1e-9)
    dropped, _ = found.project(probs, unmatched="drop")
    np.testing.assert_allclose(dropped.sum(-1).numpy(), matched.numpy(), rtol=1e-9)
    with pytest.raises(InterfuseError, match=r"input\.shape"):
        found.project(probs[:, :10])


def test_sent_tokens_keep_the_larger_logit() -> None:
    made = tm.VocabularyMap(
        np.array([0, 1, 2, 2]), np.array([7, 7]), np.array([1, 1, 0], np.int8), 9, "a", "b", "exact"
    )
    ids, logits = made.send(np.array([[1, 0, 2]]), np.array([[3.0, 2.0, 1.0]], dtype=np.float32))
    assert ids.tolist() == [[7, 0, 0]]
    assert logits.tolist() == [[3.0, -np.inf, -np.inf]]


def test_maps_are_kept_and_torn_files_refused(tmp_path: Path) -> None:
    _, _, la, lb = both("bytes", "marker")
    ctx = Ctx(cache=tmp_path)
    one = tm.vocabulary_map(lb, la, ctx=ctx)
    (file,) = (tmp_path / "token-maps").iterdir()
    stamp = file.stat().st_mtime_ns
    two = tm.vocabulary_map(lb, la, ctx=ctx)
    assert file.stat().st_mtime_ns == stamp
    assert (one.targets == two.targets).all()
    assert (one.kinds == two.kinds).all()
    tm.vocabulary_map(la, lb, ctx=ctx)
    other = next(f for f in (tmp_path / "token-maps").iterdir() if f != file)
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    with pytest.raises(InterfuseError, match=r"artifact\.damaged"):
        tm.vocabulary_map(lb, la, ctx=ctx)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(InterfuseError, match=r"artifact\.damaged"):
        tm.vocabulary_map(lb, la, ctx=ctx)


def test_key_ignores_settings_of_a_call() -> None:
    tok = tokenizer("bytes")
    before = tokenizer_key(tok)
    tok(["a", "the cat"], padding=True, truncation=True, max_length=2)
    assert tokenizer_key(tok) == before
    assert before != tokenizer_key(tokenizer("bytes", 330))


def test_refusals() -> None:
    _, _, la, lb = both("bytes", "marker")
    with pytest.raises(InterfuseError, match=r"param\.value"):
        tm.vocabulary_map(la, lb, policy="counted")

    class Slow:
        is_fast, name_or_path = False, "slow"

    with pytest.raises(InterfuseError, match=r"needs\.capability"):
        read(Slow(), la, ["a"])


def test_nothing_to_align() -> None:
    a, _, la, lb = both("bytes", "marker")
    none = np.zeros(0, dtype=np.int64)
    found = align_by_edits(np.array([5, 6]), none, la, lb)
    assert isinstance(found, Alignment)
    assert (found.same == -1).all()
    assert (found.first > found.last).all()
    reading = read(a, la, ["the"])[0]
    empty = type(reading)(none, none, none)
    assert (align(reading, empty).same == -1).all()
    assert len(align(empty, reading)) == 0
