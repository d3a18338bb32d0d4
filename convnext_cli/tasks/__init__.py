"""Tasks: what is asked of an image. All that differs between tasks is in their modules, one for each."""
