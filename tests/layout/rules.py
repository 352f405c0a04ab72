"""The rules of the house as functions: each takes sources and returns one line per violation.

``Source.path`` is the place below ``src/interfuse``, such as ``merge/ties.py``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

ROOMS = ("distill", "merge", "decode", "route", "build", "inject", "complete", "answer", "recommend", "edit", "synthesize",
         "measure")  # fmt: skip
LAYERS = {"core": 0, "data": 1, "kit": 2, **dict.fromkeys(ROOMS, 3), "web": 4, "cli": 5}
#: third-party packages the core may use: all light
CORE_MAY_USE = ("numpy", "pydantic", "yaml", "filelock", "xxhash")
METHOD_LINES, FILE_LINES = 400, 800
DEPTH = 2


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        return self.path.split("/")[0] if "/" in self.path else ""

    @property
    def module(self) -> str:
        return ".".join(["interfuse", *self.path.removesuffix(".py").removesuffix("/__init__").split("/")])

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        for node in ast.walk(self.tree):
            if isinstance(node, kinds):
                yield node


Rule = Callable[[Source], list[str]]


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or an attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the full name of what is called, import aliases resolved."""
    known = imported(source)
    for node in source.nodes(ast.Call):
        assert isinstance(node, ast.Call)
        head, _, rest = dotted(node.func).partition(".")
        full = known.get(head, head)
        yield node, f"{full}.{rest}" if rest else full


def imported(source: Source) -> dict[str, str]:
    """Local name -> the module or object it was imported from."""
    names: dict[str, str] = {}
    for node in source.nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            for a in node.names:
                names[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for a in node.names:
                names[a.asname or a.name] = f"{origin(source, node)}.{a.name}"
    return names


def origin(source: Source, node: ast.ImportFrom) -> str:
    """The module an import is from, relative ones resolved."""
    if not node.level:
        return node.module or ""
    inside = source.module.split(".") if source.path.endswith("__init__.py") else source.module.split(".")[:-1]
    inside = inside[: len(inside) - node.level + 1]
    return ".".join([*inside, *([node.module] if node.module else [])])


def modules_used(source: Source) -> Iterator[tuple[int, str]]:
    """Every module a file imports, inside functions and by literal name too."""
    for node in source.nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = origin(source, node)
            yield from ((node.lineno, f"{module}.{a.name}") for a in node.names)
    for call, name in calls(source):
        if name in ("importlib.import_module", "__import__") and call.args:
            first = call.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield call.lineno, first.value


def import_direction(source: Source) -> list[str]:
    """core <- data <- kit <- rooms <- web <- cli; a room never imports a room; nobody imports cli or web."""
    bad = []
    mine = LAYERS.get(source.package, 9 if source.path == "__main__.py" else 1)
    for line, module in modules_used(source):
        parts = module.split(".")
        if parts[0] != "interfuse" or len(parts) < 2 or parts[1] not in LAYERS or parts[1] == source.package:
            continue
        if LAYERS[parts[1]] >= mine:
            bad.append(f"{source.path}:{line} imports {module}")
    return bad


def core_is_light(source: Source) -> list[str]:
    """The core uses the standard library and a few light packages."""
    import sys

    if source.package != "core":
        return []
    light = (*sys.stdlib_module_names, *CORE_MAY_USE, "interfuse")
    return [f"{source.path}:{line} imports {m}" for line, m in modules_used(source) if m.split(".")[0] not in light]


DANGEROUS_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle")
DANGEROUS_CALLS = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "pandas.read_pickle", "tempfile.mktemp",
}  # fmt: skip
YAML_READERS = ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")


