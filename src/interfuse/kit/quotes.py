"""Where in a text a quotation stands: exactly, but for white space and quotation marks, or nearly."""

from __future__ import annotations

import re

_SAME = str.maketrans({"“": '"', "”": '"', "„": '"', "’": "'", "‘": "'", "–": "-", "—": "-", "\u00a0": " ", "−": "-"})


def find_quote(text: str, quote: str, *, nearly: float = 0.9, start: int = 0) -> tuple[int, int, float] | None:
    """(start, end, similarity) of a quotation in a text, or None.

    Args:
        nearly: the least similarity (of characters, in [0, 1]) of a passage that counts. start: occurrences from here on come first.
    """
    bare = quote.strip().strip("\"'“”‘’").rstrip(".… ").strip()
    if not bare:
        return None
    for begin in (start, 0):
        at = text.find(bare, begin)
        if at >= 0:
            return at, at + len(bare), 1.0
    plain, wanted = text.translate(_SAME), bare.translate(_SAME)
    loose = re.compile(r"\s+".join(re.escape(w) for w in wanted.split()[:400]), re.IGNORECASE)
    match = loose.search(plain, start) or loose.search(plain)
    if match is not None:
        return match.start(), match.end(), 1.0
    if nearly >= 1.0 or len(wanted) < 8 or len(wanted) > 1.5 * len(text):
        return None
    from rapidfuzz import fuzz

    found = fuzz.partial_ratio_alignment(wanted.casefold(), plain.casefold(), score_cutoff=100 * nearly)
    if found is None or len(plain.casefold()) != len(plain):
        return None
    left, right = found.dest_start, found.dest_end
    while left > 0 and text[left - 1].isalnum() and text[left].isalnum():
        left -= 1
    while right < len(text) and text[right].isalnum() and text[right - 1].isalnum():
        right += 1
    return left, right, found.score / 100
