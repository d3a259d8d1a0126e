"""The bounds of one request, in one place.

Owns the numbers; tokens.py, the service and the client check against them. `Describe` tells them to any other
client, so raising one needs no release of the device.
"""

MAX_REQUEST_BYTES = 64 * 1024  # one serialised request: 16 tokens of width 1024 in f32 fit, a picture does not
MAX_WORDS_BYTES = 4096  # UTF-8; far beyond any text tower's context, so cutting is the tower's business
MAX_TOKENS = 16  # students make 4 to 8
MAX_WIDTH = 4096  # numbers per token; the largest CLIP text towers have 1280
MAX_TOP = 1000  # hits of one answer
MAX_CONDITIONS = 16  # filter conditions of one request
MAX_TOKEN_NORM = 1e4  # Euclidean length of one token; word embeddings are of the order of 1
