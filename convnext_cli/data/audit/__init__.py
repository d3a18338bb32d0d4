"""The audit: faults in a data set that would make scores wrong, found before training."""
