"""Under which of Lightning's strategies training runs, and DeepSpeed ZeRO for a frozen base.

    ddp                          every process holds the model; z's gradient is summed once a step
    ZeRO(stage=2)                the same, and the optimizer's state is sharded (z is small: there is little to gain)
    ZeRO(stage=3)                the frozen weights and bases are sharded, and gathered layer by layer
    ZeRO(stage=3, offload=True)  ... and held in host memory

Departures from Lightning's DeepSpeedStrategy:

1. Nothing is cast: the base keeps the dtype it was loaded in, z stays fp32 (bf16 would round it).
2. The base is loaded into shards (transformers' zero.Init), each basis is sharded as it is made.
3. What is trained, what is small (norms, sigma) and the output head stay whole on every process: z is read and saved
   everywhere, and the head runs once per chunk of tokens, of which processes have different numbers.
4. A step without a gradient (it was skipped) leaves the optimizer as it is.
5. It runs on CPU processes with gloo, for tests, without the kernel that DeepSpeed would compile there for minutes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from transformer2.arguments import NotNegativeInt, check_arguments
from transformer2.checkpoints import read_checkpoint, seal_folder
from transformer2.errors import CheckpointError, ConfigError
from transformer2.files import replace_folder, whole_folder
from transformer2.policy import base_dtype
from transformer2.quantisation import quantisation_of


class _AsLoaded(DeepSpeedPrecision):
    """Neither the model nor a batch is cast (and a batch is a frozen dataclass, which Lightning would refuse)."""

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed ZeRO; see the module docstring.

    Args:
        stage: 2 or 3.
        offload: Keep the shards of stage 3 in host memory.
        whole_below: Parameters with at most this many numbers stay whole on every process.
    """

    def __init__(
        self,
        stage: Literal[2, 3] = 3,
        offload: bool = False,
        whole_below: NotNegativeInt = 100_000,
    ) -> None:
        check_arguments("ZeRO", ZeRO.__init__, locals())
        if offload and stage != 3:
            raise ConfigError(f"ZeRO(stage={stage}, offload=True): stage 3 alone can off-load; set stage: 3")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        zero: dict[str, Any] = {"stage": stage}
        if stage == 3:
            zero |= {
                "stage3_param_persistence_threshold": whole_below,
                "offload_param": {"device": "cpu" if offload else "none", "pin_memory": torch.cuda.is_available()},
            }
        # Not said, Lightning asks the training split, which test and validate do not open.
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
        try:
            super().__init__(config=config, exclude_frozen_parameters=True)
        except ImportError as e:
            raise ConfigError(
                "ZeRO needs DeepSpeed, which comes with transformer2 on Linux: pip install deepspeed"
            ) from e
        self.stage, self.whole_below = stage, whole_below
        self._has_gradient = False

    # ------------------------------------------------------------------ Lightning's hooks

    def setup_environment(self) -> None:
        """Join the other processes."""
        check_precision(self.precision_plugin.precision)
        self.precision_plugin = _AsLoaded("32-true")
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        assert self.parallel_devices is not None
        self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices))]
        DDPStrategy.setup_environment(self)

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Around `configure_model`: makes `from_pretrained` load into shards."""
        if self.stage == 3:
            from transformers.integrations import HfDeepSpeedConfig

            self._init_config_if_needed()
            assert isinstance(self.config, dict)
            module: Any = self.lightning_module
            dtypes = {torch.bfloat16: "bf16", torch.float16: "fp16"}
            half = dtypes.get(base_dtype(module.base, module.base_dtype, module.model_kwargs))
            config = {**self.config, **({half: {"enabled": True}} if half else {})}
            told = HfDeepSpeedConfig(config)  # transformers holds a weak reference: loading is over when it goes
            yield
            del told
        else:
            yield

    def setup(self, trainer: L.Trainer) -> None:
        """Hand the model to DeepSpeed as it is."""
        super().setup(trainer)
        for part in cast(Any, self.lightning_module).policy.modules():
            if "_output_capturing_hooks_installed" in part.__dict__:
                # For a test after a fit Lightning has taken all hooks away, transformers' too, which are not missed.
                part._output_capturing_hooks_installed = False
        self._keep_whole()

    def _keep_whole(self) -> None:
        """Gather what stays whole; DeepSpeed takes everything apart at each step and each checkpoint."""
        module: Any = self.lightning_module
        always = {*module.trained(), *module.policy.get_output_embeddings().parameters()}
        for parameter in module.parameters():
            if hasattr(parameter, "ds_id") and (parameter.ds_numel <= self.whole_below or parameter in always):
                parameter.ds_persist = True
                parameter.all_gather()
                parameter.ds_active_sub_modules.add("whole")  # a user that does not leave: it is not released

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """DeepSpeed's checkpoint, a folder that is whole or absent."""
        filepath = Path(self.broadcast(filepath))
        fresh = filepath.with_name(f".{filepath.name}.fresh")
        if self.is_global_zero:
            shutil.rmtree(fresh, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, fresh, storage_options=storage_options)
        self.barrier()
        if self.is_global_zero:
            seal_folder(fresh)
            replace_folder(fresh, filepath)
        self._keep_whole()

    def load_checkpoint(self, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Go on from such a folder.

        Raises:
            CheckpointError: It is damaged, of another strategy, or holds what DeepSpeed should not unpickle.
        """
        trainer = cast(L.LightningModule, self.lightning_module).trainer
        check_checkpoint(trainer, read_checkpoint(checkpoint_path), trainer.state.fn == "fit")
        content = super().load_checkpoint(whole_folder(Path(checkpoint_path)), *args, **kwargs)
        self._keep_whole()
        return content

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """DeepSpeed's backward pass."""
        self._has_gradient = True
        return super().backward(closure_loss, *args, **kwargs)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """DeepSpeed's step, if there is a gradient: it cannot step without one."""
        if not self._has_gradient:
            return closure()
        self._has_gradient = False
        result = super().optimizer_step(optimizer, closure, *args, **kwargs)
        self._keep_whole()
        return result


def check_strategy(strategy: Strategy) -> None:
    """Refuse what training has not been seen to run under.

    Raises:
        ConfigError: With the names of what works.
    """
    known = isinstance(strategy, ZeRO | SingleDeviceStrategy)
    # Processes that multiprocessing spawned would keep what they learned to themselves.
    if not known and not (type(strategy) is DDPStrategy and strategy._start_method == "popen"):
        raise ConfigError(
            f"fit does not run under this {type(strategy).__name__}; use trainer.strategy: ddp, or add one of "
            "--config conf/strategy/{ddp,zero2,zero3,zero3_offload}.yaml"
        )


def check_checkpoint(trainer: L.Trainer, checkpoint: Mapping[str, Any], fits: bool) -> None:
    """Refuse a checkpoint that the trainer cannot read or go on from: one past its end, or, of ZeRO, one of another
    stage or another number of processes.

    Args:
        trainer: The trainer.
        checkpoint: What `read_checkpoint` gives.
        fits: Whether training goes on from it.

    Raises:
        CheckpointError: With what to set instead.
    """
    strategy, ranks = trainer.strategy, trainer.num_devices * trainer.num_nodes
    wrote = checkpoint.get("ds_config", {}).get("zero_optimization", {}).get("stage")
    if wrote != (strategy.stage if isinstance(strategy, ZeRO) else None):
        under = f"--config conf/strategy/zero{wrote}.yaml" if wrote else "one process, or conf/strategy/ddp.yaml"
        raise CheckpointError(f"--ckpt_path was written under another strategy; read it under the same: {under}")
    if fits and wrote and (count := checkpoint["dp_world_size"]) != ranks:
        raise CheckpointError(
            f"--ckpt_path was written by {count} processes, and under ZeRO as many go on with it, not {ranks}; set "
            "trainer.devices, or begin with the expert folder of that run: --expert"
        )
    if fits and (done := int(checkpoint.get("global_step", 0))) > trainer.max_steps >= 0:
        raise CheckpointError(f"--ckpt_path has {done} steps already; give a trainer.max_steps above that")


def check_precision(precision: str) -> None:
    """Refuse a trainer that casts: the base is kept as loaded, and z in fp32.

    Raises:
        ConfigError: With what to set instead.
    """
    if precision != "32-true":
        raise ConfigError(f"trainer.precision {precision} would cast z, which is trained in fp32; set model.dtype")


def check_packed(strategy: Strategy, model_kwargs: Mapping[str, Any] | None) -> None:
    """Refuse a quantised base where its weights would have to leave their process.

    Raises:
        ConfigError: With what works instead.
    """
    quantisation = quantisation_of((model_kwargs or {}).get("quantization_config"))
    if quantisation is None:
        return
    if in_lockstep(strategy):
        raise ConfigError(
            "ZeRO-3 shards dense weights, not packed ones; use conf/strategy/ddp.yaml (every process holds the "
            "packed model), or load the base without quantization_config"
        )
    if quantisation.method == "torchao" and isinstance(strategy, DDPStrategy):
        raise ConfigError(
            f"torchao's packed weights cannot be sent to other processes, as {type(strategy).__name__} does at the "
            "start; use conf/quantisation/nf4.yaml or int8.yaml, or one process"
        )


def in_lockstep(strategy: Strategy) -> bool:
    """Whether every forward pass needs all processes: the weights are sharded."""
    return isinstance(strategy, ZeRO) and strategy.stage == 3


def gather_objects(mine: Any) -> list[Any]:
    """The objects of all ranks, in rank order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def sum_over_ranks(counts: Sequence[int]) -> list[int]:
    """Sums of the counts of all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(counts)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(counts, device=device)
    dist.all_reduce(total)
    return [int(n) for n in total.tolist()]
