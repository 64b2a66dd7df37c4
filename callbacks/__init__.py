"""Callbacks: what watches or judges a run without being part of it. Importable as `transformer2.callbacks`."""
