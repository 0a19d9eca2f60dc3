"""What runs in the submission's own process; it knows no answers."""
