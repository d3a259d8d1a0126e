"""The customs: checkpoint in, verified and hashed bundle out, or a refusal."""
