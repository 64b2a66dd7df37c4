"""Answers to any prompt: the model (model.py), and what is asked and answered (request.py)."""
