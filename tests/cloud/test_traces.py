"""Spans as a collector receives them: a real one, at the other end of OTLP."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from pocketlens_cloud.serving.canary import golden_canary
from pocketlens_cloud.serving.operations import Operations
from pocketlens_cloud.serving.traces import STAGES, open_tracing
from pocketlens_edge.traces import traceparent
from pocketlens_wire.errors import BadQuery

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans, self.resources = [], []

    def Export(self, request, context):  # noqa: N802 - gRPC's name
        for batch in request.resource_spans:
            self.resources.append({each.key: each.value.string_value for each in batch.resource.attributes})
            self.spans += [span for scope in batch.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch):
    kept = Collector()
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        otlp_grpc.add_TraceServiceServicer_to_server(kept, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        yield kept
        server.stop(None).wait()


def test_a_question_is_followed_from_the_device_to_the_gallery(collector, service, composer, toy, gallery, serve):
    canary = golden_canary(toy.bundle, composer.manifest, gallery, "tuned", "fp32")
    operations = Operations(service, canary, tracing=open_tracing(bundle="toy"))
    around = {"beside": operations.beside(), "interceptors": operations.interceptors, "further": operations.further}
    with serve(service, **around) as running:
        parent = f"00-{TRACE}-{SPAN}-01"
        running.stub.Search(toy.request(), timeout=5, metadata=(("traceparent", parent),))
        with pytest.raises(grpc.RpcError) as caught:
            running.stub.Search(toy.request(top=0), timeout=5)
        own_trace = dict(caught.value.trailing_metadata())["x-trace-id"]
    # Stopping has sent what was left.
    (asked,) = [span for span in collector.spans if span.parent_span_id.hex() == SPAN]
    assert (asked.name, asked.trace_id.hex()) == ("pocketlens.v1.Retrieval/Search", TRACE)
    stages = [span for span in collector.spans if span.parent_span_id == asked.span_id]
    assert [span.name for span in stages] == list(STAGES)
    assert {span.trace_id.hex() for span in stages} == {TRACE}
    for earlier, later in pairwise(stages):
        assert earlier.start_time_unix_nano <= earlier.end_time_unix_nano == later.start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= asked.end_time_unix_nano
    (refused,) = [span for span in collector.spans if span.trace_id.hex() == own_trace]
    assert (refused.status.code, refused.status.message) == (2, "BadQuery")
    assert len(collector.spans) == 2 + len(STAGES)  # canaries leave none
    assert collector.resources[0]["pocketlens.bundle"] == "toy"
    assert toy.request().words not in str(collector.spans)


def test_without_a_collector_nothing_is_traced(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert open_tracing() is None


def test_without_the_library_it_is_said_what_is_missing(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(BadQuery, match=r"pocketlens\[otel\]"):
        open_tracing()


def test_a_device_goes_on_with_the_trace_of_its_environment(monkeypatch):
    monkeypatch.delenv("TRACEPARENT", raising=False)
    one, other = traceparent(), traceparent()
    assert one.split("-")[1] != other.split("-")[1]
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{SPAN}-00")
    going_on = traceparent()
    assert going_on.split("-")[1] == TRACE
    assert going_on.split("-")[2] != SPAN
    monkeypatch.setenv("TRACEPARENT", "what?")
    assert len(traceparent()) == 55
