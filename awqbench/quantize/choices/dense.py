"""Linears that stay in full precision whatever the settings say: routers and tiny gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from awqbench.model import BlockRunner
    from awqbench.quantize.settings import Settings

# A word of the packed layouts holds 4-bit codes of this many output channels; a linear with
# fewer has nothing to gain either: its weights are a few kilobytes.
MIN_OUT_FEATURES = 8
# What modelling code calls the matrix that sends tokens to experts, where it is a linear.
_ROUTERS = ("gate", "router", "wg")


def keeps_dense(name: str, shape: tuple[int, int], layout: str = "") -> str:
    """Say why a linear is left in full precision without being asked for, or "".

    Parameters
    ----------
    name : str
        Module path, such as ``model.layers.0.mlp.shared_expert_gate``.
    shape : (N, K)
        Output and input channels.
    layout : str
        That the checkpoint is written in, for the text.

    Returns
    -------
    str
        One phrase for the run record; "" for a linear that is quantized, or that the layout
        refuses by an error because it is too large to be left dense silently.

    Examples
    --------
    >>> keeps_dense("model.layers.0.mlp.shared_expert_gate", (1, 2048), "awq-gemm")
    '1 output channel, and a packed word of awq-gemm holds 8'
    >>> keeps_dense("model.layers.0.mlp.gate", (128, 2048))
    'routes tokens to experts: an error here sends them elsewhere'
    >>> keeps_dense("model.layers.0.mlp.gate_proj", (768, 2048))
    ''
    """
    out_features, in_features = shape
    if out_features < MIN_OUT_FEATURES:
        channels = "channel" if out_features == 1 else "channels"
        return (
            f"{out_features} output {channels}, and a packed word of "
            f"{layout or 'the layouts'} holds {MIN_OUT_FEATURES}"
        )
    # A gate of an MLP has at least as many outputs as inputs, a router one for each expert.
    if name.rpartition(".")[2] in _ROUTERS and out_features < in_features:
        return "routes tokens to experts: an error here sends them elsewhere"
    return ""


def is_quantized(path: str, weight: torch.Tensor, settings: Settings, block: str) -> bool:
    """Tell whether the linear at a path of a block is quantized, by the settings and by shape."""
    name = f"{block}.{path}"
    shape = (weight.shape[0], weight.shape[1])
    return settings.converts(name) and not keeps_dense(name, shape, settings.layout)


def kept_dense(runner: BlockRunner, settings: Settings) -> dict[str, str]:
    """Return the matrices of a model's blocks that stay dense without being asked for.

    Returns
    -------
    dict of str to str
        The reason by module path, as the folder names it.
    """
    shapes = runner.linear_shapes()
    found = {}
    for i in range(runner.n_blocks):
        for path, stored in runner.stored_names(i).items():
            name = f"{runner.block_name(i)}.{path.removesuffix('.weight')}"
            if len(runner.ckpt.tensors[stored].shape) != 2 or not settings.converts(name):
                continue
            reason = "a router, or another matrix that is no linear layer of the model"
            if name in shapes:
                reason = keeps_dense(name, shapes[name], settings.layout)
            if reason:
                found[stored.removesuffix(".weight")] = reason
    return found
