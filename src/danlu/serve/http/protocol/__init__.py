"""Requests of every route: JSON bytes in, requests of the engine's seam out, or a RequestError naming the field."""
