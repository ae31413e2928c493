"""Malformed HTTP requests, each with the status codes that are right for it."""

import json
from dataclasses import dataclass, field
from typing import Any

LOAD = "/api/v1/pipeline/load"
OFFER = "/api/v1/webrtc/offer"
OWN_SESSION = f"{OFFER}/{{session}}"  # {session} is replaced by the id of the healthy session
JSON = {"Content-Type": "application/json"}
HOST_CANDIDATE = "candidate:1 1 UDP 2122252543 192.0.2.1 54321 typ host"


@dataclass(frozen=True)
class Request:
    """`statuses`: what the server may answer."""

    name: str
    method: str
    path: str
    statuses: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def _post(name: str, path: str, statuses: tuple[int, ...], body: Any, method: str = "POST") -> Request:
    """Bytes go out as they are, anything else as JSON."""
    options = {"body": body, "headers": JSON} if isinstance(body, bytes) else {"json_body": body}
    return Request(name, method, path, statuses, options)


_DEEP = 3000

BODIES = [
    _post(f"body {name}", LOAD, statuses, body)
    for name, body, statuses in [
        ("absent", b"", (422,)),
        ("is null", b"null", (422,)),
        ("is a list", b"[]", (422,)),
        ("is a string", b'"longlive"', (422,)),
        ("is a number", b"5", (422,)),
        ("is cut off", b'{"pipeline_id": "passth', (422,)),
        ("has two documents", b'{"pipeline_id": "passthrough"}{}', (422,)),
        ("has single quotes", b"{'pipeline_id': 'passthrough'}", (422,)),
        ("nests 3000 lists", b'{"x": ' + b"[" * _DEEP + b"]" * _DEEP + b"}", (422,)),
        ("nests 3000 objects", b'{"x": ' * _DEEP + b"1" + b"}" * _DEEP, (422,)),
        ("nests 3000 lists that never close", b"[" * _DEEP, (422,)),
        ("is not UTF-8", b'{"pipeline_id": "\xff\xfe"}', (422,)),
        ("is UTF-16", json.dumps({"pipeline_id": "passthrough"}).encode("utf-16"), (422,)),
        ("has a NUL byte", b'{"pipeline_id": "a\x00b"}', (422,)),
        ("has a lone surrogate", rb'{"pipeline_id": "\ud800"}', (404, 422)),
        ("has NaN", b'{"pipeline_id": "longlive", "load_params": {"height": NaN}}', (422,)),
        ("has Infinity", b'{"pipeline_id": "longlive", "load_params": {"height": -Infinity}}', (422,)),
        ("has an integer of 5000 digits", b'{"pipeline_id": ' + b"9" * 5000 + b"}", (422,)),
        ("is larger than 1 MiB", b'{"pipeline_id": "' + b"a" * (1 << 20) + b'"}', (413,)),
        ("is 20 MiB of zeros", bytes(20 << 20), (413,)),
    ]
]

CONTENT_TYPES = [
    Request(
        f"content type {kind}", "POST", LOAD, (415, 422), {"body": b"{}", "headers": {"Content-Type": kind}}
    )
    for kind in ("text/html", "application/x-www-form-urlencoded", "application/octet-stream", "image/png")
]

