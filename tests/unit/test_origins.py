"""Which pages may use a server, and by which names it may be called."""

import dataclasses
import ipaddress
import socket
from pathlib import Path

import pytest

from gateway.access.origins import Caller, OriginPolicy
from gateway.config import Config, Secrets
from streaming.errors import WanstreamError

STRANGER = "https://evil.example"
CALLER = Caller("localhost:8000", "", False, True, same_origin=False, without_preflight=False)


def policy(*listed: str, token: str | None = None) -> OriginPolicy:
    config = Config.from_env({"WANSTREAM_HOME": "/nowhere", "WANSTREAM_CORS_ORIGINS": ",".join(listed)})
    return OriginPolicy(dataclasses.replace(config, secrets=Secrets(access_token=token)))


def may_act(rules: OriginPolicy, host: str, origin: str, **further: bool) -> bool:
    caller = dataclasses.replace(CALLER, host=host, origin=origin, **further)
    return rules.refuses_origin(caller) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost:8000",
        "LOCALHOST",
        "localhost.:8000",
        "app.localhost:8000",
        "127.0.0.1:8000",
        "127.8.8.8",
        "[::1]:8000",
        "[::ffff:127.0.0.1]:8000",
        "0.0.0.0:8000",
        "",
    ],
)
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("", True),  # no page
        ("null", True),
        ("file://", True),
        ("http://localhost:3000", True),
        ("https://LocalHost.", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:5173", True),
        ("http://app.localhost", True),
        ("tauri://localhost", True),
        (STRANGER, False),
        ("http://localhost.evil.example", False),
        ("http://notlocalhost", False),
        ("http://192.168.1.5:8000", False),
        ("chrome-extension://abcdefgh", False),
        ("http://[", False),
        ("http://localhost:port", False),
    ],
)
def test_a_server_on_localhost_is_for_pages_of_its_machine(host: str, origin: str, allowed: bool) -> None:
    assert may_act(policy(), host, origin) is allowed


@pytest.mark.parametrize("host", ["192.168.1.5:8000", "studio.example", "[2001:db8::1]:8000", "box.local"])
@pytest.mark.parametrize("origin", ["", "null", STRANGER, "http://localhost:3000"])
def test_a_server_on_a_network_is_open_to_every_page(host: str, origin: str) -> None:
    assert may_act(policy(), host, origin)


@pytest.mark.parametrize("host", ["localhost:8000", "192.168.1.5:8000"])
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://studio.example", True),
        ("https://STUDIO.example:443", True),
        ("http://studio.example", False),
        ("https://studio.example:8443", False),
        (STRANGER, False),
        ("null", False),
        ("", True),
    ],
)
def test_a_list_of_origins_holds_for_every_name(host: str, origin: str, allowed: bool) -> None:
    assert may_act(policy("https://Studio.example/"), host, origin) is allowed


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.168.1.5:8000", "http://192.168.1.5:8000"),
        ("studio.example", "https://studio.example"),
        ("[2001:db8::1]:8000", "http://[2001:DB8::1]:8000"),
    ],
)
def test_the_server_s_own_page_needs_no_entry(host: str, origin: str) -> None:
    assert may_act(policy("https://elsewhere.example"), host, origin)


def test_a_star_opens_a_server_on_localhost() -> None:
    assert may_act(policy("*"), "localhost:8000", STRANGER)


def test_pages_from_disk_can_be_listed() -> None:
    assert may_act(policy("null", "https://studio.example"), "localhost:8000", "null")


def test_a_form_cannot_hide_where_it_comes_from() -> None:
    """A page that sends no referrer has the origin `null` in what needs no preflight."""
    assert not may_act(policy(), "localhost:8000", "null", without_preflight=True)


def test_a_proxy_may_call_the_server_by_localhost() -> None:
    """nginx does unless it is told otherwise; the browser says that the page is of the same origin."""
    assert may_act(policy(), "127.0.0.1:8000", "https://studio.example", same_origin=True)


def test_a_refusal_names_page_and_variable() -> None:
    text = policy().refuses_origin(dataclasses.replace(CALLER, origin=STRANGER))

    assert text is not None
    assert STRANGER in text
    assert "WANSTREAM_CORS_ORIGINS" in text


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost:8000", True),
        ("localhost.", True),
        ("127.0.0.1:8000", True),
        ("192.168.1.5:8000", True),
        ("[::1]:8000", True),
        ("[fe80::1%25eth0]:8000", True),
        (f"{socket.gethostname().upper()}:8000", True),
        (f"{socket.gethostname()}.local:8000", True),
        (socket.getfqdn(), True),
        ("studio.example:8000", True),  # listed
        ("", True),  # HTTP/1.0
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("studio.example.evil.example", False),
        ("[", False),
    ],
)
async def test_a_request_of_the_own_machine_must_use_a_name_of_the_server(host: str, answered: bool) -> None:
    rules = policy("https://studio.example")

    refusal = await rules.refuses_host(dataclasses.replace(CALLER, host=host))

    assert (refusal is None) is answered
    assert answered or "WANSTREAM_TRUSTED_PROXIES" in str(refusal)


async def test_other_machines_and_proxies_may_use_any_name() -> None:
    caller = dataclasses.replace(CALLER, host="evil.example", from_own_machine=False)

    assert await policy().refuses_host(caller) is None


async def test_a_token_makes_any_name_safe() -> None:
    caller = dataclasses.replace(CALLER, host="studio.example")

    assert await policy(token="secret").refuses_host(caller) is None


def test_trusted_proxies_are_addresses_and_networks(tmp_path: Path) -> None:
    home = {"WANSTREAM_HOME": str(tmp_path)}

    config = Config.from_env(home | {"WANSTREAM_TRUSTED_PROXIES": "127.0.0.1, 10.1.2.3/8, ::1"})

    assert [str(n) for n in config.trusted_proxies] == ["127.0.0.1/32", "10.0.0.0/8", "::1/128"]
    assert ipaddress.ip_address("10.200.0.1") in config.trusted_proxies[1]
    with pytest.raises(WanstreamError, match="WANSTREAM_TRUSTED_PROXIES must be"):
        Config.from_env(home | {"WANSTREAM_TRUSTED_PROXIES": "nginx"})
