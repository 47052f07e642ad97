"""Posts texts to /predict over many connections: TEXTS.json ADDRESS CONNECTIONS; prints answers and seconds as JSON.

Runs in a virtual environment of its own, with tests/requirements-serving.txt.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import httpx


async def post_all(texts: list[str], address: str, num_connections: int) -> list[tuple[list, float]]:
    results: list = [None] * len(texts)
    numbers = iter(range(len(texts)))

    async def post_some() -> None:
        for number in numbers:
            start = time.perf_counter()
            response = await client.post("/predict", json={"inputs": texts[number]})
            response.raise_for_status()
            results[number] = response.json(), time.perf_counter() - start

    limits = httpx.Limits(max_connections=num_connections)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
        await asyncio.gather(*(post_some() for _ in range(num_connections)))
    return results


if __name__ == "__main__":
    texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(asyncio.run(post_all(texts, sys.argv[2], int(sys.argv[3])))))
