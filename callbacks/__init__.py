"""Callbacks: what watches or evaluates a run without being part of it. Importable as `transformer2.callbacks`."""
