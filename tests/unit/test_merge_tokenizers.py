"""Models that read different tokens: refused, or put into one order of tokens; the union's tokenizer as files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import interfuse
from interfuse.core.errors import InterfuseError
from interfuse.data.vocabulary import Alignment, Reader, Realigned, align, read_ids
from interfuse.data.weights import Weights
from tests.tiny_models import WORDS_X, WORDS_Y, tiny, words

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXT_A = ["the cat sees the red dog and the small bird sings", "lower lowest newer newest wider widest"] * 4
TEXT_B = ["swimming fishes swim in blue waters", "the printing of numbers 12345 and symbols"] * 4


def tokenizer_of(kind, texts, size, special=("<pad>", "<unk>", "<eos>")):
    """A small trained tokenizer of one of the four kinds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = {
        "bpe": (models.BPE(), trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False,
                                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())),
        "wordpiece": (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)),
        "unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=size, special_tokens=list(special), unk_token="<unk>", show_progress=False)),
        "words": (models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(special_tokens=list(special), show_progress=False)),
    }  # fmt: skip
    core = Tokenizer(made[kind][0])
    if kind == "bpe":
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(texts, made[kind][1])
    return core


def reads(folder, name, core, more=()):
    """A tiny Llama with this tokenizer; ``more`` are added tokens."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")
    fast.add_tokens(list(more), special_tokens=True)
    place = tiny(folder, "llama", name, vocab=len(fast)).rename(folder / name)
    fast.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return str(words(folder, "x", WORDS_X)), str(words(folder, "y", WORDS_Y))


def test_other_tokens_are_refused_with_the_remedy(pair, tmp_path):
    with pytest.raises(InterfuseError) as caught:
        interfuse.merge.linear(list(pair), out=tmp_path / "out")
    assert caught.value.code == "input.vocabulary"
    assert "words-x: 11" in caught.value.what
    assert "tokenizer: union" in caught.value.fix


def test_the_same_size_with_other_tokens_is_refused(tmp_path):
    x, y = words(tmp_path, "x", WORDS_X), words(tmp_path, "y", WORDS_X[::-1])
    with pytest.raises(InterfuseError) as caught:
        interfuse.merge.linear([str(x), str(y)], out=tmp_path / "out")
    assert caught.value.code == "input.vocabulary"
    assert "3 is 'the' in words-x and 'small' in words-y" in caught.value.what
    table = json.loads((x / "tokenizer.json").read_text())
    table["added_tokens"][0]["content"] = "<pad>"  # another special token at an id does no harm, and is remarked
    del table["model"]["vocab"]["[PAD]"]
    table["model"]["vocab"]["<pad>"] = 0
    shutil.copytree(x, tmp_path / "z")
    (tmp_path / "z/tokenizer.json").write_text(json.dumps(table))
    made = interfuse.merge.linear([str(x), str(tmp_path / "z")], out=tmp_path / "out")
    assert "'<pad>' in z" in str(json.loads((made.path / "merge.json").read_text())["remarks"])


def test_what_sources_gave_is_told_without_the_tensors_that_were_realigned(pair, tmp_path):
    from interfuse.merge.inspect import explain_all
    from interfuse.merge.verbs import _layers

    made = interfuse.merge.linear(list(pair), tokenizer="union", out=tmp_path / "out")
    found = explain_all(made.path, models=[Path(f) for f in pair])
    assert sorted(found["other shapes"]) == [HEAD, EMBED]
    assert all(row["norms"] == [0, 0] for row in found["layers"] if row["part"] in (EMBED, HEAD))
    assert all(min(row["norms"]) > 0 for row in found["layers"] if row["part"] not in (EMBED, HEAD))
    assert any(line.startswith("without the numbers of") for line in _layers(found))


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_union_rows_by_token(method, pair, tmp_path):
    x, y = pair
    given = {"models": [y], "base": x, "density": 1.0} if method == "ties" else {"models": [x, y]}
    from interfuse.core.rooms import apply

    made = apply(f"merge/{method}", out=tmp_path / "out", tokenizer="union", **given)
    ids = read_ids(made.path)
    order = ["[PAD]", "[UNK]", "[EOS]", *WORDS_X, *(w for w in WORDS_Y if w not in WORDS_X)]
    assert ids == {w: i for i, w in enumerate(order)}
    a, b, got = (load_file(f"{f}/model.safetensors") for f in (x, y, made.path))
    ids_x, ids_y = read_ids(Path(x)), read_ids(Path(y))
    for name in (EMBED, HEAD):
        rows = []
        for token in order:
            mine, theirs = ids_x.get(token), ids_y.get(token)
            one = a[name][mine] if mine is not None else b[name][theirs]  # the only owner's row
            rows.append((one, b[name][theirs] if theirs is not None else one))
        first, second = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
        if method == "linear":
            torch.testing.assert_close(got[name], (first + second) / 2)
        elif method == "ties":
            torch.testing.assert_close(got[name], second)
        else:
            from tests.oracles.merge_methods_oracle import arc

            expected = arc([{name: first.double().numpy()}, {name: second.double().numpy()}], None, t=0.5)[name]
            np.testing.assert_allclose(got[name].numpy(), expected, rtol=1e-5, atol=1e-6)
    report = json.loads((made.path / "merge.json").read_text())["tokenizer"]
    assert report["rows"] == len(order)
    assert (
        report["missing rows from"]["owner"]
        == len(order) - 3 - len([w for w in WORDS_X if w in WORDS_Y]) - (method == "ties") * 3
    )
    assert made.config["vocab_size"] == len(order)


def test_base_and_path_keep_their_tokens(pair, tmp_path):
    x, y = pair
    kept = interfuse.merge.linear([x, y], tokenizer="base", out=tmp_path / "base")
    assert read_ids(kept.path) == read_ids(Path(x))
    other = interfuse.merge.linear([x, y], tokenizer=y, out=tmp_path / "path", pad_to_multiple_of=8)
    assert read_ids(other.path) == read_ids(Path(y))
    assert other.config["vocab_size"] == 16
    rows = load_file(other.path / "model.safetensors")[EMBED]
    torch.testing.assert_close(rows[12:], rows[:12].mean(0).expand(4, -1))
    a, b = load_file(f"{x}/model.safetensors")[EMBED], load_file(f"{y}/model.safetensors")[EMBED]
    torch.testing.assert_close(
        rows[3 + WORDS_Y.index("cat")], (a[3 + WORDS_X.index("cat")] + b[3 + WORDS_Y.index("cat")]) / 2
    )
    torch.testing.assert_close(rows[3 + WORDS_Y.index("fish")], b[3 + WORDS_Y.index("fish")])
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(other.path).get_input_embeddings().weight.shape[0] == 16


def test_single_tokens_by_hand(pair, tmp_path):
    x, y = pair
    tokens = {
        "cat": {"source": 1, "force": True},
        "dog": {"source": {"model": 1, "token": "fish"}},
        "red": {"source": "zero"},
    }
    made = interfuse.merge.linear([x, y], tokenizer="base", tokens=tokens, weight=[1, 0], out=tmp_path / "out")
    a, b, got = (load_file(f"{f}/model.safetensors")[EMBED] for f in (x, y, made.path))
    torch.testing.assert_close(got[3 + WORDS_X.index("cat")], b[3 + WORDS_Y.index("cat")])
    torch.testing.assert_close(
        got[3 + WORDS_X.index("dog")], a[3 + WORDS_X.index("dog")]
    )  # x has its own row, not forced
    second = interfuse.merge.linear([x, y], tokenizer="base", tokens=tokens, weight=[0, 1], out=tmp_path / "second")
    rows = load_file(second.path / "model.safetensors")[EMBED]
    torch.testing.assert_close(rows[3 + WORDS_X.index("dog")], b[3 + WORDS_Y.index("fish")])
    assert rows[3 + WORDS_X.index("red")].abs().max() == 0
    for wrong, words_ in (({"cta": {}}, "Did you mean cat"), ({"cat": {"from": 1}}, "source"), ({"cat": {"source": 5}}, "no model 5"),
                          ({"cat": {"source": {"model": 1, "token": "fihs"}}}, "Did you mean fish")):  # fmt: skip
        with pytest.raises(InterfuseError, match=words_) as caught:
            interfuse.merge.linear([x, y], tokenizer="base", tokens=wrong, out=tmp_path / "no")
        assert caught.value.code == "param.value"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "words"])
def test_unions_of_every_kind_of_tokenizer(kind, tmp_path):
    """Every token of either has its id, special tokens stay whole, ids of the base stay, and the files load alone."""
    from transformers import AutoTokenizer

    size = {"bpe": 300, "unigram": 40}.get(kind, 60)
    a = reads(tmp_path, "a", tokenizer_of(kind, TEXT_A, size), ["<|im_start|>", "<|im_end|>"])
    b = reads(tmp_path, "b", tokenizer_of(kind, TEXT_B, size + 7), ["<|im_end|>", "<|tool|>"])
    made = interfuse.merge.slerp([a, b], tokenizer="union", chat_template="chatml", out=tmp_path / "out")
    first, second, union = (AutoTokenizer.from_pretrained(f) for f in (a, b, made.path))
    ids = union.get_vocab()
    assert {t: ids[t] for t in first.get_vocab()} == first.get_vocab()
    assert set(ids) == {*first.get_vocab(), *second.get_vocab()}
    assert sorted(ids.values()) == list(range(len(ids)))
    for token in ("<|im_start|>", "<|im_end|>", "<|tool|>"):
        assert union(token, add_special_tokens=False)["input_ids"] == [ids[token]]
    report = json.loads((made.path / "merge.json").read_text())
    assert report["tokenizer"]["texts"] == 1000
    assert report["tokenizer"]["segmented as by"]["a"] > 0
    assert load_file(made.path / "model.safetensors")[EMBED].shape[0] == len(ids) == made.config["vocab_size"]
    assert (made.config["eos_token_id"], made.config["pad_token_id"]) == (ids["<eos>"], ids["<pad>"])
    if kind == "bpe":
        text = "the cat swims, lowest 12345 — Zürich 東京"
        assert union.decode(union(text)["input_ids"]) == text
        assert any("merges of b" in remark for remark in report["remarks"])
        long = max(second.get_vocab(), key=len)  # a long token of b is found whole
        assert ids[long] in union(second.convert_tokens_to_string([long]))["input_ids"]
    if kind in ("wordpiece", "words"):
        assert union.tokenize("the fishes") == (
            ["the"] if kind == "words" else first.tokenize("the")
        ) + second.tokenize("fishes")


def test_tokenizers_of_two_kinds_are_refused(tmp_path):
    a, b = (
        reads(tmp_path, "a", tokenizer_of("bpe", TEXT_A, 290)),
        reads(tmp_path, "b", tokenizer_of("words", TEXT_B, 60)),
    )
    with pytest.raises(InterfuseError, match="BPE in a, WordLevel in b") as caught:
        interfuse.merge.linear([a, b], tokenizer="union", out=tmp_path / "out")
    assert caught.value.code == "input.vocabulary"
    made = interfuse.merge.linear([a, b], tokenizer="base", out=tmp_path / "out")  # rows are matched by token even so
    assert read_ids(made.path) == read_ids(tmp_path / "a")


def test_wrong_words_and_missing_tokenizers(pair, tmp_path):
    bare = str(tiny(tmp_path, "llama", "bare", vocab=17))
    cases = [
        ({"models": [*pair], "tokenizer": "unoin"}, "param.value", "Did you mean union"),
        ({"models": [bare, pair[0]], "tokenizer": "union"}, "input.vocabulary", "no tokenizer"),
        ({"models": [pair[0], bare], "tokenizer": "base"}, "input.vocabulary", "cannot be matched"),
        ({"models": [*pair], "tokenizer": "base", "chat_template": "nonsense"}, "param.value", "no chat template"),
    ]
    for given, code, word in cases:
        with pytest.raises(InterfuseError, match=word) as caught:
            interfuse.merge.linear(out=tmp_path / "out", **given)
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()
    (tmp_path / "torn").mkdir()
    for file in Path(pair[1]).iterdir():
        (tmp_path / "torn" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "torn/tokenizer.json").write_text('{"model": {"vocab": 3}}')
    with pytest.raises(InterfuseError) as caught:
        interfuse.merge.linear([pair[0], str(tmp_path / "torn")], tokenizer="union", out=tmp_path / "out")
    assert caught.value.code == "input.format"


def test_a_model_without_tokenizer_is_taken_to_read_the_same(pair, tmp_path):
    bare = str(tiny(tmp_path, "llama", "bare", vocab=11))
    made = interfuse.merge.linear([pair[0], bare], tokenizer="base", out=tmp_path / "out")
    report = json.loads((made.path / "merge.json").read_text())["tokenizer"]
    assert report["assumed to read the base's tokens"] == ["llama-bare"]


def test_rows_in_any_pieces(tmp_path):
    """A realigned tensor read in odd pieces has the bits of the whole; missing rows are means of their owners."""
    generator = torch.Generator().manual_seed(0)
    held = [torch.randn(n, 5, generator=generator) for n in (40, 30, 35)]
    flats = []
    for i, value in enumerate(held):
        save_file({"e": value}, tmp_path / f"{i}.safetensors")
        flats.append(Weights.open(tmp_path / f"{i}.safetensors").source("e"))
    order = torch.randperm(50, generator=generator)
    maps = []
    for i, value in enumerate(held):
        rows = torch.full((60,), -1, dtype=torch.int64)
        rows[order[i * 4 : i * 4 + 30]] = torch.randperm(len(value), generator=generator)[:30]
        rows[10:20] = torch.arange(3, 13)
        maps.append(rows.numpy())
    donors = {}
    for row in range(60):
        owners = tuple((i, int(m[row])) for i, m in enumerate(maps) if m[row] >= 0)
        if 0 < len(owners) < 3:
            donors[row] = owners
    alignment = Alignment({}, 60, tuple(maps), donors)
    flat = Realigned(alignment, 0, flats)
    whole_ = flat.read(0, 300)
    expected = torch.stack([held[0][m] if (m := int(maps[0][r])) >= 0 else
                            torch.stack([held[i][j] for i, j in donors[r]]).double().mean(0).float() if r in donors else torch.zeros(5)
                            for r in range(60)])  # fmt: skip
    empty = [r for r in range(60) if maps[0][r] < 0 and r not in donors]
    full = [r for r in range(60) if r not in empty]
    expected[empty] = expected[full].double().mean(0).float()
    torch.testing.assert_close(whole_.view(60, 5), expected)
    pieces = [flat.read(start, min(start + 7, 300)) for start in range(0, 300, 7)]
    assert torch.cat(pieces).equal(whole_)


def test_alignment_counts_where_rows_come_from(pair, tmp_path):
    x, y = (Path(p) for p in pair)
    readers = [Reader("x", x, 11), Reader("y", y, 12)]
    ids = read_ids(x) | {"new": 11}
    found = align(readers, ids, base=0)
    assert found.report["missing rows from"] == {"base": 3, "owner": 0, "mean of owners": 0, "mean row": 1, "given": 0}
    assert found.maps[1][ids["cat"]] == read_ids(y)["cat"]
    assert found.maps[1][ids["dog"]] == -1
