import timm

from convnext_cli.models.catalog import load_catalog
from convnext_cli.models.names import ModelName, parse_name


def join(parsed: ModelName) -> str:
    name = "_".join((parsed.family, parsed.size, *parsed.modifiers))
    return f"{name}.{parsed.tag}" if parsed.tag else name


def test_every_architecture_of_timm_parses_and_round_trips() -> None:
    names = timm.list_models("convnext*") + timm.list_models("test_convnext*")
    assert len(names) == 31
    for name in names:
        parsed = parse_name(name)
        assert parsed is not None, name
        assert join(parsed) == name


def test_every_tagged_name_of_timm_parses_and_round_trips() -> None:
    weightless = [model.name for model in load_catalog().values() if not model.tags]
    names = timm.list_pretrained("convnext*") + timm.list_pretrained("test_convnext*")
    names += [f"{name}.untrained" for name in weightless]
    assert len(names) == 103
    for name in names:
        parsed = parse_name(name)
        assert parsed is not None, name
        assert join(parsed) == name
        assert parsed.tag


def test_names_with_two_modifiers_and_a_tag_are_parsed() -> None:
    assert parse_name("convnext_zepto_rms_ols.ra4_e3600_r224_in1k") == ModelName(
        family="convnext", size="zepto", modifiers=("rms", "ols"), tag="ra4_e3600_r224_in1k"
    )


def test_names_of_other_models_are_not_parsed() -> None:
    for name in (
        "resnet50",
        "convnext",
        "convnext_",
        "convnext_medium",
        "convnextv3_tiny",
        "convnext_tiny.",
        "",
        "test_vit",
    ):
        assert parse_name(name) is None, name
