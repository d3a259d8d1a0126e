"""A Qdrant server for tests: Qdrant's own protobuf API on a loopback socket, over shards of qdrant_edge.

One node, one shard a collection. What it does, the same engine does as in a real server: vectors, filters, indexes,
scores. What it does not implement it refuses: a call with UNIMPLEMENTED, and so a field of a request that it does not
read. It keeps the limits of strict mode that it is given. Not here: consensus, replicas, write-ahead acknowledgement,
background optimisers (settling is immediate), TLS. Snapshots are tars of its own, not Qdrant's format."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import qdrant_edge as engine
from google.protobuf.message import Message
from qdrant_client import grpc as q

VERSION = "1.20.0"
FULL_SCAN = 10_000  # KB of vectors below which they are all compared
Code = grpc.StatusCode

# What a request may hold; anything else is refused rather than passed over. One replica: every read is consistent.
READ = {"collection_name", "read_consistency", "timeout"}
WRITE = {"collection_name", "wait", "timeout"}
QUERY = READ | {
    "query",
    "using",
    "filter",
    "params",
    "limit",
    "offset",
    "score_threshold",
    "with_payload",
    "with_vectors",
}
STRICT = {
    "enabled",
    "max_query_limit",
    "search_max_hnsw_ef",
    "search_max_oversampling",
    "search_allow_exact",
    "unindexed_filtering_retrieve",
    "unindexed_filtering_update",
    "upsert_max_batchsize",
    "filter_max_conditions",
    "condition_max_size",
    "max_timeout",
}
SCHEMA = {
    q.FieldType.FieldTypeKeyword: (engine.PayloadSchemaType.Keyword, q.PayloadSchemaType.Keyword),
    q.FieldType.FieldTypeInteger: (engine.PayloadSchemaType.Integer, q.PayloadSchemaType.Integer),
    q.FieldType.FieldTypeFloat: (engine.PayloadSchemaType.Float, q.PayloadSchemaType.Float),
    q.FieldType.FieldTypeGeo: (engine.PayloadSchemaType.Geo, q.PayloadSchemaType.Geo),
    q.FieldType.FieldTypeDatetime: (engine.PayloadSchemaType.Datetime, q.PayloadSchemaType.Datetime),
    q.FieldType.FieldTypeText: (engine.PayloadSchemaType.Text, q.PayloadSchemaType.Text),
}
INDEX_FOR = {  # kind of match -> index types that serve it, as strict mode asks
    "keyword": {q.PayloadSchemaType.Keyword},
    "keywords": {q.PayloadSchemaType.Keyword},
    "except_keywords": {q.PayloadSchemaType.Keyword},
    "integer": {q.PayloadSchemaType.Integer},
    "integers": {q.PayloadSchemaType.Integer},
    "except_integers": {q.PayloadSchemaType.Integer},
    "text": {q.PayloadSchemaType.Text},
    "range": {q.PayloadSchemaType.Integer, q.PayloadSchemaType.Float},
    "datetime_range": {q.PayloadSchemaType.Datetime},
    "geo_radius": {q.PayloadSchemaType.Geo},
}


class Refused(Exception):
    """Ends a call with a status."""

    def __init__(self, code: Code, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


@dataclass
class Collection:
    home: Path
    made: q.CreateCollection
    shard: engine.EdgeShard
    schema: dict[str, int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def strict(self) -> q.StrictModeConfig:
        return self.made.strict_mode_config

    def limit(self, name: str, came: float, what: str) -> None:
        """Strict mode's bounds."""
        if self.strict.enabled and self.strict.HasField(name) and came > getattr(self.strict, name):
            bound = getattr(self.strict, name)
            raise Refused(Code.INVALID_ARGUMENT, f"Forbidden: {what} {came} above the limit {bound}. Help: {name}")


