import json
from pathlib import Path

import pytest

from convnext_cli.errors import UnknownModelError, UsageError, WeightsError
from convnext_cli.models.catalog import find_model, list_models, load_catalog, load_ranking, resolve_weights
from tools.generate_catalog import CATALOG, build_catalog


@pytest.mark.slow
def test_catalog_equals_the_installed_timm() -> None:
    assert json.loads(CATALOG.read_text()) == json.loads(json.dumps(build_catalog()))


def test_catalog_has_31_architectures_and_101_tags() -> None:
    catalog = load_catalog()
    assert len(catalog) == 31
    assert sum(len(model.tags) for model in catalog.values()) == 101
    assert {name for name, model in catalog.items() if not model.tags} == {"convnextv2_small", "convnext_atto_rms"}


def test_catalog_has_true_numbers_where_the_specification_is_wrong() -> None:
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
    ranks = load_ranking()
    assert {rank.tier for rank in ranks.values()} == {1, 2, 3, 4, 5, 6}
    assert set(ranks) == set(load_catalog()) - {"convnext_base"}  # the specification ranks it nowhere
    assert [rank.position for rank in ranks.values()] == list(range(1, 31))


def test_list_models_filters() -> None:
    assert [m.name for m in list_models("atto", family="convnextv2")] == ["convnextv2_atto"]
    assert {m.name for m in list_models("convnext_*_ols")} >= {"convnext_atto_ols", "convnext_zepto_rms_ols"}
    assert all(m.params <= 10e6 and m.tags for m in list_models(max_params=10, pretrained=True))
    assert {m.parsed.family for m in list_models(license="cc-by-nc-4.0")} == {"convnextv2"}
    assert len(list_models(tier=1)) == 4
    assert not list_models("resnet")
    for words in ({"family": "resnet"}, {"size": "nan"}, {"license": "mit0"}):
        with pytest.raises(UsageError, match="unknown"):
            list_models(**words)  # type: ignore[arg-type]


def test_find_model_accepts_a_tag() -> None:
    model, tag = find_model("convnext_tiny.fb_in22k")
    assert model.name == "convnext_tiny"
    assert tag is not None
    assert tag.num_classes == 21841


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="convnextv2_tiny"):
        find_model("convnextv2_tinny")
    with pytest.raises(UsageError, match="fb_in22k"):
        find_model("convnext_tiny.fb_in22")
    with pytest.raises(UnknownModelError):
        find_model("convnextv2_xlarge")  # well formed, and does not exist


@pytest.mark.parametrize("prefix", ["", "timm/", "hf-hub:timm/", "hf_hub:timm/", "https://huggingface.co/timm/"])
def test_hub_ids_name_models_and_weights(prefix: str) -> None:
    architecture, tag = find_model(f"{prefix}convnext_tiny.fb_in22k")
    assert (architecture.name, tag and tag.name) == ("convnext_tiny", "fb_in22k")
    assert resolve_weights(None, f"{prefix}convnext_tiny.fb_in22k") == ("convnext_tiny.fb_in22k", "auto")
    assert resolve_weights("convnext_tiny", f"{prefix}convnext_tiny.fb_in22k") == ("convnext_tiny.fb_in22k", "auto")
    for model in ("convnext_small", "convnext_tiny.in12k_ft_in1k"):
        with pytest.raises(UsageError, match=r"are not those of --model.*--config"):
            resolve_weights(model, f"{prefix}convnext_tiny.fb_in22k")


def test_builtin_weights_of_another_model_are_refused_naming_the_plan() -> None:
    with pytest.raises(UsageError, match=r"are for convnext_zepto_rms.*--config"):
        resolve_weights("convnext_tiny", "builtin")


def test_hub_ids_of_other_owners_are_refused_with_a_remedy() -> None:
    for name in ("facebook/convnext-tiny-224", "hf-hub:me/mine"):
        with pytest.raises(UsageError, match=r"hf download .* --local-dir DIR`, then give --weights DIR"):
            find_model(name)
        with pytest.raises(WeightsError, match="not one of timm's models"):
            resolve_weights(None, name)
    with pytest.raises(UnknownModelError, match=r"unknown model 'convnext_tinny'\. Did you mean convnext_tiny"):
        find_model("timm/convnext_tinny")


def test_existing_paths_win_over_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/convnext_tiny").touch()
    assert resolve_weights(None, "timm/convnext_tiny") == (None, "timm/convnext_tiny")
    assert resolve_weights(None, "local-dir:timm") == (None, "timm")
    for path in ("gone.pth", "weights/model.safetensors", "timm/gone"):
        with pytest.raises(WeightsError, match=rf"^no weights at {path}\. Give auto, none, builtin, a \.safetensors"):
            resolve_weights(None, path)
