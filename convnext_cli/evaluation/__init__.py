"""Numbers from arrays. Knows nothing of models, files or torch."""
