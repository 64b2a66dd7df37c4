"""Derivative-free search behind one interface: `ask()` for a population, `tell()` its scores. Knows nothing of LLMs.

CEM     x ~ N(mean, std^2), clamped to [low, high]; mean and std become those of the elites     (paper, section 3.2)
random  x ~ U(low, high); the mean is that of the elites among everything seen                  a baseline
sep_cma separable CMA-ES (arXiv 2512.04695 finds it ahead of REINFORCE for few parameters)      library `cmaes`

Departures from the paper and from the reference code:
    1. The answer is the mean of the last elites, not the best member ever seen: on ten questions the best member is
       mostly the luckiest. `best` is there too.
    2. Members whose score is not finite are left out and counted; in the reference code one NaN spoils the mean.
    3. A generation's random numbers follow from (seed, generation), so a search resumed from `state_dict()`, which is
       plain JSON, continues as if it had never stopped.
    4. The standard deviation has a floor, so that a lucky first generation is not the last word.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import torch
from torch import Tensor

from transformer2.arguments import Count, Positive, check_arguments
from transformer2.errors import ConfigError, UserError, nearest
from transformer2.seeds import seed_at

__all__ = ["CEM", "PRESETS", "SEARCHES", "RandomSearch", "Search", "SepCMA", "make_search"]

Numbers = Tensor | Sequence[float]
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # The paper names CEM and 100 iterations; where it is silent its code speaks.
        "paper": {"population": 32, "elite_ratio": 0.2, "low": 0.0, "high": 1.0, "std": 0.5, "keep_best": False},
        "reference": {"population": 32, "elite_ratio": 0.2, "low": 0.0, "high": 1.0, "std": 0.5, "keep_best": True},
    }
)


class Search(ABC):
    """What every search shares: bounds, ranking, the best member, counts.

    Args:
        dim: Length of a member.
        population: Members of a generation.
        elite_ratio: Share of the population that a generation learns from, the best of the finite ones; at least one.
        low: Lower bound of every entry.
        high: Upper bound.
        mean: Where to start, one number or `dim`; None is 1 / dim (with one weight per expert: the uniform mixture).
        std: Standard deviation of the first generation.
        seed: Seed of all generations.

    Attributes:
        generation: Generations told so far.
        evaluations: Members told so far.
        rejected: Those among them whose score was not finite.
        best: The member with the highest score so far, (dim,); None before the first finite score.
        best_score: Its score.
    """

    def __init__(
        self,
        dim: Count,
        population: Count = 32,
        elite_ratio: Annotated[float, "> 0", "<= 1"] = 0.2,
        low: float = 0.0,
        high: float = 1.5,
        mean: float | Numbers | None = None,
        std: Positive = 0.5,
        seed: int = 0,
    ) -> None:
        check_arguments("search", Search.__init__, locals())
        if low >= high:
            raise ConfigError(f"search.low must be below search.high, not {low} and {high}")
        self.dim, self.population, self.seed = dim, population, seed
        self.num_elites = max(1, int(elite_ratio * population + 1e-9))  # 0.29 x 100 is 28.999...
        self.low, self.high = low, high
        start = torch.as_tensor(1 / dim if mean is None else mean, dtype=torch.float32)
        if start.ndim > 1 or start.numel() not in (1, dim) or not bool(torch.isfinite(start).all()):
            raise ConfigError(f"mean must be one finite number or {dim} of them, not {mean}")
        self.mean: Tensor = start.expand(dim).clamp(low, high).clone()
        self.std: Tensor = torch.full((dim,), float(std))
        self.best: Tensor | None = None
        self.best_score = self.best_tie = -math.inf
        self.generation = self.evaluations = self.rejected = 0

    def ask(self) -> Tensor:
        """This generation's members, (population, dim). Asking again before `tell` gives the same ones."""
        return self._sample().clamp(self.low, self.high)

    def tell(self, scores: Numbers, tie_breaks: Numbers | None = None) -> None:
        """Learn from the scores of the last `ask`.

        Args:
            scores: `population` numbers, higher is better; members with NaN or inf are rejected.
            tie_breaks: Orders members of equal score, higher first; not finite counts as lowest.
        """
        members_ND = self.ask()
        scores_N = _numbers("scores", scores, self.population)
        ties_N = _numbers("tie_breaks", [0.0] * self.population if tie_breaks is None else tie_breaks, self.population)
        ties_N = [t if math.isfinite(t) else -math.inf for t in ties_N]
        finite = [i for i in range(self.population) if math.isfinite(scores_N[i])]
        ranked = sorted(finite, key=lambda i: (scores_N[i], ties_N[i]), reverse=True)
        self.generation += 1
        self.evaluations += self.population
        self.rejected += self.population - len(finite)
        if not ranked:
            return
        first = ranked[0]
        if (scores_N[first], ties_N[first]) > (self.best_score, self.best_tie):
            self.best, self.best_score, self.best_tie = members_ND[first].clone(), scores_N[first], ties_N[first]
        self._learn(members_ND[ranked], [(scores_N[i], ties_N[i]) for i in ranked])

    @abstractmethod
    def _sample(self) -> Tensor:
        """(population, dim) of this generation, a function of the state alone."""

    @abstractmethod
    def _learn(self, ranked_ND: Tensor, scores: list[tuple[float, float]]) -> None:
        """Update from the finite members, best first."""

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(seed_at(self.seed, self.generation))

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain JSON data."""
        best = None if self.best is None else self.best.tolist()
        counts = {name: getattr(self, name) for name in ("generation", "evaluations", "rejected")}
        score = {"best_score": self.best_score, "best_tie": self.best_tie} if best is not None else {}
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "best": best, **score, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()` of the same search.

        Raises:
            UserError: It belongs to a search of another size.
        """
        if len(state["mean"]) != self.dim:
            raise UserError(f"the saved search has {len(state['mean'])} numbers, this one {self.dim}; start it again")
        self.mean, self.std = torch.tensor(state["mean"]), torch.tensor(state["std"])
        self.best = None if state["best"] is None else torch.tensor(state["best"])
        self.best_score, self.best_tie = state.get("best_score", -math.inf), state.get("best_tie", -math.inf)
        self.generation, self.evaluations, self.rejected = (
            int(state[name]) for name in ("generation", "evaluations", "rejected")
        )


