"""Answers of every route: what the engine said in, JSON bytes and server-sent events out."""
