"""One training: recipe, job, ranks, checkpoints."""
