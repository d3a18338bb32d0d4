"""Draw the report of the demo's run as a picture for the README.

    python tools/draw_report.py

The demo trains on the digits of scikit-learn (UCI, E. Alpaydin and C. Kaynak, CC BY 4.0). A headless Chromium opens its
report and takes a picture of its head, which is written to docs/images/report.png.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs/images/report.png"
WINDOW = (1000, 626)  # px; the first card of the report
COLORS = 128


def draw(target: Path) -> None:
    """Run the demo and write the picture of its report.

    Raises:
        subprocess.CalledProcessError: the demo or Chromium failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "convnext_cli", "demo"], check=True, cwd=folder, env=environment)
        shot = folder / "report.png"
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", f"--screenshot={shot}")
        size = f"--window-size={WINDOW[0]},{WINDOW[1]}"
        report = (folder / "convnext-demo/run/report.html").as_uri()
        subprocess.run(["chromium", *options, size, report], check=True, cwd=folder, capture_output=True)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    draw(TARGET)
    print(f"wrote {TARGET}, {TARGET.stat().st_size:,} bytes")
