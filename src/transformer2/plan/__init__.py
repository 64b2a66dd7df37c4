"""What fits and how long it takes, from a config alone: shape, pictures -> job -> memory, seconds -> advice -> table."""
