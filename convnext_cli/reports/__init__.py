"""An evaluation as something people want to look at: plots, and one page that needs no network."""