class FakeQdrant:
    """`with FakeQdrant(folder) as fake:` serves on fake.grpc_port and fake.http_port until left.

    What a test may do to it: `stop` and `start` (same ports), `freeze` (calls hang until `thaw`), and what `statuses`
    and `failures` say."""

    def __init__(self, home: Path, *, api_key: str = "", nodes: int = 1, keeps_metadata: bool = True) -> None:
        self.home, self.api_key, self.nodes, self.keeps_metadata = home, api_key, nodes, keeps_metadata
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[str, str] = {}
        self.lock = threading.RLock()
        self.running = threading.Event()
        self.running.set()
        self.calls: list[str] = []  # methods, in the order they came
        self.made: list[q.CreateCollection] = []
        self.statuses: list[str] = []  # said of any collection in turn, then Green
        self.nudges = 0
        self.failures = 0  # calls to come that are answered with UNAVAILABLE
        self.grpc_port = self.http_port = 0
        self._count = 0

    def __enter__(self) -> FakeQdrant:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for held in self.collections.values():
            held.shard.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def start(self) -> None:
        self._pool = ThreadPoolExecutor(8, "fake")
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
        self._server = grpc.server(self._pool, interceptors=[_Gate(self)], options=options)
        q.add_CollectionsServicer_to_server(_guarded(Collections(self)), self._server)
        q.add_PointsServicer_to_server(_guarded(Points(self)), self._server)
        q.add_SnapshotsServicer_to_server(_guarded(Snapshots(self)), self._server)
        q.add_QdrantServicer_to_server(_guarded(Root(self)), self._server)
        self.grpc_port = self._server.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        self._server.start()
        handler = type("Handler", (_Http,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self.http_port), handler)
        self.http_port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.thaw()
        self._server.stop(0).wait()
        self._pool.shutdown()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def freeze(self) -> None:
        """Accept calls and answer none."""
        self.running.clear()

    def thaw(self) -> None:
        self.running.set()

    def place(self) -> Path:
        with self.lock:
            self._count += 1
            return self.home / f"shard-{self._count}"

    def open(self, name: str) -> Collection:
        """By name or alias."""
        with self.lock:
            held = self.collections.get(self.aliases.get(name, name))
        if held is None:
            raise Refused(Code.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
        return held

    def create(self, request: q.CreateCollection, shard: engine.EdgeShard, home: Path) -> Collection:
        with self.lock:
            if request.collection_name in self.collections or request.collection_name in self.aliases:
                raise Refused(Code.ALREADY_EXISTS, f"Collection `{request.collection_name}` already exists!")
            held = Collection(home, request, shard)
            self.collections[request.collection_name] = held
            return held


def _only(request: Message, known: Iterable[str]) -> None:
    for each, value in request.ListFields():
        if each.name not in known:
            raise Refused(Code.UNIMPLEMENTED, f"the fake does not read {request.DESCRIPTOR.name}.{each.name} = {value}")


def _guarded(servicer: Any) -> Any:
    """Every method with its errors as statuses."""
    for name in dir(type(servicer)):
        if name[0].isupper():
            setattr(servicer, name, _answering(getattr(servicer, name)))
    return servicer


def _answering(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(request, context)
        except Refused as error:
            context.abort(error.code, error.details)
        except NotImplementedError:
            context.abort(Code.UNIMPLEMENTED, "the fake does not implement this call")
        except Exception as error:  # noqa: BLE001 - the engine's own errors are bare
            context.abort(Code.INVALID_ARGUMENT, f"Wrong input: {type(error).__name__}: {error}")

    return answer


class _Gate(grpc.ServerInterceptor):
    """Every call passes here: the key, the freezing, the record."""

    def __init__(self, fake: FakeQdrant) -> None:
        self.fake = fake

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        fake = self.fake
        if fake.api_key and dict(details.invocation_metadata).get("api-key") != fake.api_key:
            return grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(Code.UNAUTHENTICATED, "Must provide an API key")
            )
        if fake.failures:
            fake.failures -= 1
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(Code.UNAVAILABLE, "going down"))
        fake.calls.append(details.method.removeprefix("/qdrant."))
        fake.running.wait()
        return continuation(details)


class Root(q.QdrantServicer):
    def __init__(self, fake: FakeQdrant) -> None:
        self.fake = fake

    def HealthCheck(self, request: Any, context: Any) -> Any:  # noqa: N802
        return q.HealthCheckReply(title="a fake of qdrant for tests", version=VERSION)


