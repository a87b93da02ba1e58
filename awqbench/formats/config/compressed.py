"""What compressed-tensors writes about a folder's quantization."""

from __future__ import annotations

import re

from awqbench.errors import FormatError
from awqbench.formats.config.fields import checked, count, skipped
from awqbench.formats.config.foreign import foreign_compressed
from awqbench.formats.config.quantization import Quantization, Rule, Scheme


def compressed_section(section: dict) -> Quantization:
    """Read config_groups; formats other than pack-quantized are only recognised."""
    groups = section.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise FormatError("config.json: quantization_config.config_groups is not an object.")
    schemes = [(_targets(group), group) for group in groups.values()]
    kinds = {str(group.get("format") or section.get("format")) for group in groups.values()}
    kinds = kinds or {str(section.get("format"))}
    first = _weights(schemes[0][1]) if schemes else {}
    bits, group_size = count(first, "num_bits"), _compressed_group_size(first)
    is_read = kinds == {"pack-quantized"} and all(
        _weights(group).get("type", "int") == "int" for _, group in schemes
    )
    if not is_read:
        kind = next(iter(kinds)) if len(kinds) == 1 else "mixed-precision"
        return foreign_compressed(kind, bits=bits, group_size=group_size)
    rules = []
    for targets, group in schemes:
        weights = _weights(group)
        num_bits = count(weights, "num_bits")
        if num_bits is None:
            raise FormatError("config.json: a group of config_groups has no weights.num_bits.")
        scheme = Scheme(num_bits, _compressed_group_size(weights), _is_asymmetric(weights))
        rules += [Rule(pattern, scheme) for pattern in targets]
    return checked(
        Quantization(
            "compressed-tensors",
            bits,
            group_size,
            _is_asymmetric(first),
            "compressed-tensors",
            skipped(section, "ignore"),
            # By name before by class, as compressed-tensors does.
            tuple(sorted(rules, key=lambda rule: rule.pattern == "")) if len(rules) > 1 else (),
        )
    )


def _targets(group: dict) -> list[str]:
    """Patterns from the start of a module's name; a class's name matches every linear."""
    targets = group.get("targets") or []
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise FormatError("config.json: targets of a config group are not a list of names.")
    patterns = []
    for target in targets:
        if target.startswith("re:"):
            patterns.append(target[3:])
        elif "." in target:
            patterns.append(re.escape(target) + "$")
        else:
            patterns.append("")
    return patterns


def _weights(group: dict) -> dict:
    weights = group.get("weights")
    if weights is None:
        return {}
    if not isinstance(weights, dict):
        raise FormatError("config.json: weights of a config group are not an object.")
    return weights


def _compressed_group_size(weights: dict) -> int | None:
    return -1 if weights.get("strategy") == "channel" else count(weights, "group_size")


def _is_asymmetric(weights: dict) -> bool:
    return not weights.get("symmetric", True)
