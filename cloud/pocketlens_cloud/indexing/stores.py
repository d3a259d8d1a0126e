"""Pictures in an object store, through fsspec: s3://, gs://, az:// and what else has a driver.

The only file that imports fsspec (extra `stores`; a store's own driver, such as s3fs, is installed beside it).
Fetches what lies below the one URL that was named on the command line and nothing else: URLs in the pictures' names,
in lists or in payload are never followed, chained URLs and web pages are refused."""

import glob
import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Final

from pocketlens_wire.errors import BadPicture, GalleryError
from pocketlens_wire.pictures import MAX_FILE_BYTES

from pocketlens_cloud.indexing.shards import ShardSource
from pocketlens_cloud.indexing.sources import Source, is_picture, too_large

# What the drivers tell about an object that changes with its bytes.
_TELLING: Final = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "generation", "LastModified", "last_modified",
                   "updated", "mtime", "created")  # fmt: skip


def open_store(url: str) -> Source:
    """The source below a URL: all its pictures, or its shards if the URL ends in .tar. Raises GalleryError."""
    protocol, _, path = url.partition("://")
    if "::" in url or protocol in ("http", "https"):
        raise GalleryError(f"{url}: name one place in an object store, such as s3://bucket/pictures; nothing is "
                           "chained and no web page is read")  # fmt: skip
    if not path.strip("/"):
        raise GalleryError(f"{url}: name a bucket")
    store = Store(url, *_connect(url))
    return ShardSource(StoreShelf(store)) if url.endswith(".tar") else StoreSource(store)


def _connect(url: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise GalleryError(f"{url}: object stores need fsspec: pip install 'pocketlens[stores]'") from error
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:  # fsspec names the driver's package
        raise GalleryError(
            f"{url} cannot be opened: {error}. Each store's driver is installed beside the extra, as in "
            "pip install 'pocketlens[stores]' s3fs (gs:// has gcsfs, az:// adlfs)"
        ) from error
    except ValueError as error:
        raise GalleryError(f"{url} cannot be opened: {error}") from error


@dataclass(frozen=True)
class Store:
    """A place in a store. Credentials are the driver's own business, from its usual places."""

    url: str
    fs: Any
    root: str

    def files(self, folder: str, *, below: bool = True) -> dict[str, dict[str, Any]]:
        """Facts of all files in `folder`, and below it, by path. Raises GalleryError unless all could be listed.

        By `ls` alone: fsspec's find, glob and walk leave out, without a word, what they may not list."""
        found: dict[str, dict[str, Any]] = {}
        waiting = [folder.rstrip("/")]
        while waiting:
            at = waiting.pop()
            try:
                listed = self.fs.ls(at, detail=True)
            except FileNotFoundError as error:
                raise GalleryError(f"{self.url} cannot be listed: there is no {at}") from error
            except Exception as error:  # each driver raises its own
                raise GalleryError(f"{self.url} cannot be listed: {at}: {_said(error)}") from error
            for facts in listed:
                path = facts["name"].rstrip("/")
                if facts["type"] == "file" and path != at:  # some stores keep an empty object of the folder's name
                    found[path] = facts
                elif below and facts["type"] == "directory" and path != at:
                    waiting.append(path)
        return found

    def names(self) -> dict[str, dict[str, Any]]:
        """All files below the root, by their paths from there."""
        home = self.root.rstrip("/") + "/"
        return {path.removeprefix(home): facts for path, facts in self.files(self.root).items()}

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


@dataclass
class StoreSource:
    """The pictures below a URL, named by their paths from there."""

    store: Store
    _facts: dict[str, tuple[str, int]] = field(default_factory=dict)  # fingerprint and size when listed

    @property
    def title(self) -> str:
        return self.store.url

    @property
    def payload_file(self) -> Path | None:
        return None

    def names(self) -> list[str]:
        found = {name: facts for name, facts in self.store.names().items() if is_picture(name)}
        self._facts = {name: (_fingerprint(facts), int(facts.get("size") or 0)) for name, facts in found.items()}
        return sorted(found)

    def fingerprint(self, name: str) -> str:
        return self._facts[name][0]

    def read(self, name: str) -> bytes:
        if (size := self._facts[name][1]) > MAX_FILE_BYTES:
            raise too_large(name, size)
        try:
            return self.store.fs.cat_file(self.store.path(name))
        except Exception as error:
            raise BadPicture(f"{name}: cannot be fetched: {_said(error)}") from error


@dataclass(frozen=True)
class StoreShelf:
    """Shards in a store. Each is read twice: once for its list of members, once picture by picture."""

    store: Store

    @property
    def title(self) -> str:
        return self.store.url

    def shards(self) -> list[str]:
        folder, _, pattern = self.store.root.rpartition("/")
        if glob.has_magic(folder):
            raise GalleryError(f"{self.title}: in a store only the last part may hold *, ? and []")
        found = sorted(
            path for path in self.store.files(folder, below=False) if fnmatchcase(path.rpartition("/")[2], pattern)
        )
        if not found:
            raise GalleryError(f"{self.title}: there is no such shard")
        return found

    def open(self, shard: str) -> tuple[BinaryIO, str]:
        facts = _as_os_error(lambda: self.store.fs.info(shard))
        return _as_os_error(lambda: self.store.fs.open(shard, "rb")), _fingerprint(facts)


def _as_os_error(work: Any) -> Any:
    try:
        return work()
    except OSError:
        raise
    except Exception as error:
        raise OSError(_said(error)) from error


def _fingerprint(facts: dict[str, Any]) -> str:
    """Size and whatever the driver tells that changes with the bytes; empty if it tells nothing such."""
    told = [f"{key}={facts[key]}" for key in _TELLING if facts.get(key)]
    said = ";".join([str(facts.get("size")), *told])
    return hashlib.sha256(said.encode()).hexdigest()[:24] if told else ""


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
