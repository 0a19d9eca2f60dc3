"""The starter that students get, made from this repository: `python -m course.handout OUT`."""
