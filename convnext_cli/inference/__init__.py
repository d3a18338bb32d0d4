"""A trained run at work: predictions for images, metrics for a data set."""
