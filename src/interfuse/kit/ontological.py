"""Small graphs drawn by a model: read from its reply, like names joined, and what connects two topics."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Triple = tuple[str, str, str]
_FORMS = (
    re.compile(r"^\W*\(?\s*([^|()\n]+?)\s*\|\s*([^|\n]+?)\s*\|\s*([^|()\n]+?)\s*\)?\W*$"),
    re.compile(r"^\W*([^\[\]\n]+?)\s*-+\s*\[?([^\[\]\n>-]+?)\]?\s*-+>\s*([^\n]+?)\W*$"),
    re.compile(r"^\W*\(\s*\"?([^,()\n\"]+?)\"?\s*,\s*\"?([^,()\n\"]+?)\"?\s*,\s*\"?([^()\n\"]+?)\"?\s*\)\W*$"),
)


def read_triples(reply: str, longest: int = 60) -> tuple[list[Triple], int]:
    """(node, relation, node) lines of a reply, in three spellings, each once; and how many lines were none.

    Read are ``a | relation | b``, ``a -- relation --> b`` and ``(a, relation, b)``.
    """
    found: dict[Triple, None] = {}
    lost = 0
    for line in reply.splitlines():
        line = re.sub(r"^\s*(?:\d+[.)]|[-*•])\s+", "", line).strip()
        if not line:
            continue
        for form in _FORMS:
            m = form.match(line)
            if m and all(0 < len(p) <= longest for p in m.groups()) and m[1].lower() != m[3].lower():
                found[m[1].strip(), m[2].strip(), m[3].strip()] = None
                break
        else:
            lost += 1
    return list(found), lost


def similarity(first: str, second: str) -> float:
    """In [0, 1]: 1 - edit distance over length, of lower-cased names with plurals folded; different numbers are different names."""
    from rapidfuzz.distance import Levenshtein

    from interfuse.kit.keyphrases import singular

    a, b = (" ".join(singular(w) for w in n.lower().split()) for n in (first, second))
    if re.findall(r"\d+", a) != re.findall(r"\d+", b):
        return 0.0
    return float(Levenshtein.normalized_similarity(a, b))


def joined(triples: Sequence[Triple], threshold: float = 0.9) -> tuple[list[Triple], dict[str, str]]:
    """Triples with like names replaced by the one of higher degree; edges that become loops fall away, parallel ones stay.

    Returns:
        The triples in their order, and every name that was replaced by which.
    """
    degree: dict[str, int] = {}
    for a, _, b in triples:
        degree[a], degree[b] = degree.get(a, 0) + 1, degree.get(b, 0) + 1
    order = sorted(degree, key=lambda n: (-degree[n], n))
    stands: dict[str, str] = {}
    kept: list[str] = []
    for name in order:
        like = next((k for k in kept if similarity(name, k) > threshold), None)
        stands[name] = like or name
        if like is None:
            kept.append(name)
    made = [(stands[a], r, stands[b]) for a, r, b in triples]
    return [t for t in made if t[0] != t[2]], {a: b for a, b in stands.items() if a != b}


@dataclass(frozen=True)
class Bridge:
    """What connects two topics.

    Attributes:
        paths: shortest paths as lists of nodes, fewest steps first. between: nodes on them (the ends left out) with their betweenness
            in the whole graph, highest first. support: per path the smallest confidence of its edges.
        nearest: when nothing connects them, the most similar pair of nodes of the two sides, and how similar they are.
    """

    paths: tuple[tuple[str, ...], ...]
    between: tuple[tuple[str, float], ...]
    support: tuple[float, ...]
    nearest: tuple[str, str, float] | None = None


def network(triples: Sequence[Triple], confidence: Sequence[float] | None = None) -> Any:
    """An undirected multigraph with relations and confidences on its edges (networkx)."""
    import networkx as nx

    graph = nx.MultiGraph()
    for i, (a, r, b) in enumerate(triples):
        graph.add_edge(a, b, relation=r, confidence=1.0 if confidence is None else float(confidence[i]))
    return graph


def bridge(
    triples: Sequence[Triple], first: str, second: str, *, confidence: Sequence[float] | None = None, most: int = 5
) -> Bridge:
    """Shortest paths between two topics; each topic is its most similar node (a node that holds its words comes first)."""
    import networkx as nx

    graph = network(triples, confidence)
    if not graph:
        return Bridge((), (), ())
    a, b = (_node(graph, topic) for topic in (first, second))
    if nx.has_path(graph, a, b):
        plain = nx.Graph(graph)
        paths = sorted(tuple(p) for p in _some(nx.all_shortest_paths(plain, a, b), 1000))[:most]
        central = nx.betweenness_centrality(plain)
        inner = dict.fromkeys(n for p in paths for n in p[1:-1])
        support = tuple(
            min(
                (max(d["confidence"] for d in graph[x][y].values()) for x, y in itertools.pairwise(p)),
                default=1.0,
            )
            for p in paths
        )
        return Bridge(
            tuple(paths), tuple(sorted(((n, float(central[n])) for n in inner), key=lambda r: (-r[1], r[0]))), support
        )
    sides = [sorted(nx.node_connected_component(graph, n)) for n in (a, b)]
    near = max(((similarity(x, y), x, y) for x in sides[0] for y in sides[1]), key=lambda r: r[0])
    return Bridge((), (), (), (near[1], near[2], near[0]))


def _some(items: Any, most: int) -> list[Any]:
    return list(itertools.islice(items, most))


def _node(graph: Any, topic: str) -> str:
    words = topic.lower()
    return str(max(sorted(graph.nodes), key=lambda n: (words in n.lower() or n.lower() in words, similarity(n, topic))))


def measures(triples: Sequence[Triple]) -> dict[str, Any]:
    """Nodes, edges, connected components, mean degree and the nodes of highest betweenness."""
    import networkx as nx

    graph = network(triples)
    if not graph:
        return {"nodes": 0, "edges": 0, "components": 0, "mean degree": 0.0, "bridges": []}
    central = nx.betweenness_centrality(nx.Graph(graph)) if len(graph) <= 2000 else {}
    top = sorted(central.items(), key=lambda r: (-r[1], r[0]))[:10]
    return {"nodes": len(graph), "edges": graph.number_of_edges(), "components": nx.number_connected_components(graph),
            "mean degree": 2 * graph.number_of_edges() / len(graph), "bridges": [[n, float(v)] for n, v in top if v > 0]}  # fmt: skip
