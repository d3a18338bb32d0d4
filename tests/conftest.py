import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: more threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convnext_cli import finetune
from convnext_cli.cli.app import OBJECTS, main
from convnext_cli.data.digits import write_digits
from convnext_cli.exports.request import ExportRequest
from convnext_cli.machine import LAUNCHER
from convnext_cli.progress import finish
from convnext_cli.runs.folder import RunFolder

if TYPE_CHECKING:
    from convnext_cli.exports.export import ExportedFile

ROOT = Path(__file__).parents[1]  # of the repository

hypothesis.settings.register_profile("untimed", deadline=None)  # no test depends on the load of the machine
hypothesis.settings.load_profile("untimed")

# A run that takes seconds and still learns: 300 digits of 3 classes, from the weights in the package.
SMALL = {
    "model": "convnext_zepto_rms",
    "weights": "builtin",
    "epochs": 1,
    "freeze_epochs": 0,
    "batch_size": 16,
    "lr": 1e-3,
    "warmup_epochs": 0.2,
    "image_size": 32,
    "fit": "crop",  # evaluation sees less than the image
    "min_crop_area": 0.9,
    "val_fraction": 0.2,  # 60 images: enough to choose the best epoch by
}

SHALLOW = {"model": "test_convnext2", "weights": "none"}  # 4 blocks: the time of an export grows with their number


gc.set_threshold(OBJECTS)  # as the program does

