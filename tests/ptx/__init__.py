"""An interpreter, in NumPy, of the PTX that NVRTC makes of the CUDA kernels.

It runs kernels where there is no GPU, and it looks harder than a GPU does: bounds and
alignment of every access, races and unwritten bytes in shared memory, asynchronous copies that
arrive no earlier than they must, operands of `wgmma` that change while it is under way.

What it knows is one reading of NVIDIA's PTX manual, not the hardware: fragment layouts and
descriptors may be read wrongly here and in a kernel alike, time is not modelled, thread blocks
never wait for one another, and a tensor core sums in another order than float64.

`build` compiles, `parse` reads PTX, `decode` turns an instruction into a Python function with
the builders in `ops_*`, `lanes` holds threads in lock step, `launch` runs a grid. `problems`
and `kernels` run the package's kernels on small products, `planted` lists bugs to be found;
``python -m ptx.prove`` runs every program and ``python -m ptx.traffic`` counts what each asks
of memory.
"""
