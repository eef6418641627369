"""Ways of scoring, one class a file: honest ones that a decoder could follow, and the submissions' own for comparison."""
