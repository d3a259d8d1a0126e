"""Keys of the service: who may ask what.

Owns the file of keys, which holds no key, only hashes, and the judgement of one that comes. Keys are 256 random bits,
so a fast hash is right: bcrypt and its kin make guessing *passwords* dear, and 2**256 cannot be guessed at any price;
a slow hash would only hand strangers a way to keep the server busy. The hash is over the whole key, whose id stands
before the secret, so that equal secrets would not have equal hashes.

What calls need which scope is door.py's. The file is looked at with each call, so a key that is added or revoked counts
from the next call on, also on open connections; a file that cannot be used is logged, and the keys before stay."""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pocketlens_wire.api_key import FORM
from pocketlens_wire.errors import BadQuery, NotAllowed, ServerFault, Unauthenticated

from pocketlens_cloud.serving.watched import Watched

Scope = Literal["search", "index", "admin"]  # none holds another: a key lists what it may
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
FORMAT: Final = 1
MAX_NOTE: Final = 200
_NO_HASH: Final = "0" * 64  # compared with where no key has the id, so that both ways take the same steps


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is kept of a key. Times are ISO 8601 in UTC.

    rate, burst: rows a second and at once, for who limits callers; None: the server's own bounds."""

    id: str
    hash: str  # SHA-256 of the whole key, hex
    scopes: tuple[Scope, ...]
    created: str
    expires: str | None = None
    revoked: str | None = None
    rate: float | None = None
    burst: int | None = None
    note: str = ""


# --- the caller


_current: ContextVar[Key | None] = ContextVar("pocketlens_key", default=None)
_judge: ContextVar[Callable[[], Key | None]] = ContextVar("pocketlens_judge", default=lambda: None)


def current() -> Key | None:
    """The key this call came with; None where the server asks for none.

    Set in the call's own context: a thread that the call is handed to does not see it, so ask before."""
    return _current.get()


def note_caller(key: Key | None, judge: Callable[[], Key | None]) -> None:
    """Say whose call the present context answers. judge: looks at the caller anew; raises what refuses it."""
    _current.set(key)
    _judge.set(judge)


def judge_again() -> None:
    """For calls that last: raise Unauthenticated or NotAllowed if the caller would not be let in now."""
    _current.set(_judge.get()())


# --- judging


