"""Change points against known truths: run lengths, delays, channels, intervals, published stage ends, annotated series.

Run with ``python benchmarks/changepoint_truth.py [part ...]``; the parts are the functions of `PARTS`.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
from changepoint_planted import named
from changepoint_series import SERIES, bocpd_online, bocpd_segments, covering, f1
from harness import record

import devinterp_fast as dif
from devinterp_fast.changepoint.detectors import Detector
from devinterp_fast.changepoint.focus import Focus
from devinterp_fast.changepoint.thresholds import threshold

BLOCK = 32


def autocorrelated(rng, phi, channels):
    last = rng.standard_normal(channels)

    def draw(n):
        nonlocal last
        out = np.empty((n, channels))
        for i in range(n):
            last = phi * last + math.sqrt(1 - phi * phi) * rng.standard_normal(channels)
            out[i] = last
        return out

    return draw


def realised(kind, channels, arl, updates, seed):
    """Observed updates to a first alarm over the request, from the rate of first alarms; and how many they were."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1.0, updates + 401)
    if kind == "log-spaced":
        steps = np.unique(np.round(np.logspace(0, 9, 3 * updates)))[:updates]
    noise = {"AR(1) 0.5, phi estimated": "ar1", "unequal errors": "given"}.get(kind, "unit")
    correlated = autocorrelated(rng, 0.5, channels) if noise == "ar1" else None
    se = np.exp(0.5 * rng.normal(size=steps.size)) if noise == "given" else None
    det = Detector(channels, arl=arl, noise=noise, x="log" if kind == "log-spaced" else "step")
    fired, exposure = np.zeros(channels, dtype=bool), 0.0
    for low in range(0, steps.size, BLOCK):
        part = slice(low, low + BLOCK)
        n = steps[part].size
        y = correlated(n) if correlated else rng.standard_normal((n, channels), dtype=np.float32)
        if se is not None:
            y *= se[part, None].astype(np.float32)
        alarms = det.update(steps[part], y, None if se is None else se[part])
        if np.isfinite(det.threshold):
            exposure += n * (channels - fired.sum())
        for a in alarms:
            fired[a.channel] = True
    return exposure / fired.sum() / channels / arl, int(fired.sum())


def run_lengths():
    """Banks side by side: 400 of one channel at 2,000 updates (the 400 channels' request of 5), 20 of 1,000 at 50."""
    for kind in ("white", "AR(1) 0.5, phi estimated", "unequal errors", "log-spaced"):
        row = {}
        for name, channels, arl, updates in (
            ("1", 400, 5.0, 1600),
            ("1000", 20_000, 2.5, 640),
            ("100000", 100_000, 5.0, 640),
        ):
            row[name] = dict(zip(("ratio", "alarms"), realised(kind, channels, arl, updates, 21), strict=True))
            print(kind, name, row[name], flush=True)
        record("changepoint", {f"run length, {kind}": row})


def trends():
    """A line of .01 sd a step as null, and its slope doubled after 1,000 steps; kink model, one channel, ARL 10,000."""
    rng = np.random.default_rng(22)
    n, runs = 2000, 2000
    t = np.arange(n)
    level = threshold(1e4)
    noise = rng.standard_normal((n, runs), dtype=np.float32)
    row = {"nominal": -math.expm1(-n / 1e4)}
    for name, curve in (("trend", 0.01 * t), ("doubled", 0.01 * t + 0.01 * np.clip(t - 999, 0, None))):
        first = np.full(runs, n)
        for a in Detector(runs, noise="unit", threshold=level).update(t, noise + curve[:, None].astype(np.float32)):
            first[a.channel] = min(first[a.channel], int(a.step))
        row["false alarms on a trend"] = row.get("false alarms on a trend", float((first < n).mean()))
        late = first[first >= 1000]
        if name == "doubled":
            row |= {"delay to a doubled slope": float((late - 999).mean()), "missed": float((late == n).mean())}
    print(row)
    record("changepoint", {"trend": row})


