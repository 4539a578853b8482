"""How far a correct implementation of a dense stack may be from the oracle: derived, not tuned.

A layer computes y_k = W_k y_{k-1} + delta_k with a small local error delta_k. The layers after it carry that error on
as they carry y, so the error of y_k is the sum over j <= k of W_k ... W_{j+1} delta_j: an identity. What is left is to
bound delta_k, in two ways. `hard_bound` is the worst case: no correct implementation exceeds it, in whatever order it
sums. `sharp_sd` treats rounding errors as random: correct implementations stay within MAX_RATIO of it, and it is small
enough to show one layer in TF32. The backward pass is a forward pass over the transposed weights, last layer first.

Sources: [H] N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, chapters 2 and 3.
[HM] N. J. Higham, T. Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41(5), 2019.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reference.layers import Array


class Format(NamedTuple):
    """The arithmetic of a dtype; u is the largest relative error of one rounding to nearest ([H], theorem 2.2)."""

    u: float  # of each product and each addition
    u_store: float  # of rounding the finished sum to the dtype; 0 where the sum is made in the dtype itself
    tiny: float  # smallest normal number


FORMATS = {
    "float64": Format(2.0**-53, 0.0, 2.0**-1022),
    "float32": Format(2.0**-24, 0.0, 2.0**-126),
    "float16": Format(2.0**-24, 2.0**-11, 2.0**-14),
    "bfloat16": Format(2.0**-24, 2.0**-8, 2.0**-126),  # multiplied and summed in float32, then rounded once
}

# The oracle rounds too. In float32 that does not show; in float64 it is as far from the truth as what is tested.
U_ORACLE = FORMATS["float64"].u

# How many sd are allowed. sd is made of u, the largest value of a rounding error, where a standard deviation would be
# made of about u / 2.4; so it is the scale of Hoeffding's inequality, as in [HM]: P(|error| > t sd) <= 2 exp(-t^2 / 2).
MAX_RATIO = 4.0


class Bound(NamedTuple):
    y: Array  # [d]
    dweights: Array  # [N, d, d]
    dx: Array  # [d]


def hard_bound(weights: Array, x: Array, cotangent: Array, dtype: str) -> Bound:
    """The worst case: |actual - oracle| <= bound, elementwise, in any summation order, with or without FMA.

    Weights, x and cotangent are taken to be 0 or normal in the dtype. In deep bfloat16 stacks the worst case is larger
    than the numbers themselves: true, and of no use.
    """
    y, y_bound = _forward_hard(weights, x, dtype)  # [N + 1, d] each
    ct, ct_bound = _forward_hard(*_backward(weights, cotangent), dtype)
    y_in, y_in_bound = abs(y[:-1, None, :]), y_bound[:-1, None, :]  # [N, 1, d], enters layer k
    ct_out, ct_out_bound = abs(ct[:-1][::-1, :, None]), ct_bound[:-1][::-1, :, None]  # [N, d, 1], leaves layer k

    # dW_ij = ct_i y_j is one rounded product of two numbers with errors:
    # |(ct_i + e_i)(y_j + f_j)(1 + delta) + eta - ct_i y_j|, with |delta| <= u and |eta| <= tiny if it underflows.
    u, u_store, tiny = FORMATS[dtype]
    rounding = (u + u_store + U_ORACLE) * (ct_out + ct_out_bound) * (y_in + y_in_bound) + tiny
    dweights = ct_out_bound * (y_in + y_in_bound) + ct_out * y_in_bound + rounding
    return Bound(y_bound[-1], dweights, ct_bound[-1])


def _forward_hard(weights: Array, x: Array, dtype: str) -> tuple[Array, Array]:
    """Carries y_0 .. y_N and the hard bound of the error of each, [N + 1, d]."""
    # [H] (3.5): a sum of d products, in any order, is off by at most gamma_d |w||y|, gamma_d = d u / (1 - d u); the
    # oracle adds its own. If the sum s is then stored in fewer bits it is off by u_store |s| more, and
    # |s| <= |w.y| + gamma_d |w||y|. Here y is the computed carry: at most the oracle's plus its bound, so |w||y| is
    # known; |w.y| is at most the oracle's plus `carried`, what the layer makes of the errors before it. So no term of
    # higher order is dropped: this is a bound, not an estimate (our own: keeping all paths side by side allows it).
    # Underflow: a product, a sum or a store whose result is below tiny may be flushed to 0, as JAX and TF do. That is
    # off by tiny at most, for each of d products, d - 1 sums and 1 store, and then rounded with the rest.
    N, d, _ = weights.shape
    u, u_store, tiny = FORMATS[dtype]
    gamma = d * u / (1 - d * u) + d * U_ORACLE / (1 - d * U_ORACLE)
    ys = np.zeros((N + 1, d))
    bounds = np.zeros((N + 1, d))
    paths = np.zeros((d, N * d))  # side by side for each j < k: W_{k-1} ... W_{j+1}
    local = np.zeros(N * d)  # one under the other: the bound of delta_j
    ys[0] = x
    for k, w in enumerate(weights.astype(np.float64)):
        done, new = slice(0, k * d), slice(k * d, (k + 1) * d)
        paths[:, done] = w @ paths[:, done]
        paths[:, new] = np.eye(d)
        carried = abs(paths[:, done]) @ local[done]
        ys[k + 1] = w @ ys[k]
        local[new] = u_store * (abs(ys[k + 1]) + carried)
        local[new] += (1 + u_store) * (gamma * (abs(w) @ (abs(ys[k]) + bounds[k])) + (1 + gamma) * 2 * d * tiny)
        bounds[k + 1] = carried + local[new]
    return ys, bounds


def sharp_sd(weights: Array, x: Array, cotangent: Array, dtype: str) -> Bound:
    """The scale of the error if rounding errors are random: |actual - oracle| <= MAX_RATIO * sd, elementwise.

    To first order in u. The order of summation must not be chosen by looking at the numbers; otherwise it is free.
    Weights, x and cotangent are taken to be 0 or normal in the dtype, and all numbers on the way 0 or between 1e-140
    and 1e140: their squares are formed in float64.
    """
    y, y_var = _forward_variance(weights, x, dtype)  # [N + 1, d] each
    ct, ct_var = _forward_variance(*_backward(weights, cotangent), dtype)
    y_in, y_in_var = y[:-1, None, :], y_var[:-1, None, :]  # [N, 1, d], enters layer k
    ct_out, ct_out_var = ct[:-1][::-1, :, None], ct_var[:-1][::-1, :, None]  # [N, d, 1], leaves layer k

    # dW_ij = ct_i y_j: the variance of one rounded product of two numbers with independent errors. Independent they
    # are: cotangents depend on the weights, not on the carries, so forward rounding errors do not reach them.
    u, u_store, tiny = FORMATS[dtype]
    rounding = (u**2 + u_store**2 + U_ORACLE**2) * (ct_out * y_in) ** 2 + tiny**2
    dweights = ct_out_var * (y_in**2 + y_in_var) + ct_out**2 * y_in_var + rounding
    return Bound(np.sqrt(y_var[-1]), np.sqrt(dweights), np.sqrt(ct_var[-1]))


def _forward_variance(weights: Array, x: Array, dtype: str) -> tuple[Array, Array]:
    """Carries y_0 .. y_N and the variance of the error of each, [N + 1, d]."""
    # Model ([HM]): rounding errors are independent, of mean zero; being at most u, of variance at most u^2.
    # Local variance of one row (our own): products p_j = w_j y_j, Q = sum p_j^2, S = sum p_j = w.y. Rounding the
    # products gives u^2 Q. Rounding the partial sum s_m of m products gives u^2 s_m^2. In an order that ignores the
    # numbers, s_m is a sum of m of the d products drawn without replacement, so that
    #     E s_m^2 = (m/d)^2 S^2 + m (d - m) / (d (d - 1)) (Q - S^2 / d),
    # and over m = 2 .. d these add up to (d + 1)/3 S^2 + ((d + 1)/6 - 1/d) Q. With S^2 <= d Q, all in all at most
    #     u^2 d (Q + S^2 / 3).
    # That is for one running sum; blocks and trees have smaller partial sums, FMA has fewer roundings. The S^2 term is
    # what matters where all products have one sign. A store in fewer bits adds u_store^2 S^2.
    # Covariance: errors of different rows and layers are independent, so C_k = W_k C_{k-1} W_k' + diag(local).
    # Underflow: flushing is not of mean zero and its errors are not independent. But (sum of n terms)^2 is at most
    # n (sum of squares), with n = N d errors of at most 2 d tiny each: n times into the local variance covers it.
    N, d, _ = weights.shape
    u, u_store, tiny = FORMATS[dtype]
    ys = np.zeros((N + 1, d))
    variances = np.zeros((N + 1, d))
    covariance = np.zeros((d, d))
    ys[0] = x
    for k, w in enumerate(weights.astype(np.float64)):
        ys[k + 1] = w @ ys[k]
        Q, S2 = w**2 @ ys[k] ** 2, ys[k + 1] ** 2  # [d]
        local = (u**2 + U_ORACLE**2) * d * (Q + S2 / 3) + u_store**2 * S2 + N * d * (2 * d * tiny) ** 2
        covariance = w @ covariance @ w.T + np.diag(local)
        variances[k + 1] = np.diag(covariance)
    return ys, variances


def _backward(weights: Array, cotangent: Array) -> tuple[Array, Array]:
    """The backward pass as a forward pass: the last layer's transpose comes first."""
    return weights[::-1].transpose(0, 2, 1), cotangent


