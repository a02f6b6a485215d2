"""The arithmetic of PTX on arrays, one element a thread: exact where PTX is, an error where it leaves a choice."""

from __future__ import annotations

import numpy as np
from ptx import PtxError

U32, U64, F32, F64 = np.uint32, np.uint64, np.float32, np.float64

TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip


def odd_sum(a, b):
    """a + b in float64, rounded to odd: a further rounding to fewer bits is then the only one."""
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)
    bits = s.view(U64)
    inexact = (error != 0) & np.isfinite(s) & ((bits & U64(1)) == 0)
    away = (error > 0) == (s > 0)
    return np.where(inexact, np.where(away, bits + U64(1), bits - U64(1)), bits).view(F64)


def fma32(a, b, c):
    """Correctly rounded: the product is exact in float64, and 53 bits >= 2 + 24."""
    a, b, c = np.broadcast_arrays(a.astype(F64), b.astype(F64), c.astype(F64))
    return odd_sum(a * b, c).astype(F32)


def two_sum(a, b):
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a, b):
    """a b as a sum of two floats, by Dekker: exact unless something over- or underflows."""
    p = a * b
    split = F64(134217729.0)
    ah = split * a - (split * a - a)
    bh = split * b - (split * b - b)
    al, bl = a - ah, b - bh
    return p, al * bl - (((p - ah * bh) - al * bh) - ah * bl)


def fma64(a, b, c):
    """Correctly rounded, by round to odd (Boldo, Melquiond 2008); far from the ends of the range only."""
    a, b, c = np.broadcast_arrays(a, b, c)
    large = np.maximum(np.maximum(abs(a), abs(b)), abs(c))
    product = abs(a * b)
    if (large[np.isfinite(large)] > 1e150).any() or ((product < 1e-200) & (a != 0) & (b != 0)).any():
        raise PtxError("fma.rn.f64 near the ends of the range: the interpreter cannot round it")
    high, low = two_product(a, b)
    th, tl = two_sum(c, low)
    vh, vl = two_sum(high, th)
    exact = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    return np.where(exact, vh + odd_sum(tl, vl), a * b + c)


def count_leading_zeros(x):
    bits = x.dtype.itemsize * 8
    left = np.full(x.shape, bits, U32)
    for k in range(bits):
        left[(x >> x.dtype.type(k)) != 0] = bits - 1 - k
    return left


def population(x):
    return sum(((x >> x.dtype.type(k)) & x.dtype.type(1)).astype(U32) for k in range(x.dtype.itemsize * 8))


def shift_left(a, by):
    bits = a.dtype.itemsize * 8
    return np.where(by >= bits, a.dtype.type(0), a << np.minimum(by, bits - 1).astype(a.dtype))


def shift_right(a, by):
    """PTX clamps the amount: a signed number then leaves its sign."""
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by >= bits, a.dtype.type(0), shifted)


def divide(a, b):
    """Integers, towards zero."""
    if (b == 0).any():
        raise PtxError("division by zero")
    if a.dtype.kind == "u":
        return a // b
    q = a // b
    return q + ((q * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)


def remainder(a, b):
    return a - divide(a, b) * b


def multiply_high(a, b):
    if a.dtype.itemsize == 4:
        wide = np.int64 if a.dtype.kind == "i" else U64
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    if a.dtype.kind == "i":
        raise PtxError("mul.hi.s64 is not known")
    mask, half = U64(0xFFFFFFFF), U64(32)
    al, ah, bl, bh = a & mask, a >> half, b & mask, b >> half
    cross = ah * bl + ((al * bl) >> half)
    other = al * bh + (cross & mask)
    return ah * bh + (cross >> half) + (other >> half)


def funnel(direction, low, high, by, clamp):
    by = np.minimum(by, U32(32)) if clamp else by & U32(31)
    both = (high.astype(U64) << U64(32)) | low.astype(U64)
    moved = (both << by.astype(U64)) >> U64(32) if direction == "l" else both >> by.astype(U64)
    return moved.astype(U32)


def permute(a, b, selector):
    """prmt without a mode: each nibble of the selector picks a byte, or its sign spread over a byte."""
    both = (b.astype(U64) << U64(32)) | a.astype(U64)
    out = np.zeros(np.broadcast_shapes(a.shape, selector.shape), U32)
    for k in range(4):
        nibble = (selector >> U32(4 * k)) & U32(15)
        byte = ((both >> (U64(8) * (nibble & U32(7)).astype(U64))) & U64(255)).astype(U32)
        sign = np.where(byte & U32(128), U32(255), U32(0))
        out |= np.where(nibble & U32(8), sign, byte) << U32(8 * k)
    return out


def lop3(a, b, c, table):
    out = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            out |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return out


def extract(a, at, length):
    """bfe.u32"""
    if a.dtype != U32:
        raise PtxError("bfe of anything but u32 is not known")
    at, length = at & U32(255), length & U32(255)
    mask = np.where(length >= 32, U32(0xFFFFFFFF), (U32(1) << np.minimum(length, U32(31))) - U32(1))
    return shift_right(a, at) & mask


def convert(x, to, rounding, source):
    """cvt. Floats become integers only by an explicit rounding, and saturate as PTX says."""
    to_type, kind = np.dtype(to), np.dtype(to).kind
    if x.dtype.kind == "f" and kind in "iu":
        rounded = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[rounding](x.astype(F64))
        limits = np.iinfo(to_type)
        top = F64(limits.max)
        out = np.clip(np.nan_to_num(rounded, nan=0.0), F64(limits.min), top)
        exact = np.where(out >= top, 0, out).astype(np.int64 if kind == "i" else U64)
        return np.where(out >= top, to_type.type(limits.max), exact.astype(to_type))
    if x.dtype.kind == "f" and kind == "f":
        shrinks = to_type.itemsize < x.dtype.itemsize
        if rounding in ("rzi", "rni", "rmi", "rpi"):
            return {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[rounding](x).astype(to_type)
        if shrinks and rounding != "rn":
            raise PtxError(f"cvt of a float without rn: {source}")
        return x.astype(to_type)
    if kind == "f" and rounding != "rn":
        raise PtxError(f"cvt of an integer without rn: {source}")
    return x.astype(to_type)


ORDER = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
ORDER |= {"ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}


def compare(name, a, b):
    """setp's comparisons; those that end in u are also true of a NaN."""
    if name in ORDER:
        nan_is_false = name != "ne" or a.dtype.kind != "f"
        return ORDER[name](a, b) & (nan_is_false | ~(np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else True)
    if name == "num":
        return ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return np.isnan(a) | np.isnan(b)
    if name.endswith("u") and name[:-1] in ORDER and a.dtype.kind == "f":
        return ORDER[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    raise PtxError(f"comparison {name}")


BINARY = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "shl": shift_left, "shr": shift_right, "rem": remainder,
}  # fmt: skip
