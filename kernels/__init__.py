"""Kernel sources, compiled where they run: *.cu with CuPy, *.cpp with the system compiler."""
