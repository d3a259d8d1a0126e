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
    __slots__ = ("text", "integer", "number", "flag", "several", "place")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    SEVERAL_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    number: float
    flag: bool
    several: Values
    place: Place
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ..., several: _Optional[_Union[Values, _Mapping]] = ..., place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("latitude", "longitude")
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    latitude: float
    longitude: float
    def __init__(self, latitude: _Optional[float] = ..., longitude: _Optional[float] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("key", "equals", "any_of", "none_of", "between", "says", "near", "missing", "has_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EQUALS_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    NONE_OF_FIELD_NUMBER: _ClassVar[int]
    BETWEEN_FIELD_NUMBER: _ClassVar[int]
    SAYS_FIELD_NUMBER: _ClassVar[int]
    NEAR_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    HAS_ID_FIELD_NUMBER: _ClassVar[int]
    key: str
    equals: Value
    any_of: Values
    none_of: Values
    between: Between
    says: str
    near: Near
    missing: Missing
    has_id: Ids
    def __init__(self, key: _Optional[str] = ..., equals: _Optional[_Union[Value, _Mapping]] = ..., any_of: _Optional[_Union[Values, _Mapping]] = ..., none_of: _Optional[_Union[Values, _Mapping]] = ..., between: _Optional[_Union[Between, _Mapping]] = ..., says: _Optional[str] = ..., near: _Optional[_Union[Near, _Mapping]] = ..., missing: _Optional[_Union[Missing, _Mapping]] = ..., has_id: _Optional[_Union[Ids, _Mapping]] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Between(_message.Message):
    __slots__ = ("above", "least", "below", "most")
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    above: float
    least: float
    below: float
    most: float
    def __init__(self, above: _Optional[float] = ..., least: _Optional[float] = ..., below: _Optional[float] = ..., most: _Optional[float] = ...) -> None: ...

class Near(_message.Message):
    __slots__ = ("latitude", "longitude", "radius_m")
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    RADIUS_M_FIELD_NUMBER: _ClassVar[int]
    latitude: float
    longitude: float
    radius_m: float
    def __init__(self, latitude: _Optional[float] = ..., longitude: _Optional[float] = ..., radius_m: _Optional[float] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ids(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Clause(_message.Message):
    __slots__ = ("condition", "filter")
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    condition: Condition
    filter: Filter
    def __init__(self, condition: _Optional[_Union[Condition, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("all_of", "any_of", "none_of", "at_least")
    ALL_OF_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    NONE_OF_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    all_of: _containers.RepeatedCompositeFieldContainer[Clause]
    any_of: _containers.RepeatedCompositeFieldContainer[Clause]
    none_of: _containers.RepeatedCompositeFieldContainer[Clause]
    at_least: int
    def __init__(self, all_of: _Optional[_Iterable[_Union[Clause, _Mapping]]] = ..., any_of: _Optional[_Iterable[_Union[Clause, _Mapping]]] = ..., none_of: _Optional[_Iterable[_Union[Clause, _Mapping]]] = ..., at_least: _Optional[int] = ...) -> None: ...

class Modifier(_message.Message):
    __slots__ = ("words", "weight")
    WORDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    words: str
    weight: float
    def __init__(self, words: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Projection(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, keys: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("token_space", "encoder", "sentence", "words", "mode", "top", "filter", "gallery_space", "where", "modifiers", "least_score", "skip", "group_by", "group_size", "payload", "rerank")
    TOKEN_SPACE_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SPACE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    MODIFIERS_FIELD_NUMBER: _ClassVar[int]
    LEAST_SCORE_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    token_space: str
    encoder: str
    sentence: Sentence
    words: str
    mode: Mode
    top: int
    filter: _containers.RepeatedCompositeFieldContainer[Condition]
    gallery_space: str
    where: Filter
    modifiers: _containers.RepeatedCompositeFieldContainer[Modifier]
    least_score: float
    skip: int
    group_by: str
    group_size: int
    payload: Projection
    rerank: bool
    def __init__(self, token_space: _Optional[str] = ..., encoder: _Optional[str] = ..., sentence: _Optional[_Union[Sentence, _Mapping]] = ..., words: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., top: _Optional[int] = ..., filter: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., gallery_space: _Optional[str] = ..., where: _Optional[_Union[Filter, _Mapping]] = ..., modifiers: _Optional[_Iterable[_Union[Modifier, _Mapping]]] = ..., least_score: _Optional[float] = ..., skip: _Optional[int] = ..., group_by: _Optional[str] = ..., group_size: _Optional[int] = ..., payload: _Optional[_Union[Projection, _Mapping]] = ..., rerank: _Optional[bool] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("id", "score", "payload", "group")
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
    GROUP_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    payload: _containers.MessageMap[str, Value]
    group: Value
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., payload: _Optional[_Mapping[str, Value]] = ..., group: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("hits", "times", "token_space", "gallery_space", "mode", "generation", "notes", "words_used", "reranked", "edition")
    HITS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SPACE_FIELD_NUMBER: _ClassVar[int]
    GALLERY_SPACE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    WORDS_USED_FIELD_NUMBER: _ClassVar[int]
    RERANKED_FIELD_NUMBER: _ClassVar[int]
    EDITION_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    times: StageTimes
    token_space: str
    gallery_space: str
    mode: Mode
    generation: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    words_used: str
    reranked: int
    edition: int
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ..., token_space: _Optional[str] = ..., gallery_space: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., generation: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., words_used: _Optional[str] = ..., reranked: _Optional[int] = ..., edition: _Optional[int] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("open", "turn")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    open: SearchRequest
    turn: Turn
    def __init__(self, open: _Optional[_Union[SearchRequest, _Mapping]] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("add", "replace", "back", "back_to", "where", "top", "skip", "mode", "least_score", "group_by", "group_size", "payload", "rerank")
    ADD_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    BACK_FIELD_NUMBER: _ClassVar[int]
    BACK_TO_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LEAST_SCORE_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    add: Modifier
    replace: Replace
    back: int
    back_to: int
    where: Filter
    top: int
    skip: int
    mode: Mode
    least_score: float
    group_by: str
    group_size: int
    payload: Projection
    rerank: bool
    def __init__(self, add: _Optional[_Union[Modifier, _Mapping]] = ..., replace: _Optional[_Union[Replace, _Mapping]] = ..., back: _Optional[int] = ..., back_to: _Optional[int] = ..., where: _Optional[_Union[Filter, _Mapping]] = ..., top: _Optional[int] = ..., skip: _Optional[int] = ..., mode: _Optional[_Union[Mode, str]] = ..., least_score: _Optional[float] = ..., group_by: _Optional[str] = ..., group_size: _Optional[int] = ..., payload: _Optional[_Union[Projection, _Mapping]] = ..., rerank: _Optional[bool] = ...) -> None: ...

class Replace(_message.Message):
    __slots__ = ("turn", "modifier")
    TURN_FIELD_NUMBER: _ClassVar[int]
    MODIFIER_FIELD_NUMBER: _ClassVar[int]
    turn: int
    modifier: Modifier
    def __init__(self, turn: _Optional[int] = ..., modifier: _Optional[_Union[Modifier, _Mapping]] = ...) -> None: ...

class InForce(_message.Message):
    __slots__ = ("turn", "modifier")
    TURN_FIELD_NUMBER: _ClassVar[int]
    MODIFIER_FIELD_NUMBER: _ClassVar[int]
    turn: int
    modifier: Modifier
    def __init__(self, turn: _Optional[int] = ..., modifier: _Optional[_Union[Modifier, _Mapping]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("modifiers", "where", "top", "skip", "mode", "least_score", "group_by", "group_size", "rerank", "since", "before")
    MODIFIERS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LEAST_SCORE_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    modifiers: _containers.RepeatedCompositeFieldContainer[InForce]
    where: Filter
    top: int
    skip: int
    mode: Mode
    least_score: float
    group_by: str
    group_size: int
    rerank: bool
    since: int
    before: int
    def __init__(self, modifiers: _Optional[_Iterable[_Union[InForce, _Mapping]]] = ..., where: _Optional[_Union[Filter, _Mapping]] = ..., top: _Optional[int] = ..., skip: _Optional[int] = ..., mode: _Optional[_Union[Mode, str]] = ..., least_score: _Optional[float] = ..., group_by: _Optional[str] = ..., group_size: _Optional[int] = ..., rerank: _Optional[bool] = ..., since: _Optional[int] = ..., before: _Optional[int] = ...) -> None: ...

class TurnError(_message.Message):
    __slots__ = ("kind", "message", "retry_after_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    retry_after_ms: int
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class ConverseReply(_message.Message):
    __slots__ = ("turn", "state", "reply", "error")
    TURN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    turn: int
    state: State
    reply: SearchReply
    error: TurnError
    def __init__(self, turn: _Optional[int] = ..., state: _Optional[_Union[State, _Mapping]] = ..., reply: _Optional[_Union[SearchReply, _Mapping]] = ..., error: _Optional[_Union[TurnError, _Mapping]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("token_space", "gallery_space", "encoders", "modes", "default_mode", "token_width", "max_tokens", "max_top", "max_words_bytes", "max_conditions", "max_request_bytes", "generation", "gallery_size", "payload_keys", "bundle", "server_version", "provider", "unix_ms", "max_modifiers", "max_filter_depth", "max_values", "max_filter_bytes", "max_reach", "max_turns", "max_conversation_bytes", "max_idle_s", "reranks", "max_groups")
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
    MAX_MODIFIERS_FIELD_NUMBER: _ClassVar[int]
    MAX_FILTER_DEPTH_FIELD_NUMBER: _ClassVar[int]
    MAX_VALUES_FIELD_NUMBER: _ClassVar[int]
    MAX_FILTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REACH_FIELD_NUMBER: _ClassVar[int]
    MAX_TURNS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONVERSATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IDLE_S_FIELD_NUMBER: _ClassVar[int]
    RERANKS_FIELD_NUMBER: _ClassVar[int]
    MAX_GROUPS_FIELD_NUMBER: _ClassVar[int]
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
    max_modifiers: int
    max_filter_depth: int
    max_values: int
    max_filter_bytes: int
    max_reach: int
    max_turns: int
    max_conversation_bytes: int
    max_idle_s: int
    reranks: bool
    max_groups: int
    def __init__(self, token_space: _Optional[str] = ..., gallery_space: _Optional[str] = ..., encoders: _Optional[_Iterable[str]] = ..., modes: _Optional[_Iterable[_Union[Mode, str]]] = ..., default_mode: _Optional[_Union[Mode, str]] = ..., token_width: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_top: _Optional[int] = ..., max_words_bytes: _Optional[int] = ..., max_conditions: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., generation: _Optional[str] = ..., gallery_size: _Optional[int] = ..., payload_keys: _Optional[_Iterable[str]] = ..., bundle: _Optional[str] = ..., server_version: _Optional[str] = ..., provider: _Optional[str] = ..., unix_ms: _Optional[int] = ..., max_modifiers: _Optional[int] = ..., max_filter_depth: _Optional[int] = ..., max_values: _Optional[int] = ..., max_filter_bytes: _Optional[int] = ..., max_reach: _Optional[int] = ..., max_turns: _Optional[int] = ..., max_conversation_bytes: _Optional[int] = ..., max_idle_s: _Optional[int] = ..., reranks: _Optional[bool] = ..., max_groups: _Optional[int] = ...) -> None: ...
