"""`transformer2 serve`: an OpenAI-compatible server. app.py has the routes, engine.py the thread that runs the model."""