def channels_named(runs=300):
    """False share among the channels named at a nominal tenth, and the share of changed ones found; 400 channels."""
    out = {}
    for name, model, changed, size, seed in (
        ("40 jump by 0.8 sd", "mean", 40, 0.8, 23),
        ("200 jump by 0.4 sd", "mean", 200, 0.4, 24),
        ("40 bend by 0.03 sd a step", "kink", 40, 0.03, 25),
    ):
        rng = np.random.default_rng(seed)
        shares, found = zip(*(named(rng, model, changed, size) for _ in range(runs)), strict=True)
        out[name] = {
            "runs": runs,
            "false share": float(np.mean(shares)),
            "its error": float(np.std(shares, ddof=1) / math.sqrt(runs)),
            "found": float(np.mean(found)),
        }
        print(name, out[name], flush=True)
    record("changepoint", {"localization": out})


def intervals():
    """Share of first alarms whose interval holds the change; 4,000 channels each."""
    n, channels, at = 800, 4000, 200
    t = np.arange(n)
    out = {}
    for i, (model, size) in enumerate((("mean", 0.5), ("mean", 1.0), ("mean", 2.0), ("kink", 0.02), ("kink", 0.05))):
        rng = np.random.default_rng(30 + i)
        change = size * (t >= at) if model == "mean" else size * np.clip(t - (at - 1), 0, None)
        first = {}
        for a in Detector(channels, model=model, noise="unit", arl=1e8).update(
            t, rng.normal(size=(n, channels)) + change[:, None]
        ):
            first.setdefault(a.channel, a)
        late = [a for a in first.values() if a.step >= at]
        out[f"{model} {size:g}"] = {
            "alarms": len(late),
            "coverage": float(np.mean([a.interval[0] <= at - 1 <= a.interval[1] for a in late])),
            "width": float(np.median([a.interval[1] - a.interval[0] for a in late])),
        }
        print(model, size, out[f"{model} {size:g}"], flush=True)
    record("changepoint", {"intervals": out})


PUBLISHED = {
    "language model": ([900, 6500, 8500, 17000, 50000], [26.4, 22.5, -1.57, 8.62, 1.77]),
    "regression transformer": ([1000, 40000, 126000, 320000, 500000], [21.4, 149, -12.3, -44.1, 3.56]),
}


def stage_ends():
    """Knots of the published LLC curves in log step; 400 values of error 0.3 % of the range, 20 noise seeds."""
    for name, (knots, increments) in PUBLISHED.items():
        levels = np.concatenate([[10.0], 10 + np.cumsum(increments)])
        steps = np.unique(np.round(np.geomspace(10, knots[-1], 400)))
        curve = np.interp(np.log1p(steps), np.log1p([10.0, *knots]), levels)
        se, inner = 0.003 * np.ptp(levels), knots[:-1]
        found, false, delays = np.zeros(len(inner)), 0, [[] for _ in inner]
        for seed in range(20):
            rng = np.random.default_rng(seed)
            seen = set()
            for a in Detector(1, x="log", noise="given", arl=1e5).update(
                steps, (curve + se * rng.normal(size=steps.size))[:, None], se
            ):
                near = [k for k, knot in enumerate(inner) if abs(math.log(a.onset / knot)) < 0.25]
                false += not near
                for k in set(near) - seen:
                    delays[k].append(a.step / inner[k])
                seen |= set(near)
            found[list(seen)] += 1
        row = {
            "ends": inner,
            "found, of 20": found.astype(int).tolist(),
            "false": false,
            "known at, times the end": [float(np.mean(d)) for d in delays],
        }
        print(name, row)
        record("changepoint", {f"stage ends, {name}": row})


ARLS = (1000, 2000, 5000, 10_000, 20_000, 50_000)


