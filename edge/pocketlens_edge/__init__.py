"""The device: picture in, sentence tokens out, question sent, answer shown.

    from pocketlens_edge import Client, Encoder

    encoder = Encoder.load("bundle")
    with Client("127.0.0.1:50551", encoder) as client:
        answer = client.search(encoder.encode("mug.jpg"), "make it red")

Importing this package loads nothing else; each name is loaded from its module when it is first asked for, so the
command line's help stays quick. docs/sdk.md has more.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pocketlens_wire.api_key import ApiKey, read_api_key
    from pocketlens_wire.bundle import default_bundle
    from pocketlens_wire.errors import (
        BadBundle,
        BadPicture,
        BadQuery,
        GalleryError,
        NotAllowed,
        Overloaded,
        PocketlensError,
        ServerFault,
        SpaceMismatch,
        TooLate,
        Unauthenticated,
        Unavailable,
    )
    from pocketlens_wire.tokens import Encoding

    from pocketlens_edge.answers import Answer, Hit
    from pocketlens_edge.client import AsyncClient, Client
    from pocketlens_edge.conditions import (
        AnyOf,
        Between,
        Equals,
        Filter,
        HasId,
        Missing,
        Near,
        NoneOf,
        Says,
        Scalar,
        Value,
        parse_filter,
    )
    from pocketlens_edge.connection import Tls
    from pocketlens_edge.converse import AsyncConversation, Conversation, InForce, Turn
    from pocketlens_edge.encoder import Encoded, Encoder, Picture
    from pocketlens_edge.local import LocalGallery, open_gallery
    from pocketlens_edge.questions import Mode, Modifier, unwanted

# gRPC's core, once loaded, writes each failed handshake to stderr, beside the error that we raise for it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__all__ = [
    "Answer",
    "AnyOf",
    "ApiKey",
    "AsyncClient",
    "AsyncConversation",
    "BadBundle",
    "BadPicture",
    "BadQuery",
    "Between",
    "Client",
    "Conversation",
    "Encoded",
    "Encoder",
    "Encoding",
    "Equals",
    "Filter",
    "GalleryError",
    "HasId",
    "Hit",
    "InForce",
    "LocalGallery",
    "Missing",
    "Mode",
    "Modifier",
    "Near",
    "NoneOf",
    "NotAllowed",
    "Overloaded",
    "Picture",
    "PocketlensError",
    "Says",
    "Scalar",
    "ServerFault",
    "SpaceMismatch",
    "Tls",
    "TooLate",
    "Turn",
    "Unauthenticated",
    "Unavailable",
    "Value",
    "default_bundle",
    "open_gallery",
    "parse_filter",
    "read_api_key",
    "unwanted",
]

_NAMES_OF: Final = {
    "pocketlens_edge.answers": ("Answer", "Hit"),
    "pocketlens_edge.client": ("AsyncClient", "Client"),
    "pocketlens_edge.conditions": (
        "AnyOf",
        "Between",
        "Equals",
        "Filter",
        "HasId",
        "Missing",
        "Near",
        "NoneOf",
        "Says",
        "Scalar",
        "Value",
        "parse_filter",
    ),
    "pocketlens_edge.connection": ("Tls",),
    "pocketlens_edge.converse": ("AsyncConversation", "Conversation", "InForce", "Turn"),
    "pocketlens_edge.encoder": ("Encoded", "Encoder", "Picture"),
    "pocketlens_edge.local": ("LocalGallery", "open_gallery"),
    "pocketlens_edge.questions": ("Mode", "Modifier", "unwanted"),
    "pocketlens_wire.api_key": ("ApiKey", "read_api_key"),
    "pocketlens_wire.bundle": ("default_bundle",),
    "pocketlens_wire.errors": (
        "BadBundle",
        "BadPicture",
        "BadQuery",
        "GalleryError",
        "NotAllowed",
        "Overloaded",
        "PocketlensError",
        "ServerFault",
        "SpaceMismatch",
        "TooLate",
        "Unauthenticated",
        "Unavailable",
    ),
    "pocketlens_wire.tokens": ("Encoding",),
}
_MODULE_OF: Final = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
