"""The parts of a manifest: its cells, its columns, the labels, and the files that it names."""
