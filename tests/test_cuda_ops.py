"""The CUDA doors without a GPU: the kernels are built with the shim (tests/cuda), the tensors lie on the CPU."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path

import builds
import numpy as np
import pytest
import shim
import torch
from torch import nn

from devinterp_fast import _cpu, _native, _native_cuda, _native_cuda_sums
from devinterp_fast.curvature.resident import ResidentCurvature
from devinterp_fast.errors import CudaError, DeviceError, DTypeError, ShapeError
from devinterp_fast.sampling import native, resident
from devinterp_fast.sampling.samplers import Sampler

OP = torch.ops.devinterp_fast.sampler_step_at_.default
SAMPLERS = tuple(_native_cuda.SAMPLERS)
UNIT = 2.0**-24


@pytest.fixture(scope="module")
def shimmed():
    if why := builds.missing("g++"):
        pytest.skip(why)
    library = shim.Library(builds.kernels(), module="_cuda")
    library.dll.shim_record(0)
    library.dll.shim_seed(1)
    return library.module


@pytest.fixture
def kernels(shimmed, monkeypatch):
    """The doors, led to the shim's kernels."""
    monkeypatch.setattr(_native_cuda, "_cuda", shimmed)
    for door in (_native_cuda, _native_cuda_sums, resident):
        monkeypatch.setattr(door, "stream_of", lambda _: 0)
    return shimmed


def step_arguments(sampler="sgld", chains=3, dim=41, *, masked=False, sums=True):
    draw = torch.Generator().manual_seed(0)
    rows = torch.zeros(3, chains, 64)
    rows[:, :, :dim] = torch.randn(3, chains, dim, generator=draw)
    w, first, second = rows[:, :, :dim]
    g, center = (torch.randn(chains, dim, generator=draw) for _ in range(2))
    each = torch.arange(1, chains + 1, dtype=torch.float64)
    settings = _native_cuda.coefficients(sampler, 1e-3 * each, 7.0 / each, 30.0 * each, friction=2.0)
    states = _native_cuda.SAMPLERS[sampler][2]
    mask = torch.arange(dim) % 3 != 0 if masked else None
    gradients = [g[:, :7].contiguous(), g[:, 7:].contiguous()]
    out = torch.zeros(_native_cuda.sums_length(gradients, chains), dtype=torch.float64) if sums else None
    return [
        sampler, w, gradients, center[0].clone(), settings, torch.tensor([5, 6]),
        first if states > 1 else None, second.abs_() if states > 2 else None, mask, out,
    ]  # fmt: skip


# --- the op -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_op_passes_opcheck(sampler):
    torch.library.opcheck(OP, tuple(step_arguments(sampler)))
    torch.library.opcheck(OP, tuple(step_arguments(sampler, masked=True, sums=False)[:9]))


def test_normal_at_passes_opcheck_and_equals_the_plain_op():
    clock, out = torch.tensor([5, 6]), torch.empty(3, 40)
    torch.library.opcheck(torch.ops.devinterp_fast.normal_at_.default, (out, clock))
    torch.ops.devinterp_fast.normal_at_(out, clock, 2, 3)
    assert torch.equal(out, _native.normals_(torch.empty(3, 40), seed=5, step=6, first_chain=2, stream=3))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_functions_give_the_same_bits_and_fresh_noise(backend):
    def walk(w, gradients, center, settings, clock):
        OP("sgld", w, gradients, center, settings, clock)
        clock[1:].add_(1)
        return w * 2

    torch.compiler.reset()
    compiled = torch.compile(walk, fullgraph=True, backend=backend)
    plain, other = step_arguments(sums=False)[1:6], step_arguments(sums=False)[1:6]
    for _ in range(2):
        assert torch.equal(walk(*plain), compiled(*other))
    assert plain[4].tolist() == other[4].tolist() == [5, 8]


def test_a_step_equals_the_plain_step_of_the_same_settings():
    _, w, gradients, center, _, clock, *_ = step_arguments()
    each = torch.arange(1, 4, dtype=torch.float64)
    want, energy = w.clone(), torch.zeros(3, dtype=torch.float64)
    _native.sgld_step_(want, gradients, center, 1e-3 * each, 7.0 / each, 30.0 * each, seed=5, step=6, energy=energy)
    args = step_arguments()
    OP(*args)
    assert torch.equal(args[1], want)
    assert torch.equal(args[9][:3], energy)
    assert clock.tolist() == [5, 6]