class Collections(q.CollectionsServicer):
    def __init__(self, fake: FakeQdrant) -> None:
        self.fake = fake

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self.fake.lock:
            names = [q.CollectionDescription(name=name) for name in self.fake.collections]
        return q.ListCollectionsResponse(collections=names)

    def CollectionExists(self, request: Any, context: Any) -> Any:  # noqa: N802
        exists = request.collection_name in self.fake.collections
        return q.CollectionExistsResponse(result=q.CollectionExists(exists=exists))

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.fake.made.append(request)
        _only(
            request,
            {
                "collection_name",
                "vectors_config",
                "hnsw_config",
                "quantization_config",
                "strict_mode_config",
                "metadata",
            }
            | {"shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload", "timeout"},
        )
        for one in ("shard_number", "replication_factor", "write_consistency_factor"):
            if request.HasField(one) and getattr(request, one) != 1:
                raise Refused(
                    Code.UNIMPLEMENTED, f"the fake has one node and one shard; {one} {getattr(request, one)} came"
                )
        _only(request.strict_mode_config, STRICT)
        home = self.fake.place()
        shard = engine.EdgeShard.create(str(home), _config(request))
        if not self.fake.keeps_metadata:
            request.ClearField("metadata")
        self.fake.create(request, shard, home)
        return q.CollectionOperationResponse(result=True)

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        held = self.fake.open(request.collection_name)
        with held.lock:
            made, info = held.made, held.shard.info()
            config = q.CollectionConfig(
                params=q.CollectionParams(
                    shard_number=1,
                    on_disk_payload=made.on_disk_payload,
                    vectors_config=made.vectors_config,
                    replication_factor=1,
                    write_consistency_factor=1,
                ),
                hnsw_config=q.HnswConfigDiff(
                    m=made.hnsw_config.m, ef_construct=made.hnsw_config.ef_construct, full_scan_threshold=FULL_SCAN
                ),
                optimizer_config=q.OptimizersConfigDiff(
                    deleted_threshold=0.2, vacuum_min_vector_number=1000, default_segment_number=0, flush_interval_sec=5
                ),
                wal_config=q.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
                strict_mode_config=made.strict_mode_config,
                metadata=made.metadata,
            )
            if made.HasField("quantization_config"):
                config.quantization_config.CopyFrom(made.quantization_config)
            schema = {key: q.PayloadSchemaInfo(data_type=kind) for key, kind in held.schema.items()}
        return q.GetCollectionInfoResponse(
            result=q.CollectionInfo(
                status=self._status(),
                optimizer_status=q.OptimizerStatus(ok=True),
                segments_count=info.segments_count,
                points_count=info.points_count,
                config=config,
                payload_schema=schema,
            )
        )

    def _status(self) -> int:
        """Green, or what a test wants to be said next."""
        return q.CollectionStatus.Value(self.fake.statuses.pop(0) if self.fake.statuses else "Green")

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, {"collection_name", "metadata", "optimizers_config", "timeout"})
        held = self.fake.open(request.collection_name)
        if request.HasField("optimizers_config"):
            _only(request.optimizers_config, ())
            self.fake.nudges += 1  # an empty change makes a real server's optimisers begin
        with held.lock:
            for key, value in request.metadata.items():  # merged key by key
                if self.fake.keeps_metadata:
                    held.made.metadata[key].CopyFrom(value)
        return q.CollectionOperationResponse(result=True)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, {"collection_name", "timeout"})
        with self.fake.lock:
            held = self.fake.collections.pop(request.collection_name, None)
            gone = [alias for alias, name in self.fake.aliases.items() if name == request.collection_name]
            for alias in gone:
                del self.fake.aliases[alias]
        if held:
            with held.lock:
                held.shard.close()
                shutil.rmtree(held.home)
        return q.CollectionOperationResponse(result=held is not None)

    def UpdateAliases(self, request: Any, context: Any) -> Any:  # noqa: N802
        """All of the actions or none."""
        _only(request, {"actions", "timeout"})
        with self.fake.lock:
            aliases = dict(self.fake.aliases)
            for action in request.actions:
                match action.WhichOneof("action"):
                    case "create_alias":
                        one = action.create_alias
                        if one.collection_name not in self.fake.collections:
                            raise Refused(
                                Code.NOT_FOUND, f"Not found: Collection `{one.collection_name}` doesn't exist!"
                            )
                        if one.alias_name in self.fake.collections:
                            raise Refused(Code.INVALID_ARGUMENT, f"Collection `{one.alias_name}` already exists!")
                        aliases[one.alias_name] = one.collection_name
                    case "delete_alias":
                        aliases.pop(action.delete_alias.alias_name, None)
                    case other:
                        raise Refused(Code.UNIMPLEMENTED, f"the fake does not do {other}")
            self.fake.aliases = aliases
        return q.CollectionOperationResponse(result=True)

    def ListAliases(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self.fake.lock:
            found = [q.AliasDescription(alias_name=a, collection_name=c) for a, c in self.fake.aliases.items()]
        return q.ListAliasesResponse(aliases=found)

    def CollectionClusterInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        held = self.fake.open(request.collection_name)
        count = held.shard.info().points_count
        active = q.ReplicaState.Active
        return q.CollectionClusterInfoResponse(
            peer_id=1,
            shard_count=self.fake.nodes,
            local_shards=[q.LocalShardInfo(shard_id=0, points_count=count, state=active)],
            remote_shards=[
                q.RemoteShardInfo(shard_id=i, peer_id=i + 1, state=active) for i in range(1, self.fake.nodes)
            ],
        )


class Points(q.PointsServicer):
    def __init__(self, fake: FakeQdrant) -> None:
        self.fake = fake

    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, WRITE | {"points"})
        held = self.fake.open(request.collection_name)
        held.limit("upsert_max_batchsize", len(request.points), "points")
        if not request.points:
            raise Refused(Code.INVALID_ARGUMENT, "Empty update request")
        points = [
            engine.Point(
                point.id.uuid,
                {
                    name: list(vector.dense.data or vector.data)
                    for name, vector in point.vectors.vectors.vectors.items()
                },
                _plain(point.payload),
            )
            for point in request.points
        ]
        return self._write(held, request, engine.UpdateOperation.upsert_points(points))

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, WRITE | {"points"})
        return self._write(
            self.fake.open(request.collection_name),
            request,
            engine.UpdateOperation.delete_points(_selected(request.points)),
        )

    def OverwritePayload(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, WRITE | {"payload", "points_selector"})
        change = engine.UpdateOperation.overwrite_payload(_selected(request.points_selector), _plain(request.payload))
        return self._write(self.fake.open(request.collection_name), request, change)

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, WRITE | {"field_name", "field_type", "field_index_params"})
        held = self.fake.open(request.collection_name)
        if request.field_type not in SCHEMA:
            raise Refused(Code.UNIMPLEMENTED, f"the fake does not index {q.FieldType.Name(request.field_type)}")
        kind, told = SCHEMA[request.field_type]
        schema = _text_index(request.field_index_params) if request.HasField("field_index_params") else kind
        reply = self._write(held, request, engine.UpdateOperation.create_field_index(request.field_name, schema))
        held.schema[request.field_name] = told
        return reply

    def DeleteFieldIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, WRITE | {"field_name"})
        held = self.fake.open(request.collection_name)
        reply = self._write(held, request, engine.UpdateOperation.delete_field_index(request.field_name))
        held.schema.pop(request.field_name, None)
        return reply

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, READ | {"ids", "with_payload", "with_vectors"})
        held = self.fake.open(request.collection_name)
        ids = [point.uuid for point in request.ids]
        with held.lock:
            found = held.shard.retrieve(ids, _payload_wanted(request.with_payload), _vectors_wanted(request))
        return q.GetResponse(result=[_retrieved(each) for each in found])

    def Scroll(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, READ | {"offset", "limit", "with_payload", "with_vectors"})
        held = self.fake.open(request.collection_name)
        held.limit("max_query_limit", request.limit, "limit")
        asked = engine.ScrollRequest(
            offset=request.offset.uuid if request.HasField("offset") else None,
            limit=request.limit,
            with_payload=_payload_wanted(request.with_payload),
            with_vector=_vectors_wanted(request),
        )
        with held.lock:
            records, beyond = held.shard.scroll(asked)
        reply = q.ScrollResponse(result=[_retrieved(each) for each in records])
        if beyond is not None:
            reply.next_page_offset.uuid = str(beyond)
        return reply

    def Count(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, READ | {"exact"})
        held = self.fake.open(request.collection_name)
        with held.lock:
            count = held.shard.count(engine.CountRequest(exact=True))
        return q.CountResponse(result=q.CountResult(count=count))

    def QueryBatch(self, request: Any, context: Any) -> Any:  # noqa: N802
        _only(request, READ | {"query_points"})
        held = self.fake.open(request.collection_name)
        asked = [_query(held, query) for query in request.query_points]
        with held.lock:
            came = held.shard.query_batch(engine.QueryBatchRequest(asked))
        return q.QueryBatchResponse(result=[q.BatchResult(result=[_hit(hit) for hit in hits]) for hits in came])

    def _write(self, held: Collection, request: Any, change: Any) -> Any:
        if not request.wait:
            raise Refused(Code.UNIMPLEMENTED, "the fake waits for every write; wait=false came")
        with held.lock:
            held.shard.update(change)
        return q.PointsOperationResponse(result=q.UpdateResult(operation_id=0, status=q.UpdateStatus.Completed))


