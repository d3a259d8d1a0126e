"""The bounds of one request, in one place.

Owns the numbers; tokens.py, the service and the client check against them. `Describe` tells them to any other
client, so raising one needs no release of the device.
"""

MAX_REQUEST_BYTES = 64 * 1024  # one serialised request: 16 tokens of width 1024 in f32 fit, a picture does not
MAX_WORDS_BYTES = 4096  # UTF-8; far beyond any text tower's context, so cutting is the tower's business
MAX_TOKENS = 16  # students make 4 to 8
MAX_WIDTH = 4096  # numbers per token; the largest CLIP text towers have 1280
MAX_TOP = 1000  # hits of one answer
MAX_CONDITIONS = 64  # filter conditions of one request, wherever they stand in the tree
MAX_FILTER_DEPTH = 6  # filters inside each other
MAX_VALUES = 256  # in a condition that lists them
MAX_FILTER_BYTES = 16 * 1024  # UTF-8 of all texts in a filter; 256 ids have half of that
MAX_RADIUS_M = 20_100_000.0  # half around the earth
MAX_MODIFIERS = 8  # each but those of weight 1 is a row or two more for the text tower
MAX_WEIGHT = 2.0  # of a modifier, either way
MAX_REACH = 2000  # skip + top: the search index is walked so far for one page
MAX_TOKEN_NORM = 1e4  # Euclidean length of one token; word embeddings are of the order of 1
MAX_GROUPS = 100  # skip + top with groups, each of which may take a search of its own
MAX_TURNS = 100  # of one conversation
MAX_CONVERSATION_BYTES = 256 * 1024  # of all its messages: what the server remembers of it
MAX_IDLE_S = 300  # nothing said in a conversation
MAX_PICTURE_BYTES = 16 * 1024 * 1024  # a picture's file sent to Gallery.Add; a phone's JPEG has 3 to 8 MiB
MAX_CHUNK_BYTES = 48 * 1024  # of that file in one message, which must stay below MAX_REQUEST_BYTES
MAX_REMOVED = 1000  # ids of one Gallery.Remove

EDITION = 2  # of the schema: SearchReply.edition
