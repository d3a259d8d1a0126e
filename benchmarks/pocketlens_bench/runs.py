"""A bundle on anyone's benchmark: pictures through the device's encoder and the wire, words through the text tower,
the gallery through the image tower, rankings judged by the benchmark's protocols.

Owns the rows that are compared and how each makes its query vectors. Loading and counting are protocols', gallery
vectors vault.py's. Rankings pass by in blocks, so that any gallery fits. Called by cli/accuracy.py."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pocketlens_cloud.compose import VECTOR_OF, Ask, Mode
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.tokens import Encoding

from pocketlens_bench.accuracy import summed
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.lab import SENT, Lab, Tokens, Vectors, sent
from pocketlens_bench.protocols import PROTOCOLS, SETS
from pocketlens_bench.protocols.figures import Figure
from pocketlens_bench.protocols.protocol import Protocol, Reading
from pocketlens_bench.protocols.ranking import Ranked, Ties, ranked
from pocketlens_bench.protocols.reading import BadSet, tasks_of, without
from pocketlens_bench.protocols.task import Query, Task, Where
from pocketlens_bench.score import averaged, counts, notes, number, stated, uncounted
from pocketlens_bench.submissions import FILES, kept, write_rankings, write_submission
from pocketlens_bench.vault import Key, Vault, opened, stored
from pocketlens_bench.world import OnProgress, silently

CHUNK = 256  # queries composed, or pictures encoded, between two steps of the progress bar
ROWS = ("words only", "picture only", "sum", "zero-shot", "tuned")
DIFFERENCES = (
    ("zero-shot", "words only"), ("zero-shot", "picture only"), ("zero-shot", "sum"), ("tuned", "zero-shot"),
)  # fmt: skip
HONESTY = (
    "What a bundle was trained on decides what these figures mean: a text tower that was taught on triplets or edits "
    "of such data is not zero-shot. The rows differ in their query vectors; tuned also searches "
    "the gallery vectors that its heads were trained with, if the bundle has such."
)


@dataclass(frozen=True)
class Prepared:
    """A task whose pictures are in the vault: keys of gallery and references, tokens of references."""

    task: Task
    keys: Mapping[str, Key]
    tokens: Mapping[str, Tokens]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run and what is written besides the result. rows: of ROWS; none: all that can be asked. limit: so many
    queries of each task, drawn by the seed; such figures are no benchmark's. submission: folder for the servers'
    files. rankings: folder for our rankings, one file a protocol and row."""

    protocols: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    limit: int | None = None
    encoding: Encoding = SENT
    ties: Ties = Ties.PESSIMISTIC
    submission: Path | None = None
    rankings: Path | None = None
    per_query: bool = False


