"""Every command of README.md and docs/ runs in the order of its page; names, links and built pages are checked.

A `sh` block under a comment `<!-- not run: … -->` is only parsed: all its options must exist.
"""

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Unpack, get_args, get_origin, get_overloads, get_type_hints

import pytest
import timm
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

import convnext_cli
from convnext_cli.cli.app import main, make_app
from convnext_cli.models.catalog import load_catalog
from tests.conftest import ROOT
from tests.reports.browser import CHROMIUM, Browser
from tests.tasks.conftest import write_set

PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, *(Path(name) for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))]
FENCE = re.compile(
    r"(?P<before><!-- not run: [^>]*-->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
ELSEWHERE = {"demo", "doctor"}  # tests/cli runs them
SMALL = {"--model": "test_convnext2", "--image-size": "32", "--micro-batch-size": "16", "--epochs": "1"}
ITEMS = (
    "xrays", "new", "new.png", "new.jpeg", "weights", "findings", "findings.csv", "grades", "grades.csv", "ages",
    "ages.csv", "patients.csv", "sites.csv", "other",
)  # fmt: skip
FOREIGN_FLAGS = {
    "--index-url", "--extra-index-url", "--find-links", "--no-index", "--local-dir", "--config_file", "--strict",
    "--check",
}  # fmt: skip
HOSTS = {"arxiv.org", "doi.org"}  # of external links, which are not requested
GROUP: Any = typer.main.get_command(make_app())


def read_blocks(page: Path, language: str) -> Iterator[tuple[str, bool]]:
    """Yield the code of each block in a language, and whether it is to be run."""
    for fence in FENCE.finditer((ROOT / page).read_text()):
        if fence["language"] == language:
            yield fence["code"], fence["before"] is None


def read_commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield each command of a page as words, and whether it is to be run."""
    for code, is_run in read_blocks(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                if words := shlex.split(command, comments=True):
                    yield words, is_run


def parse(words: list[str]) -> None:
    """Parse the words after `convnext` without running the command; an unknown option raises."""
    command = GROUP.commands[words[0]]
    if not {"-h", "--help", "--help-all"} & set(words):
        command.make_context(words[0], list(words[1:]))


def write_attributes(folder: Path) -> None:
    """Write sex and age of each image of `xrays`, and a table of these images with their site."""
    paths = sorted(path.relative_to(folder).as_posix() for path in (folder / "xrays").rglob("*.png"))
    rows = [["path,sex,age"], ["path,label,patient,site"]]
    for path in paths:
        _, name, patient, _ = path.split("/")
        place = int(patient[1:])
        rows[0].append(f"{path},{'FM'[place % 2]},{5 + 13 * place % 80}")
        rows[1].append(f"{path},{name},{patient},{('Bonn', 'Oslo', 'Rome')[place % 3]}")
    for table, lines in zip(("patients.csv", "sites.csv"), rows, strict=True):
        (folder / table).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: images, weights, a finished run with its ONNX file."""
    folder = tmp_path_factory.mktemp("place")
    for number, name in enumerate(("NORMAL", "SICK", "BACTERIA")):
        for image, path in enumerate(sorted((digits / str(number)).glob("*.png"))[:60]):
            patient = folder / "xrays" / name / f"p{number}{image // 2:02}"
            patient.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, patient / path.name)
        for path in sorted((digits / str(number)).glob("*.png"))[60:]:
            (folder / "other" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "other" / name / path.name)
    write_attributes(folder)
    (folder / "new" / "p900").mkdir(parents=True)
    (folder / "weights").mkdir()
    for kind, table in (("multilabel", "findings"), ("ordinal", "grades"), ("regression", "ages")):
        written = write_set(folder / table, kind, 360 if kind == "multilabel" else 60)
        text = written.read_text().replace("images/", f"{table}/images/").replace(",NW,NE,", ",Edema,Pneumonia,")
        (folder / f"{table}.csv").write_text(text)
    for name in ("new/a.png", "new/p900/b.png", "new.png", "new.jpeg"):
        shutil.copy(sorted((digits / "1").glob("*.png"))[-1], folder / name)
    save_file(timm.create_model("test_convnext2").state_dict(), folder / "weights/model.safetensors")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A finished run on the images of `place`."""
    run = place / "finished"
    small: dict[str, Any] = {"model": "test_convnext2", "weights": "none", "image_size": 32, "epochs": 1}
    convnext_cli.finetune(place / "xrays", output=run, val_fraction=0.3, freeze_epochs=0, **small)
    return run


class Shell:
    """Runs the commands of a page in this process, with small models in place of the reader's."""

    def __init__(self, folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.finished, self.monkeypatch = folder, finished, monkeypatch

    def run(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Run one command."""
        match words:
            case ["convnext", *rest]:
                self._convnext(rest, capsys)
            case ["export", *variables]:
                for variable in variables:
                    name, _, value = variable.partition("=")
                    self.monkeypatch.setenv(name, value.replace("$PWD", str(self.folder)))
            case ["sbatch", script]:
                for command in self._list_started(ROOT / script):
                    self._convnext(command, capsys)
            case ["hf", "download", name, *_]:
                check_weights(name)
            case ["pip", *rest]:
                check_extras(rest)
            case ["pytest", *_] | ["mkdocs", "serve"]:
                pass
            case _:
                pytest.fail(f"unknown command: {shlex.join(words)}")

    def _convnext(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        parse(words)
        if words[0] in ELSEWHERE:
            return
        target = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if target else words
        self._provide_runs(words)
        with pytest.raises(SystemExit) as ended:
            main(self._shrink(words))
        out, err = capsys.readouterr()
        assert not ended.value.code, f"convnext {shlex.join(words)}\n{out}{err}"
        if target:
            assert out
            Path(target).write_text(out)

    def _provide_runs(self, words: list[str]) -> None:
        """Put a finished run where a command reads one that its page did not train."""
        for before, word in zip(["", *words], words, strict=False):
            run = Path(*Path(word).parts[:2])
            if word.startswith("runs/") and before not in ("-o", "--output") and not run.exists():
                shutil.copytree(self.finished, run)

    def _shrink(self, words: list[str]) -> list[str]:
        if words[0] == "export" and "--int8" in words:
            return [*words, "--tolerance", "1"]
        if words[0] != "finetune":
            return words
        if "--resume" in words:
            run = Path(words[words.index("--resume") + 1])
            (run / "metrics.json").unlink(missing_ok=True)  # as if it had been stopped at the very end
            return words
        if "--devices" in words:
            at = words.index("--devices")
            words = [*words[:at], *words[at + 2 :]]
        small = {**SMALL, **({"--weights": "none"} if not {"--weights"} & set(words) or "builtin" in words else {})}
        small["--val-fraction"] = "0.3"
        words = [word.replace("2/5", "2/2") for word in words]
        if "--folds" in words:
            small["--folds"] = "2"
        if ("--epochs", "0") in pairwise(words):  # the head alone, which random weights do not train first
            small |= {"--epochs": "0", "--weights": "weights/model.safetensors"}
        return [*words, *(word for pair in small.items() for word in pair)]

    def _list_started(self, script: Path) -> list[list[str]]:
        """Run a Slurm script with stand-ins for Slurm; return the words after each `convnext` that it starts."""
        tools = self.folder / "bin"
        tools.mkdir()
        log = self.folder / "started"
        srun = 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"'  # without its own options
        for name, text in (("srun", srun), ("convnext", f'printf "%s\\n" "$*" >> {log}')):
            (tools / name).write_text(f"#!/bin/bash\n{text}\n")
            (tools / name).chmod(0o755)
        env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
        subprocess.run(["bash", str(script)], env=env, check=True)
        return [shlex.split(line) for line in log.read_text().splitlines()]


def check_weights(name: str) -> None:
    """Check that `timm/ARCHITECTURE.TAG` is in the catalogue."""
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    assert tag in [known.name for known in load_catalog()[architecture].tags], name


def check_extras(words: list[str]) -> None:
    """Check that the extras in the words of `pip install` are declared."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if extras := re.search(r"\[(.*)\]", word):
            assert set(extras[1].split(",")) <= declared.keys(), word


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name == "README.md" else [pytest.mark.slow])
        for page in PAGES
        if any(read_commands(page))
    ],
    ids=str,
)
def test_each_command_of_a_page_runs(
    page: Path, place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if {"laptop", "export"} & {page.stem}:
        pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
        monkeypatch.setenv("CONVNEXT_ONNX", "1")
    for item in ITEMS:
        (shutil.copytree if (place / item).is_dir() else shutil.copy)(place / item, tmp_path / item)
    if page.stem == "speed":
        monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))  # the page clears it
    (tmp_path / "runs").mkdir()
    shell = Shell(tmp_path, finished, monkeypatch)
    for words, is_run in read_commands(page):
        if is_run:
            shell.run(words, capsys)
        elif "convnext_cli" in words or words[0] == "convnext":
            parse(words[words.index("convnext_cli") + 1 :] if "convnext_cli" in words else words[1:])


