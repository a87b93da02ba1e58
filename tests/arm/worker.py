"""What the ARM tests compute, on whatever processor runs this; prints JSON.

    python worker.py PARTS CONFORMANCE_FOLDER...

PARTS are of golden, quantize, nonfinite, gemm, native, levels and semantics, with commas between.
Needs NumPy, numexpr and the package; not torch.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from awqbench.errors import AwqbenchError
from awqbench.grid import encode
from awqbench.packed import PackedWeight, quantize_weight

BATCHES = (0, 1, 3, 17, 129)


def digest(*arrays):
    """Return the start of a SHA-256 of arrays' bytes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


class Tensor:
    """An array with what the layouts' readers use of torch.Tensor, which the guest lacks."""

    def __init__(self, array, dtype):
        self.array, self.dtype = array, f"torch.{dtype}"
        self.shape, self.ndim = array.shape, array.ndim

    def __len__(self):
        return len(self.array)

    def detach(self):
        """Return itself."""
        return self

    cpu = contiguous = detach

    def numpy(self):
        """Return the array."""
        return self.array

    def tolist(self):
        """Return lists."""
        return self.array.tolist()

    def is_floating_point(self):
        """Return whether it is."""
        return "float" in self.dtype

    def float(self):
        """Return it in float32."""
        wide = self.array
        if self.dtype == "torch.bfloat16":
            wide = (wide.astype(np.uint32) << 16).view(np.float32)
        return Tensor(wide.astype(np.float32), "float32")


def load_tensors(file):
    """Read a safetensors file."""
    types = {
        "F32": ("float32", "<f4"), "F16": ("float16", "<f2"), "BF16": ("bfloat16", "<u2"),
        "I64": ("int64", "<i8"), "I32": ("int32", "<i4"), "I16": ("int16", "<i2"),
        "I8": ("int8", "i1"), "U8": ("uint8", "u1"),
    }  # fmt: skip
    raw = Path(file).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        dtype, code = types[entry["dtype"]]
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(raw[begin:end], code).reshape(entry["shape"])
        tensors[name] = Tensor(array, dtype)
    return tensors


LAYOUT_OF = {
    "awq_gemm": "awq-gemm",
    "awq_gemv": "awq-gemv",
    "awq_gemv_fast": "awq-gemv-fast",
    "awq_marlin": "awq-marlin",
    "gptqmodel_awq": "awq-gemm",
    "gptq": "gptq-v2",
    "compressed_tensors": "compressed-tensors",
    "compressed_tensors_0_12": "compressed-tensors",
    "chatglm": "chatglm",
}


def golden_digests(folder):
    """Decode every linear that other tools wrote."""
    from awqbench.formats.layouts.table import read_linear

    manifest = json.loads((folder / "manifest.json").read_text())
    found = {}
    for case in manifest["cases"]:
        if case["kind"] != "linear":
            continue
        tensors = load_tensors(folder / case["file"])
        if "weight_scale" in tensors and "qweight" in tensors:
            tensors["weight"] = tensors["qweight"]
        if "qzeros_v2" in tensors:
            tensors["qzeros"] = tensors["qzeros_v2"]
        group_size = case.get("group_size")
        packed = read_linear(
            LAYOUT_OF[case["id"].split("/")[1]],
            tensors,
            bits=case["bits"],
            group_size=-1 if group_size in (None, "None") else group_size,
            name="case",
        )
        found[case["id"]] = digest(packed.codes, packed.zeros, packed.dequantize())
    return found


def hard_weights():
    """Return matrices whose quantization is hard, by name."""
    rng = np.random.default_rng(11)
    normal = rng.standard_normal((64, 256)).astype(np.float32)
    zero_groups = normal.copy()
    zero_groups[::3, :64], zero_groups[5] = 0, 0
    ties = rng.integers(-15, 16, (64, 256)).astype(np.float32) / 2
    return {
        "normal": normal,
        "outliers": normal * np.where(np.arange(256) % 97 == 5, 300, 1).astype(np.float32),
        "zero groups": zero_groups,
        "one sign": np.abs(normal) + 1,
        "huge": normal * np.float32(1e35),
        "tiny": normal * np.float32(1e-30),
        "subnormal": normal * np.float32(1e-39),
        "ties": ties,
    }


