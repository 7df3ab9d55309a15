"""Serving: the engine that batches requests, and the HTTP server in front of it."""