class CEM(Search):
    """The cross-entropy method.

    Args:
        dim: See `Search`.
        keep_best: Slot 0 of every later generation holds the best member so far, as in the reference code.
        min_std: Floor of the standard deviation.
        options: The other arguments of `Search`.
    """

    def __init__(self, dim: int, keep_best: bool = False, min_std: float = 0.02, **options: Any) -> None:
        super().__init__(dim, **options)
        self.keep_best, self.min_std = keep_best, min_std

    def _sample(self) -> Tensor:
        noise_ND = torch.randn((self.population, self.dim), generator=self._generator())
        members_ND = self.mean + self.std * noise_ND
        if self.keep_best and self.best is not None:
            members_ND[0] = self.best
        return members_ND

    def _learn(self, ranked_ND: Tensor, scores: list[tuple[float, float]]) -> None:
        elites_ND = ranked_ND[: self.num_elites]
        self.mean = elites_ND.mean(0)
        self.std = elites_ND.std(0, correction=0).clamp(min=self.min_std)


class RandomSearch(Search):
    """Uniform members; `mean` is the mean of the elites among all members so far (as many as CEM has a generation).

    Args:
        dim: See `Search`; `std` is not used.
        options: The arguments of `Search`.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.archive: list[tuple[tuple[float, float], list[float]]] = []

    def _sample(self) -> Tensor:
        uniform_ND = torch.rand((self.population, self.dim), generator=self._generator())
        return self.low + (self.high - self.low) * uniform_ND

    def _learn(self, ranked_ND: Tensor, scores: list[tuple[float, float]]) -> None:
        found = [*self.archive, *zip(scores, ranked_ND.tolist(), strict=True)]
        self.archive = sorted(found, key=lambda item: item[0], reverse=True)[: self.num_elites]
        self.mean = torch.tensor([member for _, member in self.archive]).mean(0)

    def state_dict(self) -> dict[str, Any]:
        """See `Search`; with the elites so far."""
        return {**super().state_dict(), "archive": [[list(score), member] for score, member in self.archive]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Search`."""
        super().load_state_dict(state)
        self.archive = [((score, tie), member) for (score, tie), member in state["archive"]]


class SepCMA(Search):
    """Separable CMA-ES of the library `cmaes`; it is told ranks, so that ties are broken as everywhere here.

    Args:
        dim: At least 2.
        options: The arguments of `Search`; `elite_ratio` is not used (CMA-ES weighs the better half).
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        try:
            import cmaes
            import numpy as np
        except ImportError as e:
            raise UserError("sep_cma needs the library cmaes: pip install 'transformer2[search]'") from e
        if dim < 2 or self.population < 4:
            raise ConfigError("sep_cma needs dim >= 2 and population >= 4; use cem")
        self._cma = cmaes.SepCMA(
            mean=self.mean.double().numpy(),
            sigma=float(self.std[0]),
            bounds=np.array([[self.low, self.high]] * dim),
            population_size=self.population,
        )

    def _sample(self) -> Tensor:
        self._cma.reseed_rng(seed_at(self.seed, self.generation) % 2**32)
        return torch.tensor([self._cma.ask().tolist() for _ in range(self.population)], dtype=torch.float32)

    def _learn(self, ranked_ND: Tensor, scores: list[tuple[float, float]]) -> None:
        told = [(member.double().numpy(), float(rank)) for rank, member in enumerate(ranked_ND)]
        # It wants whole populations: rejected members come back as the worst ones, at the mean, where they weigh least.
        told += [(self._cma.mean.copy(), float(self.population))] * (self.population - len(told))
        self._cma.tell(told)
        self.mean = torch.tensor(self._cma.mean, dtype=torch.float32).clamp(self.low, self.high)
        self.std = torch.tensor(self._cma._sigma * self._cma._C**0.5, dtype=torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """See `Search`; with the library's own state."""
        # Not its bounds, which are given again, nor its history of values, which only its own stopping rule reads.
        kept = {k: v for k, v in self._cma.__getstate__().items() if k not in ("_bounds", "_funhist_values")}
        inner = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in kept.items()}
        return {**super().state_dict(), "cmaes": inner}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Search`."""
        import numpy as np

        super().load_state_dict(state)
        inner = {k: np.array(v) if isinstance(v, list) else v for k, v in state["cmaes"].items()}
        self._cma.__setstate__(inner)


SEARCHES: Mapping[str, type[Search]] = MappingProxyType({"cem": CEM, "random": RandomSearch, "sep_cma": SepCMA})


def make_search(kind: str, dim: int, **options: Any) -> Search:
    """A search by name (`cem`, `random`, `sep_cma`).

    Raises:
        ConfigError: Unknown name, with the nearest one; or options that it cannot have.
    """
    if kind not in SEARCHES:
        raise ConfigError(f"unknown search {kind!r}{nearest(kind, SEARCHES)} Known: {', '.join(SEARCHES)}")
    return SEARCHES[kind](dim, **options)


def _numbers(name: str, values: Numbers, count: int) -> list[float]:
    numbers = [float(v) for v in values]
    if len(numbers) != count:
        raise UserError(f"{len(numbers)} {name} for a population of {count}; tell one per member of the last ask()")
    return numbers
