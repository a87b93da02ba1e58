"""config.json's `quantization_config`, as each layout's own tool writes it.

A folder has one scheme for most modules; where some have another, GPTQModel and
compressed-tensors have rules for it, and AutoAWQ has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from awqbench.errors import FormatError
from awqbench.formats.config.quantization import Scheme
from awqbench.formats.layouts import awq, compressed_tensors, gptq

_LAYER = re.compile(r"^(?P<stack>.*?\.)(?P<number>\d+)\.(?P<inside>.+)$")


def quantization_section(
    layout: str, schemes: Mapping[str, Scheme], dense: Iterable[str], *, desc_act: bool = False
) -> dict:
    """Return the section for a folder's modules.

    Parameters
    ----------
    layout : str
        A layout that is written, other than chatglm, which has no section.
    schemes : mapping of str to Scheme
        Of every packed module; `group_size` -1 means whole rows.
    dense : iterable of str
        Linears in full precision.
    desc_act : bool
        Whether any module is in activation order (GPTQ only).

    Returns
    -------
    dict

    Raises
    ------
    FormatError
        If the layout's configuration cannot express the schemes; names the modules.
    """
    dense = list(dense)
    base = most_common(schemes)
    others = {name: s for name, s in schemes.items() if _plain(s) != _plain(base)}
    if layout.startswith("awq-"):
        return _awq(layout, base, others, _listed_for_awq(dense, schemes))
    if layout.startswith("gptq"):
        section = gptq.quantization_config(
            bits=base.bits,
            group_size=base.group_size,
            zero_point=any(scheme.zero_point for scheme in schemes.values()),
            desc_act=desc_act,
            version=2 if layout == "gptq-v2" else 1,
            modules_to_not_convert=[name for name in dense if name != "lm_head"] or None,
        )
        rules = {
            f"+:{re.escape(name)}$": {"bits": s.bits, "group_size": s.group_size}
            for name, s in others.items()
        }
        return section | ({"dynamic": section.get("dynamic", {}) | rules} if rules else {})
    return _compressed(schemes, dense)


def most_common(schemes: Mapping[str, Scheme]) -> Scheme:
    """Return the scheme that most modules have."""
    if not schemes:
        raise FormatError("the folder has no packed linear.")
    return Counter(schemes.values()).most_common(1)[0][0]


def _plain(scheme: Scheme) -> tuple[int, int | None]:
    return scheme.bits, scheme.group_size


def _awq(layout: str, base: Scheme, others: dict[str, Scheme], listed: list[str]) -> dict:
    if others:
        name, scheme = next(iter(others.items()))
        raise FormatError(
            f"an AWQ folder has one group size and width for all; most linears have "
            f"{base.bits} bits and group size {base.group_size}, {name} has {scheme.bits} and "
            f"{scheme.group_size} ({len(others)} such). Choose gptq-v2 or compressed-tensors."
        )
    section = awq.quantization_config(
        bits=base.bits, group_size=base.group_size, modules_to_not_convert=listed or None
    )
    return section | {"version": awq_version(layout)}


def awq_version(layout: str) -> str:
    """Return AutoAWQ's `version` of a layout, such as ``gemv_fast``."""
    return layout.removeprefix("awq-").replace("-", "_")


def _listed_for_awq(dense: list[str], schemes: Mapping[str, Scheme]) -> list[str]:
    """Names for `modules_to_not_convert`; readers look for them in the names of modules.

    A linear that is dense in every layer is listed once, by its path inside a layer, which
    AutoAWQ needs; lm_head is never listed. A path that is part of a packed one would take that
    along (``mlp.gate``, a router, of ``mlp.gate_proj``): those are listed by their full names.
    """
    packed = "\n".join({inside(name) for name in schemes})
    listed = [
        name if inside(name) in packed else inside(name) for name in dense if name != "lm_head"
    ]
    return list(dict.fromkeys(listed))


def inside(name: str) -> str:
    """Return a module's path inside its layer, such as ``self_attn.q_proj``."""
    found = _LAYER.match(name)
    return found["inside"] if found else name


def _compressed(schemes: Mapping[str, Scheme], dense: list[str]) -> dict:
    base = most_common(schemes)
    section = compressed_tensors.quantization_config(
        bits=base.bits,
        group_size=base.group_size,
        zero_point=bool(base.zero_point),
        modules_to_not_convert=dense,
    )
    groups = section["config_groups"]
    for number, scheme in enumerate(sorted({s for s in schemes.values() if s != base}), start=1):
        other = compressed_tensors.quantization_config(
            bits=scheme.bits,
            group_size=scheme.group_size,
            zero_point=bool(scheme.zero_point),
            modules_to_not_convert=None,
        )["config_groups"]["group_0"]
        names = [name for name, found in schemes.items() if found == scheme]
        groups[f"group_{number}"] = other | {"targets": names}
    if len(groups) > 1:  # a class's name would match the others' modules too
        groups["group_0"]["targets"] = [name for name, s in schemes.items() if s == base]
    return section
