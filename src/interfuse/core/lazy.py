"""Libraries that take long to import, imported when one of their names is first used.

A module that needs such a library only for some of its work writes::

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy("torch")
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class _Lazy:
    """Stands for a module until it is used; names once asked for are kept."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        if not name.startswith("__"):
            setattr(self, name, value)
        return value


class _Absent:
    """Finds that a module is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"{name} is not needed here", name=name)


class Process:
    """What is known of the process: ``own`` is whether it is the command line's, in which nobody else's code uses libraries."""

    own = False


@contextlib.contextmanager
def kept_out(name: str) -> Iterator[None]:
    """While a library is imported in a process of our own, another one that it would take along and that is not needed with it
    seems not to be installed. In other people's processes, and where it is there already, nothing happens."""
    if not Process.own or name in sys.modules:
        yield
        return
    finder = _Absent(name)
    sys.meta_path.insert(
        0, finder
    )  # None in sys.modules would do for Python's own import, but compiled code takes it for the module
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def stood_in(name: str, *members: str) -> Iterator[None]:
    """While a library is imported in a process of our own, an empty module with these members (None) stands for a submodule of it, and
    for the package that holds this, which the library imports for the sake of others. Elsewhere nothing happens."""
    package = name.rpartition(".")[0]
    if not Process.own or package in sys.modules:
        yield
        return
    made = {package: ModuleType(package), name: ModuleType(name)}
    made[package].__path__ = []
    vars(made[name]).update(dict.fromkeys(members))
    sys.modules.update(made)
    try:
        yield
    finally:
        for known in made:
            sys.modules.pop(known, None)


def lazy(name: str) -> Any:
    """The module of this name, imported when one of its attributes is first asked for."""
    return _Lazy(name)
