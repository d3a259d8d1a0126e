"""Types of gallery_pb2_grpc.py, which protoc writes without any. By hand; a test compares the names."""

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc

from pocketlens_wire.v1 import gallery_pb2 as pb

class GalleryStub:
    Add: grpc.StreamUnaryMultiCallable[pb.AddRequest, pb.AddReply]
    Remove: grpc.UnaryUnaryMultiCallable[pb.RemoveRequest, pb.RemoveReply]
    def __init__(self, channel: grpc.Channel) -> None: ...

class GalleryServicer:
    # context: grpc.ServicerContext, or grpc.aio.ServicerContext when the method is a coroutine
    def Add(
        self, request_iterator: Iterator[pb.AddRequest] | AsyncIterator[pb.AddRequest], context: Any
    ) -> pb.AddReply | Awaitable[pb.AddReply]: ...
    def Remove(self, request: pb.RemoveRequest, context: Any) -> pb.RemoveReply | Awaitable[pb.RemoveReply]: ...

def add_GalleryServicer_to_server(servicer: GalleryServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