LOADS = [
    _post(f"load of {json.dumps(body)[:60]}", LOAD, statuses, body)
    for body, statuses in [
        ({}, (400,)),
        ({"pipeline_id": None}, (400, 422)),
        ({"pipeline_id": 5}, (422,)),
        ({"pipeline_id": True}, (422,)),
        ({"pipeline_id": ["passthrough"]}, (422,)),
        ({"pipeline_id": ""}, (400, 404)),
        ({"pipeline_id": "../passthrough"}, (404,)),
        ({"pipeline_id": "Passthrough "}, (404,)),
        ({"pipeline_id": "x" * 10_000}, (404,)),
        ({"pipeline_ids": "passthrough"}, (422,)),
        ({"pipeline_ids": [1]}, (422,)),
        ({"pipeline_ids": [None]}, (422,)),
        ({"pipeline_ids": []}, (400,)),
        ({"pipeline_ids": ["passthrough", "longlive"]}, (400,)),
        ({"pipelines": {}}, (422,)),
        ({"pipelines": [1]}, (422,)),
        ({"pipelines": [{}]}, (422,)),
        ({"pipelines": [{"pipeline_id": "passthrough"}]}, (422,)),
        ({"pipeline_id": "longlive", "pipeline_ids": ["memflow"]}, (400,)),
        ({"pipeline_id": "passthrough", "load_params": "x"}, (422,)),
        ({"pipeline_id": "passthrough", "load_params": [1]}, (422,)),
        ({"pipeline_id": "passthrough", "load_params": {"height": "tall"}}, (422,)),
        ({"pipeline_id": "passthrough", "load_params": {"height": -1}}, (422,)),
        ({"pipeline_id": "passthrough", "load_params": {"height": 10**400}}, (422,)),
        ({"pipeline_id": "passthrough", "load_params": {"width": 512.5}}, (422,)),
        ({"pipeline_id": "passthrough", "load_params": {"width": {}}}, (422,)),
        ({"pipeline_id": "passthrough", "load_params": {"width": 4097}}, (422,)),
    ]
]

_VIDEO = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\n"
_HEAD = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
_CODEC = "a=rtpmap:96 VP8/90000\r\n"
_DTLS = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\na=setup:actpass\r\n"
_ICE = "a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n"
_MANY_CANDIDATES = "".join(f"a=candidate:1 1 udp 1 192.0.2.1 {p} typ host\r\n" for p in range(2000, 2100))

_SDPS: dict[str, Any] = {
    "is a number": 5,
    "is null": None,
    "is an object": {},
    "is empty": "",
    "is one letter": "v",
    "is HTML": "<html></html>",
    "is a version only": "v=0",
    "has no media": _HEAD,
    "has NUL bytes": "\x00" * 100,
    "has a lone surrogate": _HEAD + "\ud800",
    "has a bad port": _HEAD + "m=video x UDP/TLS/RTP/SAVPF 96\r\n",
    "has a media line without anything": _HEAD + "m=video\r\n",
    "has an unknown media kind": _HEAD + "m=hologram 9 UDP/TLS/RTP/SAVPF 96\r\n",
    "has audio only": _HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\n",
    "has no codec": _HEAD + _VIDEO,
    "has VP9 only": _HEAD + _VIDEO + "a=rtpmap:96 VP9/90000\r\n" + _ICE,
    "has no ICE password": _HEAD + _VIDEO + _CODEC,
    "has no fingerprint": _HEAD + _VIDEO + _CODEC + _ICE,
    "has a bad fingerprint": _HEAD + _VIDEO + _CODEC + _ICE + "a=fingerprint:sha-256 nonsense\r\n",
    "has a bad rtpmap": _HEAD + _VIDEO + "a=rtpmap:96\r\n" + _ICE,
    "has a bad candidate": _HEAD + _VIDEO + _CODEC + _ICE + "a=candidate:1 2 3\r\n",
    "is inactive": _HEAD + _VIDEO + _CODEC + _ICE + "a=inactive\r\n",
    "has 500 video sections": _HEAD + (_VIDEO + _CODEC + _ICE) * 500,
    "has 60 sections without a bundle": _HEAD + (_VIDEO + _CODEC + _ICE + _DTLS) * 60,
    "has one mid twice": _HEAD + (_VIDEO + _CODEC + _ICE + _DTLS) * 2,
    "has 100 candidates": _HEAD + _VIDEO + _CODEC + _ICE + _DTLS + _MANY_CANDIDATES,
    "has 20000 unknown lines": _HEAD + "a=x:y\r\n" * 20_000,
}

SDPS = [_post(f"SDP {name}", OFFER, (400, 422), {"sdp": sdp, "type": "offer"}) for name, sdp in _SDPS.items()]

