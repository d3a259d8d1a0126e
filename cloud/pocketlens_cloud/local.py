"""Answer questions in the asker's own process: no server, no network.

Owns opening gallery and bundle for it; what a question means is service.py's, as over gRPC. Offered under the entry
point `pocketlens.local` (pyproject.toml), where the device's room finds it without knowing this one."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

from pocketlens_wire.errors import PocketlensError
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.compose import Composer
from pocketlens_cloud.conversation import Conversation
from pocketlens_cloud.gallery.folder import open_gallery
from pocketlens_cloud.gallery.interface import Gallery
from pocketlens_cloud.service import Service


@final
class LocalGallery:
    """A gallery and the half of a bundle that reads questions. Safe to ask from several threads."""

    def __init__(self, service: Service, gallery: Gallery) -> None:
        """The gallery is closed with it."""
        self._service, self._gallery = service, gallery

    def search(self, request: pb.SearchRequest) -> pb.SearchReply:
        """What the server would reply. Raises PocketlensErrors as themselves."""
        return self._service.answer(self._service.check(request))

    def describe(self, _request: pb.DescribeRequest) -> pb.DescribeReply:
        return self._service.describe()

    def converse(self, messages: Iterable[pb.ConverseRequest]) -> Iterator[pb.ConverseReply]:
        """One reply to each message, as over gRPC. Raises what ends a conversation as itself."""
        conversation = Conversation()
        for message in messages:
            try:
                yield conversation.answered(self.search(conversation.take(message)))
            except PocketlensError as error:
                yield conversation.refused(error)

    def close(self) -> None:
        self._gallery.close()

    def __enter__(self) -> "LocalGallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return self._gallery.title


def open_local(gallery: Path, bundle: Path) -> LocalGallery:
    """Open `gallery`, of versions the live one, with the cloud half of `bundle`.

    Raises GalleryError, BadBundle, SpaceMismatch."""
    held = open_gallery(gallery)  # first: it is quick, and says who else holds it
    try:
        return LocalGallery(Service(Composer.load(bundle), held), held)
    except BaseException:
        held.close()
        raise
