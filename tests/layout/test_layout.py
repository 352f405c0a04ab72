"""The rules of the house hold over the whole source, and each of them can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interfuse.core.errors import CODES
from tests.layout import rules
from tests.layout.rules import FILE_RULES, Rule, Source

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "src" / "interfuse"

#: codes that nothing raises yet, each with the reason why it is listed
RESERVED: dict[str, str] = {}


def sources() -> list[Source]:
    return [Source(str(p.relative_to(HOME).as_posix()), p.read_text()) for p in sorted(HOME.rglob("*.py"))]


ALL = sources()
CARDS = [str(p.relative_to(HOME).as_posix()) for room in rules.ROOMS for p in sorted((HOME / room).glob("*.md"))]


def test_the_sources_were_found() -> None:
    assert len(ALL) > 30
    assert len(CARDS) > 5
    assert {s.package for s in ALL} >= {"core", "data", "kit", "cli", "distill", "merge", "measure"}
    assert sum(bool(rules.marked(s)) for s in ALL) > 5


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda r: r.__name__)
def test_rule_holds(rule: Rule) -> None:
    assert [line for source in ALL for line in rule(source)] == []


def test_classes_are_shallow() -> None:
    assert rules.shallow_classes(ALL) == []


def test_every_method_has_a_card_and_every_card_a_method() -> None:
    assert rules.cards_match(ALL, CARDS) == []


def test_every_room_has_its_three_parts() -> None:
    for room in {s.package for s in ALL} & set(rules.ROOMS):
        package = next(s for s in ALL if s.path == f"{room}/__init__.py")
        assert all(name in package.text for name in ("TAKES", "MAKES", "door(__name__)")), room
        assert (HOME / room / "room.py").is_file(), room


def test_error_codes_are_listed_used_and_explained() -> None:
    assert rules.codes_match(rules.codes_used(ALL), CODES, RESERVED) == []


def test_parameters_do_not_take_the_names_of_inputs() -> None:
    from interfuse.core import index
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room

    bad = []
    for entry in index.entries().values():
        if entry.kind == "method" and entry.module.startswith("interfuse."):
            inputs = [i.name for i in load_room(entry.room).inputs]
            bad += rules.names_free(entry.id, list(load(entry.id).params), inputs)
    assert bad == []


def test_defaults_lie_in_their_own_ranges() -> None:
    from interfuse.core import index
    from interfuse.core.method import load

    for entry in index.entries().values():
        if entry.kind == "method" and entry.module.startswith("interfuse."):
            for param in load(entry.id).params.values():
                if not param.required and param.default is not None:
                    param.check(param.default, where=entry.id)
                assert param.doc, f"{entry.id}: {param.name} has no description"


HEAVY = ("torch", "transformers", "datasets", "accelerate", "httpx", "requests", "openai", "aiohttp", "huggingface_hub", "sklearn",
         "scipy", "matplotlib", "pandas")  # fmt: skip

IMPORT = """
import sys, time
began = time.perf_counter()
import interfuse
seconds = time.perf_counter() - began
print(seconds, *sorted(set(sys.modules) & set({heavy!r})))
"""


def test_import_is_quick_and_light() -> None:
    """At most 0.3 s, best of five; nothing heavy is loaded."""
    said = [
        subprocess.run(
            [sys.executable, "-c", IMPORT.format(heavy=HEAVY)], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(5)
    ]
    assert min(float(words[0]) for words in said) <= 0.3
    assert [words[1:] for words in said] == [[]] * 5


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["--help"], ["list", "merge"]], ids=" ".join)
def test_listing_loads_nothing_heavy(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "interfuse", *command], capture_output=True, text=True,
                          env={**os.environ, "NO_COLOR": "1"}, check=True)  # fmt: skip
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "interfuse" in loaded
    assert loaded & set(HEAVY) == set()


def test_the_index_and_the_rules_know_the_same_rooms() -> None:
    from interfuse.core import index

    assert set(index.rooms()) <= set(rules.ROOMS)
    assert {p.name for p in HOME.iterdir() if p.is_dir() and (p / "room.py").exists()} == set(index.rooms())


def test_files_elsewhere_are_short_too() -> None:
    long = [str(p.relative_to(ROOT)) for folder in ("tests", "benchmarks", "docs") for p in sorted((ROOT / folder).rglob("*.py"))
            if p.read_text().count("\n") >= rules.FILE_LINES]  # fmt: skip
    assert long == []


MARK = "from interfuse.core.method import method\n"

#: rule -> files that break it, and files like them that do not
PLANTED: dict[Rule, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    rules.import_direction: (
        [
            ("core/x.py", "from interfuse.data import models"),
            ("core/x.py", "def f():\n    import interfuse.kit.losses"),
            ("core/x.py", "from interfuse import kit"),
            ("data/x.py", "from interfuse.kit.losses import kl"),
            ("data/formats/x.py", "from ...kit import losses"),
            ("kit/x.py", "from interfuse.merge.room import ROOM"),
            ("merge/x.py", "from interfuse.distill import hooks"),
            ("merge/x.py", "from ..distill import hooks"),
            ("merge/x.py", "import importlib\nimportlib.import_module('interfuse.distill.kd')"),
            ("merge/x.py", "from importlib import import_module as get\nget('interfuse.distill.kd')"),
            ("merge/x.py", "from interfuse.cli.main import main"),
            ("web/x.py", "from interfuse.cli.main import main"),
            ("kit/x.py", "import interfuse.web.pages as pages"),
            ("__init__.py", "from interfuse.merge import room"),
        ],
        [
            (
                "merge/x.py",
                "from interfuse.kit import losses\nfrom interfuse.merge.sparsify import drop\nfrom . import room",
            ),
            ("data/formats/x.py", "from ..models import Model\nfrom interfuse.core.errors import InterfuseError"),
            ("cli/x.py", "from interfuse.merge import room\nfrom interfuse.web import pages"),
            ("__main__.py", "from interfuse.cli.main import main"),
            ("__init__.py", "from interfuse.core.run import run"),
        ],
    ),
    rules.core_is_light: (
        [("core/x.py", "import torch"), ("core/x.py", "def f():\n    from transformers import AutoModel")],
        [
            ("core/x.py", "import json\nimport numpy as np\nfrom pydantic import Field\nimport yaml"),
            ("kit/x.py", "import torch"),
        ],
    ),
    rules.no_dangerous_calls: (
        [
            ("kit/x.py", "import pickle"),
            ("kit/x.py", "from dill import loads"),
            ("kit/x.py", "def f():\n    import cloudpickle as c"),
            ("kit/x.py", "eval('1')"),
            ("kit/x.py", "exec('1')"),
            ("kit/x.py", "import yaml\nyaml.load(t, Loader=yaml.SafeLoader)"),
            ("kit/x.py", "import yaml as y\ny.unsafe_load(t)"),
            ("kit/x.py", "from yaml import full_load\nfull_load(t)"),
            ("kit/x.py", "import subprocess\nsubprocess.run('ls', shell=True)"),
            ("kit/x.py", "import subprocess\nsubprocess.run('ls', shell=flag)"),
            ("kit/x.py", "import os\nos.system('ls')"),
            ("kit/x.py", "try:\n    f()\nexcept:\n    pass"),
            ("kit/x.py", "import torch\ntorch.load(p)"),
            ("kit/x.py", "from torch import load\nload(p, weights_only=False)"),
            ("kit/x.py", "import numpy as np\nnp.load(p, allow_pickle=True)"),
            ("kit/x.py", "AutoModel.from_pretrained(p, trust_remote_code=True)"),
        ],
        [
            ("kit/x.py", "model.eval()\nimport re\nre.compile('x')\nimport yaml\nyaml.safe_load(t)"),
            (
                "kit/x.py",
                "import torch\ntorch.load(p, weights_only=True)\nimport numpy as np\nnp.load(p, allow_pickle=False)",
            ),
            (
                "kit/x.py",
                "try:\n    f()\nexcept ValueError:\n    pass\nimport subprocess\nsubprocess.run(['ls'], shell=False)",
            ),
        ],
    ),
    rules.no_vague_names: (
        [
            (p, "")
            for p in (
                "kit/utils.py",
                "merge/common.py",
                "kit/helpers.py",
                "data/base.py",
                "kit/_util.py",
                "kit/utils/x.py",
            )
        ],
        [("kit/losses.py", ""), ("merge/base_free.py", "")],
    ),
    rules.short_files: (
        [("merge/x.py", f"{MARK}@method()\ndef x(): ...\n" + "\n" * 400), ("kit/x.py", "\n" * 801)],
        [("merge/x.py", f"{MARK}@method()\ndef x(): ...\n" + "\n" * 390), ("merge/room.py", "\n" * 700)],
    ),
    rules.no_hasattr: ([("kit/x.py", "hasattr(x, 'y')")], [("kit/x.py", "getattr(x, 'y', None)")]),
    rules.no_set_iteration: (
        [
            ("kit/x.py", "for x in {1, 2}:\n    pass"),
            ("kit/x.py", "for x in set(y):\n    pass"),
            ("kit/x.py", "[x for x in set(y)]"),
            ("kit/x.py", "{x: 1 for x in frozenset(y)}"),
            ("kit/x.py", "for x in set(a) - set(b):\n    pass"),
            ("kit/x.py", "for x in a.keys() & b.keys():\n    pass"),
            ("kit/x.py", "for x in set(a).union(b):\n    pass"),
            ("kit/x.py", "list({x for x in y})"),
            ("kit/x.py", "tuple(set(y))"),
            ("kit/x.py", "', '.join(set(y))"),
            ("kit/x.py", "', '.join(x for x in {1, 2})"),
            ("kit/x.py", "for i, x in enumerate(set(y)):\n    pass"),
            ("kit/x.py", "a = [*set(y)]"),
            ("kit/x.py", "f(*{1, 2})"),
            ("kit/x.py", "def f(y):\n    names = set(y)\n    for n in names:\n        print(n)"),
            ("kit/x.py", "def f(y):\n    names: set[int] = {i for i in y}\n    return [n for n in names]"),
            ("kit/x.py", "x = dict.fromkeys(set(y))"),
        ],
        [
            ("kit/x.py", "for x in sorted(set(y)):\n    pass"),
            (
                "kit/x.py",
                "a = sorted(x for x in set(y))\nb = any(x for x in {1, 2})\nc = {x for x in set(y)}\nd = len(set(y))",
            ),
            ("kit/x.py", "def f(y):\n    names = set(y)\n    return [x for x in y if x in names]"),
            ("kit/x.py", "def f(y):\n    names = sorted(set(y))\n    return [n for n in names]"),
            ("kit/x.py", "for x in [1, 2]:\n    pass\nfor x in a - b:\n    pass\ns = {*set(y), 1}"),
            ("kit/x.py", "def f():\n    a = {1}\ndef g(a):\n    for x in a:\n        pass"),
        ],
    ),
    rules.no_global_randomness: (
        [
            ("kit/x.py", "import torch\ntorch.manual_seed(0)"),
            ("kit/x.py", "import torch\ntorch.cuda.manual_seed_all(0)"),
            ("kit/x.py", "from torch import manual_seed as s\ns(0)"),
            ("kit/x.py", "import numpy as np\nnp.random.seed(0)"),
            ("kit/x.py", "import numpy as np\nnp.random.rand(3)"),
            ("kit/x.py", "from numpy import random\nrandom.normal()"),
            ("kit/x.py", "import numpy as np\nnp.random.default_rng()"),
            ("kit/x.py", "import random\nrandom.seed(0)"),
            ("kit/x.py", "import random\nrandom.shuffle(x)"),
            ("kit/x.py", "from random import choice\nchoice(x)"),
            ("kit/x.py", "import random\nrandom.Random()"),
            ("kit/x.py", "import torch\ntorch.randn(3)"),
            ("kit/x.py", "import torch\ntorch.randperm(3, device='cpu')"),
            ("kit/x.py", "from transformers import set_seed\nset_seed(0)"),
            ("kit/x.py", "import os\nos.urandom(3)"),
            ("kit/x.py", "import uuid\nuuid.uuid4()"),
            ("kit/x.py", "hash('x')"),
        ],
        [
            ("kit/x.py", "import numpy as np\nnp.random.default_rng(3)\nnp.random.Generator(np.random.Philox(1))"),
            (
                "kit/x.py",
                "import torch\ntorch.randn(3, generator=g)\ntorch.Generator().manual_seed(3)\ntorch.randn_like",
            ),
            ("kit/x.py", "import random\nrandom.Random(3).shuffle(x)\nrng.normal()\nctx.rng('x').random()"),
            ("kit/x.py", "for random in rows:\n    random.view(3)"),
            ("data/seeding.py", "import torch\ntorch.manual_seed(0)"),
        ],
    ),
    rules.nothing_at_import: (
        [
            ("kit/x.py", "print('hello')"),
            ("kit/x.py", "text = open('x').read()"),
            ("kit/x.py", "from pathlib import Path\nTEXT = Path('x').read_text()"),
            ("kit/x.py", "class A:\n    text = (HERE / 'x').read_text()"),
            ("kit/x.py", "import requests\nPAGE = requests.get('x')"),
            ("kit/x.py", "import subprocess\nsubprocess.run(['ls'])"),
            ("kit/x.py", "from openai import OpenAI\nclient = OpenAI()"),
            ("kit/x.py", "from transformers import AutoModel\nM = AutoModel.from_pretrained('x')"),
            ("kit/x.py", "try:\n    F = open('x')\nexcept OSError:\n    F = None"),
        ],
        [
            ("kit/x.py", "def f():\n    print(open('x').read())"),
            ("kit/x.py", "if __name__ == '__main__':\n    print('x')"),
            (
                "kit/x.py",
                "from pathlib import Path\nHERE = Path(__file__).parent\nN = {}.get('x')\nf = lambda: print(1)",
            ),
        ],
    ),
    rules.one_method_per_file: (
        [
            ("merge/x.py", f"{MARK}@method()\ndef a(): ...\n@method(x=1)\ndef b(): ..."),
            ("merge/x.py", f"{MARK}@method()\ndef a(): ...\n@method()\n@dataclass\nclass B: ..."),
            ("kit/x.py", f"{MARK}@method()\ndef a(): ..."),
        ],
        [
            ("merge/x.py", f"{MARK}@method()\ndef a(): ...\ndef b(): ..."),
            ("kit/x.py", "from other import method\n@method\ndef a(): ...\n@method\ndef b(): ..."),
        ],
    ),
    rules.documented: (
        [
            ("core/x.py", "X = 1"),
            ("kit/x.py", '"""Doc."""\ndef f(): ...'),
            ("data/x.py", '"""Doc."""\nclass A: ...'),
            ("merge/x.py", '"""Doc."""\nasync def f(): ...'),
        ],
        [("core/__init__.py", ""), ("kit/x.py", '"""Doc."""\ndef _f(): ...\ndef g():\n    """Doc."""')],
    ),
}


def test_every_rule_is_planted() -> None:
    assert set(PLANTED) == set(FILE_RULES)


@pytest.mark.parametrize("rule, path, text", [(r, p, t) for r, (bad, _) in PLANTED.items() for p, t in bad],
                         ids=lambda v: getattr(v, "__name__", None) or repr(v)[:60])  # fmt: skip
def test_rule_finds_what_is_planted(rule: Rule, path: str, text: str) -> None:
    found = rule(Source(path, text))
    assert found
    assert all(path in line for line in found)


@pytest.mark.parametrize("rule, path, text", [(r, p, t) for r, (_, good) in PLANTED.items() for p, t in good],
                         ids=lambda v: getattr(v, "__name__", None) or repr(v)[:60])  # fmt: skip
def test_rule_lets_the_rest_pass(rule: Rule, path: str, text: str) -> None:
    assert rule(Source(path, text)) == []


def test_deep_classes_are_found() -> None:
    files = [
        Source("kit/a.py", "class A: ...\nclass B(A): ..."),
        Source(
            "merge/b.py",
            "from interfuse.kit.a import B as Parent\nimport interfuse.kit.a as a\nclass C(Parent): ...\nclass D(a.B[int]): ...",
        ),
        Source("merge/c.py", "import torch\nclass E(torch.nn.Module): ...\nclass F(E): ..."),
    ]
    assert rules.shallow_classes(files) == ["interfuse.merge.b.C stands 3 deep", "interfuse.merge.b.D stands 3 deep"]


def test_missing_cards_and_methods_are_found() -> None:
    files = [Source("merge/a.py", f"{MARK}@method()\ndef a(): ..."), Source("merge/b.py", "def b(): ...")]
    assert rules.cards_match(files, ["merge/a.md"]) == []
    assert rules.cards_match(files, ["merge/b.md"]) == ["merge/a.py has no card", "merge/b.md has no method"]


CODE_FAULTS: list[tuple[Callable[[], list[str]], str]] = [
    (lambda: rules.codes_match({"input.odd": "x.py:1"}, {}, {}), "not listed"),
    (lambda: rules.codes_match({}, {"input.nan": (3, "a number is NaN")}, {}), "never used"),
    (lambda: rules.codes_match({"input.nan": "x.py:1"}, {"input.nan": (3, "")}, {}), "no meaning"),
    (lambda: rules.codes_match({"input.nan": "x.py:1"}, {"input.nan": (7, "a number is NaN")}, {}), "no meaning"),
    (lambda: rules.codes_match({"a.b": "x:1"}, {"a.b": (1, "one two three")}, {"a.b": "later"}), "reserved but used"),
    (lambda: rules.codes_match({}, {}, {"a.b": "later"}), "reserved but not listed"),
]


@pytest.mark.parametrize("check, says", CODE_FAULTS)
def test_faults_of_codes_are_found(check: Callable[[], list[str]], says: str) -> None:
    (line,) = check()
    assert says in line


def test_codes_are_found_in_sources() -> None:
    text = "raise InterfuseError('input.odd', 'x')\ncode = 'output.space' if full else 'output.write'\nf(InterfuseError('zzz', 'y'))\n"
    found = rules.codes_used([Source("kit/x.py", text), Source("core/errors.py", "X = 'budget.spent'")])
    assert found == {
        "input.odd": "kit/x.py:1",
        "output.space": "kit/x.py:2",
        "output.write": "kit/x.py:2",
        "zzz": "kit/x.py:3",
    }


def test_taken_names_are_found() -> None:
    assert rules.names_free("merge/x", ["density"], ["models", "base"]) == []
    assert rules.names_free("merge/x", ["base", "seed"], ["models", "base", "use"]) == [
        "merge/x: the parameter 'base' is an input of the room", "merge/x: the name 'seed' is taken", "merge/x: the name 'use' is taken"
    ]  # fmt: skip
