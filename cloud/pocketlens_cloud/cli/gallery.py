"""`pocketlens-cloud gallery`: versions of a gallery, from building to dropping. Flags and messages only."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlens_cloud.cli.index import list_lines, print_report, progress
from pocketlens_cloud.cli.places import GrpcPort, Place, QdrantKeyFile, TimeoutS, Url, open_versions
from pocketlens_cloud.cli.root import AsJson, Bundle, Precision, app, err, fail, out, plain_errors

if TYPE_CHECKING:
    from pocketlens_cloud.gallery.qdrant_terms import CollectionSettings
    from pocketlens_cloud.gallery.versions import Versions

versions_app = typer.Typer(
    no_args_is_help=True,
    help="""Versions of a gallery: build beside, verify, promote, roll back.

    A NAME is a directory of versions (NAME/v0001, NAME/v0002 ... and NAME/current, which names the live one) or, with
    --qdrant, the alias of collections on a server (NAME.v0001, NAME.v0002 ...). A server started on the same NAME
    serves what is live and follows when another version is promoted.

    [bold]In order[/bold]

    pocketlens-cloud gallery build ./shop ~/Pictures

    pocketlens-cloud gallery verify ./shop

    pocketlens-cloud gallery promote ./shop

    pocketlens-cloud serve --gallery ./shop""",
)
app.add_typer(versions_app, name="gallery")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Directory of versions; with --qdrant, name on the server.")]
Which = Annotated[
    str | None, typer.Option("--version", metavar="vNNNN", help="Version (default: the newest).", show_default=False)
]
ON_SERVER = "On a server"


@versions_app.command()
def build(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures, searched recursively.")],
    bundle: Bundle = None,
    payload: Annotated[
        Path | None,
        typer.Option(help="What to store with each picture (default: DIR/payload.jsonl).", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures per model run and per journal entry.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads (default: all cores).", show_default=False)
    ] = None,
    precision: Precision = "fp32",
    allow_unreadable: Annotated[int, typer.Option(min=0, metavar="N", help="Exit 0 with up to N bad pictures.")] = 0,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    shards: Annotated[int, typer.Option(min=1, help="Parts over the nodes.", rich_help_panel=ON_SERVER)] = 1,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of each part.", rich_help_panel=ON_SERVER)] = 1,
    write_consistency: Annotated[
        int, typer.Option(min=1, help="Copies that must have a write.", rich_help_panel=ON_SERVER)
    ] = 1,
    vectors_on_disk: Annotated[
        bool, typer.Option("--vectors-on-disk", help="Keep float32 vectors out of memory.", rich_help_panel=ON_SERVER)
    ] = False,
    quantisation: Annotated[
        str, typer.Option(help="Copies that searches walk: int8, binary or none.", rich_help_panel=ON_SERVER)
    ] = "int8",
    m: Annotated[int, typer.Option(min=4, help="Links of a picture in the index.", rich_help_panel=ON_SERVER)] = 32,
    ef_construct: Annotated[
        int, typer.Option(min=16, help="Pictures looked at to find them.", rich_help_panel=ON_SERVER)
    ] = 400,
    as_json: AsJson = False,
) -> None:
    """Index a folder into the next version; what is live stays as it is.

    Kill it and run it again as you like: a version whose building was cut short is gone on with.

    [bold]Examples[/bold]

    pocketlens-cloud gallery build ./shop ~/Pictures

    pocketlens-cloud gallery build shop ~/Pictures --qdrant http://10.0.0.5:6333 --shards 3 --replicas 2
    """
    if quantisation not in ("none", "int8", "binary"):
        raise typer.BadParameter("use none, int8 or binary", param_hint="--quantisation")
    with plain_errors():
        place = Place(name=name, url=qdrant, grpc_port=grpc_port, key_file=key_file, timeout_s=timeout_s)
        layout = None
        if qdrant:
            layout = _layout(
                shards=shards,
                replicas=replicas,
                write_consistency=write_consistency,
                vectors_on_disk=vectors_on_disk,
                quantisation=quantisation,
                m=m,
                ef_construct=ef_construct,
            )
        with open_versions(place, layout) as versions, progress() as on_progress:
            from pocketlens_cloud.indexing.building import build as build_version

            version, report = build_version(
                versions,
                folder,
                _bundle(bundle),
                payload=payload,
                batch=batch,
                threads=threads,
                precision=precision,
                on_progress=on_progress,
            )
            title = versions.title
        if as_json:
            out.print_json(json.dumps({"version": version, **asdict(report), "merged": report.merged}))
        else:
            print_report(report, f"{title} {version}")
            _say(f"next: pocketlens-cloud gallery verify {name}{_at(qdrant)}")
        list_lines("unreadable", [f"{file}: {reason}" for file, reason in report.unreadable])
        if len(report.unreadable) > allow_unreadable:
            said = f"{len(report.unreadable)} unreadable, {allow_unreadable} allowed (--allow-unreadable)"
            err.print(said, style="red", markup=False)
            raise typer.Exit(1)


@versions_app.command()
def verify(
    name: Name,
    which: Which = None,
    bundle: Bundle = None,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    as_json: AsJson = False,
) -> None:
    """Look at all of a version before it is served.

    Counts as built, the bundle's gallery space, every vector finite and of length 1, pictures that find themselves,
    indexes for every payload key. Exit code 1 if anything is not as it should be.

    [bold]Example[/bold]

    pocketlens-cloud gallery verify ./shop --version v0002
    """
    with plain_errors(), _opened(name, qdrant, grpc_port, key_file, timeout_s) as versions:
        from pocketlens_cloud.gallery import versions as steps

        version, findings = steps.chosen(versions, which), []
        for finding in steps.verify(versions, version, _space(bundle)):
            findings.append(finding)
            if not as_json:
                out.print("[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]", end=" ")
                _say(f"{finding.what}: {finding.detail}")
        good = all(finding.ok for finding in findings)
        if as_json:
            _json({"version": version, "ok": good, "findings": [asdict(finding) for finding in findings]})
        elif good:
            _say(f"next: pocketlens-cloud gallery promote {name} --version {version}{_at(qdrant)}")
        if not good:
            raise typer.Exit(1)


@versions_app.command()
def promote(
    name: Name,
    which: Which = None,
    bundle: Bundle = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Promote what was not verified as it is now.")
    ] = False,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    as_json: AsJson = False,
) -> None:
    """Make a version the live one. Servers on this NAME switch to it within seconds, without a restart.

    [bold]Example[/bold]

    pocketlens-cloud gallery promote ./shop --version v0002
    """
    with plain_errors(), _opened(name, qdrant, grpc_port, key_file, timeout_s) as versions:
        from pocketlens_cloud.gallery import versions as steps

        version = steps.chosen(versions, which)
        before = steps.promote(versions, version, _space(bundle), unverified=unverified)
        if as_json:
            _json({"live": version, "before": before})
        else:
            _say(f"{versions.title}: {version} is live{f', {before} until now' if before else ''}")


@versions_app.command()
def rollback(
    name: Name,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    as_json: AsJson = False,
) -> None:
    """Make live again what was live before the last promotion.

    [bold]Example[/bold]

    pocketlens-cloud gallery rollback ./shop
    """
    with plain_errors(), _opened(name, qdrant, grpc_port, key_file, timeout_s) as versions:
        from pocketlens_cloud.gallery import versions as steps

        until, version = steps.rollback(versions)
        if as_json:
            _json({"live": version, "before": until})
        else:
            _say(f"{versions.title}: {version} is live again, {until} until now")


@versions_app.command("list")
def list_(
    name: Name,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    as_json: AsJson = False,
) -> None:
    """The versions there are, and which is live.

    [bold]Example[/bold]

    pocketlens-cloud gallery list shop --qdrant http://10.0.0.5:6333 --json
    """
    with plain_errors(), _opened(name, qdrant, grpc_port, key_file, timeout_s) as versions:
        from pocketlens_cloud.gallery import versions as steps

        found = steps.listed(versions)
        if as_json:
            _json({"title": versions.title, "versions": [_told(version) for version in found]})
            return
        for version in found:
            told = _told(version)
            size = "unfinished" if told["size"] is None else f"{told['size']} pictures"
            notes = ", ".join(note for note in (size, told["generation"], told["gallery_space"], told["state"]) if note)
            _say(f"{'*' if version.live else ' '} {version.name}  {notes}")
        if not found:
            _say(f"{versions.title} has no versions: make one with `pocketlens-cloud gallery build`")


@versions_app.command()
def drop(
    name: Name,
    which: Annotated[str, typer.Argument(metavar="vNNNN", help="Version to remove for good.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    as_json: AsJson = False,
) -> None:
    """Remove a version for good; the live one is refused.

    [bold]Example[/bold]

    pocketlens-cloud gallery drop ./shop v0001
    """
    with plain_errors(), _opened(name, qdrant, grpc_port, key_file, timeout_s) as versions:
        from pocketlens_cloud.gallery import versions as steps

        version = steps.chosen(versions, which)
        if version == versions.live():
            steps.drop(versions, version)  # says why not
        if not yes:
            if as_json:
                fail("--json cannot ask: say --yes if the version is to go")
            typer.confirm(f"Remove {version} of {versions.title} for good?", abort=True, err=True)
        steps.drop(versions, version)
        if as_json:
            _json({"dropped": version})
        else:
            _say(f"{versions.title}: {version} is gone")


@versions_app.command()
def snapshot(
    name: Name,
    which: Annotated[
        str | None,
        typer.Option("--version", metavar="vNNNN", help="Version (default: the live one).", show_default=False),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="File to write (default: beside the versions).", show_default=False)
    ] = None,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    as_json: AsJson = False,
) -> None:
    """Copy a version into one file: here a tar with the hash of each file, on a server one of its own snapshots.

    A directory that is being served is held by its server: stop it first, or take another version.

    [bold]Example[/bold]

    pocketlens-cloud gallery snapshot ./shop --to /backup/shop.tar
    """
    with plain_errors(), _opened(name, qdrant, grpc_port, key_file, timeout_s) as versions:
        from pocketlens_cloud.gallery import versions as steps

        version = steps.chosen(versions, which) if which else steps.live_or_raise(versions)
        saved = versions.save(version, to)
        if as_json:
            _json(asdict(saved))
        else:
            _say(f"{versions.title}: {version} as {saved.place}, {saved.size} bytes, sha256 {saved.sha256}")


@versions_app.command()
def restore(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Snapshot; for a server a file:// path of its own or a URL that it can read."
        ),
    ],
    bundle: Bundle = None,
    qdrant: Url = None,
    grpc_port: GrpcPort = 6334,
    key_file: QdrantKeyFile = None,
    timeout_s: TimeoutS = 5,
    as_json: AsJson = False,
) -> None:
    """Make the next version of a snapshot. It is verified and promoted like a built one.

    A snapshot of another gallery space than the bundle's is refused, and nothing of it stays.

    [bold]Example[/bold]

    pocketlens-cloud gallery restore ./shop /backup/shop.tar
    """
    with plain_errors(), _opened(name, qdrant, grpc_port, key_file, timeout_s) as versions:
        from pocketlens_cloud.gallery import versions as steps

        version = steps.restore(versions, source, _space(bundle))
        if as_json:
            _json({"version": version})
        else:
            _say(f"{versions.title}: {version} made of {source}")
            _say(f"next: pocketlens-cloud gallery verify {name}{_at(qdrant)}")


@contextmanager
def _opened(name: str, url: str | None, grpc_port: int, key_file: Path | None, timeout_s: int) -> "Iterator[Versions]":
    with open_versions(
        Place(name=name, url=url, grpc_port=grpc_port, key_file=key_file, timeout_s=timeout_s)
    ) as versions:
        yield versions


def _layout(**settings: Any) -> "CollectionSettings":
    from pocketlens_cloud.gallery.qdrant_terms import CollectionSettings

    return CollectionSettings(**settings)


def _bundle(bundle: Path | None) -> Path:
    from pocketlens_wire.bundle import default_bundle

    return bundle or default_bundle()


def _space(bundle: Path | None) -> str:
    from pocketlens_wire.manifest import read_cloud

    return read_cloud(_bundle(bundle)).gallery_space


def _told(version: Any) -> dict[str, Any]:
    record, description = version.record, version.description
    verified = record is not None and record.verified == description.generation
    return {
        "version": version.name,
        "live": version.live,
        "size": record.size if record else None,
        "generation": description.generation,
        "gallery_space": description.gallery_space,
        "settled": description.settled,
        "verified": verified,
        "before": record.before if record else "",
        "state": "verified" if verified else "",
    }


def _at(url: str | None) -> str:
    return f" --qdrant {url}" if url else ""


def _json(told: dict[str, Any]) -> None:
    out.print_json(json.dumps(told))


def _say(line: str) -> None:
    out.print(line, markup=False, highlight=False)
