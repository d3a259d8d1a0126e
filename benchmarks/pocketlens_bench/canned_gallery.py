"""A Qdrant server's gRPC port before which no search waits: each is answered with the first answer of its kind.

So what is measured is the service and not the gallery behind it. Everything but searches goes on to the server, and so
does the first search of each method and length, whose reply's bytes then stand for all of that length: the service
reads as many bytes as ever. A process of its own, on the processors it is given. Called by workers.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio
from pocketlens_wire.errors import ServerFault

SEARCHES = ("/qdrant.Points/Query", "/qdrant.Points/QueryBatch")
PATIENCE_S = 30.0


@contextmanager
def canned(target: str, processors: Sequence[int]) -> Iterator[int]:
    """Stand before `target`, HOST:PORT of a Qdrant server's gRPC; gives the port on loopback. Raises ServerFault."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_run, args=(target, tuple(processors), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE_S):
            raise ServerFault("the stand-in before the gallery did not start")
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _run(target: str, processors: Sequence[int], told: Connection) -> None:
    if processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)
    asyncio.run(_serve(target, told))


async def _serve(target: str, told: Connection) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([_Handler(channel)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        told.send(port)
        await server.wait_for_termination()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._known: dict[tuple[str, int], bytes] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method

        async def answer(request: bytes, context: Any) -> bytes:
            kind = (method, len(request))
            if known := self._known.get(kind):
                return known
            try:
                reply = await self._channel.unary_unary(method)(request, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            if method in SEARCHES:
                self._known[kind] = reply
            return reply

        return grpc.unary_unary_rpc_method_handler(answer)