def quantize_digests():
    """Quantize and decode hard weights at every setting; an error is its own text."""
    found = {}
    for name, weight in hard_weights().items():
        for bits in range(2, 9):
            for group_size, zero_point in ((32, True), (128, False), (None, True)):
                for dtype in ("float32", "float16", "bfloat16"):
                    settings = f"{name}, {bits} bits, {group_size}, {zero_point}, {dtype}"
                    try:
                        packed = quantize_weight(
                            weight, bits, group_size, zero_point=zero_point, scale_dtype=dtype
                        )
                    except AwqbenchError as error:
                        found[settings] = f"{type(error).__name__}: {error}"
                        continue
                    found[settings] = digest(
                        packed.codes, packed.scales, packed.zeros, packed.dequantize()
                    )
    return found


def nonfinite_case():
    """Return groups, scales and zero points with one NaN, two infinities and a zero scale."""
    rng = np.random.default_rng(12)
    grouped = rng.standard_normal((256, 2, 64)).astype(np.float32)
    scales = (0.1 + rng.random((256, 2))).astype(np.float32)
    zeros = rng.integers(0, 16, (256, 2), dtype=np.uint8)
    grouped[3, 0, 5], grouped[7, 1, 9], grouped[8, 1, 9] = np.nan, np.inf, -np.inf
    scales[11, 0] = 0
    return grouped, scales, zeros


