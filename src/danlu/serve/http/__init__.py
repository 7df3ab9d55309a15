"""The OpenAI API over HTTP and a page to try the model: app (routes), protocol (requests), replies, server."""
