"""Licences of a merge's sources, as their model cards state them, for the card of the result.

Nothing is read into them: a licence is the name in the front matter. Of a few well-known ones it is known what they ask of
whoever passes a changed work on; one that asks all that the others ask is the most restrictive. Of licences neither of which
asks all that the other does, and of unknown ones, nothing is said.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import load_yaml, read_text
from interfuse.data.models import Model

_NOTICE, _CHANGES = "keep the notice", "say what was changed"
_LESSER, _COPYLEFT, _NETWORK = (
    "share the library's source",
    "share all source",
    "share the source with users of a service",
)
_ALIKE, _UNPAID = "share alike", "no commercial use"
#: licence -> what it asks; identifiers as the Hub has them
ASKS: Mapping[str, frozenset[str]] = {
    name: frozenset(asked)
    for names, asked in (
        (("cc0-1.0", "unlicense"), ()),
        (("mit", "bsd-2-clause", "bsd-3-clause", "isc"), (_NOTICE,)),
        (("apache-2.0", "cc-by-4.0"), (_NOTICE, _CHANGES)),
        (("lgpl-3.0",), (_NOTICE, _CHANGES, _LESSER)),
        (("gpl-3.0",), (_NOTICE, _CHANGES, _LESSER, _COPYLEFT)),
        (("agpl-3.0",), (_NOTICE, _CHANGES, _LESSER, _COPYLEFT, _NETWORK)),
        (("cc-by-sa-4.0",), (_NOTICE, _CHANGES, _ALIKE)),
        (("cc-by-nc-4.0",), (_NOTICE, _CHANGES, _UNPAID)),
        (("cc-by-nc-sa-4.0",), (_NOTICE, _CHANGES, f"{_ALIKE}, {_UNPAID}", _UNPAID)),
    )
    for name in names
}


def licence_of(model: Model) -> str:
    """The licence a model's card states; of an adapter on a base both, of a merge that is not written those of its sources, where they
    differ; "" where none is stated."""
    if model.computed is None:
        return _stated(model.path) if model.path is not None else ""
    from interfuse.data.adapted import AdaptedModel, AdaptedResult
    from interfuse.merge.prepare import everyone
    from interfuse.merge.unwritten import Unwritten

    if isinstance(model.computed, Unwritten):
        each = [licence_of(source) for source in everyone(model.computed.call)]
        return " and ".join(dict.fromkeys(each)) if all(each) else ""
    if isinstance(model.computed, AdaptedModel | AdaptedResult):
        under = model.computed.base
        base = _stated(under) if isinstance(under, Path) else licence_of(dataclasses.replace(model, computed=under))
        found = [_stated(model.computed.adapter), base]
        return " and ".join(dict.fromkeys(f for f in found if f))
    return ""


def _stated(folder: Path) -> str:
    file = folder / "README.md"
    if not file.is_file():
        return ""
    try:
        head, end, _ = read_text(file).replace("\r\n", "\n").partition("\n---\n")
        raw, _ = load_yaml(head[4:], where=str(file)) if head.startswith("---\n") and end else ({}, {})
    except InterfuseError:  # a card nobody can read states nothing
        return ""
    if not isinstance(raw, Mapping):
        return ""
    named = raw.get("license_name") if raw.get("license") == "other" else None
    given = named or raw.get("license") or ""
    words = [w for w in (given if isinstance(given, list) else [given]) if isinstance(w, str)]
    return " or ".join(re.sub(r"[^\w.+-]+", "-", w.strip())[:80] for w in words if w.strip())


def strictest(licences: Sequence[str]) -> str:
    """The one of several licences that asks all that the others ask; "" where that cannot be known."""
    if not all(name.lower() in ASKS for name in licences):
        return ""
    return next((n for n in licences if all(ASKS[n.lower()] >= ASKS[other.lower()] for other in licences)), "")


def told_of(models: Sequence[Model]) -> tuple[list[str], list[str]]:
    """The licence of every source ("" where its card states none), and what is to be said of them together."""
    licences = [licence_of(model) for model in models]
    named = list(dict.fromkeys(name for name in licences if name))
    said = []
    if len(named) > 1:
        most = strictest(named)
        last = f"the most restrictive is {most}" if most else "which one is the most restrictive cannot be told"
        said.append(
            f"The sources' licences differ ({', '.join(named)}); {last}. Read them before passing the merge on."
        )
    if named and not all(licences):
        silent = ", ".join(dict.fromkeys(m.name for m, name in zip(models, licences, strict=True) if not name))
        said.append(f"No licence is stated by the card of: {silent}.")
    return licences, said
