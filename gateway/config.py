"""All settings of the gateway, read once from the environment.

Nothing else reads `os.environ`, but what hands it on to child processes, and `proxies`.
"""

import ipaddress
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast, get_args

from gateway.publications.target import check_token, check_url
from streaming.engines.load_plan import TorchSettings, TorchSwitches
from streaming.engines.ort import ProviderChoice
from streaming.errors import WanstreamError

_TURN_CREDENTIALS_URL = "https://turn.fastrtc.org/credentials"
_HF_ENDPOINT = "https://huggingface.co"
_MODEL_OWNERS = ("upstream", "daydreamlive")  # whoever made a repository, then a mirror of them all
_LONGEST_PATH = 3584  # bytes; Linux takes 4095, and files below these directories have names, too
_OTHER_PLACE = (
    "Choose another place with WANSTREAM_HOME, WANSTREAM_ENGINES_DIR or the DAYDREAM_SCOPE_*_DIR variables."
)
_OSC_FORMS = "WANSTREAM_OSC must be off, PORT or HOST:PORT, for example 0.0.0.0:9000"
_PRIVATE = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    *("::1/128", "fc00::/7", "fe80::/10"),
)
PATH_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class Bitrate:
    """Range of the video encoders in bit/s; the floor is scaled down for pictures below 832x480."""

    minimum: int = 5_000_000
    default: int = 7_000_000
    maximum: int = 10_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How many there may be at once. streams: None: as many as the loaded pipeline has room for."""

    streams: int | None = None
    viewers: int = 32  # of one stream
    viewers_total: int = 64
    egress: int | None = None  # bit/s of all viewers' video together; None: no limit


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """How long and how large a take may become, and all takes together; None: the room on the disk."""

    max_s: float = 7200.0
    max_bytes: int = 20 << 30
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Directories:
    """Where files live; the same places as Scope's, so that an existing one is found (api.md 5.1)."""

    home: Path
    models: Path
    loras: Path
    assets: Path
    logs: Path
    engines: Path
    recordings: Path
    shared_loras: tuple[Path, ...] = ()  # read only

    @property
    def lora_directories(self) -> list[Path]:
        """Where LoRA files may be, the own directory first."""
        return [self.loras, *self.shared_loras]

    def with_loras(self, further: Iterable[Path]) -> "Directories":
        """The same with more places from which LoRA files are only read, after those that there are."""
        return replace(self, shared_loras=(*self.shared_loras, *further))

    def create(self) -> None:
        """Make those that are missing. Raises WanstreamError, also for names that some part cannot use."""
        for path in (self.home, self.models, self.loras, self.assets, self.logs, self.engines):
            _check_name(path)
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WanstreamError(
                    f"Cannot create the directory {shortened(path)} ({error.strerror}). {_OTHER_PLACE}"
                ) from error


@dataclass(frozen=True, slots=True)
class Secrets:
    """Tokens and keys; never logged, never part of a repr."""

    hf_token: str | None = field(default=None, repr=False)
    civitai_token: str | None = field(default=None, repr=False)
    cloudflare_key_id: str | None = field(default=None, repr=False)
    cloudflare_api_token: str | None = field(default=None, repr=False)
    twilio_account_sid: str | None = field(default=None, repr=False)
    twilio_auth_token: str | None = field(default=None, repr=False)
    view_token: str | None = field(default=None, repr=False)  # WANSTREAM_VIEW_TOKEN, to look and no more
    access_token: str | None = field(default=None, repr=False)  # WANSTREAM_TOKEN, asked of every client
    admin_token: str | None = field(default=None, repr=False)  # may change a locked server
    publish_token: str | None = field(default=None, repr=False)  # of the media server at `publish_url`
    turn_secret: str | None = field(default=None, repr=False)  # shared with the TURN servers of turn_urls


