"""Libraries that take long to import, imported when one of their names is first used.

A module that needs such a library only for some of its work writes::

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy("torch")
"""

from __future__ import annotations

import importlib
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


def lazy(name: str) -> Any:
    """The module of this name, imported when one of its attributes is first asked for."""
    return _Lazy(name)
