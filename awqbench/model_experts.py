"""Mixtures of experts with a linear layer for every matrix.

transformers 5 keeps all experts of a layer in two tensors of three dimensions, where files
have a matrix for each expert and quantizers pack each on its own. A skeleton of this package
has the experts one by one, under the names that files have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Mixtral's names in files, and ours, which are those of every later family.
_ALIASES = (
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"(\.experts\.\d+)\.w1\b", r"\1.gate_proj"),
    (r"(\.experts\.\d+)\.w3\b", r"\1.up_proj"),
    (r"(\.experts\.\d+)\.w2\b", r"\1.down_proj"),
)


class Expert(nn.Module):
    """A gated MLP: down(act(gate(x)) * up(x)).

    Parameters
    ----------
    hidden_size, intermediate_size : int
    act_fn : torch.nn.Module
    """

    def __init__(self, hidden_size: int, intermediate_size: int, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj = _meta_linear(hidden_size, intermediate_size)
        self.up_proj = _meta_linear(hidden_size, intermediate_size)
        self.down_proj = _meta_linear(intermediate_size, hidden_size)
        self.act_fn = act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the MLP of x, (..., hidden_size)."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    def unseen(self, x: torch.Tensor) -> torch.Tensor:
        """Return the MLP of x without calling the linears' hooks."""
        inner = self.act_fn(self.gate_proj.forward(x)) * self.up_proj.forward(x)
        return self.down_proj.forward(inner)


class Experts(nn.Module):
    """Experts ``0``, ``1``, ... of a layer, called as transformers' fused module is.

    Parameters
    ----------
    num_experts, hidden_size, intermediate_size : int
    act_fn : torch.nn.Module

    Attributes
    ----------
    routing : {"real", "seen", "mixed"}
        How tokens reach experts; see `every_expert`.
    """

    routing = "real"

    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int, act_fn: nn.Module
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        for i in range(num_experts):
            self.add_module(str(i), Expert(hidden_size, intermediate_size, act_fn))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of each token's experts.

        Parameters
        ----------
        hidden_states : (tokens, hidden_size) torch.Tensor
        top_k_index : (tokens, k) torch.Tensor of int64
        top_k_weights : (tokens, k) torch.Tensor

        Returns
        -------
        (tokens, hidden_size) torch.Tensor
        """
        if self.routing == "mixed":
            return self._mixed(hidden_states, top_k_index, top_k_weights)
        if self.routing == "seen":
            for i in range(self.num_experts):
                self.get_submodule(str(i))(hidden_states)
        total = torch.zeros_like(hidden_states)
        for i in torch.unique(top_k_index).tolist():
            if i >= self.num_experts:  # a place that is masked out
                continue
            token, place = torch.where(top_k_index == i)
            expert = self.get_submodule(str(i))
            run = expert if self.routing == "real" else expert.unseen
            output = run(hidden_states[token]) * top_k_weights[token, place, None]
            total.index_add_(0, token, output.to(total.dtype))
        return total

    def _mixed(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum of all experts, each by its routing weight and an even share."""
        count = self.num_experts
        share = hidden_states.new_full((len(hidden_states), count + 1), 1 / count)
        index = top_k_index.clamp(max=count)  # the last column takes masked places
        share = share.scatter_add(1, index, top_k_weights.to(share.dtype))
        outputs = (
            self.get_submodule(str(i))(hidden_states) * share[:, i, None] for i in range(count)
        )
        return sum(outputs, torch.zeros_like(hidden_states))


@contextmanager
def every_expert(module: nn.Module, *, mixed: bool = False) -> Iterator[None]:
    """Send every token through every expert of a module for a while, for hooks to see.

    Parameters
    ----------
    module : torch.nn.Module
        A block or model with `Experts`; without any, nothing changes.
    mixed : bool
        False: the output stays, bit for bit, that of the real routing, which is computed
        apart; for statistics of experts that a text does not reach. True: every expert has
        its routing weight plus an even share in the output, so that a change in any expert
        or in the router shows in it; for proofs.
    """
    found = [m for m in module.modules() if isinstance(m, Experts)]
    try:
        for experts in found:
            experts.routing = "mixed" if mixed else "seen"
        yield
    finally:
        for experts in found:
            experts.routing = "real"


def unfuse_experts(model: nn.Module) -> int:
    """Replace every fused module of gated experts on the meta device by `Experts`.

    Returns
    -------
    int
        How many were replaced. Experts of another form (transposed, with biases) are left.
    """
    fused = [(path, module) for path, module in model.named_modules() if _is_fused(module)]
    for path, module in fused:
        sizes = module.num_experts, module.hidden_dim, module.intermediate_dim
        model.set_submodule(path, Experts(*sizes, module.act_fn))
    return len(fused)


def _is_fused(module: nn.Module) -> bool:
    wanted = ("num_experts", "hidden_dim", "intermediate_dim", "act_fn")
    if not all(hasattr(module, name) for name in wanted):
        return False
    shapes = {name: tuple(param.shape) for name, param in module.named_parameters(recurse=False)}
    count, hidden, inner = module.num_experts, module.hidden_dim, module.intermediate_dim
    return shapes == {
        "gate_up_proj": (count, 2 * inner, hidden),
        "down_proj": (count, hidden, inner),
    }


def name_in_model(stored: str) -> str:
    """Return the model's name of an expert's tensor or module in a file, or the same name.

    Examples
    --------
    >>> name_in_model("model.layers.0.block_sparse_moe.experts.7.w2.qweight")
    'model.layers.0.mlp.experts.7.down_proj.qweight'
    """
    for pattern, ours in _ALIASES:
        stored = re.sub(pattern, ours, stored)
    return stored


def _meta_linear(in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=False, device="meta")
