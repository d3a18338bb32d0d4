"""Every command of the how-tos is run, as it stands, in the order in which it stands."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from tests.test_house import ROOT

HOWTOS = ("hospital", "slurm", "laptop")

# What stands in for the world outside, and makes our own part small: the last of two equal options wins.
SHIMS = {
    "convnext": """\
words=("$@"); kept=()
while [ ${#words[@]} -gt 0 ]; do
    if [ "${words[0]}" = --devices ]; then words=("${words[@]:2}"); continue; fi
    kept+=("${words[0]}"); words=("${words[@]:1}")
done
case "$*" in
    *--dry-run*) ;;
    *--resume*) rm -f "${@: -1}/metrics.json" ;;  # as if it had been stopped at the very end
    finetune*)
        kept+=(--model test_convnext --image-size 32 --epochs 1 --micro-batch-size 8 --val-fraction 0.3)
        case "$*" in *--weights*) ;; *) kept+=(--weights none) ;; esac ;;
esac
exec "$PYTHON" -m convnext_cli "${kept[@]}"
""",
    "hf": """\
[ "$1" = download ]
echo "$2" >> "$LOG"
if [ "${4:-}" = --local-dir ]; then mkdir -p "$5"; cp "$WEIGHTS" "$5/model.safetensors"; fi
""",
    "pip": """\
for word; do case "$word" in convnext-cli*|.\\[*) echo "$word" >> "$LOG" ;; esac; done
""",
    "sbatch": 'SLURM_JOB_ID=1 bash "$1"\n',
    "srun": 'exec "$@"\n',
}


@pytest.mark.parametrize("name", HOWTOS)
def test_every_command_of_a_howto_runs(name: str, digits: Path, tmp_path: Path) -> None:
    for source, target in (("0", "xrays/NORMAL"), ("1", "xrays/SICK")):
        shutil.copytree(digits / source, tmp_path / target)
    (tmp_path / "new").mkdir()
    shutil.copy(sorted((digits / "1").glob("*.png"))[0], tmp_path / "new/a.png")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "bin").mkdir()
    for shim, text in SHIMS.items():
        path = tmp_path / "bin" / shim
        path.write_text("#!/bin/bash\nset -eu\n" + text)
        path.chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    env = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "WEIGHTS": str(tmp_path / "weights.safetensors"),
        "LOG": str(log),
        "CONVNEXT_ONNX": "1" if name == "laptop" else "0",
    }
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / f"docs/{name}.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    script = "set -euo pipefail\n" + "\n".join(blocks)
    if name == "laptop":
        pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
        script = script.replace("export runs/small --int8", "export runs/small --int8 --tolerance 1")
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "convnext" in done.stdout

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in log.read_text().split():
        if "[" in word:
            assert set(word.partition("[")[2].rstrip("]").split(",")) <= extras.keys()
        elif "/" in word:
            architecture, _, tag = word.partition("/")[2].partition(".")
            catalog = (ROOT / "convnext_cli/models/catalog.json").read_text()
            assert f'"timm/{architecture}.{tag}"' in catalog, word