def worst_ratio(actual: Array, exact: Array, allowed: Array) -> float:
    """The largest |actual - exact| / allowed; 0 / 0 counts as 0, anything else / 0 and anything not finite as inf.

    Raises:
        ValueError: "shapes differ: actual (3,), exact (4,), allowed (4,)"; nothing is broadcast.
    """
    if not actual.shape == exact.shape == allowed.shape:
        raise ValueError(f"shapes differ: actual {actual.shape}, exact {exact.shape}, allowed {allowed.shape}")
    actual, exact, allowed = (a.astype(np.float64) for a in (actual, exact, allowed))
    if not all(np.isfinite(a).all() for a in (actual, exact, allowed)):
        return float("inf")
    error = abs(actual - exact)
    with np.errstate(over="ignore"):  # to inf, which is what it is
        ratio = np.divide(error, allowed, out=np.where(error == 0, 0.0, np.inf), where=allowed > 0)
    return float(ratio.max(initial=0.0))


# Layers other than the dense one have no derived bound. There NumPy, in the same dtype, is the yardstick: how far it is
# from the oracle tells how many roundings the computation makes, and how it amplifies them. An ulp is 2u times the
# largest number in the array. Frameworks take other roads: NumPy's tanh in float32 is off by 1.4 ulps at worst, that of
# XLA by 4.7 and of TensorFlow by 5.6 (over 3 million numbers), four times as far; twice that, for other orders of
# summation. And a few ulps are allowed always, as many as one such function may cost: NumPy may be lucky.
MULTIPLE = 8.0
FLOOR = 8.0


