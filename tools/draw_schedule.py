"""Draw learning rate and weight decay of every parameter group, from the code, and write the page about them.

    python tools/draw_schedule.py

The example is convnext_tiny with a layer decay of 0.8 per block.
"""

from collections.abc import Iterator
from pathlib import Path

import timm

from convnext_cli.recipes.settings import Settings
from convnext_cli.training.loop import make_schedule
from convnext_cli.training.parts.optimizer import make_optimizer, set_lr

DOCS = Path(__file__).parents[1] / "docs"
MODEL = "convnext_tiny"
STEPS = 50  # of an epoch: 6,400 images
SETTINGS = Settings(
    epochs=30, freeze_epochs=0, batch_size=128, micro_batch_size=32, lr=2e-4, warmup_epochs=3.0, weight_decay=0.05,
    layer_decay=0.8, drop_path=0.1, label_smoothing=0.1, mixup=0.0, cutmix=0.0, image_size=224, fit="crop",
    crop_pct=1.0, min_crop_area=0.5, hflip=0.0,
)  # fmt: skip

PAGE = """# Learning rate of each group

`python tools/draw_schedule.py` writes this page from the code that trains: `Schedule.lr_at` and `make_optimizer`. The
example is {model} with {epochs} epochs of {steps} steps and
`--lr {lr:g} --layer-decay {decay:g} --weight-decay {weight_decay:g} --warmup-epochs {warmup:g}`.

![Learning rate over the steps, and by depth](../images/schedule.svg)

The learning rate is a pure function of the step, `lr_at(step)`: a linear warm-up, then half a cosine. Each parameter
group multiplies it by its own factor: {decay:g} to the power of the group's distance from the head in blocks. timm
decays per block. In a deep model the stem therefore gets a far lower rate than with the authors' own decay, which has
13 steps from head to stem at any depth.

| group | first parameter | factor | peak lr | weight decay | parameters |
|---|---|---|---|---|---|
{rows}

Weight decay is off for parameters of one dimension: norms, biases, LayerScale, GRN.
"""


def read_groups() -> Iterator[tuple[str, float, float, float, int]]:
    """Yield each group's first parameter, factor, peak learning rate, weight decay and size, the stem first."""
    model = timm.create_model(MODEL, num_classes=4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(
        model, lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay, layer_decay=SETTINGS.layer_decay
    )
    set_lr(optimizer, SETTINGS.lr)
    for group in optimizer.param_groups:
        first, *_ = parameters = group["params"]
        size = sum(parameter.numel() for parameter in parameters)
        yield names[id(first)], group["lr_scale"], group["lr"], group["weight_decay"], size


def write_page() -> str:
    """Return the page as Markdown."""
    rows = [
        f"| {number} | `{name}` | {scale:.4g} | {lr:.4g} | {decay:g} | {size:,} |"
        for number, (name, scale, lr, decay, size) in enumerate(read_groups())
    ]
    return PAGE.format(
        model=MODEL, lr=SETTINGS.lr, decay=SETTINGS.layer_decay, weight_decay=SETTINGS.weight_decay,
        rows="\n".join(rows),
        warmup=SETTINGS.warmup_epochs, epochs=SETTINGS.epochs, steps=STEPS,
    )  # fmt: skip


def draw(path: Path) -> None:
    """Write the drawing (SVG)."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "convnext"  # the same drawing has the same bytes
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    groups = list(read_groups())
    schedule = make_schedule(SETTINGS, STEPS)
    figure, (over_steps, by_depth) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    rates = [schedule.lr_at(step) for step in range(schedule.total_steps)]
    scales = sorted({scale for _, scale, *_ in groups})
    ends = {0: "stem", len(scales) - 1: "head"}
    for i, scale in enumerate(scales):
        color = plt.cm.viridis(i / len(scales))
        over_steps.plot([rate * scale for rate in rates], color=color, linewidth=1, label=ends.get(i))
    over_steps.set(xlabel="step", ylabel="learning rate", yscale="log", title="lr_at(step) x factor, by depth")
    over_steps.legend(reverse=True)
    marks = {True: ("o", "decayed: weights"), False: ("x", "not decayed: norms, biases, LayerScale")}
    for decayed, (mark, label) in marks.items():
        chosen = [(scales.index(scale), lr) for _, scale, lr, decay, _ in groups if (decay > 0) is decayed]
        by_depth.plot(*zip(*chosen, strict=True), mark, label=label, fillstyle="none")
    by_depth.set(xlabel="depth, from the stem (0) to the head", ylabel="peak learning rate", yscale="log")
    by_depth.set_title(f"peak lr; weight decay {SETTINGS.weight_decay:g} or 0")
    by_depth.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_depth.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(DOCS / "images/schedule.svg")
    (DOCS / "explanation/schedule.md").write_text(write_page(), encoding="utf-8")
    print("wrote docs/images/schedule.svg and docs/explanation/schedule.md")
