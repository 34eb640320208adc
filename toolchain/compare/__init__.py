"""A candidate against a base: is it slower, bigger, less accurate, and by how much for certain."""