def no_dangerous_calls(source: Source) -> list[str]:
    """No pickle, eval, exec, yaml.load, shell=True, bare except, torch.load without weights_only, remote code."""
    bad = []
    for line, module in modules_used(source):
        if module.split(".")[0] in DANGEROUS_MODULES:
            bad.append(f"{source.path}:{line} imports {module}")
    for call, name in calls(source):
        words = {k.arg: k.value for k in call.keywords if k.arg}

        def is_true(key: str, words: Mapping[str, ast.expr] = words) -> bool:
            value = words.get(key)
            return value is not None and not (isinstance(value, ast.Constant) and value.value is False)

        head, _, last = name.rpartition(".")
        if name in DANGEROUS_CALLS or (head == "yaml" and last in YAML_READERS):
            bad.append(f"{source.path}:{call.lineno} calls {name}")
        if is_true("shell") or is_true("allow_pickle") or is_true("trust_remote_code"):
            bad.append(f"{source.path}:{call.lineno} passes shell, allow_pickle or trust_remote_code")
        weights_only = words.get("weights_only")
        if name == "torch.load" and not (isinstance(weights_only, ast.Constant) and weights_only.value is True):
            bad.append(f"{source.path}:{call.lineno} calls torch.load without weights_only=True")
    for node in source.nodes(ast.ExceptHandler):
        assert isinstance(node, ast.ExceptHandler)
        if node.type is None:
            bad.append(f"{source.path}:{node.lineno} has a bare except")
    return bad


def no_vague_names(source: Source) -> list[str]:
    """No module is called utils, common, helpers or base."""
    vague = re.compile(r"_?(utils?|commons?|helpers?|bases?|misc)")
    return [
        f"{source.path} is named {part}" for part in source.path.removesuffix(".py").split("/") if vague.fullmatch(part)
    ]


def short_files(source: Source) -> list[str]:
    """A method file has at most 400 lines, any file 800."""
    limit = METHOD_LINES if marked(source) else FILE_LINES
    lines = source.text.count("\n") + 1
    return [f"{source.path} has {lines} lines, more than {limit}"] if lines > limit else []


def no_hasattr(source: Source) -> list[str]:
    """What a thing can do is told by its type."""
    return [f"{source.path}:{call.lineno} calls hasattr" for call, name in calls(source) if name == "hasattr"]


SET_MAKERS = ("set", "frozenset")
SET_METHODS = ("union", "intersection", "difference", "symmetric_difference")
#: calls whose result does not depend on the order of what they are given
UNORDERED = ("sorted", "set", "frozenset", "any", "all", "len", "min", "max")
#: calls that pass the order on
ORDERED = ("list", "tuple", "enumerate", "zip", "map", "filter", "iter", "next", "reversed", "dict.fromkeys", "sum")


def no_set_iteration(source: Source) -> list[str]:
    """Nothing iterates over a set (its order differs between processes) unless the order cannot matter."""
    bad: list[str] = []
    parents = {child: node for node in ast.walk(source.tree) for child in ast.iter_child_nodes(node)}

    def scope(node: ast.AST) -> ast.AST:
        while node in parents and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            node = parents[node]
        return node

    named: dict[tuple[ast.AST, str], list[bool]] = {}

    def is_set(node: ast.AST) -> bool:
        if isinstance(node, ast.Set | ast.SetComp):
            return True
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in SET_MAKERS:
                return True
            return isinstance(node.func, ast.Attribute) and node.func.attr in SET_METHODS and is_set(node.func.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.BitXor | ast.Sub):
            views = [isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in ("keys", "items")
                     for n in (node.left, node.right)]  # fmt: skip
            return is_set(node.left) or is_set(node.right) or any(views)
        if isinstance(node, ast.IfExp):
            return is_set(node.body) or is_set(node.orelse)
        if isinstance(node, ast.Name):
            kinds = named.get((scope(node), node.id), [])
            return bool(kinds) and all(kinds)
        return False

    for node in source.nodes(ast.Assign, ast.AnnAssign):
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                named.setdefault((scope(node), target.id), []).append(is_set(node.value))

    def order_lost(node: ast.AST) -> bool:
        """Whether a comprehension stands where its order cannot matter."""
        if isinstance(node, ast.SetComp):
            return True
        parent = parents.get(node)
        return isinstance(parent, ast.Call) and dotted(parent.func) in UNORDERED and node in parent.args

    for node in ast.walk(source.tree):
        if isinstance(node, ast.For | ast.AsyncFor) and is_set(node.iter):
            bad.append(f"{source.path}:{node.lineno} iterates over a set")
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            if any(is_set(g.iter) for g in node.generators) and not order_lost(node):
                bad.append(f"{source.path}:{node.lineno} iterates over a set")
        elif isinstance(node, ast.Call):
            joins = isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "extend", "writelines")
            if (joins or dotted(node.func) in ORDERED) and any(map(is_set, node.args)) and not order_lost(node):
                bad.append(f"{source.path}:{node.lineno} takes the order of a set")
        elif isinstance(node, ast.Starred) and is_set(node.value) and not isinstance(parents.get(node), ast.Set):
            bad.append(f"{source.path}:{node.lineno} takes the order of a set")
    return bad


