"""Further verbs of the room on the command line: generate, explain a trace, serve, write steering into a checkpoint."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from interfuse.core.errors import InterfuseError
from interfuse.kit.verbs import print_value, shared_options, verb_context

PATH = click.Path(path_type=Path)


def _open(folder: Path, dtype: str = "float32") -> Any:
    from interfuse.core.artifact import MANIFEST, open_artifact
    from interfuse.decode.fused import open_fused

    if (folder / "config.json").is_file() and not (folder / MANIFEST).is_file():
        raise InterfuseError("input.type", "this is a model as it is, not a fused one", where=str(folder),
                             fix=f"One model alone: interfuse decode mixture {folder} -o OUT, which changes nothing of it.")  # fmt: skip
    return open_fused(open_artifact(folder), folder.name, verb_context(dtype=dtype))


def _changed(lm: Any, given: tuple[str, ...]) -> Any:
    """The model under ``--set NAME=VALUE`` parameters, read as recipes are."""
    changes = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise InterfuseError("param.value", f"--set takes NAME=VALUE, not {item!r}", where="--set")
        try:
            changes[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            changes[name.strip().replace("-", "_")] = value
    return lm.with_params(**changes) if changes else lm


def read_prompts(file: Path) -> list[Any]:
    """Prompts of a file: a JSON object per line with ``prompt``, ``messages`` or ``question`` and ``context``; or plain text lines.

    Raises:
        InterfuseError: ``input.missing``, ``input.empty`` or ``input.format`` naming the line.
    """
    from interfuse.core.safe import read_text

    if not file.is_file():
        raise InterfuseError("input.missing", "there is no such file of prompts", where=str(file))
    lines = [(n, line) for n, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    if not lines:
        raise InterfuseError("input.empty", "the file holds no prompts", where=str(file))
    if file.suffix != ".jsonl":
        return [line for _, line in lines]
    found: list[Any] = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InterfuseError("input.format", "a line is not JSON", where=f"{file}:{number}") from error
        if isinstance(row, str):
            found.append(row)
        elif isinstance(row, dict) and ("prompt" in row or "messages" in row):
            found.append(row.get("messages") or row["prompt"])
        elif isinstance(row, dict) and "question" in row:
            found.append({k: row[k] for k in ("question", "context") if k in row})
        else:
            raise InterfuseError(
                "input.missing", "a line has neither prompt, messages nor question", where=f"{file}:{number}"
            )
    return found


def _generate(fused: Path, prompts: Path, out: Path | None, trace: Path | None, given: tuple[str, ...], max_tokens: int, temperature: float,
              top_p: float, stop: tuple[str, ...], n: int, seed: int, dtype: str) -> None:  # fmt: skip
    """Write texts with a fused model: one JSON object per prompt, and a trace if wanted."""
    from interfuse.core.safe import jsonable, write_atomic
    from interfuse.decode.trace import Trace

    with contextlib.redirect_stdout(sys.stderr):
        lm, asked = _changed(_open(fused, dtype), given), read_prompts(prompts)
        kept = Trace(method=lm.method.id, params=jsonable(lm.params)) if trace is not None else None
        began = time.monotonic()
        replies = lm.generate(
            asked, max_tokens=max_tokens, temperature=temperature, top_p=top_p, stop=stop, n=n, seed=seed, trace=kept
        )
        told = _empty(lm, asked, replies)
        if told:
            click.echo(told, err=True)
        rows = [{"prompt": p, "replies": [r.text for r in each], "finish": [r.finish for r in each], "tokens": [r.tokens for r in each],
                 "logprob": [r.logprob for r in each]} for p, each in zip(asked, replies, strict=True)]  # fmt: skip
        if kept is not None and trace is not None:
            kept.save(trace)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if out is not None:
            write_atomic(out, text.encode())
    figures = {
        **lm.engine.timing.figures(),
        "prefill asked": lm.engine.counts.asked,
        "prefill computed": lm.engine.counts.computed,
    }
    if out is None:
        click.echo(text, nl=False)
    else:
        print_value({"out": str(out), "trace": str(trace) if trace else None, "seconds": time.monotonic() - began, **figures},
               lambda: [f"{len(rows)} prompts, {figures['tokens']:.0f} tokens, {figures['tokens_per_second']:.1f} tokens/s: {out}"])  # fmt: skip


def _empty(lm: Any, asked: list[Any], replies: list[Any]) -> str:
    """What to do where texts were given to a model that was trained for chat, and it had nothing to go on with."""
    silent = sum(isinstance(p, str) and not any(r.text for r in each) for p, each in zip(asked, replies, strict=True))
    if not silent or not getattr(getattr(lm.engine, "tokenizer", None), "chat_template", None):
        return ""
    return (f"{silent} of {len(asked)} replies are empty: a text is gone on with as it stands, and the model was trained for chat; ask it by lines "
            '{"messages": [{"role": "user", "content": "..."}]} or {"question": "..."}')  # fmt: skip


def _explain(run: Path, out: Path | None, by: str) -> None:
    """A page that colours the tokens of a trace by what was decided at each."""
    from interfuse.core.safe import write_atomic
    from interfuse.decode.trace import explain

    place = out or run.with_suffix(".html")
    write_atomic(place, explain(run, by=by).encode())
    print_value({"page": str(place)}, lambda: [f"page: {place}"])


def _serve(fused: Path, host: str, port: int, key_env: str, given: tuple[str, ...], dtype: str) -> None:
    """An OpenAI-compatible endpoint in front of a fused model."""
    from interfuse.decode.serve import LOOPBACK, make_app

    loopback = host in ("127.0.0.1", "localhost", "::1")
    if not loopback and not key_env:
        raise InterfuseError("unsafe.address", f"{host} can be reached by others, and no key is asked for", where="--host",
                             fix="Add --key-env NAME, the variable with the key that clients must send.")  # fmt: skip
    lm = _changed(_open(fused, dtype), given)
    lm.engine  # noqa: B018  loaded before the first request
    app = make_app(lm, key_env=key_env, hosts=LOOPBACK if loopback else ("*",))
    import uvicorn

    click.echo(f"http://{host}:{port}/v1 answers as {lm.name}; stop with Ctrl-C", err=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _rice_export(fused: Path, out: Path | None, force: bool) -> None:
    """The steering of a rice model written into a checkpoint that any runtime loads."""
    from interfuse.decode.export import export_steering

    place = out or Path("runs") / "rice-export"
    with contextlib.redirect_stdout(sys.stderr):
        found = export_steering(_open(fused), place, force=force)
    print_value(found, lambda: [f"{found['experts']} experts scaled by {found['beta']:g}: {place}"])


def _command(name: str, callback: Callable[..., None], params: list[click.Parameter], example: str) -> click.Command:
    return click.Command(name, callback=callback, help=callback.__doc__, params=[*params, *shared_options()],
                         epilog=f"\b\nExample:\n  interfuse decode {example}")  # fmt: skip


_FUSED = click.Argument(["fused"], type=PATH)
_SET = click.Option(
    ["--set", "given"], multiple=True, help="Another parameter of the combiner: NAME=VALUE; repeat it for several."
)
_DTYPE = click.Option(["--dtype"], default="float32", show_default=True, help="Type the models compute in.")
_OUT = click.Option(["-o", "--out"], type=PATH, default=None, help="The file to write.")

VERBS = {
    "generate": _command("generate", _generate, [
        _FUSED, click.Option(["--prompts"], type=PATH, required=True, help="JSON lines with prompt, messages or question and context; or text lines."),
        _OUT, click.Option(["--trace"], type=PATH, default=None, help="Parquet file with one row per token."), _SET,
        click.Option(["--max-tokens"], type=int, default=256, show_default=True, help="The most tokens of a reply."),
        click.Option(["--temperature"], type=float, default=0.0, show_default=True, help="0 is greedy."),
        click.Option(["--top-p"], type=float, default=1.0, show_default=True, help="Nucleus."),
        click.Option(["--stop"], multiple=True, help="A text that ends a reply; repeat it for several."),
        click.Option(["-n"], type=int, default=1, show_default=True, help="Replies per prompt."),
        click.Option(["--seed"], type=int, default=0, show_default=True, help="All randomness comes from it."), _DTYPE,
    ], "generate fused/ --prompts questions.jsonl -o replies.jsonl --trace run.parquet"),
    "explain": _command("explain", _explain, [
        click.Argument(["run"], type=PATH), _OUT, click.Option(["--by"], default="", help="The column that colours."),
    ], "explain run.parquet"),
    "serve": _command("serve", _serve, [
        _FUSED, click.Option(["--host"], default="127.0.0.1", show_default=True, help="Address to listen at."),
        click.Option(["--port"], type=int, default=8000, show_default=True, help="Port to listen at."),
        click.Option(["--key-env"], default="", help="Environment variable with the key clients must send."), _SET, _DTYPE,
    ], "serve fused/ --port 8000"),
    "rice-export": _command("rice-export", _rice_export, [
        _FUSED, click.Option(["-o", "--out"], type=PATH, default=None, help="The folder to write."),
        click.Option(["--force"], is_flag=True, help="Use the output folder even if something is there."),
    ], "rice-export fused/ -o steered/"),
}  # fmt: skip
