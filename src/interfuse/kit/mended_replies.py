"""Replies of language models as records, whatever is wrong with their JSON: each record is mended by itself, losses are counted.

Handled: words around the JSON, code fences, missing commas and brackets, trailing commas, single and curly quotes, bare keys, Python's
and JavaScript's literals, comments, line ends in strings, unescaped quotes, a reply that is cut off, records one per line, lists of
lists, triples in parentheses.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interfuse.core.errors import InterfuseError

#: characters of a reply that are looked at
MAX_REPLY = 2 * 2**20
_CURLY = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"'})
_TUPLE = re.compile(r"[(\[]\s*([^()\[\]{}\n]{1,2000}?)\s*[)\]]")


@dataclass
class Records:
    """What a reply held: its records, how many could not be saved, and whether anything had to be mended."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    lost: int = 0
    mended: int = 0


def records(reply: str, fields: Sequence[str], *, needed: Sequence[str] = ()) -> Records:
    """The records of a reply.

    Args:
        fields: names of a record's fields, in the order of a triple. needed: those without which a record is lost (all when empty).
    """
    text = reply[:MAX_REPLY]
    needed = tuple(needed or fields)
    whole = _whole(text)
    if whole is not None:
        found = Records()
        for item in _lists(whole, needed):
            row = _named(item, fields)
            if row is not None and _has(row, needed):
                found.rows.append(row)
            else:
                found.lost += 1
        if (
            found.rows
            or found.lost
            or whole in ([], {})
            or (isinstance(whole, dict) and any(v == [] for v in whole.values()))
        ):
            return found
    return _piecewise(text, fields, needed)


def json_value(text: str) -> Any:
    """The one JSON value of a reply: all of it, what stands in a code fence, or what begins at the first bracket.

    Raises:
        InterfuseError: ``input.format`` when there is none.
    """
    found = _whole(text[:MAX_REPLY])
    start = re.search(r"[\[{]", text) if found is None else None
    if start:
        try:
            found = json.JSONDecoder().raw_decode(text[start.start() : MAX_REPLY])[0]
        except (ValueError, RecursionError):
            found = None
    if found is None:
        raise InterfuseError("input.format", f"the reply holds no JSON that can be read: {text[:120]!r}")
    return found


def _whole(text: str) -> Any:
    bare = text.strip().removeprefix("\ufeff")
    fence = re.search(r"```[a-zA-Z]*\s*\n(.*?)```", bare, re.DOTALL)
    for candidate in (bare, fence.group(1) if fence else ""):
        if candidate:
            try:
                return json.loads(candidate)
            except (ValueError, RecursionError):
                continue
    return None


def _lists(value: Any, needed: Sequence[str]) -> list[Any]:
    """The items that look like records, wherever they stand in a parsed reply."""
    found: list[Any] = []
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, dict):
            if any(_key(k) in {_key(n) for n in needed} for k in item):
                found.append(item)
            elif depth < 8:
                stack += [(v, depth + 1) for v in reversed(list(item.values()))]
        elif isinstance(item, list):
            if item and len(item) >= len(needed) and all(isinstance(v, str | int | float) for v in item):
                found.append(item)
            elif depth < 8:
                stack += [(v, depth + 1) for v in reversed(item)]
    return found


def _key(name: Any) -> str:
    return re.sub(r"[\W_]+", "", str(name).casefold())


def _named(item: Any, fields: Sequence[str]) -> dict[str, Any] | None:
    if isinstance(item, list):
        return dict(zip(fields, item, strict=False))
    known = {_key(f): f for f in fields}
    return {known[_key(k)]: v for k, v in item.items() if _key(k) in known} if isinstance(item, dict) else None


def _has(row: Mapping[str, Any], needed: Sequence[str]) -> bool:
    return all(isinstance(row.get(n), str | int | float) and str(row[n]).strip() not in ("", "...") for n in needed)


