"""A run for other places: one ONNX file, a PyTorch program, a folder for the Hugging Face Hub."""
