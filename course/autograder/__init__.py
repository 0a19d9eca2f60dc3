"""The autograder: grades a submission's code and predictions, here or on Gradescope."""