left_out: list[int] = []  # slow tests left out, by each process that collected them


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the slow tests that are left out."""
    left_out.append(sum(item.get_closest_marker("slow") is not None for item in items))


def pytest_collection_finish() -> None:
    """Let no garbage collection go through the half million objects of the imported modules and collected tests."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the first process, which collects no tests itself, what this worker has left out."""
    gc.unfreeze()  # at the end, Triton would report what is frozen as leaked
    if output := getattr(session.config, "workeroutput", None):
        output["left_out"] = sum(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each worker collects all tests, so one of them is asked."""
    left_out[:] = [getattr(node, "workeroutput", {}).get("left_out", 0)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was left out, and how to run it."""
    if number := sum(left_out):
        terminalreporter.write_line(
            f"{number} slow tests were left out. `pytest -m slow` runs them, `pytest -m ''` all."
        )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests cache is gone after them, and what the user cached is not seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVNEXT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CONVNEXT_ONNX", "0")  # seconds for every run; the tests of it ask for it
        yield


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in a folder of its own, with no run in it, and never asks the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("CONVNEXT_DEBUG", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Under nohup SIGHUP is ignored, and the program leaves ignored signals so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images: 100 each of the digits 0, 1 and 2, as PNG class folders."""
    everything = write_digits(tmp_path_factory.mktemp("all"))
    chosen = tmp_path_factory.mktemp("digits")
    for digit in "012":
        (chosen / digit).mkdir()
        for path in sorted((everything / digit).glob("*.png"))[:100]:
            path.rename(chosen / digit / path.name)
    return chosen


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 of these images, for trainings that need not learn."""
    from tools.kill_test import copy_images

    return copy_images(digits, tmp_path_factory.mktemp("few"), 20)


@pytest.fixture(scope="session")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    finetune(digits, output=folder, **SMALL)  # type: ignore[arg-type]
    return RunFolder(folder)


@pytest.fixture
def run_copy(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run that a test may change, not evaluated yet."""
    return RunFolder(shutil.copytree(run.path, tmp_path / "mine", ignore=shutil.ignore_patterns("tests.jsonl")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that are not ours to pass on."""
    folder = os.environ.get("CONVNEXT_TEST_DATA")
    if not folder:
        pytest.skip("CONVNEXT_TEST_DATA does not name a folder with the real data sets")
    return Path(folder)


class Outcome(NamedTuple):
    """Exit code and outputs of a command."""

    code: int
    out: str
    err: str


Convnext = Callable[..., Outcome]


@pytest.fixture
def convnext(capsys: pytest.CaptureFixture[str]) -> Convnext:
    """Runs the command line in this process."""

    def call(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Outcome(caught.value.code or 0, out, err)  # type: ignore[arg-type]

    return call


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A launcher's environment for the first of two processes; the test may change it."""
    for name, value in zip(LAUNCHER, ("0", "0", "2", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    return monkeypatch


@contextmanager
def limit_files(size: int) -> Iterator[None]:
    """Let files have `size` bytes: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def run_all(steps: Generator[object, None, object]) -> list[Any]:
    """Run a long operation to its end; return its events and, last, its result."""
    events: list[Any] = []
    result = finish(steps, events.append)
    return [*events, result]


def list_images(run: RunFolder, split: str) -> list[Path]:
    """Return the images of a split of a run."""
    index = run.read_split()
    return [index.root / index.paths[row] for row in index.rows(split)]


def export(run: RunFolder, **options: Any) -> "ExportedFile":
    """Export a run to a file."""
    from convnext_cli.exports.export import ExportedFile, export_steps  # PyTorch

    exported = finish(export_steps(run, ExportRequest(**options)))
    assert isinstance(exported, ExportedFile)
    return exported


def list_imported(*words: str) -> tuple[set[str], str]:
    """Run a command in a process of its own; return the modules that it imports, and its output."""
    script = (
        "import json, sys\n"
        "from convnext_cli.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


def change_json(path: Path, place: str, value: Any) -> None:
    """Replace one value of a JSON file, such as `thresholds.0.threshold`; `...` as the value removes it.

    The file then has no digest, as those of earlier versions.
    """
    data = node = json.loads(path.read_text())
    if isinstance(data, dict) and place != "digest":
        data.pop("digest", None)
    *keys, last = place.split(".")
    for key in keys:
        node = node[int(key) if key.isdigit() else key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    path.write_text(json.dumps(data))


def draw_picture(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture with large and small forms, unlike that of any other seed."""
    random = np.random.default_rng((7, seed))
    layers = [random.uniform(0, 255, (side, side, 3)).astype(np.uint8) for side in (3, 6, 24)]
    scaled = [np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC), float) for layer in layers]
    mixed = 0.5 * scaled[0] + 0.35 * scaled[1] + 0.15 * scaled[2]
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def draw_relative(family: int, seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture of its own that resembles others of its family, as two of one patient do."""
    return Image.blend(draw_picture(10_000 + family, size), draw_picture(seed, size), 0.5)


def draw_scene(seed: int, width: int = 240, height: int = 200) -> Image.Image:
    """A picture with forms of all sizes, as a photo has."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng((11, seed))
    layers = [gaussian_filter(random.normal(size=(height, width, 3)), (sigma, sigma, 0)) for sigma in (2, 4, 8, 16)]
    mixed = sum(layer / layer.std() for layer in layers) * 22 + 128
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


@cache
def _draw_background() -> Image.Image:
    return draw_scene(0)


def draw_frame(seed: int) -> Image.Image:
    """A frame of a camera that does not move: one scene, with noise and a lamp that varies, and a spot of its own."""
    random = np.random.default_rng((13, seed))
    values = np.asarray(_draw_background(), np.float32) * random.uniform(0.97, 1.03)
    row, column = random.integers(0, 190), random.integers(0, 230)
    values[row : row + 8, column : column + 8] = random.uniform(0, 255)
    return Image.fromarray(np.clip(values + random.normal(size=values.shape) * 2, 0, 255).astype(np.uint8))


def change_tones(image: Image.Image, gain: float = 1.0, offset: float = 0.0, gamma: float = 1.0) -> Image.Image:
    """The image with another contrast and brightness, then another gamma; values are clipped at black and white."""
    levels = [255 * min(max((gain * value + offset) / 255, 0.0), 1.0) ** gamma for value in range(256)]
    return image.point([round(level) for level in levels] * len(image.getbands()))


def draw_noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise in each channel, (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_image(path: Path, size: tuple[int, int] = (20, 20), seed: int = 0) -> Path:
    """Writes a picture of noise, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_noise(*size[::-1], seed)).save(path)
    return path
