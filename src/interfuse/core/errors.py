"""One family of errors: what happened, where, and what to do, under a stable code.

Every error the library raises on purpose is an :class:`InterfuseError`. Its ``code`` is one of :data:`CODES`,
never changes its meaning, and is what a program should test; the words may improve between versions.
"""

from __future__ import annotations

from collections.abc import Iterable

#: code -> (exit status of the command line, meaning). The docs page ``errors.md`` is checked against this table.
CODES: dict[str, tuple[int, str]] = {
    "method.unknown": (2, "no method, recipe or map has this name"),
    "method.card": (3, "a method's card is missing, malformed or disagrees with its code"),
    "param.unknown": (2, "the method has no parameter or input of this name"),
    "param.value": (2, "a parameter has the wrong type or lies outside its range"),
    "param.missing": (2, "a required input or parameter is not given"),
    "recipe.syntax": (3, "the recipe is not plain YAML (tags, duplicate keys, bad indentation, too large)"),
    "recipe.key": (3, "the recipe has a key or a name that does not exist"),
    "recipe.cycle": (3, "steps of the recipe need each other"),
    "input.missing": (3, "a file, folder, column or label that the work needs is not there"),
    "input.empty": (3, "there is nothing to work on"),
    "input.nan": (3, "a number is NaN or infinite"),
    "input.type": (3, "the input is of another kind than the work needs"),
    "input.shape": (3, "shapes or counts of two inputs do not fit each other"),
    "input.vocabulary": (3, "two models do not read the same tokens"),
    "input.duplicate": (3, "the same name or identifier occurs twice"),
    "input.leak": (3, "an item that is to be measured on was also trained on"),
    "input.limit": (3, "the input is larger than the stated limit"),
    "input.format": (3, "the file is damaged or is not of the format its name says"),
    "unsafe.pickle": (3, "weights or data are a pickle, which can run code when opened"),
    "unsafe.code": (3, "the model folder brings program code of its own"),
    "unsafe.path": (3, "a path leads outside the folder it belongs to"),
    "unsafe.address": (3, "an address is not one that may be fetched"),
    "output.exists": (3, "the output place is taken, and overwriting was not asked for"),
    "output.busy": (3, "another process is writing to this place"),
    "output.space": (3, "the disk has not enough room"),
    "output.write": (1, "writing failed; what was there before is untouched"),
    "artifact.damaged": (3, "an artifact's files do not match what its manifest says"),
    "needs.package": (3, "an optional package is not installed"),
    "needs.capability": (3, "the model, endpoint or data cannot give what the method needs"),
    "endpoint.failed": (1, "a model endpoint did not give a usable answer"),
    "budget.spent": (4, "the work would cost more than the budget allows"),
    "run.failed": (1, "the work began and could not be finished"),
}


class InterfuseError(Exception):
    """An error with a stable code.

    Args:
        code: one of :data:`CODES`.
        what: what happened, in one sentence.
        where: the file, tensor, column, line or step it happened at.
        fix: what the reader can do about it.
    """

    def __init__(self, code: str, what: str, *, where: str = "", fix: str = "") -> None:
        if code not in CODES:
            raise KeyError(f"{code!r} is not an error code of Interfuse")
        self.code, self.what, self.where, self.fix = code, what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        fix = f"\n  {self.fix}" if self.fix else ""
        return f"{self.code}: {self.what}{place}{fix}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.code, self.what, self.where, self.fix)

    @property
    def exit_code(self) -> int:
        """The command line's exit status: 1 failed, 2 usage, 3 bad input, 4 out of budget."""
        return CODES[self.code][0]

    def as_dict(self) -> dict[str, str]:
        """The error as a plain dictionary, for ``--json``."""
        return {"code": self.code, "what": self.what, "where": self.where, "fix": self.fix}


def _rebuild(code: str, what: str, where: str, fix: str) -> InterfuseError:
    return InterfuseError(code, what, where=where, fix=fix)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known words, or lists them all when few and none is close."""
    import difflib

    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(close) + "?"
    return "Known: " + ", ".join(names) + "." if names and len(names) <= 30 else ""
