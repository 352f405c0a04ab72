"""The command ``interfuse``: verbs are loaded when they are used, errors end as code, what, where and fix."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import io
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from interfuse.core.bulk import bulk
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.lazy import Process

#: verb -> (module, one line of help)
VERBS = {
    "list": ("catalogue", "Methods, recipes and maps there are."),
    "show": ("catalogue", "One method, recipe or map: card, parameters, claims, citation."),
    "run": ("running", "Run a recipe; what is done is not done again."),
    "report": ("running", "Print what a run or an artifact found out."),
    "verify": ("running", "Check every byte of an artifact or of a run."),
    "cite": ("catalogue", "BibTeX of the methods used."),
    "doctor": ("doctor", "What is installed here, and what might go wrong."),
}


class App(click.Group):
    """The top command. Helper verbs come from :data:`VERBS`, rooms from the folders of the package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from interfuse.core import index

        return [*VERBS, *index.rooms()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in VERBS:
            module = importlib.import_module(f"interfuse.cli.{VERBS[cmd_name][0]}")
            command: click.Command = module.COMMANDS[cmd_name]
            return command
        from interfuse.core import index

        if cmd_name not in index.rooms():
            return None
        with bulk():
            from interfuse.cli.rooms import room_group

            return room_group(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from interfuse.core import index

        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])
        rooms = index.rooms()
        if rooms:
            with formatter.section("Rooms (interfuse ROOM lists its methods)"):
                formatter.write_dl([(name, first_line(name)) for name in rooms])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any) -> NoReturn:  # fmt: skip
        """Runs the command line and ends the process with its exit code."""
        words = list(sys.argv[1:] if args is None else args)
        flags = words[: words.index("--")] if "--" in words else words
        as_json, debug = "--json" in flags, "--debug" in flags
        if debug:
            words.remove("--debug")
        try:
            code = super().main(words, prog_name or "interfuse", complete_var, standalone_mode=False, **extra)
        except InterfuseError as error:
            code = _fail(error, as_json=as_json, debug=debug)
        except click.exceptions.Abort:
            halt = InterfuseError("run.failed", "interrupted; run it again to go on")
            code = _fail(halt, as_json=as_json, debug=False, code=130, short=True)
        except click.ClickException as problem:
            code = _fail(_coded(problem), as_json=as_json, debug=debug)
        except Exception as problem:  # the last resort: whatever was not foreseen
            unforeseen = _unforeseen(problem)
            unforeseen.__cause__ = problem
            code = _fail(unforeseen, as_json=as_json, debug=debug, short=unforeseen.code == "run.failed")
        sys.exit(code if isinstance(code, int) else 0)


def first_line(room: str) -> str:
    """The first line of a room's docstring, read without importing the room."""
    import ast

    spec = importlib.util.find_spec(f"interfuse.{room}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.splitlines()[0] if text else ""


def _fail(error: InterfuseError, *, as_json: bool, debug: bool, code: int | None = None, short: bool = False) -> int:
    """Prints an error and returns the exit code. ``short``: one line without the code, the fix below."""
    from interfuse.cli.output import clean, emit

    if debug:
        import traceback

        traceback.print_exception(error)
    if as_json:
        emit({"error": error.as_dict()})
    else:
        place = "" if short or not error.where else f"\n  where: {clean(error.where)}"
        fix = f"\n  fix: {clean(error.fix)}" if error.fix else ""
        head = clean(error.what) if short else f"{error.code}: {clean(error.what)}"
        click.echo(f"{head}{place}{fix}", err=True)
    return error.exit_code if code is None else code


def _coded(problem: click.ClickException) -> InterfuseError:
    """A mistake in the command line as a coded error with a suggestion."""
    ctx = getattr(problem, "ctx", None)
    where = ctx.command_path if ctx else ""
    see = f"See: {where} --help" if where else ""
    if isinstance(problem, click.exceptions.NoSuchCommand) and ctx and isinstance(ctx.command, click.Group):
        name, known = problem.command_name, ctx.command.list_commands(ctx)
        return InterfuseError("method.unknown", f"there is no command {name!r}", where=where,
                              fix=f"{did_you_mean(name, known)} {see}".strip())  # fmt: skip
    if isinstance(problem, click.NoSuchOption) and ctx:
        flags = [o for p in ctx.command.get_params(ctx) for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
        return InterfuseError("param.unknown", f"there is no flag {problem.option_name}", where=where,
                              fix=f"{did_you_mean(problem.option_name, flags)} {see}".strip())  # fmt: skip
    if isinstance(problem, click.MissingParameter):
        return InterfuseError("param.missing", problem.format_message().rstrip("."), where=where, fix=see)
    if isinstance(problem, click.BadParameter | click.BadOptionUsage | click.BadArgumentUsage):
        return InterfuseError("param.value", problem.format_message().rstrip("."), where=where, fix=see)
    if isinstance(problem, click.UsageError):
        return InterfuseError("param.unknown", problem.format_message().rstrip("."), where=where, fix=see)
    return InterfuseError("run.failed", problem.format_message(), where=where)


def _unforeseen(problem: Exception) -> InterfuseError:
    """Whatever nobody foresaw as a coded error; a package that is not there with the extra that brings it."""
    if isinstance(problem, ModuleNotFoundError):
        from interfuse.cli.doctor import extra_of

        extra = extra_of(problem.name or "")
        if extra:
            return InterfuseError(
                "needs.package", f"this needs the package {problem.name}", fix=f"pip install 'interfuse[{extra}]'"
            )
    words = " ".join(str(problem).split()) or "no message"
    return InterfuseError(
        "run.failed", f"{type(problem).__name__}: {words}", fix="Add --debug to see where it happened."
    )


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"interfuse {version('interfuse')}")
        ctx.exit()


@click.command(
    "interfuse", cls=App, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Fuse what many models, documents and graphs know, and measure what was gained and lost.

    \b
    Start:    interfuse run recipes/quickstart
    Look:     interfuse list        interfuse show merge/linear
    Fuse:     interfuse merge linear A B -o out/

    Exit codes: 0 ok, 1 failed, 2 usage, 3 bad input, 4 out of budget. --debug, anywhere, shows the traceback of an error.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """The entry point of the command ``interfuse``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter is no reason to fail
    # progress is ours; libraries draw none of their own
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # a thread of numpy's BLAS that has nothing to do waits awake for so many cycles (two to this power), by default a tenth of a second
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # they are looked for in the metadata of all packages
    Process.own = True
    try:
        app.main()
    except SystemExit as end:
        _leave(end)


def _leave(end: SystemExit) -> NoReturn:
    """Ends the process. Taking large libraries apart piece by piece takes a third of a second that gives nothing to anyone: once what
    was registered for the end has run and all is written, the system clears up at once."""
    alone = all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate())
    if not {"numpy", "torch", "spacy"}.isdisjoint(sys.modules) and alone and isinstance(end.code, int):
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
    raise end
