"""The server: OpenAI-style endpoints and a page before one pipeline, which one thread owns."""
