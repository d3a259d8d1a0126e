"""The scales: how well and how fast a bundle finds, measured through the real parts. Never torch."""
