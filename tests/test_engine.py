"""Whole chains: the path is the written-down one, whatever the threads, the company and the cutting into
calls.
"""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from devinterp_fast import _cpu
from devinterp_fast.sampling.native import MODES, NativeRun, batch_indices, capture


def words(count, seed, chain, step):
    out = np.empty(count, dtype=np.uint32)
    _cpu.words_u32(out.ctypes.data, 1, count, count, seed, chain, step, 1, 1)
    return out.astype(np.uint64)


def narrow():
    torch.manual_seed(0)
    x = torch.rand(70, 6)
    return nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 6)), nn.MSELoss(), x, x


def wide():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 40), nn.GELU(), nn.Linear(40, 4))
    return model, nn.CrossEntropyLoss(), torch.randn(70, 9), torch.randint(0, 4, (70,))


def start(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


SETTINGS = {"draws": 6, "burn_in": 3, "thin": 2, "seed": 5, "batch_size": 19}


def build(case, chains=5, program=None, **changes):
    model, loss_fn, x, y = case()
    program = program or capture(model, loss_fn, x, y)
    w = start(model)
    lr = np.linspace(1e-4, 3e-4, chains)
    fields = {
        **SETTINGS,
        "lr": lr,
        "localization": np.full(chains, 2.0),
        "nbeta": np.linspace(10.0, 20.0, chains),
    }
    fields |= {"center": w, "baseline": program.losses(w)}
    return NativeRun(program, **{**fields, **changes})


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield


CASES = [pytest.param(case, mode, id=f"{case.__name__}-{mode}") for case in (narrow, wide) for mode in MODES]


def same(a, b):
    """Two runs, bit for bit."""
    np.testing.assert_array_equal(a.loss, b.loss)
    np.testing.assert_array_equal(a.baseline, b.baseline)
    np.testing.assert_array_equal(a.energy, b.energy)
    np.testing.assert_array_equal(a.diverged, b.diverged)
    assert torch.equal(a.w, b.w)


# ---- batches


@pytest.mark.parametrize("size", [1, 4, 19, 128, 200])
def test_independent_and_shared_batches(size):
    for chain in (0, 3):
        expected = (words(size, 5, chain, 7) * np.uint64(70)) >> np.uint64(32)
        got = batch_indices("independent", seed=5, chain=chain, step=7, n=70, batch_size=size)
        np.testing.assert_array_equal(got, expected)
        shared = (words(size, 5, 2**32 - 1, 7) * np.uint64(70)) >> np.uint64(32)
        np.testing.assert_array_equal(
            batch_indices("shared", seed=5, chain=chain, step=7, n=70, batch_size=size), shared
        )
    np.testing.assert_array_equal(batch_indices("full", seed=5, chain=0, step=7, n=70, batch_size=3), np.arange(70))


@pytest.mark.parametrize(("n", "size"), [(1, 1), (10, 3), (70, 19), (70, 150)])
def test_epoch_batches_are_permutations_in_a_row(n, size):
    steps = 3 * n // size + 3
    row = np.concatenate([batch_indices("epoch", seed=5, chain=2, step=t, n=n, batch_size=size) for t in range(steps)])
    for epoch in range(len(row) // n):
        order = np.arange(n)
        draw = words(n, 5, 2, epoch)
        for i in range(n - 1, 0, -1):
            k = int(draw[i]) * (i + 1) >> 32
            order[[i, k]] = order[[k, i]]
        np.testing.assert_array_equal(row[epoch * n : (epoch + 1) * n], order)


# ---- the path


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_path_is_gradient_and_update_in_turn(case, mode):
    """With the Program's own float32 gradient the path is the fused step's, bit for bit (chains in the lanes
    sum the batch in another order, so there to rounding)."""
    run = build(case, batches=mode).finish()
    program, w0 = run.program, run.center
    exact = program.native.layout(MODES.index(mode)) != 2
    w = w0.repeat(run.chains, 1)
    for t in range(run.steps):
        g, energy = torch.empty_like(w), np.empty(run.chains)
        for c in range(run.chains):
            index = batch_indices(mode, seed=5, chain=c, step=t, n=program.n, batch_size=19)
            losses, g[c] = program.gradient(w[c], index)
            if t >= 3 and (t - 3) % 2 == 0:
                draw = (t - 3) // 2
                assert run.loss[c, draw] == pytest.approx(float(losses.mean()), rel=1e-12 if exact else 1e-5)
                assert run.baseline[c, draw] == pytest.approx(float(program.losses(w0)[index.long()].mean()), rel=1e-12)
        _cpu.sgld_step_f32(
            w.data_ptr(), program.dim, w0.data_ptr(), 0, 0, 0, run.chains, [(0, program.dim, g.data_ptr(),
            program.dim)], run.lr.ctypes.data, run.localization.ctypes.data, run.nbeta.ctypes.data, 5, t, 0,
            True, energy.ctypes.data, 0, 1,
        )  # fmt: skip
        if t >= 3 and (t - 3) % 2 == 0:
            np.testing.assert_allclose(run.energy[:, (t - 3) // 2], energy, rtol=1e-12 if exact else 1e-4)
    if exact:
        assert torch.equal(run.w, w)
    else:
        torch.testing.assert_close(run.w, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_company_threads_and_cuts_do_not_show(case, mode):
    whole = build(case, chains=17, batches=mode).finish()
    same(build(case, chains=17, batches=mode, threads=2, program=whole.program).finish(), whole)
    cut = build(case, chains=17, batches=mode, program=whole.program)
    for steps in (1, 2, 5, 100):
        cut.advance(steps)
    same(cut, whole)
    for c in (0, 16):
        alone = build(
            case, chains=1, first_chain=c, batches=mode, program=whole.program,
            lr=whole.lr[c : c + 1], localization=whole.localization[c : c + 1], nbeta=whole.nbeta[c : c + 1],
        ).finish()  # fmt: skip
        np.testing.assert_array_equal(alone.loss[0], whole.loss[c])
        assert torch.equal(alone.w[0], whole.w[c])


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_resumes_elsewhere(case, mode):
    whole = build(case, batches=mode).finish()
    first = build(case, batches=mode, program=whole.program)
    first.advance(6)
    second = build(case, batches=mode, program=whole.program, start=first.state, burn_in=1, draws=4).finish()
    assert torch.equal(second.w, whole.w)
    np.testing.assert_array_equal(second.loss, whole.loss[:, 2:])
    np.testing.assert_array_equal(first.loss[:, :2], whole.loss[:, :2])


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_every_instruction_set_takes_the_same_path(case, mode):
    runs = []
    try:
        for name in _cpu.isa_available():
            assert _cpu.use_isa(name)
            runs.append(build(case, chains=3, batches=mode, draws=2).finish())
    finally:
        _cpu.use_isa("")
    for run in runs[1:]:
        same(run, runs[0])


@pytest.mark.parametrize("case", [narrow, wide])
@pytest.mark.parametrize("mode", ["independent", "shared"])
def test_mask_center_and_divergence(case, mode):
    model, *_ = case()
    dim = start(model).numel()
    mask = torch.arange(dim) % 3 == 0
    run = build(case, batches=mode, mask=mask).finish()
    assert torch.equal(run.w[:, ~mask], run.center[~mask].expand(run.chains, -1))
    assert (run.w[:, mask] != run.center[mask]).any(1).all()
    centers = start(model) + torch.linspace(0, 1, 5)[:, None]
    own = build(case, batches=mode, center=centers, lr=np.zeros(5), program=run.program).finish()
    assert torch.equal(own.w, centers)

    lr = np.array([1e-4, 1e30, 1e-4, 1e-4, 1e-4])
    wild = build(case, batches=mode, lr=lr, program=run.program, burn_in=0, thin=1).finish()
    tame = build(case, batches=mode, lr=np.full(5, 1e-4), program=run.program, burn_in=0, thin=1).finish()
    assert wild.diverged[1] in (1, 2)
    assert np.isfinite(wild.loss[1, : wild.diverged[1]]).all()
    assert np.isnan(wild.loss[1, wild.diverged[1] :]).all()
    for c in (0, 2, 3, 4):
        np.testing.assert_array_equal(wild.loss[c], tame.loss[c])
    assert (wild.diverged[[0, 2, 3, 4]] == -1).all()
    again = build(case, batches=mode, lr=lr, program=run.program, start=wild.state, thin=1).finish()
    assert again.diverged[1] == wild.diverged[1]
    assert torch.equal(again.w[1], wild.w[1])


def test_progress_and_a_free_interpreter():
    seen = []
    run = build(narrow, draws=30_000)
    ticks, over = [], threading.Event()

    def tick():
        while not over.wait(1e-3):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    run.advance(run.steps // 2)
    end = time.perf_counter()
    over.set()
    thread.join()
    # Held, the interpreter could tick at the ends of the call only.
    assert any(0.8 * begin + 0.2 * end < t < 0.2 * begin + 0.8 * end for t in ticks)
    run.finish(progress=lambda step, steps: seen.append((step, steps)))
    assert seen[-1] == (run.steps, run.steps)


def test_ctrl_c_between_calls():
    def interrupt(step, steps):
        raise KeyboardInterrupt

    run = build(wide, draws=2000, chains=64)
    with pytest.raises(KeyboardInterrupt):
        run.finish(progress=interrupt)
    assert 0 < run.step <= run.steps
    run.advance(1)


def test_errors():
    with pytest.raises(ValueError, match=r"center: expected \(42,\) or \(5, 42\), got \(3,\)"):
        build(narrow, center=torch.zeros(3))
    with pytest.raises(ValueError, match="mask: expected 42 elements, got 3"):
        build(narrow, mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"nbeta: expected \(5,\), got \(2,\)"):
        build(narrow, nbeta=np.ones(2))
    with pytest.raises(ValueError, match=r"baseline: expected \(70,\), got \(7,\)"):
        build(narrow, baseline=np.ones(7))
    with pytest.raises(ValueError, match="thin: expected at least 1, got 0"):
        build(narrow, thin=0)


# ---- truth


@pytest.mark.parametrize(("dim", "mode"), [(5, "full"), (40, "full"), (5, "independent"), (5, "shared"), (5, "epoch")])
def test_quadratic_posterior(dim, mode):
    """Linear regression at its minimum is the quadratic whose SGLD moments are exact.

    With h the eigenvalues of the Hessian, a = nbeta h + localization, r = 1 - lr a / 2: var = 1 / (a (1 - lr
    a / 4)), E[nbeta (L - L0)] at step t = sum nbeta h var (1 - r^2t) / 2, and the variance of a chain's mean
    is below sum (nbeta h var)^2 / 2 (1 + r^2) / (1 - r^2) / draws. The bound is four standard errors over all
    chains. In the minibatch modes all samples are alike, so every batch is the full one.
    """
    torch.manual_seed(0)
    n, chains, draws, nbeta, lr, localization = 64, 48, 1500, 30.0, 4e-3, 3.0
    x = torch.randn(n, dim) if mode == "full" else torch.randn(1, dim).repeat(n, 1) / 3
    model = nn.Linear(dim, 1, bias=False)
    y = (x @ model.weight.detach().T).contiguous()
    program = capture(model, nn.MSELoss(), x, y)
    assert program.native.layout(MODES.index(mode)) == (0 if dim == 40 else 2 if mode == "shared" else 1)
    run = NativeRun(
        program, draws=draws, burn_in=0, thin=1, lr=np.full(chains, lr), localization=np.full(chains,
        localization), nbeta=np.full(chains, nbeta), center=start(model), batches=mode, batch_size=16, seed=1,
    ).finish()  # fmt: skip
    h = torch.linalg.eigvalsh(2.0 / n * x.double().T @ x.double()).clamp(min=0).numpy()
    a = nbeta * h + localization
    assert (lr * a < 2).all()
    r, var = 1 - lr * a / 2, 1 / (a * (1 - lr * a / 4))
    t = np.arange(draws)[:, None]
    expected = float((0.5 * nbeta * h * var * (1 - r ** (2 * t))).sum(1).mean())
    error = math.sqrt(float((0.5 * (nbeta * h * var) ** 2 * (1 + r**2) / (1 - r**2)).sum()) / (chains * draws))
    assert float(nbeta * run.loss.mean()) == pytest.approx(expected, abs=4 * error)
