"""The command line, the environment and what the server leaves in its log, on real processes (api.md 12)."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.__main__ import git_commit, page_url
from gateway.app import VERSION
from streaming.specs import SPECS
from tests.server.peer import until
from tests.server.processes import ServerProcess, clean_environment

ROOT = Path(__file__).resolve().parents[2]
NO_TRITON = ["--triton-url", "127.0.0.1:9"]  # nothing answers there; these tests need no pipeline
LOG_NAME = re.compile(r"scope-logs-\d{4}(-\d\d){5}\.log")


def run(
    *arguments: str, home: Path, env: Mapping[str, str] | None = None, name: str = "wanstream"
) -> "subprocess.CompletedProcess[str]":
    """One run of a console script that is to end by itself."""
    script = Path(sys.executable).with_name(name)
    return subprocess.run(
        [script, *arguments], env=clean_environment(home, env), capture_output=True, text=True, timeout=120
    )


def logs(server: ServerProcess) -> list[dict[str, Any]]:
    """The lines of a server that logs JSON."""
    return [json.loads(line) for line in server.log.splitlines()]


def directories(home: Path) -> set[str]:
    """All directories below `home`."""
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_dir()}


# Commands that end


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_option_and_command(option: str, tmp_path: Path) -> None:
    shown = run(option, home=tmp_path)

    options = ["--host", "--port", "--reload", "-N, --no-browser", "--version"]
    options += ["--triton-url", "--triton-metrics-url", "--lora-dir", "--max-sessions", "pipelines"]
    assert shown.returncode == 0
    assert [o for o in options if not re.search(rf"^  {o}\b.*(\s{{2,}}|\n\s+)\w", shown.stdout, re.M)] == []
    assert "[default: 0.0.0.0]" in shown.stdout


@pytest.mark.parametrize("name", ["wanstream", "daydream-scope"])
def test_version_is_told_under_both_names(name: str, tmp_path: Path) -> None:
    shown = run("--version", home=tmp_path, name=name)

    assert shown.returncode == 0
    assert re.fullmatch(rf"{name}: {re.escape(VERSION)}\ngit commit: .+\n", shown.stdout)


def test_the_commit_of_somebody_else_s_repository_is_not_ours(tmp_path: Path) -> None:
    """As an environment inside a checkout of something else, where the package is one file among many."""
    packages = tmp_path / "venv" / "site-packages"
    shutil.copytree(
        ROOT / "gateway", packages / "gateway", ignore=shutil.ignore_patterns("page", "__pycache__")
    )
    for command in ("init -q", "-c user.name=x -c user.email=x@y commit -q --allow-empty -m x"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    code = "from gateway.__main__ import git_commit; print(git_commit())"

    told = [
        subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True).stdout.strip()
        for cwd in (packages, ROOT)
    ]

    assert told[0] == "unknown (not a git checkout)"
    assert told[1] == git_commit()


def test_pipelines_are_listed(tmp_path: Path) -> None:
    shown = run("pipelines", home=tmp_path)

    assert shown.returncode == 0
    assert shown.stdout.splitlines() == ["6 pipeline(s) available:", *(f"  • {name}" for name in SPECS)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "0"], "'--port': 0 is not in the range"),
        (["--port", "http"], "'--port': 'http' is not a valid integer"),
        (["--max-sessions", "0"], "'--max-sessions': 0 is not in the range"),
        (["--lora-dir", __file__], f"'--lora-dir': Directory '{__file__}' is a file"),
        (["--lora-dir", "/nowhere"], "'--lora-dir': Directory '/nowhere' does not exist"),
        (["--cloud"], "No such option '--cloud'"),
        (["plugins"], "No such command 'plugins'"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], text: str, tmp_path: Path) -> None:
    ended = run(*arguments, home=tmp_path)

    assert ended.returncode == 2
    assert text in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANSTREAM_MAX_SESSIONS", "many"),
        ("WANSTREAM_DRAIN_S", "-1"),
        ("WANSTREAM_LOAD_TIMEOUT_S", "0"),
        ("WANSTREAM_CONNECT_TIMEOUT_S", "1.5"),
        ("WANSTREAM_VIDEO_BITRATE_MIN", "9000000"),
        ("WANSTREAM_LOG_FORMAT", "xml"),
        ("WANSTREAM_LOG_LEVEL", "loud"),
        ("WANSTREAM_ICE_SERVERS", "stun:example.org"),
        ("WANSTREAM_HOME", "/dev/null/home"),
        ("DAYDREAM_SCOPE_LOGS_DIR", "/dev/null/logs"),
        ("WANSTREAM_HOME", "/tmp/two\nlines"),
        ("WANSTREAM_TRITON_URL", "http://triton.example:8001"),
        ("WANSTREAM_TRITON_URL", "triton.example"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str, tmp_path: Path) -> None:
    ended = run("-N", "--host", "127.0.0.1", "--port", free(), home=tmp_path, env={name: value})

    message = ended.stderr.splitlines()[-1]
    assert ended.returncode == 1
    assert message.startswith("Error: ")
    assert name in message or value in message
    assert "Traceback" not in ended.stderr


def free() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_a_port_in_use_is_explained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        ended = run("-N", "--host", "127.0.0.1", "--port", str(port), home=tmp_path)

    assert ended.returncode == 1
    assert ended.stderr == (
        f"Error: Cannot listen on 127.0.0.1:{port} (Address already in use). Stop the program that uses the "
        "port, or choose another one with --port.\n"
    )


def test_an_address_of_another_machine_is_explained(tmp_path: Path) -> None:
    ended = run("-N", "--host", "192.0.2.1", home=tmp_path)

    assert ended.returncode == 1
    assert "192.0.2.1" in ended.stderr
    assert "--host" in ended.stderr


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://localhost:8000"),
        ("127.0.0.1", "http://localhost:8000"),
        ("::", "http://localhost:8000"),
        ("127.0.0.2", "http://127.0.0.2:8000"),
        ("2001:db8::1", "http://[2001:db8::1]:8000"),
        ("box.example", "http://box.example:8000"),
    ],
)
def test_the_page_is_opened_where_the_server_listens(host: str, url: str) -> None:
    assert page_url(host, 8000) == url


# A server with settings


def make_browser(home: Path) -> str:
    """A value for BROWSER: notes in `opened` what it is shown, and runs until there is a file `closed`."""
    program = home / "browser"
    program.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\necho "$1" >> opened\nwhile [ ! -e closed ]; do sleep 0.1; done\n'
    )
    program.chmod(0o755)
    return f"{program} %s"


@contextmanager
def started(
    home: Path, env: Mapping[str, str], *options: str, directory: Path | None = None
) -> Iterator[ServerProcess]:
    """A server that is stopped, with its browser, whatever happens."""
    server = ServerProcess("gateway", home, env, [*NO_TRITON, *options], directory)
    try:
        yield server
    finally:
        (home / "closed").touch()
        server.kill()


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with many settings, at its first start in a home that has old logs."""
    home = tmp_path_factory.mktemp("configured")
    for name in ("scope-logs-2020-01-01-00-00-00.log", "scope-logs-2020-01-01-00-00-00.log.1", "notes.log"):
        old = home / "my logs" / name
        old.parent.mkdir(exist_ok=True)
        old.write_text("old")
        os.utime(old, (time.time() - 2 * 86400,) * 2)
    env = {
        "BROWSER": make_browser(home),
        "PIPELINE": "longlife",
        "VERBOSE_LOGGING": "1",
        "SCOPE_LOG_QUIET_LOGGERS": "gateway.webrtc.ice.servers, gateway",
        "WANSTREAM_LOG_FORMAT": "JSON",
        "WANSTREAM_TOKEN": "",
        "WANSTREAM_MAX_SESSIONS": "",
        "WANSTREAM_CORS_ORIGINS": "",
        "DAYDREAM_SCOPE_MODELS_DIR": str(home / "my models"),
        "DAYDREAM_SCOPE_LOGS_DIR": str(home / "my logs"),
        "DAYDREAM_SCOPE_ASSETS_DIR": str(home / "my" / "assets"),
        "DAYDREAM_SCOPE_LORA_DIR": str(home / "my loras"),
        "WANSTREAM_ENGINES_DIR": str(home / "my engines"),
    }
    further = []
    for name in ("their loras", "old loras"):
        (home / name).mkdir()
        further += ["--lora-dir", str(home / name)]
    with started(home, env, *further) as server:
        yield server
        (home / "closed").touch()
        code = server.stop(signal.SIGTERM, within_s=5)
    assert code == 0


