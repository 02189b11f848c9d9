"""The server: OpenAI's HTTP API over the engine, and the page."""
