"""What tests of publishers and players ask the server."""

from tests.server.client import HttpClient
from tests.server.peer import until


async def metric(client: HttpClient, name: str) -> float:
    """Sum of all samples whose names begin like that; a probe needs no token."""
    text = (await client.call("GET", "/metrics")).text
    values = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)]
    assert values, f"no metric {name}"
    return sum(values)


async def offers_refused(client: HttpClient, reason: str) -> float:
    return await metric(client, f'wanstream_offers_refused_total{{reason="{reason}"}}')


async def publishers(client: HttpClient) -> float:
    return await metric(client, "wanstream_publishers")


async def no_publishers(client: HttpClient) -> None:
    """Wait until the last one has left."""

    async def gone() -> bool:
        return not await publishers(client)

    await until(gone, 30, "no publishers left")


async def arriving(client: HttpClient, pictures: int = 3) -> None:
    """Wait until some more pictures have come in."""
    name = "wanstream_frames_in_total"
    before = await metric(client, name)

    async def came() -> bool:
        return await metric(client, name) >= before + pictures

    await until(came, 30, f"{pictures} pictures from a publisher")
