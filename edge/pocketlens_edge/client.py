"""Ask the retrieval service, blocking or in asyncio.

Owns the two clients and what they take. What is asked is questions.py, what came back answers.py, the way there
ways.py, the channel connection.py. Called by the command line, the demo and the benchmarks; knows no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Self, cast

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.api_key import ApiKey
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.tokens import Encoding
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_edge.answers import ENVELOPE_BYTES, Answer, Hit, answer_of
from pocketlens_edge.conditions import Where
from pocketlens_edge.connection import ATTEMPTS, Tls, Trace, open_channel
from pocketlens_edge.questions import Mode, Modifier, question
from pocketlens_edge.ways import Answerer, AsyncRemote, BlockingLine, InThread, Remote

if TYPE_CHECKING:
    from pocketlens_edge.converse import AsyncConversation, Conversation
    from pocketlens_edge.encoder import Encoder

__all__ = ["ATTEMPTS", "ENVELOPE_BYTES", "Answer", "Answerer", "AsyncClient", "Client", "Hit", "Tls", "open_channel"]


class Client:
    """Asks one server, or a gallery on this device; threads may share it. A context manager; it closes what it opened.

    Args:
        server: HOST:PORT, or what `open_gallery` gave. Several replicas: `10.0.0.5:50551,10.0.0.6:50551`, or one name
            with several addresses; while one of them answers, so does the client.
        encoder: whose tokens are sent; its two ids go with every question.
        token_space, encoder_id: the same two where no encoder is loaded: for words alone, or tokens made elsewhere.
        timeout_s: deadline of a question, retries included, seconds; a gallery on this device has none.
        encoding: how tokens travel.
        tls: how the connection is encrypted; None: not at all.
        api_key: what a server that asks for keys knows this device by; sent only encrypted, or within this machine.
        trace: gives the W3C traceparent that a question is sent with, such as `traces.traceparent`; None: none.
        channel: a ready gRPC channel to use instead of opening one to `server`; the caller closes it, and answers for
            who can read a key that goes through it.
    """

    def __init__(
        self,
        server: str | Answerer,
        encoder: Encoder | None = None,
        *,
        token_space: str = "",
        encoder_id: str = "",
        timeout_s: float = 5.0,
        encoding: Encoding = Encoding.INT8,
        tls: Tls | None = None,
        api_key: ApiKey | str | None = None,
        trace: Trace | None = None,
        channel: grpc.Channel | None = None,
    ) -> None:
        self.token_space, self.encoder_id = _ids(encoder, token_space, encoder_id)
        self.server, self.timeout_s, self.encoding = str(server), _positive(timeout_s), encoding
        self._remote = Remote(server, timeout_s, tls, api_key, trace, channel) if isinstance(server, str) else None
        self._answerer = self._remote or cast("Answerer", server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless it was handed in. Nothing can be asked afterwards."""
        if self._remote:
            self._remote.close()

    def describe(self) -> pb.DescribeReply:
        """What the service speaks and allows. Raises a PocketlensError in plain words."""
        return self._answerer.describe(pb.DescribeRequest())

    def search(
        self,
        tokens: NDArray[np.float32] | None,
        words: str = "",
        *,
        top: int = 10,
        mode: Mode | None = None,
        where: Where | None = None,
        modifiers: Sequence[Modifier | str] = (),
        least_score: float | None = None,
        skip: int = 0,
        group_by: str | None = None,
        group_size: int = 1,
        payload: Sequence[str] | None = None,
        rerank: bool = False,
    ) -> Answer:
        """Ask for `top` pictures: like the one in `tokens`, changed as `words` say; or for what they say.

        `tokens` is float32 (count, width), or None for words alone. `mode` None leaves the choice to the server.
        `where`: values that a hit's payload must have by their keys, or a Filter, which can say more.
        `modifiers`: further words, read after `words`; with weights other than 1, `unwanted(...)` among them, they move
        the query towards what they say or away from it. `least_score`: cosine below which nothing is a hit. `skip`:
        hits left out at the best end, for a further page. `group_by`: a payload key of which each value gives at most
        `group_size` hits; `top` and `skip` then count values. `payload`: keys to give back, None for all. `rerank`:
        sort the best anew by what they have in common; `Answer.reranked` says whether it was done.
        Raises BadQuery before sending what cannot be asked, and otherwise the PocketlensError of the
        server's status, in plain words."""
        question = self.question(
            tokens,
            words,
            top=top,
            mode=mode,
            where=where,
            modifiers=modifiers,
            least_score=least_score,
            skip=skip,
            group_by=group_by,
            group_size=group_size,
            payload=payload,
            rerank=rerank,
        )
        return self.ask(question)

    def question(
        self,
        tokens: NDArray[np.float32] | None,
        words: str = "",
        *,
        top: int = 10,
        mode: Mode | None = None,
        where: Where | None = None,
        modifiers: Sequence[Modifier | str] = (),
        least_score: float | None = None,
        skip: int = 0,
        group_by: str | None = None,
        group_size: int = 1,
        payload: Sequence[str] | None = None,
        rerank: bool = False,
    ) -> pb.SearchRequest:
        """What `search` would ask. Raises BadQuery for what cannot be asked; nothing is sent."""
        return question(
            token_space=self.token_space,
            encoder_id=self.encoder_id,
            tokens=tokens,
            words=words,
            encoding=self.encoding,
            top=top,
            mode=mode,
            where=where or {},
            modifiers=modifiers,
            least_score=least_score,
            skip=skip,
            group_by=group_by,
            group_size=group_size,
            payload=payload,
            rerank=rerank,
        )

    def ask(self, request: pb.SearchRequest) -> Answer:
        """Ask a question as it is, such as one that was kept. Raises the PocketlensError of the server's status."""
        start = perf_counter()
        reply = self._answerer.search(request)
        took_ms = 1e3 * (perf_counter() - start)
        sent = request.ByteSize() if self._remote else 0
        return answer_of(reply, request, server=self.server, round_trip_ms=took_ms, request_bytes=sent)

    def converse(self, opening: NDArray[np.float32] | pb.SearchRequest) -> Conversation:
        """A question refined turn by turn: `opening` is a picture's tokens, or what `question` gave, which may have
        words, conditions and a page of its own. Nothing is sent before the first turn."""
        from pocketlens_edge.converse import Conversation

        first = opening if isinstance(opening, pb.SearchRequest) else self.question(opening)
        return Conversation(first, BlockingLine(self._answerer), server=self.server, sends=self._remote is not None)


