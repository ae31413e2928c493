"""A hub like Hugging Face's, on this machine: listings, files with ranges, and every way of failing."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from urllib.parse import unquote

from gateway.files.models.artifacts import Artifact, is_directory
from tests.local_http import LocalHttp, Reply, Request

COMMIT = "0123abcd"


class HubDouble(LocalHttp):
    """repositories: content by repository id and path.

    files_at: where file requests are redirected to, as the real hub does with large files. failures: replies
    to be given, in order, instead of a file's content, by path inside the repository. refused: HTTP status of
    listings, by repository id; refused_files: of files. slow: seconds before each hundred bytes of a file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.files_at: str | None = None
        self.failures: dict[str, list[Reply | Callable[[bytes], Reply]]] = {}
        self.refused: dict[str, int] = {}
        self.refused_files: dict[str, int] = {}
        self.wrong_hash = False
        self.slow = 0.0
        self.listing_delay_s = 0.0

    def add(self, artifacts: tuple[Artifact, ...], owner: str = "upstream", size_bytes: int = 1000) -> None:
        """Make up the files of some artifacts, each with a content of its own."""
        for artifact in artifacts:
            files = self.repositories.setdefault(artifact.repository_id(owner), {"README.md": b"not wanted"})
            for name in artifact.files:
                inside = (f"{name}/umt5-xxl/spiece.model", f"{name}/umt5-xxl/empty.txt", f"{name}/vocab.json")
                for path in inside if is_directory(name) else (name,):
                    text = f"{artifact.repository}/{path} ".encode()
                    files[path] = b"" if path.endswith("empty.txt") else (text * size_bytes)[:size_bytes]

    def file_requests(self) -> list[Request]:
        return [r for r in self.requests if "/resolve/" in r.path]

    async def answer(self, request: Request) -> Reply:
        if request.path.startswith("/api/models/"):
            await asyncio.sleep(self.listing_delay_s)
            return self._listing(request.path.removeprefix("/api/models/").removesuffix("/revision/main"))
        repository, _, rest = request.path[1:].partition("/resolve/")
        commit, _, path = unquote(rest).partition("/")
        content = self.repositories.get(repository, {}).get(path)
        if content is None or commit != COMMIT:
            return Reply(404)
        if repository in self.refused_files:
            return Reply(self.refused_files[repository])
        if self.failures.get(path):
            failure = self.failures[path].pop(0)
            return failure if isinstance(failure, Reply) else failure(content)
        if self.files_at is not None:
            return Reply(302, headers={"Location": f"{self.files_at}{request.path}"})
        return ranged(content, request, slow=self.slow)

    def _listing(self, repository: str) -> Reply:
        if repository in self.refused:
            return Reply(self.refused[repository], b'{"error": "Invalid username or password."}')
        if repository not in self.repositories:
            return Reply(401)  # the real hub does not tell whether it exists
        siblings = [self._sibling(path, data) for path, data in self.repositories[repository].items()]
        return Reply(body=json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())

    def _sibling(self, path: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": "x"}
        if not path.endswith((".json", ".txt", ".md")):  # small files are kept in git
            digest = hashlib.sha256(content + b"!" * self.wrong_hash).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        return entry


class Storage(HubDouble):
    """Where a hub redirects file requests to: the same files, no listings."""

    def __init__(self, hub: HubDouble) -> None:
        super().__init__()
        self.repositories = hub.repositories


def ranged(content: bytes, request: Request, *, slow: float = 0.0) -> Reply:
    """All of the content, or the range that was asked for."""
    pace = {"piece_bytes": 100, "piece_delay_s": slow} if slow else {}
    if "range" not in request.headers:
        return Reply(body=content, **pace)  # type: ignore[arg-type]
    start = int(request.headers["range"].removeprefix("bytes=").rstrip("-"))
    if start >= len(content):
        return Reply(416, headers={"Content-Range": f"bytes */{len(content)}"})
    headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return Reply(206, content[start:], headers, **pace)  # type: ignore[arg-type]
