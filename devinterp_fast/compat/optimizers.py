"""The samplers of devinterp 1.3, by name and settings: for ``sample``, and as optimizers in a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from devinterp_fast.sampling.samplers import Sampler

_RECORDS = {"save_noise", "save_mala_vars", "noise_norm", "grad_norm", "weight_norm", "distance", "metrics"}


class _Method(torch.optim.Optimizer):
    """What the samplers share: checked settings, centers, and steps without a gradient."""

    defaults_of: ClassVar[dict[str, Any]]

    def __init__(self, params: Iterable[Any], **settings: Any):
        self.sampler(settings)
        kept = {key: value for key, value in settings.items() if key not in _RECORDS}
        if kept.get("temperature") is not None:
            kept["nbeta"] = kept.pop("temperature")
        super().__init__(params, {"optimize_over": None, **self.defaults_of, **kept})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["initial_param"] = p.detach().clone()

    @classmethod
    def sampler(cls, settings: dict[str, Any]) -> Sampler:
        """Our sampler with these settings.

        Raises:
            TypeError: a setting is unknown.
            ValueError: its value has no counterpart here.
        """
        known = {*cls.defaults_of, *_RECORDS, "optimize_over", "temperature"}
        if set(settings) - known:
            raise TypeError(
                f"optimizer_kwargs: expected settings of {cls.__name__}, got {min(set(settings) - known)!r}"
            )
        if not settings.get("noise_level", 1.0) > 0:
            raise ValueError(
                f"noise_level: expected a number above 0, as nothing is sampled else, got {settings['noise_level']}"
            )
        if settings.get("weight_decay", 0.0) < 0:
            raise ValueError(f"weight_decay: expected a number of at least 0, got {settings['weight_decay']}")
        if settings.get("add_grad_correction"):
            raise ValueError("add_grad_correction: expected False: the metric is held after burn-in instead, got True")
        box = settings.get("bounding_box_size")
        if box and settings.get("weight_decay"):
            raise ValueError(f"bounding_box_size: expected none with weight_decay, got {box}")
        return cls._sampler({**cls.defaults_of, **settings}, box if box else math.inf)

    @classmethod
    def _sampler(cls, settings: dict[str, Any], box: float) -> Sampler:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step; noise comes from torch's global generator."""
        for group in self.param_groups:
            for p in group["params"]:
                self._move(p, torch.zeros_like(p) if p.grad is None else p.grad * group["nbeta"], group)
                if group.get("bounding_box_size"):
                    away = p - self.state[p]["initial_param"]
                    p.copy_(p - away + away.clamp(-group["bounding_box_size"], group["bounding_box_size"]))
            self._end(group)

    def _move(self, p: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _end(self, group: dict[str, Any]) -> None:
        pass


def _masked(move: Tensor, group: dict[str, Any]) -> Tensor:
    return move if group["optimize_over"] is None else move * group["optimize_over"]


def _pull(p: Tensor, center: Tensor, group: dict[str, Any]) -> Tensor:
    pull: Tensor = group["localization"] * (p - center) + group["weight_decay"] * p
    return pull


class SGLD(_Method):
    """Localized SGLD: w <- w - lr / 2 (nbeta g + localization (w - w0) + weight_decay w) + sqrt(lr) noise_level xi."""

    defaults_of: ClassVar = {
        "lr": 0.01, "localization": 0.0, "nbeta": 1.0, "noise_level": 1.0, "weight_decay": 0.0,
        "bounding_box_size": None,
    }  # fmt: skip

    @classmethod
    def _sampler(cls, settings: dict[str, Any], box: float) -> Sampler:
        return Sampler("sgld", box=box)

    def _move(self, p: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        drift = slope + _pull(p, self.state[p]["initial_param"], group)
        noise = group["noise_level"] * math.sqrt(group["lr"])
        p.add_(_masked(-group["lr"] / 2 * drift + noise * torch.randn_like(p), group))


class RMSpropSGLD(_Method):
    """SGLD in the metric G = 1 / (sqrt(V) + eps), V <- alpha V + (1 - alpha) g^2."""

    defaults_of: ClassVar = {
        "lr": 0.01, "localization": 0.0, "nbeta": 1.0, "noise_level": 1.0, "weight_decay": 0.0, "alpha": 0.99,
        "eps": 0.1, "add_grad_correction": False, "bounding_box_size": None,
    }  # fmt: skip

    @classmethod
    def _sampler(cls, settings: dict[str, Any], box: float) -> Sampler:
        return Sampler("rmsprop_sgld", beta2=settings["alpha"], epsilon=settings["eps"], box=box)

    def _move(self, p: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        g = slope / group["nbeta"]
        state["v"] = group["alpha"] * state.get("v", torch.zeros_like(p)) + (1 - group["alpha"]) * g**2
        metric = 1 / (state["v"].sqrt() + group["eps"])
        drift = metric * (slope + _pull(p, state["initial_param"], group))
        noise = group["noise_level"] * (group["lr"] * metric).sqrt()
        p.add_(_masked(-group["lr"] / 2 * drift + noise * torch.randn_like(p), group))


class SGNHT(_Method):
    """The Nosé-Hoover thermostat: momentum m of variance lr, friction that adapts until the mean of m^2 is lr."""

    defaults_of: ClassVar = {"lr": 0.01, "diffusion_factor": 0.01, "nbeta": 1.0, "bounding_box_size": None}

    @classmethod
    def _sampler(cls, settings: dict[str, Any], box: float) -> Sampler:
        # Ours has momenta of variance 1: theirs change the friction by lr times as much.
        return Sampler("sgnht", friction=settings["diffusion_factor"], inertia=1 / settings["lr"], box=box)

    def _move(self, p: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        lr, state = group["lr"], self.state[p]
        group.setdefault("thermostat", group["diffusion_factor"])
        m = state.get("momentum", math.sqrt(lr) * torch.randn_like(p))
        kick = math.sqrt(2 * lr * group["diffusion_factor"]) * torch.randn_like(p)
        state["momentum"] = m - lr * slope - group["thermostat"] * m + kick
        p.add_(_masked(state["momentum"], group))

    def _end(self, group: dict[str, Any]) -> None:
        momenta = torch.cat([self.state[p]["momentum"].reshape(-1) for p in group["params"]])
        group["thermostat"] += float((momenta**2).mean()) - group["lr"]


class SGMCMC:
    """The names of 1.3's factories."""

    sgld = SGLD
    rmsprop_sgld = RMSpropSGLD
    sgnht = SGNHT
