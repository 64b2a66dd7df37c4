"""The paper's ten claims: hypotheses as data, their tests as functions, their verdicts computed from studies.

A > B holds if the 95 % interval of the paired difference over seeds lies above 0, A >= B if it lies above -2 points
(`MARGIN`); each does not hold if it lies below that bound. With fewer than five common seeds it is not decided.
A claim over several tasks is judged on the mean over them; a task without five seeds leaves it undecided. The last
claim is about matrices of the base, which have no seeds: its interval is over matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from transformer2.report.spectrum import LORA, share_of_top
from transformer2.study.cells import accuracies, trainings
from transformer2.study.readings import (
    Points,
    by_label,
    by_modules,
    by_skill,
    common,
    cost,
    ends,
    fall,
    gain,
    result,
    strategy,
    trainable,
)
from transformer2.study.results import Study
from transformer2.study.statistics import (
    MARGIN,
    Difference,
    Verdict,
    all_of,
    difference,
    judged,
    mean_difference,
    p_against,
)
from transformer2.study.unseen import rows_of, tasks

FEWER = 0.2  # "far fewer numbers": at most this share
ABOVE, NO_WORSE = 0.0, -MARGIN  # bounds
MISSED = 10.0  # "misses the spectrum": more than so many % of ||W||^2
Studies = Mapping[str, Study]  # builder -> study, all of one base


@dataclass(frozen=True)
class Effect:
    """One comparison.

    Attributes:
        what: What is compared.
        found: The paired difference over seeds; None where no seed has both.
        verdict: Of this comparison.
        counts: Whether the claim's verdict depends on it; else it is shown beside.
        fact: What there is to say instead of a difference over seeds.
        bound: That the difference is to be above.
    """

    what: str
    found: Difference | None
    verdict: Verdict
    counts: bool = True
    fact: str = ""
    bound: float = ABOVE

    @property
    def p(self) -> float:
        """Two-sided, against the bound; what is counted, not tested, is certain."""
        if self.verdict == "not decided":
            return 1.0
        return p_against(self.found, self.bound) if self.found else 0.0


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        title: In a few words.
        hypothesis: What is tested.
        studies: Builders of the studies that it is tested on.
        test: Takes those studies.
    """

    title: str
    hypothesis: str
    studies: tuple[str, ...]
    test: Callable[..., list[Effect]]

    def effects(self, studies: Studies) -> list[Effect]:
        """Test it; a study that is not there is taken as empty, so that its absence decides nothing."""
        return self.test(*(studies.get(build, Study(build, "", "", "", build, (), ())) for build in self.studies))


def verdict(effects: Sequence[Effect]) -> str:
    """The verdict of a claim; where it is not decided, with the fewest seeds that a comparison has."""
    counted = [effect for effect in effects if effect.counts]
    found = all_of([effect.verdict for effect in counted])
    if found != "not decided":
        return found
    open_ones = [effect for effect in counted if effect.verdict == found]
    seeds = min((effect.found.seeds if effect.found and not effect.fact else 0 for effect in open_ones), default=0)
    return f"not decided ({seeds} seed{'' if seeds == 1 else 's'})"


def p_value(effects: Sequence[Effect]) -> float:
    """Of a verdict: of `holds` the largest of its parts; one part of several is enough not to hold (Bonferroni)."""
    counted = [effect for effect in effects if effect.counts]
    found = all_of([effect.verdict for effect in counted])
    if found == "does not hold":
        return min(1.0, len(counted) * min(effect.p for effect in counted if effect.verdict == found))
    return max((effect.p for effect in counted), default=1.0)


def _compared(what: str, first: Points, second: Points, bound: float, counts: bool = True) -> Effect:
    found = difference(first, second)
    return Effect(what, found, judged(found, bound), counts, bound=bound)


def _with_mean(what: str, first: Mapping[str, Points], second: Mapping[str, Points], bound: float) -> list[Effect]:
    """The mean over tasks, which counts, and each task beside it; a task of one side alone leaves no common seed."""
    names = list(dict.fromkeys([*first, *second]))
    sides = [[of.get(name, {}) for name in names] for of in (first, second)]
    seeds = common([side for both in sides for side in both])
    a, b = ({seed: fmean(of[seed] for of in side) for seed in seeds} for side in sides)
    whole = _compared(what if len(names) < 2 else f"{what}, mean of {', '.join(names)}", a, b, bound)
    if len(names) < 2:
        return [whole]
    return [whole, *(_compared(f"{what}, {n}", first.get(n, {}), second.get(n, {}), bound, False) for n in names)]


def _named_in_both(
    first: Mapping[str, Points], second: Mapping[str, Points]
) -> tuple[dict[str, Points], dict[str, Points]]:
    """What the study has on both sides, done or not."""
    names = [name for name in first if name in second]
    return {name: first[name] for name in names}, {name: second[name] for name in names}


def _svf_beats_base(table1: Study) -> list[Effect]:
    gains = by_skill(table1, "svf", gain)
    return _with_mean("SVF - base", gains, {skill: dict.fromkeys(of, 0.0) for skill, of in gains.items()}, ABOVE)


def _svf_and_lora(table1: Study) -> list[Effect]:
    svf, lora = (by_skill(table1, name, result) for name in ("svf", "lora"))
    ours, theirs = (trainable(table1, name) for name in ("svf", "lora"))
    numbers = Effect("trainable numbers, SVF / LoRA", None, "not decided")
    if ours and theirs:
        fact = f"{ours:,.0f} / {theirs:,.0f} = {ours / theirs:.2f}, to be at most {FEWER:g}"
        numbers = replace(numbers, verdict="holds" if ours / theirs <= FEWER else "does not hold", fact=fact)
    return [*_with_mean("SVF - LoRA", svf, lora, NO_WORSE), numbers]


