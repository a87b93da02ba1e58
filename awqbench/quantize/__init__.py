"""From a full-precision folder to a quantized one: calibrate, search, write.

The room can be called: ``awqbench.quantize(model, out)`` is `quantize.job.quantize`.
"""

from awqbench.rooms import make_callable

make_callable(__name__, "awqbench.quantize.job", "quantize")
