"""People's picture files: which there are, and what is seen in one."""