def ulps(exact: Array, yardstick: Array) -> float:
    """How far `yardstick`, by NumPy, is from `exact`, in float64, at most."""
    if not abs(exact).max(initial=0.0):
        return 0.0
    return float(abs(yardstick.astype(np.float64) - exact).max() / (2 * _u(yardstick.dtype.name) * abs(exact).max()))


def allowed_by_yardstick(exact: Array, yardstick_ulps: float, dtype: str) -> float:
    """How far from `exact` any element may be in `dtype`. A yardstick in float32 serves float64 too: ulps are relative.

    In float64 the oracle is as far from the truth as what is tested.
    """
    largest = abs(exact).max(initial=0.0)
    return float(max(MULTIPLE * yardstick_ulps, FLOOR) * 2 * (_u(dtype) + U_ORACLE) * largest)


# A run of many steps, as the losses of a training: later errors grow out of earlier ones, so what NumPy's own run in
# float32 is off by at most, up to a step, tells how far any run may be off there. That is luck too: with its features
# in 16 other orders, which moves nothing but roundings, the run of `training.py` is off by 0.6 to 1.9 times as much.


def worst_so_far(run: Array, exact: Array) -> Array:
    """The largest relative error up to each step, [steps]. What is not finite stays so."""
    worst: Array = np.maximum.accumulate(abs(run - exact) / abs(exact))
    return worst


def allowed_so_far(exact: Array, yardstick: Array, dtype: str) -> Array:
    """What `worst_so_far` may be at each step in `dtype`; `yardstick` is NumPy's run in float32."""
    yardstick_ulps = worst_so_far(yardstick, exact) / (2 * _u("float32"))
    limit: Array = np.maximum(MULTIPLE * yardstick_ulps, FLOOR) * 2 * (_u(dtype) + U_ORACLE)
    return limit


def _u(dtype: str) -> float:
    return max(FORMATS[dtype].u, FORMATS[dtype].u_store)
