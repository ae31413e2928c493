"""What the images of docker/ are made of, and what they run. tests/containers builds them."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dockerfile_parse import DockerfileParser

from gateway.embedded.installation import TritonInstallation
from gateway.embedded.plain_paths import PlainPaths
from tests.containers.services import compose
from tests.server.camera import NumberedCamera
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import wait_status
from tests.server.peer import Peer, numbers_of, until
from tests.server.processes import ServerProcess, clean_environment, free_port

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which mypy brings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
HOME = "/data"


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """(instruction, value) of each stage of the Dockerfile, by the stage's name."""
    found: dict[str, list[tuple[str, str]]] = {}
    stage: list[tuple[str, str]] = []
    with (DOCKER / "Dockerfile").open("rb") as file:
        for entry in DockerfileParser(fileobj=file).structure:
            if entry["instruction"] == "FROM":
                stage = found[entry["value"].rpartition(" AS ")[2]] = []
            stage.append((entry["instruction"], entry["value"]))
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of the compose file; variables have their defaults."""
    return compose()


def value(stage: list[tuple[str, str]], instruction: str) -> str:
    """The value of an instruction that a stage has once."""
    (found,) = (value for name, value in stage if name == instruction)
    return found


# The files


def test_the_linters_have_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    scripts = sorted(DOCKER.glob("*.sh"))
    syntax = [subprocess.run(["sh", "-n", path], capture_output=True, text=True).stderr for path in scripts]

    assert (said.stdout + said.stderr, said.returncode) == ("", 0)
    assert set(syntax) == {""}


@pytest.mark.parametrize(
    ("arguments", "suffix", "options"),
    [([], "", ""), (["tensorrt", "--system-site-packages"], "[tensorrt]", " --system-site-packages")],
)
def test_the_wheel_is_installed_with_its_extra(
    arguments: list[str], suffix: str, options: str, tmp_path: Path
) -> None:
    """`python3` and `install` are noted, not run."""
    for name in ("wheel/wanstream.whl", "wheel/constraints.txt", "bin/python3", "bin/install"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{path.name} $*"\n')
        path.chmod(0o755)
    wheels = tmp_path / "wheel"
    script = shutil.copy(DOCKER / "install.sh", wheels)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "WANSTREAM_HOME": HOME}

    done = subprocess.run([script, *arguments], capture_output=True, text=True, env=environment, check=True)

    target = "--python /opt/wanstream/bin/python3"
    assert done.stdout.splitlines() == [
        f"python3 -m venv --without-pip{options} /opt/wanstream",
        f"python3 -m pip {target} install --no-cache-dir -c {wheels}/constraints.txt "
        f"{wheels}/wanstream.whl{suffix}",
        f"install -d -o 1000 -g 1000 {HOME}",
    ]


def test_what_is_copied_is_there_and_not_ignored(stages: dict[str, list[tuple[str, str]]]) -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    sources = {
        source
        for stage in stages.values()
        for name, copied in stage
        if name == "COPY" and not copied.startswith("--from=")
        for source in copied.split()[:-1]
    }

    assert lines[0] == "*"
    assert sources == {line[1:] for line in lines if line.startswith("!")}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert set(packages["wheel"]["packages"]) < sources


def test_images_install_extras_and_run_commands_that_exist(stages: dict[str, list[tuple[str, str]]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"/wheel/install\.sh (\w+)", (DOCKER / "Dockerfile").read_text())
    commands = [json.loads(value(stages["gateway"], "ENTRYPOINT"))[0]]
    commands += [json.loads(value(stages[name], "CMD"))[0] for name in ("triton", "tools")]

    assert extras == ["export", "tensorrt"]
    assert set(extras) <= project["optional-dependencies"].keys()
    assert commands == ["wanstream", "serve-triton", "wanstream-build"]
    assert {"wanstream", "wanstream-build"} <= project["scripts"].keys()
    assert ("COPY", "docker/serve-triton.sh /usr/local/bin/serve-triton") in stages["triton"]
    assert os.access(DOCKER / "serve-triton.sh", os.X_OK)
    assert value(stages["tools"], "ENTRYPOINT") == "[]"  # NVIDIA's prints a banner before what programs read
    assert 'python3 -c "import tensorrt' in value(stages["tools"], "RUN")


def test_both_sides_see_the_same_files_as_the_same_user(
    stages: dict[str, list[tuple[str, str]]], services: dict[str, Any]
) -> None:
    """The gateway tells Triton's models the paths of their engines."""
    for name in ("gateway", "triton", "demonstration", "download", "export", "tools"):
        assert services[name]["volumes"] == [f"data:{HOME}"]
    for name in ("gateway", "triton", "tools"):
        assert services[name]["build"]["target"] == name
        assert services[name]["image"] == f"wanstream-{name}:latest"
        assert any(n == "ENV" and f"WANSTREAM_HOME={HOME}" in v for n, v in stages[name])
        assert value(stages[name], "USER") == "1000:1000"


