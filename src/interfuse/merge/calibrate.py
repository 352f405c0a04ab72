"""Statistics that some merges need of the models at work: taken on calibration examples, kept on disk, read beside the weights.

A method with the trait ``calibrate=function`` has it called once before streaming starts, with a :class:`Calibration`; what it
returns (:class:`Found`) stands ready in every ``Part`` and ``Whole``. Statistics that have the shape of the weights are not held
in memory: the engine reads them block by block like one more source.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call, Source
from interfuse.core.safe import file_sha256, read_text
from interfuse.data.models import Model, tokenizer_folder
from interfuse.data.overlay import whole
from interfuse.data.tables import Table, open_table, table_of_texts
from interfuse.data.vocabulary import Vocabulary
from interfuse.data.weights import Flat
from interfuse.kit.collectors import (
    BlockSensitivity,
    ChannelInformation,
    ChannelMeans,
    Grams,
    LogitDistance,
    SquaredGradients,
    VoteCurve,
    Votes,
)
from interfuse.kit.parameter_names import names_in_files
from interfuse.kit.passes import Collector, Kept, Loaded, Make, Wants, examples, keep, load, look, run_pass, within
from interfuse.kit.taps import blocks
from interfuse.merge.looks import table_of
from interfuse.merge.one_vocabulary import in_one_vocabulary, write_tokens
from interfuse.merge.plan import layer_of
from interfuse.merge.prepare import Prepared, everyone
from interfuse.merge.schedule import varies

#: part of every statistic's key: changes when the numbers would
_VERSION = 1
Losses = Callable[[Loaded, Tensor, Mapping[str, Tensor], Tensor | None], list[tuple[float, Tensor]]]


def open_examples(source: Source, ctx: Ctx) -> Table:
    """Calibration examples: any table, or a ``.txt`` file with one text per line.

    Raises:
        InterfuseError: as :func:`~interfuse.data.tables.open_table`; ``input.empty`` for a file without a text.
    """
    spec = source.spec
    if isinstance(spec, str | Path) and str(spec).endswith(".txt"):
        path = source.folder / Path(spec).expanduser()
        if not path.is_file():
            raise InterfuseError("input.missing", "there is no such file", where=str(path))
        texts = [line for line in read_text(path).splitlines() if line.strip()]
        if not texts:
            raise InterfuseError("input.empty", "the file holds no text", where=str(path))
        return table_of_texts(texts, source.name or path.stem, {"file": path.name, "sha256": file_sha256(path)})
    return open_table(source, ctx)


@dataclass
class Found:
    """What a method's calibration found.

    Attributes:
        beside: model's index -> from a tensor's name to a statistic of its shape (None: there is none for it). They arrive as
            ``part.statistics``.
        facts: anything else the method wants to see again, as ``part.found``.
        report: what the manifest says of it.
    """

    beside: Mapping[int, Callable[[str], Flat | None]] = field(default_factory=dict)
    facts: Any = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Calibration:
    """What a method may take statistics with.

    Attributes:
        call: the checked call. plan: its plan. place: folder of the statistics. budget: bytes that totals may take at a time.
    """

    call: Call
    plan: Prepared
    place: Path
    budget: int
    _loaded: dict[int, Loaded] = field(default_factory=dict, repr=False)
    _kept: list[Kept] = field(default_factory=list, repr=False)
    _names: dict[int, dict[str, str]] = field(default_factory=dict, repr=False)
    _models: dict[int, Model] = field(default_factory=dict, repr=False)
    _words: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """The number of models, the base not counted."""
        return len(self.call.inputs["models"])

    @property
    def base(self) -> int:
        """The base's index."""
        return self.count

    @property
    def order(self) -> list[int]:
        """The models' indices in the order of their content, for sums that must not depend on the order given."""
        tables = [self.table(i).fingerprint() for i in range(self.count)]
        return sorted(range(self.count), key=lambda i: (self.model(i).fingerprint(), tables[i]))

    def model(self, index: int) -> Model:
        """A model, or (index :attr:`base`) the base; with the vocabulary of the merge when that has one of its own."""
        if self.plan.alignment is None:
            return everyone(self.call)[index]
        if index not in self._models:
            if self._words is None:
                self._words = tempfile.TemporaryDirectory(prefix="interfuse-tokens-")
                write_tokens(self.call, self.plan, Path(self._words.name))
            self._models[index] = in_one_vocabulary(self.call, self.plan, index, Path(self._words.name))
        return self._models[index]

    def table(self, index: int) -> Table:
        """The examples of a model: its own, or those given for all."""
        return table_of(self.call, index)

    def one(self, name: str) -> Any:
        """A parameter that is needed before the first tensor, so that it cannot differ between them.

        Raises:
            InterfuseError: ``param.value`` for a schedule, or a slice's own value.
        """
        value = self.call.params[name]
        own = [part.get("parameters", {}) for part in self.call.params["slices"] or ()]
        if varies(value) or any(name in given for given in own):
            raise InterfuseError(
                "param.value", f"{name} is one value for the whole merge", where=name, fix="Give one number."
            )
        return value

    def own(self, name: str) -> Mapping[str, Any]:
        """The method's parameters for the output made of a tensor of this name."""
        for output in self.plan.outputs:
            if any(source == name for _, source in output.sources):
                return output.own
        return {}

    # ---------------------------------------------------------------------------------------------- statistics

    def squared_gradients(
        self, index: int, *, times_weight: bool = False, losses: Losses | None = None, about: str = ""
    ) -> Kept:
        """``mean g^2`` (or ``mean (g theta)^2``) of one model on its own examples, float32, by tensor.

        Args:
            losses: see :func:`~interfuse.kit.passes.run_pass`; ``about`` then names them for the key.
        """

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            loaded, names = self.loaded(index), self.names(index)
            shapes = {n: tuple(loaded.parameters[p].shape) for n, p in names.items()}

            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                seen = SquaredGradients({names[n]: shapes[n] for n in group}, times_weight)
                self._run([loaded], index, seen, totals, losses=losses)
                made = seen.result()
                return {n: made[names[n]] for n in group}

            return within(self._sizes(loaded, names), self.budget), make, {}

        return self._keep(
            {
                "kind": "squared gradients",
                "times_weight": times_weight,
                "losses": about,
                **self._about(index, self.table(index)),
            },
            groups,
        )

    def grams(self, index: int) -> Kept:
        """``X^T X`` (``gram/TENSOR``) and tokens (``tokens/TENSOR``) of the inputs of one model's matrices.

        Matrices that read one input share it: ``facts["leader"]`` says under which tensor's name it stands, ``facts["stored"]``
        whether a matrix is stored as [in, out].
        """

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            loaded = self.loaded(index)
            stored, modules = self._matrices(index)
            seen = self._probe(loaded, index, list(modules.values()))
            leaders: dict[tuple[int, Any], str] = {}
            leader: dict[str, str] = {}
            for tensor, module in modules.items():
                x = seen.get(module)
                mark = (x.data_ptr(), tuple(x.shape)) if x is not None else (0, tensor)
                leader[tensor] = leaders.setdefault(mark, tensor)
            widths = {t: loaded.module.get_submodule(modules[t]).get_parameter("weight").shape[0 if stored[t] else 1]
                      for t in dict.fromkeys(leader.values())}  # fmt: skip

            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                collector = Grams({modules[t]: widths[t] for t in group})
                self._run([loaded], index, collector, totals)
                made = collector.result()
                return {f"{kind}/{t}": made[f"{kind}/{modules[t]}"] for t in group for kind in ("gram", "tokens")}

            sizes = {t: 8 * w * w for t, w in widths.items()}
            return within(sizes, self.budget), make, {"leader": leader, "stored": stored}

        return self._keep({"kind": "grams", **self._about(index, self.table(index))}, groups)

    def channels(self, index: int, table: Table) -> Kept:
        """``sum over examples of mean over tokens |x_c|`` of the inputs of a model's matrices and norms, float64, by tensor.

        ``facts["stored"]`` says whether a matrix is stored as [in, out].
        """

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            loaded = self.loaded(index)
            stored, modules = self._matrices(index)
            widths = {t: loaded.module.get_submodule(m).get_parameter("weight").shape[0 if stored[t] else 1]
                      for t, m in modules.items()}  # fmt: skip
            owners = {p: t for t, p in self.names(index).items()}
            for name, module in loaded.module.named_modules():  # norms: a weight per channel of what they read
                weight = module._parameters.get("weight")
                if weight is not None and weight.ndim == 1 and f"{name}.weight" in owners:
                    modules[owners[f"{name}.weight"]] = name
                    widths[owners[f"{name}.weight"]] = len(weight)
            shapes = self._probe(loaded, index, list(modules.values()), table)
            modules = {t: m for t, m in modules.items() if m in shapes and shapes[m].shape[-1] == widths[t]}

            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                collector = ChannelMeans({modules[t]: widths[t] for t in group})
                self._run([loaded], index, collector, totals, table=table)
                made = collector.result()
                return {t: made[modules[t]] for t in group}

            return within({t: 8 * widths[t] for t in modules}, self.budget), make, {"stored": stored}

        return self._keep({"kind": "channels", **self._about(index, table)}, groups)

    def votes(
        self,
        prior: int,
        domain: int,
        fisher: Kept,
        *,
        penalty: Callable[[str], float],
        zero_passes: bool,
        part: str,
    ) -> Kept:
        """The balance of votes (by tensor, float32), ``silent/TENSOR``: how many weights scored exactly 0 in every example,
        and ``accepted/TENSOR``: how many have a positive balance. ``penalty``: lambda for a tensor."""
        weights = self.plan.weights

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            loaded, names = self.loaded(domain), self.names(domain)
            names = {n: p for n, p in names.items() if n in fisher and n in weights[prior]}
            count = len(self.table(domain))

            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                price = {}
                for n in group:
                    gap = (whole(weights[prior].source(n)) - whole(weights[domain].source(n))).double()
                    price[names[n]] = penalty(n) * fisher.tensor(n).double() * gap.square()
                collector = Votes(
                    {names[n]: tuple(price[names[n]].shape) for n in group}, price.__getitem__, zero_passes
                )
                self._run([loaded], domain, collector, totals, part=part)
                made, out = collector.result(), {}
                for n in group:
                    out[n] = made[names[n]]
                    out[f"silent/{n}"] = (made[f"silent/{names[n]}"] == count).sum()
                    out[f"accepted/{n}"] = (out[n] > 0).sum()
                return out

            sizes = {n: 3 * size for n, size in self._sizes(loaded, names).items()}
            return within(sizes, self.budget), make, {}

        about = {
            "kind": "votes",
            "prior": self.model(prior).fingerprint(),
            "fisher": fisher.folder.name,
            "zero_passes": zero_passes,
            "part": part,
            "penalty": {n: penalty(n) for n in fisher.names()},
            **self._about(domain, self.table(domain)),
        }
        return self._keep(about, groups)

    def acceptance(
        self, prior: int, domain: int, fisher: Kept, *, penalties: Sequence[float], zero_passes: bool, part: str
    ) -> list[float]:
        """The share of all weights that :meth:`votes` would accept under each penalty."""
        weights = self.plan.weights

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            loaded, names = self.loaded(domain), self.names(domain)
            names = {n: p for n, p in names.items() if n in fisher and n in weights[prior]}

            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                price = {}
                for n in group:
                    gap = (whole(weights[prior].source(n)) - whole(weights[domain].source(n))).double()
                    price[names[n]] = fisher.tensor(n).double() * gap.square()
                shapes = {names[n]: tuple(price[names[n]].shape) for n in group}
                collector = VoteCurve(shapes, price.__getitem__, penalties, zero_passes)
                self._run([loaded], domain, collector, totals, part=part)
                made = collector.result()
                return {n: made[names[n]] for n in group}

            sizes = {n: (2 + len(penalties) // 4) * size for n, size in self._sizes(loaded, names).items()}
            return within(sizes, self.budget), make, {}

        about = {
            "kind": "acceptance",
            "prior": self.model(prior).fingerprint(),
            "fisher": fisher.folder.name,
            "zero_passes": zero_passes,
            "part": part,
            "penalties": list(penalties),
            **self._about(domain, self.table(domain)),
        }
        kept = self._keep(about, groups)
        total = sum(weights[domain][n].numel for n in kept.names())
        counts = torch.stack([kept.tensor(n) for n in kept.names()]).sum(0)
        return [float(c) / total for c in counts]

    def sensitivities(self, index: int) -> dict[str, float]:
        """``mean_s sum |theta g_s|`` of one model on its own examples by block: a layer, or a tensor outside the layers."""

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            loaded, names = self.loaded(index), self.names(index)

            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                collector = BlockSensitivity({p: block_of(n) for n, p in names.items()})
                self._run([loaded], index, collector, totals)
                return collector.result()

            return [list(names)], make, {}

        kept = self._keep({"kind": "sensitivities", **self._about(index, self.table(index))}, groups)
        return {name: float(kept.tensor(name)) for name in kept.names()}

    def distance(self, one: int, expert: int) -> float:
        """Mean distance of a model's logits from an expert's, on the expert's examples."""

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                collector = LogitDistance()
                self._run([self.loaded(one), self.loaded(expert, beside=one)], expert, collector, totals)
                return collector.result()

            return [["distance"]], make, {}

        about = {"kind": "distance", "other": self.model(one).fingerprint(), **self._about(expert, self.table(expert))}
        return float(self._keep(about, groups).tensor("distance"))

    def information(self, index: int) -> tuple[dict[str, float], dict[str, str]]:
        """Mutual information of what the base's and a model's blocks give on the model's examples, in nats, by block; and the
        block that a tensor of the files belongs to."""
        loaded = self.loaded(index)
        names = blocks(loaded.module)

        def groups() -> tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]:
            pair = [self.loaded(self.base, beside=index), self.loaded(index, beside=self.base)]
            seen = self._probe(pair[1], index, names, outputs=True)

            def make(number: int, group: Sequence[str], totals: Path) -> Mapping[str, Tensor]:
                collector = ChannelInformation({n: seen[n].shape[-1] for n in names})
                self._run(pair, index, collector, totals)
                return collector.result()

            return [names], make, {}

        about = {
            "kind": "information",
            "base": self.model(self.base).fingerprint(),
            **self._about(index, self.table(index)),
        }
        kept = self._keep(about, groups)
        owners = {
            n: b for n, p in self.names(index).items() if (b := next((b for b in names if p.startswith(b + ".")), ""))
        }
        return {n: float(kept.tensor(n)) for n in kept.names()}, owners

    # ---------------------------------------------------------------------------------------------- machinery

    def loaded(self, index: int, beside: int | None = None) -> Loaded:
        """A model, loaded; others but ``beside`` are let go."""
        for other in [i for i in self._loaded if i not in (index, beside)]:
            del self._loaded[other]
        if index not in self._loaded:
            self._loaded[index] = load(self.model(index), self.call.ctx)
        return self._loaded[index]

    def names(self, index: int) -> dict[str, str]:
        """Floating tensor in the model's files -> parameter of its module."""
        if index not in self._names:
            stored = [n for n in self.plan.weights[index] if self.plan.weights[index][n].dtype.is_floating_point]
            loaded = self.loaded(index, beside=next(iter(self._loaded), None))
            found = names_in_files(loaded.model, loaded.module, stored)
            known = loaded.parameters
            self._names[index] = {n: p for n, p in found.items() if p in known}
        return self._names[index]

    def _sizes(self, loaded: Loaded, names: Mapping[str, str]) -> dict[str, int]:
        return {n: 8 * loaded.parameters[p].numel() for n, p in names.items()}

    def _matrices(self, index: int) -> tuple[dict[str, bool], dict[str, str]]:
        """Tensor -> whether it is stored as [in, out], and tensor -> the module that multiplies with it."""
        linear, stored, modules = self.loaded(index).linear, {}, {}
        for tensor, parameter in self.names(index).items():
            module = parameter.removesuffix(".weight")
            if parameter.endswith(".weight") and module in linear:
                stored[tensor], modules[tensor] = linear[module], module
        return stored, modules

    def _probe(
        self, loaded: Loaded, index: int, modules: Sequence[str], table: Table | None = None, outputs: bool = False
    ) -> dict[str, Tensor]:
        """What modules read (or give) of the first example."""
        table = table or self.table(index)
        length = self.call.params["calibration_length"]
        _, batch = next(iter(examples(loaded, table, part="full", max_length=length, batch_size=1)))
        wants = Wants(outputs=list(modules)) if outputs else Wants(inputs=list(modules))
        seen = look(loaded, batch, wants, table)
        return dict(seen.outputs if outputs else seen.inputs)

    def _run(
        self,
        loaded: Sequence[Loaded],
        index: int,
        collector: Collector,
        totals: Path,
        *,
        table: Table | None = None,
        part: str = "full",
        losses: Losses | None = None,
    ) -> None:
        params = self.call.params
        run_pass(loaded, table or self.table(index), collector, self.call.ctx, part=part, max_length=params["calibration_length"],
                 batch_size=params["calibration_batch"], state=totals, losses=losses)  # fmt: skip

    def _about(self, index: int, table: Table) -> dict[str, Any]:
        params = self.call.params
        model = self.model(index)
        return {
            "version": _VERSION,
            "model": model.fingerprint(),
            "tokenizer": Vocabulary("", tokenizer_folder(model)).fingerprint(),
            "examples": table.fingerprint(),
            "rows": len(table),
            "max_length": params["calibration_length"],
            "batch": params["calibration_batch"],
            "dtype": "float64" if self.call.ctx.dtype == "float64" else "float32",
        }

    def _keep(
        self, about: Mapping[str, Any], groups: Callable[[], tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]]
    ) -> Kept:
        self._kept.append(keep(self.place, about, groups))
        return self._kept[-1]

    def close(self) -> None:
        """Lets go of files and models."""
        self._loaded.clear()
        if self._words is not None:
            self._words.cleanup()
        for kept in self._kept:
            kept.close()


def block_of(name: str) -> str:
    """The layer a tensor is of, ``model.layers.3``; outside the layers each tensor is a block of its own."""
    place = layer_of(name)
    return name if place is None else f"{place[0]}{place[1]}"


@contextlib.contextmanager
def calibrated(call: Call, plan: Prepared) -> Iterator[Found | None]:
    """Runs a method's calibration; None for methods that need none.

    Statistics stand in the context's cache, or with ``reuse_statistics`` off in the scratch folder of this run.

    Raises:
        InterfuseError: what the passes raise.
    """
    calibrate = call.method.traits.get("calibrate")
    if calibrate is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        if call.params["reuse_statistics"]:
            place = Path(call.ctx.cache).expanduser() / "statistics"
        elif call.ctx.scratch is not None:
            place = call.ctx.scratch / "statistics"
        else:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        calibration = Calibration(call, plan, place, int(call.params["max_memory"] * 1e9))
        stack.callback(calibration.close)
        with torch.no_grad():
            found = calibrate(calibration)
        yield found
