"""The settings of SVFReinforceModule in groups: sections of a config, frozen dataclasses (or dicts) in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from transformer2.arguments import Count, NotNegativeInt, Positive, Temperature, check_arguments, check_samples
from transformer2.rl.advantages import Baseline
from transformer2.rl.kl import KL

Group = TypeVar("Group")


@dataclass(frozen=True)  # as jsonargparse wants all bases of a group to be
class _Options:
    """A group of `model`, named after its class; its fields are checked against their annotations."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        name = type(self).__name__.removesuffix("Options").lower()
        check_arguments(f"model.{name}", type(self).__init__, vars(self))


@dataclass(frozen=True)
class SamplingOptions(_Options):
    """How completions are drawn (`model.sampling`).

    Attributes:
        temperature: Sampling temperature of training rollouts; 0 decodes greedily as the reference code does.
        num_completions: Completions per prompt; the global batch is `data.batch_size` times as many rows.
        max_new_tokens: Completion budget; None takes the task's.
        stop: What ends a completion besides the model's EOS: strings and token ids, e.g. `['<|im_end|>']` for a model
            whose chat template ends a turn with a token that is not an EOS. Verified is the text before a stop string.
    """

    temperature: Temperature = 1.0
    num_completions: Count = 1
    max_new_tokens: Count | None = None
    stop: list[str | int] | None = None

    def __post_init__(self) -> None:
        """Say what will end nothing."""
        super().__post_init__()
        if any("\\n" in str(end) for end in self.stop or []):
            rank_zero_warn(
                f"model.sampling.stop {self.stop} holds a backslash and an n; YAML reads a line break in double quotes "
                "only"
            )


@dataclass(frozen=True)
class LossOptions(_Options):
    """What is minimised (`model.loss`).

    Attributes:
        baseline: `none`, `batch_mean`, `rloo`, `group_norm` (rl/advantages.py).
        kl: `full`, `full_reverse`, `k1`, `k2`, `k3` (rl/kl.py).
        kl_coef: lambda (paper: swept over 0, 0.1, 0.2, 0.3). With 0 the KL is still measured every 10th step.
        mask_truncated: Leave completions that did not finish within the budget out of the loss, as DAPO and TRL do: an
            answer is then not punished for the budget. Their rewards still count in the baseline.
        importance_cap: Weigh each token's log-probability by its ratio to the sampler's, at most this (2.0 is usual);
            merged weights in bf16 are another policy by a little, too. None trains as if the sampler were the policy;
            the mismatch is logged either way.
    """

    baseline: Baseline = "batch_mean"
    kl: KL = "full"
    kl_coef: Annotated[float, ">= 0", "<= 1000"] = 0.0
    mask_truncated: bool = False
    importance_cap: Positive | None = None


@dataclass(frozen=True)
class MemoryOptions(_Options):
    """What is held in memory at a time (`model.memory`); none of it changes what is learned.

    Attributes:
        micro_batch_tokens: Padded tokens of one forward and backward pass.
        max_rollout_rows: Rows generated at a time; None takes the whole batch.
        merge_rollouts: Compose W' for rollouts: they run at the base's speed and hold the tuned weights twice. False
            draws in the form of training, for cards that have no room for the copy.
        activation_checkpointing: Keep each decoder layer's input only and compute the rest again in the backward pass:
            a tenth of the activations for a third more seconds.
    """

    micro_batch_tokens: Count = 8192
    max_rollout_rows: Count | None = None
    merge_rollouts: bool = True
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class TestOptions(_Options):
    """What a test draws in addition to greedy answers (`model.test`).

    Attributes:
        samples: Completions of each test question, for pass@k; 0 scores greedy answers alone.
        temperature: Their temperature.
    """

    samples: NotNegativeInt = 0
    temperature: Temperature = 0.8

    def __post_init__(self) -> None:
        """Refuse samples that are all alike."""
        super().__post_init__()
        check_samples(self.samples, self.temperature)


def group(kind: type[Group], given: Group | Mapping[str, Any]) -> Group:
    """A group that may have been given as a dict."""
    return given if isinstance(given, kind) else kind(**given)  # type: ignore[arg-type]  # a mapping otherwise