@dataclass(frozen=True, slots=True)
class Logging:
    """What is logged, and how its lines look."""

    level: str = "INFO"  # of the application; at DEBUG the contents of parameters are logged
    json_lines: bool = False  # one JSON object per line instead of text
    verbose: bool = False  # access, framework and WebRTC loggers at INFO too
    quiet: tuple[str, ...] = ()  # loggers of which only errors are kept


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Osc:
    """Control by OSC, which knows no token.

    enabled: None: unless a token is asked for. port: None: the same number as HTTP's. allow: who is heard.
    """

    enabled: bool | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    allow: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in _PRIVATE)


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one gateway process."""

    directories: Directories
    secrets: Secrets = Secrets()
    bitrate: Bitrate = Bitrate()
    shared_encoders: bool = True  # one for all viewers of a stream and codec; False: one for each viewer
    low_tier: bool = True  # whether viewers that are too slow for the others are sent smaller pictures
    logging: Logging = Logging()
    host: str = "0.0.0.0"
    port: int = 8000
    triton_url: str | None = None  # host:port of an external server's gRPC endpoint; None: embedded
    triton_shared_memory: bool = False  # it sees the same /dev/shm
    triton_metrics_url: str | None = None  # http://host:port/metrics of an external server
    memory_limit_mb: int | None = None  # of engines and sessions; None: what is free
    merged_sets: int = 4  # engine sets with LoRA files in their weights that are kept
    assets_quota_mb: int | None = None  # of all uploaded images and videos; None: the room on the disk
    limits: Limits = Limits()
    pipeline: str | None = None  # to load at the start and to keep loaded (PIPELINE)
    pipeline_params: Mapping[str, Any] | None = None  # load parameters of `pipeline`; None: its defaults
    publish_url: str | None = field(default=None, repr=False)  # where the stream `main` is sent to by WHIP
    locked: bool = False  # only who has the admin token loads pipelines and changes files
    opening: str | None = None  # to load once at the start
    pytorch: TorchSettings = field(default_factory=TorchSettings)  # how checkpoints run without engines
    onnxruntime_provider: ProviderChoice = "auto"  # what ONNX Runtime computes with, of what is installed
    demo: bool = True  # whether an embedded server without engines makes those of the demonstration
    cors_origins: tuple[str, ...] | None = None  # None: every origin; see gateway.access.origins
    node: str | None = None  # HOST:PORT of this gateway, as those of `peers` see it
    peers: tuple[str, ...] = ()  # HOST:PORT of all gateways of the fleet, or names that mean them
    base_path: str = ""  # below which the server stands behind a proxy; empty, or "/video"
    trusted_proxies: tuple[Network, ...] = ()
    media_ports: range | None = None  # UDP; None: what the operating system picks
    public_ips: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...] = ()  # a NAT's, which passes all on
    ice_servers: str | None = field(default=None, repr=False)  # WANSTREAM_ICE_SERVERS, a JSON list
    turn_urls: tuple[str, ...] = ()  # for viewers, with credentials made from the secret
    turn_ttl_s: float = 86400.0  # of these credentials
    relay_only: bool = False  # viewers are to use TURN servers and nothing else
    turn_credentials_url: str = _TURN_CREDENTIALS_URL  # opened with the Hugging Face token
    hf_endpoint: str = _HF_ENDPOINT  # the hub, or a mirror of it
    model_owners: tuple[str, ...] = _MODEL_OWNERS  # whose repositories are asked, in this order
    load_timeout_s: float = 900.0
    connect_timeout_s: float = 30.0  # a peer that is not connected by then is dropped
    recording: RecordingLimits = RecordingLimits()
    stream_linger_s: float = 30.0  # how long a stream waits for its WHIP publisher to come back
    drain_s: float = 0.0  # how long SIGTERM waits for open sessions
    git_commit: str = "unknown"
    osc: Osc = Osc()
    ndi: bool | None = None  # None: unless a token is asked for, or viewers are strangers: NDI knows nobody

    @property
    def ndi_allowed(self) -> bool:
        open_to_all = self.secrets.access_token is None and not self.locked
        return open_to_all if self.ndi is None else self.ndi

    @property
    def osc_address(self) -> tuple[str, int] | None:
        """Host and UDP port at which OSC is heard; None: it is not."""
        enabled = self.secrets.access_token is None if self.osc.enabled is None else self.osc.enabled
        return (self.osc.host, self.osc.port or self.port) if enabled else None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Config":
        """Read the environment (api.md 12.2); an empty variable counts as unset.

        Raises WanstreamError when a variable has a value that cannot be used.
        """
        values = {k: v for k, v in (os.environ if env is None else env).items() if v != ""}
        origins = values.get("WANSTREAM_CORS_ORIGINS")
        if "WANSTREAM_VIEW_TOKEN" in values and "WANSTREAM_TOKEN" not in values:
            raise WanstreamError(
                "WANSTREAM_VIEW_TOKEN is for a server that asks for a token: set WANSTREAM_TOKEN, too."
            )
        _check_lock(values)
        return cls(
            directories=_directories(values),
            secrets=Secrets(
                hf_token=values.get("HF_TOKEN"),
                civitai_token=values.get("CIVITAI_API_TOKEN"),
                cloudflare_key_id=values.get("CLOUDFLARE_TURN_KEY_ID"),
                cloudflare_api_token=values.get("CLOUDFLARE_TURN_KEY_API_TOKEN"),
                twilio_account_sid=values.get("TWILIO_ACCOUNT_SID"),
                twilio_auth_token=values.get("TWILIO_AUTH_TOKEN"),
                access_token=values.get("WANSTREAM_TOKEN"),
                view_token=values.get("WANSTREAM_VIEW_TOKEN"),
                admin_token=values.get("WANSTREAM_ADMIN_TOKEN"),
                publish_token=values.get("WANSTREAM_PUBLISH_TOKEN"),
                turn_secret=values.get("WANSTREAM_TURN_SECRET"),
            ),
            bitrate=_bitrate(values),
            shared_encoders=_choice(values, "WANSTREAM_SHARED_ENCODERS", ("on", "off"), "on") == "on",
            low_tier=_choice(values, "WANSTREAM_LOW_TIER", ("on", "off"), "on") == "on",
            logging=Logging(
                level=_choice(values, "WANSTREAM_LOG_LEVEL", _LOG_LEVELS, "INFO"),
                json_lines=_choice(values, "WANSTREAM_LOG_FORMAT", _LOG_FORMATS, "text") == "json",
                verbose="VERBOSE_LOGGING" in values,
                quiet=_names(values.get("SCOPE_LOG_QUIET_LOGGERS", "")),
            ),
            triton_url=values.get("WANSTREAM_TRITON_URL"),
            triton_shared_memory=_choice(values, "WANSTREAM_TRITON_SHARED_MEMORY", ("on", "off"), "off")
            == "on",
            triton_metrics_url=values.get("WANSTREAM_TRITON_METRICS_URL"),
            memory_limit_mb=_integer(values, "WANSTREAM_MEMORY_LIMIT_MB", minimum=1),
            merged_sets=_integer(values, "WANSTREAM_MERGED_SETS", minimum=1) or 4,
            assets_quota_mb=_integer(values, "WANSTREAM_ASSETS_QUOTA_MB", minimum=1),
            limits=_limits(values),
            pipeline=values.get("PIPELINE"),
            pipeline_params=_pipeline_params(values),
            publish_url=_publish_url(values),
            locked=_switch(values, "WANSTREAM_LOCKED", "off"),
            pytorch=_pytorch(values),
            onnxruntime_provider=cast(
                "ProviderChoice",
                _choice(values, "WANSTREAM_ONNXRUNTIME_PROVIDER", get_args(ProviderChoice), "auto"),
            ),
            demo=_switch(values, "WANSTREAM_DEMO", "on"),
            cors_origins=_names(origins) if origins else None,
            node=_node(values),
            peers=_names(values.get("WANSTREAM_PEERS", "")),
            base_path=_base_path(values),
            trusted_proxies=_networks(values, "WANSTREAM_TRUSTED_PROXIES"),
            media_ports=_ports(values, "WANSTREAM_MEDIA_PORTS"),
            public_ips=_addresses(values, "WANSTREAM_PUBLIC_IP"),
            ice_servers=values.get("WANSTREAM_ICE_SERVERS"),
            turn_urls=_names(values.get("WANSTREAM_TURN_URLS", "")),
            turn_ttl_s=float(_integer(values, "WANSTREAM_TURN_TTL_S", minimum=60) or 86400),
            relay_only=_choice(values, "WANSTREAM_ICE_TRANSPORT_POLICY", ("all", "relay"), "all") == "relay",
            turn_credentials_url=values.get("WANSTREAM_TURN_CREDENTIALS_URL", _TURN_CREDENTIALS_URL),
            hf_endpoint=values.get("HF_ENDPOINT", _HF_ENDPOINT).rstrip("/"),
            model_owners=_names(values.get("WANSTREAM_MODEL_OWNERS", "")) or _MODEL_OWNERS,
            load_timeout_s=float(_integer(values, "WANSTREAM_LOAD_TIMEOUT_S", minimum=1) or 900),
            recording=_recording(values),
            stream_linger_s=float(_integer(values, "WANSTREAM_STREAM_LINGER_S", minimum=1) or 30),
            connect_timeout_s=float(_integer(values, "WANSTREAM_CONNECT_TIMEOUT_S", minimum=1) or 30),
            drain_s=float(_integer(values, "WANSTREAM_DRAIN_S", minimum=0) or 0),
            git_commit=values.get("WANSTREAM_REVISION", "unknown"),
            osc=_osc(values),
            ndi=_switch(values, "WANSTREAM_NDI", "off") if "WANSTREAM_NDI" in values else None,
        )


def shortened(path: Path) -> str:
    """A path for a sentence; what cannot be printed is escaped, and the middle of a long one left out."""
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def _check_name(directory: Path) -> None:
    """Raises WanstreamError for a name that cannot stand in a line of a log, in JSON or before more names."""
    text, problem = str(directory), ""
    if any(unicodedata.category(letter) == "Cs" for letter in text):
        problem = "is not valid UTF-8"
    elif any(unicodedata.category(letter) == "Cc" for letter in text):
        problem = "contains a control character, such as the end of a line"
    elif len(os.fsencode(directory)) > _LONGEST_PATH:
        problem = f"is longer than {_LONGEST_PATH} bytes"
    if problem:
        raise WanstreamError(f"The name of the directory {shortened(directory)} {problem}. {_OTHER_PLACE}")


def _names(text: str) -> tuple[str, ...]:
    """The names in a comma list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _networks(values: Mapping[str, str], name: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(n, strict=False) for n in _names(values.get(name, "")))
    except ValueError as error:
        raise WanstreamError(
            f"{name} must be a comma list of addresses or networks such as 127.0.0.1 or 10.0.0.0/8: {error}."
        ) from error


