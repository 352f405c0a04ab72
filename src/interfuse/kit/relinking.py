"""Linking again after some mentions changed, at the cost of these and of what stands near them; the result is that of
:func:`interfuse.kit.linking.link` on all mentions.

What is kept are tables: groups of mentions with one name, the blocks they stand in, the names they are also known by, the pairs of
groups that pull or push, and what every merged name is called. After a change,

1. names whose mentions changed are grouped anew; all other groups are as they were;
2. pairs with such a group are weighed anew; of other pairs only those in a block that is too large to be compared as a whole can come
   or go, as its windows move;
3. the parts of the graph of pairs in which something came or went are clustered anew; parts do not know of each other.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interfuse.data.graph_rows import words_of
from interfuse.data.ontology import Ontology
from interfuse.kit.linking import (
    Group,
    LinkSettings,
    Mention,
    Parts,
    acronym_of,
    block_keys,
    by_record,
    by_spelling,
    cluster,
    comparable,
    folded,
    is_acronym,
    near_spelling,
    reach_of,
    same_names,
    weights_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

#: the tables of a state; a group is called by its first id
TABLES = ("groups", "members", "blocks", "aliases", "pairs", "merged")
#: key and name of a group in a block
Row = tuple[str, str]


@dataclass
class LinkState:
    """What is kept of a linking.

    Attributes:
        groups: name, key, label, types, letters (an acronym of it), short (it is one) of every group, sorted by name.
        members: id, group. blocks: block, key, group (nearly sorted, so that sorting them is quick). aliases: alias (folded), group.
        pairs: a, b (groups, the smaller first; coded), weight, spelt. merged: name, called.
    """

    groups: pa.Table
    members: pa.Table
    blocks: pa.Table
    aliases: pa.Table
    pairs: pa.Table
    merged: pa.Table

    def merges(self) -> list[tuple[str, str]]:
        """What :meth:`interfuse.kit.linking.Linked.merges` gives."""
        rows = zip(self.merged.column("called").to_pylist(), self.merged.column("name").to_pylist(), strict=True)
        return sorted(rows)


def state_of(parts: Parts, merges: Iterable[tuple[str, str]], settings: LinkSettings | None = None) -> LinkState:
    """The state after a linking of everything."""
    import pyarrow as pa

    names = [g.ids[0] for g in parts.groups]
    spelt = [pair in parts.spelt for pair in parts.weights]
    left, right = ([pair[i] for pair in parts.weights] for i in (0, 1))
    pairs = _coded_pairs(names, left, right, list(parts.weights.values()), spelt)
    word = pa.string()
    joined = list(merges)
    return LinkState(
        *_group_tables(parts.groups, settings or LinkSettings()), pairs,
        pa.table({"name": [b for _, b in joined], "called": [a for a, _ in joined]}, pa.schema([("name", word), ("called", word)])),
    )  # fmt: skip


def _group_tables(groups: Sequence[Group], settings: LinkSettings) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    import pyarrow as pa

    word = pa.string()
    rows = [(g.ids[0], g.key, g.label, list(g.types), acronym_of(g.label), g.label.replace(".", "") if is_acronym(g.label) else "")
            for g in groups]  # fmt: skip
    schema = pa.schema(
        [("name", word), ("key", word), ("label", word), ("types", pa.list_(word)), ("letters", word), ("short", word)]
    )
    members = [(i, g.ids[0]) for g in groups for i in g.ids]
    blocks = sorted(_block_rows(groups, settings))
    aliases = [(folded(a), g.ids[0]) for g in groups for a in g.aliases]

    def table(rows: Sequence[Sequence[Any]], schema: Any) -> Any:
        return pa.table({n: [r[i] for r in rows] for i, n in enumerate(schema.names)}, schema)

    return (table(rows, schema), table(members, pa.schema([("id", word), ("group", word)])),
            table(blocks, pa.schema([("block", word), ("key", word), ("group", word)])),
            table(aliases, pa.schema([("alias", word), ("group", word)])))  # fmt: skip


def _block_rows(groups: Iterable[Group], settings: LinkSettings) -> list[tuple[str, str, str]]:
    """Block, key and name of groups whose names are compared."""
    return [(b, g.key, g.ids[0]) for g in groups if comparable(g.key, settings) for b in block_keys(g.key, settings)]


def _pairs_table(rows: Sequence[tuple[str, str, float, bool]]) -> pa.Table:
    names = sorted({n for a, b, _, _ in rows for n in (a, b)})
    place = {n: i for i, n in enumerate(names)}
    left, right = [place[a] for a, _, _, _ in rows], [place[b] for _, b, _, _ in rows]
    return _coded_pairs(names, left, right, [w for _, _, w, _ in rows], [spelt for _, _, _, spelt in rows])


def _coded_pairs(names: Sequence[str], a: Any, b: Any, weights: Any, spelt: Any) -> pa.Table:
    """The table of pairs from places among names."""
    import pyarrow as pa

    words = pa.array(names, type=pa.string())
    ends = [pa.DictionaryArray.from_arrays(pa.array(ids, type=pa.int32()), words) for ids in (a, b)]
    return pa.table(
        {
            "a": ends[0],
            "b": ends[1],
            "weight": pa.array(weights, type=pa.float64()),
            "spelt": pa.array(spelt, type=pa.bool_()),
        }
    )


def among(column: Any, values: Iterable[str]) -> Any:
    """Which rows of a column of words, plain or coded, are one of some words, bool [N]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(set(values)), type=pa.string())
    if pa.types.is_dictionary(column.type):
        found: dict[tuple[int, ...], Any] = {}  # pieces of one table share their words
        made = []
        for chunk in column.chunks:
            words = chunk.dictionary
            data = words.buffers()[2]
            place = (data.address if data is not None else 0, words.offset, len(words))
            if place not in found:
                found[place] = pc.is_in(words, wanted)
            made.append(found[place].take(chunk.indices))
        return pa.chunked_array(made, type=pa.bool_())
    return pc.is_in(column, wanted)


