"""`transformer2 serve` under load: a batch of requests over experts, one at a time, and one base model without any.

    pip install -e '.[serve]' openai && python benchmarks/run.py serve

64 chats over three experts, a mixture and the base arrive at random (exponential gaps) at a server of its own process.
In turn, in every round: (a) the same chats one at a time, (b) the same chats all for the base at `transformers serve`,
which has no experts, with and without its continuous batching; the faster counts. A server's speed is the completion
tokens that it says it drew over the CPU seconds of its process, which neither its neighbours nor idle waits change.
The first pass of `scores` is measured beside the tokens of its own answers, one request at a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from _common import Row

from transformer2 import tasks, tiny

NAMES = (*tiny.EXPERTS, "mix:math=0.5,code=0.5", "base")
GAP = 0.01  # seconds between arrivals, on average
ANSWER = 64


class Server:
    """A server in a process of its own."""

    def __init__(self, name: str, command: list[str], model: str | None = None) -> None:
        self.name, self.model = name, model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        words = [sys.executable, "-m", *command, "--port", str(self.port)]
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{self.port}/health").is_success:
                    return
            except httpx2.TransportError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise RuntimeError(f"{name} did not start: {self.log.read().decode()[-2000:]}")
            time.sleep(0.2)

    def cpu_seconds(self) -> float:
        """Of its process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def ask(self, client: httpx2.AsyncClient, question: str, name: str, tokens: int) -> dict[str, Any]:
        """The answer to one chat."""
        body = {"model": self.model or name, "messages": [{"role": "user", "content": question}], "max_tokens": tokens}
        response = await client.post(
            f"http://127.0.0.1:{self.port}/v1/chat/completions", json={**body, "temperature": 0}, timeout=600
        )
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    def load(self, asked: list[tuple[str, str]], at_once: int, tokens: int = ANSWER) -> tuple[float, float]:
        """Completion tokens per CPU second of the server, and per second."""
        rng = random.Random(0)
        arrivals = [rng.expovariate(1 / GAP) for _ in asked]

        async def everybody() -> list[dict[str, Any]]:
            slots = asyncio.Semaphore(at_once)
            limits = httpx2.Limits(max_connections=None)

            async with httpx2.AsyncClient(limits=limits) as client:

                async def one(question: str, name: str, start: float) -> dict[str, Any]:
                    await asyncio.sleep(start)
                    async with slots:
                        return await self.ask(client, question, name, tokens)

                starts = [sum(arrivals[: i + 1]) for i in range(len(asked))]
                return await asyncio.gather(*(one(*a, s) for a, s in zip(asked, starts, strict=True)))

        cpu, start = self.cpu_seconds(), time.perf_counter()
        answers = asyncio.run(everybody())
        drawn = sum(answer["usage"]["completion_tokens"] for answer in answers)
        return drawn / max(self.cpu_seconds() - cpu, 0.01), drawn / (time.perf_counter() - start)

    def first_pass(self, asked: list[tuple[str, str]]) -> float:
        """Seconds of the first pass over those of a second one of 64 tokens; the median."""

        async def alone() -> list[dict[str, Any]]:
            async with httpx2.AsyncClient() as client:
                return [await self.ask(client, question, "auto", ANSWER) for question, _ in asked]

        def share(answer: dict[str, Any]) -> float:
            seconds, drawn = answer["transformer2"]["seconds"], answer["usage"]["completion_tokens"]
            return float(seconds["first_pass"] / (seconds["second_pass"] / drawn * ANSWER))

        return statistics.median(map(share, asyncio.run(alone())))

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
        self.log.close()


@contextmanager
def _servers(toy: bool) -> Iterator[dict[str, Server]]:
    base = str(tiny.model_path())
    ours = ["transformer2", "serve", "--strategy", "scores"]
    theirs = ["transformers.cli.transformers", "serve", base]
    commands = {"ours": (ours, None), "theirs": (theirs, base)}
    if not toy:
        commands["theirs, continuous batching"] = ([*theirs, "--continuous-batching"], base)
    running: dict[str, Server] = {}
    try:
        for name, (command, model) in commands.items():
            running[name] = Server(name, command, model)
        yield running
    finally:
        for server in running.values():
            server.close()


def measure(toy: bool = False) -> list[Row]:
    count, rounds, tokens = (4, 1, 4) if toy else (64, 2, ANSWER)
    questions = [
        example.question
        for name in ("tiny_math", "tiny_code", "tiny_reasoning")
        for example in tasks.get(name).examples("test")[: 1 + count // 3]
    ]
    random.Random(1).shuffle(questions)
    asked = [(question, NAMES[i % len(NAMES)]) for i, question in enumerate(questions[:count])]
    found: dict[str, list[tuple[float, float]]] = {}
    with _servers(toy) as servers:
        ways = {name: (server, count) for name, server in servers.items()} | {"one at a time": (servers["ours"], 1)}
        for _ in range(rounds + 1):  # the first one warms up
            for name, (server, at_once) in ways.items():
                found.setdefault(name, []).append(server.load(asked, at_once, tokens))
        share = servers["ours"].first_pass(asked[: 4 if toy else 32])
    speeds = {name: [cpu for cpu, _ in rows[1:]] for name, rows in found.items()}
    walls = {name: statistics.median(wall for _, wall in rows[1:]) for name, rows in found.items()}
    best = max((name for name in speeds if name.startswith("theirs")), key=lambda name: statistics.median(speeds[name]))

    def ratio(to: str) -> float:
        return statistics.median(a / b for a, b in zip(speeds["ours"], speeds[to], strict=True))

    noted = "; ".join(
        f"{name}: {statistics.median(s):.0f} tokens per CPU second, {walls[name]:.0f} per second"
        for name, s in speeds.items()
    )
    return [
        Row(
            f"{count} requests over 5 z / one at a time",
            ratio("one at a time"),
            at_least=4.0,
            note=noted,
        ),
        Row("the same / all at one base model's `transformers serve`", ratio(best), at_least=0.7, note=f"{best}"),
        Row("first pass of `scores` / an answer of 64 tokens", 100 * share, "%", at_most=15.0, note="one at a time"),
    ]
