"""A Hugging Face causal LM taken block by block: one block's weights in memory at a time.

What a block is called with (rotary tables, masks, one kind per layer in some models) is
not rebuilt here for each architecture: the model's own forward runs with its blocks
intercepted, and their arguments are kept.
"""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.errors import ParameterError, TraceError
from awqbench.model_build import (
    BlockCall,
    build_skeleton,
    find_blocks,
    intercepted,
    takes_tuples,
)
from awqbench.model_weights import WeightReader, stored_dtype

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint


class BlockInputs(NamedTuple):
    """Hidden states on their way through the blocks, and each block's other arguments.

    Parameters
    ----------
    hidden : (n, seq, hidden_size) torch.Tensor
    calls : tuple of BlockCall
        One for each block.
    """

    hidden: torch.Tensor
    calls: tuple[BlockCall, ...]


class BlockRunner:
    """A full-precision causal LM, run block by block from its checkpoint.

    The attention implementation is transformers' own choice (sdpa where the model allows
    it), so that logits equal those of ``from_pretrained``. Remote code is never run.

    Parameters
    ----------
    ckpt : Checkpoint
    dtype : torch.dtype, optional
        To compute in; None is the dtype that most of the checkpoint's bytes have.
    device : str or torch.device

    Attributes
    ----------
    n_blocks : int
    prefix : str
        Path of the list of blocks, such as ``model.layers``.

    Raises
    ------
    AlreadyQuantizedError
        If the checkpoint is quantized.
    TraceError
        If transformers does not know the architecture without remote code, or the model
        cannot be run as a chain of blocks.
    FormatError
        If a tensor outside the blocks is missing or has another shape.
    """

    def __init__(
        self,
        ckpt: Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        import torch

        ckpt.require_full_precision()
        self.ckpt = ckpt
        self.dtype = stored_dtype(ckpt) if dtype is None else dtype
        self.device = torch.device(device)
        self._model = build_skeleton(ckpt, dtype=self.dtype)
        self._body = self._model.base_model
        if self._body is self._model:
            raise TraceError(f"{type(self._model).__name__} has no body apart from its head.")
        self.prefix, self._blocks = find_blocks(self._model)
        self.n_blocks = len(self._blocks)
        self._reader = WeightReader(ckpt, self._model, dtype=self.dtype, device=self.device)
        self._reader.fill_buffers(self._model, "", skip=self.prefix)
        self._calls: list[BlockCall] = []
        self._to_read = self._stages()
        self._embedding_names = tuple(self._to_read["embedding"])
        # Neither the embedding nor the head is read before it is needed: in float32 each
        # can be larger than many blocks.
        self._read_stage("body")
        like = torch.ones(self.hidden_size, dtype=self.dtype, device=self.device)
        self._as_tuple = takes_tuples(self._body, self._blocks, like)

    def block_name(self, i: int) -> str:
        """Return a block's module path, such as ``model.layers.3``."""
        return f"{self.prefix}.{self._checked(i)}"

    def block_kind(self, i: int) -> tuple:
        """Return what tells kinds of blocks apart: class, parameters' shapes and ties."""
        block = self._blocks[self._checked(i)]
        named = block.named_parameters(remove_duplicate=False)
        first: dict[int, str] = {}
        shapes = tuple((n, tuple(p.shape), first.setdefault(id(p), n)) for n, p in named)
        return (type(block).__name__, shapes)

    def shared_outside(self, i: int) -> frozenset[str]:
        """Return the parameters of block i, relative to it, that the model also uses elsewhere."""
        prefix = f"{self.block_name(i)}."
        named = list(self._model.named_parameters(remove_duplicate=False))
        elsewhere = {id(p) for name, p in named if not name.startswith(prefix)}
        return frozenset(
            n.removeprefix(prefix) for n, p in named if n.startswith(prefix) and id(p) in elsewhere
        )

    def stored_name(self, name: str) -> str | None:
        """Return the checkpoint's own name of one of the model's tensors, or None.

        They differ where transformers renamed modules after files had been written.
        """
        return self._reader.stored_name(name)

    def stored_names(self, i: int) -> dict[str, str]:
        """Return the checkpoint's name of each of block i's parameters, by relative path."""
        head = f"{self.block_name(i)}."
        names = [n for n, _ in self._blocks[i].named_parameters()]
        found = {name: self.stored_name(head + name) for name in names}
        return {name: stored for name, stored in found.items() if stored is not None}

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (out_features, in_features) of every linear of the blocks, by path."""
        import torch

        return {
            f"{self.block_name(i)}.{path}": tuple(module.weight.shape)
            for i, block in enumerate(self._blocks)
            for path, module in block.named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    def in_dtype(self, dtype: torch.dtype) -> BlockRunner:
        """Return this runner, or one of the same checkpoint that computes in `dtype`."""
        if dtype == self.dtype:
            return self
        return BlockRunner(self.ckpt, dtype=dtype, device=self.device)

    def embed(self, tokens: torch.Tensor) -> BlockInputs:
        """Return what enters block 0, and every block's other arguments.

        Parameters
        ----------
        tokens : (n, seq) torch.Tensor of int64

        Returns
        -------
        BlockInputs

        Raises
        ------
        ParameterError
            If `tokens` has another shape or dtype, or an id outside the vocabulary.
        """
        import torch

        if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
            raise ParameterError(
                f"tokens must be (n, seq) int64, not {list(tokens.shape)} {tokens.dtype}."
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocabulary:
            raise ParameterError(
                f"tokens hold ids from {low} to {high}, and the vocabulary ends at "
                f"{self.vocabulary - 1}: they come from another tokenizer."
            )
        self._read_stage("embedding")
        return self._capture(input_ids=tokens.to(self.device))

    def random_inputs(self, n: int, seq: int, *, seed: int = 0) -> BlockInputs:
        """Return standard normal hidden states in the place of embedded tokens.

        The embedding table is not read. Sample 2j + 1 is minus sample 2j, so that a unit
        behind a ReLU is silent for at most one of the two.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        shape = (n, seq, self.hidden_size)
        embeds = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        inputs = self._capture(inputs_embeds=embeds)
        hidden = torch.randn(inputs.hidden.shape, generator=generator)
        hidden[1::2] = -hidden[: 2 * (n // 2) : 2]
        return inputs._replace(hidden=hidden.to(self.device, self.dtype))

    def load_block(self, i: int) -> torch.nn.Module:
        """Read one block's weights and return it, in eval mode and without gradients.

        Each call gives a new module: drop it and its memory is free.

        Raises
        ------
        FormatError
            If a tensor of the block is missing or has another shape than config.json says.
        """
        skeleton = self._blocks[self._checked(i)]
        config = self._model.config
        block = copy.deepcopy(skeleton, {id(config): config})  # shares the config
        name = self.block_name(i)
        names = [n for n, _ in block.named_parameters(remove_duplicate=False)]
        self._reader.fill(block, name, names)
        self._reader.fill_buffers(block, name)
        return block.eval().requires_grad_(False)

    def run_block(self, block: torch.nn.Module, i: int, inputs: BlockInputs) -> BlockInputs:
        """Run block i and return its output as the inputs of the next.

        Parameters
        ----------
        block : torch.nn.Module
            As `load_block` gave it, changed or not.
        i : int
        inputs : BlockInputs
        """
        import torch

        args, kwargs, keyword = inputs.calls[self._checked(i)]
        with torch.no_grad():
            if keyword is None:
                output = block(inputs.hidden, *args, **kwargs)
            else:
                output = block(*args, **{keyword: inputs.hidden}, **kwargs)
        return inputs._replace(hidden=output[0] if isinstance(output, tuple) else output)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits of the last block's output.

        The model's own forward runs with `hidden` in the place of what its blocks give,
        so that the final norm, lm_head, and any scaling or capping are the model's.

        Parameters
        ----------
        hidden : (n, seq, hidden_size) torch.Tensor

        Returns
        -------
        (n, seq, vocabulary) torch.Tensor
        """
        import torch

        self._read_stage("embedding")
        self._read_stage("head")
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=self.device)
        last = self.n_blocks - 1

        def inject(i: int, given: torch.Tensor, call: BlockCall) -> torch.Tensor:
            return hidden if i == last else given

        with intercepted(self._blocks, inject, as_tuple=self._as_tuple):
            return self._model(input_ids=tokens, use_cache=False).logits

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""
        return self._model.get_input_embeddings().weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of the embedding, and of hidden states where a model does not widen them."""
        return self._model.get_input_embeddings().weight.shape[1]

    def block_elements(self, i: int) -> int:
        """Return how many numbers the parameters of block i hold; tied ones count once."""
        return sum(p.numel() for p in self._blocks[self._checked(i)].parameters())

    def release_embedding(self) -> None:
        """Drop the embedding's weights; they are read again when they are needed."""
        from torch import nn

        meta = {}
        for name in self._embedding_names:
            owner, _, leaf = name.rpartition(".")
            module = self._model.get_submodule(owner)
            param = module._parameters[leaf]
            # One object for tied parameters, so that they are tied when read again.
            fresh = meta.setdefault(id(param), nn.Parameter(param.to("meta"), requires_grad=False))
            module._parameters[leaf] = fresh
        self._to_read["embedding"] = list(self._embedding_names)

    def _checked(self, i: int) -> int:
        if not 0 <= i < self.n_blocks:
            raise ParameterError(f"there is no block {i}: the model has {self.n_blocks}.")
        return i

    def _capture(self, **inputs: torch.Tensor) -> BlockInputs:
        hidden: list[torch.Tensor] = []
        calls: list[BlockCall] = []

        def keep(i: int, given: torch.Tensor, call: BlockCall) -> torch.Tensor:
            hidden.append(given)
            calls.append(call)
            return given

        with intercepted(self._blocks, keep, as_tuple=self._as_tuple):
            self._body(**inputs, use_cache=False)
        # Batches of one shape are mostly called alike: masks and rotary tables are kept once.
        self._calls = [
            BlockCall(*_shared(tuple(call), tuple(before)))
            for call, before in zip_longest(calls, self._calls, fillvalue=())
        ]
        return BlockInputs(hidden[0], tuple(self._calls))

    def _stages(self) -> dict[str, list[str]]:
        """Sort the parameters outside the blocks by when they are needed."""
        embedding = {id(p) for p in self._model.get_input_embeddings().parameters()}
        body = {id(p) for p in self._body.parameters()}
        stages: dict[str, list[str]] = {"embedding": [], "body": [], "head": []}
        for name, param in self._model.named_parameters(remove_duplicate=False):
            if name.startswith(f"{self.prefix}."):
                continue
            # A tied head has the embedding's parameter, and is read with it.
            stage = "embedding" if id(param) in embedding else "body"
            stages[stage if id(param) in body else "head"].append(name)
        return stages

    def _read_stage(self, stage: str) -> None:
        names = self._to_read.pop(stage, [])
        if names:
            self._reader.fill(self._model, "", names)


def _shared(now: Any, before: Any) -> Any:
    """Return nested arguments with each tensor that equals the one before taken from there."""
    import torch

    if torch.is_tensor(now):
        is_same = (
            torch.is_tensor(before)
            and (now.shape, now.dtype, now.device) == (before.shape, before.dtype, before.device)
            and torch.equal(now, before)
        )
        return before if is_same else now
    if type(now) is dict and type(before) is dict:
        return {key: _shared(value, before.get(key)) for key, value in now.items()}
    if type(now) is type(before) and type(now) in (list, tuple):
        return type(now)(_shared(n, b) for n, b in zip_longest(now, before[: len(now)]))
    return now
