"""Ways to damage a small model folder; for `fuzz_folders.py`.

The same generator of numbers gives the same damage, so that an input has a name.
"""

from __future__ import annotations

import json
import random
import struct

from small_folders import Folder

from awqbench.formats.headers import DTYPES
from awqbench.formats.shards import INDEX_FILE, SINGLE_FILE

EVIL_PATTERNS = (
    r"(a|a)*$", r"(.*)*\1z", r"((x+x+)+)+y", r"(\w+\.?)+!", "(", "[", "*", "(?P<n>", r"\1",
    "(?<=.*)", "(?i", "a{99999999999}", r"(?:(?:.{0,999}){0,999}){0,999}z", "(" * 1500, "(?R)",
    "(?(1)a|b", "\x00", "-:", "+:", "re:(", r"re:.*(.*.*)*q", ".*", "-:.*",
    "(?:a?){30}a{30}", r"\p{Foo}",
)  # fmt: skip
WORDS = (
    "awq", "gptq", "gptq_v2", "gemm", "gemv", "gemv_fast", "llm-awq", "marlin", "auto-round",
    "compressed-tensors", "pack-quantized", "bitsandbytes", "fp8", "int", "float", "channel",
    "group", "Linear", "q_proj", "l.q_proj", "re:.*", "qweight", "model.safetensors", "../x",
    "/etc/passwd", "", "I32", "F16", "I8", "BF16", "U64", "-1", "4", "nan", "\ud800", "\x1b[2J",
)  # fmt: skip
PARTS = (
    "weight", "qweight", "qzeros", "scales", "g_idx", "scaled_zeros", "bias", "weight_packed",
    "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "SCB", "W_q",
)  # fmt: skip
CONFIG_KEYS = (
    "quantization_config", "compression_config", "text_config", "quant_method", "bits", "w_bit",
    "group_size", "q_group_size", "version", "format", "checkpoint_format", "zero_point", "sym",
    "desc_act", "dynamic", "extra_config", "config_groups", "targets", "weights", "num_bits",
    "strategy", "symmetric", "ignore", "modules_to_not_convert", "quantization_bit", "type",
    "packing_format", "data_type", "load_in_4bit", "meta", "actorder",
)  # fmt: skip


def junk(rng: random.Random, depth: int = 0):
    """Return a value that has no business where it is put."""
    kind = rng.randrange(12 if depth < 3 else 9)
    if kind < 3:
        return rng.choice([0, 1, -1, 2, 3, 4, 5, 8, 16, 31, 32, 48, 64, 128, 2**31 - 1])
    if kind == 3:
        return rng.choice([-(2**31), 2**31, 2**53, 2**62, 2**63, 2**64, -(2**70), 10**400])
    if kind == 4:
        return rng.choice([None, True, False])
    if kind == 5:
        return rng.choice([0.5, 4.0, -0.0, 1e308, float("nan"), float("inf")])
    if kind < 9:
        return rng.choice(EVIL_PATTERNS if rng.random() < 0.1 else WORDS)
    if kind == 9:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 10:
        keys = (rng.choice(CONFIG_KEYS + WORDS) for _ in range(rng.randrange(4)))
        return {key: junk(rng, depth + 1) for key in keys}
    value = junk(rng, 3)
    for _ in range(rng.choice([1, 30, 100])):
        value = [value] if rng.random() < 0.5 else {rng.choice(CONFIG_KEYS): value}
    return value


def damage_tree(rng: random.Random, tree, keys: tuple[str, ...]) -> None:
    """Change one place of nested lists and dicts: drop, replace, add, rename."""
    places, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])
    if not places:
        return
    node, key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[rng.choice(keys)] = junk(rng)
    elif action == 2 and isinstance(node, dict):
        node[rng.choice(keys)] = node.pop(key)
    elif action == 3:
        other, at = rng.choice(places)
        if at in other or isinstance(other, list):
            node[key] = json.loads(json.dumps(other[at]))  # deepcopy would recurse too deep
    else:
        node[key] = junk(rng)


def damage_config(rng: random.Random, folder: Folder) -> None:
    section = folder.config.get("quantization_config")
    if isinstance(section, dict) and rng.random() < 0.02:
        rules = {rng.choice(EVIL_PATTERNS): {"bits": 4} for _ in range(rng.randrange(1, 4))}
        section["dynamic"] = section["extra_config"] = rules
        section["config_groups"] = {"g": {"targets": ["re:" + r for r in rules]}}
    damage_tree(rng, folder.config, CONFIG_KEYS)


