"""`PackedWeight`, a quantized matrix in memory: where formats, quantize and gemm meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from awqbench.grid import check_settings, dequantize_groups, quantize_groups


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight matrix: where formats, quantize and gemm meet.

    `scales` are held as float32 whatever `scale_dtype` says they are stored in; each is
    exactly representable there. A symmetric weight has the constant zero point
    2**(bits - 1), so that one formula decodes every weight.

    Parameters
    ----------
    codes : (N, K) ndarray of uint8
    scales : (N, G) ndarray of float32
    zeros : (N, G) ndarray of uint8
    bits : int
        2 to 8.
    group_size : int
        Input channels in a group, K for whole rows; the last group may be short.
    zero_point : bool
        Whether `zeros` varies (asymmetric) or is the constant 2**(bits - 1).
    scale_dtype : {"float16", "bfloat16", "float32"}
    g_idx : (K,) ndarray of int32, optional
        Group of each input channel where it is not ``k // group_size`` (act-order).
    name : str
        Module path, for error texts.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    bits: int
    group_size: int
    zero_point: bool = True
    scale_dtype: str = "float16"
    g_idx: np.ndarray | None = None
    name: str = ""

    @property
    def out_features(self) -> int:
        """N, rows of the weight matrix."""
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        """K, columns of the weight matrix."""
        return self.codes.shape[1]

    @property
    def n_groups(self) -> int:
        """G, groups in a row."""
        return self.scales.shape[1]

    def group_index(self) -> np.ndarray:
        """Return the group of each input channel, (K,) ndarray of int64."""
        if self.g_idx is not None:
            return self.g_idx.astype(np.int64)
        return np.arange(self.in_features) // self.group_size

    def dequantize(self) -> np.ndarray:
        """Decode to float32: the exact small integer times the scale, rounded once.

        Rounding the result to the scales' dtype gives what AutoAWQ, GPTQModel and
        compressed-tensors decode, bit for bit.

        Returns
        -------
        (N, K) ndarray of float32
        """
        return dequantize_groups(
            self.codes, self.scales, self.zeros, group_size=self.group_size, g_idx=self.g_idx
        )


def quantize_weight(
    weight,
    bits: int = 4,
    group_size: int | None = 128,
    *,
    zero_point: bool = True,
    scale_dtype: str = "float32",
    name: str = "weight",
) -> PackedWeight:
    """Quantize a weight by plain rounding to nearest.

    Parameters
    ----------
    weight : (N, K) ndarray or torch.Tensor
    bits, group_size, zero_point, scale_dtype, name
        As in `quantize_groups`. The AWQ and GPTQ layouts store scales in float16.

    Returns
    -------
    PackedWeight

    Raises
    ------
    AlignmentError, NonFiniteError, OverflowCastError, ParameterError
        As `quantize_groups`.

    Examples
    --------
    >>> packed = quantize_weight(np.eye(4, 8), bits=4, group_size=8)
    >>> packed.dequantize().max().round(6).item()
    1.0
    """
    array = as_array(weight)
    quant = quantize_groups(
        array, bits, group_size, zero_point=zero_point, scale_dtype=scale_dtype, name=name
    )
    return PackedWeight(
        codes=quant.codes,
        scales=quant.scales,
        zeros=quant.zeros,
        bits=int(bits),
        group_size=check_settings(bits, group_size, array.shape[1]),
        zero_point=zero_point,
        scale_dtype=scale_dtype,
        name=name if name != "weight" else "",
    )


def as_array(values) -> np.ndarray:
    """Return an ndarray from an array or a torch tensor (bfloat16 becomes float32)."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
