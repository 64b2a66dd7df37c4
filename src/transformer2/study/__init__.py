"""Studies: a grid of ordinary runs, and the tables and figures built from their run folders."""