class Snapshots(q.SnapshotsServicer):
    def __init__(self, fake: FakeQdrant) -> None:
        self.fake = fake

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        held = self.fake.open(request.collection_name)
        folder = self.fake.home / "snapshots" / held.made.collection_name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{held.made.collection_name}-{len(list(folder.iterdir()))}.snapshot"
        with held.lock:
            held.shard.flush()
            (held.home / "made").write_bytes(held.made.SerializeToString())
            (held.home / "schema").write_text(json.dumps(held.schema))
            with tarfile.open(path, "w") as archive:
                archive.add(held.home, ".")
        told = q.SnapshotDescription(name=path.name, size=path.stat().st_size, checksum="0" * 64)
        told.creation_time.GetCurrentTime()
        return q.CreateSnapshotResponse(snapshot_description=told)


class _Http(BaseHTTPRequestHandler):
    """The one call that Qdrant has over HTTP alone: a collection from a snapshot."""

    fake: FakeQdrant

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if len(parts) != 4 or parts[0] != "collections" or parts[2:] != ["snapshots", "recover"]:
            self._reply(501, "the fake does not implement this")
            return
        source = Path(body["location"].removeprefix("file://"))
        if not body["location"].startswith("file://") or not source.is_file():
            self._reply(400, f"Bad request: Snapshot file {source} does not exist")
            return
        home = self.fake.place()
        with tarfile.open(source) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in every 3.11
            archive.extractall(home)
        made = q.CreateCollection.FromString((home / "made").read_bytes())
        schema = json.loads((home / "schema").read_text())
        for extra in ("made", "schema"):
            (home / extra).unlink()
        made.collection_name = parts[1]
        self.fake.create(made, engine.EdgeShard.load(str(home)), home).schema.update(schema)
        self._reply(200, True)

    def _reply(self, status: int, result: object) -> None:
        data = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _config(request: Any) -> engine.EdgeConfig:
    vectors = {}
    for name, params in request.vectors_config.params_map.map.items():
        _only(params, {"size", "distance", "on_disk"})
        if params.distance != q.Distance.Cosine:
            raise Refused(Code.UNIMPLEMENTED, "the fake compares by cosine")
        vectors[name] = engine.EdgeVectorParams(params.size, engine.Distance.Cosine, on_disk=params.on_disk or None)
    if not vectors:
        raise Refused(Code.UNIMPLEMENTED, "the fake wants named vectors")
    _only(request.hnsw_config, {"m", "ef_construct"})
    hnsw = engine.HnswIndexConfig(
        request.hnsw_config.m, request.hnsw_config.ef_construct, full_scan_threshold=FULL_SCAN
    )
    return engine.EdgeConfig(vectors=vectors, hnsw_config=hnsw, quantization_config=_quantisation(request))


