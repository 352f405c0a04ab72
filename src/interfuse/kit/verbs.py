"""What the rooms' own verbs share with the command line: the flags every command has, their context, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from interfuse.core.ctx import Ctx

#: under this key of the command's ``meta`` the command line puts what makes a context with progress
CONTEXT = "interfuse.context"


def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Notes a flag in the command's ``meta``, where everything that prints looks."""
    if value and param.name:
        ctx.meta[param.name] = True


def json_option() -> click.Option:
    """``--json``: one JSON value on stdout."""
    return click.Option(
        ["--json"],
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print one JSON value on stdout, errors too.",
    )


def quiet_option() -> click.Option:
    """``--quiet``: no progress."""
    return click.Option(
        ["-q", "--quiet"], is_flag=True, expose_value=False, callback=remember, help="No progress on stderr."
    )


def shared_options() -> list[click.Parameter]:
    """The flags of every verb."""
    return [json_option(), quiet_option()]


def verb_context(seed: int = 0, dtype: str = "float32") -> Ctx:
    """The context of the running command: with its progress and cache, or a plain one outside of the command line."""
    from interfuse.core.ctx import Ctx

    make = click.get_current_context().meta.get(CONTEXT)
    made: Ctx = make(seed, "auto", dtype) if make is not None else Ctx(seed=seed, dtype=dtype)
    return made


def print_value(value: Any, words: Callable[[], Iterable[str]]) -> None:
    """One JSON value with ``--json``, else lines."""
    if click.get_current_context().meta.get("json"):
        click.echo(json.dumps(value, indent=2, default=str))
        return
    for line in words():
        click.echo("".join(c for c in line if c.isprintable() or c == "\t"))