def _without(table: Any, column: str, values: Iterable[str]) -> Any:
    import pyarrow.compute as pc

    return table.filter(pc.invert(among(table.column(column), values)))


def _joined(*tables: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables(tables)


def relink(state: LinkState, changed: Sequence[str], mentions: Callable[[Sequence[str]], Mapping[str, Mention]], *,
           settings: LinkSettings | None = None, ontology: Ontology | None = None) -> tuple[LinkState, dict[str, tuple[str, str]]]:  # fmt: skip
    """The state after mentions changed, appeared or went, and of every name that is called otherwise now: how it was and is called.

    Args:
        changed: ids whose mention is or was another one; more than these do no harm.
        mentions: gives the mentions of ids as they are now; ids without one are left out.
    """
    settings = settings or LinkSettings()
    now = dict(mentions(changed))
    mine = state.members.filter(among(state.members.column("id"), changed)).column("group").to_pylist()
    keys = {folded(m.label) for m in now.values()}
    keys.update(state.groups.filter(among(state.groups.column("name"), mine)).column("key").to_pylist())
    gone = state.groups.filter(among(state.groups.column("key"), keys)).column("name").to_pylist()
    before = state.members.filter(among(state.members.column("group"), gone)).column("id").to_pylist()
    rest = sorted(set(before) - set(changed))
    now.update(mentions(rest))
    fresh, _ = same_names(sorted(now.values(), key=lambda m: m.id), ontology)
    tables = zip(
        (state.groups, state.members, state.blocks, state.aliases), ("name", "group", "group", "group"), _group_tables(fresh, settings),
        strict=True,
    )  # fmt: skip
    groups, members, blocks, aliases = (_joined(_without(old, column, gone), new) for old, column, new in tables)
    made = LinkState(groups, members, blocks, aliases, state.pairs, state.merged)
    change = _Change(state, made, fresh, gone, mentions, settings, ontology)
    pairs, seeds = change.pairs()
    made.pairs = pairs
    names = sorted({*seeds, *(g.ids[0] for g in fresh)})
    return _clustered(made, names, before)


@dataclass
class _Change:
    """Which pairs come and go."""

    old: LinkState
    new: LinkState
    fresh: Sequence[Group]
    gone: Sequence[str]
    mentions: Callable[[Sequence[str]], Mapping[str, Mention]]
    settings: LinkSettings
    ontology: Ontology | None
    blocks: dict[str, list[Row]] = field(default_factory=dict)  # as they are now, those that were looked at

    def pairs(self) -> tuple[pa.Table, list[str]]:
        """The table of pairs now, and the groups at which something came or went."""
        import pyarrow as pa
        import pyarrow.compute as pc

        mine = {g.ids[0] for g in self.fresh}
        touching, come, lost = self._compared(mine)
        ours = self._recorded(mine)
        touching, come = self._similar(touching), self._similar(come)
        wanted = sorted({*mine, *ours, *(n for pair in (*touching, *come) for n in pair)})
        groups = self._groups(wanted)
        rows = self._weighed(groups, touching, mine)
        old = self.old.pairs
        out = pc.or_(among(old.column("a"), self.gone), among(old.column("b"), self.gone))
        seeds = [n for column in ("a", "b") for n in words_of(old.filter(out).column(column))]
        stays = ~out.to_numpy()
        if lost or come:
            ends = {n for pair in (*lost, *come) for n in pair}
            inside = pc.and_(among(old.column("a"), ends), among(old.column("b"), ends)).to_numpy()
            near = np.flatnonzero(inside & stays)
            moved = {*lost, *come}
            both = zip(*(words_of(old.column(n).take(pa.array(near))) for n in ("a", "b")), strict=True)
            near = near[np.fromiter((pair in moved for pair in both), dtype=bool, count=len(near))]
            some = [tuple(row.values()) for row in old.take(pa.array(near)).to_pylist()]
            apart = set(lost)
            less = {*self._alone([row[:2] for row in some if row[3] and row[:2] in apart])}
            seeds += [n for row in some if row[3] and row[:2] in less for n in row[:2]]
            there = {row[:2] for row in some}
            rows += self._spelt(groups, [p for p in come if p not in there])
            stays[[i for i, row in zip(near.tolist(), some, strict=True) if row[3] and row[:2] in less]] = False
        kept = old.filter(pa.array(stays))
        seeds += [n for a, b, _, _ in rows for n in (a, b)]
        left = set(self.gone) - mine
        return _joined(kept, _pairs_table(rows)), sorted(set(seeds) - left)

    def _compared(self, mine: set[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
        """Pairs that are compared by spelling: with a group of ``mine``; others that a block compares now and did not; others that
        it did and does not."""
        table = self.old.blocks
        had = table.filter(among(table.column("group"), self.gone))
        left = _by_block(zip(*(had.column(n).to_pylist() for n in ("block", "key", "group")), strict=True))
        joining = _by_block(_block_rows(self.fresh, self.settings))
        blocks = sorted({*left, *joining})
        was = _members(table, blocks)
        touching: dict[tuple[str, str], None] = {}
        come: dict[tuple[str, str], None] = {}
        lost: dict[tuple[str, str], None] = {}
        for block in blocks:
            old, less, more = was.get(block, []), left.get(block, []), joining.get(block, [])
            rows = self.blocks[block] = list(old)
            for row in less:
                del rows[bisect.bisect_left(rows, row)]
            for row in more:
                bisect.insort(rows, row)
            reach = self._reach(rows)
            for row in more:
                at, name = bisect.bisect_left(rows, row), row[1]
                for _, other in (*rows[max(0, at - reach) : at], *rows[at + 1 : at + 1 + reach]):
                    touching[(name, other) if name < other else (other, name)] = None
            if max(len(rows), len(old)) > self.settings.block:
                self._moved(old, rows, {*less}, {*more}, come, lost)
        return list(touching), list(come), list(lost)

    def _reach(self, ranked: Sequence[Row]) -> int:
        """With how many that follow it each member of a block is compared."""
        return len(ranked) if len(ranked) <= self.settings.block else reach_of(self.settings)

    def _moved(self, old: Sequence[Row], rows: Sequence[Row], less: set[Row], more: set[Row],
               come: dict[tuple[str, str], None], lost: dict[tuple[str, str], None]) -> None:  # fmt: skip
        """Pairs of members that stay in a block and are compared only now, or were only before, as others between them came or went."""
        changed = sorted(less ^ more)
        before, after = (self._reach(ranked) for ranked in (old, rows))
        near: dict[Row, None] = {}
        for ranked, reach in ((old, before), (rows, after)):
            for at in (bisect.bisect_left(ranked, row) for row in changed):
                near.update(dict.fromkeys(ranked[max(0, at - reach) : at + reach + 1]))
        staying = sorted(row for row in near if row not in less and row not in more)
        names = [row[1] for row in staying]
        ends = []
        for ranked, reach in ((old, before), (rows, after)):
            places = np.array([bisect.bisect_left(ranked, row) for row in staying], dtype=np.int64)
            ends.append(np.searchsorted(places, places + reach, side="right").tolist())
        for i, (stop, last) in enumerate(zip(*ends, strict=True)):
            for j in range(min(stop, last), max(stop, last)):
                pair = (min(names[i], names[j]), max(names[i], names[j]))
                (come if stop < last else lost)[pair] = None

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """The folded names of the groups in the blocks that were looked at."""
        return {name: key for rows in self.blocks.values() for key, name in rows}

    def _similar(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those pairs whose spelling may decide something, seen from their names alone."""
        if not pairs:
            return []
        key = self.keys
        left, right = [key[a] for a, _ in pairs], [key[b] for _, b in pairs]
        return [pairs[i] for i in near_spelling(left, right, self.settings).tolist()]

    def _alone(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those pairs that no block compares now."""
        if not pairs:
            return []
        keys = self.keys
        common = {
            p: sorted({*block_keys(keys[p[0]], self.settings)} & {*block_keys(keys[p[1]], self.settings)})
            for p in pairs
        }
        rest = {b for found in common.values() for b in found} - set(self.blocks)
        self.blocks.update(_members(self.new.blocks, rest))

        def within(block: str, pair: tuple[str, str]) -> bool:
            rows = self.blocks[block]
            one, two = (bisect.bisect_left(rows, (keys[n], n)) for n in pair)
            return abs(one - two) <= self._reach(rows)

        return [p for p in pairs if not any(within(b, p) for b in common[p])]

    def _recorded(self, mine: set[str]) -> list[str]:
        """Groups that aliases and acronyms of ``mine`` may join with it, all of a name or none."""
        groups, aliases = self.new.groups, self.new.aliases
        keys = {g.key for g in self.fresh}
        known = {folded(a) for g in self.fresh for a in g.aliases} | keys
        letters = {x for g in self.fresh if (x := acronym_of(g.label))}
        short = {g.label.replace(".", "") for g in self.fresh if is_acronym(g.label)}
        found = groups.filter(among(groups.column("key"), known)).column("name").to_pylist()
        found += aliases.filter(among(aliases.column("alias"), keys)).column("group").to_pylist()
        found += groups.filter(among(groups.column("short"), letters)).column("name").to_pylist() if letters else []
        found += groups.filter(among(groups.column("letters"), short)).column("name").to_pylist() if short else []
        return found

    def _groups(self, names: Sequence[str]) -> list[Group]:
        """These groups with everything known of them, sorted by name."""
        found = {g.ids[0]: g for g in self.fresh}
        others = [n for n in names if n not in found]
        rows = self.new.groups.filter(among(self.new.groups.column("name"), others)).to_pylist()
        owner = self.new.members.filter(among(self.new.members.column("group"), others)).to_pylist()
        ids: dict[str, list[str]] = {}
        for row in owner:
            ids.setdefault(row["group"], []).append(row["id"])
        known = self.mentions([row["id"] for row in owner])
        for row in rows:
            group = Group(row["key"], row["label"], tuple(row["types"]))
            group.ids = sorted(ids[row["name"]])
            for i in group.ids:
                group.aliases.update((a, None) for a in known[i].aliases if a != known[i].label)
                group.near.update((n, None) for n in known[i].near)
            found[row["name"]] = group
        return [found[n] for n in sorted(found)]

    def _weighed(
        self, groups: Sequence[Group], touching: Sequence[tuple[str, str]], mine: set[str]
    ) -> list[tuple[str, str, float, bool]]:
        edges: dict[tuple[int, int], tuple[float, str]] = {}
        apart: dict[tuple[int, int], None] = {}
        by_record(groups, edges, apart, self.ontology)
        recorded = {**edges, **apart}
        by_spelling(groups, _codes(groups, touching), self.settings, edges, apart, {}, self.ontology)
        names = [g.ids[0] for g in groups]
        return [(names[i], names[j], w, (i, j) not in recorded) for (i, j), w in weights_of(edges, apart).items()
                if names[i] in mine or names[j] in mine]  # fmt: skip

    def _spelt(self, groups: Sequence[Group], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str, float, bool]]:
        edges: dict[tuple[int, int], tuple[float, str]] = {}
        apart: dict[tuple[int, int], None] = {}
        by_spelling(groups, _codes(groups, pairs), self.settings, edges, apart, {}, self.ontology)
        names = [g.ids[0] for g in groups]
        return [(names[i], names[j], w, True) for (i, j), w in weights_of(edges, apart).items()]


def _members(table: Any, blocks: Iterable[str]) -> dict[str, list[Row]]:
    """Block -> key and name of its groups, sorted."""
    import pyarrow as pa

    rows = table.filter(among(table.column("block"), blocks)).combine_chunks()
    if not rows.num_rows:
        return {}
    coded = rows.column("block").combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(coded.dictionary)), side="right").tolist()
    members: list[Row] = list(
        zip(*(rows.column(n).take(pa.array(order)).to_pylist() for n in ("key", "group")), strict=True)
    )
    return {
        block: sorted(members[start:stop])
        for block, start, stop in zip(coded.dictionary.to_pylist(), [0, *ends[:-1]], ends, strict=True)
    }


def _by_block(rows: Iterable[tuple[str, str, str]]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for block, key, group in rows:
        found.setdefault(block, []).append((key, group))
    return found


def _codes(groups: Sequence[Group], pairs: Sequence[tuple[str, str]]) -> Any:
    place = {g.ids[0]: i for i, g in enumerate(groups)}
    codes = [min(place[a], place[b]) * len(groups) + max(place[a], place[b]) for a, b in pairs]
    return np.array(sorted(set(codes)), dtype=np.int64)


def _clustered(
    state: LinkState, seeds: Sequence[str], before: Sequence[str]
) -> tuple[LinkState, dict[str, tuple[str, str]]]:
    """Clusters the parts of the graph of pairs in which the seeds stand, and puts what their members are called into the state.

    Args:
        before: ids of the groups that are no more.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    front, seen = list(seeds), dict.fromkeys(seeds)
    pulling = state.pairs.filter(pc.greater(state.pairs.column("weight"), 0.0))
    while front:  # parts are small: a few steps reach all of them
        rows = pulling.filter(pc.or_(among(pulling.column("a"), front), among(pulling.column("b"), front)))
        ends = [*words_of(rows.column("a")), *words_of(rows.column("b"))]
        front = [n for n in dict.fromkeys(ends) if n not in seen]
        seen.update(dict.fromkeys(front))
    pulled = pulling.filter(among(pulling.column("a"), seen))
    tied = {
        n for column in ("a", "b") for n in words_of(pulled.column(column))
    }  # what pushes matters among these alone
    inside = state.pairs.filter(pc.and_(among(state.pairs.column("a"), tied), among(state.pairs.column("b"), tied)))
    weights = dict(
        zip(
            zip(*(words_of(inside.column(n)) for n in ("a", "b")), strict=True),
            inside.column("weight").to_pylist(),
            strict=True,
        )
    )
    names = sorted(seen)
    place = {n: i for i, n in enumerate(names)}
    home = cluster(len(names), {(place[a], place[b]): w for (a, b), w in weights.items()})
    owner = state.members.filter(among(state.members.column("group"), names))
    ids: dict[int, list[str]] = {}
    for i, group in zip(owner.column("id").to_pylist(), owner.column("group").to_pylist(), strict=True):
        ids.setdefault(home[place[group]], []).append(i)
    called = {i: min(whole) for whole in ids.values() for i in whole}
    concerned = {*called, *before}
    old_rows = state.merged.filter(among(state.merged.column("name"), concerned)).to_pylist()
    old = {row["name"]: row["called"] for row in old_rows}
    new = sorted((i, c) for i, c in called.items() if i != c)
    merged = pa.table({"name": [i for i, _ in new], "called": [c for _, c in new]}, state.merged.schema)
    state.merged = _joined(_without(state.merged, "name", concerned), merged)
    changes = {i: (old.get(i, i), called.get(i, i)) for i in sorted(concerned)}
    return state, {i: pair for i, pair in changes.items() if pair[0] != pair[1]}
