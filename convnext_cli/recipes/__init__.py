"""The settings: what they are, the tables they come from, and the plan that picks them."""
