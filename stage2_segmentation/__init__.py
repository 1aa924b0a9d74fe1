"""Stage two: pixels are classified among the κ labels that a ranking kept."""
