"""Heat maps of each predicted label, and the serving example with runs of each task."""

import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_cli import predict
from convnext_cli.errors import UsageError
from convnext_cli.inference.torch_classifier import TorchClassifier, map_heat
from convnext_cli.models.forward import prepare_input, split_model
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext
from tests.tasks.conftest import TASKS, list_images

Runs = Callable[[str], RunFolder]


def measure_width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def test_each_predicted_label_has_a_heat_map(task_run: Runs, tables: dict[str, Path], tmp_path: Path) -> None:
    images = list_images(tables["multilabel"], 12)
    predictions = predict(images, task_run("multilabel").path, explain=tmp_path / "heat")
    widths = []
    for prediction in predictions:
        assert prediction.explanation is not None
        assert prediction.labels is not None
        width, gap = 32, 2
        widths.append(measure_width(prediction.explanation))
        assert widths[-1] == width + max(1, len(prediction.labels)) * (width + gap)
    assert len(set(widths)) > 1, "images have different numbers of labels"


def test_named_labels_are_explained_whatever_is_predicted(
    task_run: Runs, tables: dict[str, Path], tmp_path: Path, convnext: Convnext
) -> None:
    run, image = task_run("multilabel").path, list_images(tables["multilabel"], 1)[0]
    [prediction] = predict(image, run, explain=tmp_path / "two", explain_class=("SW", "NE"))
    assert prediction.explanation is not None
    assert measure_width(prediction.explanation) == 32 + 2 * 34
    command = ("predict", image, "--run", run, "--explain-class")
    assert convnext(*command, "NE", "--explain", tmp_path / "one").code == 0
    unknown = convnext(*command, "North", "--explain", tmp_path / "none")
    assert unknown.code == 2
    assert "unknown class 'North' in --explain-class" in unknown.err
    with pytest.raises(UsageError, match=r"'SW,NE' in --explain-class\. Give one class with each --explain-class"):
        predict(image, run, explain=tmp_path / "two", explain_class=("SW,NE",))
    with pytest.raises(UsageError, match="--explain-class needs a folder"):
        predict(image, run, explain_class=("NE",))


def test_heat_maps_of_labels_are_those_of_the_model(task_run: Runs) -> None:
    classifier = TorchClassifier(task_run("multilabel").path, torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), np.uint8)
    heat = classifier.run_batch(pixels, features=False, heat=(3, 1)).heat
    with torch.inference_mode():
        maps = split_model(classifier.model, prepare_input(pixels, classifier.preprocessing, classifier.device))[0]
    assert heat.shape == (3, 2, *maps.shape[2:])
    for place, label in enumerate((3, 1)):
        expected = map_heat(classifier.model, maps, torch.full((3,), label))
        np.testing.assert_allclose(heat[:, place], expected.numpy(), rtol=1e-5)
    assert not np.allclose(heat[:, 0], heat[:, 1])


@pytest.mark.parametrize("kind", TASKS)
def test_a_run_of_any_task_is_served(kind: str, task_run: Runs, tables: dict[str, Path]) -> None:
    for name in ("fastapi", "multipart"):
        pytest.importorskip(name, reason="the extra serve is not installed")
    import socket

    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from examples import serve

    run, image = task_run(kind), list_images(tables[kind], 1)[0]
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(serve.make_app(run.path), http=serve.Connection, ws="none", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        request = urllib.request.Request(
            f"http://127.0.0.1:{listening.getsockname()[1]}/",
            data=head + image.read_bytes() + b"\r\n--x--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        )
        with urllib.request.urlopen(request, timeout=180) as response:  # noqa: S310
            page = response.read().decode()
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
    [prediction] = predict(image, run.path)
    said = page.partition('<p id="prediction">')[2].partition("</p>")[0]
    assert 'id="heat"' in page
    for name in prediction.labels or prediction.classes[:1]:
        assert name in said or prediction.value is not None
    if prediction.interval is not None:
        assert "90% interval" in said
    assert page.count("<tr>") == len(prediction.probabilities)
