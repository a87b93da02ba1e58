"""One family of errors: each names the place, the numbers, and the nearest fix."""

from __future__ import annotations


class AwqbenchError(Exception):
    """Base of every error that awqbench raises for a reason the caller can act on."""


class AlignmentError(AwqbenchError, ValueError):
    """A dimension is not a multiple of what the layout, kernel or engine needs."""


class NonFiniteError(AwqbenchError, ValueError):
    """NaN or infinity where only finite numbers can be handled."""


class OverflowCastError(AwqbenchError, ValueError):
    """A finite number does not fit the dtype it would be stored in."""


class DeviceError(AwqbenchError, RuntimeError):
    """A device is not there, or tensors that must be together lie on different ones."""


class FormatError(AwqbenchError, ValueError):
    """A file or folder is not what its format says; names the file and the tensor."""


class AlreadyQuantizedError(AwqbenchError, ValueError):
    """The folder holds quantized weights where full precision is needed."""


class StatisticsError(AwqbenchError, ValueError):
    """Calibration statistics are missing, damaged, or belong to another model."""


class CalibrationTextError(AwqbenchError, ValueError):
    """The calibration or evaluation text is empty, too short, or cannot be read."""


class BackendError(AwqbenchError, RuntimeError):
    """A compute path was asked for by name and is not available; gives the reason."""


class ParameterError(AwqbenchError, ValueError):
    """A setting or a notebook parameter is unknown or out of range."""


class OutputError(AwqbenchError, OSError):
    """A result cannot be written where it was asked for."""


class ResumeError(AwqbenchError, ValueError):
    """An unfinished run cannot go on: its settings differ from those asked for now."""


class MemoryLimitError(AwqbenchError, MemoryError):
    """The work does not fit into the memory that it may use; names the stage and its bytes."""


class TraceError(AwqbenchError, ValueError):
    """A model cannot be taken apart block by block."""


class NotebookError(AwqbenchError, ValueError):
    """A notebook cannot be found, read, or run as it is written."""


class ClusterError(AwqbenchError, RuntimeError):
    """Workers cannot be reached, or were lost more often than is chance."""


class RecordError(AwqbenchError, ValueError):
    """A record of measurements is not what it should be; names the file and the line."""


class RecordSchemaError(RecordError):
    """A field of a record is missing, unknown, or of the wrong kind."""


class RecordSealError(RecordError):
    """A record was changed after it was written: its seal is not that of its content."""


class RecordConsistencyError(RecordError):
    """Numbers of a record contradict one another, or another record of the same case."""


class RecordDigestError(RecordError):
    """The output recorded for an exact kernel is not the output of that kernel."""


class EmulatedTimingError(RecordError):
    """A time from an emulated processor was asked for; it says nothing about the real one."""


class StaticModelError(AwqbenchError, ValueError):
    """llvm-mca has no honest answer: a borrowed model, or two numbers that contradict."""
