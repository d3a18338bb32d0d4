"""From a folder to batches: scan, split, decode, transform, load. Takes plain values, never a Recipe."""
