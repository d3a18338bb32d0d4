"""The simulation of stated confidences runs, and its true sensitivities are those of draws."""

import numpy as np
import pytest

from benchmarks.targets import LEVELS, SCENARIOS, TARGETS, Scenario, draw, simulate, summarise


@pytest.mark.parametrize("scenario", [SCENARIOS[-1], SCENARIOS[0]], ids=lambda scenario: scenario.name)
def test_pairs_have_a_line_for_each_method(scenario: Scenario) -> None:
    target = TARGETS[0]
    pairs = [simulate(scenario, target, seed) for seed in range(3)]
    assert len(list(summarise(scenario, target, pairs))) == (3 if scenario.per_patient > 1 else 1)
    low, high = LEVELS
    for pair in pairs:
        cautious, bold = pair[f"groups {high}"], pair[f"groups {low}"]
        assert cautious is None or bold is None or cautious >= bold
    for each in TARGETS:
        assert scenario.measure(each, scenario.find_edge(each)) == pytest.approx(each.value)


def test_true_sensitivity_is_that_of_many_draws() -> None:
    scenario = SCENARIOS[-1]
    random = np.random.default_rng(0)
    scores = np.concatenate([part[positive] for part, positive, _ in (draw(scenario, random) for _ in range(40))])
    assert np.mean(scores >= 0.4) == pytest.approx(scenario.measure(TARGETS[0], 0.4), abs=0.01)
