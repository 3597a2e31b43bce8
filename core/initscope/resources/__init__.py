"""What fits: memory, limits of the operator, and slots of this machine. No torch."""
