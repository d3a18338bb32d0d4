"""From a folder, CSV or zip file to an index: scan, group, audit, split."""
