"""Few-shot adaptation: search the mixing weights that answer a few rows of the target task best (paper, section 3.2).

    score of a member = mean credit of its answers to the shots (the share of right ones, or their mean soft score)
    ties                by the mean log-likelihood of the right answers

Under the `clean` protocol the answer is where the search ends; under `paper` it is the iteration that scores best on
the scored rows, as in the reference code, and the report says so.

Departures from the reference code: a generation is scored in one batch with one z per row (in the factored form where
that is exact to fp32 rounding: a score here chooses, it is not reported); ties are broken by the
likelihood of the given right answers, which exist for every member, not of the member's own right samples; the budget
is a limit on members, generations or minutes, whichever comes first.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from peft import PeftModel
from torch import Tensor

from transformer2.adaptation.context import EvaluationContext
from transformer2.adaptation.mixture import Granularity, Mix, Mixture
from transformer2.adaptation.search import PRESETS, Search, make_search
from transformer2.adaptation.strategy import AdaptedPolicy, Choice, Strategy, differs, origin
from transformer2.arguments import Count, Positive, check_arguments
from transformer2.errors import ConfigError
from transformer2.experts import Expert
from transformer2.files import write_text
from transformer2.report.adaptation import alpha_figure
from transformer2.report.build import Facts
from transformer2.svf.layer import tuned_layers
from transformer2.types import PromptBatch, Record

__all__ = ["Budget", "FewShotSearch", "Scores", "run_search"]

Alpha = Annotated[float, ">= -100", "<= 100"]
Auto = Literal["auto"]
# What `auto` stands for.
DEFAULTS = {
    "population": 16,
    "elite_ratio": 0.25,
    "low": 0.0,
    "high": 1.5,
    "std": 0.5,
    "keep_best": False,
    "granularity": "expert",
    "mix": "delta",
    "generations": 8,
}
# And under a preset: the paper's z' = sum alpha_k z_k, and the code's one alpha per matrix.
OF_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**PRESETS["paper"], "granularity": "expert", "mix": "raw", "generations": 100},
    "reference": {**PRESETS["reference"], "granularity": "matrix", "mix": "raw", "generations": 50},
}
# Settings that a search does not read.
UNREAD = {"cem": (), "random": ("std", "keep_best"), "sep_cma": ("elite_ratio", "keep_best")}
# Scores and tie-breaks of N members, from weights (L, N, K + 1).
Scores = Callable[[Tensor], tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Budget:
    """When a search ends; None means no limit, but one of the first two must be set.

    Attributes:
        generations: Generations.
        evaluations: Members tried.
        minutes: Wall-clock minutes, looked at between generations: a result then depends on the machine.
    """

    generations: int | None = 6
    evaluations: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Refuse a search without an end."""
        if self.generations is None and self.evaluations is None:
            raise ConfigError("a search needs an end; set generations or max_evaluations")

    def total(self, population: int) -> int:
        """Generations that it allows at most.

        Raises:
            ConfigError: Not one.
        """
        if self.evaluations is not None and self.evaluations < population:
            raise ConfigError(
                f"adapt.max_evaluations {self.evaluations} is below adapt.population {population}, the members of one "
                "generation; raise the one or lower the other"
            )
        by_evaluations = math.inf if self.evaluations is None else self.evaluations // population
        return int(min(by_evaluations, math.inf if self.generations is None else self.generations))


def run_search(search: Search, mixture: Mixture, scores: Scores, budget: Budget) -> Iterator[Mapping[str, Any]]:
    """Generation by generation until the budget is spent; between two of them everything is in `search`.

    Yields:
        After each generation: `mean` and `std` before it (what was tried), and after it `score` and `best`, the best
        score and member so far, and `answer`, the mean that the search would end with.
    """
    start = time.monotonic()
    while search.generation < budget.total(search.population):
        if budget.minutes is not None and search.generation and time.monotonic() - start > 60 * budget.minutes:
            return
        tried = {"mean": search.mean.tolist(), "std": search.std.tolist()}
        search.tell(*_finite_only(mixture.weights(search.ask()), scores))
        best = None if search.best is None else search.best.tolist()
        yield {**tried, "score": search.best_score, "best": best, "answer": search.mean.tolist()}


def _finite_only(weights_LNK: Tensor, scores: Scores) -> tuple[list[float], list[float]]:
    """Members whose weights are not finite get a NaN score, and no forward pass."""
    finite_N = torch.isfinite(weights_LNK).all(-1).all(0)
    found = [math.nan] * len(finite_N)
    ties = list(found)
    rows = finite_N.nonzero()[:, 0].tolist()
    if rows:
        for row, score, tie in zip(rows, *scores(weights_LNK[:, rows]), strict=True):
            found[row], ties[row] = score, tie
    return found, ties