def list_flags() -> set[str]:
    """Return the flags of all commands."""
    flags = {"--help", "--help-all", "--install-completion", "--show-completion"}
    flags |= {flag for option in GROUP.params for flag in option.opts}
    for command in GROUP.commands.values():
        declared = command.declared.values()
        flags |= {flag for entry in declared for flag in (entry.flag, *entry.option.flags)}
        flags |= {f"--no-{entry.flag[2:]}" for entry in declared if entry.has_negation}
    return flags


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_inline_command_and_flag_exists(page: Path) -> None:
    text = FENCE.sub("", (ROOT / page).read_text())
    flags = list_flags() | FOREIGN_FLAGS
    for code in re.findall(r"`([^`\n]+)`", text):
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) <= flags, code
        if code.startswith("convnext ") and len(words := shlex.split(code)) > 2 and words[1] in GROUP.commands:
            parse(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_of_a_page_calls_functions_that_exist(page: Path) -> None:
    for code, _ in read_blocks(page, "python"):
        if code.lstrip().startswith(tuple(f"{name}(" for name in convnext_cli.__all__)):
            continue  # a signature
        for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id in convnext_cli.__all__:
                function = getattr(convnext_cli, call.func.id)
                known = {name for overload in [function, *get_overloads(function)] for name in list_keywords(overload)}
                assert {keyword.arg for keyword in call.keywords} <= known, ast.unparse(call)
                inspect.signature(function).bind_partial(*call.args)


def list_keywords(function: Callable[..., Any]) -> set[str]:
    """Return the names of a function's parameters, those of an unpacked typed dictionary too."""
    parameters = inspect.signature(function).parameters
    unpacked = [get_args(p.annotation)[0] for p in parameters.values() if get_origin(p.annotation) is Unpack]
    return {*parameters, *(name for options in unpacked for name in get_type_hints(options))}


def test_timm_loads_a_run_as_the_readme_says(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs/xrays")
    [code] = [code for code, _ in read_blocks(Path("README.md"), "python")]
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102
    assert scope["model"].num_classes == 3


def test_temperature_turns_timms_logits_into_the_probabilities_of_predict(finished: Path, place: Path) -> None:
    """`docs/how-to/predict.md` says so."""
    model = timm.create_model(f"local-dir:{finished}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with Image.open(place / "new.png") as image, torch.inference_mode():
        logits = model(transform(image.convert("RGB"))[None])[0]
    temperature = json.loads((finished / "calibration.json").read_text())["temperature"]
    [prediction] = convnext_cli.predict(place / "new.png", finished)
    known = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    names = json.loads((finished / "config.json").read_text())["label_names"]
    assert temperature != 1
    assert (logits / temperature).softmax(0).tolist() == pytest.approx([known[name] for name in names], abs=1e-4)


def list_links(page: Path) -> list[str]:
    """Return the targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", (ROOT / page).read_text()))


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", LINKING, ids=str)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for link in list_links(page):
        if link.startswith("https://"):
            assert link.split("/")[2] in HOSTS, link
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in list_anchors(target), f"{page}: {link}"


def test_each_path_in_the_contributors_guide_exists() -> None:
    text = FENCE.sub("", (ROOT / "CONTRIBUTING.md").read_text())
    roots = (ROOT, ROOT / "convnext_cli", ROOT / "convnext_cli/data", ROOT / "convnext_cli/images", ROOT / "tools")
    for code in re.findall(r"`([\w./-]+(?:\.py|\.toml|/))`", text):
        assert any((root / code).exists() for root in roots), code


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    words = ["mkdocs", "build", "--strict", "--quiet", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir"]
    done = subprocess.run([*words, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loading = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]+)"')
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not loading.findall(page.read_text()), page
    if CHROMIUM is None:
        pytest.skip("there is no chromium to open the pages with")
    with Browser() as browser:
        for name in ("index.html", "reference/settings.html"):
            browser.open(tmp_path / name, 1200)
            assert [url for url in browser.requests if not url.startswith("file:")] == []
