"""Readers of data sets as they lie on disk, each to a label table and the paths of its images."""
