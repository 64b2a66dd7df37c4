"""Rollouts by vLLM, in another process: the trainer sends z and prompts, and gets tokens back.

    sync z        z - 1 alone, 4 bytes per singular value; the server keeps W and P and composes W' itself
    sync merged   the composed weights, in packets

Either way the server gets what has changed since the last time, and what vLLM fuses with it. Its kernels round
otherwise than the trainer's, so its log-probabilities come back with the tokens: their difference from the trainer's
own is logged, and can be corrected for (rl/loss.py, `importance_weights`).
"""

from __future__ import annotations

import base64
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from transformer2.errors import ConfigError, UserError
from transformer2.rollout.base import RolloutEngine, Sampling, prompt_ids, refuse_rows
from transformer2.rollout.server import Client, Server, VLLMOptions
from transformer2.svf.forms import compose_weight
from transformer2.svf.layer import SVFLayer
from transformer2.svf.model import svf_layers
from transformer2.svf.quantised import quantisation_name
from transformer2.types import PromptBatch, Rollouts

VERSION = 1  # of on_server/transformer2_worker.py
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
    ) -> None:
        super().__init__(tokenizer, eos_ids)
        self.options, self.share, self.is_sender = options, share, rank == 0
        layers = _tuned(policy)
        if not layers:
            raise ConfigError("rollouts by vLLM need an SVF adapter; use model.rollout: hf for other adapters")
        if (name := quantisation_name(policy)) is not None:
            raise ConfigError(
                f"rollouts by vLLM need the base's own weights, and this one is {name}; use model.rollout: hf"
            )
        if options.sync == "merged" and any(hasattr(layer.svf_basis, "ds_id") for layer in layers.values()):
            raise ConfigError("model.vllm.sync: merged would gather every weight for every step; under ZeRO-3 use z")
        url = options.url
        if url is None and self.is_sender:
            server = Server(options, base, str(policy.dtype).removeprefix("torch."), torch.cuda.is_available())
            url = server.url
            weakref.finalize(self, server.stop)
        self.client = Client(str(self.share(url)[0]))
        self.paths = set(self.client.get("/openapi.json")["paths"])
        self._check()
        self.model = self.client.get("/v1/models")["data"][0]["id"]
        self._pool = ThreadPoolExecutor(options.concurrency)
        self._sent: dict[str, Tensor] = {}  # z - 1 by module, as the server has it
        if options.sync == "z":
            with torch.no_grad():  # now: later on DeepSpeed has shards under way that cannot be gathered
                self._send("svf_keep", _weights_and_bases(policy, layers))

    def generate(self, policy: nn.Module, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
        """See `RolloutEngine.generate`.

        Raises:
            UserError: The server refuses or does not answer.
        """
        self.sync(policy)
        row_ids = prompts.row_ids or range(len(prompts))
        common = {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": self.eos_ids,
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        # A request for each row: rows of one request would share their random numbers.
        requests = [
            {**common, "prompt": ids, "seed": (seed * 1_000_003 + row) % 2**63}
            for ids, row in zip(prompt_ids(prompts), row_ids, strict=True)
        ]
        answers = list(self._pool.map(self._complete, requests))
        return self._packed(prompts, [ids for ids, _ in answers], [logprobs for _, logprobs in answers])

    def _complete(self, request: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        (choice,) = self.client.post("/v1/completions", request)["choices"]
        if choice.get("token_ids") is None:
            raise UserError("this vLLM server returns no token ids; it needs vLLM >= 0.11")
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    # ------------------------------------------------------------------ weights

    @torch.no_grad()
    def sync(self, policy: nn.Module) -> None:
        """Send the server what has changed of the policy's z.

        Raises:
            UserError: Rows have z of their own (`z_rows`), or the server refuses.
        """
        refuse_rows(policy)
        layers = _tuned(policy)
        now = _active_deltas(layers)
        changed = {name: d for name, d in now.items() if name not in self._sent or not torch.equal(d, self._sent[name])}
        if changed:
            if self.options.sync == "merged":
                self._send("svf_load", _composed(policy, layers, now, changed))
            else:
                self._send("svf_set", iter([changed]))
            if self.is_sender and "/reset_prefix_cache" in self.paths:  # what it caches follows from the old weights
                self.client.post("/reset_prefix_cache", {})
            self._sent.update(changed)
        self.share(None)  # no rank samples before the weights are there

    def _send(self, method: str, parts: Iterator[dict[str, Tensor]]) -> None:
        """Pass on parts in packets of about `bucket_mib`; every rank goes through them, as gathering shards needs."""
        bucket: dict[str, Tensor] = {}
        limit = self.options.bucket_mib * 2**20
        for part in parts:
            if bucket and _bytes(bucket) + _bytes(part) > limit:
                self._post(method, bucket)
                bucket = {}
            bucket |= part if self.is_sender else {}
        if bucket:
            self._post(method, bucket)

    def _post(self, method: str, bucket: dict[str, Tensor]) -> None:
        data = save({name: value.to("cpu").contiguous() for name, value in bucket.items()})
        folder = self.options.shared_folder or (None if self.options.url else _memory_backed())
        if folder is None or method == "svf_set":
            self._call(method, base64.b64encode(data).decode(), "data")
            return
        path = Path(folder) / f"transformer2-{uuid.uuid4().hex}.safetensors"
        try:
            path.write_bytes(data)
            self._call(method, str(path), "file")
        except OSError as e:
            raise UserError(
                f"{folder} has no room for {len(data) >> 20} MiB ({e.strerror}); set model.vllm.shared_folder "
                "to another folder, or lower model.vllm.bucket_mib"
            ) from e
        finally:
            path.unlink(missing_ok=True)

    def _call(self, method: str, *args: str) -> Any:
        return self.client.post("/collective_rpc", {"method": method, "args": list(args)})

    def _check(self) -> None:
        """Ask the worker which protocol it speaks."""
        how = (
            f"start the server at {self.client.url} with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls "
            "transformer2_worker.SVFWorker (docs/rollouts.md)"
        )
        if "/collective_rpc" not in self.paths:
            raise UserError(f"the server takes no new weights; {how}")
        try:
            versions = self._call("svf_version")["results"]
        except UserError as e:
            raise UserError(f"the server's workers do not know SVF; {how}") from e
        if any(version != [VERSION] for version in versions):
            raise UserError(f"the server's worker extension is of another version; {how}")


def _tuned(policy: nn.Module) -> dict[str, SVFLayer]:
    """SVF layers by their module's path in the base model, which is also its path in the checkpoint."""
    return {name.removeprefix("base_model.model."): layer for name, layer in svf_layers(policy)}


def _active_deltas(layers: Mapping[str, SVFLayer]) -> dict[str, Tensor]:
    """z - 1, fp32 (r,) on the CPU, that each layer runs under; 0 where adapters are off."""
    deltas = []
    for layer in layers.values():
        delta_R = None if layer.disable_adapters else layer.delta(layer.active_adapters)
        r = min(layer.in_features, layer.out_features)
        deltas.append(torch.zeros(r) if delta_R is None else delta_R.detach().float())
    whole = torch.cat([d.to(deltas[-1].device) for d in deltas]).cpu()  # one transfer
    return dict(zip(layers, whole.split([len(d) for d in deltas]), strict=True))


def _neighbours(policy: Any, modules: Iterable[str]) -> Iterator[tuple[str, dict[str, nn.Parameter]]]:
    """For each parent of these modules, all of its parameters by checkpoint name, without the adapters'."""
    base = policy.get_base_model()
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in modules):
        named = base.get_submodule(parent).named_parameters(prefix=parent)
        yield parent, {name.replace(".base_layer.", "."): p for name, p in named if ".svf_" not in name}


def _weights_and_bases(policy: Any, layers: Mapping[str, SVFLayer]) -> Iterator[dict[str, Tensor]]:
    """What `svf_set` composes from: one part for each parent module."""
    for parent, parameters in _neighbours(policy, layers):
        bases = {f"{name}.svf_basis": layer.svf_basis for name, layer in layers.items() if _parent(name) == parent}
        with _gathered([*parameters.values(), *bases.values()]):
            yield {name: p.detach().to("cpu", copy=True) for name, p in (parameters | bases).items()}


def _composed(
    policy: Any, layers: Mapping[str, SVFLayer], deltas: Mapping[str, Tensor], changed: Iterable[str]
) -> Iterator[dict[str, Tensor]]:
    """Parameters of the parents of changed modules, with z composed into the tuned ones."""
    for parent, parameters in _neighbours(policy, changed):
        tuned = {name: layer for name, layer in layers.items() if _parent(name) == parent}
        values = {name: p.detach() for name, p in parameters.items()}
        for name, layer in tuned.items():
            delta_R = deltas[name].to(layer.svf_basis.device)
            values[f"{name}.weight"] = compose_weight(layer.weight_mn(), layer.svf_basis, delta_R, layer.side)
        yield values


@contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, parameters that DeepSpeed shares out are whole on every rank."""
    shards = [p for p in parameters if hasattr(p, "ds_status") and p.ds_status.name != "AVAILABLE"]
    if not shards:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(shards):
        yield


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.nbytes for t in tensors.values())


def _memory_backed() -> str:
    return str(MEMORY_BACKED) if MEMORY_BACKED.is_dir() else tempfile.gettempdir()
