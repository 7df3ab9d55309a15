"""The engine: requests in, tokens out; continuous batching over one model."""
