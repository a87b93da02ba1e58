"""From a full-precision folder to a quantized one: calibrate, search, write.

`folds` finds what can absorb scales, `statistics` runs the text and adds up, `choices` searches one
block, `run` takes a model through all of it; the modules here are what is called from outside.

The room can be called: ``awqbench.quantize(model, out)`` is `quantize.job.quantize`.
"""

from awqbench.rooms import make_callable

make_callable(__name__, "awqbench.quantize.job", "quantize")
