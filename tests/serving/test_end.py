"""The command: it says where it listens, keeps its memory, and SIGTERM loses no answer that is under way."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from transformer2 import tasks
from transformer2.cli import main

openai = pytest.importorskip("openai", reason="nox -s serve installs it")
pytestmark = pytest.mark.serve


@pytest.fixture
def start():
    running = []

    def begin(*args, **environment):
        path = os.pathsep.join(p for p in sys.path if p)
        process = subprocess.Popen(
            [sys.executable, "-m", "transformer2", "serve", "--port", "0", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        )
        running.append(process)
        line = process.stdout.readline()
        assert line.startswith("serving auto, base, math, code, reasoning at http://127.0.0.1:"), process.communicate()
        return process, line.split()[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_memory_stays_over_2000_requests(start):
    process, url = start("--max_rows", "16")
    questions = [e.question for name in ("tiny_math", "tiny_code") for e in tasks.get(name).examples("test")[:32]]
    names = ["auto", "base", "math", "code", "mix:math=0.6,code=0.9"]

    def resident():
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096

    async def some(count):
        slots = asyncio.Semaphore(16)

        async def one(i):
            messages = [{"role": "user", "content": questions[i % len(questions)]}]
            options = {"model": names[i % len(names)], "messages": messages, "max_tokens": 4, "temperature": 0}
            async with slots:
                answer = await client.chat.completions.create(stream=i % 2 == 0, **options)
                if i % 2 == 0:
                    async for _ in answer:
                        if i % 8 == 0:  # leaves
                            break
                    await answer.close()

        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=300) as client:
            await asyncio.gather(*(one(i) for i in range(count)))

    asyncio.run(some(500))
    before = resident()
    asyncio.run(some(2000))
    print(f"resident memory: {before / 1e6:.0f} MB before, {resident() / 1e6:.0f} MB after 2,000 requests")
    assert resident() - before < 16e6


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(start):
    process, url = start(TRANSFORMER2_API_KEY="s3cret")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0, timeout=120)
    options = {"model": "base", "prompt": [5, 6, 7], "temperature": 0, "max_tokens": 120, "n": 32}
    expected = [choice.text for choice in client.completions.create(**options).choices]
    got, begun = {}, threading.Barrier(9)

    def stream(i):
        found = {}
        chunks = client.completions.create(stream=True, **options)
        for count, chunk in enumerate(chunks):
            if count == 0:
                begun.wait()
            choice = chunk.choices[0]
            text, ended = found.get(choice.index, ("", None))
            found[choice.index] = text + choice.text, choice.finish_reason or ended
        got[i] = found

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    host, port = url.removeprefix("http://").split(":")
    half = socket.create_connection((host, int(port)))  # a request that never becomes whole keeps nobody
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret\r\n")
    half.sendall(b"Content-Length: 100\r\nContent-Type: application/json\r\n\r\n{")
    process.send_signal(signal.SIGTERM)
    refused = None
    while refused is None:  # from the signal on
        try:
            client.completions.create(**{**options, "n": 1, "max_tokens": 1})
        except openai.InternalServerError as e:
            refused = e
        except openai.APIConnectionError:
            break  # all answers were out already
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    for found in got.values():
        assert [found[i][0] for i in range(32)] == expected and all(reason for _, reason in found.values())
    assert len(got) == 8
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "finishing" in out and "s3cret" not in out + err
    if refused is not None:
        assert refused.status_code == 503 and refused.code == "shutting_down"


def test_a_second_signal_ends_at_once(start):
    process, url = start()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    stream = client.completions.create(model="base", prompt="f", n=64, temperature=1.9, max_tokens=120, stream=True)
    next(iter(stream))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("finishing")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode == 130 and "cut off" in err) or process.returncode == 0


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--port", "70000"], "--port"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--host", "a..b"], "cannot listen"),
        (["--host", "x" * 300], "cannot listen"),
        (["--max_queue", "-1"], "--max_queue"),
        (["--experts_dir", "/nowhere"], "--experts_dir"),
        (["--api_key", "a\nb"], "API key"),
        (["--api-key", "x"], "--api_key"),
        (["--strategy", "score"], "did you mean"),
    ],
)
def test_what_cannot_be_served_is_one_line(args, named, capsys):
    assert main(["serve", *args]) == 2
    assert named in capsys.readouterr().err


def test_an_address_that_is_taken_is_said_before_the_model_is_loaded(capsys, served):
    assert main(["serve", "--port", served.url.rpartition(":")[2]]) == 2
    assert "--port 0" in capsys.readouterr().err
