"""From which addresses LoRA files may be installed, and what their URLs tell (api.md 6.2)."""

import re
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from gateway.errors import ApiError
from gateway.validation import quoted

_HUGGINGFACE: Final = ("huggingface.co", "hf.co")
_CIVITAI: Final = "https://civitai.com"
_RESOLVE: Final = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")
_CIVITAI_DOWNLOAD: Final = re.compile(r"/api/download/models/(?P<version>\d+)/?")


@dataclass(frozen=True, slots=True)
class LoraSource:
    """An address that was checked."""

    kind: str  # "huggingface" or "civitai"
    url: httpx.URL  # without a token
    request_url: httpx.URL = field(repr=False)  # as the user gave it

    @property
    def file_name(self) -> str | None:
        """The last part of the path, where it looks like a file name."""
        name = self.url.path.rpartition("/")[2]
        return name if "." in name else None

    @property
    def civitai_version(self) -> str | None:
        """Number of the model version that a CivitAI URL downloads."""
        match = _CIVITAI_DOWNLOAD.fullmatch(self.url.path)
        return match["version"] if match and self.kind == "civitai" else None

    def provenance(self) -> dict[str, Any]:
        """The manifest's object."""
        hub = _RESOLVE.fullmatch(self.url.path) if self.kind == "huggingface" else None
        return {
            "source": self.kind,
            "repo_id": hub["repo"] if hub else None,
            "hf_filename": hub["file"] if hub else None,
            "model_id": None,
            "version_id": self.civitai_version,
            "url": str(self.url),
        }


@dataclass(frozen=True, slots=True)
class LoraEndpoints:
    """Whom to trust beside huggingface.co and hf.co: a mirror of the hub, and CivitAI."""

    huggingface: str = "https://huggingface.co"
    civitai: str = _CIVITAI

    def source(self, text: str) -> LoraSource:
        """The source that a user's URL names. Raises ApiError 400."""
        try:
            url = httpx.URL(text.strip())
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise ApiError(400, f"'{quoted(text)}' is not a URL.") from error
        kind = self._kind(url)
        if kind == "huggingface" and "/blob/" in url.path:
            raise ApiError(400, "This is the URL of a preview page: use '/resolve/' in place of '/blob/'.")
        if kind is None:
            raise ApiError(
                400, "LoRA files are installed from https://huggingface.co, hf.co and civitai.com only."
            )
        url = url.copy_with(fragment=None, userinfo=b"")
        return LoraSource(kind, url.copy_remove_param("token") if "token" in url.params else url, url)

    def _kind(self, url: httpx.URL) -> str | None:
        for kind, endpoint in (("huggingface", self.huggingface), ("civitai", self.civitai)):
            own = httpx.URL(endpoint)
            if (url.scheme, url.host, url.port) == (own.scheme, own.host, own.port):
                return kind
        if url.scheme != "https" or url.port is not None:
            return None
        if any(_within(url.host, domain) for domain in _HUGGINGFACE):
            return "huggingface"
        return "civitai" if _within(url.host, httpx.URL(_CIVITAI).host) else None


def _within(host: str, domain: str) -> bool:
    return host.lower() == domain or host.lower().endswith(f".{domain}")
