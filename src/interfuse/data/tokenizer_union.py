"""One tokenizer that knows the tokens of several, written as files and tried out before anybody relies on it.

The union keeps every id of the first tokenizer. New plain tokens join the vocabulary of the segmentation model itself: as added
tokens they would be cut out of the middle of words before the model sees the text. The merges of a byte-pair vocabulary
(Sennrich et al. 2016) follow after the first one's, so texts are segmented as before and only then joined further; the
segmentation is therefore not that of either source, and the report says how often it differs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import canonical_json, read_text

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
#: the one conversation format that is written without a source's template
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.", "  leading and   inner spaces ", "def f(x):\n\treturn x ** 2  # naïve",
    "Zürich, São Paulo, Kraków, Αθήνα, Москва, 東京, 서울, القاهرة, दिल्ली", "1234567890 3.14159 -1e-9 0x7f", "e=mc² ½ ☕ 🎉🏽",
    "don't we'll I'm they've", "https://example.org/a?b=c&d=%20e#f", "<html><body>&amp;</body></html>", "A\u0301 versus Á", "",
)  # fmt: skip


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """A folder's tokenizer as the table that ``tokenizer.json`` holds; made by ``transformers`` where only older files are there.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            ).backend_tokenizer
        except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
            raise InterfuseError(
                "input.missing", "the folder has no tokenizer that can be read", where=str(folder)
            ) from error
        return dict(json.loads(backend.to_str()))
    try:
        found = json.loads(read_text(path, limit=1 << 28))
        _ = _ids(found)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InterfuseError("input.format", "the tokenizer cannot be read", where=str(path)) from error
    return dict(found)


def _ids(table: Mapping[str, Any]) -> dict[str, int]:
    vocab = table["model"]["vocab"]
    plain = vocab if isinstance(vocab, dict) else {piece[0]: i for i, piece in enumerate(vocab)}
    pairs = [*plain.items(), *((row["content"], row["id"]) for row in table.get("added_tokens") or ())]
    return {str(token): int(row) for token, row in pairs}


