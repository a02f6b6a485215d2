"""The digits: their frequencies, batches, known stages."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from planted_run import record

from devinterp_fast.errors import MissingExtraError
from devinterp_fast.transitions import digits, systems


def test_digits_frequencies_are_a_power_law_in_the_seeds_order():
    runs = [systems()["digits"](seed=seed) for seed in range(3)]
    law = np.arange(1, 11) ** -1.5
    for run in runs:
        # float32 power and division: a few units of 2^-24
        np.testing.assert_allclose(run.frequency.sort(descending=True).values, law / law.sum(), rtol=1e-6)
    assert len({tuple(run.frequency.argsort().tolist()) for run in runs}) == 3
    assert torch.equal(runs[0]._held_out[0], runs[1]._held_out[0])


def test_digits_probe_has_the_trained_frequencies():
    run = systems()["digits"](seed=1)
    x, y = run.probe
    assert (x.shape, y.shape) == ((1000, 1, 8, 8), (1000, 10))
    assert (y.sum(0) - 1000 * run.frequency).abs().max() < 1  # largest remainders: less than one image off
    for c in range(10):  # no image twice more often than another of its class
        of_class = x[y[:, c] == 1].flatten(1)
        counts = torch.unique(of_class, dim=0, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


def test_digits_batch_gradient_is_unbiased():
    run = systems()["digits"]()
    state = run.state_dict()
    x, y = (torch.cat(run._inputs), torch.arange(10).repeat_interleave(run._sizes[:, 0]))
    weight = (run.frequency / run._sizes[:, 0])[y]
    loss = ((run.model(x) - torch.eye(10)[y]).square().sum(1) * weight).sum()
    last = list(run.model.parameters())[-1]
    exact = torch.autograd.grad(loss, last)[0]
    seen = []
    for step in range(60):
        run.load_state_dict(state | {"generator": run.state_dict()["generator"]})
        before = last.detach().clone()
        run.train_step(step)
        seen.append((before - last.detach()) / digits.LR)
    draws = torch.stack(seen)
    error = (draws.mean(0) - exact) / (draws.std(0) / 60**0.5)
    active = draws.std(0) > 0
    # 480 t values of 59 degrees of freedom: P(|t| > 5) = 6e-6, so one of them in about 400 seeds
    assert error[active].abs().max() < 5
    assert active.any()


def test_digits_truth_from_made_curves():
    steps = np.arange(0, 1001, 10)
    run = systems()["digits"]()

    def logistic(middle):
        return 1 / (1 + np.exp(-(steps - middle) / 20))

    curves = {name: np.zeros(len(steps)) for name in digits.MODES}
    curves |= {name: np.ones(len(steps)) for name in digits.LOSSES}
    for mode, c, middle, height in (
        ("mode 1", 7, 200, 0.5),
        ("mode 2", 2, 500, 0.3),
        ("mode 3", 5, 800, 0.1),
    ):
        curves[mode] = height * logistic(middle)
        curves[f"loss {c}"] = 1 - logistic(middle)
    first, second = run.truth(steps, curves)  # the third ends below the level
    assert first.name == "class 7 enters (mode 1)"
    assert second.name == "class 2 enters (mode 2)"
    # chords of h = 10 on a logistic of width 20: (h²/8) (.0962/400) / (.09/20) < .7
    assert (first.onset, first.midpoint, first.end) == pytest.approx((156.1, 200, 243.9), abs=0.7)
    assert second.midpoint == pytest.approx(500, abs=0.7)


def test_digits_leaves_two_saddles():
    run = systems()["digits"](seed=4)  # the earliest of the seeds looked at
    steps, curves = record(run, 440, 10)
    first, second = run.truth(steps, curves)[:2]
    assert first.name == f"class {int(run.frequency.argmax())} enters (mode 1)"
    assert first.end < second.onset  # stages, not one slope
    loss = np.interp([first.onset, first.end, second.onset, second.end], steps, curves["loss"])
    # at the saddle at zero every image costs 1; each mode then takes a visible share
    assert loss[0] > 0.9
    assert loss[1] < 0.75
    assert loss[3] < 0.85 * loss[2]
    assert curves["accuracy"][0] == 0
    assert curves["accuracy"][-1] > 0.08  # one class of ten


def test_digits_needs_scikit_learn(monkeypatch):
    digits._images.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    message = r"^digits: expected scikit-learn, got none: pip install 'devinterp-fast\[demo\]'$"
    with pytest.raises(MissingExtraError, match=message):
        systems()["digits"]()


def test_scikit_learn_is_imported_late():
    code = "import sys, devinterp_fast.transitions; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
