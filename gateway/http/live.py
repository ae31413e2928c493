"""Answers that show the present, and that nobody may keep: stills and video of a stream."""

from typing import Final

from quart import Response

from gateway.serving.interface import Images
from gateway.stream.encoding.transport_stream import CONTENT_TYPE, transport_stream
from gateway.stream.pictures.jpegs import jpeg
from gateway.stream.stream import Stream
from gateway.threads import in_media_thread

NO_STORE: Final = {"Cache-Control": "no-store"}


async def still(image: Images, quality: int) -> Response:
    """A picture as JPEG. quality: 1 to 100."""
    return Response(await in_media_thread(jpeg, image, quality), mimetype="image/jpeg", headers=NO_STORE)


def video(stream: Stream) -> Response:
    """A stream's video as an MPEG transport stream, which ends with the stream."""
    return Response(transport_stream(stream), content_type=CONTENT_TYPE, headers=NO_STORE)
