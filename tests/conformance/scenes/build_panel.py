"""HyDRA's scene: documents, and the replies of a scripted panel that were recorded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.cases import Case
from tests.conformance.fixtures import Scene
from tests.conformance.scenes.build_documents import documents
from tests.scripted_panel import ScriptedPanel

SENTENCES = {
    "one.txt": "Grieg was born in Bergen. Bergen lies in Norway.",
    "two.txt": "Oslo lies in Norway. Oslo was founded in 1048.",
}


def panel(case: Case, path: Path) -> Scene:
    """A folder of two texts; the panel is played by script and taped."""
    import interfuse

    place = path / "panel"
    folder, tape, alone = place / "texts", place / "tape.jsonl", place / "alone"
    given = dict(case.given.items())
    if not tape.is_file():
        for where, names in ((folder, list(SENTENCES)), (alone, ["one.txt"])):
            where.mkdir(parents=True, exist_ok=True)
            for name in names:
                (where / name).write_text(SENTENCES[name])
        for seed, where in ((0, folder), (1, folder), (0, alone)):
            interfuse.build.hydra(str(where), lm=ScriptedPanel(0.4, seed=seed, record=place / "draft.jsonl"), out=place / f"made-{where.name}-{seed}", seed=seed,
                                  ctx=interfuse.Ctx(cache=place / f"cache-{where.name}-{seed}"), **given)  # fmt: skip
        (place / "draft.jsonl").rename(tape)
    scene = documents(replace(case, given={}), path)
    bad = {**scene.bad, "one_row": [replace(scene.bad["one_row"][0], given={"documents": str(alone)})]}
    given = {"documents": str(folder), "lm": f"replies:{tape}", **given}
    return replace(
        scene, given=given, in_memory=lambda: {**given, "documents": dict(SENTENCES)}, files=place, bad=bad, compare=_compared,
        not_applicable={**{k: v for k, v in scene.not_applicable.items() if k != "matches_oracle"},
                        "resume_equals_one_go": "what is paid for, a model's replies, is kept by content; the rest takes an instant"},
    )  # fmt: skip


def _compared(oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """How many clusters random hierarchies have, and whether random proposals are let in."""
    from interfuse.kit.ontology_growth import Concepts, clusters, issues

    rng, pairs = np.random.Generator(np.random.Philox(4)), []
    for n in range(60):
        names = [f"C{i}" for i in range(int(rng.integers(2, 9)))]
        edges = [(names[i], names[j]) for i, j in rng.integers(0, len(names), (int(rng.integers(1, 9)), 2))]
        single = list({c: (c, p) for c, p in reversed(edges)}.values())
        sizes, fine = oracle(names, single, edges)
        pairs.append(
            (f"clusters {n}", [len(c) for c in clusters(Concepts(dict.fromkeys(names, ""), tuple(single)))], sizes)
        )
        pairs.append(
            (
                f"let in {n}",
                float(not issues(Concepts(), Concepts(dict.fromkeys(names, ""), tuple(edges)))),
                float(fine),
            )
        )
    return pairs


FURNISHED = {"panel": panel}
