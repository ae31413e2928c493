"""Start Triton, print the ids of its processes, stream until killed. `python -m ... <model repository>`"""

import asyncio
import sys
from pathlib import Path

from tests.server.triton_fixtures import SCRIPTED, ModelClient, model_processes, running_triton


async def main(repository: Path) -> None:
    async with running_triton(repository) as triton, ModelClient(triton, SCRIPTED) as client:
        await client.load()
        await client.start(1, groups=100_000, delay_s=0.01)
        stream = client.stream(1, client.command(1))
        await stream.__anext__()
        pids = [triton.pid, *(process.pid for process in model_processes(triton.pid))]
        sys.stdout.write(" ".join(map(str, pids)) + "\n")
        sys.stdout.flush()
        async for _ in stream:
            pass


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