def unite(
    tables: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """The union of tokenizers: the ids of the first stay, new tokens follow in the order of their source and id there.

    Args:
        tables: as :func:`read_tokenizer` gives them. names: what they are called in errors.

    Returns:
        The table of the union, its token -> id, and remarks.

    Raises:
        InterfuseError: ``input.vocabulary`` when the tokenizers are of different kinds.
    """
    made = json.loads(json.dumps(tables[0]))
    kind = made["model"].get("type", "BPE")
    ids = _ids(made)
    last = max(ids.values(), default=-1)
    remarks: list[str] = []
    unigram = not isinstance(made["model"]["vocab"], dict)
    added = {row["content"]: row for row in made.get("added_tokens") or ()}
    if not unigram:
        made["model"]["vocab"] = dict(
            sorted(ids.items(), key=lambda item: item[1])
        )  # added tokens too: their ids stay theirs
    for table, name in zip(tables[1:], names[1:], strict=True):
        other = table["model"].get("type", "BPE")
        if other != kind:
            raise InterfuseError("input.vocabulary", f"the tokenizers are of different kinds: {kind} in {names[0]}, {other} in {name}",
                                 fix="Use tokenizer: base, or the folder of one of them.")  # fmt: skip
        theirs = {row["content"]: row for row in table.get("added_tokens") or ()}
        for token, _ in sorted(_ids(table).items(), key=lambda item: item[1]):
            if token in ids:
                continue
            last += 1
            ids[token] = last
            if not unigram:
                made["model"]["vocab"][token] = ids[token]
            if token in theirs or unigram:
                plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
                added[token] = {**plain, **theirs.get(token, {}), "content": token, "id": ids[token]}
        for token, row in theirs.items():
            if token not in added and token in ids:
                added[token] = {**row, "id": ids[token]}
        if kind == "BPE":
            joined = _join_merges(made["model"], table["model"], ids)
            if joined:
                remarks.append(
                    f"{joined} merges of {name} follow after those of {names[0]}: texts may be joined further than before"
                )
    if unigram and len(tables) > 1:
        remarks.append("pieces of the other tokenizers are added tokens: the segmentation is not the union of the two")
    made["added_tokens"] = sorted(added.values(), key=lambda row: row["id"])
    return made, ids, remarks


def _join_merges(mine: dict[str, Any], theirs: Mapping[str, Any], ids: Mapping[str, int]) -> int:
    """Appends the merges whose parts and result are tokens of the union; returns how many."""

    def pair(merge: Any) -> tuple[str, str]:
        first, _, second = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
        return first, second

    held = {pair(m) for m in mine.get("merges") or ()}
    as_text = bool(mine.get("merges")) and isinstance(mine["merges"][0], str)
    new = []
    for merge in theirs.get("merges") or ():
        first, second = pair(merge)
        if (first, second) not in held and first in ids and second in ids and first + second in ids:
            new.append(f"{first} {second}" if as_text else [first, second])
    mine["merges"] = [*(mine.get("merges") or ()), *new]
    return len(new)


def write_tokenizer(folder: Path, settings_from: Path, table: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Writes a tokenizer's files into a model folder.

    Args:
        folder: where. settings_from: the folder whose ``tokenizer_config.json`` and chat template it takes over.
        table: what ``tokenizer.json`` shall hold. ids: token -> id, for the settings' list of added tokens.
    """
    (folder / TOKENIZER).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    path = settings_from / SETTINGS
    settings = json.loads(read_text(path)) if path.is_file() else {}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the files of other classes are not written
    settings["added_tokens_decoder"] = {
        str(row["id"]): {k: v for k, v in row.items() if k != "id"} for row in table.get("added_tokens") or ()
    }
    (folder / SETTINGS).write_bytes(canonical_json(settings))
    if (settings_from / TEMPLATE).is_file():
        (folder / TEMPLATE).write_bytes((settings_from / TEMPLATE).read_bytes())


def check_template(wanted: str) -> None:
    """Raises ``param.value`` unless the word is ``auto``, ``chatml`` or a Jinja text."""
    if wanted not in ("auto", "chatml") and "{" not in wanted:
        raise InterfuseError("param.value", f"there is no chat template {wanted!r}", where="chat_template",
                             fix="auto, chatml, or the Jinja text itself.")  # fmt: skip


def write_template(folder: Path, wanted: str, sources: Sequence[Path | None]) -> None:
    """Sets the chat template: ``auto`` (the commonest of the sources), ``chatml``, or the Jinja text itself.

    Raises:
        InterfuseError: ``param.value`` for another word, ``input.missing`` for a folder without tokenizer.
    """
    check_template(wanted)
    if wanted == "auto":
        found = [text for text in (_template(s) for s in sources if s is not None) if text]
        if not found:
            return
        wanted = max(dict.fromkeys(found), key=found.count)
    elif wanted == "chatml":
        wanted = CHATML
    path = folder / SETTINGS
    if not path.is_file():
        raise InterfuseError(
            "input.missing", "a chat template needs a tokenizer, and the result has none", where="chat_template"
        )
    settings = json.loads(read_text(path))
    settings.pop("chat_template", None)
    path.write_bytes(canonical_json(settings))
    (folder / TEMPLATE).write_text(wanted, encoding="utf-8")


def _template(folder: Path) -> str:
    if (folder / TEMPLATE).is_file():
        return read_text(folder / TEMPLATE).strip()
    found = json.loads(read_text(folder / SETTINGS)).get("chat_template") if (folder / SETTINGS).is_file() else None
    return found.strip() if isinstance(found, str) else ""


def try_out(
    folder: Path, ids: Mapping[str, int], rows: int, sources: Sequence[tuple[str, Path]], *, count: int = 1000
) -> dict[str, Any]:
    """Loads the tokenizer, saves and loads it once more, and encodes texts with both.

    Args:
        folder: the merged model. ids: the ids its tokens must have. rows: rows of its embedding.
        sources: name and folder of tokenizers whose segmentation is compared. count: number of texts.

    Returns:
        Numbers of texts, and of those segmented as each source does.

    Raises:
        InterfuseError: ``run.failed`` when an id is wrong or too large, or the copy encodes otherwise.
    """
    from transformers import AutoTokenizer

    def load(place: Path) -> Any:
        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)

    tokenizer = load(folder)
    held = tokenizer.get_vocab()
    wrong = [t for t, row in ids.items() if held.get(t) != row]
    if wrong:
        raise InterfuseError("run.failed", f"{len(wrong)} tokens of the merged tokenizer have another id, the first is {wrong[0]!r}",
                             where=str(folder), fix="Use tokenizer: base.")  # fmt: skip
    names = sorted(ids, key=lambda token: ids[token])
    step = max(1, len(names) // max(count, 1))
    texts = [*_SENTENCES, *(tokenizer.decode([ids[names[i]], ids[names[-1 - i]]]) for i in range(0, len(names), step))]
    texts = (texts * (count // len(texts) + 1))[:count]
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        again = load(Path(place))
        encoded = [tokenizer(text)["input_ids"] for text in texts]
        for text, row in zip(texts, encoded, strict=True):
            if again(text)["input_ids"] != row or any(not 0 <= i < rows for i in row):
                raise InterfuseError("run.failed", f"the merged tokenizer encodes {text!r} otherwise once it is saved, or beyond the embedding",
                                     where=str(folder), fix="Use tokenizer: base.")  # fmt: skip
    same = {}
    for name, source in sources:
        theirs = load(source)
        pieces = [theirs.convert_ids_to_tokens(theirs(text)["input_ids"]) for text in texts]
        same[name] = sum(tokenizer.convert_ids_to_tokens(e) == p for e, p in zip(encoded, pieces, strict=True))
    return {"texts": len(texts), "segmented as by": same}
