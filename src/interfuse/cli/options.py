"""The flags every verb shares, and the context they describe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interfuse.cli.output import quiet
from interfuse.kit.verbs import json_option, quiet_option

if TYPE_CHECKING:
    from interfuse.core.ctx import Ctx

DTYPES = ("float32", "bfloat16", "float16", "float64")


def work_options(*, many_seeds: bool = False, out_help: str) -> list[click.Parameter]:
    """The flags of verbs that do work."""
    path = click.Path(path_type=Path)
    if many_seeds:
        seed = click.Option(["--seed"], type=int, multiple=True, help="Use this seed; repeat it for several.")
    else:
        seed = click.Option(["--seed"], type=int, default=0, show_default=True, help="All randomness comes from it.")
    return [
        click.Option(["-o", "--out"], type=path, default=None, help=out_help),
        click.Option(["--dry-run"], is_flag=True, help="Check everything, print plan and cost, write nothing."),
        seed,
        click.Option(["--force"], is_flag=True, help="Use the output folder even if something is there."),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda, mps or an exact name."),
        click.Option(["--dtype"], type=click.Choice(DTYPES), default="float32", show_default=True,
                     help="Floating type to compute in."),
        click.Option(["--budget-calls"], type=click.FloatRange(min=0), help="Calls of language models that may be made at most."),
        click.Option(["--budget-tokens"], type=click.FloatRange(min=0), help="Tokens of their prompts and replies at most, estimated before."),
        json_option(),
        quiet_option(),
    ]  # fmt: skip


def cache_folder() -> Path:
    """``INTERFUSE_CACHE``, or the place the system's conventions give."""
    chosen = os.environ.get("INTERFUSE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "interfuse"


def context(
    seed: int,
    device: str,
    dtype: str,
    budget_calls: float | None = None,
    budget_tokens: float | None = None,
    **more: Any,
) -> Ctx:
    """The context of the flags, with progress on stderr."""
    from interfuse.cli.progress import reporter
    from interfuse.core.ctx import Budget, Ctx

    more.setdefault("budget", Budget(calls=budget_calls, tokens=budget_tokens))

    shown = reporter(quiet=quiet())
    return Ctx(seed=seed, device=device, dtype=dtype, cache=cache_folder(), log=shown.log, bar=shown.bar, **more)
