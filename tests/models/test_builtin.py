"""The weights that come with the package."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from convnext_cli.errors import UsageError, WeightsError
from convnext_cli.models.build import ModelOptions, build_model, read_preprocessing
from convnext_cli.models.catalog import find_model, load_builtin
from convnext_cli.models.hub import find_weights
from convnext_cli.models.licenses import NON_COMMERCIAL_LICENSES
from convnext_cli.models.weights import read_weights
from convnext_cli.recipes.recommendation import recommend
from convnext_cli.training.planning import prepare
from convnext_cli.training.request import TrainRequest
from tests.conftest import Convnext

OWN = load_builtin()
NAME = f"{OWN.architecture}.{OWN.tag.name}"


def test_builtin_weights_fill_all_parameters_but_the_classifier() -> None:
    architecture, tag = find_model(NAME)
    path = find_weights(architecture, tag, offline=True)
    assert path.stat().st_size < 8_000_000
    model, new = build_model(architecture, tag, ModelOptions(num_classes=4), offline=True)
    assert new == ["head.fc.weight", "head.fc.bias"]
    stored = read_weights(path)
    for name, value in model.state_dict().items():
        if name not in new:
            assert torch.equal(value, stored[name].float())
            assert value.isfinite().all()


def test_builtin_preprocessing_and_licence_match_the_card() -> None:
    architecture, tag = find_model(NAME)
    assert tag is not None
    model, _ = build_model(architecture, tag, ModelOptions(num_classes=2), offline=True)
    preprocessing = read_preprocessing(model)
    assert preprocessing == tag.preprocessing
    assert not tag.is_permissive
    assert tag.license in NON_COMMERCIAL_LICENSES, "the terms of its training images"
    for title in ("Data", "Recipe", "Hardware", "Licence", "Good for", "Not for", "Rank"):
        assert OWN.card[title]


def test_builtin_features_classify_digits_better_than_random_ones(digits: Path) -> None:
    from convnext_cli.images.decode import decode_image
    from convnext_cli.images.transforms import transform_for_eval
    from convnext_cli.models.forward import prepare_input

    files = [path for digit in "012" for path in sorted((digits / digit).glob("*.png"))[:60]]
    labels = np.repeat([0, 1, 2], 60)
    right = {}
    for weights in ("auto", "none"):
        torch.manual_seed(0)
        model, _ = build_model(*find_model(NAME), ModelOptions(num_classes=0), weights=weights, offline=True)
        preprocessing = replace(read_preprocessing(model), image_size=32)
        images = np.stack([transform_for_eval(decode_image(path), preprocessing) for path in files])
        with torch.inference_mode():
            features = model.eval()(prepare_input(images, preprocessing, torch.device("cpu"))).numpy()
        few = np.arange(len(files)) % 20 < 2  # six of each class to learn from
        probe = LogisticRegression(max_iter=1_000).fit(features[few] / features.std(), labels[few])
        right[weights] = probe.score(features[~few] / features.std(), labels[~few])
    assert right["auto"] > right["none"] + 0.02
    assert right["auto"] > 0.9


def test_builtin_weights_are_refused_for_other_models(digits: Path, tmp_path: Path) -> None:
    def prepared(**options: object) -> str:
        request = TrainRequest(data=digits, audit=False, output=tmp_path / "run", weights="builtin", **options)  # type: ignore[arg-type]
        return prepare(request).plan.model

    assert prepared() == prepared(model=OWN.architecture) == prepared(model=NAME) == NAME
    with pytest.raises(UsageError, match=f"are for {OWN.architecture}, not for convnext_tiny"):
        prepared(model="convnext_tiny")


@pytest.mark.parametrize("images", [50, 6_000, 100_000, 2_000_000])
def test_builtin_weights_are_never_recommended(images: int) -> None:
    for prefer in (None, "accuracy", "speed", "size"):
        recommendation = recommend(images, prefer=prefer)
        assert all(candidate.tag != OWN.tag for candidate in recommendation.candidates)


def test_errors_of_the_hub_suggest_the_builtin_weights() -> None:
    with pytest.raises(WeightsError) as caught:
        find_weights(*find_model("convnext_tiny"), offline=True)
    assert "--weights builtin, without --model and --config" in caught.value.remedy  # they are of one model


def test_builtin_weights_work_without_a_network(
    digits: Path, convnext: Convnext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tune, evaluate and predict with every connection refused."""

    def refuse(*_: object) -> None:
        raise OSError("no network in this test")

    for name in ("socket.socket.connect", "socket.socket.connect_ex", "socket.getaddrinfo"):
        monkeypatch.setattr(name, refuse)
    options = ("--epochs", 2, "--image-size", 32, "--lr", 1e-3, "--batch-size", 16, "-o", "run")
    assert convnext("finetune", digits, "--weights", "builtin", *options).code == 0
    assert convnext("eval", "run").code == 0
    outcome = convnext("predict", next((digits / "2").glob("*.png")), "--run", "run", "--json")
    assert json.loads(outcome.out)[0]["class"] == "2"
