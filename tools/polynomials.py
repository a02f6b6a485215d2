"""Fits the polynomials of csrc/core/normal.hpp and math.hpp and prints them with their errors.

Minimax fits by iterated weighted least squares on a dense Chebyshev grid (Lawson's algorithm), rounded to
float32 one coefficient at a time, the later ones refitted after each rounding. Run with
``python tools/polynomials.py``; needs numpy and scipy. The headers quote the output.
"""

import numpy as np
from scipy.special import erfcx


def lawson(basis, target, rounds=400):
    """Weighted least squares whose weights grow where the error is large; tends to the minimax fit."""
    weight = np.full(len(target), 1.0 / len(target))
    best, best_error = None, np.inf
    for _ in range(rounds):
        root = np.sqrt(weight)
        coefficient, *_ = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)
        error = np.abs(basis @ coefficient - target)
        if error.max() < best_error:
            best, best_error = coefficient, error.max()
        weight = weight * (error + 1e-3 * error.max())
        weight /= weight.sum()
    return best


def fit(f, low, high, degree):
    """Float32 coefficients c with sum c_k x^k close to f in relative error on [low, high]."""
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(2000) + 0.5) / 2000)
    y = f(x)
    powers = x[:, None] ** np.arange(degree + 1)
    fixed = []
    for k in range(degree + 1):
        rest = powers[:, k:] / y[:, None]
        missing = 1 - powers[:, :k] @ np.array(fixed) / y if fixed else np.ones_like(y)
        fixed.append(float(np.float32(lawson(rest, missing)[0])))
    error = np.abs(powers @ np.array(fixed) / y - 1).max()
    return fixed, error


def report(name, f, low, high, degree):
    coefficients, error = fit(f, low, high, degree)
    print(f"{name}: degree {degree} on [{low}, {high}], relative error {error:.2e} = 2^{np.log2(error):.1f}")
    print("  ", ", ".join(f"{c:.9g}f" for c in coefficients))


if __name__ == "__main__":
    for degree in (7, 8, 9):
        report("-2 log(1 + t) / t", lambda t: -2 * np.log1p(t) / t, -0.25, 0.5, degree)
    for degree in (3, 4):
        report("sin(pi sqrt(v)) / sqrt(v)", lambda v: np.pi * np.sinc(np.sqrt(v)), 0.0, 1 / 16, degree)
        report("cos(pi sqrt(v))", lambda v: np.cos(np.pi * np.sqrt(v)), 0.0, 1 / 16, degree)
    report("exp(r)", np.exp, -0.35, 0.35, 6)  # a little more than ln 2 / 2, for the reduction's rounding
    report("tanh(sqrt(v)) / sqrt(v)", lambda v: np.tanh(np.sqrt(v)) / np.sqrt(v), 1e-12, 25 / 64, 5)
    # t = 1 / (1 + 0.4 z); below t = 0.2, that is beyond z = 10, the density is 0 in float32
    report("erfcx(z) / t", lambda t: erfcx((1 / t - 1) / 0.4) / t, 0.2, 1.0, 9)