async def test_the_browser_is_shown_the_page_and_not_waited_for(configured: ServerProcess) -> None:
    opened = configured.home / "opened"
    await until(opened.exists, 30, "browser started")

    assert opened.read_text() == f"http://localhost:{configured.port}\n"


def test_an_unknown_pipeline_in_the_environment_is_shown_as_an_error(configured: ServerProcess) -> None:
    status = configured.client.request("GET", "/api/v1/pipeline/status").json()

    assert status["status"] == "error"
    assert "longlife" in status["error"]
    assert [line["level"] for line in logs(configured) if "longlife" in line["message"]] == ["ERROR"]


def test_directories_are_where_the_environment_says(configured: ServerProcess) -> None:
    image = b"\x89PNG"
    refused = configured.client.request("POST", "/api/v1/assets?filename=a.png", body=image)
    loras = [configured.home / f"{whose} loras" / "style.safetensors" for whose in ("my", "old", "their")]
    for path in loras:
        path.write_bytes(bytes(10))
    listed = configured.client.request("GET", "/api/v1/lora/list").json()["lora_files"]

    names = directories(configured.home)
    assert {"my models", "my logs", "my/assets", "my loras", "my engines"} <= names
    assert not names & {"models", "logs", "assets", "engines"}
    read_only = {entry["path"]: entry["read_only"] for entry in listed}
    assert read_only == {str(path): path.parent.name != "my loras" for path in loras}
    assert refused.status == 400


