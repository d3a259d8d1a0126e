"""The sample world: a drawn product catalogue with captions, sketches and composed queries."""