def _quantisation(request: Any) -> Any:
    wanted = request.quantization_config
    match wanted.WhichOneof("quantization") if request.HasField("quantization_config") else None:
        case None:
            return None
        case "scalar":
            return engine.ScalarQuantizationConfig(engine.ScalarType.Int8, quantile=wanted.scalar.quantile)
        case "binary":
            return engine.BinaryQuantizationConfig()
        case other:
            raise Refused(Code.UNIMPLEMENTED, f"the fake does not do {other} quantisation")


def _text_index(params: Any) -> Any:
    text = params.text_index_params
    _only(params, {"text_index_params"})
    _only(text, {"tokenizer", "lowercase", "on_disk"})
    if text.tokenizer != q.TokenizerType.Word:
        raise Refused(Code.UNIMPLEMENTED, "the fake tokenises by words")
    return engine.TextIndexParams(engine.TokenizerType.Word, lowercase=text.lowercase, on_disk=text.on_disk)


def _query(held: Collection, query: Any) -> engine.QueryRequest:
    _only(query, QUERY)
    _only(query.query, {"nearest"})
    _only(query.query.nearest, {"dense"})
    _only(query.params, {"hnsw_ef", "exact", "indexed_only", "quantization"})
    params, quantised = query.params, query.params.quantization
    held.limit("max_query_limit", query.limit, "limit")
    held.limit("search_max_hnsw_ef", params.hnsw_ef, "hnsw_ef")
    held.limit("search_max_oversampling", quantised.oversampling, "oversampling")
    if params.exact and held.strict.enabled and not held.strict.search_allow_exact:
        raise Refused(Code.INVALID_ARGUMENT, "Forbidden: Exact search is not allowed")
    count = [0]
    where = _filter(held, query.filter, count) if query.HasField("filter") else None
    held.limit("filter_max_conditions", count[0], "conditions")
    return engine.QueryRequest(
        limit=query.limit,
        offset=query.offset,
        query=engine.Query.Nearest(list(query.query.nearest.dense.data), using=query.using),
        filter=where,
        params=engine.SearchParams(
            hnsw_ef=params.hnsw_ef or None,
            exact=params.exact,
            indexed_only=params.indexed_only,
            quantization=engine.QuantizationSearchParams(
                ignore=quantised.ignore, rescore=quantised.rescore, oversampling=quantised.oversampling or None
            ),
        ),
        score_threshold=query.score_threshold if query.HasField("score_threshold") else None,
        with_payload=_payload_wanted(query.with_payload),
        with_vector=_vectors_wanted(query),
    )


