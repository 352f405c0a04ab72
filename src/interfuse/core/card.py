"""A method's card: the Markdown file beside its code, with checked front matter."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.safe import load_yaml, read_text

STATUSES = ("sketch", "checked", "reproduced")
SHOWN = ("yes", "no", "partly", "open")


@dataclass(frozen=True)
class Claim:
    """One number or direction a paper states, beside what was measured here."""

    what: str
    paper: str
    ours: str = "not measured yet"
    shown: str = "open"
    why: str = ""


@dataclass(frozen=True)
class Card:
    """What a card says. ``takes`` and ``makes`` are empty when the room's own words apply; ``example`` is what follows the method's name
    in a command line that shows its use, where what its inputs and parameters say is not enough."""

    title: str
    status: str
    paper: str = ""
    year: int | None = None
    authors: str = ""
    takes: str = ""
    makes: str = ""
    example: str = ""
    version: int = 1
    experimental: bool = False
    claims: tuple[Claim, ...] = ()
    departs: tuple[str, ...] = ()
    body: str = field(default="", repr=False)

    def bibtex(self, key: str) -> str:
        """A BibTeX entry of the paper behind the method; empty when there is none."""
        if not self.paper:
            return ""
        names = [n.strip().removeprefix("and ") for n in re.split(r"[,;]", self.authors) if n.strip()]
        authors = " and ".join("others" if re.fullmatch(r"(?:and )?(?:\d+ )?others", n) else n for n in names)
        rows = [("title", self.title), ("author", authors), ("year", str(self.year or "")), ("url", self.paper)]
        inner = ",\n".join(f"  {name} = {{{value}}}" for name, value in rows if value)
        return f"@misc{{{key},\n{inner}\n}}"


def read_card(path: Path) -> Card:
    """Reads and checks one card.

    Raises:
        InterfuseError: ``method.card`` naming file and line when a field is unknown, missing or of the wrong type.
    """
    text = read_text(path).replace("\r\n", "\n")
    head, end, body = (text + "\n")[3:].partition("\n---\n")  # the head keeps a first empty line: lines count from ---
    if not text.startswith("---\n") or not end:
        raise InterfuseError("method.card", "the card has no front matter between two lines of ---", where=str(path))
    try:
        raw, lines = load_yaml(head, where=str(path))
    except InterfuseError as error:
        raise InterfuseError("method.card", error.what, where=error.where) from error
    return _card(raw, lines, path, body.strip("\n") + "\n")


def _card(raw: Any, lines: Any, path: Path, body: str) -> Card:
    def fail(message: str, key: str = "") -> InterfuseError:
        line = lines.get((key,))
        return InterfuseError("method.card", message, where=f"{path}:{line}" if line else str(path))

    if not isinstance(raw, dict):
        raise fail("the front matter is not a table of fields")
    known = [f.name for f in fields(Card) if f.name != "body"]
    for key in raw:
        if key not in known:
            raise fail(f"unknown field {key!r}. {did_you_mean(key, known)}", key)
    for f in fields(Card):
        if f.default is MISSING and f.default_factory is MISSING and not raw.get(f.name):
            raise fail(f"the field {f.name!r} is missing")
    kinds: dict[str, type] = {
        "version": int,
        "year": int,
        "experimental": bool,
        "claims": list,
        "departs": list,
    }
    for key, value in raw.items():
        kind = kinds.get(key, str)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise fail(f"the field {key!r} is of the wrong type", key)
    if raw["status"] not in STATUSES:
        raise fail(f"status {raw['status']!r} is not one of {', '.join(STATUSES)}", "status")
    claims = []
    for row in raw.get("claims", []):
        names = [f.name for f in fields(Claim)]
        if not isinstance(row, dict) or not set(row) <= set(names) or not {"what", "paper"} <= set(row):
            raise fail(f"a claim has the fields {', '.join(names)}, of which what and paper are required", "claims")
        if row.get("shown", "open") not in SHOWN:
            raise fail(f"a claim's 'shown' is one of {', '.join(SHOWN)}, not {row['shown']!r}", "claims")
        claims.append(Claim(**{key: str(value) for key, value in row.items()}))
    if not all(isinstance(d, str) for d in raw.get("departs", [])):
        raise fail("'departs' is a list of sentences (quote the ones with a colon)", "departs")
    rest = {key: value for key, value in raw.items() if key not in ("claims", "departs")}
    return Card(**rest, claims=tuple(claims), departs=tuple(raw.get("departs", [])), body=body)