def test_each_start_has_a_log_file_and_old_ones_are_removed(configured: ServerProcess) -> None:
    names = {path.name for path in (configured.home / "my logs").iterdir()}

    assert "notes.log" in names
    names.remove("notes.log")
    assert len(names) == 1
    assert LOG_NAME.fullmatch(names.pop())


def test_empty_variables_count_as_unset(configured: ServerProcess) -> None:
    answer = configured.client.request("GET", "/api/v1/pipeline/status", headers={"Origin": "null"})

    assert answer.status == 200  # no token is asked for
    assert answer.headers["access-control-allow-origin"] == "null"


async def test_verbose_logging_shows_requests_and_quiet_loggers_are_silent(configured: ServerProcess) -> None:
    configured.client.request("GET", "/marker")

    await until(lambda: "GET /marker" in configured.log, 30, "access log")
    loggers = {line["logger"] for line in logs(configured)}
    assert "hypercorn.access" in loggers
    assert not loggers & {"gateway", "gateway.webrtc.ice.servers"}


def test_the_log_can_be_fetched_and_is_the_console_s(configured: ServerProcess) -> None:
    answer = configured.client.request("GET", "/api/v1/logs/current")

    assert json.loads(answer.text.splitlines()[0])["level"]
    assert set(answer.text.splitlines()[:2]) <= set(configured.log.splitlines())


# A server as it comes


def test_a_server_for_everyone_warns_and_opens_no_browser(tmp_path: Path) -> None:
    env = {"BROWSER": make_browser(tmp_path), "PIPELINE": "passthrough"}

    with started(tmp_path, env, "-N", "--host", "0.0.0.0") as server:
        status = server.client.request("GET", "/api/v1/pipeline/status").json()
        code = server.stop(signal.SIGINT, within_s=5)

    assert (status["status"], status["loading_pipeline_id"]) == ("loading", "passthrough")
    assert "Bound to 0.0.0.0: everyone who can reach this address can use the server" in server.log
    assert f"page: http://localhost:{server.port}" in server.log
    assert "hypercorn.access" not in server.log
    assert not (tmp_path / "opened").exists()
    assert {"models", "models/lora", "assets", "logs", "engines"} <= directories(tmp_path)
    assert code == 0


def test_a_server_with_a_token_tells_how_to_open_the_page(tmp_path: Path) -> None:
    env = {"BROWSER": make_browser(tmp_path), "WANSTREAM_TOKEN": "correct-horse"}

    with started(tmp_path, env, "--host", "0.0.0.0") as server:
        server.stop(within_s=5)

    assert f"Open http://localhost:{server.port}/?token=" in server.log
    assert not (tmp_path / "opened").exists()
    assert "correct-horse" not in server.log
    assert "Bound to 0.0.0.0" not in server.log


DEAD_NAME_SERVER = """
import socket, time
look_up = socket.getaddrinfo
def look_up_names_in_vain(host, *rest, **options):
    if "turn.fastrtc.org" in str(host):
        print("asked", flush=True)
        time.sleep(60)
    return look_up(host, *rest, **options)
socket.getaddrinfo = look_up_names_in_vain
"""


async def test_a_dead_name_server_does_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEAD_NAME_SERVER)

    with started(tmp_path, {"PYTHONPATH": str(tmp_path), "HF_TOKEN": "hf_x"}, "-N") as server:
        await until(lambda: "asked" in server.log, 30, "a look-up of the credential service")
        code = server.stop(signal.SIGTERM, within_s=20)

    assert code == 0


async def test_reload_starts_again_with_the_changed_source(tmp_path: Path) -> None:
    tree, home = tmp_path / "a tree", tmp_path / "home"
    for name in ("gateway", "streaming", "model_repository"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    syphon = tree / "gateway" / "local_video" / "syphon.py"
    with started(home, {}, "--reload", directory=tree) as server:
        before = syphon_reason(server)
        syphon.write_text(syphon.read_text().replace("is only available on", "is still only available on"))
        await until(lambda: "still" in syphon_reason(server), 60, "restart")
        code = server.stop(within_s=10)

    assert before == "Syphon is only available on macOS"
    assert code == 0


def syphon_reason(server: ServerProcess) -> str:
    """A text of gateway/local_video/syphon.py; empty while the server is being started again."""
    try:
        answer = server.client.request("GET", "/api/v1/hardware/info", timeout_s=5)
    except OSError:
        return ""
    return str(answer.json()["syphon"]["reason"])
