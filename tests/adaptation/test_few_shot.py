"""The settings of a search: what is given holds, and a preset fills in the rest."""

import pytest

from transformer2.adaptation.evaluate import evaluate
from transformer2.adaptation.few_shot import DEFAULTS, OF_PRESETS, UNREAD, FewShotSearch
from transformer2.adaptive.model import SelfAdaptive
from transformer2.callbacks.few_shot import FewShotEvaluator
from transformer2.data import UnseenTaskDataModule
from transformer2.errors import ConfigError, UserError
from transformer2.module import SVFReinforceModule
from transformer2.tasks.tiny import TinyMath
from transformer2.types import Verdict


@pytest.fixture(scope="module")
def module():
    module = SVFReinforceModule("tiny", adapter={"peft_type": "SVF", "target_modules": "all-linear"})
    module.configure_model()
    return module


# Of each setting that a preset has, one that is nobody's.
OTHER = {
    "population": 4,
    "elite_ratio": 0.5,
    "low": -1.0,
    "high": 2.0,
    "std": 0.3,
    "granularity": "kind",
    "mix": "normalised",
    "generations": 2,
}


@pytest.mark.parametrize("of", [FewShotSearch, FewShotEvaluator])
@pytest.mark.parametrize("preset", [None, *OF_PRESETS])
def test_what_is_given_wins_over_a_preset_even_where_it_is_a_default(of, preset):
    assert DEFAULTS.keys() == OF_PRESETS["paper"].keys() == OF_PRESETS["reference"].keys() == {*OTHER, "keep_best"}
    own = DEFAULTS if preset is None else OF_PRESETS[preset]
    assert of(preset=preset).settings.items() >= own.items()
    flags = [*OTHER.items(), *DEFAULTS.items(), ("keep_best", True)]
    for name, value in flags:
        assert of(preset=preset, **{name: value}).settings.items() >= {**own, name: value}.items()
    unlimited = of(preset=preset, generations=None, max_evaluations=64)
    assert unlimited.settings["generations"] is None and unlimited.budget.total(16) == 4


@pytest.mark.parametrize("of", [FewShotSearch, FewShotEvaluator])
@pytest.mark.parametrize(("search", "name"), [(search, name) for search, names in UNREAD.items() for name in names])
def test_a_setting_that_the_search_does_not_read_is_refused_and_not_reported(of, search, name):
    with pytest.raises(ConfigError, match=f"adapt.{name} is not read by adapt.search {search}; leave it out"):
        of(search=search, **{name: DEFAULTS[name]})
    assert name not in of(search=search, **{name: "auto"}).settings


@pytest.mark.parametrize(
    "settings",
    [{"max_evaluations": 5}, {"max_evaluations": 31, "preset": "paper"}, {"max_evaluations": 7, "population": 8}],
)
def test_a_limit_below_one_generation_is_refused(settings):
    population = settings.get("population", 32 if "preset" in settings else 16)
    said = f"adapt.max_evaluations {settings['max_evaluations']} is below adapt.population {population}, "
    with pytest.raises(ConfigError, match=said):
        FewShotSearch(**settings)
    assert FewShotSearch(**{**settings, "max_evaluations": population}).budget.total(population) == 1


class RaisesOnWrongAnswers(TinyMath):
    def verify(self, example, completion):
        verdict = super().verify(example, completion)
        assert verdict.correct, "wrong"
        return verdict


def test_a_search_on_one_s_own_rows_notices_a_broken_verifier():
    model, rows = SelfAdaptive.from_pretrained("tiny"), TinyMath().examples("validation")[:4]
    with pytest.raises(UserError, match="of 8 answers could not be verified"):
        model.adapt(rows, RaisesOnWrongAnswers(), generations=1, population=2)
    model.adapt(rows, TinyMath(), preset="paper", generations=1, population=2)


class AbstainsOnWrongAnswers(TinyMath):
    def verify(self, example, completion):
        verdict = super().verify(example, completion)
        return verdict if verdict.correct else Verdict.abstain("cannot tell")


def test_protocol_paper_compares_iterations_on_the_same_rows(module):
    found = []
    for task in (TinyMath(), AbstainsOnWrongAnswers()):
        data = UnseenTaskDataModule("tiny_math", few_shot=2, test_limit=6, protocol="paper")
        data.setup("test")
        data.task = task
        search = FewShotSearch(preset="paper", generations=2, population=2, controls=False)
        report = evaluate(module.answerer(task), data, search, max_batches=1).report
        found.append(report.details["selected_on_scored_rows"])
    assert found[0] == found[1] and 0 < max(found[0]["scores"]) < 1
    assert report.n < 6  # rows that base and result both have a verdict on