def test_all_images_are_of_one_release(
    stages: dict[str, list[tuple[str, str]]], services: dict[str, Any]
) -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    default = re.search(r"^ARG RELEASE=(\d\d\.\d\d)$", dockerfile, re.M)

    assert default is not None
    built = [service["build"] for service in services.values() if "build" in service]
    assert {build["args"]["RELEASE"] for build in built} == {default[1]}
    for name, image in (("triton", "tritonserver"), ("tools", "tensorrt")):
        assert value(stages[name], "FROM") == f"nvcr.io/nvidia/{image}:${{RELEASE}}-py3 AS {name}"
    assert f"| {default[1]} |" in (ROOT / "docs" / "docker.md").read_text()


def test_the_services_have_what_they_need(services: dict[str, Any]) -> None:
    triton, gateway = services["triton"], services["gateway"]
    (gpu,) = triton["deploy"]["resources"]["reservations"]["devices"]

    assert (gpu["driver"], gpu["capabilities"], gpu["device_ids"]) == ("nvidia", ["gpu"], ["0"])
    assert services["tools"]["deploy"] == triton["deploy"]
    assert triton["shm_size"] == "4gb"
    assert all(str(port).startswith("127.0.0.1:") for port in triton["ports"])
    assert gateway["network_mode"] == "host"
    assert gateway["depends_on"]["triton"]["condition"] == "service_healthy"
    assert gateway["depends_on"]["demonstration"]["condition"] == "service_completed_successfully"
    assert "profiles" not in {**triton, **gateway, **services["demonstration"]}  # `up` starts all three
    drain_s = int(gateway["environment"]["WANSTREAM_DRAIN_S"])
    assert seconds(gateway["stop_grace_period"]) >= drain_s + 10
    assert seconds(triton["stop_grace_period"]) >= 15  # Triton itself waits 10 s for its requests
    for name in ("download", "export", "tools"):
        assert services[name]["profiles"] == ["tools"]
    assert "deploy" not in {**services["export"], **services["download"], **services["demonstration"]}


