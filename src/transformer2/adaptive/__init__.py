"""Answers to anybody's prompts: the model (model.py), and what is asked and answered (request.py)."""
