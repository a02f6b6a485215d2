"""Observers of draws: the same numbers with and without them, and what they see is what the chains are."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

import devinterp_fast as dif
from devinterp_fast import _cpu
from devinterp_fast.sampling import jobs
from devinterp_fast.sampling.batches import as_data
from devinterp_fast.sampling.observers import Probe
from devinterp_fast.sampling.prepare import Prepared, prepare

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=DRAW)
Y = torch.randint(0, 2, (60,), generator=DRAW)
QUICK = {"chains": 3, "draws": 7, "burn_in": 5, "thin": 2, "lr": 1e-3, "batch_size": 16}
BACKENDS = pytest.mark.parametrize("backend", ["native", "torch"])


def network(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).eval()


class Everything:
    """Keeps all that it is shown."""

    def __init__(self, *probes):
        self.probes, self.w, self.loss, self.values = probes, {}, {}, {}

    def see(self, draw):
        for i, c in enumerate(range(draw.chains.start, draw.chains.stop)):
            self.w[c, draw.number] = draw.w[i].clone()
            self.loss[c, draw.number] = draw.loss[i], draw.baseline[i]
        for number, probe in enumerate(self.probes):
            seen = draw.values(probe)
            for i, c in enumerate(range(draw.chains.start, draw.chains.stop)):
                self.values[number, c, draw.number] = seen[i]


def watched(*probes, model=None, **options):
    observer = Everything(*probes)
    job = prepare(network() if model is None else model, nn.CrossEntropyLoss(), (X, Y), **{**QUICK, **options})
    ((trace, _engine),) = jobs.run([job], "", progress=False, observers=[[observer]])
    return trace, observer


def losses_at(w, x=X, y=Y):
    """In float64, by torch."""
    model = network().double()
    torch.nn.utils.vector_to_parameters(w.double(), model.parameters())
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x.double()), y, reduction="none").numpy()


@BACKENDS
@pytest.mark.parametrize("batches", ["independent", "shared", "full"])
def test_watching_changes_no_bit(backend, batches):
    trace, _ = watched(Probe(as_data((X, Y))), backend=backend, batches=batches)
    alone = dif.estimate_llc(
        network(), nn.CrossEntropyLoss(), (X, Y), backend=backend, batches=batches, progress=False, **QUICK
    )
    assert np.array_equal(trace.loss, alone.trace["loss"])
    assert np.array_equal(trace.baseline, alone.trace["baseline"])


@BACKENDS
def test_what_is_seen_belongs_to_the_draw(backend):
    few = as_data((X[:9], Y[:9]))
    trace, seen = watched(Probe(as_data((X, Y))), Probe(few), backend=backend, batches="full")
    assert len(seen.w) == 3 * 7
    for (c, k), w in seen.w.items():
        assert seen.loss[c, k] == (trace.loss[c, k], trace.baseline[c, k])
        expected = losses_at(w)
        # A loss of order one from some tens of float32 operations.
        np.testing.assert_allclose(seen.values[0, c, k], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(seen.values[1, c, k], expected[:9], rtol=0, atol=1e-5)
        assert trace.loss[c, k] == pytest.approx(expected.mean(), abs=1e-5)


@BACKENDS
def test_a_function_of_the_model_is_seen_too(backend):
    probe = Probe(as_data(X), lambda model, batch: model(batch))
    _, seen = watched(probe, backend=backend)
    model = network()
    for (c, k), w in seen.w.items():
        torch.nn.utils.vector_to_parameters(w, model.parameters())
        with torch.no_grad():
            np.testing.assert_allclose(seen.values[0, c, k], model(X).numpy(), rtol=0, atol=1e-6)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a)


def test_threads_chains_and_instruction_sets_do_not_show(isa):
    big = as_data((X.repeat(50, 1), Y.repeat(50)))  # several blocks of samples
    _, want = watched(Probe(big), backend="native")
    torch.set_num_threads(2)
    _, threads = watched(Probe(big), backend="native")
    assert same(want.w, threads.w)
    assert same(want.values, threads.values)
    _, one = watched(Probe(big), backend="native", chains=1)
    assert all(np.array_equal(one.values[key], want.values[key]) for key in one.values)
    assert _cpu.isa() == isa
    _cpu.use_isa("baseline")
    assert same(watched(Probe(big), backend="native")[1].values, want.values)


def test_a_probe_the_native_engine_cannot_take_is_seen_by_torch():
    wide = as_data((X[:4], torch.tensor([0, 1, 1, -100])))  # an ignored target: no loss of its own
    _, seen = watched(Probe(wide), backend="native", draws=1)
    for c in range(3):
        values = seen.values[0, c, 0]
        np.testing.assert_allclose(values[:3], losses_at(seen.w[c, 0], X[:3], torch.tensor([0, 1, 1])), atol=1e-5)


def test_gradients_of_chains_are_autograds():
    found = {}

    class Slopes:
        def see(self, draw):
            found[draw.chains.start] = draw.w.clone(), *draw.evaluator.gradients(draw.w, probe)

    for backend in ("native", "torch"):
        found.clear()
        job = prepare(network(), nn.CrossEntropyLoss(), (X, Y), **{**QUICK, "draws": 1, "backend": backend})
        probe = Probe(job.data)
        jobs.run([job], "", progress=False, observers=[[Slopes()]])
        for w, losses, gradients in found.values():
            for row, loss, g in zip(w, losses, gradients, strict=True):
                model = network().double()
                torch.nn.utils.vector_to_parameters(row.double(), model.parameters())
                value = nn.functional.cross_entropy(model(X.double()), Y)
                exact = torch.cat([p.reshape(-1) for p in torch.autograd.grad(value, list(model.parameters()))])
                assert loss == pytest.approx(value.item(), abs=1e-6)
                np.testing.assert_allclose(g.double(), exact, rtol=0, atol=1e-6)


# --- Ctrl-C


class Pressed:
    """Presses Ctrl-C at a draw."""

    def __init__(self, chain, number):
        self.at = chain, number

    def see(self, draw):
        if draw.chains.start <= self.at[0] < draw.chains.stop and draw.number == self.at[1]:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def pressable():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupted(chain, number, **options):
    job = prepare(network(), nn.CrossEntropyLoss(), (X, Y), **{**QUICK, **options})
    return jobs.run([job], "", progress=False, observers=[[Pressed(chain, number)]])[0][0]


def test_ctrl_c_keeps_the_draws_so_far(pressable):
    whole, _ = watched(backend="native")
    trace = interrupted(0, 3, backend="native")
    assert trace.interrupted
    assert trace.recorded()[0].tolist() == [0, 1, 2]
    assert trace.recorded()[1] == 4
    assert np.array_equal(trace.loss[:, :4], whole.loss[:, :4])
    assert np.isnan(trace.loss[:, 4:]).all()


def test_ctrl_c_keeps_the_chains_so_far(pressable, monkeypatch):
    monkeypatch.setattr("devinterp_fast.sampling.torch_engine.VMAP_LIMIT", 0)
    whole, _ = watched(backend="torch")
    trace = interrupted(2, 3, backend="torch")
    assert trace.interrupted
    assert (trace.recorded()[0].tolist(), trace.recorded()[1]) == ([0, 1], 7)
    assert np.array_equal(trace.loss[:2], whole.loss[:2])
    first = interrupted(0, 3, backend="torch")
    assert (first.recorded()[0].tolist(), first.recorded()[1]) == ([0], 4)


def test_ctrl_c_on_the_last_draw_is_too_late_to_mark_anything(pressable):
    trace = interrupted(0, 6, backend="native")
    assert not trace.interrupted
    assert np.isfinite(trace.loss).all()


def test_native_jobs_side_by_side_share_the_threads(monkeypatch):
    torch.set_num_threads(4)
    seen = []
    real = Prepared.engine

    def engine(self, settings=None, threads=None):
        seen.append(threads)
        return real(self, settings, threads)

    monkeypatch.setattr(Prepared, "engine", engine)
    x, y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 1)
    models = [nn.Linear(2, 1, bias=False) for _ in range(3)]
    settings = {"chains": 2, "draws": 5, "burn_in": 0, "lr": 1e-3, "localization": 1.0, "progress": False}
    row = dif.estimate_llc(models, nn.MSELoss(), (x, y), **settings)
    assert seen == [2, 2, 2]  # two jobs at a time, of two threads each
    alone = dif.estimate_llc(models[2], nn.MSELoss(), (x, y), **settings)
    np.testing.assert_array_equal(row[2].trace["loss"], alone.trace["loss"])
