"""The detector's kernels against the CPU's detector, and the sums over groups against their formula."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from builds import kernels
from case import Case, aligned, expected, normal, uniform
from shim import Call, Library

from devinterp_fast import _cpu

HERE = {"device": 0, "stream": 0}
MEAN, KINK, JUMP_KINK = 0, 1, 2
PER_OCTAVE = 4
SHARED = {"own": 0, "own_totals": 0, "is_own": 0}
"""No channel has weights of its own."""


def follow() -> Iterator[Case]:
    """Statistics after many steps, then those of all candidates of the last one."""
    library = Library(kernels(), module="_cuda")
    assert library.module is not None
    plans = [(MEAN, 0), (MEAN, 1), (KINK, 0), (KINK, -1), (JUMP_KINK, 0)]
    for number, (model, side) in enumerate(plans):
        for channels, steps in ((1, 1), (3, 40), (130, 60)):
            random = np.random.default_rng(number)
            x, weight = np.cumsum(0.5 + random.random(steps)), 0.5 + random.random(steps)
            y = normal(random, steps, channels)
            y[steps // 2 :] += np.float32(2.0)
            planner = library.module.GlrPlanner(model, PER_OCTAVE, side)
            plan = aligned(np.frombuffer(planner.plan(x.tolist(), weight.tolist(), False), np.uint8))
            kinds = 1 if model == MEAN else 2
            channel = {
                "channels": channels,
                "rows": aligned(np.zeros((planner.slots, kinds, channels), np.float32)),
                "totals": aligned(np.zeros((2, channels))),
                "base": aligned(np.stack([np.full(channels, np.nan), np.zeros(channels)])),
                "statistic": aligned(np.zeros(channels, np.float32)),
                "peak": aligned(np.zeros(channels, np.float32)),
                **SHARED,
            }
            common = {**HERE, "model": model, "side": side, "plan": plan, "steps": steps}
            call = Call("glr_follow_f32", {**common, **channel, "y": y, "ld": channels, "weights": 0})
            detector = _cpu.GlrDetector(channels, model, PER_OCTAVE, side, math.inf, 0.0, False)
            detector.update(x, y, weight, None, 1)
            # the sums are laid out otherwise on the CPU: `squares` below shows that they are right
            names = [k for k, v in call.arguments.items() if isinstance(v, np.ndarray)]
            state = dict(zip(names, library.run(call), strict=True))
            changed: dict[str, np.ndarray | None] = {k: state[k] for k in ("rows", "totals", "base")}
            changed |= {"statistic": detector.statistic, "peak": detector.peak}
            name = f"model {model}, side {side}, {channels} channels"
            yield Case(name, call, expected(call, changed), channels == 3)

            squares = aligned(np.full((planner.candidates, channels), np.nan, np.float32))
            if squares.size == 0:
                continue
            states = {k: aligned(state[k]) for k in ("rows", "totals", "base", "statistic", "peak")}
            call = Call(
                "glr_squares_f32",
                {
                    **common,
                    "channels": channels,
                    **states,
                    **SHARED,
                    "candidates": planner.candidates,
                    "squares": squares,
                },
            )
            # The largest is the statistic to the bit. The CPU lists all in float64; in float32 a few roundings (say 64)
            # of sums over the steps, of which the baseline's terms leave the size of one.
            found = library.run(call)[-1]
            assert found.max(axis=0).tobytes() == detector.statistic.tobytes()
            assert (abs(found - detector.squares()) <= 64 * steps * 2.0**-24 * found.max(axis=0)).all()
            yield Case(f"squares of {name}", call, expected(call, {"squares": found}), channels == 3)


def missing() -> Iterator[Case]:
    """Weights of each observation, gaps, a step that all miss: sixteen channels take them up together, or do not."""
    library = Library(kernels(), module="_cuda")
    assert library.module is not None
    for number, (model, side) in enumerate([(MEAN, 0), (MEAN, 1), (KINK, 0), (KINK, -1), (JUMP_KINK, 0)]):
        for channels, steps, weighted in ((3, 30, True), (40, 30, False)):
            random = np.random.default_rng(number)
            x, y = np.cumsum(0.5 + random.random(steps)), normal(random, steps, channels)
            y[steps // 2 :] += np.float32(2.0)
            holes = random.random(y.shape) < 0.1
            holes[:, 16:32] = False
            holes[7] = True
            y[holes] = np.nan
            weights = aligned(random.random(y.shape) * (random.random(y.shape) < 0.9)) if weighted else None
            shared = np.where(np.isfinite(y).any(1), 1.0, 0.0)
            planner = library.module.GlrPlanner(model, PER_OCTAVE, side)
            plan = aligned(np.frombuffer(planner.plan(x.tolist(), shared.tolist(), True), np.uint8))
            channel = {
                "channels": channels,
                "rows": aligned(np.zeros((planner.slots, 1 if model == MEAN else 2, channels), np.float32)),
                "totals": aligned(np.zeros((2, channels))),
                "base": aligned(np.stack([np.full(channels, np.nan), np.zeros(channels)])),
                "statistic": aligned(np.zeros(channels, np.float32)),
                "peak": aligned(np.zeros(channels, np.float32)),
                "own": aligned(np.full((planner.slots, 3, channels), np.nan)),
                "own_totals": aligned(np.full((3, channels), np.nan)),
                "is_own": aligned(np.zeros(channels, np.int32)),
            }
            common = {**HERE, "model": model, "side": side, "plan": plan, "steps": steps}
            call = Call(
                "glr_follow_f32",
                {**common, **channel, "y": y, "ld": channels, "weights": 0 if weights is None else weights},
            )
            detector = _cpu.GlrDetector(channels, model, PER_OCTAVE, side, math.inf, 0.0, False)
            detector.update(x, y, weights, None, 1)
            assert isinstance(call.arguments, dict)
            names = [k for k, v in call.arguments.items() if isinstance(v, np.ndarray)]
            state = dict(zip(names, library.run(call), strict=True))
            assert state["is_own"][::16].tolist() == ([1] if weighted else [1, 0, 1])
            changed: dict[str, np.ndarray | None] = {k: state[k] for k in channel if k != "channels"}
            changed |= {"statistic": detector.statistic, "peak": detector.peak}
            name = f"missing, model {model}, side {side}, {channels} channels"
            yield Case(name, call, expected(call, changed), channels == 3 and number % 2 == 0)

            squares = aligned(np.full((planner.candidates, channels), np.nan, np.float32))
            states = {k: aligned(state[k]) for k in channel if k != "channels"}
            call = Call(
                "glr_squares_f32",
                {**common, "channels": channels, **states, "candidates": planner.candidates, "squares": squares},
            )
            found = library.run(call)[-1]
            assert found.max(axis=0).tobytes() == detector.statistic.tobytes()
            yield Case(f"squares of {name}", call, expected(call, {"squares": found}), False)


def mixture(z: np.ndarray) -> float:
    """sum log(1 - p + p sqrt(1 - g) exp(g z / 2)), p = (m + 1)^(-1/2), g = 0.9, in float64."""
    p = (len(z) + 1) ** -0.5
    return float(np.sum(np.logaddexp(math.log(1 - p), math.log(p * math.sqrt(0.1)) + 0.45 * z.astype(np.float64))))


def reduce() -> Iterator[Case]:
    """The largest, the sum and the mixture of groups' statistics: lane by lane, then the lanes in their order."""
    library = Library(kernels(), module="_cuda")
    for number, (rows, channels, groups) in enumerate([(1, 1, 1), (3, 33, 2), (5, 100, 4), (2, 300, 3)]):
        random = np.random.default_rng(number)
        squares = aligned(uniform(random, rows, channels, scale=30.0).astype(np.float32))
        members = aligned(random.permutation(channels))
        start = aligned(np.concatenate([[0], np.sort(random.integers(1, channels + 1, groups - 1)), [channels]]))
        largest, total, mixed = (uniform(random, rows, groups) for _ in range(3))
        call = Call(
            "glr_reduce_f32",
            {**HERE, "groups": groups, "members": members, "start": start, "squares": squares, "rows": rows}
            | {"channels": channels, "largest": largest, "total": total, "mixture": mixed},
        )
        top, sums = np.zeros((rows, groups)), np.zeros((rows, groups))
        found = library.run(call)[-1]
        for r in range(rows):
            for g in range(groups):
                z = squares[r, members[start[g] : start[g + 1]]]
                top[r, g] = z.max(initial=0)
                lanes = [sum(z[i::32].astype(np.float64), 0.0) for i in range(32)]
                sums[r, g] = sum(lanes, 0.0)
                # a term's own logarithms and exponential are right to 4e-7 of the exponents' size, at most 20 here
                assert abs(found[r, g] - mixture(z)) < 4e-7 * 20 * max(len(z), 1)
        changed: dict[str, np.ndarray | None] = {"largest": top, "total": sums, "mixture": found}
        yield Case(f"groups {rows} x {groups} of {channels}", call, expected(call, changed))