def _osc(values: Mapping[str, str]) -> Osc:
    allow = _networks(values, "WANSTREAM_OSC_ALLOW") or Osc().allow
    text = values.get("WANSTREAM_OSC")
    if text is None:
        return Osc(allow=allow)
    if text.strip().lower() == "off":
        return Osc(enabled=False, allow=allow)
    host, _, port = text.strip().rpartition(":")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise WanstreamError(f"{_OSC_FORMS}; not {text!r}.")
    return Osc(True, host.strip("[]") or Osc().host, int(port), allow)


def _choice(values: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    """The value in the spelling of `allowed`, whatever its case."""
    given = values.get(name, default)
    for value in allowed:
        if value.lower() == given.strip().lower():
            return value
    raise WanstreamError(f"{name} must be one of {', '.join(allowed)}, not {given!r}.")


def _addresses(
    values: Mapping[str, str], name: str
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    try:
        return tuple(ipaddress.ip_address(n) for n in _names(values.get(name, "")))
    except ValueError as error:
        raise WanstreamError(
            f"{name} must be an address such as 203.0.113.7, or a comma list: {error}."
        ) from error


def _base_path(values: Mapping[str, str]) -> str:
    name = "WANSTREAM_BASE_PATH"
    path = values.get(name, "").rstrip("/")
    if not PATH_PREFIX.fullmatch(path) or set(path.split("/")) & {".", ".."}:
        raise WanstreamError(f"{name} must be a path such as /video, not {values[name]!r}.")
    return path


def _node(values: Mapping[str, str]) -> str | None:
    """Raises WanstreamError unless this gateway and its peers are named, both or neither."""
    node, peers = values.get("WANSTREAM_NODE"), _names(values.get("WANSTREAM_PEERS", ""))
    if node is None and not peers:
        return None
    for name in (node or "", *peers):
        host, _, port = name.rpartition(":")
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host) or not port.isdecimal():
            raise WanstreamError(
                "WANSTREAM_NODE must be HOST:PORT of this gateway, and WANSTREAM_PEERS a comma list of those "
                f"of all gateways of the fleet; {name!r} is not HOST:PORT."
            )
    return node


def _ports(values: Mapping[str, str], name: str) -> range | None:
    if name not in values:
        return None
    first, dash, last = values[name].partition("-")
    try:
        ports = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        ports = range(0)
    if not ports or not 1024 <= ports[0] <= ports[-1] <= 65535:
        raise WanstreamError(
            f"{name} must be a range of ports from 1024 to 65535, such as 50000-50199, not {values[name]!r}."
        )
    return ports


def _switch(values: Mapping[str, str], name: str, default: str) -> bool:
    return _choice(values, name, ("on", "off"), default) == "on"


def _pipeline_params(values: Mapping[str, str]) -> Mapping[str, Any] | None:
    name = "WANSTREAM_PIPELINE_PARAMS"
    if name not in values:
        return None
    advice = f'{name} must be a JSON object such as {{"height": 320, "width": 576}}'
    try:
        params = json.loads(values[name])
    except ValueError as error:
        raise WanstreamError(f"{advice}; it is not JSON: {error}.") from error
    if not isinstance(params, dict):
        raise WanstreamError(f"{advice}.")
    if "PIPELINE" not in values:
        raise WanstreamError(f"{name} needs PIPELINE, the pipeline that is loaded with these parameters.")
    return params


def _publish_url(values: Mapping[str, str]) -> str | None:
    """Raises WanstreamError for an address or a token that cannot be used, or is there without the other."""
    url, token = values.get("WANSTREAM_PUBLISH"), values.get("WANSTREAM_PUBLISH_TOKEN")
    if url is None and token is not None:
        raise WanstreamError(
            "WANSTREAM_PUBLISH_TOKEN is for the media server of WANSTREAM_PUBLISH: set both."
        )
    for name, check in (("WANSTREAM_PUBLISH", check_url), ("WANSTREAM_PUBLISH_TOKEN", check_token)):
        try:
            if name in values:
                check(values[name])
        except ValueError as error:
            raise WanstreamError(f"{name} {error}.") from error
    if url is not None and "PIPELINE" not in values:
        raise WanstreamError("WANSTREAM_PUBLISH needs PIPELINE, the pipeline whose pictures are published.")
    return url


def _check_lock(values: Mapping[str, str]) -> None:
    """Raises WanstreamError for a lock without a key to a server on which nothing would ever be loaded."""
    if _switch(values, "WANSTREAM_LOCKED", "off") and not values.keys() & {
        "PIPELINE",
        "WANSTREAM_ADMIN_TOKEN",
    }:
        raise WanstreamError(
            "WANSTREAM_LOCKED needs PIPELINE, which is loaded at the start, or WANSTREAM_ADMIN_TOKEN, with "
            "which one can be loaded."
        )


def _pytorch(values: Mapping[str, str]) -> TorchSettings:
    def choice(name: str, allowed: tuple[str, ...], default: str) -> str:
        return _choice(values, f"WANSTREAM_PYTORCH_{name.upper()}", allowed, default)

    switches = {
        name: choice(name, ("on", "off"), "on" if field.default else "off") == "on"
        for name, field in TorchSwitches.model_fields.items()
    }
    return TorchSettings.model_validate(
        {
            "device": choice("device", ("auto", "cpu", "cuda"), "auto"),
            "precision": choice("precision", ("auto", "fp32", "bf16"), "auto"),
            "switches": switches,
        }
    )


def _directories(values: Mapping[str, str]) -> Directories:
    def path(name: str, default: Path) -> Path:
        return Path(values[name]).expanduser().absolute() if name in values else default

    home = path("WANSTREAM_HOME", Path.home() / ".daydream-scope")
    models = path("DAYDREAM_SCOPE_MODELS_DIR", home / "models")
    shared = "DAYDREAM_SCOPE_LORA_SHARED_DIR"
    return Directories(
        home=home,
        models=models,
        loras=path("DAYDREAM_SCOPE_LORA_DIR", models / "lora"),
        assets=path("DAYDREAM_SCOPE_ASSETS_DIR", models.parent / "assets"),
        logs=path("DAYDREAM_SCOPE_LOGS_DIR", home / "logs"),
        engines=path("WANSTREAM_ENGINES_DIR", home / "engines"),
        recordings=path("WANSTREAM_RECORDINGS_DIR", home / "recordings"),
        shared_loras=(path(shared, home),) if shared in values else (),
    )


def _limits(values: Mapping[str, str]) -> Limits:
    standard = Limits()
    return Limits(
        streams=_integer(values, "WANSTREAM_MAX_SESSIONS", minimum=1),
        viewers=_integer(values, "WANSTREAM_MAX_VIEWERS", minimum=1) or standard.viewers,
        viewers_total=_integer(values, "WANSTREAM_MAX_VIEWERS_TOTAL", minimum=1) or standard.viewers_total,
        egress=_integer(values, "WANSTREAM_MAX_EGRESS", minimum=1),
    )


def _recording(values: Mapping[str, str]) -> RecordingLimits:
    standard = RecordingLimits()
    return RecordingLimits(
        max_s=_integer(values, "WANSTREAM_RECORDING_MAX_S", minimum=1) or standard.max_s,
        max_bytes=_integer(values, "WANSTREAM_RECORDING_MAX_BYTES", minimum=1_000_000) or standard.max_bytes,
        total_bytes=_integer(values, "WANSTREAM_RECORDING_TOTAL_BYTES", minimum=1_000_000),
    )


def _bitrate(values: Mapping[str, str]) -> Bitrate:
    standard = Bitrate()
    minimum = _integer(values, "WANSTREAM_VIDEO_BITRATE_MIN", minimum=50_000) or standard.minimum
    default = _integer(values, "WANSTREAM_VIDEO_BITRATE_DEFAULT", minimum=50_000) or standard.default
    maximum = _integer(values, "WANSTREAM_VIDEO_BITRATE_MAX", minimum=50_000) or standard.maximum
    if not minimum <= default <= maximum:
        raise WanstreamError(
            "The video bitrates must satisfy WANSTREAM_VIDEO_BITRATE_MIN <= _DEFAULT <= _MAX; "
            f"got {minimum}, {default}, {maximum}."
        )
    return Bitrate(minimum, default, maximum)


def _integer(values: Mapping[str, str], name: str, minimum: int) -> int | None:
    if name not in values:
        return None
    try:
        number = int(values[name])
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise WanstreamError(f"{name} must be a whole number of at least {minimum}, not {values[name]!r}.")
    return number
