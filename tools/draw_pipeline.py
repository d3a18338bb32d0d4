"""Draw the pipeline, from data to export, with the file that each step hands to the next.

python tools/draw_pipeline.py            writes docs/images/pipeline.svg
"""

from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).parents[1] / "docs/images/pipeline.svg"
STEPS = (  # step, its command, the files that it writes, and whether the next step reads one of them
    ("data", "check", ("exclude.txt",), True),
    ("plan", "recommend", ("plan.toml",), True),
    ("training", "finetune", ("split.csv", "model.safetensors", "calibration.json"), True),
    ("evaluation", "eval", ("report.html",), False),
    ("prediction", "predict", ("predictions.csv",), False),
    ("export", "export", ("model.onnx",), False),
)
BOX, GAP, HEIGHT, MARGIN = 130, 34, 58, 12  # px
PAPER = 24  # px, the height of a file's box
WIDTH = 2 * MARGIN + len(STEPS) * BOX + (len(STEPS) - 1) * GAP
LABEL = "data, plan, training, evaluation, prediction, export, with the files of each step"
ARROW_HEAD = """<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">
<path d="M0,0 L8,4 L0,8 z" fill="#52606d"/></marker></defs>"""
STYLE = """
  text { font-family: system-ui, sans-serif; fill: #1f2933; text-anchor: middle; }
  .step { font-size: 16px; font-weight: 600; }
  .command { font-size: 11px; font-family: ui-monospace, monospace; fill: #3d4f60; }
  .file { font-size: 11.5px; font-family: ui-monospace, monospace; }
  .box { fill: #e8f1fa; stroke: #2f6da8; stroke-width: 1.5; }
  .paper { fill: #fffdf3; stroke: #a98b2d; }
  .line { stroke: #52606d; stroke-width: 1.5; fill: none; }
"""


def draw() -> str:
    """Return the drawing as SVG."""
    most = max(len(files) for _, _, files, _ in STEPS)
    height = MARGIN + HEIGHT + 22 + most * (PAPER + 6) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{LABEL}">',
        f"<style>{STYLE}</style>",
        ARROW_HEAD,
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for number, (step, command, files, handed_on) in enumerate(STEPS):
        left = MARGIN + number * (BOX + GAP)
        middle = left + BOX / 2
        parts.append(f'<rect class="box" x="{left}" y="{MARGIN}" width="{BOX}" height="{HEIGHT}" rx="8"/>')
        parts.append(f'<text class="step" x="{middle}" y="{MARGIN + 25}">{escape(step)}</text>')
        parts.append(f'<text class="command" x="{middle}" y="{MARGIN + 45}">convnext {escape(command)}</text>')
        top = MARGIN + HEIGHT + 22
        parts.append(_draw_arrow(middle, MARGIN + HEIGHT + 1, middle, top - 2))
        for row, file in enumerate(files):
            y = top + row * (PAPER + 6)
            parts.append(f'<rect class="paper" x="{left - 4}" y="{y}" width="{BOX + 8}" height="{PAPER}" rx="3"/>')
            parts.append(f'<text class="file" x="{middle}" y="{y + 16}">{escape(file)}</text>')
        if handed_on:
            parts.append(_draw_arrow(left + BOX + 4, top + PAPER / 2, left + BOX + GAP + 14, MARGIN + HEIGHT + 3))
        if number + 1 < len(STEPS):
            parts.append(_draw_arrow(left + BOX + 3, MARGIN + HEIGHT / 2, left + BOX + GAP - 3, MARGIN + HEIGHT / 2))
    return "\n".join([*parts, "</svg>\n"])


def _draw_arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="line" marker-end="url(#head)" d="M{x1},{y1} L{x2},{y2}"/>'


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    print(f"wrote {TARGET}")
