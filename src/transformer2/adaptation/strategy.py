"""What a strategy is: settings that, shown a task, become a policy that decides how to answer each prompt.

    Strategy        settings alone; `adapt_to_task` is the first pass over the few-shot rows
    AdaptedPolicy   what came out of it, as long as one evaluation; `adapt_to_batch` is the first pass over a batch
    Choice          the mixing weights of the second pass

To write a strategy, subclass the first two (as dispatch.py and few_shot.py do): a `name` and `adapt_to_task` of the
one, `adapt_to_batch` of the other; what is not overridden is the base's. To use it inside `fit`, and as a callback
without a task in `adapt`, add three lines as callbacks/prompt.py; to have `adapt --strategy` know it, name it in
`adaptation/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from transformer2 import tiny
from transformer2.adaptation.answerer import Answerer
from transformer2.adaptation.context import Baseline, Cache, EvaluationContext, Known
from transformer2.adaptation.members import members
from transformer2.adaptation.mixture import base_row
from transformer2.adaptation.scoring import Scorer
from transformer2.arguments import Count, Seed, check_arguments
from transformer2.errors import BasisError, ConfigError
from transformer2.experts import Expert, load_experts
from transformer2.files import check_directory, source_digest
from transformer2.policy import reference
from transformer2.report.build import Facts, label_confusion
from transformer2.seeds import rollout_seed
from transformer2.svf.fingerprint import fingerprint
from transformer2.types import Answer, PromptBatch, Record

__all__ = ["ActiveExpert", "AdaptedPolicy", "Choice", "Strategy", "check_whole", "differs", "origin"]

DIFFERS = {
    "made_from": "is of experts that were retrained since",
    "origin": "is of another base, other rows or an edited task",
    "settings": "is of other settings",
}


@dataclass(frozen=True)
class Choice:
    """What a first pass decided for a batch.

    Attributes:
        weights: (B, K + 1) or (L, B, K + 1) over the experts and the base; one row serves all. None: the policy as it
            is.
        columns: What to note in the B records (first-pass text, chosen expert, alpha).
    """

    weights: Tensor | None
    columns: Sequence[Mapping[str, Any]] = ()


class AdaptedPolicy:
    """A policy adapted to a task; by itself the base model.

    Args:
        context: What there is to choose from.
        name: The strategy's.

    Attributes:
        seconds_before: What an interrupted process had spent on adapting to the task.
    """

    seconds_before = 0.0

    def __init__(self, context: EvaluationContext, name: str) -> None:
        self.context, self.name, self.answerer = context, name, context.answerer

    def adapt_to_batch(self, batch: PromptBatch) -> Choice:
        """Choose the z of every row of a batch."""
        return Choice(base_row(len(self.context.experts)))

    def answers(self, batch: PromptBatch, choice: Choice, index: int) -> list[Answer]:
        """Answer a batch, the `index`-th of the task, as was chosen."""
        assert choice.weights is not None
        return self.context.answers(batch, choice.weights)

    def blind_answers(self, batch: PromptBatch, choice: Choice) -> list[Answer]:
        """Greedy answers to the questions of a batch without their pictures, as was chosen for those with them."""
        return self.answers(batch, choice, 0)

    def baselines(self, batch: PromptBatch, index: int) -> list[Baseline]:
        """What the answers are compared with."""
        return self.context.baselines(batch)

    def facts(self, records: Sequence[Record]) -> Facts:
        """What the report says besides the scores."""
        experts, shots = self.context.experts, self.context.few_shot.examples
        names = {"experts": [e.name for e in experts], "few_shot": [e.id for e in shots]}
        return Facts(details={"strategy": self.name, **names, "made_from": dict(self.context.made_from)})

    def figure(self, records: Sequence[Record]) -> Any:
        """A matplotlib figure, if there is anything to see."""
        return None

    def expert(self) -> Expert | None:
        """What was found, as an expert like any other, where it is one."""
        return None


class Strategy:
    """A choice among experts, as settings; by itself the choice of the base model.

    Args:
        experts: Expert folders; None takes the shipped ones of the embedded model.
        controls: Also score each expert alone, their uniform mixture, and the best constant z.
        max_rows: Rows (prompts x mixtures) of one micro-batch; None takes all at once.
        seed: Of whatever the strategy draws, and inside `fit` of the choice of shots.
    """

    name: ClassVar[str] = "base"
    picture: ClassVar[str] = "adapt/figure"  # TensorBoard tag of its figure; the file has the name of the last part
    settings: Mapping[str, Any] = MappingProxyType({})  # what a report says of it as `details.settings`

    def __init__(
        self,
        experts: list[str] | None = None,
        controls: bool = True,
        max_rows: Count | None = None,
        seed: Seed = 0,
    ) -> None:
        check_arguments("adapt", Strategy.__init__, locals())
        for folder in experts or []:
            check_directory(folder, "adapt.experts", "train that expert with fit, or name its folder", ConfigError)
        self.experts, self.controls, self.max_rows, self.seed = experts, controls, max_rows, seed

    def load(self, base: str) -> list[Expert]:
        """The experts to choose from."""
        shipped = tiny.shipped(base)
        if self.experts is None and not shipped:
            raise ConfigError("name the expert folders: adapt.experts (only the embedded models ship with their own)")
        return load_experts(shipped if self.experts is None else self.experts)

    def load_helpers(self, base: str) -> list[Expert]:
        """Further experts, which are not chosen from but used in the first pass."""
        return []

    def leave_out_shots(self, data: Any) -> None:
        """Have a datamodule score no row that an expert was made with; before its `setup`."""
        for expert in (*self.load(data.base), *self.load_helpers(data.base)):
            data.leave_out(expert.shots, expert.protocol)

    def made_from(self, base: str) -> dict[str, str | None]:
        """What a report on the experts that are there now says of them (`details.made_from`)."""
        return _made_from(self.load(base), self.load_helpers(base))

    @contextmanager
    def loaded(self, answerer: Answerer, base: str) -> Iterator[tuple[list[Expert], list[Expert], list[str]]]:
        """The experts and the helpers, and the adapters that they and the base are in the policy inside."""
        check_whole(answerer.engine.in_lockstep)
        experts, helpers = self.load(base), self.load_helpers(base)
        with members(answerer.policy, [*experts, *helpers]) as names:
            yield experts, helpers, names

    @contextmanager
    def prepared(
        self,
        answerer: Answerer,
        data: Any,
        cache: Cache,
        folder: Path | None,
        bar: Any,
        max_batches: int | None = None,
    ) -> Iterator[Any]:
        """What `adapt_to_task` works with; the experts are in the policy inside, and gone after any exit."""
        with self.loaded(answerer, data.base) as (experts, others, names):
            key = (data.task.name, data.protocol, data.seed, data.few_shot, self.controls, *(e.sha256 for e in experts))
            scorer, helpers = (
                Scorer(answerer.policy, part, answerer.engine, answerer.head, self.max_rows or answerer.engine.max_rows)
                for part in ([*names[: len(experts)], names[-1]], names[len(experts) :])
            )
            context = EvaluationContext(
                answerer=answerer,
                data=data,
                few_shot=data.shots().to(answerer.device),
                experts=experts,
                made_from=_made_from(experts, others),
                scorer=scorer,
                helpers=helpers,
                known=cache.get(key, Known()),
                folder=folder,
                bar=bar,
                max_batches=max_batches,
            )
            if key not in cache:  # here, where all processes are
                context.choose_controls(self.controls)
                cache[key] = context.known
            yield context

    def adapt_to_task(self, context: Any) -> AdaptedPolicy:
        """First pass over the task, once per evaluation."""
        return AdaptedPolicy(context, self.name)


def origin(answerer: Answerer, data: Any, *splits: str) -> dict[str, str]:
    """What a result was made from: the base's fingerprint, digests of each split and of the module of a user's task."""
    rows = {split: data.digest(split) for split in splits}
    if (source := source_digest(type(data.task))) is not None:
        rows["task"] = source
    try:
        return {"base": fingerprint(answerer.policy), **rows}
    except BasisError:  # shards of a base from the Hub
        return rows


def differs(saved: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]) -> str:
    """How a saved report or search differs from what would be made now, if it does; keys that it lacks are skipped."""
    return next((DIFFERS[key] for key, part in now.items() if saved.get(key, part) != part), "")


def _made_from(experts: Sequence[Expert], helpers: Sequence[Expert]) -> dict[str, str | None]:
    return {e.name: e.sha256 for e in experts} | {f"first pass: {e.name}": e.sha256 for e in helpers}


class ActiveExpert(Strategy):
    """Nothing to choose: the policy's own adapter and the base, as `test` scores them.

    Args:
        samples: Also draw so many completions of each question, for pass@k.
        temperature: Of the samples.
        seed: Of the samples.
    """

    name: ClassVar[str] = "expert"

    def __init__(self, samples: int = 0, temperature: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.samples, self.temperature = samples, temperature

    @contextmanager
    def prepared(self, answerer: Answerer, *rest: Any) -> Iterator[Any]:
        """The policy as it is."""
        yield answerer

    def adapt_to_task(self, answerer: Any) -> AdaptedPolicy:
        """Nothing to look at."""
        return _ActivePolicy(answerer, self)


class _ActivePolicy(AdaptedPolicy):
    """The policy under whatever is active."""

    def __init__(self, answerer: Answerer, settings: ActiveExpert) -> None:
        self.answerer, self.settings, self.name = answerer, settings, settings.name

    def adapt_to_batch(self, batch: PromptBatch) -> Choice:
        return Choice(None)

    def answers(self, batch: PromptBatch, choice: Choice, index: int) -> list[Answer]:
        answers, count = self.answerer.answer(batch), self.settings.samples
        if not count:
            return answers
        seed = rollout_seed(self.settings.seed, index)
        counted = self.answerer.count_samples(batch, count, self.settings.temperature, seed)
        return [replace(answer, samples=samples) for answer, samples in zip(answers, counted, strict=True)]

    def blind_answers(self, batch: PromptBatch, choice: Choice) -> list[Answer]:
        return self.answerer.answer(batch)

    def baselines(self, batch: PromptBatch, index: int) -> list[Baseline]:
        with reference(self.answerer.policy):
            return [Baseline(answer, {}) for answer in self.answers(batch, Choice(None), index)]

    def facts(self, records: Sequence[Record]) -> Facts:
        return Facts(details=label_confusion(records, self.answerer.task))


def check_whole(in_lockstep: bool) -> None:
    """Refuse a policy whose weights are shards on several processes."""
    if in_lockstep:
        raise ConfigError("experts are not chosen or mixed under ZeRO-3 yet; adapt with trainer.strategy: ddp")
