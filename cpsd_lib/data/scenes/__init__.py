"""The embedded data set, drawn from a seed: labels from planted groups, and the pictures that show them."""
