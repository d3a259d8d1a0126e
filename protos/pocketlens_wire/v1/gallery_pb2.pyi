from pocketlens_wire.v1 import retrieval_pb2 as _retrieval_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AddRequest(_message.Message):
    __slots__ = ("begin", "chunk")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    begin: Begin
    chunk: bytes
    def __init__(self, begin: _Optional[_Union[Begin, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("gallery_space", "payload", "picture_bytes", "vectors", "id")
    class PayloadEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _retrieval_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_retrieval_pb2.Value, _Mapping]] = ...) -> None: ...
    GALLERY_SPACE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PICTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    gallery_space: str
    payload: _containers.MessageMap[str, _retrieval_pb2.Value]
    picture_bytes: int
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    id: str
    def __init__(self, gallery_space: _Optional[str] = ..., payload: _Optional[_Mapping[str, _retrieval_pb2.Value]] = ..., picture_bytes: _Optional[int] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., id: _Optional[str] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("name", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class AddReply(_message.Message):
    __slots__ = ("id", "was_there", "generation", "gallery_size")
    ID_FIELD_NUMBER: _ClassVar[int]
    WAS_THERE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SIZE_FIELD_NUMBER: _ClassVar[int]
    id: str
    was_there: bool
    generation: str
    gallery_size: int
    def __init__(self, id: _Optional[str] = ..., was_there: _Optional[bool] = ..., generation: _Optional[str] = ..., gallery_size: _Optional[int] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RemoveReply(_message.Message):
    __slots__ = ("removed", "generation", "gallery_size")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SIZE_FIELD_NUMBER: _ClassVar[int]
    removed: int
    generation: str
    gallery_size: int
    def __init__(self, removed: _Optional[int] = ..., generation: _Optional[str] = ..., gallery_size: _Optional[int] = ...) -> None: ...
