"""One server of the embedded model in a thread of the tests, and clients of it."""

from __future__ import annotations

import threading

import httpx2
import pytest

from transformer2 import tiny


class Served:
    """A server under way, and its insides."""

    def __init__(self, model, **options):
        from transformer2.serving.app import create_app
        from transformer2.serving.run import address, bind, run

        bound, ready = bind("127.0.0.1", 0), threading.Event()
        self.model, self.app, self.url = model, create_app(model, **options), address(bound)
        self.engine = self.app.state.engine

        def up(stop):
            self.stop = stop
            ready.set()

        self.thread = threading.Thread(target=run, args=(self.app, bound, up))
        self.thread.start()
        assert ready.wait(60)

    def client(self, kind="sync", **options):
        import openai

        options = {"api_key": "none", "max_retries": 0, "timeout": 120, **options}
        return (openai.AsyncOpenAI if kind == "async" else openai.OpenAI)(base_url=f"{self.url}/v1", **options)

    def get(self, path, **headers):
        return httpx2.get(f"{self.url}{path}", headers=headers)

    def post(self, path, body, **headers):
        return httpx2.post(f"{self.url}{path}", content=body, headers={"content-type": "application/json", **headers})

    def close(self):
        self.stop()
        self.thread.join()


@pytest.fixture(scope="session")
def model():
    from transformer2.adaptive.model import SelfAdaptive

    return SelfAdaptive.from_pretrained("tiny", strategy="scores", max_rows=16)


@pytest.fixture
def serve(model):
    """Starts servers with options; they end with the test."""
    running = []

    def start(**options):
        running.append(Served(options.pop("model", model), **options))
        return running[-1]

    yield start
    for served in running:
        served.close()


@pytest.fixture(scope="module")
def served(model):
    served = Served(model, hosts=("127.0.0.1", "localhost"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def client(served):
    return served.client()


@pytest.fixture
def copies(tmp_path):
    """A folder with an expert in it, and a link that leads out."""
    from transformer2.experts import load_experts, save_expert

    (expert,) = load_experts([tiny.expert_path("math")])
    save_expert(expert, tmp_path / "root" / "runs" / "sums")
    save_expert(expert, tmp_path / "outside")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "root"
