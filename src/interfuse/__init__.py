"""Interfuse: fuse what many models, documents and graphs know, and measure what was gained and what was lost.

Every name is loaded when it is first used; importing the package loads no torch. The rooms are its submodules::

    import interfuse

    merged = interfuse.merge.ties(["a/", "b/"], base="c/", density=0.3)
    folders = interfuse.run("recipes/quickstart.yaml")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interfuse.core.artifact import verify
    from interfuse.core.ctx import Ctx
    from interfuse.core.errors import InterfuseError
    from interfuse.core.rooms import apply
    from interfuse.core.run import run

__all__ = ["Ctx", "InterfuseError", "apply", "run", "verify"]

_HOME = {"Ctx": "ctx", "InterfuseError": "errors", "apply": "rooms", "run": "run", "verify": "artifact"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"interfuse.core.{_HOME[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("interfuse")
    elif name.startswith("_"):
        raise AttributeError(name)
    else:
        from interfuse.core import index
        from interfuse.core.errors import did_you_mean

        if name not in index.rooms():
            hint = did_you_mean(name, [*__all__, *index.rooms()])
            raise AttributeError(
                f"interfuse has no name {name!r}. {hint}", name=name, obj=importlib.import_module(__name__)
            )
        value = importlib.import_module(f"interfuse.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from interfuse.core import index

    return sorted([*__all__, "__version__", *index.rooms()])
