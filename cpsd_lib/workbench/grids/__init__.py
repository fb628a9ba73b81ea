"""Many runs from one file, one after the other, that share what they can."""
