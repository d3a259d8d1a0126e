"""The service: towers, query composition, gallery, indexing, the gRPC server. Never torch."""
