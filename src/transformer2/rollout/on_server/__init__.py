"""Put on a vLLM server's PYTHONPATH, as a folder: nothing in it imports the rest of the package."""