OFFERS = [
    _post(f"offer {json.dumps(body)[:60]}", OFFER, statuses, body)
    for body, statuses in [
        ({}, (422,)),
        ({"sdp": _HEAD}, (422,)),
        ({"type": "offer"}, (422,)),
        ({"sdp": _HEAD, "type": 5}, (422,)),
        ({"sdp": _HEAD, "type": "answer"}, (400,)),
        ({"sdp": _HEAD, "type": "rollback"}, (400,)),
        ({"sdp": _HEAD, "type": ""}, (400,)),
        ({"sdp": _HEAD, "type": "offer", "initialParameters": []}, (400, 422)),
        ({"sdp": _HEAD, "type": "offer", "initialParameters": "x"}, (400, 422)),
    ]
]

CANDIDATES = [
    _post(f"candidates {json.dumps(body)[:70]}", OWN_SESSION, statuses, body, "PATCH")
    for body, statuses in [
        ({}, (422,)),
        ({"candidates": None}, (422,)),
        ({"candidates": "x"}, (422,)),
        ({"candidates": [1]}, (422,)),
        ({"candidates": [{}]}, (422,)),
        ({"candidates": [{"candidate": 5, "sdpMid": "0"}]}, (422,)),
        ({"candidates": [{"candidate": HOST_CANDIDATE, "sdpMid": 0.5}]}, (422,)),
        ({"candidates": [{"candidate": HOST_CANDIDATE, "sdpMLineIndex": "zero"}]}, (422,)),
        ({"candidates": [{"candidate": HOST_CANDIDATE}]}, (400,)),
        ({"candidates": [{"candidate": "garbage", "sdpMid": "0"}]}, (400,)),
        ({"candidates": [{"candidate": "candidate:1 1 UDP", "sdpMid": "0"}]}, (400,)),
        ({"candidates": [{"candidate": HOST_CANDIDATE.replace("54321", "x"), "sdpMid": "0"}]}, (400,)),
        ({"candidates": [{"candidate": "candidate:" + "9" * 10_000, "sdpMid": "0"}]}, (400,)),
        ({"candidates": [{"candidate": HOST_CANDIDATE, "sdpMid": "0"}] * 8000}, (400,)),
    ]
] + [
    _post("candidates of nobody", f"{OFFER}/nobody", (404,), {"candidates": []}, "PATCH"),
    _post("candidates of a session with a NUL", f"{OFFER}/a%00b", (404,), {"candidates": []}, "PATCH"),
]

QUERIES = [
    Request(f"query {path}", "GET", path, (422,))
    for path in (
        "/api/v1/logs/tail?lines=0",
        "/api/v1/logs/tail?lines=1001",
        "/api/v1/logs/tail?lines=many",
        "/api/v1/logs/tail?lines=" + "9" * 5000,
        "/api/v1/logs/tail?since_offset=-1",
        "/api/v1/session/frame?quality=0",
        "/api/v1/session/frame?quality=101",
        "/api/v1/session/frame?quality=best",
    )
]

PATHS = [
    Request(f"path {path[:50]}", "GET", path, statuses)
    for path, statuses in [
        ("/api/v1/nope", (404,)),
        ("/api/v1/pipeline/status/", (404,)),
        ("/api/v1/../../etc/passwd", (404,)),
        ("/api/v1/%2e%2e/%2e%2e/etc/passwd", (404,)),
        ("/api/v1/pipeline/status%00", (404,)),
        ("/api/v1/pipeline/status%ff", (404,)),
        ("/../../../../etc/passwd", (404,)),
        ("/..%2f..%2f..%2fetc%2fpasswd", (404,)),
        ("/docs/..%2f..%2fapp.py", (404,)),
        ("/api/v1/" + "a" * 5000, (404, 414)),
    ]
]

METHODS = [
    Request(f"method {method} {path}", method, path, (405,))
    for method, path in [
        ("DELETE", "/health"),
        ("POST", "/health"),
        ("GET", LOAD),
        ("PUT", LOAD),
        ("GET", OFFER),
        ("PUT", OFFER),
        ("POST", OWN_SESSION),
        ("PATCH", "/api/v1/session/metrics"),
        ("BREW", "/api/v1/pipeline/status"),
    ]
]

