"""AdamW (Loshchilov & Hutter 2019) through PyTorch's functional form, its moments held by name.

``torch.optim.AdamW`` computes the same numbers (a test compares them). The functional form
serves two ends: the moments are plain tensors under the names of their parameters, so that a
checkpoint or an offload moves exactly one block's; and the class would import the compiler,
two seconds at the start of every job of a sweep.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adamw import adamw

EPS = 1e-8


@dataclass
class AdamW:
    """Settings of the optimiser, and the moments of every parameter that has been updated.

    Attributes:
        betas: decay of the first and the second moment.
        weight_decay: decoupled, per unit of learning rate.
        fused: one kernel for all parameters; otherwise PyTorch's ``foreach`` form, which
            holds one more copy of what it updates.
        moments: parameter name → step, exp_avg and exp_avg_sq, made at the first update.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    fused: bool = True
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, parameters: dict[str, Tensor], learning_rate: float) -> None:
        """Update parameters that all have gradients; the moments of others stay as they are."""
        for name, parameter in parameters.items():
            if name not in self.moments:
                # On the CPU but for the fused kernel, which reads it where it works.
                device = parameter.device if self.fused else "cpu"
                self.moments[name] = {
                    "step": torch.zeros((), dtype=torch.float32, device=device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        moments = [self.moments[name] for name in parameters]
        adamw(
            list(parameters.values()),
            [parameter.grad for parameter in parameters.values()],
            [m["exp_avg"] for m in moments],
            [m["exp_avg_sq"] for m in moments],
            [],
            [m["step"] for m in moments],
            fused=self.fused,
            foreach=not self.fused,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=EPS,
            maximize=False,
        )
