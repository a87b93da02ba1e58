"""Kernel sources, compiled where they run: *.cu by NVRTC, *.cpp by the system compiler."""
