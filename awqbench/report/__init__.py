"""Notebooks to reports: parameters, runs, pages, gallery."""