class AsyncClient:
    """`Client` for asyncio: the same arguments, questions, answers and errors. An asynchronous context manager.

    Tasks of one event loop may share it, that in which it is first used. Cancelling a task cancels its question. A
    gallery on this device is searched in a thread. Encoding blocks: `await asyncio.to_thread(encoder.encode, picture)`.
    """

    def __init__(
        self,
        server: str | Answerer,
        encoder: Encoder | None = None,
        *,
        token_space: str = "",
        encoder_id: str = "",
        timeout_s: float = 5.0,
        encoding: Encoding = Encoding.INT8,
        tls: Tls | None = None,
        api_key: ApiKey | str | None = None,
        trace: Trace | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self.token_space, self.encoder_id = _ids(encoder, token_space, encoder_id)
        self.server, self.timeout_s, self.encoding = str(server), _positive(timeout_s), encoding
        self._remote = AsyncRemote(server, timeout_s, tls, api_key, trace, channel) if isinstance(server, str) else None
        self._answerer = self._remote or InThread(cast("Answerer", server))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, unless it was handed in. Nothing can be asked afterwards."""
        if self._remote:
            await self._remote.close()

    async def describe(self) -> pb.DescribeReply:
        """What the service speaks and allows. Raises a PocketlensError in plain words."""
        return await self._answerer.describe(pb.DescribeRequest())

    async def search(
        self,
        tokens: NDArray[np.float32] | None,
        words: str = "",
        *,
        top: int = 10,
        mode: Mode | None = None,
        where: Where | None = None,
        modifiers: Sequence[Modifier | str] = (),
        least_score: float | None = None,
        skip: int = 0,
        group_by: str | None = None,
        group_size: int = 1,
        payload: Sequence[str] | None = None,
        rerank: bool = False,
    ) -> Answer:
        """As `Client.search`."""
        question = self.question(
            tokens,
            words,
            top=top,
            mode=mode,
            where=where,
            modifiers=modifiers,
            least_score=least_score,
            skip=skip,
            group_by=group_by,
            group_size=group_size,
            payload=payload,
            rerank=rerank,
        )
        return await self.ask(question)

    def question(
        self,
        tokens: NDArray[np.float32] | None,
        words: str = "",
        *,
        top: int = 10,
        mode: Mode | None = None,
        where: Where | None = None,
        modifiers: Sequence[Modifier | str] = (),
        least_score: float | None = None,
        skip: int = 0,
        group_by: str | None = None,
        group_size: int = 1,
        payload: Sequence[str] | None = None,
        rerank: bool = False,
    ) -> pb.SearchRequest:
        """As `Client.question`: nothing is sent, so nothing is awaited."""
        return question(
            token_space=self.token_space,
            encoder_id=self.encoder_id,
            tokens=tokens,
            words=words,
            encoding=self.encoding,
            top=top,
            mode=mode,
            where=where or {},
            modifiers=modifiers,
            least_score=least_score,
            skip=skip,
            group_by=group_by,
            group_size=group_size,
            payload=payload,
            rerank=rerank,
        )

    async def ask(self, request: pb.SearchRequest) -> Answer:
        """As `Client.ask`."""
        start = perf_counter()
        reply = await self._answerer.search(request)
        took_ms = 1e3 * (perf_counter() - start)
        sent = request.ByteSize() if self._remote else 0
        return answer_of(reply, request, server=self.server, round_trip_ms=took_ms, request_bytes=sent)

    def converse(self, opening: NDArray[np.float32] | pb.SearchRequest) -> AsyncConversation:
        """As `Client.converse`; turns are awaited."""
        from pocketlens_edge.converse import AsyncConversation

        first = opening if isinstance(opening, pb.SearchRequest) else self.question(opening)
        line = self._answerer.line()
        return AsyncConversation(first, line, server=self.server, sends=self._remote is not None)


def _ids(encoder: Encoder | None, token_space: str, encoder_id: str) -> tuple[str, str]:
    """Token space and encoder id, from an encoder or as they were given."""
    if encoder is None:
        if not token_space:
            raise TypeError("a client needs an encoder, or the token_space (and encoder_id) of the tokens it sends")
        return token_space, encoder_id
    if token_space or encoder_id:
        raise TypeError("give a client an encoder or the two ids, not both")
    return encoder.manifest.token_space, encoder.encoder_id


def _positive(timeout_s: float) -> float:
    if not timeout_s > 0:
        raise BadQuery(f"timeout is {timeout_s} s; it must be more than 0.")
    return timeout_s
