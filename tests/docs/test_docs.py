"""What the documentation says is true: its blocks run, nothing public is left out, the site builds without network."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import interfuse
from interfuse.cli.main import VERBS, app
from interfuse.core import index, recipe
from interfuse.core.ctx import Ctx
from interfuse.core.errors import CODES
from interfuse.core.rooms import Source, load_room
from interfuse.core.safe import load_yaml
from tests.docs.pages import ROOT, WRITTEN, Block, blocks, generator

#: the blocks that say why they are not run; another one must be argued for here
NOT_RUN = {"README.md": 2, "docs/index.md": 2, "docs/decode.md": 1}
PAGES = [page for page in WRITTEN if page.name != "CONTRIBUTING.md"]  # its example has a test of its own
METHODS = [e.id for e in index.entries().values() if e.kind == "method"]


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page in their order, in one folder and with one set of names."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if not block.reason:
            names = run_block(block, names, tmp_path)


def run_block(block: Block, names: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs or reads one block; gives the names that Python blocks know after it."""
    if block.language == "python":
        script = folder / "block.py"
        script.write_text("\n" * block.line + block.text, encoding="utf-8")
        return runpy.run_path(str(script), init_globals=names)
    if block.language == "bash":
        for command in block.text.splitlines():
            run_command(command, block.where)
    elif block.language == "yaml":
        read_yaml(block, folder)
    elif block.language == "toml":
        tomllib.loads(block.text)
    else:
        raise AssertionError(f"{block.where}: a block of {block.language or 'no language'} is not tested")
    return names


def run_command(command: str, where: str) -> None:
    words = shlex.split(command, comments=True)
    assert words[0] == "interfuse", f"{where}: only interfuse is run: {command}"
    assert not set(words) & {"|", ">", "&&", ";"}, f"{where}: one command on a line: {command}"
    with pytest.raises(SystemExit) as ended:
        app.main(words[1:])
    assert ended.value.code == 0, f"{where}: {command} ended with {ended.value.code}"


def read_yaml(block: Block, folder: Path) -> None:
    """A recipe is planned; a table of sources is opened."""
    if block.text.startswith("interfuse:"):
        from interfuse.core.run import make_plan

        path = folder / "block.yaml"
        path.write_text(block.text, encoding="utf-8")
        assert make_plan(recipe.load_recipe(path), folder / "run", Ctx()).work
        return
    sources, _ = load_yaml(block.text, where=block.where)
    write_examples(folder)
    for name in sources:
        open_source(name, sources, folder)


def open_source(name: str, sources: dict[str, Any], folder: Path) -> None:
    from interfuse.data import lm, models, tables

    def resolved(spec: dict[str, Any]) -> dict[str, Any]:
        return {**spec, "from": resolved(sources[spec["from"]])} if "from" in spec else spec

    spec = resolved(sources[name])
    if set(spec) <= set(models.KEYS):
        if "/" in spec.get("model", "") and not spec["model"].startswith("models/"):
            return  # an id on the hub: there is no network here
        models.open_model(Source(spec, name, folder), Ctx())
    elif "documents" in spec:
        from interfuse.data.corpus import open_corpus

        (folder / spec["documents"]).mkdir(exist_ok=True)
        (folder / spec["documents"] / "a.pdf").write_bytes(b"%PDF-1.4")
        assert open_corpus(Source(spec, name, folder), Ctx()).files
    elif "endpoint" in spec or "replies" in spec:
        assert lm.open_lm(Source(spec, name, folder), Ctx()).name
    else:
        assert len(tables.open_table(Source(spec, name, folder), Ctx())) > 0


