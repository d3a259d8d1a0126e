"""Spans of a call, sent to an OpenTelemetry collector where one is named.

A device's trace goes on here: the call's span hangs below the one its traceparent names, and below it hang the
stages that the reply tells. Configured by OpenTelemetry's own environment variables. The only file that imports
opentelemetry, which comes with pocketlens[otel]."""

import os
import time
from typing import TYPE_CHECKING, Any, Final, final

from pocketlens_wire.errors import BadQuery
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.serving.calls import Call

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
STAGES: Final = ("check", "queue", "text_tower", "heads", "search")  # in the order in which they happen


def open_tracing(**facts: str) -> "Tracing | None":
    """Tracing to the collector that the environment names; None if it names none.

    facts: told with every span, such as bundle="sample". Raises BadQuery where pocketlens[otel] is missing."""
    named = [name for name in ENDPOINTS if os.environ.get(name)]
    if not named:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as missing:
        raise BadQuery(
            f"${named[0]} asks for traces, which need more: `pip install 'pocketlens[otel]'`, or unset it"
        ) from missing
    return Tracing(OTLPSpanExporter(), **facts)


@final
class Tracing:
    """Makes spans and hands them to an exporter in a thread of its own, a few seconds' worth at a time."""

    def __init__(self, exporter: "SpanExporter", **facts: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        told = {f"pocketlens.{name}": value for name, value in facts.items()}
        name = os.environ.get("OTEL_SERVICE_NAME", "pocketlens-cloud")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name, **told}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pocketlens_cloud")

    def begin(self, call: Call) -> Any:
        """The call's span, begun now. From here on the call has a trace id."""
        from opentelemetry.trace import SpanKind, format_trace_id

        span = self._tracer.start_span(
            f"pocketlens.v1.Retrieval/{call.method}",
            context=_below(call),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": call.via, "rpc.method": call.method, "pocketlens.request_id": call.request_id},
        )
        call.trace_id = format_trace_id(span.get_span_context().trace_id)
        return span

    def stages(self, span: Any, times: pb.StageTimes) -> None:
        """A span for each stage of an answer that is ready now."""
        from opentelemetry.trace import set_span_in_context

        at = time.time_ns() - int(times.total_ms * 1e6)
        within = set_span_in_context(span)
        for stage in STAGES:
            until = at + int(getattr(times, f"{stage}_ms") * 1e6)
            self._tracer.start_span(stage, context=within, start_time=at).end(until)
            at = until

    def end(self, span: Any, call: Call) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("pocketlens.kind", call.kind)
        if call.kind != "OK":
            span.set_status(Status(StatusCode.ERROR, call.kind))
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _below(call: Call) -> "Context | None":
    """The remote span that the call names, as a context; None for a trace of its own."""
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if call.parent is None:
        return None
    parent = SpanContext(
        trace_id=int(call.parent.trace_id, 16),
        span_id=int(call.parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if call.parent.sampled else TraceFlags.DEFAULT),
    )
    return set_span_in_context(NonRecordingSpan(parent))
