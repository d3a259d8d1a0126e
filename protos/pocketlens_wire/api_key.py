"""A key of a service as who asks holds it: its form, where it is read from, how it travels.

Owns nothing of what a service keeps about it (cloud/pocketlens_cloud/serving/keys.py). A key comes from a file or the
environment, never from a command line, which every user of a machine can read."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Final, final

from pocketlens_wire.errors import BadQuery

VARIABLE: Final = "POCKETLENS_API_KEY"
HEADER: Final = "authorization"  # gRPC metadata are lower case
FORM: Final = re.compile(r"plk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")  # id, 256 random bits in base64url
MAX_FILE_BYTES: Final = 4096


@final
class ApiKey:
    """One key. What is shown of it is its id alone.

    Raises BadQuery, which does not quote it, for what has not the form of a key."""

    def __init__(self, text: str, *, source: str = "the key") -> None:
        found = FORM.fullmatch(text.strip())
        if not found:
            raise BadQuery(
                f"{source}: does not hold a key of the form plk_ID_SECRET, as `pocketlens-cloud keys new` prints it."
            )
        self.id, self._text = found[1], found[0]

    def __repr__(self) -> str:
        return f"ApiKey(plk_{self.id}_...)"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with a gRPC call."""
        return ((HEADER, f"Bearer {self._text}"),)


def read_api_key(file: Path | None = None) -> ApiKey | None:
    """The key in `file`, else in POCKETLENS_API_KEY; None if neither is given. Raises BadQuery, naming which."""
    if file is None:
        text = os.environ.get(VARIABLE, "")
        return ApiKey(text, source=VARIABLE) if text else None
    try:
        with file.open("rb") as opened:
            held = opened.read(MAX_FILE_BYTES)
    except OSError as error:
        raise BadQuery(f"{file}: the key cannot be read ({error.strerror}).") from error
    return ApiKey(held.decode("ascii", "replace"), source=str(file))


def demand_privacy(server: str, *, encrypted: bool) -> None:
    """Raise BadQuery if a key sent to `server` could be read on the way."""
    if not encrypted and not is_local(server):
        raise BadQuery(f"{server}: a key is not sent over a connection that is not encrypted. Ask it over TLS (--tls).")


def is_local(address: str) -> bool:
    """Whether HOST:PORT or unix:PATH is on this machine. A name counts by its letters: only localhost is."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        at = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return ((at.ipv4_mapped if at.version == 6 else None) or at).is_loopback