class FewShotSearch(Strategy):
    """Searches the mixing weights that answer the few-shot rows best; the answer is the search's final mean.

    Args:
        search: `cem`, `random` or `sep_cma`.
        preset: `paper` or `reference`: what is left at `auto` below is theirs.
        granularity: One alpha per `expert` (auto), and also per module `kind`, `layer` or `matrix`.
        mix: `delta` (auto), `normalised` or `raw` (adaptation/mixture.py).
        base_member: The base has an alpha of its own (mix normalised or raw).
        population: Members of a generation; auto is 16.
        elite_ratio: Share that a generation learns from, but of sep_cma; auto is 0.25.
        low: Smallest alpha; auto is 0.
        high: Largest alpha; auto is 1.5.
        std: Standard deviation of the first generation, but of random, whose mean is 1 / members; auto is 0.5.
        generations: Limit; None for no limit, auto is 8.
        max_evaluations: Limit on members tried; at least one generation.
        max_minutes: Limit on wall-clock time.
        keep_best: cem: slot 0 of a generation holds the best member so far; auto is false.
        answer: `mean` (the search's final mean) or `best` (the best member seen).
        options: The arguments of `Strategy`.
    """

    name: ClassVar[str] = "cem"
    picture: ClassVar[str] = "cem/alpha"

    def __init__(
        self,
        search: Literal["cem", "random", "sep_cma"] = "cem",
        preset: Literal["paper", "reference"] | None = None,
        granularity: Literal[Granularity, "auto"] = "auto",
        mix: Literal[Mix, "auto"] = "auto",
        base_member: bool = False,
        population: Annotated[int, ">= 2"] | Auto = "auto",
        elite_ratio: Annotated[float, "> 0", "<= 1"] | Auto = "auto",
        low: Alpha | Auto = "auto",
        high: Alpha | Auto = "auto",
        std: Annotated[float, "> 0", "<= 100"] | Auto = "auto",
        generations: Count | Auto | None = "auto",
        max_evaluations: Count | None = None,
        max_minutes: Positive | None = None,
        keep_best: bool | Auto = "auto",
        answer: Literal["mean", "best"] = "mean",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        given = locals()
        check_arguments("adapt", FewShotSearch.__init__, given)
        if preset is not None and search != "cem":
            raise ConfigError(f"adapt.preset {preset} with adapt.search {search}: presets are of cem; leave it out")
        for name in UNREAD[search]:
            if given[name] != "auto":
                raise ConfigError(f"adapt.{name} is not read by adapt.search {search}; leave it out")
        auto = DEFAULTS if preset is None else OF_PRESETS[preset]
        chosen: dict[str, Any] = {name: auto[name] if given[name] == "auto" else given[name] for name in DEFAULTS}
        self.search, self.answer = search, answer
        names = ("population", "elite_ratio", "low", "high", "std", "keep_best")
        self.search_options = {name: chosen[name] for name in names if name not in UNREAD[search]}
        self.mixture_options = {name: chosen[name] for name in ("granularity", "mix")} | {"base_member": base_member}
        self.budget = Budget(chosen["generations"], max_evaluations, max_minutes)
        self.budget.total(chosen["population"])
        Mixture(["m"], ["e"], **self.mixture_options)  # refuses what does not go together
        make_search(search, 2, **self.search_options)
        self.settings = {"search": search, **self.search_options, **self.mixture_options, **asdict(self.budget)}

    def begin(self, policy: PeftModel, experts: Sequence[str]) -> tuple[Mixture, Search]:
        """A search from the uniform mixture of these experts, and what its numbers mean."""
        mixture = Mixture(list(tuned_layers(policy)), experts, **self.mixture_options)
        start = 1 / len(mixture.members)
        return mixture, make_search(self.search, mixture.dim, mean=start, seed=self.seed, **self.search_options)

    def found(self, entry: Mapping[str, Any]) -> list[float]:
        """What a search that ended after this generation (see `run_search`) would have found."""
        best: list[float] | None = entry["best"] if self.answer == "best" else None
        return best or entry["answer"]

    def adapt_to_task(self, context: EvaluationContext) -> AdaptedPolicy:
        """Search, from where an interrupted run was; every generation is saved, so a signal cuts no more than one."""
        mixture, search = self.begin(context.answerer.policy, [e.name for e in context.experts])
        file = None if context.folder is None else context.folder / "search.json"
        total = self.budget.total(search.population)
        of: dict[str, Mapping[str, Any]] = {}
        trace, before = list[Mapping[str, Any]](), 0.0
        if file is not None:
            decisive = {key: value for key, value in self.settings.items() if key not in asdict(self.budget)}
            engine = context.answerer.engine
            decisive |= {"seed": self.seed, "eos_ids": engine.eos_ids, "stop": engine.stop}
            rows = origin(context.answerer, context.data, "few_shot")
            of = {"made_from": context.made_from, "origin": rows, "settings": decisive}
            trace, before = _resume(file, search, of, total)
        began = time.perf_counter()
        context.bar.reset(total=total)
        context.bar.update(search.generation)
        for entry in run_search(search, mixture, context.scores, self.budget):
            trace.append(entry)
            if file is not None and context.answerer.rank == 0:
                _save(file, search, trace, {**of, "seconds": before + time.perf_counter() - began})
            context.bar.set_postfix(shots=f"{entry['score']:.2f}", refresh=False)
            context.bar.update()
        return _SearchedPolicy(context, self, mixture, search, trace, before)


class _SearchedPolicy(AdaptedPolicy):
    """The same z for every row."""

    def __init__(
        self,
        context: EvaluationContext,
        settings: FewShotSearch,
        mixture: Mixture,
        search: Search,
        trace: Sequence[Mapping[str, Any]],
        seconds_before: float,
    ) -> None:
        super().__init__(context, settings.name)
        self.settings, self.mixture, self.search, self.trace = settings, mixture, search, trace
        self.seconds_before = seconds_before
        ends_GD = torch.tensor([settings.found(entry) for entry in trace])
        self.selection = self._select_on_scored_rows(ends_GD) if context.data.protocol == "paper" else {}
        self.alpha_D = ends_GD[self.selection.get("iteration", len(ends_GD)) - 1]

    def _select_on_scored_rows(self, ends_GD: Tensor) -> dict[str, Any]:
        """Protocol `paper`: the iteration that scores best on the very rows that are reported (reference code).

        The score that is reported is then the largest of G noisy ones; `clean` takes the last iteration unseen.
        """
        credits: list[list[float]] = [[] for _ in ends_GD]
        for batch in self.context.scored_batches():
            for g, weights_L1K in enumerate(self.mixture.weights(ends_GD).split(1, dim=1)):
                answers = self.context.answers(batch, weights_L1K)
                credits[g] += [a.credit or 0.0 for a in answers]  # of the same rows, as `mean_credits`
        ranks = self.context.answerer.gather([(sum(of), len(of)) for of in credits])
        totals = [map(sum, zip(*counts, strict=True)) for counts in zip(*ranks, strict=True)]
        scores = [credit / max(1, scored) for credit, scored in totals]
        return {"iteration": scores.index(max(scores)) + 1, "scores": scores}

    def adapt_to_batch(self, batch: PromptBatch) -> Choice:
        return Choice(self.mixture.weights(self.alpha_D[None]), [{"alpha": self._alpha()}] * len(batch))

    def facts(self, records: Sequence[Record]) -> Facts:
        """Alpha and what it cost."""
        selected = {"selected_on_scored_rows": self.selection} if self.selection else {}
        details = {
            **super().facts(records).details,
            "rejected": self.search.rejected,
            "best_on_shots": self.search.best_score,
            "answer": self.settings.answer,
            **selected,
            "settings": self.settings.settings,
        }
        return Facts(self._alpha(), self.search.evaluations, details)

    def figure(self, records: Sequence[Record]) -> Any:
        """Alpha over the generations and by group."""
        last = {"mean": self.alpha_D.tolist(), "std": self.search.std.tolist(), "score": self.search.best_score}
        return alpha_figure(self.mixture.members, self.mixture.groups, [*self.trace, last])

    def expert(self) -> Expert:
        """The mixture as an expert."""
        data = self.context.data
        found = self.mixture.expert(self.alpha_D, self.context.experts, "expert", task=data.task.name)
        return replace(found, **data.provenance())

    def _alpha(self) -> dict[str, Any]:
        """Member -> alpha, or group -> member -> alpha."""
        alpha_GK = self.mixture.by_group(self.alpha_D[None])[0].tolist()
        named = [dict(zip(self.mixture.members, (round(a, 4) for a in row), strict=True)) for row in alpha_GK]
        return named[0] if len(named) == 1 else dict(zip(self.mixture.groups, named, strict=True))


def _save(file: Path, search: Search, trace: Sequence[Mapping[str, Any]], of: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"search": search.state_dict(), "trace": trace, **of}))


def _resume(file: Path, search: Search, of: Mapping[str, Mapping[str, Any]], total: int) -> tuple[list[Any], float]:
    """The trace and seconds of the same search, interrupted or shorter, whose state is restored; [] for a new one."""
    if not file.exists():
        return [], 0.0
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        what = differs(state, of)
        if not what and state["search"]["generation"] > total:
            what = f"has gone further than {total} generations"
    except (ValueError, AttributeError, KeyError, TypeError):
        what = "cannot be read"
    if what:
        warnings.warn(f"the search in {file} {what}; it begins again", stacklevel=2)
        return [], 0.0
    search.load_state_dict(state["search"])
    return list(state["trace"]), float(state.get("seconds", 0.0))
