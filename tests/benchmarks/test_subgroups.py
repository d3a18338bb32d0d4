"""The simulations of subgroups run, and plant what they say."""

import numpy as np
import pytest

from benchmarks.subgroups import SCENARIOS, Scenario, draw, evaluate, finds_gap, has_alarm


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_each_scenario_is_drawn_and_tested(scenario: Scenario) -> None:
    images, attributes = draw(scenario, 0)
    assert len(images.targets) == scenario.images
    assert all(len(attribute.values) == scenario.images for attribute in attributes)
    assert (images.groups is not None) == (scenario.per_patient > 1)
    assert evaluate(scenario, 0).tests > 5
    assert has_alarm(scenario, 0) in (True, False)


def test_large_gap_is_found_and_none_of_the_sites() -> None:
    assert finds_gap(Scenario(name="", images=400, per_patient=2, gap=2.0), 1) == (True, False)


def test_uneven_sites_have_patients_of_one_image() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.has_uneven_sites)
    images, [_, site] = draw(scenario, 3)
    assert images.groups is not None
    groups = np.array(images.groups)
    sizes = {name: np.unique(groups[np.array(site.values) == name], return_counts=True)[1] for name in "ABCD"}
    assert sizes["A"].max() == sizes["B"].max() == 1
    assert sizes["C"].mean() > 3