def write_examples(folder: Path) -> None:
    """The files that the examples of ``formats.md`` name."""
    import numpy as np
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from transformers import BertConfig, BertForSequenceClassification

    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "owl/1.png"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "photos" / name)
    rows = "".join(f"{i},text {i},{'good' if i % 2 else 'bad'}\n" for i in range(10))
    (folder / "reviews.csv").write_text("number,body,stars\n" + rows)
    cells = {"size": [1.0, 2.0], "shape": [0.5, 0.1], "colour": [3.0, 4.0], "kind": ["a", "b"]}
    Dataset.from_dict(cells).to_parquet(folder / "cells.parquet")
    Dataset.from_dict({"pixels": [[1.0] * 64, [2.0] * 64], "digit": [3, 4]}).to_parquet(folder / "scans.parquet")
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(folder / "models" / "mine")
    adapted = get_peft_model(
        BertForSequenceClassification(config), LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"])
    )
    adapted.save_pretrained(folder / "adapters" / "tuned")
    (folder / "replies.jsonl").write_text('{"prompt": "Who?", "replies": ["me"]}\n')
    talk = '[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "me"}]'
    (folder / "talks.jsonl").write_text(f'{{"conversation": {talk}}}\n')
    (folder / "questions.jsonl").write_text('{"question": "Who?", "options": ["me", "you"], "answer": "A"}\n')
    Dataset.from_dict({"id": ["a", "b"], "logits": [[0.0, 1.0], [2.0, 3.0]]}).to_parquet(folder / "teacher.parquet")


def test_blocks_that_are_not_run_are_counted_and_say_why() -> None:
    marked = [block for page in WRITTEN for block in blocks(page) if block.reason]
    counts: dict[str, int] = {}
    for block in marked:
        name = block.page.relative_to(ROOT).as_posix()
        counts[name] = counts.get(name, 0) + 1
        assert len(block.reason.split()) >= 4, f"{block.where}: that is no reason"
    assert counts == NOT_RUN


def test_a_block_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "README.md"
    wrong = {"python": "assert 1 == 2\n", "bash": "interfuse lst\n", "yaml": "interfuse: 1\nsteps: {}\n", "toml": "a = \n",
             "shell": "ls\n"}  # fmt: skip
    for language, text in wrong.items():
        with pytest.raises((AssertionError, interfuse.InterfuseError, tomllib.TOMLDecodeError)):
            run_block(Block(page, 1, language, text), {}, tmp_path)


# ------------------------------------------------------------------------------------------------ nothing left out


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    pages: dict[str, str] = generator().pages()
    return pages