def test_every_service_is_confined_and_its_output_bounded(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert set(service.get("cap_add", ())) <= {"NET_BIND_SERVICE"}
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"]["max-size"]
        assert "privileged" not in service


def test_ports_and_names_are_free_to_choose_for_a_second_pair() -> None:
    triton_ports = {"TRITON_GRPC_PORT": 9001, "TRITON_METRICS_PORT": 9002}
    others = {"SITE": "localhost:9443", "HTTP_PORT": 9080, "TURN_PORT": 9478, "TURN_RELAY_PORTS": "9500-9509"}
    services = compose({"PORT": 9000, "GPU": 1, **triton_ports, **others})
    environment = services["gateway"]["environment"]

    assert services["triton"]["ports"] == ["127.0.0.1:9001:8001", "127.0.0.1:9002:8002"]
    assert services["triton"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["1"]
    assert environment["WANSTREAM_TRITON_URL"] == "127.0.0.1:9001"
    assert environment["WANSTREAM_TRITON_METRICS_URL"] == "http://127.0.0.1:9002/metrics"
    assert services["gateway"]["command"][-2:] == ["--port", "9000"]
    assert services["tls"]["environment"]["UPSTREAM"] == "127.0.0.1:9000"
    given = services["tls"]["environment"] | services["turn"]["environment"]
    assert {name: given[name] for name in others} == {name: str(port) for name, port in others.items()}


def test_the_example_of_settings_names_variables_that_exist() -> None:
    example = (DOCKER / ".env.example").read_text()
    names = re.findall(r"^#(\w+)=", example, re.M)
    known = (DOCKER / "compose.yaml").read_text() + (ROOT / "docs" / "operations.md").read_text()

    assert len(names) > 10
    assert [name for name in names if name not in known and name != "COMPOSE_PROJECT_NAME"] == []
    assert re.findall(r"^\w+=", example, re.M) == []  # nothing is set, above all no password


def test_secrets_reach_only_what_needs_them(services: dict[str, Any]) -> None:
    given = {name for name, service in services.items() if "env_file" in service}

    assert given == {"gateway", "download"}
    assert services["turn"]["environment"]["TURN_SECRET"] == ""


@pytest.mark.parametrize(
    ("noted", "chosen", "expected"),
    [
        (None, "", ["0:1073741824"]),
        (None, "2000", ["0:2000"]),
        ("--cuda-memory-pool-byte-size=0:4400", "", ["0:4400"]),
        ("--cuda-memory-pool-byte-size=0:4400\n--backend-config=tensorrt,a=b", "2000", ["0:2000"]),
        ("--backend-config=tensorrt,a=b", "", ["0:1073741824"]),
        ("", "", ["0:1073741824"]),
    ],
    ids=str,
)
def test_triton_gets_the_memory_that_the_plans_need(
    noted: str | None, chosen: str, expected: list[str], tmp_path: Path
) -> None:
    """A program in Triton's place says what it was started with."""
    engines = tmp_path / "engines"
    engines.mkdir()
    if noted is not None:
        (engines / "server_options").write_text("".join(f"{line}\n" for line in noted.splitlines()))
    for name, text in (("tritonserver", 'printf "%s\\n" "$@"'), ("python3", "echo /models")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "WANSTREAM_HOME": str(tmp_path),
        "CUDA_POOL_BYTES": chosen,
    }

    done = subprocess.run(
        ["sh", DOCKER / "serve-triton.sh", "--last"], capture_output=True, text=True, env=env, check=True
    )

    given = done.stdout.splitlines()
    pool = "--cuda-memory-pool-byte-size="
    assert [line.removeprefix(pool) for line in given if line.startswith(pool)] == expected
    assert given[-1] == "--last"
    assert ("--backend-config=tensorrt,a=b" in given) is ("a=b" in (noted or ""))


def test_the_relay_starts_only_with_a_secret_which_no_command_line_shows(tmp_path: Path) -> None:
    """coturn in place of the image's; it says what it was configured to."""
    program = tmp_path / "turnserver"
    program.write_text('#!/bin/sh\necho "$*"\ncat "$2"\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TURN_EXTERNAL_IP": "192.0.2.1"}
    env["TURN_RELAY_PORTS"] = "50000-50099"
    command = ["sh", DOCKER / "serve-turn.sh"]

    refused = subprocess.run(command, capture_output=True, text=True, env=env)
    started = subprocess.run(
        command, capture_output=True, text=True, env=env | {"TURN_SECRET": "geheim"}, check=True
    )

    assert (refused.returncode, "Set WANSTREAM_TURN_SECRET" in refused.stderr) == (1, True)
    options, *lines = started.stdout.splitlines()
    assert "geheim" not in options
    assert {"static-auth-secret=geheim", "use-auth-secret", "external-ip=192.0.2.1"} < set(lines)
    assert {"min-port=50000", "max-port=50099"} < set(lines)


def seconds(duration: str) -> float:
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration).groups()  # type: ignore[union-attr]
    return 60 * int(minutes or 0) + int(rest or 0)


# What they run


def health_check(stage: list[tuple[str, str]], port: int) -> list[str]:
    """The command of a stage's health check, for another port."""
    command: list[str] = json.loads(value(stage, "HEALTHCHECK").partition("CMD")[2])
    assert command[:2] == ["python3", "-m"]
    arguments = {
        "streaming.triton.health": [str(port)],
        "gateway.health": ["wanstream", "--no-browser", "--host", "0.0.0.0", "--port", str(port)],
    }
    return [sys.executable, *command[1:], *arguments[command[2]]]


async def is_healthy(command: list[str]) -> bool:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0


@pytest.fixture
def container(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that an image gives: its commands on PATH, its home, Triton with its backends."""
    installation = TritonInstallation.find()
    commands, backend = tmp_path / "bin", tmp_path / "backends" / "python"
    for directory in (commands, backend):
        directory.mkdir(parents=True)
    (commands / "serve-triton").symlink_to(DOCKER / "serve-triton.sh")
    (commands / "tritonserver").symlink_to(installation.server)
    for source in (*installation.backend.iterdir(), installation.stub):
        (backend / source.name).symlink_to(source)
    home = tmp_path / "dåta (1)"
    with PlainPaths("wanstream-test-") as paths:
        env = installation.environment(clean_environment(home), paths)
        env["PATH"] = f"{commands}{os.pathsep}{env['PATH']}"
        yield env
    shutil.rmtree(home, ignore_errors=True)


@contextlib.asynccontextmanager
async def running(command: list[str], env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_caddy_serves_the_page_by_https_and_the_cookie_stays_there(tmp_path: Path) -> None:
    """Caddy itself, with the file and the variables of the profile `tls`."""
    server = DoubleProcess(tmp_path, {"WANSTREAM_TOKEN": "geheim", "WANSTREAM_TRUSTED_PROXIES": "127.0.0.1"})
    http, https = free_port(), free_port()
    service = compose({"PORT": server.port, "HTTP_PORT": http, "SITE": f"localhost:{https}"})["tls"]
    env = os.environ | service["environment"] | {"XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    caddy = str(Path(sys.executable).with_name("caddy"))
    command = [caddy, "run", "--config", str(DOCKER / "Caddyfile"), "--adapter", "caddyfile"]
    authority = tmp_path / "caddy/pki/authorities/local/root.crt"

    async def has_its_certificate() -> bool:
        with contextlib.suppress(OSError):
            context = ssl.create_default_context(cafile=authority)
            _, writer = await asyncio.open_connection("localhost", https, ssl=context)
            writer.close()
            return True
        return False

    try:
        async with running(command, env):
            await until(has_its_certificate, 30, "Caddy has its certificate")
            context = ssl.create_default_context(cafile=authority)
            async with httpx.AsyncClient(verify=context, trust_env=False, timeout=30) as client:
                page = await client.get(f"https://localhost:{https}/?token=geheim")
                status = await client.get(f"https://localhost:{https}/api/v1/pipeline/status")
                plain = await client.get(f"http://localhost:{http}/")
    finally:
        await asyncio.to_thread(server.stop)

    assert page.status_code == 200
    assert "Secure" in page.headers["set-cookie"]
    assert status.status_code == 200  # the cookie came along
    assert plain.headers["location"].startswith(f"https://localhost:{https}")
    assert "geheim" not in server.log


async def test_the_gateway_s_image_streams_through_triton_s(
    stages: dict[str, list[tuple[str, str]]],
    services: dict[str, Any],
    container: dict[str, str],
    tmp_path: Path,
) -> None:
    """Both commands as the compose file gives them, but for ports and the place of Triton's backends."""
    http, grpc, home = free_port(), free_port(), Path(container["WANSTREAM_HOME"])
    check = health_check(stages["triton"], http)
    command = [*services["triton"]["command"], f"--backend-directory={tmp_path / 'backends'}"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", "--allow-metrics=false"]
    before = await is_healthy(check)

    async with running(command, container) as triton:
        await until(lambda: is_healthy(check), 30, "Triton healthy")
        env = {"WANSTREAM_TRITON_URL": f"127.0.0.1:{grpc}"}
        gateway = ServerProcess("gateway", home, env, json.loads(value(stages["gateway"], "CMD")))
        try:
            gateway_check = health_check(stages["gateway"], gateway.port)
            gateway_healthy = await is_healthy(gateway_check)
            await gateway.client.call(
                "POST", "/api/v1/pipeline/load", json_body={"pipeline_id": "passthrough"}
            )
            await wait_status(gateway.client, "loaded")
            async with Peer(gateway.client, source=NumberedCamera()) as peer:
                await peer.connect({"input_mode": "video"})
                frames = await peer.wait_frames(5)
            healthy_with_a_model = await is_healthy(check)
        finally:
            gateway.stop()
        triton.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(triton.wait(), 30)

    assert not before
    assert gateway_healthy
    assert healthy_with_a_model
    assert numbers_of(frames)
    assert (home / "engines" / "models").is_dir()
    assert code == 0
    assert not await is_healthy(gateway_check)
