"""How the built-in backbone is made."""
