"""Steps down the gradient: Adam, and Muon for weights that are matrices."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .runtime import has_bf16


def make(name: str, network: nn.Module) -> list[Optimizer]:
    """The optimisers called ``name`` for the network's parameters (but for frozen ones), with learning rates yet to be
    set.

    ``adam``: one, for all. ``muon``: :class:`Muon` for the weights of hidden layers, Adam for the rest: biases, norms,
    embeddings, and the network's own ``enter``, ``leave``, ``time`` and ``head``. (An
    :class:`diffutils.networks.latent.Autoencoder` has none of these: all of its convolutions, the first and the last
    too, and a code book count as hidden.) Raises ``ValueError`` for another name.
    Source: Kingma & Ba (2015); Jordan et al. (2024).
    """
    if name not in ("adam", "muon"):
        raise ValueError(f"optimiser: must be 'adam' or 'muon', got {name!r}")
    if name == "adam":
        return [torch.optim.Adam([w for w in network.parameters() if w.requires_grad], fused=True)]
    hidden, rest = [], []
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        outer = name.removeprefix("module.").split(".")[0] in ("enter", "leave", "time", "head") or id(weight) in tables
        (rest if outer or weight.ndim < 2 else hidden).append(weight)
    adam = torch.optim.Adam(rest, betas=(0.9, 0.99), fused=True)
    return [Muon(hidden), adam] if hidden else [adam]


class Muon(Optimizer):
    r"""Momentum whose step has all its singular values close to 1.

    For a weight W of n rows and m columns (a convolution's kernel counts as ``C_in * k * k`` columns), gradient G,

    .. math::
        M \leftarrow \mu M + (1 - \mu) G, \qquad
        W \leftarrow W - 0.2 \eta \sqrt{\max(n, m)}\; O(\mu M + (1 - \mu) G),

    where O(A) is near :math:`U V^\top` for :math:`A = U \Sigma V^\top`: directions in which the gradient is small get
    as long a step as the others. The factor makes a step as large as Adam's, so both can use one learning rate.
    ``torch.optim.Muon`` does the same for matrices only, not for convolutions.
    Source: Jordan et al. (2024); the factor: Liu et al. (2025), section 2.2.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            mu = group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - mu)
                step = orthogonal(weight.grad.lerp(momentum, mu).flatten(1))
                scale = 0.2 * max(step.shape) ** 0.5
                weight.add_(step.reshape(weight.shape).to(weight.dtype), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    r"""Roughly the nearest matrix with orthonormal rows or columns, in bfloat16 where the hardware has it, else in
    float32: singular values within 0.7 to 1.2.

    Five rounds of :math:`X \leftarrow a X + b\, X X^\top X + c\, (X X^\top)^2 X`, whose polynomial drives singular
    values in (0, 1] towards 1, after a division that brings them there. Source: Jordan et al. (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = len(matrix) <= matrix.shape[1]
    x = matrix.bfloat16() if has_bf16(matrix.device) else matrix.float()
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        xx = x @ x.T
        x = a * x + (b * xx + c * xx @ xx) @ x
    return x if wide else x.T
