"""What the results say: pure functions of them, without a framework and without drawing."""
