"""Slow and obvious: clusters by merging sets, and a hierarchy by walking every path."""

from __future__ import annotations


def hierarchy(names: list[str], single: list[tuple[str, str]], edges: list[tuple[str, str]]) -> tuple[list[int], bool]:
    """Sizes of the connected parts of ``single``, largest first; and whether ``edges`` make one tree under one root."""
    parts = [{n} for n in names]
    for a, b in single:
        one, other = (next(p for p in parts if x in p) for x in (a, b))
        if one is not other:
            parts.remove(other)
            one |= other
    up: dict[str, set[str]] = {n: set() for n in names}
    for child, parent in edges:
        up[child].add(parent)
    fine = all(len(p) <= 1 for p in up.values()) and sum(not p for p in up.values()) == 1
    for start in names:
        walk, now = [start], start
        while fine and up[now]:
            now = next(iter(up[now]))
            fine = now not in walk
            walk.append(now)
    return sorted(map(len, parts), reverse=True), fine