def measure(
    bundle: Path,
    which: str,
    root: Path,
    cache: Path,
    *,
    reading: Reading,
    options: Options = Options(),
    seed: int = 0,
    threads: int | None = None,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench accuracy --set X` says, as one JSON object; percent with 95 % intervals.

    Raises BadSet, BadBundle and GalleryError."""
    load, began = load_now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    lab = Lab.open(bundle, threads=threads)
    manifest = lab.composer.manifest
    run = _Run(lab, options, reading, seed, on_progress)
    chosen = [PROTOCOLS[name] for name in options.protocols or SETS[which]]
    with Vault(cache / f"vault-{manifest.gallery_space}", manifest.targets, manifest.dim) as vault:
        tables = [run.table(protocol, root, vault) for protocol in chosen]
    return {
        "benchmark": "accuracy",
        "set": which,
        "unit": "percent",
        "protocols": [stated(protocol) for protocol in chosen],
        "ties": str(options.ties),
        "limited": options.limit is not None,
        "tables": tables,
        "lost": run.lost(tables),
        "left_out": run.left_out,
        "written": run.written,
        "honesty": HONESTY,
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"device": 1, "cloud": threads},
            providers={"device": lab.encoder.provider, "cloud": lab.composer.provider},
            seeds={"bootstrap": seed, "limit": seed},
            sizes={
                "limit": options.limit,
                "split": reading.split or "that of papers",
                "encoding": str(options.encoding),
            },
        ),
    }


class _Run:
    """One run: prepares each protocol's tasks, makes its rows, ranks and judges them."""

    def __init__(self, lab: Lab, options: Options, reading: Reading, seed: int, on_progress: OnProgress) -> None:
        self.lab, self.options, self.reading, self.seed, self.on_progress = lab, options, reading, seed, on_progress
        self.left_out: list[str] = []
        self.written: list[str] = []
        self._tokens: dict[Where, Tokens] = {}

    def table(self, protocol: Protocol, root: Path, vault: Vault) -> dict[str, Any]:
        """A protocol's rows, judged where its truth is known."""
        prepared = [self.prepared(task, vault) for task in tasks_of(protocol, root, self.reading)]
        tasks = [each.task for each in prepared]
        self.left_out += notes(tasks)
        rows = self.rows(tasks)
        public = any(query.relevant for task in tasks for query in task.queries)
        if not public:
            self.left_out.append(f"{protocol.name}: the truth of this split is not public, so there are no figures")
        judged = {name: self.judged(protocol, prepared, name, vault, public=public) for name in rows}
        self.left_out += uncounted(list(judged.values()))
        table = {
            "key": protocol.name,
            "title": protocol.title,
            "queries": sum(len(task.queries) for task in tasks),
            "gallery": sum(len(task.gallery) for task in tasks),
            "missing": sorted({name for task in tasks for name in task.missing}),
            "rows": [
                {
                    "name": name,
                    "against": self.against(name),
                    **{figure.name: asdict(figure.measured(seed=self.seed)) for figure in figures if counts(figure)},
                }
                for name, figures in judged.items()
            ],
            "differences": [
                {"of": of, "over": over, **self.difference(judged[of], judged[over])}
                for of, over in DIFFERENCES
                if judged.get(of) and judged.get(over)
            ],
        }
        if self.options.per_query:
            table["averaged"] = averaged(next(iter(judged.values()), []))
            table["query_ids"] = [f"{task.name}/{query.id}" for task in tasks for query in task.queries]
            for row in table["rows"]:
                row["per_query"] = {
                    figure.name: [number(value) for value in figure.values.tolist()] for figure in judged[row["name"]]
                }
        return table

    def prepared(self, task: Task, vault: Vault) -> Prepared:
        """The task limited, its pictures in the vault and its references encoded; unreadable pictures are missing."""
        task = self.limited(task)
        if self.options.limit is not None:
            self.left_out.append(f"{task.name}: all but {len(task.queries):,} queries; no benchmark's number")
        asked = {query.reference for query in task.queries if query.reference}
        needed = {name: task.pictures[name] for name in dict.fromkeys([*task.gallery, *sorted(asked)])}
        keys, troubles = stored(self.lab, vault, needed, self.on_progress)
        if len(troubles) > max(0, self.reading.allow_missing - len(task.missing)):
            name, why = next(iter(troubles.items()))
            raise BadSet(
                f"{task.name}: {len(troubles):,} pictures cannot be read, {name} for one: {why}. Get them again, or "
                f"leave them out with --allow-missing {len(troubles) + len(task.missing)}, and the result will say so."
            )
        if troubles:
            lost = (*task.missing, *troubles)
            task = replace(without(task, frozenset(troubles)), missing=lost)
        return Prepared(task, keys, self.encoded(task))

    def limited(self, task: Task) -> Task:
        """So many queries of the task, spread over its groups by chance."""
        limit = self.options.limit
        if limit is None or limit >= len(task.queries):
            return task
        rng = np.random.default_rng([self.seed, 3])
        seen: Counter[str] = Counter()
        turns = []
        for place in rng.permutation(len(task.queries)).tolist():
            group = task.queries[place].group
            turns.append((seen[group], place))  # a group's first queries come before any group's second ones
            seen[group] += 1
        chosen = sorted(place for _, place in sorted(turns)[:limit])
        return replace(task, queries=tuple(task.queries[i] for i in chosen))

    def encoded(self, task: Task) -> dict[str, Tokens]:
        """Tokens of each reference as the cloud receives them: the device's encoder, packed and unpacked."""
        names = sorted({query.reference for query in task.queries if query.reference})
        fresh = [name for name in names if task.pictures[name] not in self._tokens]
        for start in range(0, len(fresh), CHUNK):
            some = fresh[start : start + CHUNK]
            for name, tokens in zip(some, sent(self.device(task, some), self.options.encoding), strict=True):
                self._tokens[task.pictures[name]] = tokens
            self.on_progress("encode on the device", start + len(some), len(fresh))
        return {name: self._tokens[task.pictures[name]] for name in names}

    def device(self, task: Task, names: Sequence[str]) -> list[Tokens]:
        side = self.lab.encoder.manifest.picture.side
        wheres = [task.pictures[name] for name in names]
        return [self.lab.encoder.encode(opened(where.file.read_bytes(), where, side)) for where in wheres]

    # --- rows

    def rows(self, tasks: Sequence[Task]) -> list[str]:
        """Rows that every query of these tasks can ask."""
        queries = [query for task in tasks for query in task.queries]
        worded, pictured = all(query.texts for query in queries), all(query.reference for query in queries)
        possible = {
            "words only": worded, "picture only": pictured, "sum": worded and pictured, "zero-shot": True,
            "tuned": "tuned" in self.lab.composer.modes,
        }  # fmt: skip
        wanted = self.options.rows or ROWS
        if named := [name for name in self.options.rows if not possible[name]]:
            raise BadBundle(
                f"row {named[0]} cannot be asked here: its queries lack words or picture, or the bundle heads"
            )
        heads = "the bundle has no heads"
        reasons = {"words only": "not every query has words", "picture only": "not every query has a picture"}
        self.left_out += [
            f"row {name}: {heads if name == 'tuned' else reasons.get(name, 'not every query has words and a picture')}"
            for name in wanted
            if not possible[name]
        ]
        return [name for name in wanted if possible[name]]

    def judged(
        self, protocol: Protocol, prepared: Sequence[Prepared], name: str, vault: Vault, *, public: bool
    ) -> list[Figure]:
        """One row's figures; its rankings are written where that is asked for."""
        self.on_progress(f"{protocol.name}: {name}", 0, 1)
        depth = None if self.options.submission and protocol.name in FILES else protocol.depth
        streams = [self.blocks(each, name, vault, depth) for each in prepared]
        seen: list[Ranked] = []
        writing = self.options.rankings or (self.options.submission and protocol.name in FILES)
        if writing:
            deepest = max(len(each.task.gallery) for each in prepared)
            streams = [kept(stream, seen, deepest) for stream in streams]
        figures = protocol.judge([each.task for each in prepared], streams) if public else []
        for stream in streams:  # what was not judged still has to pass by
            for _ in stream:
                pass
        if writing:
            self.write(protocol, prepared, name, seen)
        return figures

    def write(self, protocol: Protocol, prepared: Sequence[Prepared], name: str, seen: list[Ranked]) -> None:
        if self.options.rankings:
            self.options.rankings.mkdir(parents=True, exist_ok=True)
            file = self.options.rankings / f"{protocol.name}-{name.replace(' ', '-')}.jsonl"
            write_rankings(seen, file)
            self.written.append(file.name)
        if self.options.submission and protocol.name in FILES:
            files = write_submission(protocol.name, prepared[0].task.name, name, seen, self.options.submission)
            self.written += [file.name for file in files]

    def blocks(self, each: Prepared, name: str, vault: Vault, depth: int | None) -> Iterator[Ranked]:
        against = self.against(name)
        keys = [each.keys[picture] for picture in each.task.gallery]
        distinct = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        gallery = vault.vectors(list(distinct), against).T
        queries = self.vectors(each, name, vault)
        # Equal pictures get one score: a matrix product may round equal columns differently, and break their tie.
        column = np.array([distinct[key] for key in keys]) if len(distinct) < len(keys) else slice(None)
        scores: Callable[[slice], Vectors] = lambda part: (queries[part] @ gallery)[:, column]  # noqa: E731
        yield from ranked(each.task, scores, depth=depth, ties=self.options.ties)

    def against(self, name: str) -> str:
        """The gallery vector that a row searches."""
        return self.lab.composer.vector_of("tuned" if name == "tuned" else "zero-shot")

    def vectors(self, each: Prepared, name: str, vault: Vault) -> Vectors:
        """Unit query vectors (queries, dim) of a row."""
        queries = each.task.queries
        if name in ("zero-shot", "tuned"):
            mode: Mode = "tuned" if name == "tuned" else "zero-shot"
            return self.composed([self.asks(each, query) for query in queries], mode)
        words = self.words(queries) if name != "picture only" else None
        if name == "words only" and words is not None:
            return words
        picture = vault.vectors([each.keys[query.reference or ""] for query in queries], VECTOR_OF["zero-shot"])
        return picture if words is None else summed(picture, words, 1.0)

    def words(self, queries: Sequence[Query]) -> Vectors:
        return self.composed([[(None, text) for text in query.texts] for query in queries], "zero-shot")

    def asks(self, each: Prepared, query: Query) -> list[Ask]:
        tokens = each.tokens[query.reference] if query.reference else None
        return [(tokens, text) for text in query.texts or ("",)]

    def composed(self, asks: Sequence[Sequence[Ask]], mode: Mode) -> Vectors:
        """A vector for each query: the mean of those of its texts, at unit length."""
        flat = [ask for some in asks for ask in some]
        parts = []
        for start in range(0, len(flat), CHUNK):
            parts.append(self.lab.composer.compose_batch(flat[start : start + CHUNK], mode))
            self.on_progress("compose queries", min(start + CHUNK, len(flat)), len(flat))
        owner = np.repeat(np.arange(len(asks)), [len(some) for some in asks])
        vectors = np.zeros((len(asks), self.lab.composer.manifest.dim), np.float32)
        np.add.at(vectors, owner, np.concatenate(parts))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    # --- telling

    def difference(self, these: Sequence[Figure], those: Sequence[Figure]) -> dict[str, Any]:
        return {
            mine.name: asdict(mine.minus(other, seed=self.seed))
            for mine, other in zip(these, those, strict=True)
            if counts(mine)
        }

    def lost(self, tables: Sequence[Mapping[str, Any]]) -> list[str]:
        """Where a way of ours is behind what it is compared with, beyond noise."""
        return [
            f"{table['title']}: {each['of']} is behind {each['over']} in {name} by {-one['value']:.1f} points"
            for table in tables
            for each in table["differences"]
            for name, one in each.items()
            if isinstance(one, dict) and one["high"] < 0
        ]
