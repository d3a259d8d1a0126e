from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_ENCODING_UNSPECIFIED: _ClassVar[TokenEncoding]
    TOKEN_ENCODING_F32: _ClassVar[TokenEncoding]
    TOKEN_ENCODING_F16: _ClassVar[TokenEncoding]
    TOKEN_ENCODING_INT8: _ClassVar[TokenEncoding]
    TOKEN_ENCODING_INT4: _ClassVar[TokenEncoding]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_ZERO_SHOT: _ClassVar[Mode]
    MODE_TUNED: _ClassVar[Mode]
TOKEN_ENCODING_UNSPECIFIED: TokenEncoding
TOKEN_ENCODING_F32: TokenEncoding
TOKEN_ENCODING_F16: TokenEncoding
TOKEN_ENCODING_INT8: TokenEncoding
TOKEN_ENCODING_INT4: TokenEncoding
MODE_UNSPECIFIED: Mode
MODE_ZERO_SHOT: Mode
MODE_TUNED: Mode

class Sentence(_message.Message):
    __slots__ = ("encoding", "count", "width", "data", "scales")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    encoding: TokenEncoding
    count: int
    width: int
    data: bytes
    scales: bytes
    def __init__(self, encoding: _Optional[_Union[TokenEncoding, str]] = ..., count: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ..., scales: _Optional[bytes] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("text", "integer", "number", "flag")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    number: float
    flag: bool
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("key", "equals")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EQUALS_FIELD_NUMBER: _ClassVar[int]
    key: str
    equals: Value
    def __init__(self, key: _Optional[str] = ..., equals: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("token_space", "encoder", "sentence", "words", "mode", "top", "filter", "gallery_space")
    TOKEN_SPACE_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SPACE_FIELD_NUMBER: _ClassVar[int]
    token_space: str
    encoder: str
    sentence: Sentence
    words: str
    mode: Mode
    top: int
    filter: _containers.RepeatedCompositeFieldContainer[Condition]
    gallery_space: str
    def __init__(self, token_space: _Optional[str] = ..., encoder: _Optional[str] = ..., sentence: _Optional[_Union[Sentence, _Mapping]] = ..., words: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., top: _Optional[int] = ..., filter: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., gallery_space: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("id", "score", "payload")
    class PayloadEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    payload: _containers.MessageMap[str, Value]
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., payload: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class StageTimes(_message.Message):
    __slots__ = ("check_ms", "queue_ms", "text_tower_ms", "heads_ms", "search_ms", "total_ms")
    CHECK_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOWER_MS_FIELD_NUMBER: _ClassVar[int]
    HEADS_MS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    check_ms: float
    queue_ms: float
    text_tower_ms: float
    heads_ms: float
    search_ms: float
    total_ms: float
    def __init__(self, check_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., text_tower_ms: _Optional[float] = ..., heads_ms: _Optional[float] = ..., search_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class SearchReply(_message.Message):
    __slots__ = ("hits", "times", "token_space", "gallery_space", "mode", "generation", "notes", "words_used")
    HITS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SPACE_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SPACE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    WORDS_USED_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    times: StageTimes
    token_space: str
    gallery_space: str
    mode: Mode
    generation: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    words_used: str
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ..., token_space: _Optional[str] = ..., gallery_space: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., generation: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., words_used: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("token_space", "gallery_space", "encoders", "modes", "default_mode", "token_width", "max_tokens", "max_top", "max_words_bytes", "max_conditions", "max_request_bytes", "generation", "gallery_size", "payload_keys", "bundle", "server_version", "provider", "unix_ms")
    TOKEN_SPACE_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SPACE_FIELD_NUMBER: _ClassVar[int]
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_WIDTH_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_FIELD_NUMBER: _ClassVar[int]
    MAX_WORDS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_KEYS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    token_space: str
    gallery_space: str
    encoders: _containers.RepeatedScalarFieldContainer[str]
    modes: _containers.RepeatedScalarFieldContainer[Mode]
    default_mode: Mode
    token_width: int
    max_tokens: int
    max_top: int
    max_words_bytes: int
    max_conditions: int
    max_request_bytes: int
    generation: str
    gallery_size: int
    payload_keys: _containers.RepeatedScalarFieldContainer[str]
    bundle: str
    server_version: str
    provider: str
    unix_ms: int
    def __init__(self, token_space: _Optional[str] = ..., gallery_space: _Optional[str] = ..., encoders: _Optional[_Iterable[str]] = ..., modes: _Optional[_Iterable[_Union[Mode, str]]] = ..., default_mode: _Optional[_Union[Mode, str]] = ..., token_width: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_top: _Optional[int] = ..., max_words_bytes: _Optional[int] = ..., max_conditions: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., generation: _Optional[str] = ..., gallery_size: _Optional[int] = ..., payload_keys: _Optional[_Iterable[str]] = ..., bundle: _Optional[str] = ..., server_version: _Optional[str] = ..., provider: _Optional[str] = ..., unix_ms: _Optional[int] = ...) -> None: ...
