"""Few-shot adaptation as a callback: `transformer2 adapt --strategy cem`, or inside `fit`.

Under the `clean` protocol the answer is where the search ends; under `paper` it is the iteration that scores best on
the scored rows, as in the reference code, and the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor

from transformer2.adaptation.few_shot import Budget, run_search
from transformer2.adaptation.mixture import Granularity, Mix, Mixture
from transformer2.adaptation.search import PRESETS, make_search
from transformer2.arguments import Count, Positive, check_arguments
from transformer2.callbacks.evaluator import AdaptationEvaluator, Choice
from transformer2.errors import ConfigError
from transformer2.experts import save_expert
from transformer2.report.adaptation import alpha_figure
from transformer2.report.table import write_text
from transformer2.types import PromptBatch

__all__ = ["FewShotEvaluator"]

Alpha = Annotated[float, ">= -100", "<= 100"]
# What the presets say beyond the search itself: the paper's z' = sum alpha_k z_k, and the code's one alpha per matrix.
PRESET_MIXTURES: dict[str, dict[str, Any]] = {
    "paper": {"mix": "raw", "granularity": "expert", "generations": 100},
    "reference": {"mix": "raw", "granularity": "matrix", "generations": 50},
}


class FewShotEvaluator(AdaptationEvaluator):
    """Searches the mixing weights that answer the few-shot rows best; the answer is the search's final mean.

    Args:
        search: `cem`, `random` or `sep_cma`.
        preset: `paper` or `reference`: their settings in place of the defaults below.
        granularity: One alpha per `expert`, and also per module `kind`, `layer` or `matrix`.
        mix: `delta`, `normalised` or `raw` (adaptation/mixture.py).
        base_member: The base has an alpha of its own (mix normalised or raw).
        population: Members of a generation.
        elite_ratio: Share that a generation learns from.
        low: Smallest alpha.
        high: Largest alpha.
        std: Standard deviation of the first generation; its mean is 1 / members.
        generations: Limit; None for no limit.
        max_evaluations: Limit on members tried.
        max_minutes: Limit on wall-clock time.
        keep_best: cem: slot 0 of a generation holds the best member so far.
        answer: `mean` (the search's final mean) or `best` (the best member seen).
        options: The arguments of `AdaptationEvaluator`.
    """

    strategy: ClassVar[str] = "cem"
    picture: ClassVar[str] = "cem/alpha"

    def __init__(
        self,
        search: Literal["cem", "random", "sep_cma"] = "cem",
        preset: Literal["paper", "reference"] | None = None,
        granularity: Granularity = "expert",
        mix: Mix = "delta",
        base_member: bool = False,
        population: Count = 16,
        elite_ratio: Annotated[float, "> 0", "<= 1"] = 0.25,
        low: Alpha = 0.0,
        high: Alpha = 1.5,
        std: Annotated[float, "> 0", "<= 100"] = 0.5,
        generations: Count | None = 8,
        max_evaluations: Count | None = None,
        max_minutes: Positive | None = None,
        keep_best: bool = False,
        answer: Literal["mean", "best"] = "mean",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_arguments("adapt", FewShotEvaluator.__init__, locals())
        own = {"population": population, "elite_ratio": elite_ratio, "low": low, "high": high, "std": std}
        if search == "cem":
            own["keep_best"] = keep_best
        self.kind, self.answer, self.search_options = search, answer, own
        self.mixture_options: dict[str, Any] = {"granularity": granularity, "mix": mix, "base_member": base_member}
        if preset is not None:
            if search != "cem":
                raise ConfigError(f"adapt.preset {preset} with adapt.search {search}: presets are of cem; leave it out")
            theirs = dict(PRESET_MIXTURES[preset])
            generations = theirs.pop("generations")
            self.search_options = {**own, **PRESETS[preset]}
            self.mixture_options |= theirs
        self.limits = Budget(generations, max_evaluations, max_minutes)
        Mixture(["m"], ["e"], **self.mixture_options)  # refuses what does not go together
        make_search(search, 2, **self.search_options)

    def adapt_to_task(self, few_shot: PromptBatch) -> None:
        """Search."""
        self.mixture = Mixture(self.matrices, [e.name for e in self.experts], **self.mixture_options)
        start = 1 / len(self.mixture.members)
        self.search = make_search(self.kind, self.mixture.dim, mean=start, seed=self.seed, **self.search_options)
        self.trace: list[Any] = []
        self._resume()
        self.bar.reset(total=self.limits.total(self.search.population))
        self.bar.update(self.search.generation)

        def scores(weights_LNK: Tensor) -> tuple[list[float], list[float]]:
            return self._shared(weights_LNK, few_shot)

        for entry in run_search(self.search, self.mixture, scores, self.limits):
            self.trace.append(entry)
            self._save()  # so a signal has nothing to save: what it cuts is one generation
            self.bar.set_postfix(shots=f"{entry['score']:.2f}", refresh=False)
            self.bar.update()
        ends_GD = torch.tensor([self._end(entry) for entry in self.trace])
        self.selection: dict[str, Any] = {}
        if self.data.protocol == "paper":
            self._select_on_scored_rows(ends_GD)
        self.alpha_D = ends_GD[self.selection.get("iteration", len(ends_GD)) - 1]
        self.weights_L1K = self.mixture.weights(self.alpha_D[None])

    def _end(self, entry: Mapping[str, Any]) -> list[float]:
        """Where the search would have ended after a generation."""
        best = entry["best"] if self.answer == "best" else None
        return list(entry["answer"] if best is None else best)

    def _select_on_scored_rows(self, ends_GD: Tensor) -> None:
        """Protocol `paper`: the iteration that scores best on the very rows that are reported (reference code).

        The score that is reported is then the largest of G noisy ones; `clean` takes the last iteration unseen.
        """
        right, scored = [0] * len(ends_GD), [0] * len(ends_GD)
        for batch in self.data.predict_dataloader():
            batch = batch.to(self.device)
            for g, weights_L1K in enumerate(self.mixture.weights(ends_GD).split(1, dim=1)):
                verdicts = self._verify(self.scorer.rows(batch, weights_L1K, self.budget))
                right[g] += sum(v.correct for v in verdicts if v.reward is not None)
                scored[g] += sum(v.reward is not None for v in verdicts)
        totals, counts = ([sum(column) for column in zip(*self.gather(mine), strict=True)] for mine in (right, scored))
        scores = [total / max(1, count) for total, count in zip(totals, counts, strict=True)]
        first = scores.index(max(scores))
        self.selection = {"iteration": first + 1, "scores": scores}

    def adapt_to_batch(self, batch: PromptBatch) -> Choice:
        """The same z for every row."""
        return Choice(self.weights_L1K, [{"alpha": self._alpha()}] * len(batch))

    def facts(self) -> dict[str, Any]:
        """Alpha and what it cost."""
        details: dict[str, Any] = {"rejected": self.search.rejected, "best_on_shots": self.search.best_score}
        details["answer"] = self.answer
        if self.selection:
            details["selected_on_scored_rows"] = self.selection
        settings = {"search": self.kind, **self.search_options, **self.mixture_options}
        return {
            "alpha": self._alpha(),
            "evaluations": self.search.evaluations,
            "details": {**details, "settings": settings},
        }

    def figure(self) -> Any:
        """Alpha over the generations and by group."""
        last = {"mean": self.alpha_D.tolist(), "std": self.search.std.tolist(), "score": self.search.best_score}
        return alpha_figure(self.mixture.members, self.mixture.groups, [*self.trace, last])

    def _alpha(self) -> dict[str, Any]:
        """Member -> alpha, or group -> member -> alpha."""
        alpha_GK = self.mixture.by_group(self.alpha_D[None])[0].tolist()
        named = [dict(zip(self.mixture.members, (round(a, 4) for a in row), strict=True)) for row in alpha_GK]
        return named[0] if len(named) == 1 else dict(zip(self.mixture.groups, named, strict=True))

    def _shared(self, weights_LNK: Tensor, few_shot: PromptBatch) -> tuple[list[float], list[float]]:
        """Scores of all members; each rank runs its share of them."""
        n = weights_LNK.shape[1]
        mine = range(self.rank, n, self.world_size)
        found: tuple[list[float], list[float]] = ([], [])
        if mine:
            found = self.scores(few_shot, weights_LNK[:, list(mine)])
        parts = self.gather(found)
        shares, ties = ([parts[i % self.world_size][which][i // self.world_size] for i in range(n)] for which in (0, 1))
        return shares, ties

    def _write(self, trainer: L.Trainer, report: Any) -> None:
        super()._write(trainer, report)
        if self.folder is not None:
            expert = self.mixture.expert(self.alpha_D, self.experts, "expert", task=report.task)
            save_expert(expert, self.folder / "expert", overwrite=True)

    # ------------------------------------------------------------------ interrupt and resume

    @property
    def _file(self) -> Path | None:
        return None if self.folder is None else self.folder / "search.json"

    def _save(self) -> None:
        if self._file is not None and self.rank == 0:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps({"search": self.search.state_dict(), "trace": self.trace}))

    def _resume(self) -> None:
        if self._file is not None and self._file.exists():
            state = json.loads(self._file.read_text(encoding="utf-8"))
            self.search.load_state_dict(state["search"])
            self.trace = state["trace"]
