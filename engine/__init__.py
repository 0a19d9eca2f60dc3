"""What makes the tasks fast, safe and resumable."""
