"""What runs on the device: a light encoder and the token learner that turns its map into sentence tokens."""
