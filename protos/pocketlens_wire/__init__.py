"""The agreements both sides hold to: wire schema, token codec, manifests, ids, errors, pixels."""
