"""A budget in, the best file out: candidates are variants of a recipe, real latency and accuracy on val decide."""
