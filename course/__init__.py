"""What staff need to teach with this project: hand out, grade, rank."""
