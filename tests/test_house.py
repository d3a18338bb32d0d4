import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convnext_cli

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "timm", "numpy", "pandas", "torchvision", "accelerate", "sklearn", "PIL", "matplotlib"}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list"], ["list", "convnext_tiny"], ["recommend", "--dataset-size", "6000"], ["finetune", "--help"]],
)
def test_the_command_line_answers_without_heavy_imports(words: list[str]) -> None:
    script = (
        "import json, sys\n"
        "from convnext_cli.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert "typer" in modules
    assert not modules & HEAVY


def test_the_library_is_lazy_and_its_names_are_sorted() -> None:
    assert convnext_cli.__all__ == sorted(convnext_cli.__all__)
    for name in convnext_cli.__all__:
        assert callable(getattr(convnext_cli, name))
    script = "import sys, convnext_cli; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = convnext_cli.train


# Statements of the specification that are wrong; none may stand in anything a user reads.
FALSE = (
    r"omni.?lite", r"high.?norm.?freq", r"600\s?M", r"\b1B\b", r"~1B", r"1.1\.5M\b", r"2\.7M", r"ViT-level",
    r"debugging models", r"not load pretrained", r"official rule", r"consistently outperform", r"will overfit",
    r"does not like sgd", r"strongly prefers", r"multi-GPU only", r"requires gradient checkpointing", r"FCN-based",
    r"improved training \+ layerscale", r"commercial use is fine", r"bigger MLP", r"definitive", r"GFLOPs? ?≈",
)  # fmt: skip


def test_no_false_statement_of_the_specification_is_repeated() -> None:
    texts = {path: path.read_text() for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern)}
    texts |= {path: path.read_text() for kind in ("py", "toml") for path in (ROOT / "convnext_cli").rglob(f"*.{kind}")}
    texts |= {path: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    assert len(texts) > 30
    for path, text in texts.items():
        for statement in FALSE:
            assert not re.search(statement, text, re.IGNORECASE), f"{path}: {statement}"
