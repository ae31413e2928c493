"""From which addresses LoRA files may be installed, and what their URLs tell (api.md 6.2)."""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote

import httpx

from gateway.errors import ApiError
from gateway.http.validation import quoted

_HUGGINGFACE: Final = ("huggingface.co", "hf.co")
_CIVITAI: Final = "https://civitai.com"
_RESOLVE: Final = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")
_REPOSITORY: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,20}", re.ASCII)
_CIVITAI_DOWNLOAD: Final = re.compile(r"/api/download/models/(?P<version>\d+)/?")


@dataclass(frozen=True, slots=True)
class LoraSource:
    """An address that was checked."""

    kind: str  # "huggingface", "civitai" or "url"
    url: httpx.URL  # without a token
    request_url: httpx.URL = field(repr=False)  # as the user gave it
    model_id: str | None = None  # of CivitAI, where the user told it

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
            "model_id": self.model_id,
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
        url = _parse(text)
        kind = self._kind(url)
        if kind == "huggingface" and "/blob/" in url.path:
            raise ApiError(400, "This is the URL of a preview page: use '/resolve/' in place of '/blob/'.")
        if kind is None:
            raise ApiError(
                400, "LoRA files are installed from https://huggingface.co, hf.co and civitai.com only."
            )
        return _source(kind, url)

    def from_huggingface(self, repository: str, path: str) -> LoraSource:
        """A file of a repository's main branch. Raises ApiError 400."""
        if not _REPOSITORY.fullmatch(repository):
            raise ApiError(400, f"repo_id must be 'owner/name', not '{quoted(repository)}'.")
        url = httpx.URL(f"{self.huggingface}/{repository}/resolve/main/{quote(path)}")
        return _source("huggingface", url)

    def from_civitai(self, version: str, model: str | None, token: str | None) -> LoraSource:
        """The file of a model version. Raises ApiError 400."""
        if not _NUMBER.fullmatch(version):
            raise ApiError(400, f"version_id must be a number, not '{quoted(version)}'.")
        url = httpx.URL(f"{self.civitai}/api/download/models/{version}")
        source = _source("civitai", url.copy_set_param("token", token) if token else url)
        return replace(source, model_id=model)

    def from_anywhere(self, text: str) -> LoraSource:
        """Any URL; that it leads to a public address is checked when it is asked. Raises ApiError 400."""
        try:
            return self.source(text)
        except ApiError:
            url = _parse(text)
            if url.scheme != "https" or not url.host or "/blob/" in url.path:
                raise
            return _source("url", url)

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


def without_token(text: str) -> str:
    """A URL as it may be recorded. Raises ApiError 400."""
    return str(_source("url", _parse(text)).url)


def _parse(text: str) -> httpx.URL:
    try:
        return httpx.URL(text.strip())
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise ApiError(400, f"'{quoted(text)}' is not a URL.") from error


def _source(kind: str, url: httpx.URL) -> LoraSource:
    url = url.copy_with(fragment=None, userinfo=b"")
    return LoraSource(kind, url.copy_remove_param("token") if "token" in url.params else url, url)


def _within(host: str, domain: str) -> bool:
    return host.lower() == domain or host.lower().endswith(f".{domain}")