def _piecewise(text: str, fields: Sequence[str], needed: Sequence[str]) -> Records:
    """Record by record: every innermost pair of braces, else triples in brackets."""
    found = Records()
    text = text.translate(_CURLY)
    for piece, closed in _objects(text):
        row = _mend(piece, fields)
        if row is not None and _has(row, needed):
            found.rows.append(row)
            found.mended += 1
        elif (closed and any(re.search(rf"\b{re.escape(n)}\b", piece) for n in needed)) or (
            not closed and re.search(r"\w", piece)
        ):
            found.lost += 1
    if not found.rows and not found.lost:
        for match in _TUPLE.finditer(text):
            parts = [p.strip().strip("\"'“”") for p in re.split(r"\s*[,;|]\s*", match.group(1))]
            if len(parts) == len(needed) and all(parts):
                found.rows.append(dict(zip(needed, parts, strict=True)))
                found.mended += 1
    return found


def _objects(text: str) -> list[tuple[str, bool]]:
    """Innermost ``{...}`` pieces in order; one that is cut off is given without its end. Braces within strings do not count."""
    pieces: list[tuple[str, bool]] = []
    start, i, quote = -1, 0, ""
    while i < len(text):
        c = text[i]
        if quote:
            if c == "\\":
                i += 1
            elif c == quote and re.match(r"\s*[,:}\]\n]|\s*\Z|\s*//", text[i + 1 : i + 40]):
                quote = ""
            elif c in "{}" and re.match(r"\}\s*[,\]}]|\}\s*\n|\{\s*[\"']\w+[\"']\s*:", text[i : i + 60]):
                quote = ""  # the string was never closed
                continue
        elif c == '"' or (c == "'" and re.search(r"[{,:\[]\s*\Z", text[max(0, i - 20) : i])):
            quote = c
        elif c == "{":
            if (
                start >= 0
                and text[start + 1 : i].strip()
                and re.search(r"[\"']?\w+[\"']?\s*:\s*[\"'\w]", text[start + 1 : i])
                and "[" not in text[start:i]
            ):
                pieces.append((text[start:i], False))  # its end is missing
            start = i
        elif c == "}":
            if start >= 0:
                pieces.append((text[start : i + 1], True))
            start = -1
        i += 1
    if start >= 0:
        pieces.append((text[start:], False))
    return pieces


def _mend(piece: str, fields: Sequence[str]) -> dict[str, Any] | None:
    body = piece.strip()
    body = body if body.endswith("}") else body + "}"
    for candidate in (body, _tidy(body)):
        try:
            value = json.loads(candidate, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return _named(value, fields)
    try:
        value = ast.literal_eval(body)
        if isinstance(value, dict):
            return _named(value, fields)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        pass
    return _by_fields(piece, fields)


def _tidy(body: str) -> str:
    body = re.sub(r"(?m)(?<![:\"'])//[^\n]*$", "", body)
    body = re.sub(r"/\*.{0,2000}?\*/", "", body, flags=re.DOTALL)
    body = re.sub(r",(\s*[}\]])", r"\1", body)
    body = re.sub(r"([{,]\s*)([A-Za-z_][\w ]{0,40}?)\s*:", r'\1"\2":', body)
    body = re.sub(r"\b(None|undefined|NaN)\b(?=\s*[,}])", "null", body)
    body = re.sub(r"\bTrue\b(?=\s*[,}])", "true", re.sub(r"\bFalse\b(?=\s*[,}])", "false", body))
    return re.sub(r"([\"\d])(\s*\n\s*)(\")", r"\1,\2\3", body)


def _by_fields(piece: str, fields: Sequence[str]) -> dict[str, Any] | None:
    """Fields by their names, each up to the next one's name."""
    names = "|".join(re.escape(f) for f in sorted(fields, key=len, reverse=True))
    marks = list(
        re.finditer(rf"(?:^|[{{,;\n\s])\s*[\"'`*]{{0,3}}({names})[\"'`*]{{0,3}}\s*[:=]\s*", piece, re.IGNORECASE)
    )
    if not marks:
        return None
    row: dict[str, Any] = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        end = following.start() if following is not None else len(piece)
        value = piece[mark.end() : end].strip().rstrip("}]").strip().rstrip(",;").strip()
        value = value.strip("`*")
        if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
            value = value[1:-1]
        value = value.strip("\"'").replace('\\"', '"').replace("\\n", " ").strip()
        known = {f.casefold(): f for f in fields}
        if value:
            row.setdefault(known[mark.group(1).casefold()], value)
    return row or None
