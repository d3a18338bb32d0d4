"""Fit the polynomial of `convnext_cli/kernels/gelu.c` and print it as C.

    python tools/fit_gelu.py

erfc(z) exp(z z) / 2 is approximated by t (c1 + c2 t + … + c8 t^7), t = 1 / (1 + 0.33 z), for z from 0 to 9.5. Lawson's
algorithm minimises the largest relative error: least squares with weights that are multiplied by the errors until all
errors are equal.
"""

import numpy as np
from scipy.special import erfcx

SCALE = 0.33  # the best of several; others lose up to a digit
DEGREE = 8
MAX_Z = 9.5  # the exponential of larger values is 0 in float32


def main() -> None:
    """Fit and print the coefficients."""
    smallest = 1 / (1 + SCALE * MAX_Z)
    t = smallest + (1 - smallest) * (np.cos(np.linspace(0, np.pi, 4000)) + 1) / 2
    target = erfcx((1 / t - 1) / SCALE) / 2
    basis = np.stack([t**k for k in range(1, DEGREE + 1)], axis=1) / target[:, None]
    weights = np.ones_like(t)
    for _ in range(300):
        root = np.sqrt(weights)
        coefficients = np.linalg.lstsq(basis * root[:, None], root, rcond=None)[0]
        errors = np.abs(basis @ coefficients - 1)
        weights = np.maximum(weights * (errors / errors.max() + 1e-9), 1e-12)
        weights /= weights.max()
    print(f"    vec tail = {coefficients[-2]:.8g}f + t * {coefficients[-1]:.8g}f;")
    for coefficient in coefficients[-3::-1]:
        print(f"    tail = {coefficient:.8g}f + t * tail;")
    print(f"/* largest relative error {errors.max():.1e} */")


if __name__ == "__main__":
    main()
