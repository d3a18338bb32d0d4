"""What may be wrong with a data set, found before it makes a score false."""