def damage_header(rng: random.Random, folder: Folder) -> None:
    """Change entries so that many still are what safetensors allows."""
    header = folder.headers[rng.choice(list(folder.headers))]
    entries = [e for e in header.values() if isinstance(e, dict) and "shape" in e]
    if not entries or rng.random() < 0.3:
        return damage_tree(rng, header, ("dtype", "shape", "data_offsets", "__metadata__", "l.k"))
    entry, name = rng.choice(entries), rng.choice(list(header))
    action = rng.randrange(6)
    if action == 0:
        reshape(rng, entry)
    elif action == 1:  # another dtype of the same width: nothing but its meaning changes
        width = DTYPES.get(str(entry.get("dtype")), (1,))[0]
        entry["dtype"] = rng.choice([d for d, (bytes_, _) in DTYPES.items() if bytes_ == width])
    elif action == 2:
        header[f"{name.rpartition('.')[0]}.{rng.choice(PARTS)}"] = header.pop(name)
    elif action == 3:
        other = rng.choice(list(header))
        header[name], header[other] = header[other], header[name]
    elif action == 4:
        header[f"{name.rpartition('.')[0]}.{rng.choice(PARTS)}"] = header[name]
    else:  # more or less than there is, consistently
        shrink(rng, entry)


def reshape(rng: random.Random, entry: dict) -> None:
    shape = entry["shape"]
    if not isinstance(shape, list) or not shape or not all(type(n) is int for n in shape):
        return
    factor, (a, b) = rng.choice([2, 4, 8, 3]), (rng.randrange(len(shape)) for _ in "ab")
    if shape[a] % factor == 0:
        shape[a], shape[b] = shape[a] // factor, shape[b] * factor
    if rng.random() < 0.5:
        shape.reverse()
    if rng.random() < 0.2:
        shape.insert(rng.randrange(len(shape) + 1), 1)


def shrink(rng: random.Random, entry: dict) -> None:
    shape, span = entry["shape"], entry.get("data_offsets")
    if not (isinstance(shape, list) and shape and isinstance(span, list) and len(span) == 2):
        return
    if not all(type(n) is int for n in (*shape, *span)):
        return
    at = rng.randrange(len(shape))
    shape[at] = rng.choice([0, 1, shape[at] // 2, shape[at] - 1, shape[at] + 1, 2**40, 2**62])
    size = DTYPES.get(str(entry.get("dtype")), (1,))[0]
    for n in shape:
        size *= n
    span[1] = span[0] + size


def damage_data(rng: random.Random, folder: Folder) -> None:
    data = folder.data[rng.choice(list(folder.data))]
    at = rng.randrange(len(data) + 1)
    count = min(rng.choice([1, 2, 4, 64, 4096]), len(data) - at)
    fill = rng.choice([b"\0", b"\xff", b"\x7c", b"\x7f", b"\x80"]) * count
    data[at : at + count] = rng.randbytes(count) if rng.random() < 0.5 else fill


def damage_index(rng: random.Random, folder: Folder) -> None:
    if folder.index is None:
        folder.index = {"weight_map": dict.fromkeys(folder.headers[SINGLE_FILE], SINGLE_FILE)}
    damage_tree(rng, folder.index, ("weight_map", "metadata", "l.k.weight", *WORDS))


def damage_bytes(rng: random.Random, files: dict[str, bytes]) -> None:
    """Change one file as bytes: flips, lengths, truncation, nonsense."""
    name = rng.choice(list(files))
    raw = bytearray(files[name])
    action = rng.randrange(7)
    if action == 0:
        for _ in range(rng.choice([1, 1, 3, 20])):
            if raw:
                raw[rng.randrange(min(len(raw), 2000))] ^= 1 << rng.randrange(8)
    elif action == 1:
        del raw[rng.randrange(len(raw) + 1) :]
    elif action == 2:
        lengths = (0, 1, 7, len(raw), len(raw) - 8, 10**8, 2**50, 2**63, 2**64 - 1)
        raw[:8] = struct.pack("<Q", max(rng.choice(lengths), 0))
    elif action == 3:
        raw += rng.randbytes(rng.choice([1, 8, 999]))
    elif action == 4:
        nonsense = [
            b"",
            b"null",
            b"[]",
            b"{",
            b"\xff\xfe",
            b"[" * 9999,
            b'{"a":' + b"9" * 5000 + b"}",
        ]
        raw = bytearray(rng.choice(nonsense))
    elif action == 5:
        at = rng.randrange(len(raw) + 1)
        raw[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    else:
        other = rng.choice(
            ["quantize_config.json", "quant_config.json", "x.gguf", "m.bin", INDEX_FILE]
        )
        files[other] = files.pop(name) if rng.random() < 0.5 else bytes(raw)
        return
    files[name] = bytes(raw)


def damaged(rng: random.Random, bases: dict) -> dict[str, bytes]:
    """Return the files of one damaged folder."""
    config, tensors = bases[rng.choice(list(bases))]
    folder = Folder(config, tensors, rng.choice([1, 1, 1, 2, 3]))
    kinds = (damage_config, damage_config, damage_header, damage_header, damage_data, damage_index)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        rng.choice(kinds)(rng, folder)
    files = folder.files()
    if rng.random() < 0.2:
        damage_bytes(rng, files)
    return files
