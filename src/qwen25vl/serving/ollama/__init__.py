"""Ollama's routes: the same answers in the words of its clients."""
