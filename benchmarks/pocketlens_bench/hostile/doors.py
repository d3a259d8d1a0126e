"""Keys as weapons, against a server that asks for them."""

from collections.abc import Callable

from pocketlens_wire.v1 import gallery_pb2

from pocketlens_bench.hostile.case import ANSWERED, FORBIDDEN, NO_KEY, UNKNOWN_METHOD, Case, Lacking, case
from pocketlens_bench.hostile.target import Doors, Target

Act = Callable[[Target], str]

DESCRIBE, REMOVE = "/pocketlens.v1.Retrieval/Describe", "/pocketlens.v1.Gallery/Remove"


def _doors(to: Target) -> Doors:
    if to.doors is None:
        raise Lacking("a server of its own that asks for keys")
    return to.doors


def _with(*given: str | Callable[[Doors], str]) -> Act:
    """The good question with these values of `authorization`."""

    def act(to: Target) -> str:
        doors = _doors(to)
        return to.with_headers(*(each if isinstance(each, str) else each(doors) for each in given))

    return act


def _bearer(of: Callable[[Doors], str]) -> Act:
    return _with(lambda doors: f"Bearer {of(doors)}")


def _other_secret(doors: Doors) -> str:
    """A good key but for its last letter, which begins with other bits."""
    return doors.good[:-1] + ("A" if doors.good[-1] != "A" else "Q")


def _id_of(key: str) -> str:
    return key[: len("plk_") + 12]


def _removing(to: Target) -> str:
    doors = _doors(to)
    request = gallery_pb2.RemoveRequest(ids=["0" * 32]).SerializeToString()
    return to.raw(request, REMOVE, (("authorization", f"Bearer {doors.good}"),))


def _otherwise(name: str) -> Act:
    """The good key under another header's name, and none where it belongs."""
    return lambda to: to.raw(to.question().SerializeToString(), metadata=((name, _doors(to).good),))


def _spoilt(to: Target) -> str:
    """The file of keys becomes nonsense and then nothing: those before stay."""
    doors = _doors(to)
    whole = doors.file.read_bytes()
    try:
        for spoilt in (b"{", b"", b"\xff" * 1000, b"[" * 100_000):
            doors.file.write_bytes(spoilt)
            if (came := to.with_headers(f"Bearer {doors.good}")) != ANSWERED:
                return came
    finally:
        doors.file.write_bytes(whole)
    return to.with_headers(f"Bearer {doors.good}")


CASES: list[Case] = [
    case("auth", "none", "no key", NO_KEY, _with()),
    case("auth", "empty", "an empty header", NO_KEY, _with("")),
    case("auth", "nothing-after-bearer", "`Bearer` and no key", NO_KEY, _with("Bearer ")),
    case("auth", "other-secret", "a good key but for its last letter", NO_KEY, _bearer(_other_secret)),
    case("auth", "unknown", "a key nobody made", NO_KEY, _bearer(lambda _: "plk_" + "0" * 12 + "_" + "A" * 43)),
    case("auth", "mixed", "the id of one key, the secret of another", NO_KEY,
         _bearer(lambda doors: _id_of(doors.good) + doors.index[len(_id_of(doors.index)) :])),
    case("auth", "expired", "an expired key", NO_KEY, _bearer(lambda doors: doors.expired)),
    case("auth", "revoked", "a revoked key", NO_KEY, _bearer(lambda doors: doors.revoked)),
    case("auth", "other-scope", "a key that may only index asks", FORBIDDEN, _bearer(lambda doors: doors.index)),
    case("auth", "search-removes", "a key that may only ask removes", FORBIDDEN, _removing),
    case("auth", "twice", "the good key twice", NO_KEY, _with(*[lambda doors: f"Bearer {doors.good}"] * 2)),
    case("auth", "good-and-bad", "an unknown key before the good one", NO_KEY,
         _with("Bearer plk_" + "0" * 12 + "_" + "A" * 43, lambda doors: f"Bearer {doors.good}")),
    case("auth", "basic", "the good key as a password of HTTP Basic", NO_KEY,
         _with(lambda doors: f"Basic {doors.good}")),
    case("auth", "lower-case", "`bearer` in lower case, which is the same", ANSWERED,
         _with(lambda doors: f"bearer {doors.good}")),
    case("auth", "longer", "the good key and one letter more", NO_KEY, _bearer(lambda doors: doors.good + "A")),
    case("auth", "shorter", "the good key without its last letter", NO_KEY, _bearer(lambda doors: doors.good[:-1])),
    case("auth", "endless", "a key of 5,000 letters", NO_KEY, _bearer(lambda _: "plk_" + "0" * 5000)),
    case("auth", "other-header", "the good key under another name", NO_KEY, _otherwise("x-api-key")),
    case("auth", "describe", "no key, and only a description wanted", NO_KEY,
         lambda to: to.with_headers(method=DESCRIBE) if _doors(to) else ""),
    case("auth", "describe-any", "any good key describes", ANSWERED,
         lambda to: to.with_headers(f"Bearer {_doors(to).index}", method=DESCRIBE)),
    case("auth", "no-such-method", "a method nobody offers, without a key", (NO_KEY, UNKNOWN_METHOD),
         lambda to: to.with_headers(method="/pocketlens.v1.Admin/Stop") if _doors(to) else ""),
    case("auth", "file-spoilt", "the file of keys becomes nonsense meanwhile", ANSWERED, _spoilt),
]  # fmt: skip