NUMPY_MAY = ("Generator", "Philox", "PCG64", "SeedSequence", "BitGenerator", "default_rng")
TORCH_DRAWS = ("rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli")
#: where the global generators of libraries are fenced in
SEEDING = "data/seeding.py"


def no_global_randomness(source: Source) -> list[str]:
    """Randomness comes from generators that are passed in; no global seed, no seed from the clock or from string hashes."""
    bad = []
    known = imported(source)
    for call, name in calls(source):
        head, _, last = name.rpartition(".")
        if dotted(call.func).split(".")[0] not in known and name != "hash":
            continue  # a local name that looks like a module's
        given = {k.arg for k in call.keywords}
        wrong = (
            (head == "numpy.random" and last not in NUMPY_MAY)
            or (head == "numpy.random" and last in ("default_rng", "Philox", "PCG64", "SeedSequence") and not (call.args or given))
            or (head == "random" and last != "Random")
            or (name == "random.Random" and not call.args)
            or (head in ("torch", "torch.cuda", "torch.random") and last in ("manual_seed", "manual_seed_all", "seed", "seed_all"))
            or (head == "torch" and last in TORCH_DRAWS and "generator" not in given)
            or last == "set_seed"
            or name in ("os.urandom", "uuid.uuid4", "uuid.uuid1", "hash")
            or head == "secrets"
        )  # fmt: skip
        if source.package == "web" and head == "secrets":
            continue  # an address that others must not guess
        if wrong and source.path != SEEDING:
            bad.append(f"{source.path}:{call.lineno} calls {name}")
    return bad


AT_IMPORT = (
    "open", "print", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "makedirs", "urlopen", "from_pretrained",
    "load_dataset", "run", "Popen", "check_output", "getenv", "connect", "OpenAI", "get", "post",
)  # fmt: skip
NETWORK = (
    "requests",
    "httpx",
    "urllib.request",
    "socket",
    "openai",
    "subprocess",
    "pathlib",
    "os",
    "transformers",
    "datasets",
    "",
)


def nothing_at_import(source: Source) -> list[str]:
    """Importing a module reads, writes, prints and asks nothing."""
    bad = []

    def walk(node: ast.AST) -> Iterator[ast.Call]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "__name__" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Call):
                yield child
            yield from walk(child)

    names = {id(call): name for call, name in calls(source)}
    for call in walk(source.tree):
        name = names[id(call)] or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
        head, _, last = name.rpartition(".")
        loud = last in AT_IMPORT[:10] or (last in AT_IMPORT and head in NETWORK and (head or last in ("open", "print")))
        if loud:
            bad.append(f"{source.path}:{call.lineno} calls {name} at import")
    return bad


def marked(source: Source) -> list[str]:
    """The functions and classes of a file that are marked as methods."""
    names = []
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for mark in node.decorator_list:
                target = mark.func if isinstance(mark, ast.Call) else mark
                if imported(source).get(dotted(target)) == "interfuse.core.method.method":
                    names.append(node.name)
    return names


def one_method_per_file(source: Source) -> list[str]:
    """A file holds one method at most, and only in a room."""
    names = marked(source)
    if len(names) > 1:
        return [f"{source.path} holds {len(names)} methods: {', '.join(names)}"]
    return [f"{source.path} holds a method outside a room"] if names and source.package not in ROOMS else []


def documented(source: Source) -> list[str]:
    """Every module, public function and public class of core, data, kit and the rooms says what it is for."""
    if source.package not in (*LAYERS, "") or not source.text.strip():
        return []
    bad = [] if ast.get_docstring(source.tree) else [f"{source.path} has no docstring"]
    for node in source.tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            bad.append(f"{source.path}:{node.lineno} {node.name} has no docstring")
    return bad


