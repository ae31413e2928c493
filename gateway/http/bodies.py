"""Request and response bodies of the REST API, for the OpenAPI document."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.http.validation import FilePath, Number
from gateway.serving.interface import ServedPlan

MAX_GRACE_S: Final = 60


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")


class ProblemBody(BaseModel):
    """One thing that is wrong with a request."""

    type: str = Field(description="machine code, such as `missing` or `less_than_equal`")
    loc: list[str | int] = Field(description="body, query or path, then keys and indices")
    msg: str
    input: Any = None
    ctx: dict[str, Any] | None = None


class ErrorBody(BaseModel):
    """Any refused request: a sentence, or a list of problems (status 422)."""

    detail: str | list[ProblemBody]


class Message(_Body):
    message: str


class TritonHealth(BaseModel):
    ready: bool
    url: str


class Health(BaseModel):
    status: Literal["healthy"] = "healthy"
    timestamp: str = Field(description="local time, ISO 8601")
    server_start_time: float = Field(description="Unix seconds")
    version: str
    git_commit: str
    triton: TritonHealth


class Feature(BaseModel):
    available: bool
    reason: str | None
    install_hint: str | None


class HardwareInfo(BaseModel):
    vram_gb: float | None = Field(description="total memory of GPU 0 in GiB, null without a GPU")
    spout_available: bool
    spout: Feature
    ndi: Feature
    syphon: Feature


class LogTailBody(BaseModel):
    lines: list[str]
    offset: int


class PipelineNode(_Body):
    node_id: str
    pipeline_id: str
    load_params: dict[str, Any] | None = None


class LoadBody(_Body):
    """One of `pipeline_id`, `pipeline_ids`, `pipelines`; the other keys are optional."""

    pipelines: list[PipelineNode] | None = None
    pipeline_ids: list[str] | None = Field(None, examples=[["longlive"]])
    pipeline_id: str | None = Field(None, examples=["longlive"])
    load_params: dict[str, Any] | None = None


class LoadAccepted(BaseModel):
    message: str
    status: Literal["loading", "loaded"]
    pipeline_id: str
    pipeline_ids: list[str]
    load_params: dict[str, Any]
    warnings: list[str]


class AddedLora(_Body):
    path: FilePath = Field(description="as `loras` of a load takes it")
    scale: Annotated[Number, Field(ge=-10, le=10)] = 1.0


class RemovedLora(_Body):
    path: str = Field(description="as the status shows it")


class LoadedLoras(BaseModel):
    loaded_lora_adapters: list[dict[str, Any]]


class PipelineStatus(BaseModel):
    status: Literal["not_loaded", "loading", "loaded", "error"]
    pipeline_id: str | None
    load_params: dict[str, Any] | None
    loaded_lora_adapters: list[dict[str, Any]] | None
    error: str | None
    loading_stage: str | None
    produces_video: bool
    produces_audio: bool
    pipeline_ids: list[str]
    loading_pipeline_id: str | None
    locked: bool = Field(description="whether the server refuses this client's loads and changes of files")
    load_plan: ServedPlan | None = Field(description="null without engines, or while nothing is loaded")


class PipelineSchemas(BaseModel):
    pipelines: dict[str, dict[str, Any]]


class OfferBody(_Body):
    sdp: str
    type: Literal["offer"]
    initialParameters: dict[str, Any] | None = None  # noqa: N815 - the wire's name
    streamId: str | None = Field(None, description="join this stream")  # noqa: N815 - the wire's name
    role: Literal["viewer", "controller"] = Field("viewer", description="of who joins")
    publish: bool = Field(False, description="whether the video of who joins becomes the stream's source")
    label: str = Field("browser", description="what the others call who joins")
    grace_s: float = Field(
        0.0,
        ge=0,
        le=MAX_GRACE_S,
        description="how long a stream that nobody else holds goes on without whoever leaves: a page that is "
        "loaded again joins it as a controller",
    )


class AnswerBody(BaseModel):
    sdp: str
    type: Literal["answer"]
    sessionId: str  # noqa: N815 - the wire's name
    streamId: str = Field(description="of what is shown")  # noqa: N815 - the wire's name
    role: Literal["viewer", "controller", "driver"]


class Candidate(_Body):
    candidate: str
    sdpMid: str | None = None  # noqa: N815 - the wire's name
    sdpMLineIndex: int | None = None  # noqa: N815 - the wire's name


class CandidatesBody(BaseModel):
    candidates: list[Candidate]


class StreamObject(BaseModel, extra="allow"):
    """A stream. `tokens` are there when it was made as private, and for whoever may do everything."""

    id: str
    state: Literal["waiting", "idle", "running", "paused", "ended"]
    pipeline_id: str | None
    kept: bool
    private: bool
    drivers: Literal["one", "many"]
    driver: str | None
    created_at: float
    source: dict[str, Any]
    sinks: list[dict[str, Any]]
    viewers: int
    people: list[dict[str, Any]]
    recording: dict[str, Any]
    whip_url: str
    whep_url: str
    mjpeg_url: str
    watch_url: str
    tokens: dict[str, str] | None = None


class StreamList(BaseModel):
    streams: list[StreamObject]


class PublicationObject(BaseModel):
    id: str
    server: str = Field(description="scheme, host and port of the URL; the rest may be what opens it")
    codec: Literal["H264", "VP8"]
    state: Literal["connecting", "publishing", "waiting", "failed"] = Field(
        description="`waiting`: it is tried again; `failed`: it is not, DELETE it"
    )
    error: str | None = Field(description="why it is not published, or was not a moment ago")
    created_at: float = Field(description="Unix seconds")


class PublicationList(BaseModel):
    publications: list[PublicationObject]


class SessionMetrics(BaseModel):
    sessions: dict[str, dict[str, Any]]
    gpu: dict[str, float | None]


class HeadlessStatus(BaseModel):
    status: str = Field(examples=["started", "stopped"])


class HeadlessSession(HeadlessStatus):
    sessionId: str  # noqa: N815 - the wire's name


class SessionParameters(BaseModel):
    parameters: dict[str, Any]


class ParametersBody(_Body):
    """Parameters of a stream, as the data channel takes them: `prompts`, `noise_scale`, `paused`, ..."""


class ParametersApplied(BaseModel):
    status: Literal["ok"]
    applied_parameters: dict[str, Any]
    errors: list[dict[str, Any]]


class OscRefusal(BaseModel):
    time: float = Field(description="Unix seconds")
    address: str = Field(description="empty for what was not even OSC")
    reason: str = Field(description="parse, address, type, range, rate, denied, or refused by the stream")


class OscStatus(BaseModel):
    enabled: bool
    listening: bool
    host: str | None
    port: int | None
    log_all_messages: bool
    problem: str | None = Field(description="why it is enabled and does not listen")
    counts: dict[str, int] = Field(description="messages by result: applied, or why not")
    recent: list[OscRefusal] = Field(description="the last 50 that were refused")


class OscSettings(BaseModel):
    log_all_messages: bool


class OscPath(_Body):
    """One address; `min`, `max`, `enum`, `default` and `pipeline_id` where there are some."""

    key: str
    type: str
    description: str
    osc_address: str


class OscPaths(BaseModel):
    active: dict[str, list[OscPath]]
    available: dict[str, list[OscPath]]
    active_pipeline_ids: list[str]


class LocalSinkBody(BaseModel):
    enabled: bool
    name: str | None = Field(None, description="under which other programs find it; null: the usual one")


class LocalSinkState(_Body):
    """With `state`, `width`, `height`, `frames`, `dropped` and `since` while it is enabled."""

    enabled: bool
    kind: str
    name: str | None = None


class LocalSenders(BaseModel):
    senders: list[str]


class TempoStatus(BaseModel):
    enabled: bool
    source: str = Field(description="who set it: `manual` (REST), `tap` or `osc`")
    bpm: float
    beats_per_bar: int
    beat: int = Field(description="of the bar, from 1")
    bar_phase: float = Field(description="0 to 1")
    chunk_ms: float | None = Field(
        description="longest last chunk of a stream: changes are seen with the next one"
    )


class TempoSources(BaseModel):
    sources: list[str]
    quantize_modes: list[str]
