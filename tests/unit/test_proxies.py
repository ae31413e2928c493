"""Which calls go through a proxy, and what is said when they cannot."""

import httpx
import pytest

from gateway.config import Secrets
from gateway.files.models.hub import Hub, HubError, HubUnreachableError
from gateway.files.public_http import AddressNotAllowedError, PublicTransport
from gateway.proxies import ProxyFailed, grpc_proxy_allowed, problems, proxy_for
from gateway.webrtc.ice.turn_credentials import TurnError, TurnUrls, choose_source
from tests.local_http import LocalHttp, Reply, Request


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, "https://hub.example", None),
        ({"https_proxy": "http://p:1"}, "https://hub.example", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "https://hub.example", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:2"}, "https://hub.example", "http://q:2"),
        ({"http_proxy": "p:1"}, "http://hub.example", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://hub.example", None),
        ({"ALL_PROXY": "socks5://p:1"}, "https://hub.example", "socks5://p:1"),
        ({"all_proxy": "http://p:1", "no_proxy": "example"}, "https://hub.example", None),
        ({"all_proxy": "http://p:1", "NO_PROXY": "*"}, "https://hub.example", None),
        ({"all_proxy": "http://p:1"}, "http://localhost:9000", None),
        ({"all_proxy": "http://p:1"}, "http://127.9.9.9:9000", None),
        ({"all_proxy": "http://p:1"}, "http://[::1]:9000", None),
        ({"all_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "http://10.1.2.3", "http://p:1"),
    ],
)
def test_the_environment_names_the_proxy_of_what_leaves_this_machine(
    variables: dict[str, str], url: str, expected: str | None, environment: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)

    assert proxy_for(httpx.URL(url)) == expected


@pytest.mark.parametrize("address", ["127.0.0.1:8001", "localhost:8001", "[::1]:8001", "0.0.0.0:8001"])
def test_triton_is_asked_through_a_proxy_that_is_meant_for_it_only(
    address: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("https_proxy", "http://p:1")
    without = grpc_proxy_allowed("triton.example:8001")
    environment.setenv("grpc_proxy", "http://p:1")

    assert not without
    assert grpc_proxy_allowed("triton.example:8001")
    assert not grpc_proxy_allowed(address)


@pytest.mark.parametrize(
    "proxy", ["socks://127.0.0.1:1080", "socks5://u:secret@127.0.0.1:1", "ftp://p", "http://p:x"]
)
async def test_a_proxy_that_cannot_be_used_is_named_by_the_call_that_needs_it(
    proxy: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ALL_PROXY", proxy)
    turn = choose_source(Secrets(hf_token="t"), TurnUrls(huggingface="https://turn.example"))
    hub = Hub("https://hub.example", None, retry_delays_s=())
    assert turn is not None

    with pytest.raises(TurnError) as of_turn:
        await turn.fetch()
    with pytest.raises(HubError) as of_hub:
        await hub.files("a/b")

    await hub.close()
    (problem,) = problems()
    assert "cannot be used" in problem
    assert "secret" not in problem
    assert problem in str(of_turn.value)
    assert problem in str(of_hub.value)


async def test_a_name_that_only_the_proxy_knows_is_left_to_it_but_a_private_address_is_not(
    environment: pytest.MonkeyPatch,
) -> None:
    async with Proxy() as proxy, httpx.AsyncClient(transport=PublicTransport()) as client:
        environment.setenv("all_proxy", proxy.url)

        with pytest.raises(ProxyFailed, match="refuses it"):
            await client.get("https://models.invalid/style.safetensors")
        with pytest.raises(AddressNotAllowedError, match="private network"):
            await client.get("https://10.0.0.1/style.safetensors")

    assert [r.target for r in proxy.requests] == ["models.invalid:443"]


class Proxy(LocalHttp):
    """Answers requests of plain HTTP itself."""

    async def answer(self, request: Request) -> Reply:
        return (
            Reply(200, b'{"id": "a/b", "sha": "1", "siblings": []}')
            if request.method == "GET"
            else Reply(407)
        )


async def test_the_hub_is_asked_through_the_proxy_and_a_refusal_names_it(
    environment: pytest.MonkeyPatch,
) -> None:
    async with Proxy() as proxy:
        environment.setenv("all_proxy", proxy.url)
        plain, secure = Hub("http://hub.example", None, ()), Hub("https://hub.example", None, ())

        files = await plain.files("a/b")
        with pytest.raises(HubUnreachableError, match=f"{proxy.url} refuses it .407"):
            await secure.files("a/b")
        environment.setenv("all_proxy", "http://127.0.0.1:9")
        with pytest.raises(HubUnreachableError, match=r"127\.0\.0\.1:9 or what is behind it does not answer"):
            await secure.files("a/b")

        await plain.close()
        await secure.close()
    assert files == []
    assert [r.target.partition("?")[0] for r in proxy.requests] == [
        "http://hub.example/api/models/a/b/revision/main",
        "hub.example:443",
    ]
