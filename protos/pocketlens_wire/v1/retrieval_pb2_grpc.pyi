"""Types of retrieval_pb2_grpc.py, which protoc writes without any. By hand; a test compares the names."""

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc

from pocketlens_wire.v1 import retrieval_pb2 as pb

class RetrievalStub:
    Search: grpc.UnaryUnaryMultiCallable[pb.SearchRequest, pb.SearchReply]
    Describe: grpc.UnaryUnaryMultiCallable[pb.DescribeRequest, pb.DescribeReply]
    Converse: grpc.StreamStreamMultiCallable[pb.ConverseRequest, pb.ConverseReply]
    def __init__(self, channel: grpc.Channel) -> None: ...

class RetrievalServicer:
    # context: grpc.ServicerContext, or grpc.aio.ServicerContext when the method is a coroutine
    def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchReply | Awaitable[pb.SearchReply]: ...
    def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply | Awaitable[pb.DescribeReply]: ...
    def Converse(
        self, request_iterator: Any, context: Any
    ) -> Iterator[pb.ConverseReply] | AsyncIterator[pb.ConverseReply]: ...

def add_RetrievalServicer_to_server(servicer: RetrievalServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
