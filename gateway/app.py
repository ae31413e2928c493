"""The gateway as a Quart app: services are made here and handed to the blueprints."""

import importlib.metadata
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quart import Quart, Response, jsonify, request
from quart_cors import cors
from quart_schema import HttpSecurityScheme, Info, QuartSchema
from werkzeug.exceptions import HTTPException

from gateway.access.auth import Access, guard_access
from gateway.access.base_path import serve_below_path
from gateway.access.origins import OriginPolicy, guard_origins
from gateway.access.page_policy import protect_pages
from gateway.access.post_rate import limit_posts
from gateway.access.trailing_slash import without_slash
from gateway.config import Config
from gateway.errors import ApiError, ValidationFailed
from gateway.files.assets import Assets
from gateway.files.loras.loras import Loras
from gateway.files.models.models import Models
from gateway.fleet.forwarding import Forwarding, pass_on_to_owners
from gateway.fleet.owners import Owners
from gateway.http.openapi import ApiDocument
from gateway.http.uploads import take_bodies_in_pieces
from gateway.local_video.service import LIBRARIES, LocalVideo
from gateway.logs import Logs
from gateway.metrics import Metrics
from gateway.osc.paths import SCRIPT, STYLE
from gateway.osc.server import OscServer, Show
from gateway.pipelines.autoload import Autoload
from gateway.pipelines.load_service import LoadService
from gateway.pipelines.preparation import Preparations, Tools
from gateway.pipelines.state import Pipelines
from gateway.publications.metrics import PublicationCollector
from gateway.publications.publications import Autopublish, Publications
from gateway.publications.target import Target
from gateway.recording.collector import RecordingCollector
from gateway.recording.recordings import Recordings
from gateway.recording.replay import Replays
from gateway.recording.take_writer import Limits
from gateway.recording.takes import Takes
from gateway.routes.assets import assets_blueprint
from gateway.routes.cues import cues_blueprint
from gateway.routes.docs import docs_blueprint
from gateway.routes.general import general_blueprint
from gateway.routes.ice import ice_blueprint
from gateway.routes.local_video import local_video_blueprint
from gateway.routes.logs import logs_blueprint
from gateway.routes.looks import looks_blueprint
from gateway.routes.loras import loras_blueprint
from gateway.routes.merged_sets import merged_sets_blueprint
from gateway.routes.models import models_blueprint
from gateway.routes.operations import operations_blueprint
from gateway.routes.osc import osc_blueprint
from gateway.routes.pipelines import pipelines_blueprint
from gateway.routes.preparation import preparation_blueprint
from gateway.routes.publications import publications_blueprint
from gateway.routes.recordings import (
    recordings_blueprint,
    replays_blueprint,
    scope_recordings_blueprint,
)
from gateway.routes.sessions import sessions_blueprint
from gateway.routes.streams import streams_blueprint
from gateway.routes.tempo import tempo_blueprint
from gateway.routes.webrtc import webrtc_blueprint
from gateway.serving.commands import has_tensorrt
from gateway.serving.engine_sets import EngineSets
from gateway.serving.interface import Serving
from gateway.serving.merged_sets import MergedSets
from gateway.show.cues import Cues
from gateway.show.looks import Looks
from gateway.stream.encoding.encoders import Encoding
from gateway.stream.metrics import StreamsCollector
from gateway.stream.openers import Openers
from gateway.stream.pictures.file_source import file_attacher
from gateway.stream.streams import Streams
from gateway.threads import separate_threads
from gateway.webrtc.aiortc_patches.consent import install_patient_consent
from gateway.webrtc.aiortc_patches.decoding import install_decoder
from gateway.webrtc.aiortc_patches.guards import install_guards
from gateway.webrtc.aiortc_patches.jitter_buffer import install_jitter_buffer
from gateway.webrtc.aiortc_patches.media_ports import install_media_ports
from gateway.webrtc.aiortc_patches.sender import install_sender
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.sessions import Sessions
from gateway.whip.metrics import PublisherCollector
from gateway.whip.playing import Players
from gateway.whip.publishing import Publishers
from gateway.whip.routes import whep_blueprint, whip_blueprint

logger = logging.getLogger(__name__)

VERSION = importlib.metadata.version("wanstream")


@dataclass(frozen=True, slots=True)
class Services:
    """What the blueprints work with; kept in `app.extensions["wanstream"]`."""

    config: Config
    pipelines: Pipelines
    loader: LoadService
    streams: Streams
    openers: Openers
    sessions: Sessions
    owners: Owners
    publishers: Publishers
    players: Players
    publications: Publications
    metrics: Metrics
    assets: Assets
    loras: Loras
    merged_sets: MergedSets
    models: Models
    preparations: Preparations
    ice: IceServers
    logs: Logs
    osc: OscServer
    local_video: LocalVideo
    recordings: Recordings
    replays: Replays
    looks: Looks
    cues: Cues


