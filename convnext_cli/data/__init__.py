"""From a folder, table or zip file to an index: scan, group, audit, split."""
