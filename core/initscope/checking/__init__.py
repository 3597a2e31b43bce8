"""What can be known of a network before it is trained: one batch, a copy, a few seconds."""
