"""Rollouts by vLLM, in another process: the trainer sends z and prompts, and gets tokens back.

    sync z        z - 1 alone, 4 bytes per singular value; the server keeps W and P and composes W' itself
    sync merged   the composed weights, in packets

Pictures go with their prompts, in which the server puts their tokens: the same as ours, or the run is refused.

Either way the server gets what has changed since the last time, and what vLLM fuses with it. Its kernels round
otherwise than the trainer's, so its log-probabilities come back with the tokens: their difference from the trainer's
own is logged, and can be corrected for (rl/loss.py, `importance_weights`).
"""

from __future__ import annotations

import base64
import io
import os
import socket
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from transformer2.errors import ConfigError, DataError, UserError
from transformer2.pictures import Picture
from transformer2.rollout.base import RolloutEngine, Sampling, check_no_rows, prompt_ids
from transformer2.rollout.server import Client, Refused, Server, VLLMOptions
from transformer2.rollout.weights import active_deltas, composed, weights_and_bases
from transformer2.seeds import seed_at
from transformer2.svf.layer import tuned_layers
from transformer2.svf.quantised import quantisation_name
from transformer2.types import PromptBatch, Rollouts
from transformer2.vision import as_image_ids, pictures_in, pictures_of

VERSION = 2  # of on_server/transformer2_worker.py
MEMORY_BACKED = Path("/dev/shm")


