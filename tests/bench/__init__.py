"""What the workbench's way costs, timed in one process against a straightforward program for the same results."""
