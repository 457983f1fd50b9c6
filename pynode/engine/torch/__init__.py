"""The torch engine: torchdiffeq runs the field as it is."""
