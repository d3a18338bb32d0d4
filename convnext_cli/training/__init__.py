"""The fine-tuning itself: one straight loop, its optimizer, its devices, its checkpoints."""