#: rules that look at one file
FILE_RULES: tuple[Rule, ...] = (
    import_direction, core_is_light, no_dangerous_calls, no_vague_names, short_files, no_hasattr, no_set_iteration,
    no_global_randomness, nothing_at_import, one_method_per_file, documented,
)  # fmt: skip


def shallow_classes(sources: Sequence[Source]) -> list[str]:
    """A class is an interface or a leaf: no class of ours stands more than two deep among classes of ours."""
    bases: dict[str, list[str]] = {}
    for source in sources:
        known = imported(source)
        for node in source.nodes(ast.ClassDef):
            assert isinstance(node, ast.ClassDef)
            found = []
            for base in node.bases:
                target = base.value if isinstance(base, ast.Subscript) else base
                head, _, rest = dotted(target).partition(".")
                full = known.get(head, f"{source.module}.{head}")
                found.append(f"{full}.{rest}" if rest else full)
            bases[f"{source.module}.{node.name}"] = found

    def depth(name: str, seen: tuple[str, ...] = ()) -> int:
        if name not in bases or name in seen:
            return 0
        return 1 + max((depth(b, (*seen, name)) for b in bases[name]), default=0)

    return [f"{name} stands {depth(name)} deep" for name in sorted(bases) if depth(name) > DEPTH]


def cards_match(sources: Sequence[Source], cards: Sequence[str]) -> list[str]:
    """Every method file has a card beside it, every card a method file."""
    methods = {s.path.removesuffix(".py") for s in sources if marked(s)}
    have = {c.removesuffix(".md") for c in cards}
    return [f"{m}.py has no card" for m in sorted(methods - have)] + [
        f"{c}.md has no method" for c in sorted(have - methods)
    ]


def codes_used(sources: Sequence[Source]) -> dict[str, str]:
    """Every error code the sources raise or mention as a value -> one place of it."""
    pattern = re.compile(r"(method|param|recipe|input|unsafe|output|artifact|needs|endpoint|budget|run)\.[a-z]+")
    found: dict[str, str] = {}
    for source in sources:
        if source.path == "core/errors.py":
            continue
        for node in source.nodes(ast.Constant):
            assert isinstance(node, ast.Constant)
            if (
                isinstance(node.value, str)
                and pattern.fullmatch(node.value)
                and not node.value.endswith((".json", ".csv"))
            ):
                found.setdefault(node.value, f"{source.path}:{node.lineno}")
        for call, name in calls(source):
            if name.endswith("InterfuseError") and call.args and isinstance(call.args[0], ast.Constant):
                found.setdefault(str(call.args[0].value), f"{source.path}:{call.lineno}")
    return found


def codes_match(
    used: Mapping[str, str], codes: Mapping[str, tuple[int, str]], reserved: Mapping[str, str]
) -> list[str]:
    """Codes in the sources are listed; listed ones have a meaning and are used, or are reserved for a stated reason."""
    bad = [f"{place} uses {code!r}, which is not listed" for code, place in sorted(used.items()) if code not in codes]
    for code, (status, meaning) in codes.items():
        if status not in (1, 2, 3, 4) or len(meaning.split()) < 3:
            bad.append(f"{code} has no meaning")
        if code not in used and code not in reserved:
            bad.append(f"{code} is never used and not reserved")
        if code in used and code in reserved:
            bad.append(f"{code} is reserved but used: {used[code]}")
    return bad + [f"{code} is reserved but not listed" for code in reserved if code not in codes]


#: words that ``apply``, a recipe's step or the command line have taken
TAKEN = (
    "use",
    "ctx",
    "room",
    "out",
    "seed",
    "seeds",
    "force",
    "method_name",
    "device",
    "dtype",
    "dry_run",
    "json",
    "help",
)


def names_free(method: str, params: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """A parameter is named neither like an input of its room nor like what every call takes."""
    bad = [f"{method}: the parameter {p!r} is an input of the room" for p in params if p in inputs]
    return bad + [f"{method}: the name {p!r} is taken" for p in (*params, *inputs) if p in TAKEN]
