"""Indexing: from pictures to a gallery."""
