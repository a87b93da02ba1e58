"""A kernel of one instruction, in PTX by hand: every lane applies it to values of its own."""

from functools import cache

import numpy as np

from ptx.launch import Program, launch

_HEAD = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry one(
"""


@cache
def _program(instruction, widths):
    """Return the program; operand i is ``%v{i}`` of widths[i] bytes, and ``%v0`` is stored."""
    params = ",\n".join(f".param .u64 p{i}" for i in range(len(widths)))
    lines = [
        ".reg .b64 %at<2>; .reg .b32 %t<2>; .reg .pred %p<2>;",
        "mov.u32 %t0, %ctaid.x; mov.u32 %t1, %ntid.x;",
        "mul.lo.u32 %t0, %t0, %t1; mov.u32 %t1, %tid.x; add.u32 %t0, %t0, %t1;",
    ]
    # Registers have 16 bits or more.
    lines += [f".reg .b{max(8 * width, 16)} %v{i};" for i, width in enumerate(widths)]
    for i, width in [*enumerate(widths)][1:]:
        lines += _access(i, width, f"ld.global.u{8 * width} %v{i}, [%at0];")
    lines.append(instruction + ";")
    lines += _access(0, widths[0], f"st.global.u{8 * widths[0]} [%at0], %v0;")
    body = "\n".join([*lines, "ret;"])
    return Program(f"{_HEAD}{params})\n{{\n{body}\n}}\n")


def _access(i, width, text):
    return [
        f"ld.param.u64 %at0, [p{i}]; mul.wide.u32 %at1, %t0, {width};",
        f"add.u64 %at0, %at0, %at1; {text}",
    ]


def evaluate(instruction, result, *operands):
    """Return what an instruction makes of operands.

    Parameters
    ----------
    instruction : str
        Its result is ``%v0``, its operands ``%v1``, ``%v2`` ...; ``%p0`` is a predicate.
    result : str
        NumPy type of the result.
    operands : ndarray
        All of one length.
    """
    n = len(operands[0])
    padded = [np.resize(operand, -(-n // 32) * 32) for operand in operands]
    out = np.zeros(len(padded[0]), result)
    widths = (out.itemsize, *(operand.itemsize for operand in padded))
    launch(_program(instruction, widths), (len(out) // 32,), (32,), [out, *padded])
    return out[:n]
