"""The beat that changes of parameters can wait for."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.access.auth import operators_only
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.validation import Integer, Number, check
from gateway.stream.parameters.tempo import BPM_RANGE, MAX_BEATS_PER_BAR, MODES, SOURCES, TempoSource
from gateway.stream.streams import Streams

_Bpm = Annotated[Number, Field(ge=BPM_RANGE[0], le=BPM_RANGE[1])]


class EnableBody(BaseModel):
    """What is left away stays as it is."""

    source: TempoSource = "manual"
    bpm: _Bpm | None = None
    beats_per_bar: Annotated[Integer, Field(ge=1, le=MAX_BEATS_PER_BAR)] | None = None


class TempoBody(BaseModel):
    """A pace; and where in the bar we are, from who counts the beats of a MIDI clock or the like."""

    bpm: _Bpm
    beat: Annotated[Number, Field(ge=1, lt=MAX_BEATS_PER_BAR + 1)] | None = Field(
        None, description="of the bar, now; 1 is its first, fractions are between", examples=[1, 2.5]
    )


_OF_ALL: Final = "The beat is that of all streams"
_ENABLE: Any = TypeAdapter(EnableBody)
_TEMPO: Any = TypeAdapter(TempoBody)


def tempo_blueprint(streams: Streams) -> Blueprint:
    bp = Blueprint("tempo", __name__, url_prefix="/api/v1/tempo")
    tempo = streams.tempo

    def told() -> bodies.TempoStatus:
        chunks = [stream.worker.stats.last_chunk_ms for stream in streams]
        longest = max((ms for ms in chunks if ms is not None), default=None)
        return bodies.TempoStatus(**tempo.status(), chunk_ms=longest)

    @bp.get("/status")
    @tag(["tempo"])
    @validate_response(bodies.TempoStatus)
    async def status() -> bodies.TempoStatus:
        """Pace and place in the bar; a change is seen with the first chunk after its beat."""
        return told()

    @bp.get("/sources")
    @tag(["tempo"])
    @validate_response(bodies.TempoSources)
    async def sources() -> bodies.TempoSources:
        """Where a tempo can come from, and what `quantize_mode` can be."""
        return bodies.TempoSources(sources=list(SOURCES), quantize_modes=list(MODES))

    @bp.post("/enable")
    @operators_only(_OF_ALL)
    @tag(["tempo"])
    @document_request(EnableBody)
    @validate_response(bodies.TempoStatus)
    async def enable() -> bodies.TempoStatus:
        """Begin to count, with the first beat of a bar now, or go on at another pace."""
        body: EnableBody = check(_ENABLE, await json_object(request), "body")
        tempo.enable(body.source, body.bpm, body.beats_per_bar)
        return told()

    @bp.post("/disable")
    @operators_only(_OF_ALL)
    @tag(["tempo"])
    @validate_response(bodies.TempoStatus)
    async def disable() -> bodies.TempoStatus:
        """Let changes wait for nothing."""
        tempo.disable()
        return told()

    @bp.post("/set_tempo")
    @operators_only(_OF_ALL)
    @tag(["tempo"])
    @document_request(TempoBody)
    @validate_response(bodies.TempoStatus)
    async def set_tempo() -> bodies.TempoStatus:
        """Go on at another pace from where in the bar we are, or from `beat`.

        Who sends `beat` again and again may be late by a little: only a part of a small difference counts.
        """
        body: TempoBody = check(_TEMPO, await json_object(request), "body")
        tempo.set(body.bpm)
        if body.beat is not None:
            tempo.follow(tempo.source, body.beat)
        return told()

    @bp.post("/tap")
    @operators_only(_OF_ALL)
    @tag(["tempo"])
    @validate_response(bodies.TempoStatus)
    async def tap() -> bodies.TempoStatus:
        """Tap the beat; the last four taps within two seconds of each other count."""
        tempo.tap()
        return told()

    return bp
