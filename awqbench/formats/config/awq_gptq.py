"""What AutoAWQ, GPTQModel and AutoRound write about a folder's quantization."""

from __future__ import annotations

import re
from collections.abc import Iterator

from awqbench.errors import FormatError
from awqbench.formats.config.fields import bits_and_groups, checked, count, skipped
from awqbench.formats.config.quantization import Quantization, Rule, Scheme

# AutoAWQ's `version`: what lies on disk. exllama and ipex rearrange GEMM files when they load.
AWQ_VERSIONS = {
    "gemm": "awq-gemm",
    "exllama": "awq-gemm",
    "exllamav2": "awq-gemm",
    "ipex": "awq-gemm",
    "gemv": "awq-gemv",
    "gemv_fast": "awq-gemv-fast",
    "llm-awq": "awq-gemv-fast",
    "marlin": "awq-marlin",
}
GPTQ_FORMATS = {"gptq": "gptq", "gptq_v2": "gptq-v2"}


def awq_section(section: dict) -> Quantization:
    """Read what AutoAWQ, llm-awq, GPTQModel or AutoRound write for an AWQ folder."""
    version = section.get("version") or section.get("checkpoint_format") or section.get("format")
    layout = AWQ_VERSIONS.get(str(version or "gemm").lower())
    bits, group_size = bits_and_groups(section, "bits", "w_bit", "group_size", "q_group_size")
    zero_point = bool(section.get("zero_point", True)) and layout != "awq-marlin"
    return checked(
        Quantization(
            "awq",
            bits,
            group_size,
            zero_point,
            layout,
            skipped(section),
            tuple(_dynamic_rules(section, Scheme(bits or 4, group_size, zero_point))),
            advice=f"the version {str(version)[:80]!r} of AWQ is not known here.",
        )
    )


def gptq_section(section: dict) -> Quantization:
    """Read what AutoGPTQ, GPTQModel or AutoRound write for a GPTQ folder."""
    kind = section.get("checkpoint_format") or section.get("format") or "gptq"
    bits, group_size = bits_and_groups(section, "bits", None, "group_size", None)
    layout = GPTQ_FORMATS.get(str(kind).lower())
    if layout and bits in (5, 6, 7):
        kind, layout = "gptq_p", None  # gptqmodel stores these widths in planes only
    zero_point = not section.get("sym", True)
    return checked(
        Quantization(
            "gptq",
            bits,
            group_size,
            zero_point,
            layout,
            skipped(section),
            tuple(_dynamic_rules(section, Scheme(bits or 4, group_size, zero_point))),
            act_order=bool(section.get("desc_act", False)),
            variant="" if layout else str(kind)[:80],
            advice=f"checkpoint_format {str(kind)[:80]!r} is not GPTQ's own layout "
            "(gptq, gptq_v2); load it with GPTQModel, which can also save it as gptq.",
        )
    )


def _dynamic_rules(section: dict, base: Scheme) -> Iterator[Rule]:
    """GPTQModel's `dynamic`: negative rules come first, whatever their order in the file."""
    dynamic = section.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise FormatError("config.json: quantization_config.dynamic is not an object.")
    for pattern in dynamic:
        if pattern.startswith("-:"):
            yield Rule(pattern[2:], None)
    for pattern, changes in dynamic.items():
        if pattern.startswith("-:"):
            continue
        if changes is False:
            yield Rule(pattern.removeprefix("+:"), None)
            continue
        if not isinstance(changes, dict):
            raise FormatError(f"config.json: the rule {pattern[:80]!r} in dynamic is no object.")
        bits = count(changes, "bits")
        group_size = count(changes, "group_size")
        sym = changes.get("sym")
        yield Rule(
            pattern.removeprefix("+:"),
            Scheme(
                base.bits if bits is None else bits,
                base.group_size if group_size is None else group_size,
                base.zero_point if sym is None else not sym,
            ),
        )


def autoround_section(section: dict) -> Quantization:
    """Read what AutoRound writes for its own method, which packs as GPTQ or AWQ do."""
    packing = str(section.get("packing_format") or section.get("format") or "auto_round")
    bits, group_size = bits_and_groups(section, "bits", None, "group_size", None)
    zero_point = not section.get("sym", True)
    kind = packing.removeprefix("auto_round").removeprefix(":") or "auto_gptq"
    layout = {"auto_gptq": "gptq", "gptq": "gptq", "auto_awq": "awq-gemm", "awq": "awq-gemm"}.get(
        kind
    )
    data_type = str(section.get("data_type", "int"))
    return checked(
        Quantization(
            "auto-round",
            bits,
            group_size,
            zero_point,
            layout if data_type == "int" else None,
            skipped(section),
            tuple(_extra_rules(section, Scheme(bits or 4, group_size, zero_point))),
            variant="" if data_type == "int" else data_type[:80],
            advice=f"packing_format {packing[:80]!r} with data_type {data_type[:80]!r} is read by "
            "auto-round only.",
        )
    )


def _extra_rules(section: dict, base: Scheme) -> Iterator[Rule]:
    """AutoRound's `extra_config`: settings of single modules, by name or pattern."""
    extra = section.get("extra_config") or {}
    if not isinstance(extra, dict):
        raise FormatError("config.json: quantization_config.extra_config is not an object.")
    for name, changes in extra.items():
        if not isinstance(changes, dict):
            raise FormatError(f"config.json: extra_config of {name[:80]!r} is no object.")
        bits, group_size = count(changes, "bits"), count(changes, "group_size")
        bits = base.bits if bits is None else bits
        group_size = base.group_size if group_size is None else group_size
        pattern = re.escape(name) if name.replace(".", "").replace("_", "").isalnum() else name
        sym = changes.get("sym")
        zero_point = base.zero_point if sym is None else not sym
        yield Rule(f"{pattern}$", None if bits >= 16 else Scheme(bits, group_size, zero_point))