def test_the_coefficients_are_the_engines():
    """Friction in Cayley's form: keep^2 + noise^2 = 1 up to the two roundings of float32."""
    each = torch.tensor([0.01, 0.25], dtype=torch.float64)
    k = _native_cuda.coefficients("langevin", each, each, each, friction=1.5).double()
    assert ((k[:, 4] ** 2 + k[:, 5] ** 2 - 1).abs() <= 4 * UNIT).all()
    with pytest.raises(ValueError, match=r"sampler: expected one of \['langevin', 'preconditioned', 'sgld'\]"):
        _native_cuda.coefficients("adam", each, each, each)


# --- the doors --------------------------------------------------------------------------------------------------


BAD = {
    "w: expected dense rows of float32": (ShapeError, 1, lambda w: w.double()),
    "center: expected float32 (41,) on cpu, got float64 (41,)": (DTypeError, 3, lambda c: c.double()),
    "center: expected float32 (3, 41) on cpu, got float32 (2, 41)": (ShapeError, 3, lambda c: c.repeat(2, 1)),
    "center: expected float32 (41,) on cpu, got float32 (41,) on meta": (DeviceError, 3, lambda c: c.to("meta")),
    "settings: expected float32 (3, 4)": (ShapeError, 4, lambda s: s[:, :3]),
    "clock: expected int64 (2,)": (ShapeError, 5, lambda c: c[:1]),
    "g: expected float32 (3, 41) in all, got 7 columns": (ShapeError, 2, lambda g: g[:1]),
    "g: expected contiguous float32 (3, ...)": (ShapeError, 2, lambda g: [g[0], g[1].T.contiguous().T]),
    "mask: expected bool (41,)": (DTypeError, 8, lambda m: m.to(torch.uint8)),
    "sums: expected float64 (18,)": (ShapeError, 9, lambda s: s[:17]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    error, place, change = BAD[message]
    args = step_arguments(masked=True)
    args[place] = change(args[place])
    with pytest.raises(error, match=re.escape(message)):
        _native_cuda.sampler_step_(*args)


def test_a_missing_state_is_named():
    args = step_arguments("langevin")
    args[6] = None
    with pytest.raises(ShapeError, match=r"first: expected float32 .* for langevin, got none"):
        _native_cuda.sampler_step_(*args)


def test_without_a_gpu_the_reason_is_said():
    if not _native_cuda.unavailable():
        pytest.skip("there is a GPU")
    assert _native_cuda.summary().startswith("off: ")
    with pytest.raises((CudaError, DeviceError), match=r"nvcc was not found|device: expected cuda, got cpu"):
        _native_cuda.fill_noise_("normals", torch.empty(2, 8), torch.tensor([1, 2]))


def test_a_build_without_nvcc_says_so(monkeypatch):
    monkeypatch.setattr(_native_cuda, "_cuda", None)
    assert _native_cuda.summary() == "off: this build has no CUDA module: nvcc was not found when it was made"
    with pytest.raises(CudaError, match="nvcc was not found"):
        _native_cuda.module()


def test_the_module_imports_without_a_driver():
    if _native_cuda._cuda is None:
        pytest.skip(_native_cuda.unavailable())
    count, reason = _native_cuda._cuda.device_count()
    assert (count == 0) == bool(reason)


@pytest.mark.parametrize("kind", ["normals", "words", "signs"])
@pytest.mark.parametrize("dim", [1, 3, 33, 4003])
def test_noise_has_the_cpus_address(kernels, kind, dim):
    out = torch.empty(2, dim, dtype=torch.int32 if kind == "words" else torch.float32)
    clock, stream = torch.tensor([-9, 4]), _native.PROBES
    _native_cuda.fill_noise_(kind, out, clock, first_chain=1, stream=stream)
    words = _native.words(2, dim, seed=-9, step=4, first_chain=1, stream=stream)
    if kind == "normals":
        assert torch.equal(out, _native.normals_(torch.empty(2, dim), seed=-9, step=4, first_chain=1, stream=stream))
    elif kind == "words":
        assert torch.equal(out.long() & 0xFFFFFFFF, words)
    else:
        assert torch.equal(out, 1.0 - 2.0 * (words >> 31).float())


def test_a_thermostat_turns_towards_temperature_one(kernels):
    each = torch.tensor([0.01, 0.04], dtype=torch.float64)
    friction, zeta = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    settings = _native_cuda.coefficients("langevin", each, each, each, friction=friction)
    gauge = torch.tensor([20.0, 5.0], dtype=torch.float64)
    _native_cuda.thermostat_(settings, zeta, gauge, friction, inertia=50.0, moving=10)
    want = friction + (gauge / 10 - 1) / 50.0
    assert torch.equal(zeta, want)
    x = 0.5 * want
    assert torch.equal(settings[:, 4], ((1 - x) / (1 + x)).float())
    assert torch.equal(settings[:, 5], ((2 * friction).sqrt() / (1 + x)).float())


def test_steps_with_a_thermostat_are_the_engines_chains(kernels):
    program, center = captured("classifier")
    chains, steps, dim = 3, 6, program.dim
    each = torch.arange(1, chains + 1, dtype=torch.float64)
    lr, localization, nbeta = 1e-4 * each, 3.0 / each, 20.0 * each
    sampler = Sampler("sgnht", friction=0.05, inertia=7.0)
    run = native.NativeRun(
        program, draws=steps, burn_in=0, thin=1, lr=lr.numpy(), localization=localization.numpy(), nbeta=nbeta.numpy(),
        center=center, seed=4, batches="full", sampler=sampler,
    )  # fmt: skip
    w, p = center.repeat(chains, 1), run.first[:, :dim].clone()
    share = torch.full((chains,), 0.05, dtype=torch.float64)
    zeta, settings = share.clone(), _native_cuda.coefficients("langevin", lr, localization, nbeta, friction=share)
    sums = torch.zeros(4 * chains, dtype=torch.float64)
    run.advance(steps)
    for step in range(steps):
        g = torch.stack([program.gradient(row)[1] for row in w])
        _native_cuda.sampler_step_("langevin", w, [g], center, settings, torch.tensor([4, step]), p, sums=sums)
        _native_cuda.thermostat_(settings, zeta, sums[chains : 2 * chains], share, inertia=7.0, moving=dim)
        assert (sums[chains : 2 * chains] / dim).tolist() == run.gauge[:, step].tolist()
    assert torch.equal(w, run.w)
    assert torch.equal(p, run.first[:, :dim])
    assert zeta.tolist() == run.thermostat.tolist()


@pytest.mark.parametrize("dim", [1, 5, 33, 8200])
def test_running_moments_are_the_draws_moments(kernels, dim):
    draws = torch.randn(6, 3, dim, generator=torch.Generator().manual_seed(0))
    mean, scatter = torch.zeros(2, 3, dim, dtype=torch.float64)
    count = torch.zeros(1, dtype=torch.int64)
    for w in draws:
        _native_cuda_sums.add_draw_(mean, scatter, w, count.add_(1))
    # doubles: a few roundings of each of six steps
    torch.testing.assert_close(mean, draws.double().mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(scatter / 5, draws.double().var(0), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("samples", "positions", "inputs", "outputs"), [(1, 1, 1, 1), (17, 1, 40, 33), (18, 3, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_gram_matrices_are_those_of_explicit_gradients(kernels, samples, positions, inputs, outputs, bias):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(samples, positions, inputs, generator=draw)
    d = torch.randn(samples, positions, outputs, generator=draw)
    gradients = torch.einsum("sto,sti->soi", d.double(), x.double()).flatten(1)
    if bias:
        gradients = torch.cat([gradients, d.double().sum(1)], 1)
    gram = torch.ones(samples, samples, dtype=torch.float64)
    _native_cuda_sums.add_gram_(gram, x, d, bias=bias)
    # two float32 dot products of inputs + 1 and outputs terms each, multiplied; then doubles
    size = (x.abs().sum(-1).max() + 1) * d.abs().sum(-1).max() * positions**2
    bound = UNIT * (inputs + outputs + 4) * float(x.abs().max() * d.abs().max()) * float(size)
    assert (gram - 1 - gradients @ gradients.T).abs().max() <= bound
    assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("dim", [40, 8200])
def test_krylov_bases_are_orthonormal_and_tridiagonal(kernels, dim):
    draw = torch.Generator().manual_seed(2)
    h = torch.rand(2, dim, generator=draw) * 4 + 0.5  # diagonal operators
    krylov = _native_cuda_sums.Krylov(torch.randn(2, dim, generator=draw), 6)
    for step in range(6):
        krylov.extend_(h * krylov.basis[:, step])
    q, hd = krylov.basis.double(), h.double()
    identity = torch.eye(6, dtype=torch.float64)
    # a vector's length is off by its float32 rounding, its products by that of 256 terms in 32 sums of each block
    bound = 300 * UNIT
    assert ((q @ q.transpose(1, 2)) - identity).abs().max() <= bound
    t = (q * hd[:, None]) @ q.transpose(1, 2)
    assert (t.diagonal(dim1=1, dim2=2).T - krylov.alpha).abs().max() <= 5 * bound
    assert (t.diagonal(1, dim1=1, dim2=2).T - krylov.beta[:5]).abs().max() <= 5 * bound


@pytest.mark.parametrize(("model", "side"), [("mean", 0), ("kink", -1), ("kink", 0), ("jump+kink", 0)])
def test_the_detector_follows_the_cpus_bit_for_bit(kernels, model, side):
    random, channels, steps = np.random.default_rng(3), 37, 300
    x = np.cumsum(random.random(steps) + 0.5)
    y = (random.standard_normal((steps, channels)) + 0.02 * np.maximum(x[:, None] - 150, 0) + 100).astype(np.float32)
    weight = random.random(steps) + 0.5
    cpu = _cpu.GlrDetector(channels, _native_cuda_sums.MODELS[model], 8, side, float("inf"), 1.0, False)
    gpu = _native_cuda_sums.GlrChannels(channels, model=model, side=side, device="cpu")
    for low in range(0, steps, 100):
        part = slice(low, low + 100)
        cpu.update(x[part], y[part], weight[part], None, 1)
        gpu.update(x[part].tolist(), torch.from_numpy(y[part]), weight[part].tolist())
        assert np.asarray(cpu.statistic).reshape(-1)[:channels].tobytes() == gpu.statistic.numpy().tobytes()
    squares, want = gpu.squares(), torch.from_numpy(np.asarray(cpu.squares()))
    # the profile is judged in double on the CPU; z^2 of ten float32 terms of the size of its square root times S
    assert (squares - want).abs().max() <= 1e-4 * want.max()
    groups = gpu.groups(torch.arange(channels), torch.tensor([0, 5, channels]))
    assert torch.equal(groups.largest[:, 0], squares[:, :5].double().max(1).values)
    torch.testing.assert_close(groups.total[:, 1], squares[:, 5:].double().sum(1), rtol=1e-14, atol=0)
    p = torch.tensor(33.0, dtype=torch.float64) ** -0.5
    gain = torch.logaddexp((1 - p).log(), (p * 0.1**0.5).log() + 0.45 * squares[:, 5:].double()).sum(1)
    assert ((groups.mixture[:, 1] - gain).abs() <= 1e-6 * (gain.abs() + 32)).all()


@pytest.mark.parametrize(("model", "side"), [("mean", 1), ("kink", 0), ("jump+kink", 0)])
def test_the_detector_has_the_cpus_bits_with_gaps_and_own_weights(kernels, model, side):
    random, channels, steps = np.random.default_rng(3), 37, 90
    x = np.cumsum(random.random(steps) + 0.5)
    y = (random.standard_normal((steps, channels)) + 0.05 * np.maximum(x[:, None] - 40, 0)).astype(np.float32)
    weight = random.random((steps, channels)) + 0.5
    weight[50, 3] = 0.0
    y[40, 20] = np.inf
    cpu = _cpu.GlrDetector(channels, _native_cuda_sums.MODELS[model], 8, side, float("inf"), 1.0, False)
    gpu = _native_cuda_sums.GlrChannels(channels, model=model, side=side, missing=True, device="cpu")
    for low, own in ((0, False), (30, False), (60, True)):
        part = slice(low, low + 30)
        cpu.update(x[part], y[part], weight[part] if own else None, None, 1)
        gpu.update(x[part].tolist(), torch.from_numpy(y[part]), torch.from_numpy(weight[part]) if own else None)
        assert np.asarray(cpu.statistic).reshape(-1)[:channels].tobytes() == gpu.statistic.numpy().tobytes()
    assert gpu.squares().max(0).values.numpy().tobytes() == gpu.statistic.numpy().tobytes()
    shared = _native_cuda_sums.GlrChannels(2, device="cpu")
    with pytest.raises(ValueError, match="weight: expected one for each step, got one for each observation"):
        shared.update([0.0], torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.float64))


def test_a_missing_observation_is_not_averaged_in(kernels):
    gpu = _native_cuda_sums.GlrChannels(3, model="mean", device="cpu")
    y = torch.randn(20, 3, generator=torch.Generator().manual_seed(4))
    y[7, 1] = float("nan")
    gpu.update([float(i) for i in range(20)], y)
    assert gpu.statistic.isnan().tolist() == [False, True, False]
    gpu.update([20.0], torch.zeros(1, 3))
    assert gpu.statistic.isnan().tolist() == [False, True, False]


# --- chains in shared memory --------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, features, hidden):
        super().__init__()
        self.W = nn.Parameter(0.5 * torch.randn(hidden, features))
        self.b = nn.Parameter(0.1 * torch.randn(features))

    def forward(self, x):
        return torch.relu(x @ self.W.T @ self.W + self.b)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.sigmoid(self.a(x))
        return self.c(h + 0.5 * torch.tanh(self.b(h)))


def linear_net():
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((6, 7), (7, 5), (5, 3))))


def classifier():
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))


MODELS = {
    "tied pair": (lambda: Tied(6, 2), nn.MSELoss(), "x"),
    "deep linear": (linear_net, nn.MSELoss(), "y"),
    "classifier": (classifier, nn.CrossEntropyLoss(), "class"),
    "residual": (Residual, nn.MSELoss(), "y"),
}


def captured(name, n=300):
    torch.manual_seed(0)
    make, loss, target = MODELS[name]
    model, x = make(), torch.rand(n, 6)
    y = {"x": x, "y": torch.randn(n, 3), "class": torch.randint(0, 3, (n,))}[target]
    return native.capture(model, loss, x, y), torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def both(program, center, **options):
    """The same run by the CPU's engine and in shared memory, the latter in two calls."""
    chains = 2
    each = torch.arange(1, chains + 1, dtype=torch.float64)
    given = {"draws": 3, "burn_in": 1, "thin": 2, "seed": 2**63 + 5, "first_chain": 3, "center": center, **options}
    lr, localization, nbeta = 1e-3 * each, 3.0 / each, 20.0 * each
    cpu = native.NativeRun(program, lr=lr.numpy(), localization=localization.numpy(), nbeta=nbeta.numpy(), **given)
    gpu = resident.ResidentRun(program, lr=lr, localization=localization, nbeta=nbeta, device="cpu", **given)
    cpu.advance(100)
    gpu.advance(2)
    gpu.advance(100)
    return cpu, gpu


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", ["37", "300 masked", "full"])
def test_resident_chains_are_the_engines_chains(kernels, name, options):
    program, center = captured(name)
    settings = {"batches": "full"} if options == "full" else {"batch_size": int(options.split()[0])}
    if "masked" in options:
        settings["mask"] = torch.arange(program.dim) % 4 != 2
        settings["baseline"] = torch.rand(program.n, dtype=torch.float64)
    cpu, gpu = both(program, center, **settings)
    assert cpu.step == gpu.step == gpu.steps
    assert torch.equal(cpu.w, gpu.w)
    assert not torch.equal(gpu.w, gpu.center.expand(2, -1))
    for trace in ("loss", "baseline", "energy", "gauge"):
        assert getattr(cpu, trace).tobytes() == getattr(gpu, trace).numpy().tobytes(), trace


def test_a_resident_chain_that_diverges_stands_still(kernels):
    program, center = captured("deep linear")
    start = torch.stack([center, 1e20 * center])
    cpu, gpu = both(program, start, batch_size=16)
    assert gpu.diverged.tolist() == cpu.diverged.tolist()
    assert gpu.diverged[1] >= 0
    assert torch.equal(gpu.w, cpu.w)


def test_what_does_not_fit_shared_memory_is_refused(kernels):
    x = torch.rand(50, 40)
    program = native.capture(nn.Linear(40, 2), nn.MSELoss(), x, torch.rand(50, 2))
    each = torch.ones(1, dtype=torch.float64)
    given = {"draws": 1, "burn_in": 0, "thin": 1, "lr": each, "localization": each, "nbeta": each, "device": "cpu"}
    with pytest.raises(ValueError, match="program: expected values of at most 32 columns"):
        resident.ResidentRun(program, center=torch.zeros(82), **given)
    program, center = captured("residual")
    with pytest.raises(ValueError, match="batches: expected 'independent' or 'full', got 'epoch'"):
        resident.ResidentRun(program, center=center, batches="epoch", **given)
    with pytest.raises(ShapeError, match="mask: expected 83 elements, got 2"):
        resident.ResidentRun(program, center=center, mask=torch.ones(2), **given)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_hessian_products_are_the_curvatures(kernels, name, stacked):
    program, center = captured(name, n=60)
    draw = torch.Generator().manual_seed(5)
    w = torch.stack([center, 1.1 * center]) if stacked else center
    v = torch.randn(*w.shape[:-1], 3, program.dim, generator=draw)
    found = ResidentCurvature(program, w, device="cpu").hvp(v)
    assert torch.equal(found, program.curvature(w).hvp(v))


def test_hessian_products_of_many_samples_agree_to_rounding(kernels):
    program, center = captured("residual", n=700)
    gpu = ResidentCurvature(program, center, device="cpu")
    assert gpu.tile < program.n
    v = torch.randn(2, program.dim, generator=torch.Generator().manual_seed(5))
    exact = program.curvature(center.double()).hvp(v.double())
    # the same terms in another order: the error is of the CPU's size
    assert (gpu.hvp(v) - exact).norm() <= 2 * (program.curvature(center).hvp(v) - exact).norm()


def test_the_product_op_passes_opcheck_and_checks_its_arguments(kernels):
    program, center = captured("classifier", n=600)
    curve = ResidentCurvature(program, center, device="cpu")
    v = torch.randn(1, 2, program.dim)
    rest = (curve._w, *curve._data, curve._frozen, curve._plan)
    partial = torch.empty(2, *v.shape)
    torch.library.opcheck(torch.ops.devinterp_fast.resident_hvp_.default, (torch.empty_like(v), v, *rest, partial))
    hvp = _native_cuda_sums.resident_hvp_
    with pytest.raises(
        ShapeError, match=re.escape(f"partial: expected float32 (2, 1, 2, {program.dim}) on cpu, got none")
    ):
        hvp(torch.empty_like(v), v, *rest)
    with pytest.raises(ShapeError, match="v: expected 93 columns, got 3"):
        hvp(torch.empty(1, 2, 3), torch.zeros(1, 2, 3), *rest, torch.empty(2, 1, 2, 3))
    with pytest.raises(DTypeError, match="v: expected float32"):
        hvp(torch.empty_like(v), v.double(), *rest, partial)
    with pytest.raises(ShapeError, match=re.escape("w: expected (93,) or (checkpoints, 93), got (3,)")):
        ResidentCurvature(program, torch.zeros(3), device="cpu")


def test_deep_linear_chains_of_a_thousand_parameters_fit(kernels):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))
    x = torch.randn(300, 16)
    program = native.capture(model, nn.MSELoss(), x, torch.randn(300, 16))
    center = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    cpu, gpu = both(program, center, batch_size=256)
    assert torch.equal(cpu.w, gpu.w)
    assert cpu.loss.tobytes() == gpu.loss.numpy().tobytes()


def test_a_loss_of_logits_is_refused(kernels):
    x = torch.rand(50, 4)
    program = native.capture(nn.Linear(4, 1), nn.BCEWithLogitsLoss(), x, (x[:, :1] > 0.5).float())
    with pytest.raises(ValueError, match="program: expected a squared error or a cross-entropy of classes"):
        ResidentCurvature(program, torch.zeros(5), device="cpu")


def test_the_benchmark_says_that_there_is_no_gpu(capsys):
    if not _native_cuda.unavailable():
        pytest.skip("there is a GPU")
    spec = importlib.util.spec_from_file_location("gpu", Path(__file__).parents[1] / "benchmarks" / "gpu.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    began = time.monotonic()
    assert module.main([]) == 0
    assert time.monotonic() - began < 60
    assert "not run: " in capsys.readouterr().out
