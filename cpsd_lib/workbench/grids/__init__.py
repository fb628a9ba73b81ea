"""Many runs from one file, side by side, that share what they can."""