class Keys:
    """The keys in a file, kept in step with it. Raises ServerFault, naming the file, if it cannot be used."""

    def __init__(self, file: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._watched: Watched[Mapping[str, Key]] = Watched(
            [file], lambda held: {key.id: key for key in parse(held[0], file)}, what="the keys"
        )

    def recognise(self, headers: Sequence[str]) -> Key:
        """The key that the values of a call's `authorization` name. Raises Unauthenticated."""
        if not headers:
            raise Unauthenticated("this server wants a key, and none came: give the device one (--api-key-file)")
        kind, _, text = headers[0].partition(" ")
        if len(headers) > 1 or kind.lower() != "bearer":
            raise Unauthenticated("the call must come with one key, as `authorization: Bearer plk_...`")
        found = FORM.fullmatch(text.strip())
        held = self._watched.get().get(found[1]) if found else None
        made = hashlib.sha256(found[0].encode() if found else b"").hexdigest()
        is_right = hmac.compare_digest(made, held.hash if held else _NO_HASH)
        if held is None or not is_right:
            raise Unauthenticated("this server does not know the key that came: ask whoever runs it for one")
        return self._still_good(held)

    def _still_good(self, key: Key) -> Key:
        if key.revoked:
            raise Unauthenticated(f"key {key.id} was revoked on {key.revoked}: ask whoever runs this server for one")
        if key.expires and self._now() >= datetime.fromisoformat(key.expires):
            raise Unauthenticated(f"key {key.id} expired on {key.expires}: ask whoever runs this server for one")
        return key


def demand(key: Key, scope: Scope | None) -> None:
    """Raise NotAllowed unless `key` has `scope`; None: any key will do."""
    if scope and scope not in key.scopes:
        raise NotAllowed(f"this call needs scope {scope}; key {key.id} has {', '.join(key.scopes)}")


# --- the file


def parse(data: bytes, file: Path) -> list[Key]:
    """The keys that a file's bytes hold, all or nothing. Raises ServerFault, naming file and key."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ServerFault(f"{file}: is not JSON ({error})") from error
    is_ours = isinstance(raw, dict) and raw.keys() == {"format", "keys"} and raw["format"] == FORMAT
    if not is_ours or not isinstance(raw["keys"], list):
        raise ServerFault(f"{file}: is not a file of keys of format {FORMAT}; `pocketlens-cloud keys new` makes one")
    found = [_parse_key(each, f"{file}, key {number}") for number, each in enumerate(raw["keys"], 1)]
    if len({key.id for key in found}) != len(found):
        raise ServerFault(f"{file}: two keys have the same id")
    return found


def _parse_key(raw: Any, where: str) -> Key:
    names = {each.name for each in fields(Key)}
    if not isinstance(raw, dict) or raw.keys() != names:
        raise ServerFault(f"{where}: must have exactly {', '.join(sorted(names))}")
    rules: dict[str, bool] = {
        "id": _is_hex(raw["id"], 12),
        "hash": _is_hex(raw["hash"], 64),
        "scopes": isinstance(raw["scopes"], list)
        and bool(raw["scopes"])
        and all(each in SCOPES for each in raw["scopes"]),
        "created": _is_time(raw["created"]),
        "expires": raw["expires"] is None or _is_time(raw["expires"]),
        "revoked": raw["revoked"] is None or _is_time(raw["revoked"]),
        "rate": raw["rate"] is None or (_is_number(raw["rate"], int | float) and 0 < raw["rate"] < float("inf")),
        "burst": raw["burst"] is None or (_is_number(raw["burst"], int) and raw["burst"] >= 1),
        "note": isinstance(raw["note"], str) and len(raw["note"]) <= MAX_NOTE and raw["note"].isprintable(),
    }
    if wrong := [name for name, is_right in rules.items() if not is_right]:
        raise ServerFault(f"{where}: {', '.join(wrong)} cannot be used")
    checked: dict[str, Any] = {**raw, "scopes": tuple(raw["scopes"])}
    return Key(**checked)


def _is_hex(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == length and set(value) <= set("0123456789abcdef")


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def new(
    file: Path,
    scopes: Sequence[Scope],
    *,
    note: str = "",
    valid_for: timedelta | None = None,
    rate: float | None = None,
    burst: int | None = None,
) -> tuple[str, Key]:
    """Add a key to `file`, made if it is not there: the key itself, which is kept nowhere, and what is kept.

    Raises BadQuery for what a key cannot have, ServerFault for a file that cannot be used."""
    now = datetime.now(UTC).replace(microsecond=0)
    name = secrets.token_hex(6)
    text = f"plk_{name}_{secrets.token_urlsafe(32)}"
    key = Key(
        id=name, hash=hashlib.sha256(text.encode()).hexdigest(), scopes=tuple(dict.fromkeys(scopes)),
        created=now.isoformat(), expires=(now + valid_for).isoformat() if valid_for else None,
        rate=rate, burst=burst, note=note,
    )  # fmt: skip
    try:
        _parse_key(_plain(key), "the new key")
    except ServerFault as error:
        raise BadQuery(f"{error} (a note has up to {MAX_NOTE} printable characters)") from error
    with _changing(file) as keys:
        keys.append(key)
    return text, key


def revoke(file: Path, name: str) -> Key:
    """Revoke the key with that id; it stays listed. Raises BadQuery if there is none, ServerFault."""
    if not file.is_file():
        raise BadQuery(f"{file}: there is no such file of keys")
    with _changing(file) as keys:
        for place, key in enumerate(keys):
            if key.id == name:
                at = datetime.now(UTC).replace(microsecond=0).isoformat()
                keys[place] = replace(key, revoked=key.revoked or at)
                return keys[place]
    raise BadQuery(f"{file}: has no key {name}; `pocketlens-cloud keys list` shows those it has")


def _plain(key: Key) -> dict[str, Any]:
    return asdict(key) | {"scopes": list(key.scopes)}


@contextmanager
def _changing(file: Path) -> Iterator[list[Key]]:
    """The keys in `file`; what is done to the list is written, at once for readers and for one changer at a time."""
    file = file.resolve()  # through a link, so that the link stays
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = parse(file.read_bytes(), file) if file.exists() else []
        yield keys
        _write(file, {"format": FORMAT, "keys": [_plain(key) for key in keys]})


def _write(file: Path, content: dict[str, Any]) -> None:
    before = file.stat() if file.exists() else None
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as opened:
            json.dump(content, opened, indent=1)
            opened.flush()
            if before:  # the server may run as another user than who changes the file
                os.fchmod(descriptor, before.st_mode & 0o777)
                with suppress(PermissionError):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fsync(descriptor)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
