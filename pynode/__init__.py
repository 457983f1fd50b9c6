"""Neural differential equations for PyTorch, solved and differentiated by Julia."""
