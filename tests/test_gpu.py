"""On a GPU: the CPU's bits, graphs that draw fresh noise, streams. ``pytest -m gpu``; skipped with a reason without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from devinterp_fast import _cpu, _native, _native_cuda, _native_cuda_sums
from devinterp_fast.curvature.resident import ResidentCurvature
from devinterp_fast.sampling import native, resident

WHY = _native_cuda.unavailable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY), reason=f"needs a CUDA device: {WHY}")]
OP = torch.ops.devinterp_fast.sampler_step_at_.default


def arguments(sampler, chains, dim, device, *, masked=False):
    draw = torch.Generator().manual_seed(dim)
    rows = torch.zeros(3, chains, -(-dim // 32) * 32)
    rows[:, :, :dim] = torch.randn(3, chains, dim, generator=draw)
    g, center = (torch.randn(chains, dim, generator=draw) for _ in range(2))
    each = torch.arange(1, chains + 1, dtype=torch.float64)
    settings = _native_cuda.coefficients(sampler, 1e-3 * each, 7.0 / each, 30.0 * each, friction=2.0)
    states, cut = _native_cuda.SAMPLERS[sampler][2], dim // 3
    w, first, second = rows.to(device)[:, :, :dim]
    gradients = [g[:, :cut].contiguous().to(device), g[:, cut:].contiguous().to(device)]
    mask = (torch.arange(dim) % 5 != 1).to(device) if masked else None
    sums = torch.zeros(_native_cuda.sums_length(gradients, chains), dtype=torch.float64, device=device)
    return [
        sampler, w, gradients, center[0].clone().to(device), settings.to(device), torch.tensor([5, 6], device=device),
        first if states > 1 else None, second.abs_() if states > 2 else None, mask, sums,
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", list(_native_cuda.SAMPLERS))
@pytest.mark.parametrize("chains", [1, 3, 5])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 31, 33, 4003, 8193, 100003])
def test_a_step_has_the_cpus_bits(sampler, chains, dim):
    cpu, gpu = (arguments(sampler, chains, dim, device, masked=dim % 2 == 0) for device in ("cpu", "cuda"))
    OP(*cpu)
    OP(*gpu)
    for i in (1, 6, 7):
        assert cpu[i] is None or torch.equal(cpu[i], gpu[i].cpu())
    assert torch.equal(cpu[9][: 2 * chains], gpu[9][: 2 * chains].cpu())


@pytest.mark.parametrize("dim", [1, 3, 33, 8193])
def test_noise_has_the_cpus_bits(dim):
    out = torch.empty(3, dim, device="cuda")
    torch.ops.devinterp_fast.normal_at_(out, torch.tensor([-9, 4], device="cuda"), 2, 3)
    assert torch.equal(out.cpu(), _native.normals_(torch.empty(3, dim), seed=-9, step=4, first_chain=2, stream=3))


def test_a_replayed_graph_draws_fresh_noise():
    args = arguments("sgld", 2, 1000, "cuda")
    plain = arguments("sgld", 2, 1000, "cpu")
    OP(*args)  # a first call outside, as graphs want it
    args[1].copy_(plain[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        OP(*args)
        args[5][1:].add_(1)
    seen = []
    for _ in range(3):
        graph.replay()
        OP(*plain)
        plain[5][1:].add_(1)
        seen.append(args[1].cpu().clone())
        assert torch.equal(seen[-1], plain[1])
    assert not torch.equal(seen[2] - seen[1], seen[1] - seen[0])


def test_a_step_runs_on_the_current_stream():
    args, plain = arguments("sgld", 2, 5000, "cuda"), arguments("sgld", 2, 5000, "cpu")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        OP(*args)
    stream.synchronize()
    OP(*plain)
    assert torch.equal(args[1].cpu(), plain[1])


def test_moments_gram_and_krylov_agree_with_torch():
    draws = torch.randn(6, 3, 8200, generator=torch.Generator().manual_seed(0))
    mean, scatter = torch.zeros(2, 3, 8200, dtype=torch.float64, device="cuda")
    count = torch.zeros(1, dtype=torch.int64, device="cuda")
    for w in draws.cuda():
        _native_cuda_sums.add_draw_(mean, scatter, w, count.add_(1))
    torch.testing.assert_close((scatter / 5).cpu(), draws.double().var(0), rtol=1e-13, atol=0)
    x, d = (torch.randn(37, 20, generator=torch.Generator().manual_seed(k)).cuda() for k in (1, 2))
    gram = _native_cuda_sums.add_gram_(torch.zeros(37, 37, dtype=torch.float64, device="cuda"), x, d)
    want = (d.double() @ d.double().T) * (x.double() @ x.double().T + 1)
    torch.testing.assert_close(gram, want, rtol=1e-4, atol=1e-4)
    krylov = _native_cuda_sums.Krylov(torch.randn(2, 9000, device="cuda"), 5)
    for step in range(4):
        krylov.extend_(krylov.basis[:, step] * torch.arange(1.0, 9001.0, device="cuda"))
    q = krylov.basis.double()
    assert ((q @ q.transpose(1, 2)) - torch.eye(5, device="cuda", dtype=torch.float64)).abs().max() < 300 * 2.0**-24


@pytest.mark.parametrize("model", ["mean", "kink", "jump+kink"])
def test_the_detector_has_the_cpus_bits(model):
    y = torch.randn(200, 1000, generator=torch.Generator().manual_seed(1)).numpy()
    x = [float(i) for i in range(200)]
    cpu = _cpu.GlrDetector(1000, _native_cuda_sums.MODELS[model], 8, 0, float("inf"), 1.0, False)
    cpu.update(x, y, None, None, 1)
    gpu = _native_cuda_sums.GlrChannels(1000, model=model)
    gpu.update(x, torch.from_numpy(y).cuda())
    assert torch.equal(torch.as_tensor(cpu.statistic).reshape(-1)[:1000], gpu.statistic.cpu())


@pytest.mark.parametrize("n", [60, 5000])
def test_hessian_products_are_the_curvatures(n):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    program = native.capture(model, nn.MSELoss(), torch.rand(n, 6), torch.rand(n, 2))
    w = torch.randn(3, program.dim)
    v = torch.randn(3, 7, program.dim)
    want, curve = program.curvature(w).hvp(v), ResidentCurvature(program, w)
    found = curve.hvp(v.cuda()).cpu()
    if n <= curve.tile:
        assert torch.equal(found, want)
        return
    exact = program.curvature(w.double()).hvp(v.double())
    assert (found - exact).norm() <= 2 * (want - exact).norm()


@pytest.mark.parametrize("batches", ["independent", "full"])
def test_resident_chains_have_the_cpus_bits(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    program = native.capture(model, nn.MSELoss(), torch.rand(300, 6), torch.rand(300, 2))
    center = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    each = torch.arange(1, 9, dtype=torch.float64)
    given = {"draws": 20, "burn_in": 5, "thin": 2, "center": center, "seed": 3, "batches": batches, "batch_size": 37}
    cpu = native.NativeRun(program, lr=1e-3 * each.numpy(), localization=each.numpy(), nbeta=each.numpy(), **given)
    gpu = resident.ResidentRun(program, lr=1e-3 * each, localization=each, nbeta=each, **given)
    cpu.advance(1000)
    gpu.advance(1000)
    assert torch.equal(cpu.w, gpu.w.cpu())
    assert cpu.loss.tobytes() == gpu.loss.cpu().numpy().tobytes()