def _filter(held: Collection, where: Any, count: list[int], within: str = "") -> engine.Filter:
    """`within`: path of the list whose elements are asked."""
    least = None
    if where.HasField("min_should"):
        parts = [_condition(held, part, count, within) for part in where.min_should.conditions]
        least = engine.MinShould(parts, where.min_should.min_count)
    return engine.Filter(
        must=[_condition(held, part, count, within) for part in where.must],
        should=[_condition(held, part, count, within) for part in where.should] or None,
        must_not=[_condition(held, part, count, within) for part in where.must_not],
        min_should=least,
    )


def _condition(held: Collection, part: Any, count: list[int], within: str) -> Any:
    count[0] += 1
    match part.WhichOneof("condition_one_of"):
        case "filter":
            return _filter(held, part.filter, count, within)
        case "has_id":
            held.limit("condition_max_size", len(part.has_id.has_id), "ids")
            return engine.HasIdCondition({point.uuid for point in part.has_id.has_id})
        case "is_empty":
            _indexed(held, within + part.is_empty.key, None)
            return engine.IsEmptyCondition(part.is_empty.key)
        case "field":
            return _field(held, part.field, within)
        case "nested":
            key = part.nested.key
            return engine.NestedCondition(key, _filter(held, part.nested.filter, count, f"{within}{key}[]."))
        case other:
            raise Refused(Code.UNIMPLEMENTED, f"the fake does not do condition {other}")


def _field(held: Collection, one: Any, within: str) -> engine.FieldCondition:
    _only(one, {"key", "match", "range", "datetime_range", "geo_radius"})
    if one.HasField("match"):
        kind = one.match.WhichOneof("match_value")
        _indexed(held, within + one.key, kind)
        value = getattr(one.match, kind)
        match kind:
            case "keyword" | "integer":
                return engine.FieldCondition(one.key, match=engine.MatchValue(value))
            case "text":
                return engine.FieldCondition(one.key, match=engine.MatchText(value))
            case "keywords" | "integers" | "except_keywords" | "except_integers":
                values = list(value.strings if kind.endswith("keywords") else value.integers)
                held.limit("condition_max_size", len(values), "values")
                made = engine.MatchExcept(values) if kind.startswith("except") else engine.MatchAny(values)
                return engine.FieldCondition(one.key, match=made)
            case _:  # a bool too: the engine's Python binding reads it as an integer and would find nothing
                raise Refused(Code.UNIMPLEMENTED, f"the fake does not match {kind}")
    if one.HasField("range"):
        _indexed(held, within + one.key, "range")
        bounds = {each.name: value for each, value in one.range.ListFields()}
        return engine.FieldCondition(one.key, range=engine.RangeFloat(**bounds))
    if one.HasField("datetime_range"):
        _indexed(held, within + one.key, "datetime_range")
        spans = {each.name: value.ToJsonString() for each, value in one.datetime_range.ListFields()}
        return engine.FieldCondition(one.key, range=engine.RangeDateTime(**spans))
    _indexed(held, within + one.key, "geo_radius")
    centre = engine.GeoPoint(one.geo_radius.center.lon, one.geo_radius.center.lat)
    return engine.FieldCondition(one.key, geo_radius=engine.GeoRadius(centre, one.geo_radius.radius))


