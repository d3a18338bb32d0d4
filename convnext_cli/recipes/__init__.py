"""Settings, the tables of the recipes, plans and recommendations."""
