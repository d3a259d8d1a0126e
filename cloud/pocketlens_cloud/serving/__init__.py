"""Serving: transports, and what stands between them and service.py."""
