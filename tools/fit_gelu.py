"""Fits the polynomial of `convnext_cli/models/gelu.c`, and prints it as C.

    python tools/fit_gelu.py

erfc(z) exp(z z) / 2 as t (c1 + c2 t + … + c8 t^7) with t = 1 / (1 + 0.33 z), for z from 0 to 9.5, with the least
largest relative error, by Lawson's algorithm (least squares, weights multiplied by the errors until these are alike).
"""

import numpy as np
from scipy.special import erfcx

SCALE = 0.33  # the best of several: others lose up to a digit
DEGREE = 8
FARTHEST = 9.5  # beyond it the exponential is 0 in float32


def main() -> None:
    """Fits and prints."""
    least = 1 / (1 + SCALE * FARTHEST)
    t = least + (1 - least) * (np.cos(np.linspace(0, np.pi, 4000)) + 1) / 2
    wanted = erfcx((1 / t - 1) / SCALE) / 2
    basis = np.stack([t**k for k in range(1, DEGREE + 1)], axis=1) / wanted[:, None]
    weights = np.ones_like(t)
    for _ in range(300):
        root = np.sqrt(weights)
        found = np.linalg.lstsq(basis * root[:, None], root, rcond=None)[0]
        errors = np.abs(basis @ found - 1)
        weights = np.maximum(weights * (errors / errors.max() + 1e-9), 1e-12)
        weights /= weights.max()
    print(f"    vec tail = {found[-2]:.8g}f + t * {found[-1]:.8g}f;")
    for coefficient in found[-3::-1]:
        print(f"    tail = {coefficient:.8g}f + t * tail;")
    print(f"/* largest relative error {errors.max():.1e} */")


if __name__ == "__main__":
    main()