@pytest.fixture(scope="module")
def everything(generated: dict[str, str]) -> str:
    return "\n".join([*(page.read_text(encoding="utf-8") for page in WRITTEN), *generated.values()])


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its words: verbs, rooms, the methods of the rooms, further verbs of rooms."""
    top = click.Context(app, info_name="interfuse")
    for name in [*VERBS, *index.rooms()]:
        command = app.get_command(top, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            inner = click.Context(command, info_name=name, parent=top)
            for further in command.list_commands(inner):
                found = command.get_command(inner, further)
                assert found is not None
                yield f"{name} {further}", found


def test_every_command_and_flag_is_documented(generated: dict[str, str]) -> None:
    """A flag stands on the page of its method or its room, or on the page of the command line."""
    missing = []
    for words, command in commands():
        name, _, further = words.partition(" ")
        page = generated["cli.md"]
        assert f"## interfuse {name}\n" in page
        if further:
            page += generated[f"rooms/{name}.md"] + generated.get(f"methods/{name}/{further}.md", f"interfuse {words}")
        for param in command.params:
            for flag in (o for o in param.opts if o.startswith("--")):
                if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", page):
                    missing.append(f"{words} {flag}")
    assert not missing


def test_every_method_room_and_recipe_has_its_page(generated: dict[str, str]) -> None:
    for entry in index.entries().values():
        if entry.kind != "map":
            page = generated[f"methods/{entry.id}.md" if entry.kind == "method" else f"{entry.id}.md"]
            assert entry.card.title in page
            assert entry.card.status in page
    for room in index.rooms():
        assert all(f"(../methods/{m}.md)" in generated[f"rooms/{room}.md"] for m in METHODS if m.startswith(f"{room}/"))
        assert all(f"`{item.name}`" in generated[f"rooms/{room}.md"] for item in load_room(room).inputs)
        assert f"(rooms/{room}.md)" in (ROOT / "docs/choose.md").read_text(), (
            f"choose.md says nothing of the room {room}"
        )


def test_every_error_code_and_public_name_is_documented(generated: dict[str, str]) -> None:
    for code, (status, meaning) in CODES.items():
        assert re.search(rf"\| `{code}` \| {status} \w[^|]*\| {re.escape(meaning)} \|", generated["errors.md"]), code
    python = (ROOT / "docs/python.md").read_text()
    assert all(re.search(rf"interfuse\.{name}\b", python) for name in interfuse.__all__)


def test_every_key_of_a_source_and_of_a_recipe_is_documented() -> None:
    from interfuse.data import images, models, tables

    page = (ROOT / "docs/formats.md").read_text()
    for key in [*tables.KEYS, *models.KEYS]:
        assert f"| `{key}` |" in page, f"formats.md does not name the key {key}"
    for word in [*tables.ROLES, *images.DISTORTIONS, *models.TASKS]:
        assert f"`{word}`" in page, f"formats.md does not name {word}"
    text = (ROOT / "docs/recipes.md").read_text()
    assert all(f"`{key}" in text or f"\n{key}:" in text for key in recipe.KEYS)


def test_every_field_of_a_manifest_is_documented(tmp_path: Path) -> None:
    config = {"model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [4], "depths": [1],
              "layer_type": "basic", "num_labels": 10}  # fmt: skip
    interfuse.apply("distill/none", student={"config": config}, data={"data": "sklearn:digits", "limit": 20}, epochs=1,
                    out=tmp_path / "made")  # fmt: skip
    page = (ROOT / "docs/formats.md").read_text().split("field of `interfuse.json`")[1]
    manifest = json.loads((tmp_path / "made/interfuse.json").read_text())
    assert set(manifest) == set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", page, re.M))))


def test_the_readme_names_the_rooms_that_work_and_fits_a_screen() -> None:
    text = (ROOT / "README.md").read_text()
    assert re.findall(r"^\| (\w+) \|", text.split("## Rooms")[1], re.M)[1:] == list(index.rooms())
    planned = re.search(r"Planned, not there yet: ([\w, ]+)\.", text)
    assert planned is not None
    assert not set(planned[1].split(", ")) & set(index.rooms())
    assert len(text.splitlines()) <= 60
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), f"the README links to {target}"


def test_the_changelog_and_the_citation_know_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    cff, _ = load_yaml((ROOT / "CITATION.cff").read_text(), where="CITATION.cff")
    assert str(cff["version"]) == version
    assert {"cff-version", "message", "title", "authors", "license"} <= set(cff)


@pytest.mark.parametrize("method", METHODS)
def test_the_example_of_a_method_gives_all_that_it_needs(method: str) -> None:
    """No input is missing from the line, and there are enough of each and not too many."""
    from interfuse.cli.flags import example, flag_of, read_value
    from interfuse.core.method import load

    found = load(method)
    room = load_room(found.entry.room)
    words = shlex.split(example(room, found))[3:]
    given = {item.name: words.count(f"--{item.name}") for item in room.inputs if not item.positional}
    given |= {item.name: [w[:1] for w in words].index("-") for item in room.inputs if item.positional}
    assert all(given[item.name] for item in room.inputs if item.required)
    assert all(given[item.name] <= 1 for item in room.inputs if not item.many)
    if found.entry.room == "distill":
        values = {
            p.name: read_value(words[words.index(flag_of(p.name)) + 1], p.annotation)
            for p in found.params.values()
            if p.required
        }
        least, most = found.target(**values).needs().teachers
        assert least <= given["teacher"] <= most
    if found.entry.room == "merge":
        least, most = found.traits.get("models", (1, 1000))
        assert least <= given["models"] <= most
        assert given["base"] == 1 or found.traits.get("base") != "required"


# ------------------------------------------------------------------------------------------------ the site


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path, everything: str) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")}
    assert {f"methods/{m}.html" for m in METHODS} <= made
    assert {"index.html", "cli.html", "errors.html", "contributing.html", "recipes/quickstart.html"} <= made
    assert "generate.html" not in made
    for path in tmp_path.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^\"]+|<link[^>]+href=\"(?:https?:)?//[^\"]+", text
        )
        fetched = [f for f in fetched if "canonical" not in f]
        assert not fetched, f"{path.name} fetches {fetched[0]}"
        assert "<!-- table:" not in text
