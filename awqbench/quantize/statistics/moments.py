"""Second moments of a linear's input, added up chunk by chunk.

For the input X (M, K) of a linear, over all calibration tokens: H = X'X, the mean and the
largest magnitude of each channel, and counts. tr(D H D') is then the squared output error
of any weight error D on all of the calibration text, without the text.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from awqbench.errors import StatisticsError

if TYPE_CHECKING:
    import torch


# Channels from which a Gram matrix is added up in eight block rows, not four.
_WIDE = 8192
# What is large of saved moments, and multiplied in a search; the rest are numbers of a channel.
_PRODUCTS = ("gram", "sketch", "diagonal")


@contextmanager
def bfloat16_products():
    """Let float32 matrix products run on bfloat16 units inside this block.

    Inputs are rounded to bfloat16, sums stay float32. A Gram matrix of bfloat16
    activations loses nothing by it (measured 3e-7 relative to float64, at 2.5 to 3 times
    the speed of float32 products on a CPU with AMX); on other processors it changes
    nothing.
    """
    import torch

    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None or not hasattr(settings, "fp32_precision"):  # torch before 2.9
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class Moments:
    """Running sums over the rows of a linear's input.

    A token with NaN or infinity in any channel is left out of every sum and counted, per
    token and per channel.

    Parameters
    ----------
    in_features : int
        K.
    sketch_rows : int, optional
        Keep a CountSketch S X (r, K) with E[(SX)'(SX)] = H in place of H, and exact
        diagonal blocks of H of `block` channels for the clip search.
    block : int
        Channels in a diagonal block that is kept beside a sketch.
    seed : int
        Of the sketch.
    """

    def __init__(
        self, in_features: int, *, sketch_rows: int | None = None, block: int = 128, seed: int = 0
    ):
        import torch

        self.in_features, self.sketch_rows = in_features, sketch_rows
        if sketch_rows is None:
            self.gram = torch.zeros(in_features, in_features)
        else:
            self.sketch = torch.zeros(sketch_rows, in_features)
            self.block = block if in_features % block == 0 else in_features
            n_blocks = in_features // self.block
            self.diagonal = torch.zeros(n_blocks, self.block, self.block)
            self.generator = torch.Generator().manual_seed(seed)
        self.sum_abs = torch.zeros(in_features, dtype=torch.float64)
        self.absmax = torch.zeros(in_features)
        self.nonfinite = torch.zeros(in_features, dtype=torch.int64)
        self.tokens = self.masked_tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Add rows.

        Parameters
        ----------
        x : (..., K) torch.Tensor
            Any float dtype; bfloat16 is summed in float32 without loss.

        Raises
        ------
        StatisticsError
            If the last dimension is not K.
        """
        import torch

        if x.shape[-1] != self.in_features:
            raise StatisticsError(f"input has {x.shape[-1]} channels, expected {self.in_features}.")
        x = x.detach().reshape(-1, self.in_features)
        exact = x.dtype == torch.bfloat16  # products of bfloat16 numbers are exact in float32
        wide = x.float()
        magnitude = wide.abs()
        sums = magnitude.sum(dim=0)
        if not torch.isfinite(sums).all():
            wide, magnitude = self._masked(wide)
            # Magnitudes whose float32 sum overflows are finite all the same.
            sums = magnitude.sum(dim=0, dtype=torch.float64)
        self.tokens += len(wide)
        if len(wide) == 0:
            return
        self.sum_abs += sums.double().cpu()
        torch.maximum(self.absmax, magnitude.amax(dim=0).cpu(), out=self.absmax)
        self._add_products(wide, in_bfloat16=exact)

    def _masked(self, wide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        bad = ~torch.isfinite(wide)
        keep = ~bad.any(dim=1)
        self.nonfinite += bad.sum(dim=0).cpu()
        self.masked_tokens += int((~keep).sum())
        return wide[keep], wide[keep].abs()

    def _add_products(self, wide: torch.Tensor, *, in_bfloat16: bool) -> None:
        import torch

        if self.sketch_rows is None:
            with bfloat16_products() if in_bfloat16 else nullcontext():
                _add_gram(self.gram, wide)
            return
        rows = torch.randint(self.sketch_rows, (len(wide),), generator=self.generator)
        signs = torch.randint(2, (len(wide), 1), generator=self.generator) * 2.0 - 1.0
        self.sketch.index_add_(0, rows, (wide * signs.to(wide.device)).cpu())
        groups = wide.reshape(len(wide), -1, self.block).transpose(0, 1)
        self.diagonal += torch.bmm(groups.transpose(1, 2), groups).cpu()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what is saved: products, magnitudes and counts."""
        import torch

        products = (
            {"gram": self.gram}
            if self.sketch_rows is None
            else {"sketch": self.sketch, "diagonal": self.diagonal}
        )
        return products | {
            "sum_abs": self.sum_abs,
            "absmax": self.absmax,
            "nonfinite": self.nonfinite,
            "counts": torch.tensor([self.tokens, self.masked_tokens]),
        }


def merge_tensor(name: str, total: torch.Tensor, part: torch.Tensor) -> None:
    """Add one of the tensors that `Moments.tensors` names to another, in place."""
    import torch

    if name == "absmax":
        torch.maximum(total, part, out=total)
    else:
        total.add_(part)


def _add_gram(gram: torch.Tensor, wide: torch.Tensor) -> None:
    """Add X'X to a symmetric matrix, its upper blocks by products and the rest by copying.

    Four block rows take 5/8 of the multiplications of the whole product (measured at
    4096 tokens: 55 ms in place of 96 at K = 3072, 6 in place of 9 at K = 1024), eight 9/16,
    which pays where each is still wide.
    """
    width = -(-wide.shape[1] // (4 if wide.shape[1] < _WIDE else 8))
    for first in range(0, wide.shape[1], width):
        last = first + width
        rows = (wide[:, first:last].T @ wide[:, first:]).to(gram.device)
        gram[first:last, first:] += rows
        gram[last:, first:last] += rows[:, width:].T


@dataclass(frozen=True)
class SiteMoments:
    """Saved moments of one site, read back.

    Parameters
    ----------
    tensors : dict of str to torch.Tensor
        As `Moments.tensors` gives them.
    """

    tensors: dict[str, torch.Tensor]

    @property
    def in_features(self) -> int:
        """K."""
        return self.tensors["absmax"].shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens in the sums."""
        return int(self.tensors["counts"][0])

    @property
    def masked_tokens(self) -> int:
        """Tokens left out for NaN or infinity."""
        return int(self.tensors["counts"][1])

    @property
    def absmax(self) -> torch.Tensor:
        """Largest magnitude of each channel, (K,) float32."""
        return self.tensors["absmax"]

    @property
    def nonfinite(self) -> torch.Tensor:
        """Non-finite elements of each channel, (K,) int64."""
        return self.tensors["nonfinite"]

    @property
    def device(self) -> torch.device:
        """Where H or its sketch is, and so where a search of the site computes."""
        return self.tensors["gram" if self.is_exact else "sketch"].device

    def to(self, device: torch.device | str) -> SiteMoments:
        """Return these moments with H, or its sketch, on a device.

        Vectors of a number for each channel stay on the CPU, where scales are computed from
        them: their sums over channels that share a scale would come in any order on a GPU.
        """
        moved = {name: self.tensors[name].to(device) for name in _PRODUCTS if name in self.tensors}
        return SiteMoments(self.tensors | moved)

    @property
    def is_exact(self) -> bool:
        """Whether H itself was kept, not a sketch of it."""
        return "gram" in self.tensors

    def mean_abs(self) -> torch.Tensor:
        """Return the mean magnitude of each channel, (K,) float32."""
        return (self.tensors["sum_abs"] / max(self.n_tokens, 1)).float()

    def gram(self) -> torch.Tensor:
        """Return H = X'X, (K, K) float32; from a sketch, its estimate."""
        if self.is_exact:
            return self.tensors["gram"]
        sketch = self.tensors["sketch"]
        return sketch.T @ sketch

    def diagonal_blocks(self, size: int) -> torch.Tensor:
        """Return the diagonal blocks of H, exact even beside a sketch where its blocks allow.

        Parameters
        ----------
        size : int
            Channels in a block; divides K.

        Returns
        -------
        (K / size, size, size) torch.Tensor of float32
        """
        kept = self.tensors.get("diagonal")
        if kept is None or kept.shape[1] % size:
            source = self.gram()[None]
        else:
            source = kept
        n_kept, width, _ = source.shape
        per = width // size
        split = source.reshape(n_kept, per, size, per, size)
        blocks = split.diagonal(dim1=1, dim2=3)  # (n_kept, size, size, per)
        return blocks.permute(0, 3, 1, 2).reshape(-1, size, size).contiguous()