def _modules_in_order(table4: Study) -> list[Effect]:
    of = by_modules(table4, "svf", "policy gradient")
    pairs = (("both", "mlp"), ("mlp", "attention"))
    return [_compared(f"SVF, {a} - {b}", of.get(a, {}), of.get(b, {}), NO_WORSE) for a, b in pairs]


def _policy_gradient_beats_next_token(table4: Study) -> list[Effect]:
    sides = (by_modules(table4, "svf", goal) for goal in ("policy gradient", "next token"))
    return _with_mean("SVF, policy gradient - next token", *_named_in_both(*sides), ABOVE)


def _lora_is_unstable(table4: Study, figure9: Study) -> list[Effect]:
    sides = (by_modules(table4, name, "policy gradient", fall) for name in ("lora", "svf"))
    effects = _with_mean("fall after the best validation, LoRA - SVF", *_named_in_both(*sides), ABOVE)
    for name, group in figure9.groups.items():
        curves = {seed: accuracies(training) for seed, training in trainings(group.reports).items()}
        first, last = ({seed: curve[end] for seed, curve in curves.items()} for end in (0, -1))
        rate = group.labels.get("lr", name)
        effects.append(_compared(f"LoRA at rate {rate}, validation: start - end", first, last, ABOVE, counts=False))
    return effects


def _cls_and_prompt(table2: Study) -> list[Effect]:
    return _with_mean("cls - prompt", strategy(table2, "cls"), strategy(table2, "prompt"), NO_WORSE)


def _few_shot_and_single(table2: Study) -> list[Effect]:
    best: dict[str, Points] = {}
    for task in tasks(table2):
        singles = [result(row.reports) for name, row in rows_of(table2, task).items() if name.startswith("expert ")]
        best[task] = {seed: max(of[seed] for of in singles) for seed in common(singles)}
    return _with_mean("few-shot - best single expert", strategy(table2, "cem"), best, NO_WORSE)


def _ordered_and_shuffled(table5: Study) -> list[Effect]:
    return _with_mean("ordered - shuffled", by_label(table5, "ordered"), by_label(table5, "shuffled"), ABOVE)


def _more_is_no_worse(table8: Study, table10: Study) -> list[Effect]:
    shots = ends(table8, "shots", lambda report, label: float(label) if label.isdecimal() else math.nan)
    budgets = ends(table10, "budget", lambda report, label: cost(report))
    effects = _with_mean("most shots - fewest", *shots, NO_WORSE)
    return [*effects, *_with_mean("largest budget - smallest", *budgets, NO_WORSE)]


def _low_rank_misses(figure10: Study) -> list[Effect]:
    """Of each matrix of the base; a spectrum has no seeds."""
    spectra = [run.report["spectrum"] for run in figure10.runs if run.report and "spectrum" in run.report]
    missed = [100 * (1 - share_of_top(matrix, "sum_of_squares", LORA)) for matrix in spectra[0]] if spectra else []
    what = f"||W||² beyond the top {LORA}"
    if not missed:
        return [Effect(what, None, "not decided")]
    found, beyond = mean_difference(missed), mean_difference([of - MISSED for of in missed])
    fact = (
        f"{found.mean:.1f} % [{found.low:.1f}, {found.high:.1f}] over {len(missed)} matrices, to be above {MISSED:g} %"
    )
    return [Effect(what, beyond, judged(beyond, ABOVE), fact=fact)]


CLAIMS: tuple[Claim, ...] = (
    Claim("SVF > base", "an SVF expert answers more of its own task right than the base", ("table1",), _svf_beats_base),
    Claim(
        "SVF >= LoRA with far fewer numbers",
        f"no worse than LoRA by {MARGIN:g} points, with at most {FEWER:g} of its trainable numbers",
        ("table1",),
        _svf_and_lora,
    ),
    Claim(
        "MLP + attention >= MLP >= attention",
        f"SVF on more matrices is no worse by {MARGIN:g} points, and on the MLP no worse than on attention",
        ("table4",),
        _modules_in_order,
    ),
    Claim(
        "policy gradient > next token for SVF",
        "SVF trained by policy gradient answers more right than trained on the gold solutions' tokens",
        ("table4",),
        _policy_gradient_beats_next_token,
    ),
    Claim(
        "LoRA under policy gradient is unstable",
        "from its best validation to its last, LoRA falls further than SVF, both under policy gradient at tuned rates",
        ("table4", "figure9"),
        _lora_is_unstable,
    ),
    Claim(
        "cls >= prompt dispatch",
        f"dispatch by the classification expert is no worse than by prompt by {MARGIN:g} points",
        ("table2",),
        _cls_and_prompt,
    ),
    Claim(
        "few-shot >= best single expert",
        f"the few-shot mixture is no worse by {MARGIN:g} points than the single expert that is best on the scored rows",
        ("table2",),
        _few_shot_and_single,
    ),
    Claim(
        "ordered > shuffled z across models",
        "an expert of one model, moved to another, answers more right with its z in order than shuffled",
        ("table5",),
        _ordered_and_shuffled,
    ),
    Claim(
        "more shots or budget do not hurt",
        f"the most shots, and the largest budget, are no worse by {MARGIN:g} points than the fewest and the smallest",
        ("table8", "table10"),
        _more_is_no_worse,
    ),
    Claim(
        "low rank misses the spectrum",
        f"the best approximation of rank {LORA} (that of the paper's LoRA) misses more than {MISSED:g} % of ||W||²",
        ("figure10",),
        _low_rank_misses,
    ),
)
