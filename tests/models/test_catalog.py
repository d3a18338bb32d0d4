import json

import pytest

from convnext_cli.errors import UnknownModelError, UsageError
from convnext_cli.models.catalog import find_model, list_models, load_catalog, load_ranking
from tools.generate_catalog import CATALOG, build_catalog


def test_catalog_equals_the_installed_timm() -> None:
    assert json.loads(CATALOG.read_text()) == json.loads(json.dumps(build_catalog()))


def test_counts() -> None:
    catalog = load_catalog()
    assert len(catalog) == 31
    assert sum(len(model.tags) for model in catalog.values()) == 101
    assert {name for name, model in catalog.items() if not model.tags} == {"convnextv2_small", "convnext_atto_rms"}


def test_true_figures_stand_where_the_specification_is_wrong() -> None:
    catalog = load_catalog()
    millions = {"convnext_zepto_rms": 2.16, "convnext_atto": 3.70, "convnext_nano": 15.59, "convnextv2_huge": 660.29}
    for name, expected in millions.items():
        assert round(catalog[name].params / 1e6, 2) == expected
    assert catalog["convnext_base"].gmacs == pytest.approx(15.384, abs=0.001)
    assert catalog["convnextv2_tiny"].grn
    assert not catalog["convnextv2_tiny"].layer_scale
    assert catalog["convnext_tiny"].layer_scale
    assert catalog["convnext_tiny_hnf"].head.startswith("norm -> average pool")
    assert catalog["convnext_atto_ols"].stem == "3x3 stride 2 + 3x3 stride 2"
    assert all(tag.license == "cc-by-nc-4.0" for tag in catalog["convnextv2_base"].tags)


def test_ranking_names_known_models_once() -> None:
    titles, ranks = load_ranking()
    assert sorted(titles) == [1, 2, 3, 4, 5, 6]
    assert set(ranks) == set(load_catalog()) - {"convnext_base"}  # the specification ranks it nowhere
    assert [rank.position for rank in ranks.values()] == list(range(1, 31))


def test_filters() -> None:
    assert [m.name for m in list_models("atto", family="convnextv2")] == ["convnextv2_atto"]
    assert {m.name for m in list_models("convnext_*_ols")} >= {"convnext_atto_ols", "convnext_zepto_rms_ols"}
    assert all(m.params <= 10e6 and m.tags for m in list_models(max_params=10, pretrained=True))
    assert {m.parsed.family for m in list_models(license="cc-by-nc-4.0")} == {"convnextv2"}
    assert len(list_models(tier=1)) == 4
    assert not list_models("resnet")


def test_find_model_takes_a_tag() -> None:
    model, tag = find_model("convnext_tiny.fb_in22k")
    assert model.name == "convnext_tiny"
    assert tag is not None
    assert tag.num_classes == 21841


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="convnextv2_tiny"):
        find_model("convnextv2_tinny")
    with pytest.raises(UsageError, match="fb_in22k"):
        find_model("convnext_tiny.fb_in22")
    with pytest.raises(UnknownModelError):
        find_model("convnextv2_xlarge")  # well formed, and does not exist
