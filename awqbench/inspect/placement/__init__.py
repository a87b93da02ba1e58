"""Where the modules of a model go: exact bytes, KV cache, device maps."""

from awqbench.inspect.placement.plan import plan_placement

__all__ = ["plan_placement"]
