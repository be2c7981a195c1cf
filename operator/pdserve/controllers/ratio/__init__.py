"""The ratio loop: measures scenarios and decides their counts."""
