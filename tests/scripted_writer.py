"""A language model that plays by a script and writes down what it was asked, so that the same play can be recorded and repeated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interfuse.data.lm import RecordedLM, Reply, Scored, words_of

#: (words of the prompt, number of the sample) -> reply
Play = Callable[[str, int], str]


class Scripted(RecordedLM):
    """Answers by a play; recorded replies of the same play answer alike."""

    def __init__(
        self, play: Play, sure: Callable[[str, str], float] = lambda prompt, text: -1.0, samples: int = 1
    ) -> None:
        self.play, self.sure, self.samples = play, sure, samples
        self.name, self.said, self.scored = "scripted", {}, {}  # type: dict[str, list[str]], dict[tuple[str, str], float]

    def fingerprint(self) -> str:
        return "0" * 64

    def generate(self, prompts: Sequence[Any], *, n: int = 1, **options: Any) -> list[list[Reply]]:
        found = []
        for prompt in prompts:
            texts = [self.play(words_of(prompt), i) for i in range(max(n, self.samples))]
            self.said[json.dumps(prompt)] = texts
            found.append([Reply(t, len(words_of(prompt)) // 4, len(t) // 4 + 1, "stop") for t in texts[:n]])
        return found

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Any = None) -> list[Scored]:
        for pair in pairs:
            self.scored[pair] = self.sure(*pair)
        return [Scored(self.scored[p], 1, (self.scored[p],)) for p in pairs]

    def rows(self) -> list[Mapping[str, Any]]:
        """What it said, as lines of a file of recorded replies."""
        told: list[Mapping[str, Any]] = [{"prompt": json.loads(p), "replies": r} for p, r in self.said.items()]
        return told + [{"prompt": p, "continuation": c, "token_logprobs": [v]} for (p, c), v in self.scored.items()]


def record(file: Path, *players: Scripted) -> str:
    """Writes what players of one play said; gives the source that repeats it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for player in players for row in player.rows()))
    return f"replies:{file}"
