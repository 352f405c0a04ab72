"""From what an artifact was made: nouns and their parents as a graph, oldest first.

Every noun of the house has ``name`` and may have ``made_by`` (the id of a method) and ``parents``. A noun opened from a
folder that Interfuse has written tells the names of its inputs in the folder's manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from interfuse.core.artifact import MANIFEST, open_artifact


def recorded(noun: Any) -> dict[str, Any]:
    """What the manifest in a noun's folder says (``method``, ``inputs`` ...); empty when there is none.

    Raises:
        InterfuseError: ``artifact.damaged``.
    """
    path = getattr(noun, "path", None)
    if getattr(noun, "made_by", "") or not isinstance(path, Path) or not (path / MANIFEST).is_file():
        return {}
    return dict(open_artifact(path).manifest)


def kind_of(noun: Any) -> str:
    """``model``, ``table``, ``graph``, ``report`` ...: the noun's class; ``configuration`` for a model without weights."""
    name = type(noun).__name__.lower()
    bare = name == "model" and not noun.made_by and noun.path is None and noun.module is None
    return "configuration" if bare else name


def ancestors(noun: Any) -> Iterator[Any]:
    """Every noun a noun was made from, nearest first, each once."""
    seen: dict[int, Any] = {}
    queue = list(getattr(noun, "parents", ()))
    while queue:
        parent = queue.pop(0)
        if id(parent) not in seen:
            seen[id(parent)] = parent
            yield parent
            queue += getattr(parent, "parents", ())


def lineage(nouns: Sequence[Any], *, into: str = "", made_by: str = "") -> dict[str, list[Any]]:
    """The graph of some nouns and all they were made from.

    Args:
        nouns: the youngest nouns. into: name of a report made from all of them, drawn last; ``made_by`` its method.

    Returns:
        ``nodes``: tables with ``name``, ``kind``, ``made_by`` and ``layer`` (0 is the oldest; a node stands right of all its
        parents); ``edges``: pairs ``[parent, child]`` of positions in ``nodes``.

    Raises:
        InterfuseError: ``artifact.damaged`` when the manifest of a noun's folder cannot be read.
    """
    nodes: list[dict[str, Any]] = []
    edges: list[list[int]] = []
    place: dict[tuple[str, str, str], int] = {}

    def add(kind: str, name: str, print_: str, made_by: str) -> tuple[int, bool]:
        slot = (kind, name, print_)
        if slot in place:
            return place[slot], False
        place[slot] = len(nodes)
        nodes.append({"name": name, "kind": kind, "made_by": made_by, "layer": 0})
        return place[slot], True

    def visit(noun: Any) -> int:
        manifest = recorded(noun)
        made_by = str(getattr(noun, "made_by", "") or manifest.get("method", ""))
        here, new = add(kind_of(noun), noun.name, noun.fingerprint(), made_by)
        if new:
            parents = [visit(p) for p in getattr(noun, "parents", ())]
            for replica in manifest.get("inputs", [])[:1]:
                for key, value in replica.items():
                    for row in value if isinstance(value, list) else [value]:
                        kind = "table" if key in ("data", "validation", "examples", "calibration") else "model"
                        parents.append(add(kind, str(row["name"]), str(row["fingerprint"]), "")[0])
            edges.extend([p, here] for p in dict.fromkeys(parents))
        return here

    last = [visit(noun) for noun in nouns]
    if into:
        here, _ = add("report", into, "", made_by)
        edges.extend([p, here] for p in dict.fromkeys(last))
    for _ in nodes:  # at most one step per node: the graph has no cycles
        for parent, child in edges:
            nodes[child]["layer"] = max(nodes[child]["layer"], nodes[parent]["layer"] + 1)
    children: dict[int, list[int]] = {}
    for parent, child in edges:
        children.setdefault(parent, []).append(nodes[child]["layer"])
    for i, node in enumerate(nodes):  # what stands at the start moves beside the first thing it is used for
        if node["layer"] == 0 and i in children:
            node["layer"] = min(children[i]) - 1
    return {"nodes": nodes, "edges": sorted(edges)}
