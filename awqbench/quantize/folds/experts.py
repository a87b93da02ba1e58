"""Sites of a mixture of experts: one expert probed for all, and one set of scales for each norm.

The norm before a mixture feeds the router, every expert's gate and up, and a shared expert. Its
scales must suit them all, while every expert has statistics of its own tokens: so the linears
that read the norm's output are one site to prove and to fold, and a site for each expert to
calibrate and to round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from awqbench.quantize.folds.apply import Site
from awqbench.quantize.folds.trace import Trace

if TYPE_CHECKING:
    import torch

_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.")


def expert_of(path: str) -> int | None:
    """Return the number of the expert that a module is in, None outside of experts.

    Examples
    --------
    >>> expert_of("mlp.experts.7.down_proj"), expert_of("mlp.shared_expert.down_proj")
    (7, None)
    """
    found = _EXPERT.search(path)
    return int(found[1]) if found else None


def one_for_all(block: torch.nn.Module, trace: Trace) -> Trace:
    """Return the trace with the first expert of each mixture standing for the others.

    They are modules of one class and shape, so what feeds what is the same in each; in a
    mixture of 128 that is 254 runs of the block less for each site.
    """
    from awqbench.model_experts import Experts

    others = tuple(
        f"{path}.{i}."
        for path, module in block.named_modules()
        if isinstance(module, Experts)
        for i in range(1, module.num_experts)
    )
    return trace._replace(
        groups=[group for group in trace.groups if not group[0].startswith(others)],
        order=[path for path in trace.order if not path.startswith(others)],
    )


def copies(block: torch.nn.Module, site: Site) -> Iterator[Site]:
    """Yield the sites of the other experts that a site of expert 0 stands for."""
    from awqbench.model_experts import Experts

    for path, module in block.named_modules():
        head = f"{path}.0."
        if not isinstance(module, Experts) or not all(p.startswith(head) for p in site.linears):
            continue
        for i in range(1, module.num_experts):

            def there(name: str | None, i: int = i, path: str = path) -> str | None:
                head = f"{path}.0."
                return name if name is None else re.sub(f"^{re.escape(head)}", f"{path}.{i}.", name)

            yield _own_source(site)._replace(
                name=there(site.name),
                linears=tuple(map(there, site.linears)),
                prev_op=there(site.prev_op),
                reason=site.reason.replace(head, f"{path}.{i}."),
            )


def loose_weights(block: torch.nn.Module) -> list[str]:
    """Return weights of two or more dimensions that belong to no nn.Linear.

    Experts that transformers holds in one tensor are such: no site covers them.
    """
    from torch import nn

    inside = {
        id(m.weight) for m in block.modules() if isinstance(m, nn.Linear) and m.weight is not None
    }
    return [n for n, p in block.named_parameters() if p.ndim > 1 and id(p) not in inside]


def loose_readers(block: torch.nn.Module, site: Site, locked: Iterable[str]) -> tuple[str, ...]:
    """Return weights outside of linears that may read a site's input: routers are such."""
    shapes = {name: block.get_parameter(name).shape for name in loose_weights(block)}
    return tuple(
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and shape[1] == site.in_features and name not in locked
    )


def by_expert(site: Site) -> list[Site]:
    """Split a site of several experts' linears into one for each, and one for the others.

    Returns
    -------
    list of Site
        Sharing their scales; the site itself if its linears are in one expert or in none.
    """
    parts: dict[int | None, list[str]] = {}
    for linear in site.linears:
        parts.setdefault(expert_of(linear), []).append(linear)
    if len(parts) == 1:
        return [site]
    shares = site.name if site.prev_op is not None else ""
    return [
        _own_source(site)._replace(name=linears[0], linears=tuple(linears), shares=shares)
        for linears in parts.values()
    ]


def _own_source(site: Site) -> Site:
    """Return the site with a copy of its array: files hold no memory twice."""
    return site if site.source is None else site._replace(source=site.source.copy())
