"""The stage detector in plain Python, slow and direct: what csrc/core/stages.hpp must equal.

It keeps the whole curve in lists, takes every mean as an exactly rounded sum, and recomputes medians from
scratch.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

SCALES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
Row = dict[str, Any]


class ReferenceStages:
    def __init__(
        self, kind="loss", *, delta=0.05, z=None, kappa=0.7, size=0.01, skip=10.0, eps=0.01, scale=None
    ) -> None:
        self.loss = kind == "loss"
        self.delta, self.z, self.kappa, self.size = delta, z, kappa, size
        self.skip, self.eps, self.scale = skip, eps, scale
        self.t: list[float] = []
        self.y: list[float] = []
        self.g: list[float] = []
        self.variance: list[float] | None = None  # of each signal value; None while it must be estimated
        self.largest = 0.0
        self.last_se = 0.0
        self.second_differences: dict[int, list[float]] = {w: [] for w in SCALES}
        self.quiet: dict[int, list[tuple[int, float]]] = {w: [] for w in SCALES}  # (observations so far, signed excess)
        self.third_differences: list[float] = []
        self.noise: dict[int, float] = {}  # standard deviation of a block mean, for each scale that knows it
        self.start: int | None = None
        self.stage: Row | None = None
        self.closed: list[tuple[Row, Row]] = []
        self.settling: Row | None = None

    def update(self, t: float, y: float, se: float | None = None) -> Row | None:
        if not math.isfinite(y):
            return None
        if not self.t and se is not None:
            self.variance = []
        self.largest = max(self.largest, abs(y))
        self.last_se = self.last_se if se is None else se
        level = max(y, 0.0) + self.eps * self.largest
        self.t.append(t)
        self.y.append(y)
        self.g.append(math.log(max(level, 2.2250738585072014e-308)) if self.loss else y)
        if self.variance is not None:
            self.variance.append((self.last_se / level if self.loss else self.last_se) ** 2)
        if self.start is None and t >= self.skip:
            self.start = len(self.t) - 1
        if self.start is None:
            return None
        self.take_third_difference()
        alarm = self.look() if self.stage is None else None
        if self.settling is not None:
            self.settle()
        if self.stage is not None:
            self.follow()
        return alarm

    def look(self) -> Row | None:
        """Quiet: is the newest block below (or above) the line through the two blocks before it?"""
        e = len(self.t)
        best: tuple[float, int, int] | None = None
        for w in SCALES:
            if e - 3 * w < self.start:
                break
            m0, t0 = mean(self.g, e, w), mean(self.t, e, w)
            own = self.deviation(e, w)
            for u in (w, 2 * w, 4 * w):
                if e - w - 2 * u < self.start:
                    break
                m1, t1 = mean(self.g, e - w, u), mean(self.t, e - w, u)
                m2, t2 = mean(self.g, e - w - u, u), mean(self.t, e - w - u, u)
                slope, r = (m1 - m2) / (t1 - t2), (t0 - t1) / (t1 - t2)
                if u == w:
                    miss = (m1 + slope * (t0 - t1) - m0) / math.sqrt(1 + (1 + r) ** 2 + r * r)
                    self.second_differences[w].append(abs(miss))
                    if e % max(1, w // 8) == 0:
                        self.quiet[w] = [*self.quiet[w][-63:], (e, miss * math.sqrt(w))]
                if own is None:
                    continue
                past = self.deviation(e - w, u)
                error = math.sqrt(own**2 + past**2 * ((1 + r) ** 2 + r * r))
                for sign in (1,) if self.loss else (1, -1):
                    floor = self.floor() * (1.0 if self.settling is None else 0.25)
                    needed = max(floor, self.asked(w, u, sign, r, error))
                    excess = sign * m1 + min(sign * slope, 0.0) * (t0 - t1) - sign * m0
                    if excess > 0 and excess >= needed and (best is None or excess / needed > best[0]):
                        best = (excess / needed, w, sign)
            if len(self.second_differences[w]) >= 3:
                self.noise[w] = 1.4826 * statistics.median(self.second_differences[w][-48:])
        if best is None:
            return None
        excess, w, sign = best
        onset = self.find_onset(max(1, w // 2), sign)
        for w_ in SCALES:
            self.quiet[w_] = [item for item in self.quiet[w_] if item[0] <= onset + w_ // 2]
        self.stage = {"onset": onset, "alarm": e - 1, "block": w, "sign": sign, "peak": 0.0, "speed_block": 1}
        return {
            "step": self.t[-1],
            "onset": self.t[onset],
            "direction": -sign,
            "excess": excess,
            "block": w,
        }

    def follow(self) -> None:
        """In a stage: speed over the shortest block that resolves it; close when it has come down."""
        a, e = self.stage, len(self.t)
        speed = 0.0
        for w in SCALES:
            if e < 2 * w or (w > 1 and w > 2 * a["block"]):
                break
            gap = mean(self.t, e, w) - mean(self.t, e - w, w)
            speed, a["speed_block"] = self.speed(e, w, a["sign"]), w
            sd = self.deviation(e, w)
            if sd is None or math.sqrt(2) * sd / gap <= 0.1 * (a["peak"] or max(speed, 0.0)):
                break
        a["peak"] = max(a["peak"], speed)
        w = a["speed_block"]
        gap = mean(self.t, e, w) - mean(self.t, e - w, w)
        error = math.sqrt(2) * (self.deviation(e, w) or 0.0) / gap
        if speed + 2 * error <= self.kappa * a["peak"] and e - 1 > a["alarm"]:
            self.settling = {**a, "closed": e, "end": e}
            self.start, self.stage = e - w, None

    def settle(self) -> None:
        """After a stage: its end moves on until the curve rests, or back to the onset of the next stage."""
        a, e = self.settling, len(self.t)
        if self.stage is not None:
            a["end"] = max(min(a["end"], self.stage["onset"] + 1), a["closed"])
        elif self.speed(e, a["speed_block"], a["sign"]) > 0.3 * a["peak"]:
            a["end"] = e
            return
        self.closed = self.listed(self.closed, a, a["end"], False)
        self.settling = None

    def rows(self) -> list[Row]:
        pairs = self.closed
        if self.settling is not None:
            pairs = self.listed(pairs, self.settling, self.settling["end"], True)
        if self.stage is not None:
            pairs = self.listed(pairs, self.stage, len(self.t), True)
        return [row for _, row in pairs if self.large_enough(row)]

    def listed(self, pairs: list[tuple[Row, Row]], a: Row, e: int, provisional: bool) -> list[tuple[Row, Row]]:
        """(stage, row) in order, with one more: joined to the rows before it as long as nothing parts them."""
        row = self.row(a, e, provisional)
        if not self.large_enough(row):
            return pairs
        pairs = [pair for pair in pairs if self.large_enough(pair[1])]
        if pairs and pairs[-1][1]["direction"] == row["direction"]:
            before = pairs[-1][1]
            whole = {**a, **{name: pairs[-1][0][name] for name in ("onset", "alarm", "block")}}
            most = before["gain"] + row["gain"] >= 0.5 * self.row(whole, e, provisional)["gain"]
            if most and not self.apart(before, row, e):
                return self.listed(pairs[:-1], whole, e, provisional)
        return [*pairs, (a, row)]

    def apart(self, a: Row, b: Row, end: int) -> bool:
        """Does the speed between two rows fall to kappa x the lower of the peaks on its two sides?"""
        places = range(max(self.at(a["onset"]), 1), min(self.at(b["end"]), end - 1) + 1)
        middle = [q for q in places if self.at(a["midpoint"]) <= q <= self.at(b["midpoint"])]
        if len(middle) < 2:
            return False
        noise = self.noise_within(places[0], places[-1] + 1)
        gap = (self.t[places[-1]] - self.t[places[0]]) / (len(places) - 1)
        parted = False
        for w in SCALES:
            if w > 1 and 3 * w > middle[-1] - middle[0]:
                break
            speeds = {}
            for q in places:
                m, n = min(w, q), min(w, end - q)
                rise = mean(self.g, q + n, n) - mean(self.g, q, m)
                speeds[q] = b["direction"] * rise / (mean(self.t, q + n, n) - mean(self.t, q, m))
            valley = min(middle, key=lambda q: speeds[q])
            peaks = [max(v for q, v in speeds.items() if s * q <= s * valley) for s in (1, -1)]
            peak = max(0.0, min(peaks))
            parted = speeds[valley] <= self.kappa * peak
            if math.sqrt(2 / w) * noise / (w * gap) <= 0.05 * peak:
                break
        return parted

    def at(self, step: float) -> int:
        return next((i for i, t in enumerate(self.t) if t >= step), len(self.t))

    def noise_within(self, first: int, end: int) -> float:
        if self.variance is not None:
            return math.sqrt(math.fsum(self.variance[first:end]) / (end - first))
        thirds = sorted(self.third_difference(e) for e in range(max(first + 1, 4), end + 1))
        return 1.4826 * thirds[len(thirds) // 2] if thirds else 0.0

    def large_enough(self, row: Row) -> bool:
        change = row["direction"] * (row["after"] - row["before"])
        if self.loss:
            return change >= self.size * (max(self.y) - min(self.y)) and row["gain"] >= self.delta
        return change >= self.floor()

    def floor(self) -> float:
        return self.delta if self.loss else self.delta * (self.scale or max(self.y) - min(self.y))

    def asked(self, w: int, u: int, sign: int, r: float, error: float) -> float:
        """Least excess that the noise lets count."""
        if self.variance is not None:
            return (5.0 if self.z is None else self.z) * error
        z, own_z = (8.0, 4.5) if self.z is None else (self.z, self.z)
        n0 = self.excess_noise(w, sign, 12)
        if n0 is None:
            return z * error
        n1 = max(n0, self.excess_noise(u, sign, 12) or 0.0)
        last = self.noise.get(1, 0.0)
        since = max(1.0, self.fresh() / (1.2 * last)) if last > 0 else 1.0
        own = since * math.sqrt(n0 * n0 / w + n1 * n1 * ((1 + r) ** 2 + r * r) / u)
        own_z = math.sqrt(own_z**2 + 2 * math.log(max(1.0, len(self.t) / 256)))
        first = z if self.excess_noise(w, sign, 36) is None else min(own_z, z)
        return max(first * error, min(2 * z * error, own_z * own))

    def excess_noise(self, length: int, sign: int, least: int) -> float | None:
        """Deviation of one observation as the quartiles of the excess in quiet know it."""
        largest, known = 0.0, False
        for w in (w for w in SCALES if w <= length):
            values = [sign * v for at, v in self.quiet[w] if at <= len(self.t) - w][-48:]
            if len(values) < least:
                break
            values.sort()
            lower, upper = values[(len(values) - 1) // 4], values[(3 * (len(values) - 1) + 2) // 4]
            largest = max(largest, 1.4826 * min(upper, 0.5 * (upper - lower)))
            known = 2 * w >= length
        return largest if known else None

    def take_third_difference(self) -> None:
        if self.variance is not None or len(self.t) < 4:
            return
        self.third_differences = [*self.third_differences[-15:], self.third_difference(len(self.t))]

    def third_difference(self, end: int) -> float:
        misses = []
        for e in (end, end - 1):
            (g2, g1, g0), (t2, t1, t0) = self.g[e - 3 : e], self.t[e - 3 : e]
            r = (t0 - t1) / (t1 - t2)
            misses.append((g1 + (g1 - g2) * r - g0) / math.sqrt(1 + (1 + r) ** 2 + r * r))
        return abs(misses[0] - misses[1]) / math.sqrt(20 / 6)

    def fresh(self) -> float:
        """Deviation of one observation by the last third differences; 0 while it is not known."""
        n = len(self.third_differences)
        return 1.4826 * sorted(self.third_differences)[n // 2] if n >= 8 else 0.0

    def deviation(self, end: int, length: int) -> float | None:
        """Standard deviation of the mean of the block of this length before index `end`."""
        if self.variance is not None:
            return math.sqrt(math.fsum(self.variance[end - length : end])) / length
        known = [self.noise[v] * math.sqrt(v) for v in SCALES if v <= max(1, length // 4) and v in self.noise]
        if not known:
            return None
        more = self.fresh() > 2 * self.noise.get(1, -1.0)
        return max([*known, self.fresh() if more else 0.0]) / math.sqrt(length)

    def speed(self, end: int, h: int, sign: int) -> float:
        fall = mean(self.g, end - h, h) - mean(self.g, end, h)
        return sign * fall / (mean(self.t, end, h) - mean(self.t, end - h, h))

    def find_onset(self, h: int, sign: int) -> int:
        e = len(self.t)
        ends = range(self.start + 2 * h, e + 1)
        speeds = [max(self.speed(j, h, sign), 0.0) for j in ends]
        bound = min(speeds) + 0.05 * (speeds[-1] - min(speeds))
        last = max((j for j, v in zip(ends, speeds, strict=True) if v <= bound), default=ends[0])
        return min(max(last - h - 1, self.start), e - 2)

    def row(self, a: Row, e: int, provisional: bool) -> Row:
        """The row of a stage whose last observation is e - 1."""
        i, w = a["onset"], a["speed_block"]
        h = min(max(1, a["block"] // 2), i + 1)
        before, after = mean(self.y, i + 1, h), mean(self.y, e, w)
        crossings = [self.crossing(i, e, before, after, share) for share in (0.1, 0.5, 0.9)]
        return {
            **dict(zip(("onset", "midpoint", "end"), crossings, strict=True)),
            "alarm": self.t[a["alarm"]],
            "closed": self.t[e - 1],
            "before": before,
            "after": after,
            "gain": a["sign"] * (mean(self.g, i + 1, h) - mean(self.g, e, w)),
            "direction": -a["sign"],
            "provisional": provisional,
        }

    def crossing(self, first: int, end: int, before: float, after: float, share: float) -> float:
        level, up = before + share * (after - before), 1 if after > before else -1
        places = []
        for i in range(first, end - 1):
            s0, s1 = up * (self.y[i] - level), up * (self.y[i + 1] - level)
            if (s0 < 0) != (s1 < 0):
                x0, x1 = math.log1p(self.t[i]), math.log1p(self.t[i + 1])
                places.append(x0 + (x1 - x0) * s0 / (s0 - s1))
        if not places:
            ends = math.log1p(self.t[first]), math.log1p(self.t[end - 1])
            places = [ends[share > 0.5], ends[share >= 0.5]]
        return math.expm1((places[0] + places[-1]) / 2)


def mean(values: list[float], end: int, length: int) -> float:
    """Mean of the `length` values before index `end`."""
    return math.fsum(values[end - length : end]) / length