def delays():
    """Delay after a jump of one sd against realised ARL, of ours and every peer that is installed."""
    n, at = 2000, 1000
    rng = np.random.default_rng(40)
    null = rng.standard_normal((n, 3000), dtype=np.float32)
    jump = rng.standard_normal((n, 1000), dtype=np.float32)
    jump[at:] += 1
    out = {}

    def curve(name, of_null, of_jump):
        """From statistics over time (n, series): the delay at the threshold of each ARL."""
        top, points = of_null.max(axis=0), []
        for arl in ARLS:
            level = np.quantile(top, math.exp(-n / arl))
            over = of_jump >= level
            first = np.where(over.any(axis=0), over.argmax(axis=0), n)
            late = first[first >= at]
            points.append({"arl": arl, "delay": float((late + 1 - at).mean()), "runs": int(late.size)})
        out[name] = points
        print(name, points, flush=True)

    def grid(model, y):
        det, rows = Detector(y.shape[1], model=model, arl=None, noise="unit"), np.empty_like(y)
        for i in range(n):
            det.update(i, y[i])
            rows[i] = det.statistic()
        return rows

    def exact(y):
        return np.stack([Focus().run(y[:, c]).statistic for c in range(y.shape[1])], axis=1)

    curve("dif.Focus", exact(null), exact(jump))
    for model in ("mean", "kink"):
        curve(f"dif.Detector, {model}", grid(model, null), grid(model, jump))
    curve("BOCPD (reference)", bocpd_online(null[:, :200].astype(float)), bocpd_online(jump[:, :100].astype(float)))

    try:
        import focus_cpt
    except ImportError:
        focus_cpt = None
    if focus_cpt:

        def theirs(y):
            rows = np.zeros(y.shape)
            for c in range(y.shape[1]):
                peer = focus_cpt.Detector("univariate")
                for i, v in enumerate(y[:, c].tolist()):
                    peer.update(v)
                    if i:
                        rows[i, c] = peer.get_statistics(family="gaussian")["stat"]
            return rows

        curve("focus_cpt", theirs(null[:, :600]), theirs(jump[:, :300]))

    try:
        from river import drift
    except ImportError:
        drift = None
    if drift:

        def first(make, y):
            stops = []
            for c in range(y.shape[1]):
                peer, stop = make(), n
                for i, v in enumerate(y[:, c].tolist()):
                    peer.update(v)
                    if peer.drift_detected:
                        stop = i
                        break
                stops.append(stop)
            return np.array(stops)

        families = {
            "river ADWIN": [lambda d=d: drift.ADWIN(delta=d) for d in (0.3, 0.1, 0.03, 0.01, 0.002, 5e-4)],
            "river PageHinkley, delta .25": [
                lambda h=h: drift.PageHinkley(delta=0.25, threshold=h) for h in (7, 9, 11, 13, 16, 20)
            ],
            "river PageHinkley, default delta": [
                lambda h=h: drift.PageHinkley(threshold=h) for h in (30, 50, 70, 100, 140)
            ],
        }
        for name, makes in families.items():
            points = []
            for make in makes:
                share = float((first(make, null[:, :300]) < n).mean())
                late = first(make, jump[:, :150])
                late = late[late >= at]
                if 0.01 < share < 0.9 and late.size > 10:
                    points.append(
                        {"arl": -n / math.log1p(-share), "delay": float((late + 1 - at).mean()), "runs": int(late.size)}
                    )
            out[name] = sorted(points, key=lambda p: p["arl"])
            print(name, points, flush=True)
    record("changepoint", {"delay against run length": out})


def annotated():
    """F1 and covering of `segment` as it comes, beside PELT (ruptures, l2, 3 log n) and BOCPD (normal-gamma, 1/100)."""
    out = {}
    for name, (text, people) in SERIES.items():
        y = np.array(text.split(), dtype=float)
        found = {
            "dif.segment": [b.index for b in dif.segment(np.arange(y.size), y).boundaries],
            "BOCPD (reference)": bocpd_segments(y),
            "no change": [],
        }
        try:
            import ruptures

            z = ((y - y.mean()) / y.std())[:, None]
            found["PELT (ruptures)"] = ruptures.Pelt("l2", min_size=2, jump=1).fit(z).predict(3 * math.log(y.size))[:-1]
        except ImportError:
            pass
        out[name] = {
            m: {"found": list(map(int, f)), "f1": f1(people, f), "covering": covering(people, f, y.size)}
            for m, f in found.items()
        }
        print(name, out[name], flush=True)
    methods = next(iter(out.values()))
    out["mean"] = {
        m: {k: float(np.mean([row[m][k] for row in out.values() if m in row])) for k in ("f1", "covering")}
        for m in methods
    }
    print(out["mean"])
    record("changepoint", {"annotated series": out})


PARTS = (annotated, run_lengths, trends, channels_named, intervals, stage_ends, delays)

if __name__ == "__main__":
    asked = sys.argv[1:]
    for part in PARTS:
        if not asked or part.__name__ in asked:
            begin = time.perf_counter()
            part()
            print(f"{Path(__file__).name} {part.__name__}: {time.perf_counter() - begin:.0f} s", flush=True)