def create_app(config: Config, serving: Serving) -> Quart:
    """The gateway in front of `serving`. Starts to connect to it when the app starts to serve."""
    install_jitter_buffer()
    install_decoder()
    install_sender()
    install_patient_consent()
    install_guards()
    install_media_ports(config.media_ports, config.public_ips)
    app = Quart(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # `//` is part of an asset's absolute path
    take_bodies_in_pieces(app)
    app.config["RESPONSE_TIMEOUT"] = None  # downloads take as long as they take
    app.config["QUART_CORS_SEND_ORIGIN_WILDCARD"] = False
    QuartSchema(
        app,
        info=Info(title="Scope", version=VERSION),
        openapi_provider_class=ApiDocument,
        **_documented_access(config),
        swagger_ui_path=None,
        redoc_ui_path=None,
        scalar_ui_path=None,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]  # clients show pipelines in the order of the answer
    services = _services(config, serving)
    access = Access(config, services.streams)
    policy = OriginPolicy(config)
    forwarding = Forwarding(services.owners, policy)
    app.extensions["wanstream"] = services
    for blueprint in (
        general_blueprint(serving, services.local_video, VERSION, config.git_commit),
        docs_blueprint(),
        logs_blueprint(services.logs),
        pipelines_blueprint(services.pipelines, services.loader, access),
        assets_blueprint(services.assets),
        loras_blueprint(services.loras),
        merged_sets_blueprint(services.merged_sets, serving),
        models_blueprint(services.models, serving),
        preparation_blueprint(services.preparations, services.models, services.pipelines),
        ice_blueprint(services.ice),
        webrtc_blueprint(services.streams, services.sessions, access, forwarding),
        local_video_blueprint(services.local_video, services.streams),
        streams_blueprint(services.streams, services.openers, access, policy),
        publications_blueprint(services.publications, services.streams),
        tempo_blueprint(services.streams),
        recordings_blueprint(services.recordings, services.streams),
        replays_blueprint(services.replays, services.recordings, services.streams),
        looks_blueprint(services.looks, services.streams),
        cues_blueprint(services.cues, services.streams),
        scope_recordings_blueprint(services.recordings, services.streams),
        osc_blueprint(services.osc, services.pipelines, services.streams),
        whip_blueprint(services.publishers, services.ice, access, policy),
        whep_blueprint(services.players, services.ice, access),
        sessions_blueprint(services.streams, services.sessions, serving),
        operations_blueprint(services.pipelines, services.streams, services.metrics, config.pipeline),
    ):
        app.register_blueprint(blueprint)
    _answer_errors_as_json(app)
    guard_origins(app, policy)
    limit_posts(app, policy)
    serve_below_path(app, config)
    protect_pages(app, policy, [SCRIPT], [STYLE])
    pass_on_to_owners(app, forwarding)
    guard_access(app, access, policy, services.pipelines.held_id)
    app = cors(
        app,
        allow_origin=policy.listed if policy.listed and not policy.allows_all else re.compile(""),
        allow_credentials=True,
        expose_headers=["Content-Disposition", "Location", "Link", "ETag", "Accept-Patch"],
        max_age=600,
    )
    _run_with_app(app, services, forwarding)
    return app


def _documented_access(config: Config) -> dict[str, Any]:
    if config.secrets.access_token is None:
        return {}
    return {"security_schemes": {"token": HttpSecurityScheme("bearer")}, "security": [{"token": []}]}


def _services(config: Config, serving: Serving) -> Services:
    pipelines = Pipelines(serving, config.load_timeout_s)
    loader = LoadService(pipelines, config.directories.lora_directories)
    ice = IceServers.from_config(config)
    metrics = Metrics(VERSION, config.git_commit)
    encoding = Encoding(config.bitrate, config.shared_encoders, config.low_tier, metrics.encoding)
    streams = Streams(pipelines, metrics, config.directories.assets, config.limits, encoding)
    owners = Owners(config.node, config.peers)
    streams.new_id = owners.new_id
    streams.has_aliases = not config.locked  # viewers are strangers there
    sessions = Sessions(streams, ice, config.connect_timeout_s)
    streams.tempo.on_changed(lambda: _tell_tempo(streams))
    local_video = LocalVideo(streams, ndi_allowed=config.ndi_allowed)
    streams.on_wish = local_video.wish
    recordings = Recordings(
        Takes(config.directories.recordings, config.recording.total_bytes),
        Limits(max_s=config.recording.max_s, max_bytes=config.recording.max_bytes),
        VERSION,
    )
    recordings.serve(streams)
    metrics.add(RecordingCollector(recordings))
    replays = Replays()
    looks = Looks(config.directories.home / "looks.json", replays)
    cues = Cues(config.directories.home / "cues", replays, looks, streams.tempo)
    osc = OscServer(config.osc, config.osc_address, streams, pipelines, Show(cues.play, looks.recall))
    metrics.watch(pipelines, streams, sessions)
    metrics.add(StreamsCollector(streams))
    metrics.show_counts("wanstream_osc_messages", "OSC messages by what became of them", "result", osc.counts)
    publishers = Publishers(streams, pipelines, ice, config.connect_timeout_s, config.stream_linger_s)
    players = Players(streams, pipelines, ice, config.connect_timeout_s)
    metrics.add(PublisherCollector(publishers))
    publications = Publications(streams, ice, config.connect_timeout_s)
    metrics.add(PublicationCollector(publications))
    engine_sets = EngineSets(config.directories.engines, on_cpu=config.triton_url is None)
    models = Models.from_config(config, lambda spec: serving.availability(spec).available)
    quota_bytes = None if config.assets_quota_mb is None else config.assets_quota_mb * 1_000_000
    return Services(
        config=config,
        pipelines=pipelines,
        loader=loader,
        streams=streams,
        openers=_openers(config, local_video),
        sessions=sessions,
        owners=owners,
        publishers=publishers,
        players=players,
        publications=publications,
        metrics=metrics,
        assets=Assets(config.directories.assets, quota_bytes),
        loras=Loras.from_config(config, loader.loras_in_use),
        merged_sets=MergedSets(engine_sets, config.merged_sets),
        models=models,
        preparations=Preparations(models, tools_of(config, on_gpu=serving.on_gpu)),
        ice=ice,
        logs=Logs(config.directories.logs),
        osc=osc,
        local_video=local_video,
        recordings=recordings,
        replays=replays,
        looks=looks,
        cues=cues,
    )


def tools_of(config: Config, *, on_gpu: bool) -> Tools:
    """What prepares pipelines for this server."""
    return Tools(
        models=config.directories.models,
        engines=config.directories.engines,
        on_gpu=on_gpu,
        embedded=config.triton_url is None,
        has_tensorrt=has_tensorrt(),
    )


def _openers(config: Config, local_video: LocalVideo) -> Openers:
    openers = Openers()
    openers.add("file", file_attacher(config.directories.assets))
    for kind in LIBRARIES:
        openers.add(kind, local_video.attach)
    return openers


def _tell_tempo(streams: Streams) -> None:
    message = {"type": "tempo_update", **streams.tempo.status()}
    for stream in streams:
        stream.notify(message)


def _answer_errors_as_json(app: Quart) -> None:
    @app.errorhandler(ApiError)
    async def refused(error: ApiError) -> tuple[Response, int, dict[str, str]]:
        return jsonify({"detail": error.detail}), error.status, error.headers

    @app.errorhandler(ValidationFailed)
    async def malformed(error: ValidationFailed) -> tuple[Response, int]:
        return jsonify({"detail": error.problems}), 422

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> tuple[Response, int, dict[str, str]]:
        headers = {}
        address = without_slash(request) if error.code == 404 else None
        if address is not None:
            location = request.root_path + address
            return jsonify({"detail": f"The address is {location}"}), 307, {"Location": location}
        if error.code == 405 and getattr(error, "valid_methods", None):
            headers["Allow"] = ", ".join(sorted(error.valid_methods))  # type: ignore[attr-defined]
        detail = "Request body too large" if error.code == 413 else (error.name or "Error")
        return jsonify({"detail": detail}), error.code or 500, headers

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> tuple[Response, int]:
        logger.error("Unhandled error in a request", exc_info=error)
        return jsonify({"detail": "Internal server error, see the server's log"}), 500


def _run_with_app(app: Quart, services: Services, forwarding: Forwarding) -> None:
    config = services.config
    begin_with = config.pipeline or config.opening
    autoload = begin_with and Autoload(
        services.pipelines,
        services.loader,
        begin_with,
        config.pipeline_params,
        keep=config.pipeline is not None,
    )
    autopublish = config.publish_url and Autopublish(
        services.pipelines,
        services.streams,
        services.publications,
        Target(config.publish_url, config.secrets.publish_token),
    )

    @app.before_serving
    async def start() -> None:
        separate_threads()
        await services.pipelines.serving.start(services.pipelines.lost)
        services.ice.start()
        services.assets.remove_stale()
        services.recordings.begin()
        await services.osc.start()
        if autoload:
            await autoload.start()
        if autopublish:
            autopublish.start()

    @app.after_serving
    async def stop() -> None:
        steps: list[Callable[[], Any]] = [
            *([autoload.close] if autoload else []),
            *([autopublish.close] if autopublish else []),
            services.osc.close,
            services.local_video.close,
            services.recordings.close,
            services.streams.close,
            services.publications.close,
            services.sessions.close,
            services.publishers.close,
            services.players.close,
            services.pipelines.close,
            services.preparations.close,
            services.models.close,
            services.ice.close,
            services.pipelines.serving.close,
            forwarding.close,
        ]
        for step in steps:
            try:
                await step()
            except Exception:  # the other steps must run all the same
                logger.exception("A step of the shutdown failed")
