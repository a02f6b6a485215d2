"""Whole chains in a block's shared memory against the native engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from case import Case, aligned, expected
from shim import Call
from torch import nn

from devinterp_fast._native_cuda import coefficients
from devinterp_fast.sampling import native
from devinterp_fast.transitions.tms import TMS


def models() -> Iterator[tuple[str, nn.Module, nn.Module, torch.Tensor, torch.Tensor]]:
    """Name, model, criterion and data: weights used twice, depth, classes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(50, 6, generator=draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield "superposition", TMS(torch.randn(2, 6, generator=draw), torch.zeros(6)), nn.MSELoss(), x, x
        linear = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
        yield "deep linear", linear, nn.MSELoss(), x, torch.rand(50, 3, generator=draw)
        mlp = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
        yield "mlp", mlp, nn.CrossEntropyLoss(), x, torch.randint(3, (50,), generator=draw)


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return aligned(tensor.detach().contiguous().numpy())


def whereabouts(program: native.Program) -> dict[str, Any]:
    """The arguments that say where the samples and the frozen weights lie."""
    _, (x, y, _, classes) = program.data(torch.float32)
    frozen = program.description.frozen.float()
    # rows of the native engine have room behind the last: the kernel is to read the rows alone
    return {
        "device": 0,
        "stream": 0,
        "x": numpy(x),
        "y": numpy(y) if y.numel() else 0,
        "classes": numpy(classes) if classes.numel() else 0,
        "x_size": x.shape[1],
        "y_size": y.shape[1],
        "class_size": classes.shape[1],
        "n": program.n,
        "frozen": numpy(frozen) if frozen.numel() else 0,
    }


def resident() -> Iterator[Case]:
    """Independent batches that fill a group of samples, or do not; full batches; a mask and a baseline."""
    chains, draws, burn_in, thin = 2, 2, 1, 2
    for number, (name, model, criterion, x, y) in enumerate(models()):
        program = native.capture(model, criterion, x, y)
        d = program.description
        center = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        for batch, masked in ((17, False), (32, True), (50, False)):
            full = batch == program.n
            random = np.random.default_rng(number)
            lr, localization, nbeta = (random.random(chains) * s for s in (1e-2, 10.0, 20.0))
            mask = torch.arange(d.dim) % 4 != 2 if masked else None
            baseline = random.random(program.n) if masked else None
            run = native.NativeRun(
                program,
                draws=draws,
                burn_in=burn_in,
                thin=thin,
                lr=lr,
                localization=localization,
                nbeta=nbeta,
                center=center,
                mask=mask,
                seed=7,
                first_chain=number,
                batches="full" if full else "independent",
                batch_size=batch,
                baseline=baseline,
            )
            begin = run.w.clone()
            run.advance(run.steps)

            trace = {k: aligned(np.full((chains, draws), np.nan)) for k in ("loss", "baselines", "energy", "gauge")}
            time = aligned(np.array([7, 0]))
            settings = coefficients("sgld", *(torch.from_numpy(v) for v in (lr, localization, nbeta)))
            call = Call(
                "ResidentPlan.run",
                {
                    **whereabouts(program),
                    "w": numpy(begin),
                    "w_ld": d.dim,
                    "chains": chains,
                    "batch": batch,
                    "full": full,
                    "coefficients": numpy(settings),
                    "nbeta": aligned(nbeta),
                    "center": numpy(center),
                    "center_ld": 0,
                    "mask": numpy(mask.to(torch.uint8)) if mask is not None else 0,
                    "baseline": aligned(baseline) if baseline is not None else 0,
                    "burn_in": burn_in,
                    "thin": thin,
                    **trace,
                    "trace_ld": draws,
                    "diverged": aligned(np.full(chains, -1)),
                    "seed": time[:1],
                    "step": time[1:],
                    "first_chain": number,
                    "steps": run.steps,
                },
                (*d.plain(), batch),
            )
            changed: dict[str, np.ndarray | None] = {"w": run.w.numpy(), "loss": run.loss, "energy": run.energy}
            changed |= {"gauge": run.gauge, "baselines": run.baseline}
            yield Case(f"{name}, batch {batch}", call, expected(call, changed), masked)
