"""`transformer2 serve`, an OpenAI-compatible server. app.py: the routes; engine.py: the thread of the model."""
