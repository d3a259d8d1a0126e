"""Galleries: where pictures' vectors and payload lie, and how they are searched."""