def _indexed(held: Collection, key: str, kind: str | None) -> None:
    """Strict mode: a filter needs an index of a fitting type."""
    if not held.strict.enabled or held.strict.unindexed_filtering_retrieve:
        return
    if kind is not None and kind not in INDEX_FOR:
        raise Refused(Code.UNIMPLEMENTED, f"the fake does not match {kind}")
    fitting = INDEX_FOR[kind] if kind else set(held.schema.values())
    if held.schema.get(key) not in fitting:
        raise Refused(Code.INVALID_ARGUMENT, f'Bad request: Index required but not found for "{key}" ({kind})')


def _payload_wanted(selector: Any) -> bool | list[str]:
    match selector.WhichOneof("selector_options"):
        case None:
            return False
        case "enable":
            return selector.enable
        case "include":
            return list(selector.include.fields)
        case other:
            raise Refused(Code.UNIMPLEMENTED, f"the fake does not do payload selector {other}")


def _vectors_wanted(request: Any) -> bool | list[str]:
    if not request.HasField("with_vectors"):
        return False
    selector = request.with_vectors
    return list(selector.include.names) if selector.WhichOneof("selector_options") == "include" else selector.enable


def _selected(selector: Any) -> list[str]:
    if selector.WhichOneof("points_selector_one_of") != "points":
        raise Refused(Code.UNIMPLEMENTED, "the fake selects points by ids")
    if not selector.points.ids:
        raise Refused(Code.INVALID_ARGUMENT, "Empty update request")
    return [point.uuid for point in selector.points.ids]


def _retrieved(record: Any) -> Any:
    return q.RetrievedPoint(
        id=q.PointId(uuid=str(record.id)), payload=_fancy(record.payload), vectors=_vectors(record.vector)
    )


def _hit(hit: Any) -> Any:
    return q.ScoredPoint(
        id=q.PointId(uuid=str(hit.id)), score=hit.score, payload=_fancy(hit.payload), vectors=_vectors(hit.vector)
    )


def _vectors(named: Any) -> Any:
    if not named:
        return None
    out = {name: q.VectorOutput(dense=q.DenseVector(data=list(row))) for name, row in named.items()}
    return q.VectorsOutput(vectors=q.NamedVectorsOutput(vectors=out))


def _plain(payload: Any) -> dict[str, Any]:
    return {key: _value(value) for key, value in payload.items()}


def _value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case "string_value" | "integer_value" | "double_value" | "bool_value" as kind:
            return getattr(value, kind)
        case "struct_value":
            return {key: _value(each) for key, each in value.struct_value.fields.items()}
        case "list_value":
            return [_value(each) for each in value.list_value.values]
        case other:
            raise Refused(Code.UNIMPLEMENTED, f"the fake keeps no payload of kind {other}")


def _fancy(payload: dict[str, Any] | None) -> dict[str, Any]:
    return {key: _protobuf(value) for key, value in (payload or {}).items()}


def _protobuf(value: Any) -> Any:
    match value:
        case bool():
            return q.Value(bool_value=value)
        case int():
            return q.Value(integer_value=value)
        case float():
            return q.Value(double_value=value)
        case str():
            return q.Value(string_value=value)
        case list():
            return q.Value(list_value=q.ListValue(values=[_protobuf(each) for each in value]))
        case dict():
            fields = {key: _protobuf(each) for key, each in value.items()}
            return q.Value(struct_value=q.Struct(fields=fields))
    raise AssertionError(f"payload of type {type(value).__name__}")
