"""The torch ops: sound by ``opcheck``, equal to the direct call, and passed through by ``torch.compile``."""

from __future__ import annotations

import pytest
import torch

from devinterp_fast import _native

OPS = torch.ops.devinterp_fast


def step_arguments(chains=3, dim=40, *, masked=False, energy=True):
    draw = torch.Generator().manual_seed(0)
    w, g, center = (torch.randn(chains, dim, generator=draw) for _ in range(3))
    settings = [torch.full((chains,), value, dtype=torch.float64) for value in (1e-3, 2.0, 30.0)]
    mask = torch.arange(dim) % 3 != 0 if masked else None
    out = torch.zeros(chains, dtype=torch.float64) if energy else None
    return (w, [g[:, :7].contiguous(), g[:, 7:].contiguous()], center[0].clone(), *settings, mask, out, 5, 6, 0, True)


def test_normal_passes_opcheck():
    torch.library.opcheck(OPS.normal_.default, (torch.empty(3, 40), 5, 6, 0, 0))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("energy", [False, True])
def test_sgld_step_passes_opcheck(masked, energy):
    torch.library.opcheck(OPS.sgld_step_.default, step_arguments(masked=masked, energy=energy))


def test_ops_equal_the_direct_calls():
    a, b = torch.empty(3, 40), torch.empty(3, 40)
    OPS.normal_(a, 5, 6, 2, 3)
    assert torch.equal(a, _native.normals_(b, seed=5, step=6, first_chain=2, stream=3))
    args = step_arguments(masked=True)
    want, energy = args[0].clone(), torch.zeros(3, dtype=torch.float64)
    _native.sgld_step_(want, *args[1:6], mask=args[6], energy=energy, seed=5, step=6)
    OPS.sgld_step_(*args)
    assert torch.equal(args[0], want)
    assert torch.equal(args[7], energy)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_functions_give_the_same_bits(backend):
    def walk(w, pieces, center, lr, localization, nbeta, mask, energy, noise):
        OPS.normal_(noise, 5, 7, 0, 0)
        OPS.sgld_step_(w, pieces, center, lr, localization, nbeta, mask, energy, 5, 6, 0, True)
        return w * 2 + noise, energy + 1

    torch.compiler.reset()
    plain, compiled = step_arguments(masked=True), step_arguments(masked=True)
    want = walk(*plain[:8], torch.empty(3, 40))
    got = torch.compile(walk, fullgraph=True, backend=backend)(*compiled[:8], torch.empty(3, 40))
    assert torch.equal(plain[0], compiled[0])
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


def test_export_keeps_the_op():
    class Walk(torch.nn.Module):
        def forward(self, out):
            out = out.clone()
            OPS.normal_(out, 1, 2, 0, 0)
            return out

    program = torch.export.export(Walk(), (torch.empty(2, 8),))
    want = _native.normals_(torch.empty(2, 8), seed=1, step=2)
    assert torch.equal(program.module()(torch.empty(2, 8)), want)


def test_fakes_refuse_vectors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        with pytest.raises(RuntimeError, match=r"out: expected \(chains, dim\), got \(4,\)"):
            OPS.normal_(torch.empty(4), 0, 0, 0, 0)
        vector = torch.empty(4)
        with pytest.raises(RuntimeError, match=r"w: expected \(chains, dim\), got \(4,\)"):
            OPS.sgld_step_(vector, [vector], vector, vector, vector, vector, None, None, 0, 0, 0, True)