class VLLMEngine(RolloutEngine):
    """Sampling on a vLLM server.

    Args:
        tokenizer: See RolloutEngine.
        eos_ids: See RolloutEngine.
        base: Folder or Hub id of the base model, for a server that is started here.
        policy: The policy, an SVF adapter on an unquantised base.
        options: See VLLMOptions.
        share: Gives every rank the objects of all ranks, in rank order. Rank 0 owns the server and sends the weights.
        rank: This process.
        stop: See RolloutEngine.

    Raises:
        ConfigError: Another adapter, a quantised base, or no vLLM to start.
        UserError: The server does not answer, or does not know the worker extension.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Iterable[int],
        base: str,
        policy: PeftModel,
        options: VLLMOptions,
        share: Callable[[Any], list[Any]] = lambda mine: [mine],
        rank: int = 0,
        stop: Iterable[str | int] = (),
    ) -> None:
        super().__init__(tokenizer, eos_ids, stop)
        self.options, self.share, self.is_sender = options, share, rank == 0
        _check_policy(policy, options)
        if options.url is None and len(set(share(socket.gethostname()))) > 1:
            raise ConfigError(
                "several machines need one vLLM server that all of them reach: name it with model.vllm.url"
            )
        self.server = None
        if options.url is None and self.is_sender:
            dtype = str(policy.dtype).removeprefix("torch.")
            takes_pictures = pictures_of(policy) is not None
            self.server = Server(options, base, dtype, on_gpu=torch.cuda.is_available(), pictures=takes_pictures)
            weakref.finalize(self, self.server.stop)
        url = self.server.url if self.server else options.url
        self.client = Client(str(share(url)[0]), options.timeout_minutes)
        self._check()
        self.model = self.client.request("/v1/models")["data"][0]["id"]
        self._pool = ThreadPoolExecutor(options.concurrency)
        self._sent: dict[str, Tensor] = {}  # z - 1 by module, as the server has it
        self._salt = ""  # of the server's prefix cache; another one for other weights
        if self.is_sender:
            self._call("svf_start")
        if options.sync == "z":
            with torch.no_grad():  # now: later on DeepSpeed has shards under way that cannot be gathered
                self._send("svf_keep", weights_and_bases(policy, tuned_layers(policy), wanted=self.is_sender))

    def generate(self, policy: nn.Module, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
        """See `RolloutEngine.generate`.

        Raises:
            UserError: The server refuses or does not answer.
            DataError: A picture cannot be read, or the server makes other tokens of it.
        """
        self.sync(policy)
        row_ids = prompts.row_ids or range(len(prompts))
        common = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # A server may have defaults for what is not said, from the model's generation_config.json.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": self.eos_ids,
            "stop": self.stop,
            "logprobs": 0,  # of the sampled token alone
        }
        if (inputs := pictures_of(policy)) is not None:
            common["logit_bias"] = {str(i): -100.0 for i in inputs.banned}  # the most that vLLM takes
        # A request for each row: rows of one request would share their random numbers.
        requests = [
            (ids, {**common, "seed": seed_at(seed, row) % 2**63})
            for ids, row in zip(prompt_ids(prompts), row_ids, strict=True)
        ]
        with self._last_words():
            answers = list(self._pool.map(lambda request: self._complete(*request), requests))
        return self.packed(prompts, [ids for ids, _ in answers], [logprobs for _, logprobs in answers])

    def _complete(self, ids: list[int], sampling: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        """Sampled ids and their log-probabilities for one prompt."""
        common = {"model": self.model, "cache_salt": self._salt, "return_token_ids": True}
        if pictures := pictures_in(ids):
            return self._complete_with(pictures, ids, {**common, "sampling_params": sampling})
        (choice,) = self.client.request("/v1/completions", {**common, **sampling, "prompt": ids})["choices"]
        if choice.get("token_ids") is None:
            raise UserError("this vLLM server returns no token ids; it needs vLLM >= 0.11")
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    def _complete_with(
        self, pictures: Sequence[Picture], ids: list[int], request: Mapping[str, Any]
    ) -> tuple[list[int], list[float]]:
        """The same where there are pictures, of which the server makes tokens itself."""
        image_id = self.tokenizer.family.image_id
        # A name for these weights: workers forget features with the old ones, and the scheduler does not.
        parts = [
            {"type": "image_url", "url": _data_url(picture), "uuid": f"{self._salt}-{picture.digest()}"}
            for picture in pictures
        ]
        sent = {"token_ids": as_image_ids(ids, image_id, once=True), "content_parts": parts}
        try:
            answer = self.client.request("/inference/v1/generate", {**request, **sent})
        except Refused as e:
            raise UserError(f"{e}; pictures need vLLM >= 0.32 with --enable-scale-out (docs/rollouts.md)") from e
        if (read := answer.get("prompt_token_ids")) != as_image_ids(ids, image_id):
            raise DataError(
                f"a prompt with picture {pictures[0].name} has {len(ids):,} tokens here and "
                f"{len(read or ()):,} in vLLM, which reads pictures otherwise; use model.rollout: hf"
            )
        (choice,) = answer["choices"]
        return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """Whatever ends the run ends the server, and with it the threads that wait for it; a failure quotes its log."""
        try:
            yield
        except BaseException as e:
            self._pool.shutdown(wait=False, cancel_futures=True)
            if self.server is None:
                raise
            failed = isinstance(e, UserError) and not isinstance(e, DataError)
            said = self.server.stop(keep_log=failed)
            if failed:
                raise UserError(f"vLLM failed: {said}; its log is {self.server.log}") from e
            raise

    # ------------------------------------------------------------------ weights

    @torch.no_grad()
    def sync(self, policy: nn.Module) -> None:
        """Send the server what has changed of the policy's z.

        Raises:
            UserError: Rows have z of their own (`z_rows`), or the server refuses.
        """
        check_no_rows(policy)
        layers = tuned_layers(policy)
        now = active_deltas(layers)
        changed = {name: d for name, d in now.items() if name not in self._sent or not torch.equal(d, self._sent[name])}
        if changed:
            with self._last_words():
                if self.options.sync == "z":
                    self._send("svf_set", iter([changed]))
                elif self.is_sender:
                    self._send("svf_load", composed(policy, layers, now, changed))
            self._sent.update(changed)
            self._salt = uuid.uuid4().hex
        self.share(None)  # no rank samples before the weights are there

    def _send(self, method: str, parts: Iterator[dict[str, Tensor]]) -> None:
        """Pass on parts in packets of about `bucket_mib`; a part is not divided, since what is loaded comes whole."""
        bucket: dict[str, Tensor] = {}
        for part in parts:
            size = sum(t.nbytes for t in (*bucket.values(), *part.values()))
            if bucket and size > self.options.bucket_mib * 2**20:
                self._post(method, bucket)
                bucket = {}
            bucket |= part
        if bucket and self.is_sender:
            self._post(method, bucket)

    def _post(self, method: str, bucket: dict[str, Tensor]) -> None:
        data = save({name: value.to("cpu").contiguous() for name, value in bucket.items()})
        memory_backed = str(MEMORY_BACKED) if MEMORY_BACKED.is_dir() else tempfile.gettempdir()
        folder = self.options.shared_folder or (None if self.options.url else memory_backed)
        if folder is None or method == "svf_set":
            self._call(method, base64.b64encode(data).decode(), "data")
            return
        path = Path(folder).resolve() / f"transformer2-{uuid.uuid4().hex}.safetensors"
        try:
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as f:
                f.write(data)
            self._call(method, str(path), "file")
        except OSError as e:
            raise UserError(
                f"{folder} has no room for {len(data) >> 20} MiB ({e.strerror}); set model.vllm.shared_folder "
                "to another folder, or lower model.vllm.bucket_mib"
            ) from e
        finally:
            path.unlink(missing_ok=True)

    def _call(self, method: str, *args: str) -> Any:
        return self.client.request("/collective_rpc", {"method": method, "args": list(args)})

    def _check(self) -> None:
        """Ask the worker which protocol it speaks."""
        how = (
            f"start the server at {self.client.url} with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls "
            "transformer2_worker.SVFWorker (docs/rollouts.md)"
        )
        try:
            versions = self._call("svf_version")["results"]
        except Refused as e:
            raise UserError(f"the server takes no new z; {how}") from e
        if any(version != [VERSION] for version in versions):
            raise UserError(f"the server's worker extension is of another version; {how}")


def _check_policy(policy: PeftModel, options: VLLMOptions) -> None:
    layers = tuned_layers(policy)
    if not layers:
        raise ConfigError("rollouts by vLLM need an SVF adapter; use model.rollout: hf for other adapters")
    if (name := quantisation_name(policy)) is not None:
        raise ConfigError(f"rollouts by vLLM need an unquantised base, and this one is {name}; use model.rollout: hf")
    first: dict[Any, str] = {}
    for path, layer in layers.items():
        other = first.setdefault(layer.base_layer.weight, path)
        if other != path:
            raise ConfigError(
                f"{other} and {path} share one weight, which can hold one z on a server; use model.rollout: hf"
            )
    if options.sync == "merged" and any(hasattr(layer.svf_basis, "ds_id") for layer in layers.values()):
        raise ConfigError("model.vllm.sync: merged would gather every weight for every step; under ZeRO-3 use z")


def _data_url(picture: Picture) -> str:
    """The pixels that the trainer's model sees, whatever the file's orientation, mode and transparency."""
    buffer = io.BytesIO()
    picture.open().save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
