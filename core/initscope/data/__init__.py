"""Data sets: the registered ones, image folders, and people's own."""
