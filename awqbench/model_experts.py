"""Mixtures of experts with a linear layer for every matrix.

transformers 5 keeps all experts of a layer in two tensors of three dimensions, where files
have a matrix for each expert and quantizers pack each on its own. A skeleton of this package
has the experts one by one, under the names that files have.
"""

from __future__ import annotations

import re

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


class Experts(nn.Module):
    """Experts ``0``, ``1``, ... of a layer, called as transformers' fused module is.

    Parameters
    ----------
    num_experts, hidden_size, intermediate_size : int
    act_fn : torch.nn.Module
    """

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
        total = torch.zeros_like(hidden_states)
        for i in torch.unique(top_k_index).tolist():
            if i >= self.num_experts:  # a place that is masked out
                continue
            token, place = torch.where(top_k_index == i)
            output = self.get_submodule(str(i))(hidden_states[token])
            output = output * top_k_weights[token, place, None]
            total.index_add_(0, token, output.to(total.dtype))
        return total


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
