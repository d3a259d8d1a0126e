"""Wire schema `pocketlens.v1`: `retrieval.proto` and the code generated from it (see `make proto`)."""
