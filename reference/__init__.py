"""What is right: NumPy float64, no framework, no autodiff."""
