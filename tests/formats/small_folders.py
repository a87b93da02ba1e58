"""Small valid model folders of every layout, held in memory so that each part can be changed."""

from __future__ import annotations

import copy
import json
import struct

import numpy as np
import torch

from awqbench.formats.headers import DTYPES
from awqbench.formats.layouts.table import write_linear
from awqbench.formats.shards import INDEX_FILE, SINGLE_FILE
from awqbench.packed import PackedWeight

TORCH_NAMES = {torch_name: name for name, (_, torch_name) in DTYPES.items()}


def packed(rng: np.random.Generator, n=32, k=64, *, group_size=32, bits=4, zero_point=True):
    """Return a random PackedWeight that float16 scales can hold."""
    n_groups, half = k // group_size, 1 << (bits - 1)
    zeros = rng.integers(1, 1 << bits, (n, n_groups), dtype=np.uint8)
    return PackedWeight(
        codes=rng.integers(0, 1 << bits, (n, k), dtype=np.uint8),
        scales=rng.uniform(0.01, 1, (n, n_groups)).astype(np.float16).astype(np.float32),
        zeros=zeros if zero_point else np.full_like(zeros, half),
        bits=bits,
        group_size=group_size,
        zero_point=zero_point,
        name="q_proj",
    )


def raw_linears(rng: np.random.Generator) -> dict[str, tuple[int, dict[str, torch.Tensor]]]:
    """Return group size and tensors of each layout that is only read; any words are codes."""

    def words(dtype, *shape):
        info = np.iinfo(dtype)
        return torch.from_numpy(rng.integers(info.min, info.max, shape, dtype=dtype))

    scales = torch.zeros(16, 8, dtype=torch.float16)
    scales[0] = torch.from_numpy(rng.uniform(0.01, 1, 8).astype(np.float16))
    fast = {"qweight": words(np.int16, 2, 64), "scales": scales}
    return {
        "gemv_fast": (64, fast | {"qzeros": -7 * scales}),
        "llm-awq": (64, fast | {"scaled_zeros": -7 * scales}),
        "marlin": (16, {"qweight": words(np.int32, 2, 128), "scales": torch.ones(2, 64).half()}),
    }


def base_folders() -> dict[str, tuple[dict, dict[str, torch.Tensor]]]:
    """Return config.json and tensors of a valid folder of each kind, by name."""
    rng = np.random.default_rng(0)
    kinds = _awq_kinds(rng) | _gptq_kinds(rng) | _compressed_kinds(rng)
    kinds["bitsandbytes"] = (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"weight": torch.zeros(8, 8)},
    )
    folders = {
        name: ({"quantization_config": section}, tensors)
        for name, (section, tensors) in kinds.items()
    }
    for bits in (4, 8):
        weight = packed(rng, group_size=64, bits=bits, zero_point=False)
        folders[f"chatglm-{bits}"] = ({"quantization_bit": bits}, write_linear("chatglm", weight))
    folders["dense"] = ({}, {"weight": torch.ones(8, 8).bfloat16(), "bias": torch.ones(0)})
    return {name: (config, with_neighbours(tensors)) for name, (config, tensors) in folders.items()}


def _awq_kinds(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    kinds = {
        f"awq-{version}": (awq | {"version": version}, write_linear(f"awq-{version}", packed(rng)))
        for version in ("gemm", "gemv")
    }
    for version, (group_size, tensors) in raw_linears(rng).items():
        section = {"version": version, "group_size": group_size, "zero_point": version != "marlin"}
        kinds[f"awq-{version}"] = (awq | section, tensors)
    return kinds


def _gptq_kinds(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    groups = {"bits": 4, "group_size": 32, "sym": False}
    gptq = groups | {"quant_method": "gptq", "desc_act": False}
    v2 = gptq | {"checkpoint_format": "gptq_v2", "bits": 3, "dynamic": {"+:.*q_proj": {}}}
    packing = {"packing_format": "auto_round:auto_gptq", "extra_config": {"l.k": {"bits": 4}}}
    return {
        "gptq": (gptq | {"checkpoint_format": "gptq"}, write_linear("gptq", packed(rng))),
        "gptq-v2": (v2, write_linear("gptq-v2", packed(rng, bits=3))),
        "auto-round": (
            groups | packing | {"quant_method": "auto-round"},
            write_linear("gptq", packed(rng)),
        ),
    }


def _compressed_kinds(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    kinds = {}
    for bits, zero_point in ((4, False), (5, True), (8, True)):
        weights = {"num_bits": bits, "group_size": 32, "strategy": "group", "type": "int"}
        group = {"targets": ["Linear"], "weights": weights | {"symmetric": not zero_point}}
        section = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        kinds[f"compressed-tensors-{bits}"] = (
            section | {"config_groups": {"group_0": group}, "ignore": ["lm_head"]},
            write_linear("compressed-tensors", packed(rng, bits=bits, zero_point=zero_point)),
        )
    return kinds


def with_neighbours(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a module twice, with a dense one beside them."""
    modules = [f"l.{i}.{part}" for i in ("q_proj", "k") for part in tensors]
    named = dict(zip(modules, [*tensors.values()] * 2, strict=True))
    return named | {"l.norm.weight": torch.ones(8, dtype=torch.bfloat16)}


class Folder:
    """A model folder in memory: what its files are made of, so that each can be damaged."""

    def __init__(self, config: dict, tensors: dict[str, torch.Tensor], n_shards: int):
        self.config = copy.deepcopy(config)
        self.headers, self.data, weight_map = {}, {}, {}
        for i in range(n_shards):
            file = SINGLE_FILE if n_shards == 1 else f"model-{i}.safetensors"
            header, chunks, at = {}, [], 0
            for name in list(tensors)[i::n_shards]:
                raw = tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
                dtype = TORCH_NAMES[str(tensors[name].dtype).removeprefix("torch.")]
                shape = list(tensors[name].shape)
                span = [at, at + len(raw)]
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
                chunks.append(raw)
                at += len(raw)
                weight_map[name] = file
            self.headers[file], self.data[file] = header, bytearray(b"".join(chunks))
        self.index = None if n_shards == 1 else {"metadata": {}, "weight_map": weight_map}

    def files(self) -> dict[str, bytes]:
        """Return the bytes of each file."""
        texts = {"config.json": self.config}
        if self.index is not None:
            texts[INDEX_FILE] = self.index
        files = {name: json.dumps(value).encode() for name, value in texts.items()}
        for name, header in self.headers.items():
            raw = json.dumps(header).encode()
            files[name] = struct.pack("<Q", len(raw)) + raw + self.data[name]
        return files
