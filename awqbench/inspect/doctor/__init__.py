"""Pre-flight of a model folder: one card that says whether it can be quantized here."""

from awqbench.inspect.doctor.card import doctor
from awqbench.inspect.doctor.findings import CARE, NO, NOTE, Finding
from awqbench.inspect.doctor.prediction import Prediction, predict_seconds
from awqbench.inspect.doctor.report import DoctorReport

__all__ = [
    "CARE",
    "NO",
    "NOTE",
    "DoctorReport",
    "Finding",
    "Prediction",
    "doctor",
    "predict_seconds",
]
