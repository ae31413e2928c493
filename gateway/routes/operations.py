"""Probes and metrics for the people and programs that run the server."""

from pydantic import BaseModel
from quart import Blueprint, Response
from quart_schema import document_response, tag, validate_response

from gateway.http.openapi import answers
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.pipelines.state import Pipelines
from gateway.stream.streams import Streams


class Readiness(BaseModel):
    """Whether new viewers can be served; why not."""

    ready: bool
    reason: str | None


def operations_blueprint(
    pipelines: Pipelines, streams: Streams, metrics: Metrics, required: str | None
) -> Blueprint:
    """required: the pipeline that this server is to have loaded; None: that is up to the clients."""
    bp = Blueprint("operations", __name__)

    @bp.get("/ready")
    @tag(["operations"])
    @validate_response(Readiness)
    @document_response(Readiness, 503)
    async def ready() -> tuple[Readiness, int]:
        """200 when new viewers can be served, else 503; `/health` only tells that the gateway is alive."""
        if streams.draining:
            return Readiness(ready=False, reason="The server is shutting down"), 503
        serving = pipelines.serving
        if not await serving.is_ready():
            reason = serving.problem or f"Triton ({serving.url}) does not answer"
            return Readiness(ready=False, reason=reason), 503
        if required is not None and pipelines.loaded is None:
            status = pipelines.status()
            reason = status["error"] or status["loading_stage"] or "somebody unloaded it"
            return Readiness(ready=False, reason=f"Pipeline {required} is not loaded: {reason}"), 503
        return Readiness(ready=True, reason=None), 200

    @bp.get("/metrics")
    @tag(["operations"])
    @answers(200, "text/plain", description="Prometheus text format")
    async def exposition() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(await metrics.exposition(pipelines), content_type=CONTENT_TYPE)

    return bp
