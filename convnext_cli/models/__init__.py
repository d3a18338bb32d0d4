"""The catalogue of models, their names and licences, and building them with their weights."""