def nonfinite_digests():
    """Quantize what holds NaN, infinity and zero scales."""
    grouped, scales, zeros = nonfinite_case()
    with np.errstate(all="ignore"):
        clean = np.nan_to_num(grouped, nan=0.0, posinf=3e38, neginf=-3e38)
        codes = encode(clean, np.where(scales == 0, np.float32(1), scales), zeros, 4)
        raw_scales = encode(clean, scales, zeros, 4)
    found = {"codes of repaired weights": digest(codes), "zero scale": digest(raw_scales)}
    for name, value in (("NaN", np.nan), ("inf", np.inf), ("-inf", -np.inf)):
        weight = grouped.reshape(256, 128).copy()
        weight[~np.isfinite(weight)] = value
        try:
            found[name] = digest(quantize_weight(weight, group_size=64).codes)
        except AwqbenchError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def random_packed(n, k, group_size, bits=4, *, act_order=False, scale_dtype="float32"):
    """Draw a packed weight; the last group may be short."""
    rng = np.random.default_rng(n * 1000 + k + bits)
    n_groups = -(-k // group_size)
    scales = (0.01 * (0.5 + rng.random((n, n_groups)))).astype(np.float32)
    if scale_dtype == "float16":
        scales = scales.astype(np.float16).astype(np.float32)
    return PackedWeight(
        codes=rng.integers(0, 1 << bits, (n, k), dtype=np.uint8),
        scales=scales,
        zeros=rng.integers(0, 1 << bits, (n, n_groups), dtype=np.uint8),
        bits=bits,
        group_size=group_size,
        scale_dtype=scale_dtype,
        g_idx=rng.permutation(np.arange(k) // group_size).astype(np.int32) if act_order else None,
    )


SHAPES = {
    "short last group": lambda: random_packed(40, 160, 64),
    "groups of 32": lambda: random_packed(200, 256, 32),
    "groups of 128": lambda: random_packed(96, 384, 128, scale_dtype="float16"),
    "whole rows": lambda: random_packed(64, 300, 300),
    "one column": lambda: random_packed(1, 64, 64),
    "one by one": lambda: random_packed(1, 1, 1),
    "odd group": lambda: random_packed(8, 99, 33),
    "act-order": lambda: random_packed(72, 256, 32, act_order=True),
    "3 bits": lambda: random_packed(40, 256, 128, 3),
    "8 bits": lambda: random_packed(130, 256, 128, 8),
    "8 bits, short last group": lambda: random_packed(48, 160, 64, 8),
}


def tokens(k, m):
    """Draw tokens."""
    return np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)


def product_error(y, x, weight):
    """Frobenius error of y = x Wᵀ to float64, over what such a product of random signs has.

    (Relative to y itself one number that cancels out would count for more than it is.) Infinite
    where NaN or infinity stand elsewhere than in float64.
    """
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        exact = x @ weight.T
        size = (x * x) @ (weight * weight).T
    kept = np.isfinite(exact)
    if not np.array_equal(y[~kept], exact[~kept].astype(np.float32), equal_nan=True):
        return float("inf")
    return float(np.linalg.norm(y[kept] - exact[kept]) / (np.sqrt(size[kept].sum()) or 1))


def gemm_errors():
    """Multiply by NumPy and numexpr; errors to float64."""
    from awqbench.gemm import gemm

    found = {}
    for name, make in SHAPES.items():
        packed = make()
        weight = packed.dequantize().astype(np.float64)
        for backend in ("numpy", "numexpr"):
            for m in BATCHES:
                x = tokens(packed.in_features, m)
                if m == 17:
                    x[3, 0], x[5, 0] = np.nan, np.inf
                with np.errstate(invalid="ignore"):
                    y = gemm(x, packed, backend)
                found[f"{backend}, {name}, M={m}"] = product_error(y, x, weight)
    return found


def native_products():
    """Multiply at every level; errors to float64, and digests of all results of a level."""
    from awqbench.gemm import native
    from awqbench.gemm.native_layout import stream_weight

    library = native.library()
    errors, digests = {}, {}
    for name, make in SHAPES.items():
        packed = make()
        weight, decoded = stream_weight(packed), packed.dequantize().astype(np.float64)
        for activations in native.ACTIVATIONS:
            for level in library.levels:
                products = []
                for m in (*BATCHES, 2, 5, 6):
                    x = tokens(packed.in_features, m)
                    if m == 17:
                        x[3, 0], x[5, 0] = np.nan, np.inf
                    y = native.matmul(
                        x, weight, activations=activations, level=level, threads=1 + m % 3
                    )
                    key = f"{level}, {activations}, {name}, M={m}"
                    errors[key] = product_error(y, x, decoded)
                    # The payload of a NaN is the processor's own; where it stands is not.
                    products.append(np.where(np.isnan(y), np.float32(0), y))
                digests[f"{level}, {activations}, {name}"] = digest(*products)
    return {"levels": list(library.levels), "disabled": library.disabled, "errors": errors,
            "digests": digests}  # fmt: skip


def native_levels():
    """Return the levels that are chosen on this processor, best first."""
    from awqbench.gemm import native

    return list(native.library().levels)


def semantics():
    """Return what conversions of this processor give, by operation and input."""
    single = np.array([np.nan, np.inf, -np.inf, -1.0, 3e9, -3e9, 300.0], np.float32)
    names = ("NaN", "inf", "-inf", "-1", "3e9", "-3e9", "300")
    found = {}
    with np.errstate(all="ignore"):
        for dtype in ("int64", "int32", "uint32", "int16", "uint8", "int8"):
            for name, value in zip(names, single, strict=True):
                # Eight equal lanes: what vector instructions give; one element may differ.
                found[f"{name} to {dtype}"] = int(np.full(8, value).astype(dtype)[0])
        infinity, zero = np.full(8, np.inf, np.float32), np.zeros(8, np.float32)
        found["bits of inf - inf"] = hex((infinity - infinity).view(np.uint32)[0])
        found["bits of 0 / 0"] = hex((zero / zero).view(np.uint32)[0])
        grouped, scales, zeros = nonfinite_case()
        steps = np.rint(grouped / scales[..., None]) + zeros[..., None].astype(np.float32)
        found["codes by int32 and & 15"] = digest((steps.astype(np.int32) & 15).astype(np.uint8))
        clipped = np.clip(steps, 0, 15)
        found["codes by clip, then int32"] = digest(clipped.astype(np.int32))
        repaired = np.nan_to_num(steps, nan=0, posinf=15, neginf=0)
        found["codes by nan_to_num, clip, int32"] = digest(
            np.clip(repaired, 0, 15).astype(np.int32)
        )
        x = np.random.default_rng(13).standard_normal(4096).astype(np.float32)
        for name in ("exp", "tanh", "sin", "sqrt", "rint"):
            found[f"{name} of float32"] = digest(getattr(np, name)(np.abs(x)))
        found["sum of float32"] = digest(x.sum())
        found["float32 to float16 and back"] = digest(x.astype(np.float16).astype(np.float32))
    return found


def main():
    """Compute the parts that were asked for, with their times."""
    parts, folders = sys.argv[1].split(","), [Path(word) for word in sys.argv[2:]]
    work = {
        "golden": lambda: {k: v for folder in folders for k, v in golden_digests(folder).items()},
        "quantize": quantize_digests,
        "nonfinite": nonfinite_digests,
        "gemm": gemm_errors,
        "native": native_products,
        "levels": native_levels,
        "semantics": semantics,
    }
    result, seconds = {}, {}
    for part in parts:
        start = time.perf_counter()
        result[part] = work[part]()
        seconds[part] = round(time.perf_counter() - start, 2)
    assert "torch" not in sys.modules, "the NumPy paths imported torch"
    print(json.dumps({"result": result, "seconds": seconds}))


if __name__ == "__main__":
    main()
