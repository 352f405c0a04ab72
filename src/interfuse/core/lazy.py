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
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(name, None)


def lazy(name: str) -> Any:
    """The module of this name, imported when one of its attributes is first asked for."""
    return _Lazy(name)