PARAMETERS = [
    _post(f"parameters {json.dumps(body)[:60]}", "/api/v1/session/parameters", statuses, body)
    for body, statuses in [
        ({}, (400,)),
        ([], (422,)),
        ({"noise_scale": 7}, (422,)),
        ({"prompts": 5}, (422,)),
        ({"denoising_step_list": [1, 2]}, (422,)),
    ]
]

ASSETS = "/api/v1/assets"
_PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000020000000208020000")

UPLOADS = [
    Request(f"upload {query[:60]}", "POST", ASSETS + query, (400, 422), {"body": body})
    for query, body in [
        ("", _PNG),
        ("?filename=", _PNG),
        ("?filename=.png", _PNG),
        ("?filename=a", _PNG),
        ("?filename=a.exe", _PNG),
        ("?filename=../a.png", _PNG),
        ("?filename=..%2F..%2Fa.png", _PNG),
        ("?filename=%2Ftmp%2Fa.png", _PNG),
        ("?filename=C:%5Ca.png", _PNG),
        ("?filename=a%00.png", _PNG),
        ("?filename=a%0d%0aX-Header:%20y.png", _PNG),
        ("?filename=" + "a" * 300 + ".png", _PNG),
        ("?filename=" + "a/" * 2000 + "a.png", _PNG),
        ("?filename=.git/a.png", _PNG),
        ("?filename=text.png", b"this is no picture"),
        ("?filename=empty.png", b""),
    ]
]

ASSET_READS = [
    Request(f"asset {path[:50]}", "GET", ASSETS + path, statuses)
    for path, statuses in [
        ("/nope.png", (404,)),
        ("/..%2f..%2fetc%2fpasswd", (403, 404)),
        ("/../../../etc/passwd", (403, 404)),
        ("/%2fetc%2fpasswd", (403, 404)),
        ("/a%00.png", (400, 403, 404)),
        ("/%ff.png", (400, 403, 404)),
        ("/" + "a" * 5000 + ".png", (400, 403, 404, 414)),
        ("?type=program", (422,)),
        ("?type=", (422,)),
    ]
]

LORAS = [
    _post(f"LoRA {json.dumps(body)[:70]}", "/api/v1/loras", statuses, body)
    for body, statuses in [
        ({}, (422,)),
        ([], (422,)),
        ({"url": 5}, (422,)),
        ({"url": ""}, (400,)),
        ({"url": "not a url"}, (400,)),
        ({"url": "file:///etc/passwd"}, (400,)),
        ({"url": "http://127.0.0.1:1/a.safetensors"}, (400,)),
        ({"url": "http://169.254.169.254/latest/a.safetensors"}, (400,)),
        ({"url": "https://huggingface.co.example.com/a.safetensors"}, (400,)),
        ({"url": "https://huggingface.co/a/b/resolve/main/a.pt"}, (400,)),
        (
            {"url": "https://huggingface.co/a/b/resolve/main/a.safetensors", "filename": "../a.safetensors"},
            (400,),
        ),
    ]
] + [
    Request(f"delete of LoRA {name}", "DELETE", f"/api/v1/loras/{name}", (400, 403, 404))
    for name in ("nope", "..%2f..%2fa", "%2fetc%2fpasswd", "a%00b", "%ff")
]

MODELS = [
    _post(f"download {json.dumps(body)[:60]}", "/api/v1/models/download", statuses, body)
    for body, statuses in [
        ({}, (422,)),
        ([], (422,)),
        ({"pipeline_id": None}, (422,)),
        ({"pipeline_id": 5}, (422,)),
        ({"pipeline_id": ""}, (400,)),
        ({"pipeline_id": "../longlive"}, (404,)),
    ]
] + [
    Request("status of no model", "GET", "/api/v1/models/status", (422,)),
    Request("status of an unknown model", "GET", "/api/v1/models/status?pipeline_id=..%2f", (404,)),
]

REQUESTS = [
    *MODELS,
    *UPLOADS,
    *ASSET_READS,
    *LORAS,
    *BODIES,
    *CONTENT_TYPES,
    *LOADS,
    *SDPS,
    *OFFERS,
    *CANDIDATES,
    *QUERIES,
    *PATHS,
    *METHODS,
    *PARAMETERS,
]
