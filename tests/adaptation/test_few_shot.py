"""The settings of a search: what is given holds, and a preset fills in the rest."""

import pytest

from transformer2.adaptation.few_shot import DEFAULTS, OF_PRESETS, FewShotSearch
from transformer2.callbacks.few_shot import FewShotEvaluator
from transformer2.errors import ConfigError

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
